"""The page of an evaluation of masks, boxes or points: numbers, and images beside what was found in them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from difformer.analysis import Interval
from difformer.classifier import DiffusionClassifier
from difformer.data import DenseSample, ImageDataset
from difformer.models.modes import evaluation_mode
from difformer.report.page import Paragraph, Picture, Section, write_page
from difformer.tasks import DenseTask, Outputs
from difformer.tasks.task import Measured

PAGE = "report.html"
PICTURES = "example-*.png"
# Of the worst, the middle and the best images.
_OF_EACH = 4


def write_evaluation_page(
    folder: Path,
    classifier: DiffusionClassifier,
    task: DenseTask,
    images: ImageDataset,
    outputs: Outputs,
    measured: Measured,
    interval: Interval,
    split: str,
) -> None:
    """Writes a page with the numbers, and with the images that are predicted worst, in the middle and best.

    Args:
        folder: with the tables of the evaluation.
        classifier: that was measured, in evaluation mode.
        task: its own.
        images: the split.
        outputs: of all images.
        measured: of these.
        interval: of the first metric.
        split: its name.

    Raises:
        OSError: it cannot be written.
    """
    name, metric = next(iter(task.metrics.items()))
    lead = (
        f"{metric.title or name} {metric.text(interval.mean)} ({metric.text(interval.low)} … "
        f"{metric.text(interval.high)}) on {measured.num_images:,} images of {split}."
    )
    note = Paragraph(
        f"The interval is of a bootstrap over images with {interval.level:.0%} confidence; it says what other images "
        "could change, and nothing of other training runs."
    )
    chosen = _chosen([task.merit(score) for score in outputs.values])
    place = {number: index for index, number in enumerate(images.ids.tolist())}
    examples: list[Section] = []
    for title, numbers in chosen.items():
        pictures = []
        for number in numbers:
            image_id = int(outputs.ids[number])
            path = folder / f"example-{len(examples)}-{number:06}.png"
            caption = _draw(path, classifier, task, images, place[image_id])
            pictures.append(Picture(path, f"{title}: {caption}", caption))
        examples.append(Section(title, pictures))
    sections = [Section("Result", [note]), *task.sections(measured, folder), *examples]
    write_page(folder / PAGE, "Evaluation", sections, lead=lead)


def _chosen(merits: Sequence[float]) -> dict[str, list[int]]:
    """Places of the worst, middle and best images, each once."""
    order = np.argsort(merits, kind="stable").tolist()
    if len(order) <= 3 * _OF_EACH:
        return {"All images, the worst first": order}
    middle = len(order) // 2 - _OF_EACH // 2
    return {
        "The worst images": order[:_OF_EACH],
        "In the middle": order[middle : middle + _OF_EACH],
        "The best images": order[::-1][:_OF_EACH],
    }


def _draw(path: Path, classifier: DiffusionClassifier, task: DenseTask, images: ImageDataset, place: int) -> str:
    """Draws an image with its truth and its prediction; returns what it is called."""
    sample: Any = images[place]
    assert isinstance(sample, DenseSample)
    assert sample.origin is not None
    device = next(classifier.head.parameters()).device
    with torch.no_grad(), evaluation_mode(classifier):
        ids = torch.tensor([sample.id], device=device)
        (found,) = task.infer(classifier, sample.image[None].to(device), ids, [sample.origin])
    task.draw(path, images.picture(place), sample.origin.target, found, classifier.class_names)
    return f"image {sample.id}" if images.names is None else images.names[place]
