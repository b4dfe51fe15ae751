"""The one way to open data: `create_dataset`, and the data sets with random access that it gives."""

import importlib
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from difformer.config import as_json_size, sides
from difformer.config.reading import plain
from difformer.data.checking import readable
from difformer.data.elpv import read_elpv, read_elpv_levels
from difformer.data.folder import read_folder, read_imagenet
from difformer.data.huggingface import read_huggingface
from difformer.data.identity import former_digest, last_change, same_images, samples_digest
from difformer.data.images import Preprocessing
from difformer.data.joint import JointTransform, Whole, check_mirrored, create_joint_transform
from difformer.data.official import read_cub, read_dogs, read_nabirds
from difformer.data.samples import Sample, SampleReader, dataset_repr
from difformer.data.source import DataError, Source, refuse_first_label
from difformer.data.spec import DataConfig, as_config
from difformer.data.stream import ShardDataset
from difformer.data.subset import HOLDOUT, TEST, LabelSubset, choose_images
from difformer.data.targets import Annotations, Boxes, Mask, Points, Target
from difformer.data.torchvision_sets import TORCHVISION_SETS, read_torchvision
from difformer.data.transforms import (
    Deterministic,
    Isolated,
    PublishedTransform,
    Shifted,
    Symmetric,
    create_transform,
)
from difformer.data.webdataset import read_webdataset
from difformer.registry import Registry, did_you_mean

if TYPE_CHECKING:
    from PIL.Image import Image

READERS: Registry[Callable[[DataConfig, str], Source]] = Registry("data set")
_OURS: dict[str, Callable[[DataConfig, str], Source]] = {
    "folder": read_folder,
    "imagenet": read_imagenet,
    "webdataset": read_webdataset,
    "huggingface": read_huggingface,
    "cub": read_cub,
    "nabirds": read_nabirds,
    "dogs": read_dogs,
    "elpv": read_elpv,
    "elpvlevels": read_elpv_levels,
    **{name: partial(read_torchvision, name=name) for name in TORCHVISION_SETS},
}
for _name, _reader in _OURS.items():
    READERS.register(_name)(_reader)
# Those whose labels may be plain numbers.
_WITH_NUMBERS = ("webdataset", "huggingface")
# Those of `difformer.annotations`, which builds on what is here.
_ANNOTATED = {
    "masks": "read_masks",
    "ade20k": "read_ade20k",
    "vocsegmentation": "read_voc_segmentation",
    "coco": "read_coco",
    "voc": "read_voc",
    "points": "read_points",
    "pairs": "read_pair_images",
}


def _read_annotated(config: DataConfig, split: str, *, reader: str) -> Source:
    """As the reader of that name in `difformer.annotations`, which is imported when it is needed."""
    source: Source = getattr(importlib.import_module("difformer.annotations"), reader)(config, split)
    return source


for _name, _reader_name in _ANNOTATED.items():
    READERS.register(_name)(partial(_read_annotated, reader=_reader_name))
# Those with masks, boxes or points; of pairs, the images alone are a data set.
_DENSE = _ANNOTATED.keys() - {"pairs"}
_MASKS = ("masks", "ade20k", "vocsegmentation")
# Which of them read a key that came with them.
_READ_BY: dict[str, Collection[str]] = {
    "fit": _DENSE,
    "scales": _DENSE,
    "category_ratio": _MASKS,
    "box_scale": ("points",),
    "flip_pairs": ("points",),
    "annotation_file": ("coco", "points"),
    "object_masks": ("coco",),
    "on_bad_box": ("coco", "voc", "points"),
}
_ALIASES = {
    "flowers": "flowers102",
    "aircraft": "fgvcaircraft",
    "cars": "stanfordcars",
    "pets": "oxfordiiitpet",
    "cub2002011": "cub",
    "stanforddogs": "dogs",
}


