"""Comparing generated images with real ones; the body of `difformer fid`."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from difformer.analysis import (
    bootstrap_frechet,
    bootstrap_mean,
    check_image_count,
    frechet_distance,
    kernel_distance_in_blocks,
    neighbourhoods,
    share_interval,
)
from difformer.config import as_integer, as_positive_integer, as_size, sides
from difformer.files import check_target, expand_user
from difformer.verbs.fid.features import SetFeatures, read_features, read_statistics, write_statistics
from difformer.verbs.fid.images import ARRAY, AS_THEY_ARE, SCALED, ArrayImages, ImageSet, member_names, open_images
from difformer.verbs.fid.spaces import INCEPTION, FeatureSpace

# Of the interval, and features above which it would take hours.
_RESAMPLES, _MANY = 100, 512


@dataclass(frozen=True)
class Measure:
    """One number.

    Attributes:
        name: such as FID, or FD(resnet50) in other features than Inception's.
        value: of it.
        samples, reference: images that it is of; None where a file of statistics does not say.
        width: D, where it is a distance.
        low, high: ends of its interval of 95 %, where there is one.
        standard_error: of a mean over blocks or splits.
        how: what else belongs to the number.
    """

    name: str
    value: float
    samples: int | None
    reference: int | None
    width: int | None = None
    low: float | None = None
    high: float | None = None
    standard_error: float | None = None
    how: str = ""


@dataclass(frozen=True)
class Comparison:
    """What was found of two sets of images.

    Attributes:
        features: name of the feature space.
        digest: of its weights, and of what else its features depend on.
        width: D.
        samples, reference: the last names of the paths of the sets.
        measures: the numbers, those first that depend least on the number of images.
        notes: what a reader of the numbers must know.
        options: with which they were taken, by name.
    """

    features: str
    digest: str
    width: int
    samples: str
    reference: str
    measures: tuple[Measure, ...]
    notes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Measure:
        """The measure of a name; KeyError where it was not taken."""
        return {measure.name: measure for measure in self.measures}[name]

    def to_dict(self) -> dict[str, Any]:
        """The same in JSON types."""
        return asdict(self) | {"measures": [asdict(measure) for measure in self.measures], "notes": list(self.notes)}


@dataclass(frozen=True, eq=False)
class _Opened:
    """A set before anything was computed: its images, statistics from a file, or both; and what is done to images."""

    images: ImageSet | None
    stored: SetFeatures | None
    scaling: str = AS_THEY_ARE

    @property
    def count(self) -> int | None:
        """Of the images whose mean and covariance are taken; None where a file does not say."""
        if self.stored is not None and self.stored.pooled is not None:
            return self.stored.pooled.count
        return None if self.images is None else len(self.images)

    @property
    def size(self) -> tuple[int, int] | None:
        """Of the images; None where a file does not say."""
        if self.images is not None:
            return self.images.size
        return None if self.stored is None else self.stored.size

    def whole(self, keep: int) -> bool:
        """Whether there will be features of all images whose mean and covariance are taken."""
        if self.images is None:
            return self.stored is not None and self.stored.whole
        return self.stored is None and len(self.images) <= keep


def compare_images(
    samples: str | Path | ImageSet,
    reference: str | Path | ImageSet,
    space: FeatureSpace,
    *,
    k: int = 3,
    frechet: bool = True,
    resamples: int | None = None,
    keep: int = 50_000,
    split_size: int = 5000,
    batch_size: int = 32,
    seed: int = 0,
    size: int | None = None,
    convert: bool = False,
    statistics: Path | None = None,
    overwrite: bool = False,
) -> Comparison:
    """Measures how near generated images come to real ones.

    Mean and covariance are those of all images, gathered batch by batch; a file with `mu` and `sigma`, such as one of
    OpenAI's reference batches, gives its own. Everything else needs features of single images, and takes those of at
    most `keep` images of a set.

    Args:
        samples: the generated images: a folder, `.tar` shards, or an `.npz` file, see `open_images`; or an `ImageSet`
            of your own, such as one that generates them batch by batch.
        reference: the real ones, or a file of statistics.
        space: what they are compared in.
        k: of the neighbour whose distance is a radius, for precision, recall, density and coverage.
        frechet: with the Fréchet distance.
        resamples: of the interval of the Fréchet distance, each of which takes as long as the distance; 0 for none.
            It needs features of all samples. When None, 100 of up to 512 features, and none of more.
        keep: most images of a set whose features are kept.
        split_size: images a split of the Inception score.
        batch_size: images at once.
        seed: of the bootstrap and of the blocks of the kernel distance.
        size: side to which images are scaled and cropped; as they are when None.
        convert: take images that are not 8-bit RGB too.
        statistics: file to write the reference's statistics to, to be given as a reference again.
        overwrite: replace it if it exists.

    Raises:
        ValueError: too few images, images or a file that do not fit, or a value that makes no sense.
        OSError: something cannot be read or written.
    """
    for name, value in (("k", k), ("keep", keep), ("batch_size", batch_size), ("split_size", split_size)):
        as_positive_integer(name, value)
    resamples = None if resamples is None else as_integer("resamples", resamples)
    if (resamples or 0) < 0 or as_integer("seed", seed) < 0:
        raise ValueError(f"resamples and seed must not be negative, got {resamples} and {seed}")
    if statistics is not None:
        check_target(statistics, overwrite=overwrite, ending=".npz")
    opened = [_open(path, space, size, convert) for path in (samples, reference)]
    _check_sets(opened, space, k, frechet)
    whole = frechet and opened[0].whole(keep)
    if resamples and frechet and not whole:
        raise ValueError(
            f"an interval of {resamples} resamples needs the features of all samples: images, at most --keep {keep}, "
            "and no statistics of others; give a larger --keep, or leave out --resamples"
        )
    if resamples is None:
        resamples = _RESAMPLES if whole and space.width <= _MANY else 0
    # The reference first: what is written of it stays when the rest is stopped.
    theirs = _known(opened[1], space, batch_size, keep, split_size)
    if statistics is not None:
        write_statistics(statistics, theirs, space, overwrite=overwrite)
    ours = _known(opened[0], space, batch_size, keep, split_size)
    measures = [*_of_features(ours, theirs, space, k, seed)]
    if frechet:
        measures += _distances(ours, theirs, space, resamples, seed)
    if ours.scores is not None:
        measures.append(_inception_score(ours.scores, opened[0].images, split_size))
    return Comparison(
        space.name,
        space.digest,
        space.width,
        _title(samples),
        _title(reference),
        tuple(measures),
        tuple(
            filter(None, (space.caution, ours.caution, theirs.caution, _scaled(ours, theirs), _missing(ours, theirs)))
        ),
        {
            "k": k,
            "frechet": frechet,
            "resamples": resamples,
            "keep": keep,
            "split_size": split_size,
            "batch_size": batch_size,
            "seed": seed,
            "size": size,
            "convert": convert,
        },
    )


def _title(images: str | Path | ImageSet) -> str:
    """What a set is called in results, which say nothing of where things lie."""
    return expand_user(images).name if isinstance(images, str | Path) else images.title


def _open(path: str | Path | ImageSet, space: FeatureSpace, size: int | None, convert: bool) -> _Opened:
    if not isinstance(path, str | Path):
        return _Opened(path, None)
    place = expand_user(path)
    scaling = AS_THEY_ARE if size is None else SCALED
    if place.suffix.lower() != ".npz":
        return _Opened(open_images(place, size=size, convert=convert), None, scaling)
    names = member_names(place)
    if "mu" not in names:
        return _Opened(ArrayImages(place, size=size), None, scaling)
    stored, images = read_statistics(place, space), ArrayImages(place) if ARRAY in names else None
    if images is not None and stored.size not in (None, images.size):
        raise ValueError(f"{place} has statistics of {_by(stored.size)} images, but {ARRAY} of {_by(images.size)}")
    opened = _Opened(images, stored)
    if size is not None and opened.size is None:
        raise ValueError(
            f"{place} does not say of what size the images of its statistics are, and --size {size} cannot scale them "
            "any more; leave --size out, or give the images in place of their statistics"
        )
    if size is not None and opened.size != sides(as_size("size", size)):
        raise ValueError(
            f"{place} has statistics of images of {_by(opened.size)}, which --size {size} cannot scale any more; give "
            "that size, or the images in place of their statistics"
        )
    return opened


def _check_sets(opened: list[_Opened], space: FeatureSpace, k: int, frechet: bool) -> None:
    """Raises ValueError for sets that cannot be compared, before anything is computed."""
    sets = dict(zip(("samples", "reference images"), opened, strict=True))
    sizes = {name: one.size for name, one in sets.items() if one.size is not None}
    if len(set(sizes.values())) > 1:
        shown = " and ".join(f"{name} of {_by(size)}" for name, size in sizes.items())
        which = ", that of the statistics," if any(one.stored is not None for one in opened) else ""
        raise ValueError(f"there are {shown}; give --size N{which} to have all scaled and cropped to one size")
    for name, one in sets.items():
        if one.images is not None and len(one.images) <= k:
            raise ValueError(f"precision and recall with k = {k} need more than {k} {name}, got {len(one.images)}")
        if frechet and one.count is not None:
            widths = [width for width in (space.width, space.spatial_width) if width is not None]
            try:
                check_image_count(one.count, max(widths), name)
            except ValueError as error:
                raise ValueError(f"{error}. Give more, or leave the distance out with --frechet false") from error


def _known(opened: _Opened, space: FeatureSpace, batch_size: int, keep: int, split_size: int) -> SetFeatures:
    """What the images and the file say of a set; statistics of the file go before those of images beside them."""
    if opened.images is None:
        assert opened.stored is not None
        return opened.stored
    found = read_features(opened.images, space, batch_size=batch_size, keep=keep, split_size=split_size)
    if opened.stored is None:
        return replace(found, scaling=opened.scaling)
    # Spatial statistics of the images beside the file's would be of another set than its mean and covariance.
    return replace(opened.stored, features=found.features, scores=found.scores, size=found.size)


def _of_features(ours: SetFeatures, theirs: SetFeatures, space: FeatureSpace, k: int, seed: int) -> Iterator[Measure]:
    """What needs features of single images of both sets: kernel distance, precision, recall, density and coverage."""
    if ours.features is None or theirs.features is None:
        return
    x, y = ours.features.to(space.device), theirs.features.to(space.device)
    sizes = len(x), len(y)
    kernel = kernel_distance_in_blocks(x, y, seed=seed)
    how = f"{len(kernel.blocks)} blocks of {kernel.block_size:,}"
    error = kernel.standard_error if len(kernel.blocks) > 1 else None
    yield Measure(_name("KID", space), kernel.mean, *sizes, space.width, standard_error=error, how=how)
    near, how = neighbourhoods(x, y, k=k), f"k = {k}"
    yield Measure("precision", near.precision, *sizes, None, *share_interval(near.precision, sizes[0]), how=how)
    yield Measure("recall", near.recall, *sizes, None, *share_interval(near.recall, sizes[1]), how=how)
    density = bootstrap_mean(near.near_reference / k, seed=seed)
    yield Measure("density", near.density, *sizes, None, density.low, density.high, how=how)
    yield Measure("coverage", near.coverage, *sizes, None, *share_interval(near.coverage, sizes[1]), how=how)


def _distances(
    ours: SetFeatures, theirs: SetFeatures, space: FeatureSpace, resamples: int, seed: int
) -> Iterator[Measure]:
    assert ours.pooled is not None
    assert theirs.pooled is not None
    counts, name = (ours.pooled.count, theirs.pooled.count), _name("FID", space)
    if resamples and ours.whole and ours.features is not None:
        x = ours.features.to(space.device)
        y = theirs.features.to(space.device) if theirs.whole and theirs.features is not None else theirs.pooled
        with tqdm(total=resamples, desc="interval", unit="resample", delay=2, disable=None) as bar:
            found = bootstrap_frechet(x, y, resamples=resamples, seed=seed, allow_few=True, on_resample=bar.update)
        how = f"{resamples} resamples" + ("" if theirs.whole else " of the samples")
        yield Measure(name, found.mean, *counts, space.width, found.low, found.high, how=how)
    else:
        value = frechet_distance(ours.pooled, theirs.pooled, allow_few=True)
        how = "--resamples N for an interval" if ours.whole else ""
        yield Measure(name, value, *counts, space.width, how=how)
    if ours.spatial is not None and theirs.spatial is not None:
        spatial = frechet_distance(ours.spatial, theirs.spatial, allow_few=True)
        yield Measure("sFID", spatial, *counts, space.spatial_width)


def _inception_score(scores: NDArray[np.float64], images: ImageSet | None, split_size: int) -> Measure:
    error = float(scores.std(ddof=1) / len(scores) ** 0.5) if len(scores) > 1 else None
    count = None if images is None else len(images)
    how = f"{len(scores)} splits of {split_size:,}"
    return Measure("Inception score", float(scores.mean()), count, None, standard_error=error, how=how)


def _name(name: str, space: FeatureSpace) -> str:
    """What a distance is called: only in Inception's features as everybody does."""
    return name if space.name == INCEPTION else f"{name.replace('I', '')}({space.name})"


def _by(size: tuple[int, int] | None) -> str:
    return "?" if size is None else f"{size[0]}×{size[1]}"


def _scaled(ours: SetFeatures, theirs: SetFeatures) -> str:
    """Which images were scaled, and to what."""
    scaled = {name: one for name, one in (("samples", ours), ("reference", theirs)) if one.scaling == SCALED}
    sizes = [_by(one.size) for one in scaled.values()]
    return f"images of {' and '.join(scaled)} were scaled and cropped to {sizes[0]}" if scaled else ""


def _missing(ours: SetFeatures, theirs: SetFeatures) -> str:
    """Which numbers could not be taken, and why."""
    bare = [name for name, one in (("samples", ours), ("reference", theirs)) if one.features is None]
    if not bare:
        return ""
    return (
        f"no images of {' and '.join(bare)}, only statistics: no kernel distance, precision, recall, density, coverage"
    )
