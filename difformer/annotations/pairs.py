"""Pairs of images whose points correspond: SPair-71k (Min et al. 2019)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difformer.annotations.records import reported
from difformer.data.images import upright_size
from difformer.data.source import DataError, Source, below, file_source, find_root, read_lines, unknown_split
from difformer.data.spec import DataConfig
from difformer.data.targets import box_problem

# What SPair-71k calls its splits.
_SPLITS = {"train": "trn"}
_SIDES = (("src_imname", "src_kps", "src_bndbox"), ("trg_imname", "trg_kps", "trg_bndbox"))


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images of a category, and the points that both show.

    Attributes:
        images: the places of source and target in the split's images.
        points: (n, 2) float32 x, y of source and target, in pixels of each image; x = 0.5 is the centre of the first
            pixel, where the files have 0.
        boxes: x1, y1, x2, y2 of the object in source and target.
        names: (n) of the points, numbers that mean the same within a category.
    """

    images: tuple[int, int]
    points: tuple[Tensor, Tensor]
    boxes: tuple[tuple[float, ...], tuple[float, ...]]
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Pairs:
    """The pairs of a split.

    Attributes:
        images: each image once, with its category as class.
        pairs: in the order of the split's list.
    """

    images: Source
    pairs: tuple[Pair, ...]


def read_pairs(config: DataConfig, split: str) -> Pairs:
    """SPair-71k: `JPEGImages/CATEGORY/*.jpg`, `PairAnnotation/SPLIT/*.json` and `Layout/large/SPLIT.txt`; the split is
    `train` (theirs is called trn), `val` or `test`.

    As the data set `pairs`, `create_dataset` gives the images alone, with their categories.

    Raises:
        FileNotFoundError: no root.
        DataError: no such split, no file of a pair, other numbers of points, points or boxes that are none, or names
            that lead out of the data set.
        ImageError: an image is not there.
    """
    root = find_root(config.root, "pairs", "SPair-71k")
    title = f"pairs {root}, {split}"
    split = _SPLITS.get(split, split)
    layout = root / "Layout" / "large" / f"{split}.txt"
    if not layout.is_file():
        raise unknown_split(title, split, sorted(path.stem for path in layout.parent.glob("*.txt")))
    lines = [below(line.strip(), layout) for line in read_lines(layout) if line.strip()]
    files = [root / "PairAnnotation" / split / f"{line}.json" for line in lines]
    found = [_annotation(file) for file in files]
    names = sorted({name for record in found for name in record["places"]})
    categories = sorted({str(record["category"]) for record in found})
    sizes = [upright_size(root / "JPEGImages" / name, name) for name in names]
    place = {name: number for number, name in enumerate(names)}
    category = {name: str(record["category"]) for record in found for name in record["places"]}
    labels = [categories.index(category[name]) for name in names]
    images = file_source(title, root / "JPEGImages", names, labels, categories)
    pairs = [_pair(file, record, place, sizes) for file, record in zip(files, found, strict=True)]
    return Pairs(images, tuple(pairs))


def read_pair_images(config: DataConfig, split: str) -> Source:
    """The images of `read_pairs`."""
    return read_pairs(config, split).images


def _annotation(file: Path) -> Any:
    try:
        with reported(file):
            record = json.loads(file.read_text(encoding="utf-8"))
            record = {key: record[key] for key in ("category", "kps_ids", *_SIDES[0], *_SIDES[1])}
            return record | {"places": [below(f"{record['category']}/{record[key]}", file) for key, *_ in _SIDES]}
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}") from error


def _pair(file: Path, record: Any, place: dict[str, int], sizes: Sequence[tuple[int, int]]) -> Pair:
    with reported(file):
        count, names = len(record["kps_ids"]), tuple(map(str, record["kps_ids"]))
    images = [place[name] for name in record["places"]]
    points: list[Tensor] = []
    for image, (_, key, box) in zip(images, _SIDES, strict=True):
        with reported(f"{file}: {key} of {count} points, or {box} of four numbers,"):
            xy = torch.tensor(record[key], dtype=torch.float32).reshape(count, 2)
            problem = box_problem([float(side) for side in record[box]], sizes[image])
        if problem or not xy.isfinite().all():
            raise DataError(f"{file}: {key} is not finite, or {box} {record[box]} {problem}")
        points.append(xy + 0.5)
    boxes = tuple(map(float, record["src_bndbox"])), tuple(map(float, record["trg_bndbox"]))
    return Pair((images[0], images[1]), (points[0], points[1]), boxes, names)