class ImageDataset(Dataset[Sample | None]):
    """The samples of a split, with random access.

    Args:
        reader: reads the full split.
        indices: places in the full split, in the order of this data set.
        subset: the label subset that chose the indices.
    """

    def __init__(self, reader: SampleReader, indices: NDArray[np.int64], *, subset: LabelSubset | None = None) -> None:
        self._reader = reader
        self._indices = indices
        self.subset = subset

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._reader.source.class_names

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) in [0, number of classes), in the order of the samples."""
        return self._reader.source.labels[self._indices]

    @property
    def targets(self) -> NDArray[np.float32] | None:
        """(N, …) what is to be predicted in place of the class, in the order of the samples; None without targets."""
        targets = self._reader.source.targets
        return None if targets is None else targets[self._indices]

    @property
    def target_type(self) -> type[Mask | Boxes | Points] | None:
        """What samples have in place of a class or a number, where it is that."""
        annotations = self._reader.source.annotations
        return None if annotations is None else annotations.kind

    @property
    def ids(self) -> NDArray[np.int64]:
        """(N,) stable numbers, in the order of the samples: places in the full split, or hashes of WebDataset keys."""
        return self._reader.source.ids[self._indices]

    @property
    def names(self) -> list[str] | None:
        """File names relative to the split, in the order of the samples, where images have any."""
        names = self._reader.source.names
        return None if names is None else [names[i] for i in self._indices]

    @property
    def names_by_id(self) -> dict[int, str]:
        """File names by the images' stable numbers; empty where images have none."""
        return dict(zip(self.ids.tolist(), self.names or (), strict=False))

    @property
    def shards(self) -> NDArray[np.int64] | None:
        """(N,) the number of the shard that each sample lies in, in the order of the samples, where there are shards.

        For samplers that shuffle without jumping between files.
        """
        shards = self._reader.source.shards
        return None if shards is None else shards[self._indices]

    @property
    def keeps_sizes(self) -> bool:
        """Whether images stay as large as they are (`fit: keep`), so that a batch holds one."""
        transform = self._reader.transform
        return isinstance(transform, Whole) and transform.fit == "keep"

    def picture(self, index: int) -> "Image":
        """The RGB image at a place at its own size, upright, before any transform.

        Raises:
            ImageError: it cannot be read.
        """
        return self._reader.source.read(int(self._indices[index]))

    @cached_property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of exactly these samples in this order: ids, labels, images, and of the split they are
        from. For the keys of caches, with `transform_description`.

        An image counts by its content. Reads every image once on a machine, and again where the disk says that its file
        was replaced or changed; see `difformer.data.identity.samples_digest`.

        Raises:
            ImageError: an image cannot be read.
        """
        return samples_digest(self._reader.source, self._indices)

    @cached_property
    def former_digest(self) -> str:
        """The `digest` of earlier versions, to recognise what they wrote: it does not see an edit that leaves the size
        and both ends of an encoded image as they were.

        Raises:
            ImageError: an image cannot be read.
        """
        return former_digest(self._reader.source, self._indices)

    @property
    def last_change(self) -> float:
        """When a file of these images was last changed, in seconds since 1970; infinity where that is not known."""
        return last_change(self._reader.source, self._indices)

    def also_in(self, other: "ImageDataset") -> NDArray[np.bool_]:
        """(N,) whether each of the samples is also in another data set, by file name and content; see
        `difformer.data.identity.same_images`.

        Raises:
            ImageError: an image cannot be read.
        """
        return same_images(self._reader.source, self._indices, other._reader.source, other._indices)

    @property
    def skipped(self) -> NDArray[np.int64]:
        """Ids of the images that could not be read so far, in this process and its workers."""
        return self._reader.skipped.numpy()

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that augmentation depends on, in running workers too.

        Raises:
            ValueError: it is negative or no integer.
        """
        self._reader.set_epoch(epoch)

    def part(self, places: NDArray[np.int64]) -> "ImageDataset":
        """Some of the samples, which share the epoch with all.

        Args:
            places: (n,) in this data set, in the order of the part.
        """
        return ImageDataset(self._reader, self._indices[places])

    def __len__(self) -> int:
        return len(self._indices)

    def __repr__(self) -> str:
        return dataset_repr(self, self._reader.source.title)

    def __getitem__(self, index: int) -> Sample | None:
        """The sample at a place, a `DenseSample` with masks, boxes or points; None where an image turns out to be
        unreadable and such are skipped.

        Raises:
            ImageError: it cannot be read, and bad images are not to be skipped.
            IndexError: the place is out of range.
        """
        return self._reader.read(int(self._indices[operator.index(index)]))


def data_set_names() -> list[str]:
    """The kinds of data sets that `DataConfig.name` may be, without aliases."""
    return sorted(READERS)


def canonical_name(name: str) -> str:
    """The one spelling of a kind of data set, whether it is known or not: `flowers102` for `Flowers`. A custom one,
    `package.module:reader` or registered, has only one."""
    if ":" in name or name in READERS:
        return name
    key = name.lower().replace("-", "").replace("_", "")
    return _ALIASES.get(key, key)


