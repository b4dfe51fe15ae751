"""A classifier together with its backbone, for somebody else; the body of `difformer export`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from difformer.classifier import load_classifier, read_description
from difformer.classifier.hub import FILES
from difformer.config.reading import read_yaml, value_at
from difformer.engine.runtime.locating import classifier_file, warn_of_unfinished
from difformer.engine.runtime.result_folder import ResultFolder
from difformer.engine.runtime.run_folder import RunFolder


def export_classifier(
    source: str,
    output: str | Path,
    *,
    backbone: str | None = None,
    weights_folder: str | Path | None = None,
    download: bool = False,
    trust: str | Iterable[str] = (),
    overwrite: bool = False,
) -> Path:
    """Writes a folder with a classifier, its backbone and a model card. It loads from there without anything else:
    `difformer predict FOLDER`, `load_classifier(FOLDER / "model.safetensors")`.

    Args:
        source: folder of a run, a classifier file, the name of one that ships, or hf://owner/name.
        output: the folder to write.
        backbone: where the classifier's backbone is, when it is not found by its name.
        weights_folder: where named weights lie, in place of the usual folders.
        download: whether what is not on this machine may be fetched.
        trust: a package, or several, whose code may run, for a classifier with a head, task or backbone of theirs.
        overwrite: replace an earlier export.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: the classifier or its backbone is not there.
        FileExistsError: the folder holds an earlier export, or something else.
        ValueError: the backbone is of a family whose weights this package cannot write.
        And as `load_classifier`.
    """
    folder = ResultFolder(output, FILES)
    folder.check(overwrite=overwrite)
    file, run = classifier_file(source, download=download), RunFolder(source)
    warn_of_unfinished(source)
    recipe = read_yaml(run.recipe) if run.recipe.exists() else {}
    if backbone is None:
        # Where the run found it, which its name alone need not tell.
        backbone = value_at(recipe, "backbone.name")
        weights_folder = weights_folder or value_at(recipe, "backbone.folder")
    classifier = load_classifier(file, backbone=backbone, folder=weights_folder, download=download, trust=trust)
    notes = dict(read_description(file)["metadata"])
    epoch = notes.pop("metrics", None)
    measured: Mapping[str, Any] = (run.read_results().get("test") if run.results.exists() else epoch) or {}
    # Of the record of an epoch, what was measured of images that it did not learn from.
    told = {name for metric in classifier.task.metrics for name in (metric, f"{metric}_interval")}
    metrics = {name: value for name, value in measured.items() if name in told}
    if metrics:
        metrics |= {"num_images": measured["num_images"]} if "num_images" in measured else {}
        notes |= {"metrics": metrics, "dataset": value_at(recipe, "data.name") or "unknown"}
    with folder.write() as temporary:
        classifier.save_pretrained(temporary, with_backbone=True, **notes)
    return folder.path
