"""The methods of a quickstart, one after another, and what each reached."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from difformer.data.dataset import TEST
from difformer.engine.config.recipe import Recipe
from difformer.engine.loop.trainer import Clock
from difformer.engine.runtime.progress import Stages
from difformer.engine.runtime.resources import Resources
from difformer.engine.runtime.result_folder import read_measurements
from difformer.engine.runtime.run_folder import RunFolder
from difformer.files import MADE_ANEW, read_json, sealed
from difformer.tables import read_rows
from difformer.verbs.extract.extract import extract
from difformer.verbs.probe.probe import probe
from difformer.verbs.quickstart.pixels import classify_pixels
from difformer.verbs.quickstart.plan import KNN, SVM, Plan, PlannedRun
from difformer.verbs.train.train import train

SECONDS, FEATURES = "seconds.json", "features"
# By what they are called in results; `Scores` says the rest.
METRICS = ("top1", "mean_per_class", "macro_f1")


@dataclass(frozen=True)
class MethodResult:
    """What a method reached on the test images.

    Attributes:
        method: its name in the plan.
        scores: one for each seed, or draw of images: the numbers that `METRICS` names, in [0, 1].
        confusion: (C, C) counts over all seeds; rows are true classes.
        parameters: that were trained; None where the method has none.
        seconds: of all seeds; features that several methods read are written beforehand, and not in it.
        note: what was chosen, or where it starts.
    """

    method: str
    scores: tuple[Mapping[str, float], ...]
    confusion: tuple[tuple[int, ...], ...]
    parameters: int | None
    seconds: float
    note: str = ""

    def spread(self, metric: str) -> tuple[float, float | None]:
        """Mean and standard deviation over seeds (of a sample, so not of a single one), in %."""
        values = [100 * score[metric] for score in self.scores]
        return mean(values), stdev(values) if len(values) > 1 else None


def measure_methods(plan: Plan, folder: RunFolder, resources: Resources) -> list[MethodResult]:
    """Carries out everything that is not done yet.

    Args:
        plan: what to do.
        folder: of everything.
        resources: shared by all methods.

    Raises:
        Stopped: a signal asked to stop; the same command resumes.
        And as `train`, `probe` and `classify_pixels`.
    """
    by_method: dict[str, list[PlannedRun]] = {}
    for run in plan.runs:
        by_method.setdefault(run.method, []).append(run)
    costs = [1.0, 1.0, max(map(_features_cost, plan.runs)), *(_training_cost(run.recipe) for run in plan.runs)]
    with closing(Stages(plan.title, costs)) as stages:
        with stages.stage(plan.titles[SVM]):
            results = [_pixels(plan, folder, resources)]
        with stages.stage(plan.titles[KNN]):
            results.append(_neighbours(plan, folder, resources))
        with stages.stage("features for the heads"):
            _extract(plan, folder, resources)
        for method, runs in by_method.items():
            found = []
            for run in runs:
                with stages.stage(f"{plan.titles[method]}, seed {run.seed}"):
                    found.append(_train(run, folder, resources))
            results.append(_together(plan, method, runs, found, folder))
    return results


def _features_cost(run: PlannedRun) -> float:
    """Passes of the backbone over the training images that the features of a run take."""
    recipe = run.recipe
    return recipe.cache.views * max(1, len(recipe.extractor.timesteps)) if recipe.features == "cached" else 0.0


def _training_cost(recipe: Recipe) -> float:
    """Passes of the backbone over the training images that take about as long as the training: a head alone is a tenth
    of one, and DifFeed goes through it twice, and back."""
    if recipe.features == "cached":
        return 0.1 * recipe.training.epochs
    passes = 4 if recipe.extractor.feedback_taps else 1
    return float(passes * recipe.training.epochs * max(1, len(recipe.extractor.timesteps)))


def _pixels(plan: Plan, folder: RunFolder, resources: Resources) -> MethodResult:
    found = {}
    for suffix, data in plan.draws.items():
        name = f"{SVM}{suffix}"
        file = folder.path / name / "results.json"
        if not file.exists():
            with _timed(folder, name):
                fitted = classify_pixels(*resources.splits(data, ("train", TEST)).values())
            file.parent.mkdir(exist_ok=True)
            written = {"test": fitted.metrics.to_dict(), "C": fitted.strength, "train_images": fitted.images}
            folder.write_json(f"{name}/results.json", sealed(written))
        found[name] = read_json(file, MADE_ANEW)
    # Folders of earlier versions do not say how many.
    images = {f"{result['train_images']:,}" for result in found.values() if "train_images" in result}
    note = f", of {' or '.join(sorted(images))} training images" if images else ""
    strengths = ", ".join(f"{result['C']:g}" for result in found.values())
    return _untrained(SVM, {name: result["test"] for name, result in found.items()}, folder, f"C = {strengths}{note}")


def _neighbours(plan: Plan, folder: RunFolder, resources: Resources) -> MethodResult:
    found, chosen = {}, []
    for suffix, data in plan.draws.items():
        name = f"{KNN}{suffix}"
        own = folder.path / name
        if (own / "results.json").exists():
            result, confusion = _read_probe(own)
        else:
            with _timed(folder, name):
                done = probe(replace(plan.knn, data=data, output=str(own)), resources=resources)
            assert done is not None
            assert done.metrics is not None
            result, confusion = done.results, done.metrics.confusion.tolist()
        found[name] = result["test"] | {"confusion": confusion}
        chosen.append(f"{result['chosen']['k']:g}")
    return _untrained(KNN, found, folder, f"k = {', '.join(chosen)}")


def _read_probe(folder: Path) -> tuple[dict[str, Any], list[list[int]]]:
    """Results and confusion of a probe that was done earlier."""
    results = read_measurements(folder, "results.json", MADE_ANEW)
    with (folder / "confusion.csv").open(newline="", encoding="utf-8") as table:
        return results, [[int(cell) for cell in row[1:]] for row in read_rows(table)[1:]]


def _extract(plan: Plan, folder: RunFolder, resources: Resources) -> None:
    """Writes the features of the head that reads most; the others find theirs among them, if they are there.

    For each draw of images by itself, as far as any run still reads them.
    """
    by_draw: dict[int, list[Recipe]] = {}
    for run in plan.runs:
        if run.recipe.features == "cached":
            by_draw.setdefault(run.recipe.data.seed, []).append(run.recipe)
    for recipes in by_draw.values():
        if not all(RunFolder(recipe.output).finished() for recipe in recipes):
            richest = max(recipes, key=_features_read)
            with _timed(folder, FEATURES):
                extract(richest, resources=resources)


def _features_read(recipe: Recipe) -> int:
    # None stands for the one that suits the backbone.
    return max(1, len(recipe.extractor.taps)) * max(1, len(recipe.extractor.timesteps))


def _untrained(method: str, tests: Mapping[str, Mapping[str, Any]], folder: RunFolder, note: str) -> MethodResult:
    """Of a method that is measured once for each draw of images.

    Args:
        method: its name in the plan.
        tests: what it reached, by the name of its folder.
        folder: of everything.
        note: what was chosen.
    """
    confusion = np.sum([test["confusion"] for test in tests.values()], axis=0)
    seconds = seconds_of(folder)
    return MethodResult(
        method,
        tuple(map(_scores, tests.values())),
        tuple(map(tuple, confusion.tolist())),
        None,
        sum(seconds.get(name, 0.0) for name in tests),
        note,
    )


def _train(run: PlannedRun, folder: RunFolder, resources: Resources) -> dict[str, Any]:
    """The run's results, which are read where it is finished."""
    results = RunFolder(run.recipe.output).finished()
    if results is not None:
        return results
    with _timed(folder, run.name):
        return train(run.recipe, more_to_come=True, resources=resources)


