"""Time and disk space that an extraction will take."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from difformer.backbones import device_of
from difformer.classifier import DiffusionClassifier
from difformer.data import Batch, ImageDataset, Sample, collate
from difformer.engine.cost.costs import human_bytes
from difformer.engine.cost.timing import seconds_per_image
from difformer.features.planning import CachePlan

_MARGIN_BYTES = 64 << 20
_READ = 4


@dataclass(frozen=True)
class Estimate:
    """What an extraction will take.

    Attributes:
        total_bytes: of the whole cache.
        missing_bytes: still to be written.
        missing_images: still to be read, counted once for each view.
        seconds: until it is done.
        shard_seconds: maximum work that is lost by a stop, in each process.
    """

    total_bytes: int
    missing_bytes: int
    missing_images: int
    seconds: float
    shard_seconds: float

    def __str__(self) -> str:
        total, missing = (human_bytes(size) for size in (self.total_bytes, self.missing_bytes))
        if not self.missing_images:
            return f"{total}, complete"
        times = [tqdm.format_interval(seconds) for seconds in (self.seconds, self.shard_seconds)]
        return (
            f"{total}, of which {missing} ({self.missing_images} images) are missing and take about {times[0]}; "
            f"a stop loses at most {times[1]}"
        )


def estimate(
    plan: CachePlan, missing: Sequence[tuple[int, int]], image_seconds: float, *, processes: int = 1
) -> Estimate:
    """Size and time of an extraction.

    Args:
        plan: what is wanted.
        missing: the (view, shard) that do not exist yet.
        image_seconds: for one image on one process, from `time_image`.
        processes: number that shares the work.
    """
    manifest = plan.manifest
    total = sum(manifest.shard_bytes(shard) for _, shard in plan.shards())
    left = sum(manifest.shard_bytes(shard) for _, shard in missing)
    images = sum(len(manifest.rows(shard)) for _, shard in missing)
    # The process with the most shards decides.
    longest = max((sum(len(manifest.rows(s)) for _, s in missing[i::processes]) for i in range(processes)), default=0)
    largest = max((len(manifest.rows(shard)) for _, shard in missing), default=0)
    return Estimate(total, left, images, longest * image_seconds, largest * image_seconds)


def time_image(
    classifier: DiffusionClassifier, dataset: ImageDataset, batch_size: int, workers: int, *, budget: float = 30.0
) -> float:
    """Seconds that one image takes in an extraction, reading included; see `seconds_per_image`."""
    device = device_of(classifier.backbone)

    def compute(batch: Batch) -> None:
        told = classifier.conditioning.by_label(batch.labels)
        features = classifier.extractor(batch.images.to(device), batch.ids, **told)
        # Copies to the CPU wait for the device.
        next(iter(features.values())).sum().item()

    return time_batches(compute, dataset, min(batch_size, len(dataset)), workers, budget=budget)


def time_batches(
    compute: Callable[[Any], object], dataset: Any, most: int, workers: int, *, budget: float = 30.0
) -> float:
    """Seconds that one image takes to be read by so many workers, and to be computed in a batch.

    Args:
        compute: passes a batch through, and waits for the device.
        dataset: gives the images; a batch repeats one of them.
        most: images of a batch, at least 1.
        workers: that read while others are computed; none with 0.
        budget: seconds for computing.
    """
    places = range(len(dataset))
    reading = seconds_per_image(lambda count: [dataset[place] for place in places[:count]], min(most, _READ), budget=2)
    sample = next((sample for sample in map(dataset.__getitem__, places) if sample is not None), None)
    if sample is None:
        return reading

    @cache
    def batch(count: int) -> Batch:
        return collate([sample] * count)

    computing = seconds_per_image(lambda count: compute(batch(count)), most, budget=budget)
    return max(computing, reading / workers) if workers else computing + reading


def check_disk(folder: Path, needed: int) -> None:
    """Raises OSError when the disk has too little space for the bytes that are needed."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(there).free
    if needed and free < needed + needed // 100 + _MARGIN_BYTES:
        raise OSError(
            f"the features need {human_bytes(needed)} more, but the disk of {there} has {human_bytes(free)} free; "
            "free some space, choose another cache.folder, or store less: fewer cache.views, smaller pooled maps"
        )


def collate_readable(samples: Sequence[Sample | None]) -> Batch | None:
    """A batch without the images that were skipped; None when no image is left."""
    there = [sample for sample in samples if sample is not None]
    return collate(there) if there else None
