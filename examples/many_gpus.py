"""Features on all GPUs, with Accelerate: accelerate launch examples/many_gpus.py FOLDER

Each process reads a share of the images; the features do not depend on how many processes there are. `difformer
extract` does this with a cache that can be resumed. FOLDER holds one folder a class.
"""

import sys

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from difformer import FeatureExtractor, create_backbone
from difformer.data import collate, create_dataset

accelerator = Accelerator()
backbone = create_backbone("adm32_cifar10", device=accelerator.device)
extractor = FeatureExtractor(backbone, taps=["out01"], timesteps=[50])

config = {"name": "folder", "root": sys.argv[1], "splits": {"train": "."}, "size": 32}
images = create_dataset(config, "train", augment=False)
loader = accelerator.prepare(DataLoader(images, batch_size=32, collate_fn=lambda samples: collate(samples)._asdict()))

vectors, ids = [], []
for batch in loader:
    (maps,) = extractor(batch["images"], batch["ids"]).values()
    # Takes away what was repeated so that every process had as many.
    found = accelerator.gather_for_metrics((maps.mean(dim=(2, 3)), batch["ids"]))
    vectors.append(found[0].cpu())
    ids.append(found[1].cpu())

order = torch.cat(ids).argsort()
if accelerator.is_main_process:
    torch.save({"ids": torch.cat(ids)[order], "vectors": torch.cat(vectors)[order]}, "vectors.pt")
    print(f"{len(order)} images on {accelerator.num_processes} processes")
