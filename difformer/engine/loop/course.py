"""A training run from start to results, whatever it trains: its folder, resuming, records of epochs."""

import os
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from difformer.config.provenance import carried
from difformer.config.reading import dump
from difformer.data import ImageDataset
from difformer.engine.loop.epochs import run_epochs
from difformer.engine.loop.resuming import SavedState, saved_state
from difformer.engine.loop.state import Progress
from difformer.engine.loop.trainer import Trainer
from difformer.engine.runtime.processes import create_accelerator, gathered, on_main
from difformer.engine.runtime.run_folder import RunFolder, environment, flat
from difformer.report.curves import draw_curves


class TrainingRun(Protocol):
    """The parts of a run, and what differs between kinds of runs. Everything is called on every process."""

    @property
    def trainer(self) -> Trainer:
        """The trainer; made on first access, which may take long and is not done for a run that cannot resume."""
        ...

    @property
    def images(self) -> Mapping[str, ImageDataset]:
        """The data sets by split."""
        ...

    @property
    def sources(self) -> dict[str, str]:
        """Digests, by name, of what must be the same when a run is resumed."""
        ...

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The weight files that results belong to."""
        ...

    def describe(self, progress: Progress) -> str:
        """The progress bar's text."""
        ...

    def resume(self) -> None:
        """Called before the first step when the trainer has loaded a saved state.

        Raises:
            CheckpointError: another part of the run is damaged, so it could not be finished.
        """
        ...

    def end_epoch(self, record: dict[str, Any]) -> bool:
        """Adds measurements to the epoch's record and writes files of the epoch; returns whether to stop early."""
        ...

    def finish(self, last: dict[str, Any]) -> dict[str, Any]:
        """Writes `outputs` and does what remains after the last epoch, whose record is given; returns results to add
        to those of every run.
        """
        ...


def carry_out(
    recipe: Any,
    build: Callable[[Any, Any, Mapping[str, str] | None], TrainingRun],
    may_change: Collection[str],
    *,
    comparable: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
    overwrite: bool = False,
    more_to_come: bool = False,
) -> dict[str, Any]:
    """Trains, or resumes a run that was interrupted.

    Args:
        recipe: with `output`, `training` and `trackers`.
        build: makes the run's parts from recipe, accelerator and, for a resumed run, the sources it began with.
        may_change: keys of the recipe whose values may differ when a run is resumed.
        comparable: brings a recipe's values into a form that is equal for equal runs.
        overwrite: start a new run even if there is one in the folder.
        more_to_come: other runs follow in these processes, so the processes stay connected.

    Returns:
        The results, as in `results.json`.

    Raises:
        As `difformer.verbs.train.train.train`.
    """
    folder = RunFolder(recipe.output)
    accelerator = create_accelerator(recipe.training.precision, trackers=recipe.trackers, folder=folder.path)
    saved = None if overwrite else saved_state(folder, recipe, may_change, comparable)
    # Processes that find different states, on disks of their own, would train different weights.
    found = gathered(accelerator, [None if saved is None else vars(saved.state.progress)])
    if any(other != found[0] for other in found):
        raise OSError(f"the processes do not find the same state in {folder.path}; it must be on a disk they share")
    results = folder.finished() if saved is not None and saved.state.progress.finished else None
    if results is not None:
        accelerator.print(f"this run is finished; its results are in {folder.path}. For another, give another --output")
        return results
    if saved is None and not overwrite and folder.results.exists():
        raise FileExistsError(
            f"{folder.path} holds a finished run whose training state is gone; choose another --output, or --overwrite"
        )
    folder.check()
    # The main process writes from here on, and the others must not find that in the checks above.
    accelerator.wait_for_everyone()
    try:
        on_main(accelerator, folder.claim)
        run = build(recipe, accelerator, None if saved is None else saved.state.sources)
        return _Course(recipe, folder, accelerator, run, saved).follow(overwrite=overwrite)
    finally:
        if more_to_come:
            for tracker in accelerator.trackers:
                tracker.finish()
        else:
            accelerator.end_training()
        folder.release()


