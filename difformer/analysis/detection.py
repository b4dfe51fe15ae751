"""How well objects are found: COCO's average precision of boxes and masks, by pycocotools (the extra `dense`).

Truth and results are in COCO's own form, as its JSON files have them, so that files that others wrote are measured too,
and results can be handed in where COCO is scored. `coco_truth` and `coco_results` make them from arrays.
"""

import contextlib
import io
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from difformer._optional import require
from difformer.analysis._inputs import Array, as_numbers, as_tensor
from difformer.analysis.rle import encode_rle
from difformer.config import check_choice
from difformer.rle import run_lengths

Overlap: TypeAlias = Literal["bbox", "segm"]

# COCO's thresholds of the overlap, and where precision is read off.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)

# What of an annotation is compared.
_PARTS: Mapping[Overlap, str] = {"bbox": "bbox", "segm": "segmentation"}


@dataclass(frozen=True)
class ClassDetection:
    """One class's row of the table.

    Attributes:
        name: of the class.
        objects: that are to be found, without crowds.
        ap: average precision over the ten thresholds; None where there are no objects.
        ap50: at an overlap of 0.5.
    """

    name: str
    objects: int
    ap: float | None
    ap50: float | None


@dataclass(frozen=True, eq=False)
class DetectionMetrics:
    """What `detection_metrics` finds in a split. Classes without an object are left out; None where that leaves none.

    Attributes:
        num_images: N, those without objects included.
        ap: average precision, mean over overlaps of 0.5, 0.55 … 0.95 and over the classes.
        ap50, ap75: at an overlap of 0.5 and 0.75.
        ap_small, ap_medium, ap_large: of objects of less than 32² pixels, from there to 96², and of more.
        ar: average recall with at most 100 detections an image and class.
        precision: (10, 101, K) by `IOU_THRESHOLDS`, `RECALLS` and class; not a number for a class without an object.
        per_class: K rows of the table.
    """

    num_images: int
    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar: float | None
    precision: NDArray[np.float64]
    per_class: tuple[ClassDetection, ...]

    def value(self, name: str) -> float | None:
        """The number of a metric, which is an attribute; None where it has none here."""
        found: float | None = getattr(self, name)
        return found

    def summary(self) -> dict[str, float]:
        """The numbers that stand in the record of an epoch."""
        names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar")
        return {name: value for name in names if (value := self.value(name)) is not None}

    def curve(self, class_name: str | None = None, *, iou: float = 0.5) -> NDArray[np.float64]:
        """The precision-recall curve of a class, or the mean of the classes' curves.

        Args:
            class_name: a class with objects; None for the mean.
            iou: one of `IOU_THRESHOLDS`.

        Returns:
            (101,) precision in [0, 1] at `RECALLS`, falling; not a number where there are no objects.

        Raises:
            ValueError: another class or overlap.
        """
        level = np.flatnonzero(np.isclose(IOU_THRESHOLDS, iou))
        if not len(level):
            raise ValueError(f"iou must be one of {', '.join(f'{t:g}' for t in IOU_THRESHOLDS)}, got {iou}")
        names = [row.name for row in self.per_class]
        if class_name is None:
            chosen = [k for k, row in enumerate(self.per_class) if row.objects]
        elif class_name in names:
            chosen = [names.index(class_name)]
        else:
            raise ValueError(f"class_name must be one of {', '.join(names)}, got {class_name!r}")
        curves: NDArray[np.float64] = self.precision[level[0]][:, chosen]
        return curves.mean(axis=1) if chosen else np.full(len(RECALLS), np.nan)

    def to_dict(self, *, tables: bool = True) -> dict[str, Any]:
        """The same as JSON has it, without `precision`, of which `curve` gives what is shown.

        Args:
            tables: with `per_class`, which is long.
        """
        found = {name: value for name, value in vars(self).items() if name not in ("precision", "per_class")}
        return found | ({"per_class": [asdict(row) for row in self.per_class]} if tables else {})


