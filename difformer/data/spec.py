"""Which data set, which part of it, and how its images become input."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal, get_args

from difformer.config import (
    Size,
    as_integer,
    as_positive_number,
    as_size,
    as_switch,
    check_choice,
    check_range,
    from_mapping,
    sides,
)
from difformer.config.reading import ADDED_LATER

OnBadImage = Literal["raise", "skip"]
CheckImages = Literal["headers", "decode", "none"]
OnBadBox = Literal["raise", "skip"]
Fit = Literal["stretch", "pad", "keep"]


@dataclass(frozen=True)
class DataConfig:
    """A data set and its use.

    Attributes:
        name: kind of data set: `folder`, `imagenet`, `webdataset`, `huggingface`, `cub`, `nabirds`, `dogs`, `elpv`, one
            of torchvision's; with masks `masks`, `ade20k`, `voc_segmentation`, with boxes `coco`, `voc`, with points
            `points`, `pairs`, as `difformer.data.data_set_names` lists them; or a function of your own from a
            configuration and a split to a `Source`, as package.module:name.
        root: the folder it lies in; for `huggingface` a folder or a hub repository `owner/name`, which is
            fetched with `download` only.
        splits: the data set's own name of a split where it differs from the one asked for, `{"val": "validation"}`;
            for `folder` a subfolder ("." for root itself), for `webdataset` a pattern of file names.
        class_names: in the order of the labels, for data sets that do not say them.
        holdout: fraction of each class of the training split that is set aside as the split `holdout`.
        test_fraction: fraction of each class of the training split that becomes the split `test`, for data without one.
        k_shot: keep that many labelled images of each class of the training split.
        percent: keep that percentage of each class, at least one image.
        list_file: keep the images that a text file names, one a line.
        seed: of the label subset, of augmentation and of the stream's order.
        split_seed: of the splits made here: holdout, test_fraction, and those of data sets without official ones.
        on_bad_image: what an unreadable image does: `raise` an error, or be logged, counted and left out (`skip`).
        check_images: what is checked before the first step: how encoded images begin and end, which shows files that
            are no images or are cut off (`headers`), every pixel (`decode`), or nothing (`none`). Masks, boxes and
            points are all read, except with `none`.
        size: of the input in pixels: its side, or [h, w], height before width, of images that are not square.
        resize: short side before the central crop in evaluation, and in the augmentations `none`, `flip`, `flips`,
            `symmetries` and `shift`: an image is scaled until it covers a window of the proportions of `size` with that
            short side; `size` itself is the window when None, as published.
        augmentation: of the training split: `published`, `none`, `flip` (random horizontal flip), `flips`
            (horizontal, vertical or both), `symmetries` (one of the square's eight, not for [h, w]), `shift` (moved by
            up to an eighth of each side, and flip), `crop` (random resized crop and flip), or a policy by timm's name,
            such as `rand-m9-mstd0.5-inc1`, `augmix-m3-w3`, `3a` or `original`. With masks, boxes and points: `none`,
            `flip`, `jitter` (scale jitter, crop, flip) or `published` (the same, and photometric distortion).
        random_erasing: probability of timm's random erasing, with `crop` and timm's policies.
        stream: read WebDataset shards as a stream; otherwise as a data set with random access.
        shuffle_buffer: images of the training stream to choose the next from.
        configuration: of a Hugging Face data set that has several.
        image_column: of a Hugging Face data set; the only image column when None.
        label_column: of a Hugging Face data set; the only class-label column, or `label`, when None. For WebDataset,
            the key of the label in JSON files.
        first_label: the number of the first class, 0 or 1, where labels of WebDataset or a Hugging Face data set are
            plain numbers; 0 when None, and an error where they go from 1. Elsewhere it must be None.
        download: let torchvision and the `datasets` library fetch what is not there. Nothing else touches the network.
        fit: how evaluation sees whole images with masks, boxes or points: stretched to `size` (`stretch`), scaled to
            fit into it and padded (`pad`), or as large as they are, or of the short side `resize`, for sliding windows
            (`keep`).
        scales: smallest and largest factor of the scale jitter of masks, boxes and points.
        category_ratio: share of a training crop's pixels that one class of a mask may fill, up to ten tries.
        box_scale: with points, crop each object's box, so many times enlarged; the whole image when None.
        flip_pairs: names of points that change places in a mirrored image; when None those whose names differ in left
            and right, and those of WFLW; none with {}.
        annotation_file: of `coco` and `points`, the file below root, in which {split} stands for the split.
        object_masks: with `coco`, read the masks of objects too.
        on_bad_box: what a box without width or height, outside its image or with numbers that are not finite does:
            `raise` an error, or be counted and left out (`skip`). What a data set of the package does not read, from
            `fit` on, must be left out.

    Raises:
        ValueError: a value out of range, or more than one label subset.
    """

    name: str
    root: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    holdout: float = 0.0
    test_fraction: float = 0.0
    k_shot: int | None = None
    percent: float | None = None
    list_file: str | None = None
    seed: int = 0
    split_seed: int = 0
    on_bad_image: OnBadImage = "raise"
    check_images: CheckImages = "headers"
    size: Size = 256
    resize: int | None = None
    augmentation: str = "published"
    random_erasing: float = 0.0
    stream: bool = True
    shuffle_buffer: int = 1000
    configuration: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    first_label: int | None = None
    download: bool = False
    fit: Fit = field(default="stretch", metadata=ADDED_LATER)
    scales: tuple[float, float] = field(default=(0.5, 2.0), metadata=ADDED_LATER)
    category_ratio: float = field(default=0.75, metadata=ADDED_LATER)
    box_scale: float | None = field(default=None, metadata=ADDED_LATER)
    flip_pairs: Mapping[str, str] | None = field(default=None, metadata=ADDED_LATER)
    annotation_file: str | None = field(default=None, metadata=ADDED_LATER)
    object_masks: bool = field(default=False, metadata=ADDED_LATER)
    on_bad_box: OnBadBox = field(default="raise", metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        self._check_words()
        self._check_numbers()
        self._check_dense()
        if len(given := self._subset_rules()) > 1:
            raise ValueError(f"give one rule for the label subset, got {' and '.join(given)}")

    @property
    def has_label_subset(self) -> bool:
        """Whether only some labels of the training split are used: by k_shot, percent or list_file."""
        return bool(self._subset_rules())

    def split_name(self, split: str) -> str:
        """The data set's own name of a split."""
        return self.splits.get(split, split)

    def _subset_rules(self) -> list[str]:
        return [name for name in ("k_shot", "percent", "list_file") if getattr(self, name) is not None]

    def _check_words(self) -> None:
        for name in ("root", "list_file"):
            if isinstance(getattr(self, name), os.PathLike):
                self._set(name, os.fspath(getattr(self, name)))
        for name in ("name", "augmentation", "root", "list_file", "configuration", "image_column", "label_column"):
            value = getattr(self, name)
            if not (isinstance(value, str) and value) and not (value is None and name not in ("name", "augmentation")):
                raise ValueError(f"{name} must be a word that is not empty, got {value!r}")
        for name, kinds in (("on_bad_image", OnBadImage), ("check_images", CheckImages)):
            if getattr(self, name) not in get_args(kinds):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kinds))}, got {getattr(self, name)!r}")
        for name in ("stream", "download"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if not isinstance(self.splits, Mapping) or not all(
            isinstance(name, str) and name for pair in self.splits.items() for name in pair
        ):
            raise ValueError(f"splits must map names to names, got {self.splits!r}")
        self._set("splits", dict(self.splits))
        if self.class_names is not None:
            if isinstance(self.class_names, str) or not hasattr(self.class_names, "__iter__"):
                raise ValueError(f"class_names must be a list of names, got {self.class_names!r}")
            self._set("class_names", tuple(map(str, self.class_names)))

    def _check_numbers(self) -> None:
        smallest = {"seed": 0, "split_seed": 0, "resize": 1, "k_shot": 1, "shuffle_buffer": 1}
        for name, least in smallest.items():
            if getattr(self, name) is not None or name not in ("resize", "k_shot"):
                self._set(name, as_integer(name, getattr(self, name)))
                if getattr(self, name) < least:
                    raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.first_label is not None:
            self._set("first_label", as_integer("first_label", self.first_label))
            if self.first_label not in (0, 1):
                raise ValueError(f"first_label must be 0 or 1, got {self.first_label}")
        self._set("size", as_size("size", self.size))
        check_symmetries(self.augmentation, self.size)
        short = min(sides(self.size))
        if self.resize is not None and self.resize < short:
            of = "" if isinstance(self.size, int) else "the shorter side of "
            raise ValueError(f"resize must be at least {of}size, which is {short}, got {self.resize}")
        for name in ("percent", "holdout", "test_fraction", "random_erasing"):
            value = getattr(self, name)
            if value is not None or name != "percent":
                if isinstance(value, bool) or not isinstance(value, Real):
                    raise ValueError(f"{name} must be a number, got {value!r}")
                self._set(name, float(value))
        if self.percent is not None and not 0 < self.percent <= 100:
            raise ValueError(f"percent must be above 0 and at most 100, got {self.percent}")
        for name in ("holdout", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be a fraction of at least 0 and below 1, got {getattr(self, name)}")
        if not 0 <= self.random_erasing <= 1:
            raise ValueError(f"random_erasing must be a probability, got {self.random_erasing}")

    def _check_dense(self) -> None:
        check_choice("fit", self.fit, get_args(Fit))
        check_choice("on_bad_box", self.on_bad_box, get_args(OnBadBox))
        self._set("object_masks", as_switch("object_masks", self.object_masks))
        if self.annotation_file is not None and not (isinstance(self.annotation_file, str) and self.annotation_file):
            raise ValueError(f"annotation_file must be a word that is not empty, got {self.annotation_file!r}")
        if not isinstance(self.scales, list | tuple) or len(self.scales) != 2:
            raise ValueError(f"scales must be two numbers, the smallest and the largest, got {self.scales!r}")
        low, high = (as_positive_number("every entry of scales", scale) for scale in self.scales)
        if low > high:
            raise ValueError(f"scales must be above 0 and in order, got {self.scales!r}")
        self._set("scales", (low, high))
        check_range("category_ratio", self.category_ratio, lambda ratio: 0 < ratio <= 1, "above 0 and at most 1")
        if self.box_scale is not None:
            check_range("box_scale", self.box_scale, lambda scale: scale > 0, "above 0")
        if self.flip_pairs is not None:
            if not isinstance(self.flip_pairs, Mapping):
                raise ValueError(f"flip_pairs must map names of points to names of points, got {self.flip_pairs!r}")
            self._set("flip_pairs", {str(one): str(other) for one, other in self.flip_pairs.items()})

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


def check_symmetries(augmentation: str, size: Size) -> None:
    """Raises ValueError for the augmentation `symmetries` of images that are not square."""
    if augmentation == "symmetries" and not isinstance(size, int):
        raise ValueError(
            f"the augmentation symmetries turns images by quarters, which {list(size)} does not allow; give flips, "
            "which are the symmetries of a rectangle, or a square size"
        )


def as_config(spec: "DataConfig | Mapping[str, Any]") -> DataConfig:
    """A `DataConfig` as it is, or read strictly from a mapping.

    Raises:
        ValueError: an unknown key (the message names the nearest known one), a missing one, or a bad value.
    """
    if not isinstance(spec, DataConfig | Mapping):
        raise ValueError(f"a data set is given by a DataConfig or a mapping with its name, got {spec!r}")
    return spec if isinstance(spec, DataConfig) else from_mapping(DataConfig, spec)
