"""Masks, boxes or points for a folder of images, as files; resumes where it was stopped."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from difformer.checkpoints import weights_digest
from difformer.classifier import DiffusionClassifier
from difformer.data import ImageError, read_image
from difformer.files import MADE_ANEW, check_target, errors_name, expand_user, write_atomically
from difformer.tables import write_table
from difformer.tasks import DenseTask
from difformer.verbs.predict.predict import Report, list_images

TABLE = "predictions.csv"
# A line for the model, and one for each image that is done; becomes the table at the end.
_PROGRESS = "predictions.partial.jsonl"


def predict_dense(
    classifier: DiffusionClassifier, task: DenseTask, folder: Path, output: Path, *, overwrite: bool = False
) -> Report:
    """Predicts for every image in a folder and its subfolders, at the image's own size, with a progress bar.

    Args:
        classifier: of the task.
        task: writes the files of each image.
        folder: searched as by `predict_folder`.
        output: a folder, which gets `predictions.csv` and the task's files: masks and overlays, objects in COCO's
            format, or points. What an earlier call has left there unfinished is kept, if it was by the same model.
        overwrite: replace the results of a finished call, or of another model.

    Returns:
        The counts and errors. After Ctrl-C or an error, the same call resumes.

    Raises:
        FileNotFoundError: the folder is missing or holds no image.
        FileExistsError: there are finished results.
        ImageError: no image could be read.
        ValueError: the classifier needs each image's label, or what is there is of another model.
    """
    classifier.conditioning.check_unlabelled()
    paths, left_out = list_images(folder)
    # Of a single image, its folder.
    folder = folder if folder.is_dir() else folder.parent
    output = expand_user(output)
    if len(paths) > 1 and output.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"the output {output} lies in the folder of the images, {folder}; choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    check_target(output / TABLE, overwrite=overwrite)
    report, names = Report(len(paths), left_out=left_out), classifier.class_names
    stems = _stems([path.relative_to(folder).as_posix() for path in paths])
    model = {
        "model": weights_digest(classifier.trained_state()), "task": task.arguments, "folder": str(folder.resolve()),
    }  # fmt: skip
    done = _finished(output / _PROGRESS, model, folder, stems, overwrite=overwrite)
    # What is left of earlier results is replaced image by image, and no longer belongs to a table.
    (output / TABLE).unlink(missing_ok=True)
    with (output / _PROGRESS).open("a", encoding="utf-8") as progress:
        try:
            for path, (name, stem) in zip(tqdm(paths, unit="image"), stems.items(), strict=True):
                if name not in done:
                    try:
                        picture = read_image(path)
                    except ImageError as error:
                        report.skipped.append(error)
                        continue
                    (found,) = classifier.predict(picture)
                    rows = task.rows(found, names)
                    # A full disk says which of the images was the first without a place.
                    with errors_name(output / stem):
                        task.write(output, stem, picture, found, names)
                        progress.write(
                            json.dumps({"file": name, "stem": stem, "of": _state(path), "rows": rows}) + "\n"
                        )
                        progress.flush()
                    done[name] = rows
                report.done += 1
        except KeyboardInterrupt:
            report.interrupted = True
            return report
    if not report.done:
        raise report.skipped[0]
    rows = [[name, *row] for name in stems if name in done for row in done[name]]
    task.finish(output, [stem for name, stem in stems.items() if name in done], names)
    # The table comes last, since it says that all is there.
    with write_atomically(output / TABLE, overwrite=overwrite) as temporary:
        write_table(temporary, ["file", *task.columns(names)], rows)
    (output / _PROGRESS).unlink()
    return report


def _stems(names: Sequence[str]) -> dict[str, str]:
    """By file name, what its results are called: the name without suffix; the whole one for all files, where two would
    be called the same."""
    stems = {name: os.path.splitext(name)[0] for name in names}
    return stems if len(set(stems.values())) == len(stems) else {name: name for name in names}


def _state(path: Path) -> list[int]:
    """By which a file is known that was not replaced: bytes and time of the last change."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _finished(
    file: Path, model: dict[str, Any], folder: Path, stems: Mapping[str, str], *, overwrite: bool
) -> dict[str, list[list[Any]]]:
    """The rows of the images that an earlier call has finished, by file name; begins the file anew with these.

    Raises:
        ValueError: it is of another model or folder.
    """
    lines = list(_lines(file))
    if lines and lines[0] != model and not overwrite:
        raise ValueError(
            f"{file} was left by another model, by other settings of its task, or of another folder; {MADE_ANEW}, or "
            "give another --output"
        )
    kept = [
        line
        for line in (lines[1:] if lines and lines[0] == model and not overwrite else ())
        # Of files that are as they were, and whose results are called as they would be now.
        if stems.get(line["file"]) == line["stem"] and line["of"] == _state(folder / line["file"])
    ]
    with write_atomically(file, overwrite=True) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in (model, *kept)), encoding="utf-8")
    return {line["file"]: line["rows"] for line in kept}


def _lines(file: Path) -> Iterator[Any]:
    """The lines that can be read; the last one of a call that was killed may be cut off."""
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return
