"""Extraction of features into the cache: shared by processes, resumable at every shard, verified at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from difformer.backbones import device_of
from difformer.classifier import DiffusionClassifier
from difformer.data import Batch, DataConfig, ImageDataset, ImageError
from difformer.engine.extraction.estimate import check_disk, collate_readable, estimate, time_image
from difformer.engine.runtime.batches import create_loader
from difformer.engine.runtime.processes import Processes, on_all, on_main
from difformer.engine.runtime.progress import progress_bar
from difformer.features import CachedFeatures, FeatureCacheError
from difformer.features.planning import CacheConfig, CachePlan, plan_cache
from difformer.features.shards import CacheManifest, Shard, remove_stale, write_shard
from difformer.taps import FeatureKey

_log = getLogger(__name__)

# Images that go through the backbone at once, in each process. Not a share of a global batch: batches must hold the
# same images for any number of processes, or their features would round differently.
BATCH_SIZE = 32


@dataclass(frozen=True)
class Job:
    """The extraction of one split."""

    split: str
    plan: CachePlan
    classifier: DiffusionClassifier
    dataset: ImageDataset
    processes: Processes
    workers: int
    batch_size: int

    def share(self, places: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
        """This process's part of the (view, shard) that all processes share."""
        return places[self.processes.process_index :: self.processes.num_processes]

    def bar(self, places: Sequence[tuple[int, int]], manifest: CacheManifest, what: str, delay: float = 0) -> Any:
        """A progress bar for the images of some (view, shard), shown by the main process for its own share."""
        total = sum(len(manifest.rows(shard)) for _, shard in places)
        return progress_bar(total, f"{what} {self.split}", delay=delay, disable=not self.processes.is_main_process)


def open_or_extract(
    classifier: DiffusionClassifier,
    dataset: ImageDataset,
    split: str,
    *,
    data: DataConfig,
    cache: CacheConfig,
    seed: int,
    augment: bool,
    processes: Processes,
    workers: int = 0,
    batch_size: int = BATCH_SIZE,
) -> CachedFeatures:
    """The cached features of a split; missing features are extracted first.

    Either way, the whole cache is read once and compared with the digests it was written with. The cache of another
    recipe is used if it holds the same features of the same images; it may hold more.

    View v of features for training is what live training reads in epoch v: its augmentation and its noise. Without
    `augment` there is one view, as evaluation reads it. Processes share the shards; the files are the same for any
    number of processes. An extraction that is stopped, killed or run twice at the same time leaves whole shards, and
    the same call computes the others.

    Args:
        classifier: its extractor gives the features, and its head the sizes that they are pooled to; on the device
            where it runs.
        dataset, split, data, cache, seed, augment: as for `plan_cache`.
        processes: Accelerate's `Accelerator` or `PartialState`.
        workers: of each process's data loader.
        batch_size: images that go through the backbone at once in each process. Changes rounding only.

    Returns:
        The features, on every process.

    Raises:
        ValueError: DifFeed, whose features cannot be cached; features that do not fit the dtype.
        OSError: the disk has too little space, or fails.
        ImageError: an image cannot be read, and unreadable images are not skipped.
        FeatureCacheError: a shard is damaged.
    """
    plan = plan_for(classifier, dataset, split, data=data, cache=cache, seed=seed, augment=augment)
    job = Job(split, plan, classifier, dataset, processes, workers, batch_size)
    other = on_main(processes, partial(plan.covering, dataset)) if on_main(processes, plan.missing) else plan.folder
    if other is None:
        on_main(processes, partial(announce, [job]))
        cached = extract_missing(job)
    else:
        on_all(processes, partial(_verify_shards, job, other))
        cached = CachedFeatures(other, views=plan.views, keys=tuple(plan.manifest.shapes))
    if dataset.targets is not None:
        cached.targets = dataset.targets[np.isin(dataset.ids, cached.ids)]
    return cached


def plan_for(classifier: DiffusionClassifier, dataset: ImageDataset, split: str, **wanted: Any) -> CachePlan:
    """The cache of what a classifier's head reads; `wanted` as for `plan_cache`."""
    head: Any = classifier.head
    return plan_cache(classifier.extractor, head.map_sizes, dataset, split, **wanted)


def announce(jobs: Sequence[Job]) -> None:
    """Prints what extractions will take; raises OSError where the disk has too little space. Called on one process."""
    missing = [job.plan.missing() for job in jobs]
    unfinished = [job for job, places in zip(jobs, missing, strict=True) if places]
    first = unfinished[0] if unfinished else None
    seconds = 0.0
    if first is not None:
        # Short, since the work that is announced follows.
        how = first.batch_size, first.workers
        seconds = time_image(first.classifier, first.dataset, *how, budget=5)
    needed = 0
    for job, places in zip(jobs, missing, strict=True):
        expected = estimate(job.plan, places, seconds, processes=job.processes.num_processes)
        needed += expected.missing_bytes
        print(f"{job.split}: {len(job.dataset)} images in {job.plan.views} views: {expected}", flush=True)
    check_disk(jobs[0].plan.folder, needed)


