"""The pictures on the quickstart's page, and the predictions that they show."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from difformer.backbones import Backbone, as_denoiser, device_of
from difformer.classifier import DiffusionClassifier
from difformer.config import sides
from difformer.data import DataConfig, ImageDataset, few_shot
from difformer.data.images import enlarged
from difformer.data.subset import TEST
from difformer.diffusion import NoiseSchedule, sample_ddim
from difformer.engine.config.build import build_dataset, build_extractor
from difformer.engine.extraction.estimate import collate_readable
from difformer.heads import DifFormerHead
from difformer.report.feature_maps import draw_feature_maps
from difformer.report.grids import draw_grid
from difformer.taps import FeatureKey
from difformer.verbs.quickstart.plan import Plan

_BATCH = 64
# The number of generated images, and of DDIM steps for them.
SAMPLES, STEPS = 16, 40
# The number of images whose features are shown.
_SHOWN = 4
# The short side of examples in pixels; the networks see them smaller.
_EXAMPLE_SIZE = 128


@dataclass(frozen=True, eq=False)
class Predictions:
    """A classifier's predictions for the test images.

    Attributes:
        places: (N,) indices in the test split.
        names: N file names, or ids if there are none.
        labels: (N,).
        probabilities: (N, C) float32.
        attention: each feature's share, as a mean over all test images; empty for heads without attention shares.
    """

    places: NDArray[np.int64]
    names: tuple[str, ...]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    attention: dict[FeatureKey, float]


def predict_test(classifier: DiffusionClassifier, images: ImageDataset) -> Predictions:
    """Runs a classifier on all test images that can be read, and measures which features its head attends to."""
    places, labels, probabilities = [], [], []
    shares: dict[FeatureKey, float] = {}
    device = next(classifier.parameters()).device
    conditioning = classifier.conditioning
    starts = range(0, len(images), _BATCH)
    for start in tqdm(starts, desc="predicting", unit="batch", delay=2, leave=False):
        samples = {place: images[place] for place in range(start, min(start + _BATCH, len(images)))}
        batch = collate_readable(list(samples.values()))
        if batch is None:
            continue
        with torch.no_grad():
            told: dict[str, Any] = conditioning.by_label(batch.labels)
            features = classifier.features(batch.images.to(device), batch.ids, **told)
            probabilities.append(classifier(features).float().softmax(1).cpu())
            if isinstance(classifier.head, DifFormerHead):
                for key, share in classifier.head.attention_share(features).items():
                    shares[key] = shares.get(key, 0.0) + float(share.sum())
        places += [place for place, sample in samples.items() if sample is not None]
        labels.append(batch.labels)
    names = images.names
    return Predictions(
        np.array(places),
        tuple(names[place] if names else str(images.ids[place]) for place in places),
        torch.cat(labels).numpy(),
        torch.cat(probabilities).numpy(),
        {key: total / len(places) for key, total in shares.items()},
    )


def choose_examples(predictions: Predictions, count: int, *, seed: int = 0) -> list[int]:
    """Rows of predictions to show, drawn at random: half of them mistakes if there are enough.

    The right ones come first, and the surest first among both.
    """
    sure = predictions.probabilities.max(axis=1)
    right = predictions.probabilities.argmax(axis=1) == predictions.labels
    generator = np.random.default_rng(seed)
    wrong, others = (generator.permutation(np.flatnonzero(rows)) for rows in (~right, right))
    mistakes = min(len(wrong), max(count // 2, count - len(others)))
    wrong, others = wrong[:mistakes], others[: count - mistakes]
    return [int(row) for group in (others, wrong) for row in sorted(group, key=lambda row: -sure[row])]


def draw_samples(backbone: Backbone, path: Path) -> bool:
    """Draws images that the backbone generates; returns False, and writes no file, if it generates none."""
    denoiser, schedule, size = as_denoiser(backbone), backbone.schedule, backbone.image_size
    if denoiser is None or size is None or backbone.conditioning or not isinstance(schedule, NoiseSchedule):
        return False
    shape, device = (SAMPLES, 3, *sides(size)), device_of(backbone)
    images = sample_ddim(denoiser.forward, schedule, shape, steps=STEPS, eta=1.0, seed=0, device=device)
    draw_grid(images, path, columns=SAMPLES // 2)
    return True


def draw_images(images: ImageDataset, path: Path) -> bool:
    """Draws up to `SAMPLES` evenly spaced images, to compare with `draw_samples`; returns False if none can be read."""
    places = np.linspace(0, len(images) - 1, min(SAMPLES, len(images))).round().astype(int)
    samples = [sample for place in places if (sample := images[int(place)]) is not None]
    if samples:
        draw_grid(torch.stack([sample.image for sample in samples]), path, columns=SAMPLES // 2)
    return bool(samples)


def draw_components(plan: Plan, backbone: Backbone, images: ImageDataset, path: Path) -> bool:
    """Draws the principal components of features by block and timestep, for images of several classes.

    Returns False, and writes no file, if none of these images can be read.
    """
    places = few_shot(images.labels, -(-_SHOWN // len(images.class_names)), seed=0)[:_SHOWN]
    batch = collate_readable([images[int(place)] for place in places])
    if batch is None:
        return False
    extractor = build_extractor(plan.pictured, backbone, plan.data.size).eval()
    device = device_of(backbone)
    with torch.no_grad():
        told = extractor.conditioning.by_label(batch.labels)
        features = extractor(batch.images.to(device), batch.ids, **told)
    draw_feature_maps(batch.images, {key: maps.float().cpu() for key, maps in features.items()}, path)
    return True


def write_examples(data: DataConfig, places: Sequence[int], folder: Path) -> list[Path]:
    """Writes test images as PNG files, larger than the networks see them."""
    size = enlarged(data.size, _EXAMPLE_SIZE)
    images = build_dataset(replace(data, size=size, resize=None), TEST)
    files = []
    for number, place in enumerate(places):
        sample = images[place]
        assert sample is not None
        files.append(folder / f"example-{number:02}.png")
        draw_grid(sample.image[None], files[-1], columns=1, scale=1)
    return files
