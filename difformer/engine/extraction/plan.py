"""Which feature cache a recipe asks for: what its digest is taken of, what is missing, what it will take."""

import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from difformer._optional import require
from difformer.backbones import Backbone
from difformer.classifier import DiffusionClassifier
from difformer.data import Batch, ImageDataset, Sample, collate, transform_description
from difformer.engine.config.build import epoch_seed
from difformer.engine.config.training import Recipe
from difformer.engine.cost.costs import human_bytes
from difformer.features import FeatureCacheError, FeatureExtractor, FeedbackExtractor
from difformer.features.dtypes import as_dtype, dtype_name
from difformer.features.shards import MANIFEST, MAX_SHARD_BYTES, CacheManifest, Shape, is_whole
from difformer.files import expand_user
from difformer.taps import FeatureKey, TapSpec

_log = getLogger(__name__)

_MARGIN_BYTES = 64 << 20
_TIMED_ON_CPU = 2
DIFFEED = (
    "DifFeed cannot be cached past its first pass: its feedback layers learn, and their output goes through the "
    "backbone again; use features: live"
)


@dataclass(frozen=True)
class CachePlan:
    """One split's features, as a recipe wants them.

    Attributes:
        folder: where they belong.
        manifest: what they are.
        map_sizes: side to which each feature is pooled; None for as it is.
        views: augmentation and noise draws of each image.
        augment: whether views are training epochs; otherwise there is one, as in evaluation.
        seed: the extractor's.
        may_skip: whether images that cannot be read are left out.
    """

    folder: Path
    manifest: CacheManifest
    map_sizes: Mapping[FeatureKey, int | None]
    views: int
    augment: bool
    seed: int
    may_skip: bool

    def shards(self) -> list[tuple[int, int]]:
        """All (view, shard)."""
        return [(view, shard) for view in range(self.views) for shard in range(self.manifest.num_shards)]

    def missing(self) -> list[tuple[int, int]]:
        """The (view, shard) that are not there, or visibly damaged."""
        return [place for place in self.shards() if not is_whole(self.folder, self.manifest, *place)]

    def covering(self, dataset: ImageDataset) -> Path | None:
        """The folder of another cache that holds all of this one's features, whole, or None.

        One of an earlier version, which knew images by their size and both ends, serves as long as no file of theirs
        is newer than it is; the log says so.

        Args:
            dataset: that the plan was made for.
        """
        for path in sorted(self.folder.parent.glob(f"*/{MANIFEST}")):
            try:
                manifest = CacheManifest.read(path.parent)
            except FeatureCacheError:
                continue
            places = product(range(self.views), range(manifest.num_shards))
            wanted = replace(self.manifest, identity={**self.manifest.identity, "data": manifest.identity.get("data")})
            if not manifest.covers(wanted) or not all(is_whole(path.parent, manifest, *place) for place in places):
                continue
            if manifest.covers(self.manifest):
                return path.parent
            if manifest.identity.get("data") == dataset.former_digest and dataset.last_change < path.stat().st_mtime:
                _log.warning(
                    "%s is of an earlier version, which knew images by their size and both ends only; it is used, "
                    "since no image is newer. To have them verified, remove it and extract again",
                    path.parent,
                )
                return path.parent
        return None

    def noise_seed(self, view: int) -> int:
        """What the extractor's seed is for a view: that of live training in that epoch, or of evaluation."""
        return epoch_seed(self.seed, view) if self.augment else self.seed

    def pooled(self, features: Mapping[FeatureKey, Tensor]) -> dict[FeatureKey, Tensor]:
        """Features as they are stored, (B, C, h, w) on the CPU.

        Raises:
            ValueError: they have other shapes than expected, or values that are not finite in the stored dtype.
        """
        stored = {}
        for key, shape in self.manifest.shapes.items():
            maps = pool(features[key], self.map_sizes[key]).to(self.manifest.dtype)
            if tuple(maps.shape[1:]) != shape:
                raise ValueError(
                    f"the feature {key} should have shape {shape} when pooled, got {tuple(maps.shape[1:])}"
                )
            if not maps.isfinite().all():
                raise ValueError(
                    f"the feature {key} has values that are not finite as {dtype_name(self.manifest.dtype)}; "
                    "with cache.dtype: float16 choose bfloat16, otherwise look at the weights and images"
                )
            stored[key] = maps.cpu()
        return stored


def pool(maps: Tensor, side: int | None) -> Tensor:
    """Average-pools (B, C, h, w) to at most `side` cells a side; a head that pools to the same finds it done."""
    height, width = maps.shape[2:]
    if side is None or max(height, width) <= side:
        return maps
    return F.adaptive_avg_pool2d(maps, (min(height, side), min(width, side)))