def _together(
    plan: Plan, method: str, runs: Sequence[PlannedRun], found: Sequence[Mapping[str, Any]], folder: RunFolder
) -> MethodResult:
    confusion = np.sum([results["test"]["confusion"] for results in found], axis=0)
    seconds = seconds_of(folder)
    init = plan.heads[method].init
    return MethodResult(
        method,
        tuple(_scores(results["test"]) for results in found),
        tuple(map(tuple, confusion.tolist())),
        found[0]["trained_parameters"],
        sum(seconds.get(run.name, 0.0) for run in runs),
        f"starts from {plan.titles[init]} of the same seed, whose epochs and seconds come before its own"
        if init
        else "",
    )


def _scores(test: Mapping[str, Any]) -> dict[str, float]:
    return {name: test[name] for name in METRICS}


@contextmanager
def _timed(folder: RunFolder, name: str) -> Iterator[None]:
    """Adds to the time that a part has taken, also when it is stopped and resumes later."""
    clock = Clock()
    try:
        yield
    finally:
        seconds = seconds_of(folder)
        seconds[name] = round(seconds.get(name, 0.0) + clock.seconds, 2)
        folder.write_json(SECONDS, sealed(seconds))


def seconds_of(folder: RunFolder) -> dict[str, float]:
    """What each part has taken, by name."""
    file = folder.path / SECONDS
    seconds: dict[str, float] = read_json(file, MADE_ANEW) if file.exists() else {}
    return seconds
