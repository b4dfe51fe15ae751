"""COCO's files: boxes and masks of objects, and points."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any

import torch

from difformer.annotations.records import (
    BoxSieve,
    annotated,
    boxes_of,
    points_of,
    recorded,
    reported,
)
from difformer.data.source import DataError, Names, Source, below, find_root, unknown_split
from difformer.data.spec import DataConfig
from difformer.data.targets import Boxes, Points
from difformer.rle import run_lengths

_log = getLogger(__name__)

# Where the file of a split is looked for, below root.
INSTANCES = (
    "annotations/instances_{split}.json",
    "annotations/instances_{split}2017.json",
    "instances_{split}.json",
    "{split}/_annotations.coco.json",
    "{split}.json",
)
KEYPOINTS = (
    "annotations/keypoints_{split}.json",
    "annotations/person_keypoints_{split}2017.json",
    "keypoints_{split}.json",
    "{split}.json",
)
# Pixels of a side; a longer one is made up. Masks are decoded only where the image has the size that is said.
_LONGEST = 1 << 16
# Of what targets hold, float32.
LARGEST = torch.finfo(torch.float32).max
# Names of points that say a side.
_SIDED = re.compile("left|right|(?<![a-z])[lr](?![a-z])", re.IGNORECASE)
_IMAGE_FOLDERS = ("images/{split}", "{split}2017", "images/{split}2017", "{split}/images", "{split}", "images", ".")


@dataclass(frozen=True, eq=False)
class _Content:
    """What a file of COCO's holds, checked.

    Attributes:
        folder: of the images, relative to root; empty for root itself.
        images: by id, ascending: file name, height and width.
        categories: by id, ascending.
        objects: annotations by image id.
    """

    folder: str
    images: Mapping[int, tuple[str, int, int]]
    categories: Mapping[int, Mapping[str, Any]]
    objects: Mapping[int, Sequence[Mapping[str, Any]]]

    @property
    def names(self) -> Names:
        """Of the images, relative to root."""
        return Names(f"{self.folder}/{name}".lstrip("/") for name, *_ in self.images.values())


def read_coco(config: DataConfig, split: str) -> Source:
    """Boxes of objects from a file of COCO's, `annotation_file` or the first of `INSTANCES` that is there; with
    `object_masks`, their masks too.

    The classes are the categories in the order of their ids, which may have gaps; an image's id is COCO's. Images
    without objects are kept.

    Raises:
        FileNotFoundError: no root.
        DataError: no such file, ids that repeat, what refers to nothing, boxes that are none (but for `on_bad_box`),
            areas that are none, or masks of another size.
    """
    title, root, file = _opened(config, split, "coco", INSTANCES)
    content = _read(root, file, split)
    label = {category: number for number, category in enumerate(content.categories)}
    sieve = BoxSieve(str(file), config.on_bad_box)
    with reported(file):
        records = [
            _objects(content.objects[image], name, size, label, sieve, masks=config.object_masks)
            for image, (name, *size) in content.images.items()
        ]
        classes = [str(category["name"]) for category in content.categories.values()]
    sieve.report()
    names = content.names
    boxes = recorded(Boxes, records, boxes_of, names, file)
    return annotated(title, root, names, classes, boxes, list(content.images))


def read_keypoints(config: DataConfig, split: str) -> Source:
    """Points from a file of COCO's, `annotation_file` or the first of `KEYPOINTS` that is there.

    The classes are the names of the points. A point is visible where its v is above 0; objects without a visible point
    are left out and counted in the log. Without `box_scale` an image has one object at most; with it, each object is an
    image of its own, to be cropped. Images without one are left out.

    Raises:
        FileNotFoundError, DataError: as `read_coco`; or another number of points, or flip pairs that do not fit.
    """
    title, root, file = _opened(config, split, "points", KEYPOINTS)
    content = _read(root, file, split)
    sieve = BoxSieve(str(file), config.on_bad_box)
    paths, records, unseen = [], [], 0
    with reported(file):
        named = [category for category in content.categories.values() if category.get("keypoints")]
        if len(named) != 1:
            raise DataError(f"{file}: one category must name its keypoints, got {len(named)} that do")
        points = tuple(map(str, named[0]["keypoints"]))
        for path, (image, (name, *size)) in zip(content.names, content.images.items(), strict=True):
            all_of_it = [
                (one, _points(one, f"{file}: {name}", len(points)))
                for one in content.objects[image]
                if "keypoints" in one and not one.get("iscrowd")
            ]
            objects = [(one, record) for one, record in all_of_it if any(record["visible"])]
            unseen += len(all_of_it) - len(objects)
            if len(objects) > 1 and config.box_scale is None:
                raise DataError(f"{file}: {name} has {len(objects)} objects with points; crop each, box_scale: 1.25")
            for one, record in objects:
                box = None if config.box_scale is None else _box(one, name, size, sieve)
                if box is not None or config.box_scale is None:
                    paths.append(path)
                    records.append(record | {"size": size, "box": box})
    sieve.report()
    if unseen:
        _log.warning("%s: left out %d objects without a visible point", file, unseen)
    names, build = Names(paths), partial(points_of, swap=swap_of(points, config.flip_pairs, title))
    return annotated(title, root, names, points, recorded(Points, records, build, names, file))


def swap_of(names: Sequence[str], pairs: Mapping[str, str] | None, title: str) -> tuple[int, ...] | None:
    """The number of the point that each one is in a mirrored image.

    Args:
        names: of the points.
        pairs: those that change places; by their names, `left` and `right`, when None.
        title: for messages.

    Returns:
        An involution; None where nothing is said and no two names differ in left and right. Where some do, names that
        say a side and have no partner are in the log.

    Raises:
        DataError: a pair names what is no point, or a point is in two pairs.
    """
    if pairs is None:
        sides = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
        swapped = {name: name.replace(a, b) for name in names for a, b in sides.items() if a in name}
        pairs = {name: other for name, other in swapped.items() if other in names}
        if not pairs:
            return None
        if alone := [name for name in names if name not in pairs and _SIDED.search(name)]:
            _log.warning(
                "%s: in mirrored images %s and others change places, but %s do not, since no other name differs from "
                "theirs in left and right only; name all that do with flip_pairs", title, next(iter(pairs)),
                ", ".join(alone),
            )  # fmt: skip
    place = {name: number for number, name in enumerate(names)}
    swap = list(range(len(names)))
    for one, other in pairs.items():
        for name in (one, other):
            if name not in place:
                raise DataError(f"{title}: flip_pairs names {name!r}, which is no point; there are {', '.join(names)}")
        for here, there in ((place[one], place[other]), (place[other], place[one])):
            if swap[here] not in (here, there):
                raise DataError(
                    f"{title}: flip_pairs has {names[here]!r} change places with {names[swap[here]]!r} and with "
                    f"{names[there]!r}; mirrored twice, each point must be itself again"
                )
            swap[here] = there
    return tuple(swap)


def annotation_file(config: DataConfig, split: str, root: Path, title: str, places: Sequence[str]) -> Path:
    """The file of a split: `annotation_file` of the configuration, or the first place where there is one.

    Raises:
        DataError: there is none.
    """
    places = places if config.annotation_file is None else (config.annotation_file,)
    files = [root / place.replace("{split}", split) for place in places]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise DataError(
            f"{unknown_split(title, split, ())}. There is none of {', '.join(map(str, files))}; name the file below "
            "root with annotation_file, where {split} stands for the split"
        )
    return found


def _opened(config: DataConfig, split: str, name: str, places: Sequence[str]) -> tuple[str, Path, Path]:
    """Title, root and file."""
    root = find_root(config.root, name)
    title = f"{name} {root}, {split}"
    return title, root, annotation_file(config, split, root, title, places)


def _read(root: Path, file: Path, split: str) -> _Content:
    with reported(file):
        content = json.loads(file.read_text(encoding="utf-8"))
        images = _by_id(file, "images", content["images"])
        categories = _by_id(file, "categories", content["categories"])
        objects: dict[int, list[Mapping[str, Any]]] = {image: [] for image in images}
        for number, one in _by_id(file, "annotations", content["annotations"]).items():
            if one["image_id"] not in images or one["category_id"] not in categories:
                raise DataError(
                    f"{file}: annotation {number} is of image {one['image_id']!r} and category {one['category_id']!r}, "
                    f"and one of them is not in the file; it has categories {list(categories)}"
                )
            objects[one["image_id"]].append(one)
        sizes = {number: _image(file, image) for number, image in images.items()}
    first = next(iter(sizes.values()), ("",))[0]
    folders = [place.replace("{split}", split) for place in _IMAGE_FOLDERS]
    beside = file.parent.relative_to(root).as_posix() if file.parent.is_relative_to(root) else "."
    there = next((folder for folder in [*folders, beside] if os.path.isfile(root / folder / first)), None)
    if there is None:
        raise DataError(f"{file} names {first}, which is in none of the folders {', '.join(folders)} of {root}")
    return _Content("" if there == "." else there, sizes, categories, objects)


def _image(file: Path, image: Mapping[str, Any]) -> tuple[str, int, int]:
    """File name, height and width."""
    name, height, width = image["file_name"], image["height"], image["width"]
    if not isinstance(name, str) or not name or "\0" in name:
        raise DataError(f"{file}: image {image['id']} must have a file name, got {name!r}")
    below(name, file)
    if not all(type(side) is int and 0 < side <= _LONGEST for side in (height, width)):
        raise DataError(f"{file}: {name} must have a height and width of 1 to {_LONGEST}, got {height!r} and {width!r}")
    return name, height, width


def _by_id(file: Path, kind: str, entries: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """Entries by their id, ascending."""
    found: dict[int, Mapping[str, Any]] = {}
    for entry in entries:
        number = entry["id"]
        if type(number) is not int or not 0 <= number < 1 << 63:
            raise DataError(f"{file}: ids in {kind} must be integers from 0 to 2**63, got {number!r:.80}")
        if number in found:
            raise DataError(f"{file}: the id {number} stands twice in {kind}")
        found[number] = entry
    return dict(sorted(found.items()))


def _objects(
    objects: Sequence[Mapping[str, Any]],
    name: str,
    size: Sequence[int],
    label: Mapping[int, int],
    sieve: BoxSieve,
    *,
    masks: bool,
) -> dict[str, Any]:
    """The record of an image's objects."""
    kept = [(one, box) for one in objects if (box := _box(one, name, size, sieve)) is not None]
    record = {
        "size": size,
        "boxes": [box for _, box in kept],
        "labels": [label[one["category_id"]] for one, _ in kept],
        "crowd": [bool(one.get("iscrowd", 0)) for one, _ in kept],
        "areas": [_area(one, box, f"{sieve.title}: {name}") for one, box in kept],
    }
    if masks:
        record["segments"] = [_segment(one, f"{sieve.title}: {name}", size) for one, _ in kept]
    return record