def plan_cache(
    recipe: Recipe, classifier: DiffusionClassifier, dataset: ImageDataset, split: str, *, augment: bool
) -> CachePlan:
    """What a recipe wants of the cache.

    The digest depends on everything the features do: weights, architecture, schedule and precision of the backbone,
    taps, timesteps, noise seed, draws, pooled sizes, transform, split with its labels and subset, stored dtype. It
    does not depend on what changes rounding only, such as batch size, device and attention, nor on the number of
    views and processes.

    Args:
        recipe: of the data, the noise seed and the cache.
        classifier: whose extractor gives the features and whose head says to which sizes they are pooled.
        dataset: as `build_dataset` gives it for the recipe.
        split: what it was built for.
        augment: whether the features are those of training epochs.

    Raises:
        ValueError: the features cannot be cached.
    """
    extractor = check_cacheable(classifier.extractor)
    scale = recipe.data.size / getattr(getattr(extractor.backbone, "config", None), "image_size", recipe.data.size)
    sizes: dict[FeatureKey, int | None] = dict(classifier.head.map_sizes)  # type: ignore[arg-type]
    # Of images larger than the backbone's own, heads that are not tied to a size may read more cells.
    sizes = {
        key: None if scale > 1 and (side or 0) >= extractor.specs[key].size else side for key, side in sizes.items()
    }
    shapes = {key: _pooled_shape(extractor.specs[key], side, scale) for key, side in sizes.items()}
    dtype = as_dtype(recipe.cache.dtype)
    noising = extractor.noising
    identity = {
        "split": split,
        "data": dataset.digest,
        "transform": transform_description(recipe.data, augment),
        "noise": None if noising.clean else {"seed": recipe.extractor.seed, "draws": noising.draws, "fresh": augment},
        "backbone": _backbone_identity(extractor.backbone),
        "precision": dtype_name(extractor.dtype),
    }
    image_bytes = CacheManifest(identity, 1, 1, shapes, dtype, ()).image_bytes
    shard_size = min(recipe.cache.shard_size, max(1, MAX_SHARD_BYTES // image_bytes))
    manifest = CacheManifest(identity, len(dataset), shard_size, shapes, dtype, dataset.class_names)
    prefix = re.sub(r"[^\w-]+", "_", f"{recipe.data.name}-{split}{'-augmented' if augment else ''}")
    folder = expand_user(recipe.cache.folder) / manifest.folder_name(prefix)
    views = recipe.cache.views if augment else 1
    may_skip = recipe.data.on_bad_image == "skip"
    return CachePlan(folder, manifest, sizes, views, augment, recipe.extractor.seed, may_skip)


def check_cacheable(extractor: FeatureExtractor | FeedbackExtractor) -> FeatureExtractor:
    """Raises ValueError for DifFeed, whose features change while it learns."""
    if isinstance(extractor, FeedbackExtractor):
        raise ValueError(DIFFEED)
    return extractor


@dataclass(frozen=True)
class Estimate:
    """What an extraction will take.

    Attributes:
        total_bytes: of the whole cache.
        missing_bytes: that are still to be written.
        missing_images: images that are still to be read, each view counted.
        seconds: until it is done.
        shard_seconds: work that a stop loses at most, in each process.
    """

    total_bytes: int
    missing_bytes: int
    missing_images: int
    seconds: float
    shard_seconds: float

    def __str__(self) -> str:
        total, missing = (human_bytes(size) for size in (self.total_bytes, self.missing_bytes))
        if not self.missing_images:
            return f"{total}, all there"
        interval = require("tqdm", "the estimate").tqdm.format_interval
        times = [interval(seconds) for seconds in (self.seconds, self.shard_seconds)]
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
        missing: the (view, shard) that are not there.
        image_seconds: of one image on one process, from `time_image`.
        processes: that share the work.
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
    """Seconds that one image takes, reading included, measured on one batch after another to warm up."""
    device = device_of(classifier)
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
        features = classifier.extractor(images, batch.ids)
        # Copies to the CPU wait for the device.
        next(iter(features.values())).sum().item()
    computing = (time.perf_counter() - start) / len(images)
    return max(computing, reading / workers) if workers else computing + reading


def check_disk(folder: Path, needed: int) -> None:
    """Raises OSError when a disk cannot hold what is still to be written."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(there).free
    if needed and free < needed + needed // 100 + _MARGIN_BYTES:
        raise OSError(
            f"the features need {human_bytes(needed)} more, but the disk of {there} has {human_bytes(free)} free; "
            "free some space, choose another cache.folder, or store less: fewer cache.views, smaller pooled maps"
        )


def collate_readable(samples: Sequence[Sample | None]) -> Batch | None:
    """A batch without the images that were skipped; None when there are no others."""
    there = [sample for sample in samples if sample is not None]
    return collate(there) if there else None


def device_of(classifier: DiffusionClassifier) -> torch.device:
    """Where the features are computed."""
    return next((parameter.device for parameter in classifier.extractor.parameters()), torch.device("cpu"))


def _pooled_shape(spec: TapSpec, side: int | None, scale: float) -> Shape:
    size = round(spec.size * scale)
    cells = size if side is None else min(size, side)
    return spec.channels, cells, cells


def _backbone_identity(backbone: Backbone) -> dict[str, Any]:
    digest = getattr(backbone, "digest", None)
    if digest is None:
        raise ValueError("the backbone has no digest of its weights, so its features cannot be told from others'")
    config = getattr(backbone, "config", None)
    schedule = getattr(backbone.schedule, "to_dict", None)
    dtype = getattr(backbone, "dtype", None)
    identity = {
        "digest": digest,
        "config": asdict(config) if config is not None else None,
        "schedule": schedule() if schedule is not None else None,
        "dtype": dtype_name(dtype) if dtype is not None else None,
    }
    # Through JSON, as the manifest has it.
    plain: dict[str, Any] = json.loads(json.dumps(identity))
    return plain