def coco_annotations(
    image_id: int,
    boxes: Array,
    labels: Array,
    *,
    crowd: Array | None = None,
    areas: Array | None = None,
    masks: Array | Iterable[Array] | None = None,
    category_ids: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """An image's objects as COCO has them, for `coco_truth`.

    Args:
        image_id: of the image.
        boxes: (n, 4) finite x1, y1, x2, y2 in pixels; n may be 0.
        labels: (n,) class numbers.
        crowd: (n,) truth values: regions with many objects, where detections are neither right nor wrong.
        areas: (n,) finite pixels, not negative, which say whether an object is small: in COCO's files those of the
            objects' outlines, also where boxes are compared (`Boxes.areas`). Those of the masks where they are left
            out, and without masks those of the boxes.
        masks: (n, H, W) truth values; or n of (H, W), of which any iterable may give one at a time.
        category_ids: of the classes, by number; 1, 2, 3 … by default.

    Raises:
        ValueError: wrong shapes, types or values.
        ImportError: there are masks, and pycocotools is missing.
    """
    found = _objects(image_id, boxes, labels, masks, category_ids)
    crowds = np.zeros(len(found), dtype=bool) if crowd is None else as_tensor("crowd", crowd).cpu().numpy()
    if crowds.shape != (len(found),) or crowds.dtype != bool:
        raise ValueError(f"crowd must be {len(found)} truth values, got {crowds.dtype} of shape {crowds.shape}")
    if areas is not None:
        sizes = as_numbers("areas", areas, (len(found),)).tolist()
    elif masks is not None:
        sizes = [float(sum(run_lengths(one["segmentation"])[1::2])) for one in found]
    else:
        sizes = [one["bbox"][2] * one["bbox"][3] for one in found]
    for one, many, area in zip(found, crowds.tolist(), sizes, strict=True):
        if not 0 <= area < math.inf:
            raise ValueError(f"areas must be finite and not negative, got {area} in image {image_id}")
        one |= {"iscrowd": int(many), "area": area}
    return found


def coco_truth(
    sizes: Mapping[int, tuple[int, int]],
    annotations: Iterable[Mapping[str, Any]],
    class_names: Sequence[str],
    *,
    category_ids: Sequence[int] | None = None,
) -> dict[str, Any]:
    """What is to be found in a split, as COCO's annotation files have it.

    Args:
        sizes: (h, w) of each image by its id, those without objects included.
        annotations: of all images, from `coco_annotations`; they are numbered here.
        class_names: K names.
        category_ids: K of them, as above.
    """
    ids = range(1, len(class_names) + 1) if category_ids is None else category_ids
    return {
        "images": [{"id": int(number), "height": int(h), "width": int(w)} for number, (h, w) in sizes.items()],
        "categories": [{"id": int(one), "name": name} for one, name in zip(ids, class_names, strict=True)],
        "annotations": [dict(one) | {"id": number} for number, one in enumerate(annotations, 1)],
    }


def coco_results(
    image_id: int,
    boxes: Array,
    labels: Array,
    scores: Array,
    *,
    masks: Array | Iterable[Array] | None = None,
    category_ids: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """An image's detections as COCO's result files have them; lists of several images are put together with `+`.

    Args:
        image_id, boxes, labels, masks, category_ids: as for `coco_annotations`.
        scores: (n,) finite; larger is more certain.

    Returns:
        n dictionaries of plain numbers and text with `image_id`, `category_id`, `bbox` (x, y, width, height), `score`,
        and `segmentation` where there are masks. `json.dump` of the list is a result file.

    Raises:
        ValueError: wrong shapes, types or values.
        ImportError: there are masks, and pycocotools is missing.
    """
    found = _objects(image_id, boxes, labels, masks, category_ids)
    values = as_numbers("scores", scores, (len(found),))
    if not np.isfinite(values).all():
        raise ValueError(f"scores must be finite, got {values[~np.isfinite(values)][0]} for image {image_id}")
    return [one | {"score": score} for one, score in zip(found, values.tolist(), strict=True)]


def detection_metrics(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], *, overlap: Overlap = "bbox"
) -> DetectionMetrics:
    """COCO's average precision.

    Of equal scores the image with the lower id comes first, then the place in `results`. At most 100 detections of a
    class in an image count. Detections in images without objects are wrong ones.

    Args:
        truth: `images`, `categories` and `annotations`, as `coco_truth` or COCO's files have them.
        results: detections, as `coco_results` or COCO's files have them; there may be none.
        overlap: whether boxes or masks are compared.

    Raises:
        ValueError: an image or category that `truth` does not have, a box, area or score that is not finite or of
            another length, or a mask that is none or of another size than its image; the message says which.
        ImportError: pycocotools is missing.
    """
    evaluation = compare_objects(truth, results, overlap)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, 2]
    precision = np.where(precision < 0, np.nan, precision)
    stats = [None if value < 0 else float(value) for value in evaluation.stats]
    categories = {one["id"]: one["name"] for one in truth["categories"]}
    counts = Counter(one["category_id"] for one in truth["annotations"] if not one.get("iscrowd", 0))
    return DetectionMetrics(
        num_images=len(truth["images"]),
        **dict(zip(("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"), stats[:6], strict=True)),
        ar=stats[8],
        precision=precision,
        per_class=tuple(
            ClassDetection(categories[number], counts[number], _mean(own), _mean(own[0]))
            for number, own in zip(sorted(categories), np.moveaxis(precision, 2, 0), strict=True)
        ),
    )