def _box(one: Mapping[str, Any], name: str, size: Sequence[int], sieve: BoxSieve) -> list[float] | None:
    """x1, y1, x2, y2 of an annotation; None where it is left out."""
    where, box = f"{name}, annotation {one['id']}", one.get("bbox")
    try:
        x, y, width, height = map(float, box or ())
        box = [x, y, x + width, y + height]
    except (TypeError, ValueError):
        box = [box]
    return box if sieve.passes(where, box, (size[0], size[1])) else None


def _area(one: Mapping[str, Any], box: Sequence[float], where: str) -> float:
    """Of an annotation, in pixels; that of its box where it says none."""
    area = one.get("area")
    if area is None:
        return (box[2] - box[0]) * (box[3] - box[1])
    if not isinstance(area, int | float) or not 0 <= area <= LARGEST:
        raise DataError(f"{where}, annotation {one['id']} must have a finite area of at least 0, got {area!r:.80}")
    return float(area)


def _segment(one: Mapping[str, Any], where: str, size: Sequence[int]) -> Any:
    """Polygons or run lengths of an annotation."""
    segment, where = one.get("segmentation"), f"{where}, annotation {one['id']}"
    height, width = size
    if isinstance(segment, Mapping):
        try:
            run_lengths(segment, (height, width), name=where)
        except ValueError as error:
            raise DataError(str(error)) from error
        return segment
    if not segment or not all(isinstance(line, list) and len(line) >= 6 and len(line) % 2 == 0 for line in segment):
        raise DataError(f"{where} must have polygons of three corners or more, or run lengths, got {segment!r:.80}")
    for line in segment:
        # Far outside, a polygon would take for ever to draw.
        if not all(
            -side <= float(value) <= 2 * side
            for values, side in ((line[::2], width), (line[1::2], height))
            for value in values
        ):
            raise DataError(f"{where} has a polygon far outside its image of {height}×{width}: {line!r:.80}")
    return segment


def _points(one: Mapping[str, Any], where: str, count: int) -> dict[str, Any]:
    """Points of an annotation, and which are visible."""
    numbers, where = one["keypoints"], f"{where}, annotation {one['id']}"
    if len(numbers) != 3 * count:
        raise DataError(f"{where} has {len(numbers)} numbers, and {count} points are three each: x, y, v")
    points = [numbers[i : i + 3] for i in range(0, len(numbers), 3)]
    for point in points:
        if not all(isinstance(value, int | float) and abs(value) <= LARGEST for value in point):
            raise DataError(f"{where} has the point {point}, which is not finite")
    return {"points": [point[:2] for point in points], "visible": [point[2] > 0 for point in points]}
