"""Which feature cache a recipe asks for: what its digest is taken of, what is missing, what it will take."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from logging import getLogger
from pathlib import Path
from typing import Any, get_args

import torch.nn.functional as F
from torch import Tensor

from difformer.backbones import Backbone, identity
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
        folder: where caches lie.
        views: augmentation and noise draws kept of each training image; epochs take turns. 1 with augmentation none
            still draws new noise for each view.
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
    """One split's features, as a recipe wants them.

    Attributes:
        folder: where they belong.
        manifest: what they are.
        map_sizes: size to which each feature is pooled, a side or (h, w); None for as it is.
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


def pool(maps: Tensor, size: Size | None) -> Tensor:
    """Average-pools (B, C, h, w) to at most `size` cells; a head that pools to the same finds it done."""
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
    """What is wanted of the cache.

    The digest depends on everything the features do: weights, architecture, schedule and precision of the backbone,
    taps, timesteps, noise seed, draws, pooled sizes, transform, split with its labels and subset, stored dtype. It
    does not depend on what changes rounding only, such as batch size, device and attention, nor on the number of
    views and processes.

    Args:
        extractor: gives the features.
        map_sizes: those that are wanted, each with the size to which it is pooled; a head's `map_sizes`.
        dataset: as `build_dataset` gives it for data, split and augment.
        split: its name.
        data: which images.
        cache: where features belong, and how.
        seed: of the noise.
        augment: whether the features are those of training epochs.

    Raises:
        ValueError: the features cannot be cached.
    """
    extractor = check_cacheable(extractor)
    offered = taps_at(extractor.backbone, data.size)
    sizes = {key: _kept_size(extractor.specs[key], offered[key.tap], size) for key, size in map_sizes.items()}
    shapes = {key: _pooled_shape(offered[key.tap], size) for key, size in sizes.items()}
    dtype = as_dtype(cache.dtype)
    noising = extractor.noising
    cached = {
        "split": split,
        "data": dataset.digest,
        "transform": transform_description(data, augment),
        "noise": None if noising.clean else {"seed": seed, "draws": noising.draws, "fresh": augment},
        "backbone": _backbone_identity(extractor.backbone),
        "precision": dtype_name(extractor.dtype),
        **extractor.conditioning.arguments,
    }
    image_bytes = CacheManifest(cached, 1, 1, shapes, dtype, ()).image_bytes
    shard_size = min(cache.shard_size, max(1, MAX_SHARD_BYTES // image_bytes))
    manifest = CacheManifest(cached, len(dataset), shard_size, shapes, dtype, dataset.class_names)
    prefix = re.sub(r"[^\w-]+", "_", f"{data.name}-{split}{'-augmented' if augment else ''}")
    folder = expand_user(cache.folder) / manifest.folder_name(prefix)
    views = cache.views if augment else 1
    may_skip = data.on_bad_image == "skip"
    return CachePlan(folder, manifest, sizes, views, augment, seed, may_skip)


def check_cacheable(extractor: FeatureExtractor | FeedbackExtractor) -> FeatureExtractor:
    """Raises ValueError for DifFeed, whose features change while it learns."""
    if isinstance(extractor, FeedbackExtractor):
        raise ValueError(DIFFEED)
    return extractor


def _kept_size(spec: TapSpec, offered: TapSpec, size: Size | None) -> Size | None:
    """To what the maps of images of the data's size are pooled, for a head that was built for those of `spec`.

    Of larger images, heads that are not tied to a size may read more cells, so that all of them are kept.
    """
    wanted = (0, 0) if size is None else sides(size)
    grown = zip(sides(offered.size), sides(spec.size), wanted, strict=True)
    return None if any(there > known <= most for there, known, most in grown) else size


def _pooled_shape(spec: TapSpec, size: Size | None) -> Shape:
    height, width = sides(spec.size if size is None else size)
    return spec.channels, min(spec.height, height), min(spec.width, width)


def _backbone_identity(backbone: Backbone) -> dict[str, Any]:
    # The same weights under another name give the same features.
    found = {name: value for name, value in identity(backbone).items() if name != "name"}
    return found | {"dtype": dtype_name(backbone.dtype)}
