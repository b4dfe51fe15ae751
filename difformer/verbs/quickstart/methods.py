"""Runs the methods of a quickstart one after another, and collects what each reached."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

import numpy as np

from difformer.data.subset import TEST
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
from difformer.verbs.quickstart.plan import KNN, SVM, Plan
from difformer.verbs.train.train import train

SECONDS, FEATURES = "seconds.json", "features"
# Their names in results.
METRICS = ("top1", "mean_per_class", "macro_f1")


@dataclass(frozen=True)
class MethodResult:
    """What a method reached on the test images.

    Attributes:
        method: its name in the plan.
        scores: one for each seed, or draw of images: the numbers that `METRICS` names, in [0, 1].
        confusion: (C, C) counts over all seeds; rows are true classes.
        parameters: number of trained parameters; None for a method without training.
        seconds: of all seeds together, without the time to write features that several methods read.
        note: what was chosen, or which method it starts from.
    """

    method: str
    scores: tuple[Mapping[str, float], ...]
    confusion: tuple[tuple[int, ...], ...]
    parameters: int | None
    seconds: float
    note: str = ""

    def spread(self, metric: str) -> tuple[float, float | None]:
        """Mean and sample standard deviation over seeds, in %; no deviation for a single seed."""
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
    costs = [
        1.0,
        1.0,
        max(_features_cost(run.recipe) for run in plan.runs),
        *(_training_cost(run.recipe) for run in plan.runs),
    ]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    with closing(Stages(plan.title, costs)) as stages:
        with stages.stage(plan.titles[SVM]):
            results = [_pixels(plan, folder, resources)]
        with stages.stage(plan.titles[KNN], "reading"):
            results.append(_neighbours(plan, folder, resources))
        with stages.stage("features for the heads", "extracting"):
            _extract(plan, folder, resources)
        for run in plan.runs:
            with stages.stage(f"{plan.titles[run.method]}, seed {run.seed}"):
                trained = RunFolder(run.recipe.output).finished()
                if trained is None:
                    with _timed(folder, run.name):
                        trained = train(run.recipe, more_to_come=True, resources=resources)
            found.setdefault(run.method, {})[run.name] = trained
    for method, runs in found.items():
        init = plan.heads[method].init
        note = (
            f"starts from {plan.titles[init]} of the same seed, whose epochs and seconds are not counted"
            if init
            else ""
        )
        tests = {name: trained["test"] for name, trained in runs.items()}
        parameters = next(iter(runs.values()))["trained_parameters"]
        results.append(_result(method, tests, folder, note, parameters))
    return results


def _features_cost(recipe: Recipe) -> float:
    """Passes of the backbone over the training images that the features of a run take."""
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
    # Results of earlier versions lack the number of training images.
    images = {f"{result['train_images']:,}" for result in found.values() if "train_images" in result}
    note = f", of {' or '.join(sorted(images))} training images" if images else ""
    strengths = ", ".join(f"{result['C']:g}" for result in found.values())
    return _result(SVM, {name: result["test"] for name, result in found.items()}, folder, f"C = {strengths}{note}")


def _neighbours(plan: Plan, folder: RunFolder, resources: Resources) -> MethodResult:
    found, chosen = {}, []
    for suffix, data in plan.draws.items():
        name = f"{KNN}{suffix}"
        own = folder.path / name
        if (own / "results.json").exists():
            result = read_measurements(own, "results.json", MADE_ANEW)
            with (own / "confusion.csv").open(newline="", encoding="utf-8") as table:
                confusion = [[int(cell) for cell in row[1:]] for row in read_rows(table)[1:]]
        else:
            with _timed(folder, name):
                done = probe(replace(plan.knn, data=data, output=str(own)), resources=resources)
            assert done is not None
            assert done.metrics is not None
            result, confusion = done.results, done.metrics.confusion.tolist()
        found[name] = result["test"] | {"confusion": confusion}
        chosen.append(f"{result['chosen']['k']:g}")
    return _result(KNN, found, folder, f"k = {', '.join(chosen)}")


def _extract(plan: Plan, folder: RunFolder, resources: Resources) -> None:
    """For each draw of images, writes the features of the head that reads most, unless all runs on it are finished.

    The other heads use those of these features that they read.
    """
    by_draw: dict[int, list[Recipe]] = {}
    for run in plan.runs:
        if run.recipe.features == "cached":
            by_draw.setdefault(run.recipe.data.seed, []).append(run.recipe)
    for recipes in by_draw.values():
        if all(RunFolder(recipe.output).finished() for recipe in recipes):
            continue
        # An empty list means one tap, or one timestep: the one that suits the backbone.
        read = [max(1, len(one.extractor.taps)) * max(1, len(one.extractor.timesteps)) for one in recipes]
        with _timed(folder, FEATURES):
            extract(recipes[read.index(max(read))], resources=resources)


def _result(
    method: str,
    tests: Mapping[str, Mapping[str, Any]],
    folder: RunFolder,
    note: str,
    parameters: int | None = None,
) -> MethodResult:
    """Combines what a method reached for each seed, or draw of images.

    Args:
        method: its name in the plan.
        tests: measurements on the test images by name of run or folder.
        folder: of everything.
        note: what was chosen, or which method it starts from.
        parameters: number of trained parameters; None for a method without training.
    """
    confusion = np.sum([test["confusion"] for test in tests.values()], axis=0)
    seconds = seconds_of(folder)
    return MethodResult(
        method,
        tuple({name: test[name] for name in METRICS} for test in tests.values()),
        tuple(map(tuple, confusion.tolist())),
        parameters,
        sum(seconds.get(name, 0.0) for name in tests),
        note,
    )


@contextmanager
def _timed(folder: RunFolder, name: str) -> Iterator[None]:
    """Adds to the time that a part has taken, also when it is stopped and resumed later."""
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