def create_dataset(
    spec: DataConfig | Mapping[str, Any],
    split: str = "train",
    *,
    augment: bool | None = None,
    transform: "Callable[[Image], Tensor] | JointTransform | None" = None,
    subset: LabelSubset | None = None,
    classes: Sequence[str] | None = None,
    process_index: int | None = None,
    num_processes: int | None = None,
) -> ImageDataset | ShardDataset:
    """A data set whose samples are `Sample(image, label, id)`, or a `DenseSample` with masks, boxes or points; a data
    loader wants `collate` with it.

    Raises for everything that can be found wrong before the first step.

    Args:
        spec: a `DataConfig`, or a mapping that is read strictly as one.
        split: `train`, `holdout` (of train, where the configuration sets some aside), or a split of the data set.
            The holdout and label subsets concern `train` only; with `test_fraction`, `test` is a part of it too.
        augment: use the training transform and, for a stream, shuffle; by default for `train` only.
        transform: from an RGB image to (3, H, W) in [-1, 1], in place of the configured ones; may be random. With
            masks, boxes or points, a `difformer.data.joint.JointTransform`.
        subset: a saved label subset to use again, in place of choosing one.
        classes: the classes that the labels are numbers of, such as a classifier's; the split may lack some of them.
            They are matched by name. A split with other classes keeps its own, and one with masks, boxes or points
            always does.
        process_index, num_processes: of a stream, as `ShardDataset`; with random access, a sampler divides the data.

    Returns:
        `ShardDataset` for WebDataset shards with `stream`, else `ImageDataset`. Both have `class_names`, `labels`,
        `ids`, `subset`, `skipped`, `set_epoch` and a length.

    Raises:
        FileNotFoundError: the data is not there.
        DataError: it is not as expected: no such split, a class without images, a label out of range, ….
        ImageError: an image cannot be read, and bad images are not to be skipped.
        ValueError: a value in the specification.
        ImportError: a library that the data set needs is missing.
    """
    config = as_config(spec)
    if not isinstance(split, str) or not split:
        raise ValueError(f"split must be a name, such as train, got {split!r}")
    augment = split == "train" if augment is None else augment
    from_training = split == HOLDOUT or (split == TEST and config.test_fraction > 0)
    key = canonical_name(config.name)
    # Before anything is fetched or listed, if it is known whether there are masks, boxes or points.
    known = key in _OURS or key in _ANNOTATED
    sample_transform = _transform(config, augment, transform, dense=key in _DENSE) if known else None
    source = read_source(config, "train" if from_training else split)
    if sample_transform is None:
        sample_transform = _transform(config, augment, transform, dense=source.annotations is not None)
    if classes is not None and source.annotations is None and set(source.class_names) <= set(classes):
        place = {name: i for i, name in enumerate(classes)}
        places = np.asarray([place[name] for name in source.class_names])
        source = replace(source, labels=places[source.labels], class_names=tuple(classes))
    indices, subset = choose_images(source, config, split, subset)
    reader = SampleReader(source, sample_transform, config.seed, config.on_bad_image)
    indices = readable(reader, indices, config.check_images)
    if source.annotations is not None and source.annotations.kind is Points and augment:
        target = _first_readable(source.annotations, indices)
        if target is not None:
            check_mirrored(sample_transform, target, source.title)
    if source.shards is None or not config.stream:
        return ImageDataset(reader, indices, subset=subset)
    buffer = config.shuffle_buffer if augment else 0
    return ShardDataset(
        reader,
        indices,
        shuffle_buffer=buffer,
        process_index=process_index,
        num_processes=num_processes,
        subset=subset,
    )