def _objects(
    image_id: int,
    boxes: Array,
    labels: Array,
    masks: Array | Iterable[Array] | None,
    category_ids: Sequence[int] | None,
) -> list[dict[str, Any]]:
    corners = as_numbers("boxes", boxes, (None, 4))
    numbers = as_tensor("labels", labels).cpu().numpy()
    if numbers.shape != (len(corners),) or numbers.dtype.kind not in "iu":
        raise ValueError(f"labels must be {len(corners)} integers, got {numbers.dtype} of shape {numbers.shape}")
    most = None if category_ids is None else len(category_ids)
    for box, number in zip(corners, numbers.tolist(), strict=True):
        if not np.isfinite(box).all() or (box[2:] < box[:2]).any():
            raise ValueError(f"boxes must be finite x1, y1, x2, y2 with x1 <= x2, y1 <= y2, got {box.tolist()}")
        if number < 0 or (most is not None and number >= most):
            end = "" if most is None else f" to {most - 1}"
            raise ValueError(f"labels must be class numbers from 0{end}, got {number}")
    ids = [number + 1 if category_ids is None else int(category_ids[number]) for number in numbers.tolist()]
    sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).tolist()
    found: list[dict[str, Any]] = [
        {"image_id": int(image_id), "category_id": one, "bbox": box} for one, box in zip(ids, sides, strict=True)
    ]
    if masks is not None:
        if not isinstance(masks, Iterable) or getattr(masks, "ndim", 3) != 3:
            raise ValueError(
                f"masks must be of shape ({len(found)}, H, W) or give (H, W) each, got {type(masks).__name__}"
            )
        codes = list(map(encode_rle, masks))
        if len(codes) != len(found) or any(code["size"] != codes[0]["size"] for code in codes):
            shapes = sorted({tuple(code["size"]) for code in codes})
            raise ValueError(f"masks must be {len(found)} of one shape (H, W), got {len(codes)} of {shapes}")
        found = [one | {"segmentation": code} for one, code in zip(found, codes, strict=True)]
    return found