def extract_missing(job: Job) -> CachedFeatures:
    """Computes the missing shards of a cache and verifies all of them; gives the features, on every process."""
    missing = on_main(job.processes, partial(_prepare, job.plan))
    try:
        if missing:
            on_all(job.processes, partial(_write_shards, job, job.share(missing)))
        on_all(job.processes, partial(_verify_shards, job, job.plan.folder))
        return on_all(job.processes, partial(_open_checked, job))
    except BaseException:
        if job.processes.is_main_process:
            left, total = len(job.plan.missing()), len(job.plan.shards())
            message = "%d of %d shards are whole and stay in %s; the same command resumes with the others"
            _log.warning(message, total - left, total, job.plan.folder)
        raise


def _prepare(plan: CachePlan) -> list[tuple[int, int]]:
    """Prepares the folder; returns the (view, shard) that are missing from it."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    plan.manifest.write(plan.folder)
    remove_stale(plan.folder)
    return plan.missing()


def _write_shards(job: Job, share: Sequence[tuple[int, int]]) -> None:
    """Computes and writes this process's shards, view by view."""
    extractor = job.classifier.extractor
    seed = extractor.seed
    try:
        with job.bar(share, job.plan.manifest, "extracting") as bar:
            for view, places in groupby(sorted(share), key=lambda place: place[0]):
                job.dataset.set_epoch(view)
                extractor.seed = job.plan.noise_seed(view)
                _write_view(job, view, [shard for _, shard in places], bar)
    finally:
        extractor.seed = seed
        job.dataset.set_epoch(0)


def _write_view(job: Job, view: int, shards: Sequence[int], bar: Any) -> None:
    manifest, size = job.plan.manifest, job.batch_size
    rows = {shard: list(manifest.rows(shard)) for shard in shards}
    batches = {shard: [places[i : i + size] for i in range(0, len(places), size)] for shard, places in rows.items()}
    device = device_of(job.classifier.backbone)
    in_order = [batch for shard in shards for batch in batches[shard]]
    loader = create_loader(job.dataset, in_order, collate_readable, job.workers, pin=device.type == "cuda")
    read = iter(loader)
    for shard in shards:
        gathered = _Rows(manifest, len(rows[shard]))
        for places in batches[shard]:
            batch: Batch | None = next(read)
            if batch is not None:
                extractor = job.classifier.extractor
                told = extractor.conditioning.by_label(batch.labels)
                features = extractor(batch.images.to(device, non_blocking=True), batch.ids, **told)
                gathered.add(job.plan.pooled(features), batch.ids)
            bar.update(len(places))
        maps, ids = gathered.content()
        # Not the batches' labels, which may be targets.
        there = np.isin(job.dataset.ids[rows[shard]], ids)
        labels = torch.tensor(job.dataset.labels[rows[shard]][there].tolist(), dtype=torch.int64)
        write_shard(job.plan.folder, manifest, view, shard, maps, labels, ids)


class _Rows:
    """The rows of a shard, in memory that is allocated once and filled batch by batch."""

    def __init__(self, manifest: CacheManifest, rows: int) -> None:
        self.features = {key: torch.empty(rows, *shape, dtype=manifest.dtype) for key, shape in manifest.shapes.items()}
        self.ids = torch.empty(rows, dtype=torch.int64)
        self.count = 0

    def add(self, features: Mapping[FeatureKey, Tensor], ids: Tensor) -> None:
        place = slice(self.count, self.count + len(ids))
        for key, maps in features.items():
            self.features[key][place] = maps
        self.ids[place] = ids
        self.count += len(ids)

    def content(self) -> tuple[dict[FeatureKey, Tensor], Tensor]:
        """Features and ids of the images that could be read."""
        return {key: maps[: self.count] for key, maps in self.features.items()}, self.ids[: self.count].clone()


def _verify_shards(job: Job, folder: Path) -> None:
    """Verifies this process's share of a job's views, in the job's own folder or another that covers it."""
    manifest = CacheManifest.read(folder)
    places = [(view, shard) for view in range(job.plan.views) for shard in range(manifest.num_shards)]
    share = job.share(places)
    with job.bar(share, manifest, "verifying", delay=2) as bar:
        for view, number in share:
            Shard(folder, manifest, view, number).verify()
            bar.update(len(manifest.rows(number)))


def _open_checked(job: Job) -> CachedFeatures:
    """The finished cache; every image of the split must be in it once, except those that may be skipped."""
    plan, dataset = job.plan, job.dataset
    cached = CachedFeatures(plan.folder, views=plan.views)
    every_id, every_label = dataset.ids, dataset.labels
    for number in range(plan.manifest.num_shards):
        rows = plan.manifest.rows(number)
        expected, labels = every_id[rows.start : rows.stop], every_label[rows.start : rows.stop]
        found, found_labels = cached.shard_numbers(number)
        there = np.isin(expected, found)
        if not np.array_equal(expected[there], found) or not np.array_equal(labels[there], found_labels):
            raise FeatureCacheError(
                f"the shards {number:05} in {cached.folder} do not hold the images of the split, each once and in "
                f"order; remove them and extract again"
            )
    if not len(cached):
        raise ImageError(f"not one of the {len(dataset)} images can be read; see the log for their names")
    if cached.missing and not plan.may_skip:
        raise FeatureCacheError(f"{cached.folder} lacks {cached.missing} images; remove it and extract again")
    if cached.missing and job.processes.is_main_process:
        _log.warning("%d of %d images could not be read and are left out", cached.missing, len(dataset))
    return cached
