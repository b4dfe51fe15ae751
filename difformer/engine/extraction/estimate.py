"""Time and disk space that an extraction will take."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from difformer.backbones import device_of
from difformer.classifier import DiffusionClassifier
from difformer.data import Batch, ImageDataset, Sample, collate
from difformer.engine.cost.costs import human_bytes
from difformer.features.planning import CachePlan

_MARGIN_BYTES = 64 << 20
_TIMED_ON_CPU = 2


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


def time_image(classifier: DiffusionClassifier, dataset: ImageDataset, batch_size: int, workers: int) -> float:
    """Seconds that one image takes, reading included, measured on a second pass after one to warm up."""
    device = device_of(classifier.backbone)
    count = min(batch_size if device.type == "cuda" else _TIMED_ON_CPU, len(dataset))
    start = time.perf_counter()
    samples = [dataset[place] for place in range(count)]
    reading = (time.perf_counter() - start) / count
    batch = collate_readable(samples)
    if batch is None:
        return reading
    images = batch.images.to(device)
    for _ in range(2):
        start = time.perf_counter()
        told = classifier.conditioning.by_label(batch.labels)
        features = classifier.extractor(images, batch.ids, **told)
        # Copies to the CPU wait for the device.
        next(iter(features.values())).sum().item()
    computing = (time.perf_counter() - start) / len(images)
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
