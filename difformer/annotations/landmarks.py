"""Data sets of named points: COCO's files, and the lists of WFLW."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from difformer.annotations.coco import KEYPOINTS, LARGEST, annotation_file, read_keypoints, swap_of
from difformer.annotations.records import BoxSieve, annotated, points_of, recorded
from difformer.data.images import upright_size
from difformer.data.source import DataError, Names, Source, below, find_root, read_lines
from difformer.data.spec import DataConfig
from difformer.data.targets import Points

_WFLW_POINTS = 98
# Of the points: their numbers.
WFLW_NAMES = tuple(map(str, range(_WFLW_POINTS)))
_WFLW_LISTS = (
    "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_{split}.txt",
    "list_98pt_rect_attr_{split}.txt",
)
# The points that change places when a face is mirrored, as the published code for WFLW has them: the outline, brows,
# eyes, nose, mouth and pupils. The others lie in the middle.
WFLW_PAIRS = {
    str(one): str(other)
    for one, other in (
        *((i, 32 - i) for i in range(16)),
        *zip(range(33, 42), (46, 45, 44, 43, 42, 50, 49, 48, 47), strict=True),
        *zip(range(60, 68), (72, 71, 70, 69, 68, 75, 74, 73), strict=True),
        *((55, 59), (56, 58), (76, 82), (77, 81), (78, 80), (83, 87), (84, 86), (88, 92), (89, 91), (93, 95), (96, 97)),
    )
}


def read_points(config: DataConfig, split: str) -> Source:
    """Points of images: a file of COCO's (`read_keypoints`), or a list of WFLW (`read_wflw`) where `annotation_file`
    ends in .txt, or where there is no file of COCO's.

    Raises:
        FileNotFoundError, DataError: as these.
    """
    root = find_root(config.root, "points")
    file = annotation_file(config, split, root, f"points {root}, {split}", (*KEYPOINTS, *_WFLW_LISTS))
    return read_wflw(config, split, root, file) if file.suffix == ".txt" else read_keypoints(config, split)


def read_wflw(config: DataConfig, split: str, root: Path, file: Path) -> Source:
    """Faces with 98 points from a list of WFLW (Wu et al. 2018), each an image of its own. A line has x and y of the
    points, x1, y1, x2, y2 of the face, six attributes, and the image's path below `WFLW_images`, `images` or root.

    Raises:
        DataError: a line with anything else.
        ImageError: an image is not there.
    """
    folder = next((name for name in ("WFLW_images", "images") if (root / name).is_dir()), "")
    sieve = BoxSieve(str(file), config.on_bad_box)
    paths: list[str] = []
    records: list[dict[str, Any]] = []
    sizes: dict[str, tuple[int, int]] = {}
    for number, line in enumerate(read_lines(file), start=1):
        *words, name = line.split() or [""]
        if not name:
            continue
        where = f"{file}, line {number}"
        try:
            values = np.asarray([float(word) for word in words])
        except ValueError as error:
            raise DataError(f"{where}: {error}") from error
        if len(values) != 2 * _WFLW_POINTS + 10 or not (np.abs(values) <= LARGEST).all():
            raise DataError(
                f"{where} has {len(values)} numbers before the image; {_WFLW_POINTS} points, a box and six attributes "
                f"are {2 * _WFLW_POINTS + 10} finite ones"
            )
        path = f"{folder}/{below(name, file)}".lstrip("/")
        size = sizes[path] = sizes.get(path) or upright_size(root / path, str(root / path))
        points, box = values[: 2 * _WFLW_POINTS].reshape(-1, 2), values[2 * _WFLW_POINTS :][:4].tolist()
        if config.box_scale is None or sieve.passes(f"line {number}", box, size):
            paths.append(path)
            box = None if config.box_scale is None else box
            records.append({"size": size, "points": points.tolist(), "visible": [True] * _WFLW_POINTS, "box": box})
    sieve.report()
    pairs = WFLW_PAIRS if config.flip_pairs is None else config.flip_pairs
    names, build = Names(paths), partial(points_of, swap=swap_of(WFLW_NAMES, pairs, str(file)))
    return annotated(f"points {file}", root, names, WFLW_NAMES, recorded(Points, records, build, names, file))
