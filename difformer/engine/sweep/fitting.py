"""The probes of all blocks and poolings, as many in one computation as the method and the memory allow."""

from collections.abc import Iterator

import torch

from difformer.analysis.probes import GradientDescent, Labelled, Probe, Scorer
from difformer.engine.sweep.features import SplitFeatures

Place = tuple[str, int]

# Features that gradient descent standardises at once.
_MOST_BYTES = 2**30


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
        Tap and pooling, with the fitted settings; in any order.
    """
    labels = torch.from_numpy(train.labels)
    if not isinstance(probe, GradientDescent):
        for place in train.places:
            yield place, probe.fit(Labelled(train.of(*place).to(device), labels), num_classes)
        return
    for places in _groups(train):
        features = [train.of(*place).to(device) for place in places]
        yield from zip(places, probe.fit_each(features, labels, num_classes), strict=True)


def _groups(train: SplitFeatures) -> Iterator[list[Place]]:
    """Places of equal width, as many as there is room for."""
    by_width: dict[int, list[Place]] = {}
    for place, columns in train.places.items():
        by_width.setdefault(columns.stop - columns.start, []).append(place)
    for width, places in by_width.items():
        size = max(1, _MOST_BYTES // (len(train.labels) * width * torch.float32.itemsize))
        yield from (places[i : i + size] for i in range(0, len(places), size))
