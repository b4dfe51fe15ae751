"""The images that are most alike: python examples/retrieval.py FOLDER IMAGE

Compares the features of IMAGE with those of all images below FOLDER, by cosine.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from difformer import FeatureExtractor, create_backbone
from difformer.data import IMAGE_SUFFIXES, Preprocessing, content_id

folder, query = Path(sys.argv[1]), Path(sys.argv[2])
paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)

backbone = create_backbone("adm32_cifar10")
extractor = FeatureExtractor(backbone, taps=["out01"], timesteps=[50], draws=4)  # the mean of four noise draws
preprocess = Preprocessing(32)


def embed(files):
    """(N, D) unit vectors of image files."""
    images = torch.stack([preprocess(Image.open(path).convert("RGB")) for path in files])
    features = extractor(images, ids=[content_id(image) for image in images])
    (maps,) = features.values()
    return F.normalize(F.adaptive_avg_pool2d(maps, 2).flatten(1))


vectors = torch.cat([embed(paths[i : i + 32]) for i in range(0, len(paths), 32)])
similarity = (embed([query]) @ vectors.T)[0]
for place in similarity.argsort(descending=True)[:5].tolist():
    print(f"{similarity[place]:.3f}  {paths[place]}")
