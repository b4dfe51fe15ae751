"""The feature cache that a recipe requires: what its digest depends on, and which shards are missing."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from logging import getLogger
from pathlib import Path
from typing import get_args

import torch.nn.functional as F
from torch import Tensor

from difformer.backbones import identity
from difformer.config import Size, as_positive_integer, check_choice, sides
from difformer.data import DataConfig, ImageDataset, transform_description
from difformer.features import FeatureCacheError, FeatureExtractor, FeedbackExtractor
from difformer.features.dtypes import DtypeName, as_dtype, dtype_name
from difformer.features.shards import MANIFEST, MAX_SHARD_BYTES, CacheManifest, Shape, is_whole
from difformer.features.sizes import taps_at
from difformer.files import expand_user
from difformer.streams import epoch_seed
from difformer.taps import FeatureKey, TapSpec

_log = getLogger(__name__)

DIFFEED = (
    "DifFeed cannot be cached past its first pass: its feedback layers learn, and their output goes through the "
    "backbone again; use features: live"
)


@dataclass(frozen=True)
class CacheConfig:
    """Features kept on the disk, with `features: cached`.

    Attributes:
        folder: for all caches.
        views: augmentation and noise draws kept of each training image; epochs cycle through them. With augmentation
            none, each view still has new noise.
        dtype: of the features.
        shard_size: images a file.
    """

    folder: str = "features"
    views: int = 1
    dtype: DtypeName = "bfloat16"
    shard_size: int = 4096

    def __post_init__(self) -> None:
        check_choice("cache.dtype", self.dtype, get_args(DtypeName))
        for name in ("views", "shard_size"):
            object.__setattr__(self, name, as_positive_integer(f"cache.{name}", getattr(self, name)))


@dataclass(frozen=True)
class CachePlan:
    """The features of one split that a recipe requires.

    Attributes:
        folder: of the cache.
        manifest: of the cache.
        map_sizes: size to which each feature is pooled, a side or (h, w); None for no pooling.
        views: augmentation and noise draws of each image.
        augment: whether views are training epochs; otherwise there is one, as in evaluation.
        seed: the extractor's.
        may_skip: whether images that cannot be read are left out.
    """

    folder: Path
    manifest: CacheManifest
    map_sizes: Mapping[FeatureKey, Size | None]
    views: int
    augment: bool
    seed: int
    may_skip: bool

    def shards(self) -> list[tuple[int, int]]:
        """All (view, shard)."""
        return [(view, shard) for view in range(self.views) for shard in range(self.manifest.num_shards)]

    def missing(self) -> list[tuple[int, int]]:
        """The (view, shard) that are missing or visibly damaged."""
        return [place for place in self.shards() if not is_whole(self.folder, self.manifest, *place)]

    def covering(self, dataset: ImageDataset) -> Path | None:
        """The folder of another, complete cache that holds all of this one's features, or None.

        A cache of an earlier version, which identified images by file size and both ends, is used if no image file is
        newer than the cache; the log says so.

        Args:
            dataset: the one the plan was made for.
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
                    "%s is of an earlier version, which identified images by file size and both ends only; it is used, "
                    "since no image is newer. To verify the images, remove it and extract again",
                    path.parent,
                )
                return path.parent
        return None

    def noise_seed(self, view: int) -> int:
        """The extractor's seed for a view: that of live training in that epoch, or of evaluation."""
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
                    "with cache.dtype: float16 choose bfloat16, otherwise check the weights and images"
                )
            stored[key] = maps.cpu()
        return stored


def pool(maps: Tensor, size: Size | None) -> Tensor:
    """Average-pools (B, C, h, w) to at most `size` cells; a head that pools to this size gives the same result."""
    if size is None:
        return maps
    height, width = sides(size)
    cells = min(maps.shape[2], height), min(maps.shape[3], width)
    return maps if cells == maps.shape[2:] else F.adaptive_avg_pool2d(maps, cells)


def plan_cache(
    extractor: FeatureExtractor | FeedbackExtractor,
    map_sizes: Mapping[FeatureKey, Size | None],
    dataset: ImageDataset,
    split: str,
    *,
    data: DataConfig,
    cache: CacheConfig,
    seed: int,
    augment: bool,
) -> CachePlan:
    """Plans the cache of a split's features.

    The digest depends on everything the features depend on: weights, architecture, schedule and precision of the
    backbone, taps, timesteps, noise seed, draws, pooled sizes, transform, split with its labels and subset, stored
    dtype. It does not depend on what changes only rounding, such as batch size, device and attention, nor on the number
    of views and processes.

    Args:
        extractor: gives the features.
        map_sizes: the required features, each with the size to which it is pooled; a head's `map_sizes`.
        dataset: as `build_dataset` gives it for data, split and augment.
        split: its name.
        data: which images.
        cache: where and how features are stored.
        seed: of the noise.
        augment: whether the features are those of training epochs.

    Raises:
        ValueError: the features cannot be cached.
    """
    extractor = check_cacheable(extractor)
    offered = taps_at(extractor.backbone, data.size)
    sizes, shapes = {}, {}
    for key, size in map_sizes.items():
        sizes[key], shapes[key] = _stored_map(extractor.specs[key], offered[key.tap], size)
    dtype = as_dtype(cache.dtype)
    noising = extractor.noising
    cached = {
        "split": split,
        "data": dataset.digest,
        "transform": transform_description(data, augment, dense=dataset.target_type is not None),
        "noise": None if noising.clean else {"seed": seed, "draws": noising.draws, "fresh": augment},
        # Without its name: the same weights under another name give the same features.
        "backbone": {name: value for name, value in identity(extractor.backbone).items() if name != "name"}
        | {"dtype": dtype_name(extractor.backbone.dtype)},
        "precision": dtype_name(extractor.dtype),
        **extractor.conditioning.arguments,
    }
    image_bytes = CacheManifest(cached, 1, 1, shapes, dtype, ()).image_bytes
    shard_size = min(cache.shard_size, max(1, MAX_SHARD_BYTES // image_bytes))
    manifest = CacheManifest(cached, len(dataset), shard_size, shapes, dtype, dataset.class_names)
    prefix = re.sub(r"[^\w-]+", "_", f"{data.name}-{split}{'-augmented' if augment else ''}")
    folder = expand_user(cache.folder) / manifest.folder_name(prefix)
    views = cache.views if augment else 1
    return CachePlan(folder, manifest, sizes, views, augment, seed, may_skip=data.on_bad_image == "skip")


def check_cacheable(extractor: FeatureExtractor | FeedbackExtractor) -> FeatureExtractor:
    """Raises ValueError for DifFeed, whose features change while it learns."""
    if isinstance(extractor, FeedbackExtractor):
        raise ValueError(DIFFEED)
    return extractor


def _stored_map(spec: TapSpec, offered: TapSpec, size: Size | None) -> tuple[Size | None, Shape]:
    """The size to which the maps of the data's images are pooled, None for no pooling, and the shape that they get.

    Args:
        spec: of the maps that the head was built for.
        offered: of the maps of the data's images.
        size: to which the head pools. One that is not tied to a size may read more cells of larger images, so that all
            of these are kept.
    """
    wanted = (0, 0) if size is None else sides(size)
    grown = zip(sides(offered.size), sides(spec.size), wanted, strict=True)
    kept = None if any(there > known <= most for there, known, most in grown) else size
    height, width = sides(offered.size if kept is None else kept)
    return kept, (offered.channels, min(offered.height, height), min(offered.width, width))
