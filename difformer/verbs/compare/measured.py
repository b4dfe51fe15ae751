"""What evaluations have left of several classifiers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difformer.checkpoints.weights import read_metadata
from difformer.config.reading import build
from difformer.engine.runtime.locating import classifier_file
from difformer.engine.runtime.result_folder import read_measurements
from difformer.engine.runtime.run_folder import RunFolder
from difformer.files import expand_user
from difformer.tables import read_rows
from difformer.tasks.dense import SCORES, read_scores
from difformer.verbs.eval.evaluate import METRICS, classifier_values, evaluate_classifier
from difformer.verbs.eval.recipe import EvaluationRecipe

# The files of a comparison.
PAGE, RESULTS = "compare.html", "compare.json"
_PREDICTIONS = "predictions.csv"
_REMEDY = "`difformer eval … --overwrite` makes it again"


@dataclass(frozen=True, eq=False)
class Measured:
    """A classifier on a split.

    Attributes:
        name: what it is called here.
        metrics: as in `metrics.json`.
        split: whose images they are of.
        digest: of the split.
        ids: (N,) of the images, ascending.
        kept: of each image: of a classification `correct`, (N,) whether it was recognised, and `confusion`, the (C, C)
            counts of all; of a dense task the arrays of its file `SCORES`.
        task: `type` and `arguments` of a dense task; None of a classification.
        class_names: C.
        parameters: that were trained; None where no run says so.
        history: records of the run's epochs; empty where there is no run.
    """

    name: str
    metrics: Mapping[str, Any]
    split: str
    digest: str
    ids: NDArray[np.int64]
    kept: Mapping[str, NDArray[Any]]
    task: Mapping[str, Any] | None
    class_names: tuple[str, ...]
    parameters: int | None
    history: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Method:
    """What is compared: a classifier, or several that differ in their seed.

    Attributes:
        name: what it is called here.
        runs: one or more, measured on the same images.
    """

    name: str
    runs: tuple[Measured, ...]

    @property
    def correct(self) -> NDArray[np.float64]:
        """(N,) the share of the runs that recognised each image."""
        return np.mean([run.kept["correct"] for run in self.runs], axis=0)

    def scores(self, metric: str) -> list[float]:
        """The number of a metric for each run."""
        return [run.metrics[metric] for run in self.runs]


def read_method(source: str, split: str, name: str, trust: str | Sequence[str] = ()) -> Method:
    """The measurements of a run, of an evaluation, or of a folder with a run for each seed (`seed0`, `seed1`, …).

    Args:
        source, split, name, trust: as for `read_measured`.

    Raises:
        FileNotFoundError: the run of a seed is not finished.
        And as `read_measured`.
    """
    folder = expand_user(source)
    found = [] if RunFolder(folder).recipe.exists() else [recipe.parent for recipe in folder.glob("seed*/recipe.yaml")]
    # seed10 after seed9.
    seeds = sorted(found, key=lambda run: (len(run.name), run.name))
    if not seeds:
        return Method(name, (read_measured(source, split, name, trust),))
    for run in seeds:
        if not RunFolder(run).results.exists():
            raise FileNotFoundError(f"{run} is not finished; the same `difformer train` resumes it")
    return Method(name, tuple(read_measured(str(run), split, f"{name}/{run.name}", trust) for run in seeds))


def read_measured(source: str, split: str, name: str, trust: str | Sequence[str] = ()) -> Measured:
    """The measurements of a run, which are made where they are missing or of other weights than the run has now, or
    those that `difformer eval` has left.

    Args:
        source: the run's folder, or that of an evaluation.
        split: of a run.
        name: what to call it.
        trust: as for `evaluate_classifier`.

    Raises:
        FileNotFoundError: it is neither, or a run that has no classifier yet.
        ValueError: the tables in it are damaged.
        And as `evaluate_classifier`.
    """
    folder = expand_user(source)
    run = RunFolder(folder)
    results = folder
    if run.recipe.exists():
        results = folder / f"eval-{split}"
        if _measured_weights(results) != read_metadata(classifier_file(source))["weights_sha256"]:
            recipe = build(EvaluationRecipe, {**classifier_values(source, trust=trust), "split": split, "trust": trust})
            evaluate_classifier(recipe, overwrite=True)
    elif not (folder / METRICS).exists():
        raise FileNotFoundError(f"{source} is neither the folder of a run nor one that `difformer eval` wrote")
    parameters = run.read_results().get("trained_parameters") if run.results.exists() else None
    history = run.read_history() if run.metrics.exists() else []
    report = read_measurements(results, METRICS, _REMEDY)
    if "top1" not in report.get("metrics", {}) and not (results / SCORES).exists():
        raise ValueError(
            f"{source} is an evaluation of a task whose images cannot be compared one by one; give evaluations of "
            "classifications, segmentations, detections or keypoints"
        )
    try:
        return _read(results, report, name, parameters, history)
    except (KeyError, IndexError, ValueError, FileNotFoundError) as error:
        raise ValueError(f"{results} is damaged ({error!r}); {_REMEDY}") from error


def _measured_weights(results: Path) -> str | None:
    """The digest of the weights that an evaluation measured; None where there is none that says so."""
    try:
        digest: str = read_measurements(results, METRICS, _REMEDY)["classifier"]["weights_sha256"]
        return digest
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _read(
    results: Path,
    report: Mapping[str, Any],
    name: str,
    parameters: int | None,
    history: Sequence[Mapping[str, Any]],
) -> Measured:
    common: dict[str, Any] = {
        "name": name, "metrics": report["metrics"], "split": report["data"]["split"],
        "digest": report["data"]["digest"], "parameters": parameters, "history": history,
    }  # fmt: skip
    if (task := report.get("task")) is not None:
        scores = read_scores(results)
        return Measured(ids=scores["ids"], kept=scores, class_names=tuple(report["outputs"]), task=task, **common)
    with (results / _PREDICTIONS).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        columns, *cells = read_rows(file)
    with (results / "confusion.csv").open(newline="", encoding="utf-8") as file:
        header, *counts = read_rows(file)
    rows = sorted((dict(zip(columns, row, strict=True)) for row in cells), key=lambda row: int(row["id"]))
    kept = {
        "correct": np.array([row["label"] == row["predicted"] for row in rows]),
        "confusion": np.array([[int(cell) for cell in line[1:]] for line in counts]),
    }
    ids = np.array([int(row["id"]) for row in rows])
    return Measured(ids=ids, kept=kept, class_names=tuple(header[1:]), task=None, **common)
