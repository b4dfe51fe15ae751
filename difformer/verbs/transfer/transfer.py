"""Runs a transfer suite: choices on held-out training images, then every seed, then the tables."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from difformer.config.reading import dump
from difformer.engine.loop.trainer import DivergedError
from difformer.engine.runtime.processes import create_accelerator
from difformer.engine.runtime.progress import Stages
from difformer.engine.runtime.resources import Resources, release_memory
from difformer.engine.runtime.run_folder import RunFolder, environment
from difformer.report.transfer import TransferRow, csv_table, markdown_table
from difformer.verbs.train.train import train
from difformer.verbs.transfer.suite import PlannedRun, Suite, TransferRecipe


@dataclass
class TransferResult:
    """The results of a suite.

    Attributes:
        folder: of the suite, with table.md and table.csv.
        rows: one for each data set and head.
        failures: runs that failed, with their errors.
    """

    folder: Path
    rows: list[TransferRow]
    failures: dict[str, str] = field(default_factory=dict)


class _Runner:
    """Trains runs of a suite one after another, and notes those that fail."""

    def __init__(self, accelerator: Any, total: int, overwrite: bool) -> None:
        self.accelerator = accelerator
        self.failures: dict[str, str] = {}
        self.stages = Stages("transfer", [1.0] * total, shown=accelerator.is_main_process)
        self._overwrite = overwrite
        self._resources = Resources()

    def skip(self, count: int, reason: str, pair: str) -> None:
        self.stages.skip(count)
        self.fail(pair, f"not tested: {reason}")

    def fail(self, name: str, message: str) -> None:
        self.failures[name] = message
        if self.accelerator.is_main_process:
            print(f"difformer: failed: {name}: {message}", file=sys.stderr, flush=True)

    def __call__(self, run: PlannedRun) -> dict[str, Any] | None:
        """The run's results; None when it failed.

        Raises:
            DivergedError: its loss was not finite.
            Exception: any other error with several processes, since the others would wait for ever.
        """
        try:
            with self.stages.stage(run.name):
                return train(run.recipe, overwrite=self._overwrite, more_to_come=True, resources=self._resources)
        except DivergedError:
            raise
        except Exception as error:
            if self.accelerator.num_processes > 1:
                raise
            self.fail(run.name, f"{type(error).__name__}: {error}")
            return None
        finally:
            release_memory()


def transfer(recipe: TransferRecipe, *, overwrite: bool = False) -> TransferResult:
    """Trains and tests every head on every data set; resumes a suite that was interrupted.

    A run that fails is reported, and the others continue; with several processes it ends the suite.

    Args:
        recipe: of the suite.
        overwrite: start anew although runs are in the folder.

    Raises:
        ValueError: the recipe is wrong.
        FileExistsError: the folder holds something else.
        Stopped: a signal asked to stop; the same command resumes.
    """
    suite = Suite(recipe)
    accelerator = create_accelerator(suite.finals(*suite.pairs[0])[0].recipe.training.precision)
    folder = RunFolder(recipe.output, record="transfer.yaml")
    folder.check()
    # The other processes must not find what the main process writes next.
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        folder.create()
        folder.write_text(folder.recipe.name, dump(recipe))
        folder.write_json("environment.json", environment(accelerator.num_processes, accelerator.device))
    runner = _Runner(accelerator, len(suite), overwrite)
    rows = [TransferRow(*pair, suite.metric(pair[0]), planned=len(recipe.seeds)) for pair in suite.pairs]
    result = TransferResult(folder.path, rows, runner.failures)
    try:
        for place, pair in enumerate(suite.pairs):
            rows[place] = _pair(suite, runner, *pair)
            if accelerator.is_main_process:
                written = {"rows": [asdict(row) for row in rows], "failures": result.failures}
                folder.write_json(folder.results.name, written)
                folder.write_text("table.csv", csv_table(rows, recipe.published, suite.metrics))
                notes = [f"{name}: {message}" for name, message in result.failures.items()]
                about: dict[str, Any] = {"source": recipe.source, "holdout": recipe.holdout, "notes": notes}
                text = markdown_table(rows, recipe.published, suite.metrics, **about)
                folder.write_text("table.md", text)
    finally:
        runner.stages.close()
        accelerator.end_training()
    return result


def _pair(suite: Suite, runner: _Runner, dataset: str, head: str) -> TransferRow:
    """Chooses and tests one head on one data set."""
    metric, planned = suite.metric(dataset), len(suite.recipe.seeds)
    try:
        chosen = _choose(suite, runner, dataset, head)
    except _NoChoice as error:
        runner.skip(planned, str(error), f"{dataset}/{head}")
        return TransferRow(dataset, head, metric, planned=planned)
    scores: dict[str, list[float]] = {name: [] for name in suite.metrics}
    for run in suite.finals(dataset, head, chosen):
        try:
            found = runner(run)
        except DivergedError as error:
            runner.fail(run.name, str(error))
            continue
        if found is not None:
            for name, values in scores.items():
                # Some metrics are not measured everywhere, such as boundary F or AP of large objects.
                if (value := found["test"].get(name)) is not None:
                    values.append(value)
    return TransferRow(dataset, head, metric, chosen, scores, planned)


class _NoChoice(Exception):
    """Candidates could not be compared."""


def _choose(suite: Suite, runner: _Runner, dataset: str, head: str) -> Mapping[str, Any]:
    """The best candidate on held-out images, the first of equals; one whose loss was not finite cannot be chosen."""
    runs = suite.choices(dataset, head)
    if not runs:
        return suite.finals(dataset, head)[0].values
    scored: list[tuple[float, PlannedRun]] = []
    failed = 0
    for run in runs:
        try:
            found = runner(run)
        except DivergedError as error:
            runner.accelerator.print(f"{run.name}: {error}; it cannot be chosen", flush=True)
            continue
        if found is None:
            failed += 1
        else:
            scored.append((found["last"][f"validation_{suite.metric(dataset)}"], run))
    if failed:
        # A choice among the others might change once these have run.
        raise _NoChoice(f"{failed} of {len(runs)} candidates failed; the same command tries them again")
    if not scored:
        raise _NoChoice("the loss of every candidate was not finite")
    metric = suite.metrics[suite.metric(dataset)]
    best, run = max(scored, key=lambda pair: metric.sign * pair[0])
    shown = f"{suite.metric(dataset)} {f'{best:.2%}' if metric.share else f'{best:.4g}'}"
    runner.accelerator.print(f"chosen {run.name}: {shown} on held-out images", flush=True)
    return run.values
