"""Pictures of objects: boxes and masks on an image, right and wrong ones, and curves."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from difformer._optional import require
from difformer.analysis import RECALLS, DetectionMetrics
from difformer.heads.detection import Detections, paste_masks
from difformer.report._figure import new_figure, plain, save_figure, short
from difformer.tasks.detection.records import CERTAIN, DetectionScore, outcome_of
from difformer.tasks.segmentation.pictures import palette

_RIGHT, _WRONG, _MISSED, _CROWD = "#1a9641", "#d7301f", "#2c7fb8", "#969696"
_OPACITY = 0.45
# Beyond these many classes, the curves of those with the most objects are drawn.
_MOST_CURVES = 10


def overlaid(picture: Any, found: Detections, names: Sequence[str]) -> Any:
    """An RGB picture with the boxes, classes and scores of what was found with a score of at least 0.5, and the masks
    where there are any.

    Args:
        picture: RGB PIL image.
        found: in pixels of the picture.
        names: of the classes.
    """
    sure = found.scores >= CERTAIN
    masks = None if found.masks is None else found.masks[sure]
    found = Detections(found.boxes[sure], found.scores[sure], found.labels[sure], masks)
    drawing = require("PIL.ImageDraw", "drawing boxes", install="pillow")
    fonts = require("PIL.ImageFont", "drawing boxes", install="pillow")
    image = require("PIL.Image", "drawing boxes", install="pillow")
    colours = palette()
    if found.masks is not None:
        pixels = np.asarray(picture.convert("RGB"), dtype=np.float32).copy()
        pasted = paste_masks(found.masks, found.boxes, (picture.height, picture.width))
        for mask, label in zip(pasted, found.labels.tolist(), strict=True):
            inside = mask.cpu().numpy()
            pixels[inside] = (1 - _OPACITY) * pixels[inside] + _OPACITY * colours[_shade(label)]
        picture = image.fromarray(pixels.round().astype(np.uint8))
    shown = picture.convert("RGB").copy()
    pen, height = drawing.Draw(shown), max(10, round(min(shown.size) / 40))
    font = fonts.load_default(size=height)
    # The most certain ones are on top.
    for box, score, label in reversed(_rows(found)):
        colour = tuple(colours[_shade(label)].tolist())
        pen.rectangle(box, outline=colour, width=max(1, height // 8))
        place = (box[0] + 1, max(0, box[1] - height - 2))
        text = f"{names[label]} {score:.2f}"
        pen.rectangle(pen.textbbox(place, text, font=font), fill=colour)
        pen.text(place, text, font=font, fill="white" if sum(colour) < 400 else "black")
    return shown


def _rows(found: Detections) -> list[tuple[list[float], float, int]]:
    return list(zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True))


def _shade(label: int) -> int:
    """The place of a class in the palette, whose first colour is black."""
    return 1 + label % 254


def draw_detection(path: Path, picture: Any, score: DetectionScore, names: Sequence[str]) -> None:
    """Draws an image, its objects, and what was found, side by side.

    Objects that were found are green and others blue; detections are green where they are right, and red where they are
    wrong. Of detections, those with a score of 0.5 are drawn; crowds and what lies in them are grey.

    Args:
        path: the PNG; replaced when it is there.
        picture: RGB PIL image.
        score: of the image.
        names: of the classes.

    Raises:
        OSError: it cannot be written.
    """
    outcome = outcome_of(score)
    truth = [
        (one, _RIGHT if found else _MISSED if missed else _CROWD, names[one["category_id"] - 1])
        for one, found, missed in zip(score.objects, outcome.found, outcome.missed, strict=True)
    ]
    found = [
        (one, _RIGHT if right else _WRONG if counted else _CROWD, f"{names[one['category_id'] - 1]} {one['score']:.2f}")
        for one, right, counted in zip(score.found, outcome.right, outcome.counted, strict=True)
        if one["score"] >= CERTAIN
    ]
    figure = new_figure(12.5, 4.1 * score.size[0] / score.size[1] + 0.8)
    panels = [
        ("Image", ()),
        (f"Truth ({outcome.missed.sum()} of {len(truth)} missed)", truth),
        (f"Prediction ({outcome.right.sum()} right, {(outcome.counted & ~outcome.right).sum()} wrong)", found),
    ]
    for axes, (title, boxes) in zip(figure.subplots(1, 3), panels, strict=True):
        axes.imshow(picture)
        _draw_boxes(axes, boxes)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    _add_legend(figure)
    save_figure(figure, path)


def _draw_boxes(axes: Any, boxes: Iterable[tuple[Any, str, str]]) -> None:
    from matplotlib.patches import Rectangle

    for one, colour, text in boxes:
        x, y, width, height = one["bbox"]
        # Matplotlib has the centre of the first pixel at 0.
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, edgecolor=colour, linewidth=1.4))
        axes.text(
            x, y, plain(text), fontsize=5.5, color="white", va="bottom", clip_on=True,
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6},
        )  # fmt: skip


def _add_legend(figure: Any) -> None:
    from matplotlib.patches import Patch

    named = {"right": _RIGHT, "wrong": _WRONG, "missed": _MISSED, "crowd, not counted": _CROWD}
    handles = [Patch(facecolor="none", edgecolor=colour, label=name) for name, colour in named.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)


def draw_precision_recall(path: Path, boxes: DetectionMetrics, masks: DetectionMetrics | None) -> None:
    """Draws precision over recall at an overlap of 0.5: of each class thin, their mean thick.

    Args:
        path: the PNG; replaced when it is there. A PDF of the same name is written beside it.
        boxes: as measured.
        masks: None where there are none.

    Raises:
        OSError: it cannot be written.
    """
    panels = [("Boxes", boxes), *([("Masks", masks)] if masks else [])]
    figure = new_figure(5.2 * len(panels), 4.2)
    for axes, (title, metrics) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        classes = sorted((row for row in metrics.per_class if row.objects), key=lambda row: -row.objects)
        for row in classes[:_MOST_CURVES] if len(classes) > 1 else ():
            axes.plot(RECALLS, metrics.curve(row.name), linewidth=1, label=short(row.name))
        axes.plot(RECALLS, metrics.curve(), color="black", linewidth=2.2, label="mean of the classes")
        axes.set(title=title, xlabel="Recall", ylabel="Precision", xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False, loc="lower left")
    save_figure(figure, path, caption=f"n = {boxes.num_images:,} images; overlap (IoU) of at least 0.5.")