class _Course:
    """A run in its folder, from its state or the beginning to the results."""

    def __init__(
        self, recipe: Any, folder: RunFolder, accelerator: Any, run: TrainingRun, saved: SavedState | None
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self.accelerator = accelerator
        self.run = run
        # On every process: listing all images on one process alone may take longer than the others would wait.
        self.sources = run.sources
        self.history: list[dict[str, Any]] = []
        self.resumed_from = None if saved is None else saved.file
        if saved is None:
            return
        state = saved.state
        for name in {**state.sources, **self.sources}:
            begun = state.sources.get(name)
            # Earlier versions had another digest of images.
            same = begun == self.sources.get(name)
            if not same and not (name == "training images" and begun == run.images["train"].former_digest):
                raise ValueError(
                    f"the {name} are not those that the run in {folder.path} was begun with; restore them, or choose "
                    f"another --output"
                )
        run.trainer.restore(state, str(saved.file))
        run.resume()
        self.history = state.history
        if not state.progress.finished:
            accelerator.print(f"resuming with epoch {state.progress.epoch + 1}, step {state.progress.step + 1}")

    def follow(self, *, overwrite: bool) -> dict[str, Any]:
        """Trains to the end; returns the results."""
        # Made before the files of an earlier run are removed, since it may raise an error.
        trainer = self.run.trainer
        on_main(self.accelerator, partial(self._prepare, overwrite=overwrite))
        self.accelerator.init_trackers("difformer", config=flat(carried(self.recipe)))
        run_epochs(
            trainer,
            self.accelerator,
            save=partial(on_main, self.accelerator, self._save),
            end_epoch=self._end_epoch,
            describe=self.run.describe,
        )
        progress = trainer.progress
        results = {
            "epochs": progress.epoch + 1,
            "images": progress.images,
            "seed": self.recipe.training.seed,
            "last": self.history[-1],
        }
        if progress.best_epoch is not None:
            results["best"] = next(record for record in self.history if record["epoch"] == progress.best_epoch)
        results |= self.run.finish(self.history[-1])
        on_main(self.accelerator, partial(draw_curves, self.history, self.folder.curves))
        # The results come last, since they say that the run is finished.
        files = (*self.run.outputs, self.folder.metrics)
        return on_main(self.accelerator, partial(self.folder.write_results, results, files))

    def _prepare(self, *, overwrite: bool) -> None:
        if overwrite:
            self.folder.clear()
        if self.resumed_from == self.folder.previous:
            # Replaces the damaged state, which the next save would otherwise keep as the previous one.
            os.replace(self.folder.previous, self.folder.state)
        self.folder.write_text(self.folder.recipe.name, dump(self.recipe))
        self.folder.write_json("environment.json", environment(self.accelerator.num_processes, self.accelerator.device))
        self.folder.write_splits(self.run.images)
        # A run that was killed may have written records after its last state.
        self.folder.write_history(self.history)

    def _save(self) -> None:
        state = self.run.trainer.state(carried(self.recipe), self.sources, self.history)
        state.save(self.folder.state, self.folder.previous)

    def _end_epoch(self, seconds: float, images: int) -> None:
        progress = self.run.trainer.progress
        record: dict[str, Any] = {
            "epoch": progress.epoch + 1,
            "images": progress.images,
            "lr": self.run.trainer.rate,
            "train_loss": progress.loss_sum / max(1, progress.counted),
            "seconds": round(seconds, 3),
            "images_per_second": round(images / max(seconds, 1e-9), 2),
        }
        stops = self.run.end_epoch(record)
        self.history.append(record)
        on_main(self.accelerator, partial(self.folder.append, record))
        self.accelerator.log(
            {name: value for name, value in record.items() if name != "epoch"}, step=progress.epoch + 1
        )
        if stops or progress.epoch + 1 == self.run.trainer.loop.epochs:
            progress.finished = True
        else:
            progress.next_epoch()
