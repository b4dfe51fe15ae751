"""Fits the probes of all blocks and poolings, as many at once as the method and the memory allow."""

from collections.abc import Iterator

import torch

from difformer.analysis.probes import GradientDescent, Labelled, Probe, Scorer
from difformer.engine.extraction.pooled import SplitFeatures

Place = tuple[str, int]

# The most memory for standardised features and layers when gradient descent trains several probes at once.
_MOST_BYTES = 2**30
# Copies of the layers: weights, velocities, gradients, updates, and the fits.
_COPIES = 5


def fit_places(
    probe: Probe, train: SplitFeatures, num_classes: int, device: torch.device
) -> Iterator[tuple[Place, Scorer]]:
    """Fits a probe for each tap and pooling.

    Args:
        probe: method and settings.
        train: the training images.
        num_classes: C.
        device: where they are fitted.

    Yields:
        Tap and pooling with the fitted probe, in any order.
    """
    labels = torch.from_numpy(train.labels)
    if not isinstance(probe, GradientDescent):
        for place in train.places:
            yield place, probe.fit(Labelled(train.of(*place).to(device), labels), num_classes)
        return
    by_width: dict[int, list[Place]] = {}
    for place, columns in train.places.items():
        by_width.setdefault(columns.stop - columns.start, []).append(place)
    outputs = len(probe.rates) * len(probe.weight_decays) * num_classes
    for width, places in by_width.items():
        numbers = width * (len(train.labels) + _COPIES * outputs)
        size = max(1, _MOST_BYTES // (numbers * torch.float32.itemsize))
        for start in range(0, len(places), size):
            group = places[start : start + size]
            features = [train.of(*place).to(device) for place in group]
            yield from zip(group, probe.fit_each(features, labels, num_classes), strict=True)
