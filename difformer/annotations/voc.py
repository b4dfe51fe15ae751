"""PASCAL VOC: boxes of objects, one XML file an image, and masks."""

from collections import Counter
from logging import getLogger
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from difformer.annotations.masks import mask_source, refuse_missing
from difformer.annotations.records import BoxSieve, annotated, boxes_of, recorded, reported
from difformer.data.images import upright_size
from difformer.data.source import DataError, Files, Names, Source, below, find_root, read_lines, unknown_split
from difformer.data.spec import DataConfig
from difformer.data.targets import Boxes

_log = getLogger(__name__)

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def read_voc(config: DataConfig, split: str) -> Source:
    """Boxes of PASCAL VOC: `JPEGImages`, whose images end in .jpg, `Annotations` and `ImageSets/Main/SPLIT.txt`.

    The classes are `class_names`, else VOC's twenty. VOC's pixels count from 1 and boxes include their last one, so a
    box reaches from xmin - 1 to xmax; one whose ends are the same pixel is none. The log says where a box begins at 0,
    as in files that count from 0. Objects called difficult do not count, which makes them `crowd`.

    Raises:
        FileNotFoundError: no root.
        DataError: no such split, no XML file, an unknown class, or boxes that are none (but for `on_bad_box`).
    """
    root = _root(config)
    title = f"voc {root}, {split}"
    names = _names(root / "ImageSets" / "Main", split, title)
    classes = config.class_names or VOC_CLASSES
    sieve = BoxSieve(title, config.on_bad_box)
    images = [f"JPEGImages/{name}.jpg" for name in names]
    files = Files(root / "Annotations", Names(f"{name}.xml" for name in names))
    from_zero: list[str] = []
    records = [_record(files(i), root / image, classes, sieve, from_zero) for i, image in enumerate(images)]
    sieve.report()
    if from_zero:
        _log.warning(
            "%s: %d boxes begin at pixel 0, such as one of %s. VOC counts from 1; where files count from 0, all boxes "
            "are read one pixel too far to the left and the top, so add 1 to their corners", title, len(from_zero),
            from_zero[0],
        )  # fmt: skip
    paths = Names(images)
    return annotated(title, root, paths, classes, recorded(Boxes, records, boxes_of, paths, files))


def read_voc_segmentation(config: DataConfig, split: str) -> Source:
    """The masks of PASCAL VOC: `JPEGImages`, whose images end in .jpg, `SegmentationClass` and
    `ImageSets/Segmentation/SPLIT.txt`. 255, the edges of objects, is ignored. The classes are `class_names`, else
    `background` and VOC's twenty.

    Raises:
        FileNotFoundError: no root.
        DataError: no such split.
    """
    root = _root(config)
    title = f"voc_segmentation {root}, {split}"
    names = _names(root / "ImageSets" / "Segmentation", split, title)
    pairs = [(f"JPEGImages/{name}.jpg", f"SegmentationClass/{name}.png") for name in names]
    refuse_missing(title, "mask", [mask for _, mask in pairs if not (root / mask).is_file()])
    return mask_source(title, root, pairs, config.class_names or ("background", *VOC_CLASSES))


def _root(config: DataConfig) -> Path:
    """The folder with VOC's `ImageSets`: root, or that of the latest year below it."""
    root = find_root(config.root, "voc", "VOCdevkit")
    years = sorted(path for path in root.glob("VOC20*") if path.is_dir())
    return years[-1] if years and not (root / "ImageSets").is_dir() else root


def _names(folder: Path, split: str, title: str) -> list[str]:
    """The names of images in a file of `ImageSets`.

    Raises:
        DataError: there is none of that split, or a name stands in it twice or leads out of the data set.
    """
    file = folder / f"{split}.txt"
    if not file.is_file():
        raise unknown_split(title, split, sorted(path.stem for path in folder.glob("*.txt")))
    names = [below(line.split()[0], file) for line in read_lines(file) if line.strip()]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{file} names {repeated[0]} twice")
    return names


def _record(file: Path, image: Path, classes: tuple[str, ...], sieve: BoxSieve, from_zero: list[str]) -> dict[str, Any]:
    """The record of an image's objects. The file's name is added to `from_zero` for each box that begins at 0."""
    try:
        with reported(file):
            tree = ElementTree.parse(file).getroot()
            size = int(tree.findtext("size/height", "0")), int(tree.findtext("size/width", "0"))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    # Some tools write no size.
    size = size if min(size) > 0 else upright_size(image, str(image))
    record: dict[str, Any] = {"size": size, "boxes": [], "labels": [], "crowd": [], "areas": []}
    for one in tree.iter("object"):
        name = one.findtext("name", "").strip()
        if name not in classes:
            raise DataError(f"{file} has an object {name!r}, which is no class; there are {', '.join(classes)}")
        corners = [one.findtext(f"bndbox/{side}", "nothing") for side in ("xmin", "ymin", "xmax", "ymax")]
        try:
            x1, y1, x2, y2 = map(float, corners)
        except ValueError as error:
            raise DataError(f"{file} has the box {corners} (xmin, ymin, xmax, ymax), which is no number") from error
        if min(x1, y1) == 0:
            from_zero.append(file.name)
        # A box from a pixel to itself is a click that went wrong, although it would hold that pixel.
        box = [x1 - 1, y1 - 1, x2, y2] if x1 != x2 and y1 != y2 else [x1, y1, x2, y2]
        if sieve.passes(f"{file.name}, {name}", box, size):
            record["boxes"].append(box)
            record["labels"].append(classes.index(name))
            record["crowd"].append(one.findtext("difficult", "0").strip() == "1")
            record["areas"].append((x2 - x1 + 1) * (y2 - y1 + 1))
    return record