def read_source(spec: DataConfig | Mapping[str, Any], split: str) -> Source:
    """One whole split as it is on the disk: labels and encoded images, nothing left out.

    Raises:
        FileNotFoundError, DataError, ValueError, ImportError: as `create_dataset`.
    """
    config = as_config(spec)
    key = canonical_name(config.name)
    if ":" not in key and key not in READERS:
        hint = did_you_mean(key, [*READERS, *_ALIASES]).partition("known are")[0]
        raise DataError(
            f"unknown data set {config.name!r}; {hint} Known are {', '.join(data_set_names())}, and your own as "
            "package.module:reader"
        )
    reader = READERS.find(key)
    if key in (*_OURS, *_ANNOTATED):
        _refuse_unread(config, key)
        if key not in _WITH_NUMBERS:
            refuse_first_label(config.name, config)
    source = reader(config, config.split_name(split))
    if not isinstance(source, Source):
        raise DataError(f"the data set {config.name} must give a Source, got {type(source).__name__}")
    if config.class_names is not None and config.class_names != source.class_names:
        if len(config.class_names) != len(source.class_names):
            raise DataError(
                f"{source.title} has {len(source.class_names)} classes, "
                f"but {len(config.class_names)} class_names are given"
            )
        source = replace(source, class_names=config.class_names)
    return source


def transform_description(
    spec: DataConfig | Mapping[str, Any], augment: bool, *, dense: bool | None = None
) -> dict[str, Any]:
    """What determines how an image becomes input, besides the epoch and its id; for the keys of caches.

    Args:
        spec: as for `create_dataset`.
        augment: the training transform, else that of evaluation.
        dense: whether the images have masks, boxes or points, which is not known of a data set of one's own; by its
            name and augmentation when None.

    Returns:
        JSON: `name` of the augmentation, `size`, `resize` (the short side, or the smallest and largest; None where the
        transform crops at any scale, or augments what evaluation sees and the short side is the size),
        `random_erasing`, and `seed` (None where nothing is random). With masks, boxes and points, and data sets of
        one's own, also the keys of `DataConfig` that only their transforms depend on and that are not at their default;
        `resize` is then as it was given, with masks, boxes or points, and where these keys say that there may be some.

    Raises:
        ValueError: a value in the specification.
    """
    config = as_config(spec)
    key = canonical_name(config.name)
    own = key not in (*_OURS, *_ANNOTATED)
    joint = key in _DENSE or (own and config.augmentation == "jitter") if dense is None else dense
    transform = _transform(config, augment, None, dense=joint)
    random = transform.flip if isinstance(transform, Whole) else not isinstance(transform, Deterministic)
    resize: int | list[int] | None = None
    if isinstance(transform, PublishedTransform):
        resize = list(transform.short_sides)
    elif not random:
        resize = config.resize or min(sides(config.size))
    elif isinstance(transform, Symmetric | Shifted):
        resize = config.resize
    # Of one's own data set it may not be known whether it has masks, boxes or points. One with classes is described as
    # it was before there were any, so that its caches keep their keys.
    later = [] if key in _OURS else _given_later(config)
    if joint or (dense is None and own and later and (random or config.fit == "keep")):
        resize = config.resize
    asked = ("fit", "box_scale", *(("scales", "category_ratio", "flip_pairs") if random else ()))
    return {
        "name": config.augmentation if random else "none",
        "size": as_json_size(config.size),
        "resize": resize,
        "random_erasing": config.random_erasing if random else 0.0,
        "seed": config.seed if random else None,
        **{name: plain(getattr(config, name)) for name in asked if name in later},
    }


def _given_later(config: DataConfig) -> list[str]:
    """The keys that are not at their default, of those that came with masks, boxes and points."""
    written = plain(config)
    return [field.name for field in fields(config) if "added_later" in field.metadata and field.name in written]


def _refuse_unread(config: DataConfig, key: str) -> None:
    """Raises DataError when a key is given that a data set of the package does not read, where it would do nothing."""
    given = _given_later(config)
    for name, readers in _READ_BY.items():
        if name in given and key not in readers:
            raise DataError(
                f"{config.name}: {name} is for {', '.join(sorted(readers))} and data sets of your own, and would do "
                f"nothing here; leave {name} out"
            )


def _transform(config: DataConfig, augment: bool, transform: Any, *, dense: bool = False) -> Any:
    """That of samples; a joint one where they are dense."""
    if dense:
        return create_joint_transform(config, augment) if transform is None else transform
    if transform is None:
        name, erasing = (config.augmentation, config.random_erasing) if augment else ("none", 0.0)
        return create_transform(name, config.size, resize=config.resize, random_erasing=erasing)
    return Deterministic(transform) if isinstance(transform, Preprocessing) else Isolated(transform)


def _first_readable(annotations: Annotations, indices: NDArray[np.int64]) -> Target | None:
    """The first target that can be read; what is wrong with those before it is said when they are read."""
    for index in indices.tolist():
        with suppress(ValueError):
            return annotations(index)
    return None