def _annotations(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], overlap: Overlap
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Objects and detections, checked, as pycocotools compares them. They are numbered anew: a detection that matches
    an annotation with the number 0 would count as a wrong one."""
    images, categories = _by_id("image", truth["images"]), _by_id("category", truth["categories"])
    part = _PARTS[overlap]
    for number, image in images.items() if overlap == "segm" else ():
        sides = [image.get(side) for side in ("height", "width")]
        if not all(isinstance(side, int) and side > 0 for side in sides):
            raise ValueError(
                f"image {number!r} must have a height and width in pixels to be measured by 'segm', got {sides}"
            )
    wanted, found = [], []
    for i, one in enumerate(truth["annotations"]):
        name = f"annotation {i}"
        _check_entry(name, one, ("image_id", "category_id", part, "area"), images, categories)
        if not _are_finite([one["area"]], 1):
            raise ValueError(f"{name} must have a finite area, got {one['area']!r}")
        if (crowd := one.get("iscrowd", 0)) not in (0, 1):
            raise ValueError(f"{name} must have an iscrowd of 0 or 1, got {crowd!r}")
        if overlap == "segm" and not isinstance(one[part], Mapping):
            compared = _polygons(name, one[part])
        else:
            compared, _ = _with_area(name, one[part], overlap, images[one["image_id"]])
        wanted.append(dict(one) | {"id": i + 1, "iscrowd": crowd, part: compared})
    for i, one in enumerate(results):
        name = f"result {i}"
        _check_entry(name, one, ("image_id", "category_id", part, "score"), images, categories)
        if not _are_finite([one["score"]], 1):
            raise ValueError(f"{name} must have a finite score, got {one['score']!r}")
        # Its area, too, is that of what is compared: of results with boxes and masks pycocotools would take the box's.
        compared, area = _with_area(name, one[part], overlap, images[one["image_id"]])
        kept = {key: one[key] for key in ("image_id", "category_id", "score")}
        found.append(kept | {"id": i + 1, "iscrowd": 0, part: compared, "area": area})
    return wanted, found


def _by_id(kind: str, entries: Sequence[Mapping[str, Any]]) -> dict[Any, Mapping[str, Any]]:
    found: dict[Any, Mapping[str, Any]] = {}
    for one in entries:
        if not isinstance(one, Mapping) or not isinstance(one.get("id"), Hashable):
            raise ValueError(f"every {kind} of the truth must have an id, got {one!r:.80}")
        if one.get("id") in found:
            raise ValueError(f"every {kind} of the truth must have its own id, and {one['id']!r} stands twice")
        found[one.get("id")] = one
    return found


def _check_entry(
    name: str, entry: Any, keys: Sequence[str], images: Mapping[Any, Any], categories: Mapping[Any, Any]
) -> None:
    if not isinstance(entry, Mapping) or not set(keys) <= entry.keys():
        missing = [key for key in keys if not isinstance(entry, Mapping) or key not in entry]
        got = sorted(map(str, entry)) if isinstance(entry, Mapping) else entry
        raise ValueError(f"{name} must have {missing[0]!r} to be measured, got {got!r:.200}")
    image, category = entry["image_id"], entry["category_id"]
    if not isinstance(image, Hashable) or image not in images:
        raise ValueError(f"{name} is of image {image!r}, which is not among the {len(images)} of the truth")
    if not isinstance(category, Hashable) or category not in categories:
        raise ValueError(f"{name} is of category {category!r}; known are {list(categories)}")


def _with_area(name: str, part: Any, overlap: Overlap, image: Mapping[str, Any]) -> tuple[Any, float]:
    """A box or a run-length code in the form that pycocotools reads, and its area."""
    if overlap == "segm":
        if not isinstance(part, Mapping):
            raise ValueError(f"{name} must have a run-length code, as encode_rle gives it, got {part!r:.80}")
        runs = run_lengths(part, (image["height"], image["width"]), name=name)
        text = part["counts"] if isinstance(part["counts"], str | bytes) else runs
        return {"size": list(part["size"]), "counts": text}, float(sum(runs[1::2]))
    if not (_are_finite(part, 4) and min(part[2:]) >= 0):
        raise ValueError(f"{name} must have a bbox of finite x, y, width and height, got {part!r:.80}")
    return list(part), float(part[2] * part[3])


def _polygons(name: str, polygons: Any) -> list[list[float]]:
    lines = polygons if isinstance(polygons, list | tuple) else []
    if not lines or not all(
        isinstance(line, list | tuple) and len(line) >= 6 and len(line) % 2 == 0 and _are_finite(line, len(line))
        for line in lines
    ):
        raise ValueError(
            f"{name} must have polygons of three corners or more, or a run-length code, got {polygons!r:.80}"
        )
    return [list(line) for line in lines]


def _are_finite(values: Any, count: int) -> bool:
    """Whether they are so many finite numbers."""
    listed = isinstance(values, list | tuple | np.ndarray) and len(values) == count
    return listed and all(isinstance(one, Real) and math.isfinite(one) for one in values)


def compare_objects(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], overlap: Overlap) -> Any:
    """pycocotools' `COCOeval`, not yet evaluated, of checked objects and detections; Args and Raises as
    `detection_metrics`."""
    check_choice("overlap", overlap, ("bbox", "segm"))
    sides = _annotations(truth, results, overlap)
    coco = require("pycocotools.coco", "COCO's average precision", install="pycocotools")
    cocoeval = require("pycocotools.cocoeval", "COCO's average precision", install="pycocotools")
    # It prints what it does.
    with contextlib.redirect_stdout(io.StringIO()):
        indices = []
        for annotations in sides:
            index = coco.COCO()
            index.dataset = {"images": truth["images"], "categories": truth["categories"], "annotations": annotations}
            index.createIndex()
            indices.append(index)
        return cocoeval.COCOeval(*indices, overlap)


def _mean(precision: NDArray[np.float64]) -> float | None:
    """None for a class without objects."""
    return None if np.isnan(precision).any() else float(precision.mean())
