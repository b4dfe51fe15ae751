"""What is known of a set of images in a feature space: read from the images, or from a file of statistics."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from difformer.analysis import FeatureMoments, FeatureStatistics, InceptionScore
from difformer.data.subset import evenly_spaced
from difformer.files import write_atomically
from difformer.verbs.fid.images import ARRAY, AS_THEY_ARE, SCALED, ImageSet, member_names, read_arrays
from difformer.verbs.fid.spaces import INCEPTION, FeatureSpace

# Images whose features a file of statistics holds beside these, as OpenAI's reference batches hold 10,000 images.
_SHARED = 10_000
_NAMES = (
    "feature_space",
    "feature_digest",
    "image_size",
    "scaling",
    "mu",
    "sigma",
    "mu_s",
    "sigma_s",
    "count",
    "features",
)


@dataclass(frozen=True, eq=False)
class SetFeatures:
    """A set of images in a feature space.

    Attributes:
        title: where it is from.
        pooled: statistics of all images; None for fewer than two.
        spatial: the same of spatial features, where there are any.
        features: (K, D) float32 on the CPU, evenly spaced over the set; None where statistics are all there is.
        scores: Inception scores of the splits, where there are logits.
        size: (h, w) of the images; None where a file does not say.
        scaling: what was done to them first, `AS_THEY_ARE` or `SCALED`.
        caution: what is to be said beside numbers of it; "" for nothing.
    """

    title: str
    pooled: FeatureStatistics | None
    spatial: FeatureStatistics | None = None
    features: Tensor | None = None
    scores: NDArray[np.float64] | None = None
    size: tuple[int, int] | None = None
    scaling: str = AS_THEY_ARE
    caution: str = ""

    @property
    def whole(self) -> bool:
        """Whether the features are of all images that the statistics are of."""
        return self.features is not None and self.pooled is not None and len(self.features) == self.pooled.count


def read_features(images: ImageSet, space: FeatureSpace, *, batch_size: int, keep: int, split_size: int) -> SetFeatures:
    """Passes all images through a space, in memory that does not grow with their number beyond `keep`.

    Args:
        images: in their order.
        space: of the features.
        batch_size: images at once.
        keep: how many images' features are kept, evenly spaced.
        split_size: of the Inception score.
    """
    kept = np.zeros(len(images), dtype=bool)
    kept[evenly_spaced(len(images), keep)] = True
    pooled, spatial, score = FeatureMoments(), FeatureMoments(), InceptionScore(split_size)
    # One block for all: small pieces between large ones would keep these from being freed.
    features, done, filled = torch.empty(int(kept.sum()), space.width, device="cpu"), 0, 0
    with tqdm(total=len(images), desc=Path(images.title).name, unit="image") as bar:
        for batch in images.batches(batch_size):
            found = space.read(batch)
            pooled.update(found.vectors)
            if found.spatial is not None:
                spatial.update(found.spatial)
            if found.logits is not None:
                score.update(found.logits)
            chosen = torch.from_numpy(kept[done : done + len(batch)])
            rows = found.vectors.float().cpu()[chosen]
            features[filled : filled + len(rows)] = rows
            filled, done = filled + len(rows), done + len(batch)
            bar.update(len(batch))
    return SetFeatures(
        images.title,
        pooled.statistics() if pooled.count > 1 else None,
        spatial.statistics() if spatial.count > 1 else None,
        features,
        score.compute() if space.name == INCEPTION else None,
        images.size,
    )


def write_statistics(path: Path, known: SetFeatures, space: FeatureSpace, *, overwrite: bool = False) -> None:
    """Writes mean, covariance and features of a set, with the name of the space: enough to be compared with again.

    `mu`, `sigma`, `mu_s` and `sigma_s` are called as in OpenAI's reference files.

    Args:
        path: ends in .npz.
        known: of the set.
        space: that it was read in.
        overwrite: whether a file that is there may be replaced.

    Raises:
        OSError: it cannot be written.
        ValueError: the set has no statistics.
    """
    if known.pooled is None:
        raise ValueError(f"{known.title} has fewer than two images; there are no statistics of them to write")
    arrays: dict[str, Any] = {"feature_space": space.name, "feature_digest": space.digest}
    for suffix, statistics in (("", known.pooled), ("_s", known.spatial)):
        if statistics is not None:
            arrays |= {f"mu{suffix}": statistics.mean.numpy(), f"sigma{suffix}": statistics.covariance.numpy()}
    if known.size is not None:
        arrays |= {"image_size": known.size, "scaling": known.scaling}
    if known.pooled.count is not None:
        arrays["count"] = known.pooled.count
    if known.features is not None:
        arrays["features"] = known.features[evenly_spaced(len(known.features), _SHARED)].numpy()
    with write_atomically(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def read_statistics(path: Path, space: FeatureSpace) -> SetFeatures:
    """Reads what `write_statistics` wrote, or the statistics of Inception in OpenAI's reference files.

    Args:
        path: an .npz file with `mu` and `sigma`.
        space: that the statistics must be of.

    Raises:
        ValueError: the file is damaged, or of another space.
    """
    arrays = read_arrays(path, _NAMES)
    _check_space(path, arrays, space)
    try:
        count = int(arrays["count"]) if "count" in arrays else None
        pooled = FeatureStatistics(torch.from_numpy(arrays["mu"]), torch.from_numpy(arrays["sigma"]), count)
        spatial = None
        if space.spatial_width is not None and "mu_s" in arrays:
            spatial = FeatureStatistics(torch.from_numpy(arrays["mu_s"]), torch.from_numpy(arrays["sigma_s"]), count)
        features = torch.from_numpy(arrays["features"]).float() if "features" in arrays else None
        if features is not None and (features.ndim != 2 or not features.isfinite().all()):
            raise ValueError(f"features must be (N, D) and finite, got {tuple(features.shape)}")
        size = None
        if "image_size" in arrays:
            height, width = (int(side) for side in arrays["image_size"])
            size = (height, width)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path} holds no statistics, mu and sigma: {error}") from error
    for found, expected in (
        (pooled.width, space.width),
        (None if spatial is None else spatial.width, space.spatial_width),
        (None if features is None else features.shape[1], space.width),
    ):
        if found is not None and found != expected:
            raise ValueError(f"{path} has statistics of {found} numbers, but {space.name} has {expected}")
    if features is not None and count is not None and len(features) > count:
        raise ValueError(f"{path} is damaged: it has features of {len(features):,} images, but statistics of {count:,}")
    scaling = str(arrays.get("scaling", AS_THEY_ARE))
    if scaling not in (AS_THEY_ARE, SCALED):
        raise ValueError(
            f"{path} has statistics of images that were scaled in another way: {scaling!r}, not {SCALED!r}"
        )
    caution = ""
    if not {"feature_space", "mu_s"} & arrays.keys():
        caution = f"{path.name} does not say how its images were resized; taken for ADM's"
    return SetFeatures(str(path), pooled, spatial, features, None, size, scaling, caution)


def _check_space(path: Path, arrays: dict[str, NDArray[Any]], space: FeatureSpace) -> None:
    if "feature_space" not in arrays:
        if space.name != INCEPTION:
            remedy = ""
            if ARRAY in member_names(path):
                remedy = (
                    f"; its images can be compared in other features from a file of their own, "
                    f"numpy.savez('images.npz', numpy.load('{path.name}')['{ARRAY}'])"
                )
            raise ValueError(
                f"{path} does not say what features its statistics are of; those without a name are taken for "
                f"Inception's, and {space.name} was expected{remedy}"
            )
        return
    name, digest = str(arrays["feature_space"]), str(arrays.get("feature_digest", ""))
    if name != space.name:
        raise ValueError(f"{path} has statistics of {name}, but {space.name} was expected; give the same features")
    if digest != space.digest:
        raise ValueError(
            f"{path} has statistics of {name} with other weights or another seed ({digest[:16]}…) than those "
            f"given ({space.digest[:16]}…); give the same"
        )
