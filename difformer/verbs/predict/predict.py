"""Predictions for a folder of images, as a table, or for one image, in lines."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, cast

from tqdm import tqdm

from difformer.classifier import DiffusionClassifier
from difformer.data import IMAGE_SUFFIXES, ImageError
from difformer.data.listing import find_images, in_words
from difformer.files import check_target, expand_user
from difformer.tables import write_rows
from difformer.tasks import Prediction, RowTask

_SHOWN = 10


@dataclass
class Report:
    """How the predictions for a folder went.

    Attributes:
        total: images found.
        done: images predicted.
        skipped: the errors of those that could not be read.
        interrupted: whether it was stopped before the end; what is done is kept, as the function says.
        left_out: files without an image's suffix, by suffix; hidden ones are not counted.
    """

    total: int
    done: int = 0
    skipped: list[ImageError] = field(default_factory=list)
    interrupted: bool = False
    left_out: Counter[str] = field(default_factory=Counter)


def predict_folder(
    classifier: DiffusionClassifier, folder: Path, table: Path, *, batch_size: int = 32, overwrite: bool = False
) -> Report:
    """Classifies every image in a folder and its subfolders, or one image, with a progress bar, and writes a CSV file.

    Args:
        classifier: with a preprocessing.
        folder: searched for files with an image's suffix, also through links, but not in hidden entries and those of
            the system (`.cache`, `@eaDir`, `__MACOSX`). Or the file of one image, whatever its suffix.
        table: the file to write: file (relative to the folder), label, probability, and one column a class; for another
            task than classification, its own columns. A leading `~` is the home folder; a symbolic link is followed.
            Rows are collected beside the table, in `.partial`, which becomes the table at the end.
        batch_size: images to classify at once, at least 1.
        overwrite: whether an existing table may be replaced.

    Returns:
        The counts and errors. After Ctrl-C or an error, the rows so far are in `.partial`.

    Raises:
        FileNotFoundError: the folder is missing or holds no image.
        ImageError: no image could be read.
        ValueError: the classifier has no preprocessing or needs each image's label, batch_size is below 1, or a link
            leads to a folder above it.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    classifier.conditioning.check_unlabelled()
    paths, left_out = list_images(folder)
    report = Report(len(paths), left_out=left_out)
    check_target(table, overwrite=overwrite)
    # Rows go to a separate file, which stays when the run does not reach its end.
    table = expand_user(table).resolve()
    partial = table.with_name(table.name + ".partial")
    with partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        write_rows(file, [["file", *classifier.task.columns(classifier.class_names)]])
        try:
            _predict(classifier, folder, paths, batch_size, file, report)
        except KeyboardInterrupt:
            report.interrupted = True
    if not report.interrupted and not report.done:
        partial.unlink()
        raise report.skipped[0]
    if not report.interrupted:
        os.replace(partial, table)
    return report


def prediction_lines(classifier: DiffusionClassifier, prediction: Any) -> list[str]:
    """What the console shows of one image's prediction: the likeliest classes with their probabilities; for another
    task than classification, its columns.
    """
    if not isinstance(prediction, Prediction):
        columns = classifier.task.columns(classifier.class_names)
        row = cast(RowTask, classifier.task).row(prediction)
        return [f"{name:<15}{value}" for name, value in zip(columns, row, strict=True)]
    # Of equal ones the first, as the label is chosen.
    ranked = sorted(prediction.probabilities.items(), key=lambda pair: -pair[1])
    lines = [f"{probability:6.1%}  {name}" for name, probability in ranked[:_SHOWN]]
    left = len(ranked) - len(lines)
    return [*lines, f"{sum(value for _, value in ranked[_SHOWN:]):6.1%}  {left} other classes"] if left else lines


def list_images(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The images below a folder in the order of their paths, and how many other files there are by suffix."""
    if folder.is_file():
        return [folder], Counter()
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}, and no such image")
    found = find_images(folder)
    if not found.images:
        other = f"; its files are {in_words(found.left_out)}" if found.left_out else ""
        raise FileNotFoundError(f"{folder} holds no image{other}; looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
    return sorted(folder / name for name in found.images), found.left_out


def _predict(
    classifier: DiffusionClassifier, folder: Path, paths: list[Path], size: int, file: TextIO, report: Report
) -> None:
    with tqdm(total=len(paths), unit="image") as bar:
        for start in range(0, len(paths), size):
            readable, images = [], []
            for path in paths[start : start + size]:
                try:
                    images.append(classifier.preprocess(path))
                    readable.append(path)
                except ImageError as error:
                    report.skipped.append(error)
            for path, found in zip(readable, classifier.predict(images, batch_size=size), strict=True):
                name = path.name if path == folder else path.relative_to(folder)
                write_rows(file, [[name, *cast(RowTask, classifier.task).row(found)]])
                report.done += 1
            bar.update(min(size, len(paths) - start))
