"""The course of a run, whatever it trains: its folder, going on, records of epochs, results."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, Protocol

from difformer._optional import require
from difformer.data import ImageDataset
from difformer.engine.accelerator import create_accelerator
from difformer.engine.loop.epochs import run_epochs
from difformer.engine.loop.run_folder import RunFolder, environment, flat, saved_state
from difformer.engine.loop.state import Progress, TrainingState
from difformer.engine.loop.trainer import Trainer
from difformer.engine.processes import on_main
from difformer.engine.recipes.reading import dump, plain
from difformer.report.curves import draw_curves


class TrainingRun(Protocol):
    """The parts of a run, and what is its own in it. All is called on every process."""

    @property
    def trainer(self) -> Trainer:
        """What trains."""
        ...

    @property
    def images(self) -> Mapping[str, ImageDataset]:
        """The data sets by split."""
        ...

    @property
    def sources(self) -> dict[str, str]:
        """Digests, by name, of what a run must go on with."""
        ...

    def describe(self, progress: Progress) -> str:
        """The progress bar's text."""
        ...

    def end_epoch(self, record: dict[str, Any]) -> bool:
        """Adds measurements to the record of the epoch, keeps what is to be kept; whether to stop early."""
        ...

    def finish(self) -> dict[str, Any]:
        """Does what remains after the last epoch; gives results to add to those of every run."""
        ...


def carry_out(
    recipe: Any,
    build: Callable[[Any, Any], TrainingRun],
    may_change: Collection[str],
    *,
    overwrite: bool = False,
    more_to_come: bool = False,
) -> dict[str, Any]:
    """Trains, or goes on with a run that was interrupted.

    Args:
        recipe: with `output`, `training` and `trackers`.
        build: makes the run's parts from recipe and accelerator.
        may_change: keys of the recipe that a run may go on with another value of.
        overwrite: start anew although there is a run in the folder.
        more_to_come: other runs follow in these processes, so they stay connected.

    Returns:
        The results, as in `results.json`.

    Raises:
        As `difformer.engine.classification.train.train`.
    """
    accelerator = create_accelerator(recipe)
    folder = RunFolder(recipe.output)
    folder.check()
    state = None if overwrite else saved_state(folder, recipe, may_change)
    _check_same_disk(folder, accelerator, None if state is None else vars(state.progress))
    if state is not None and state.progress.finished and folder.results.exists():
        accelerator.print(
            f"this run is finished; its results are in {folder.path}. For another, choose another --output"
        )
        results: dict[str, Any] = json.loads(folder.results.read_text(encoding="utf-8"))
        return results
    # What the main process writes from here on must not be found by the others above.
    accelerator.wait_for_everyone()
    try:
        on_main(accelerator, folder.claim)
        return _Course(recipe, folder, accelerator, build(recipe, accelerator), state).follow(overwrite=overwrite)
    finally:
        folder.release()
        if more_to_come:
            for tracker in accelerator.trackers:
                tracker.finish()
        else:
            accelerator.end_training()


class _Course:
    """A run in its folder, from its state or the beginning to the results."""

    def __init__(
        self, recipe: Any, folder: RunFolder, accelerator: Any, run: TrainingRun, state: TrainingState | None
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self.accelerator = accelerator
        self.run = run
        # Here, on every process: to know all images may take one longer than others would wait for its word.
        self.sources = run.sources
        self.history: list[dict[str, Any]] = []
        if state is not None:
            self._restore(state)

    def follow(self, *, overwrite: bool) -> dict[str, Any]:
        """Trains to the end; returns the results."""
        on_main(self.accelerator, partial(self._prepare, overwrite=overwrite))
        self.accelerator.init_trackers("difformer", config=flat(plain(asdict(self.recipe))))
        run_epochs(
            self.run.trainer,
            self.accelerator,
            save=partial(on_main, self.accelerator, self._save),
            end_epoch=self._end_epoch,
            describe=self.run.describe,
        )
        progress = self.run.trainer.progress
        results = {
            "epochs": progress.epoch + 1,
            "images": progress.images,
            "seed": self.recipe.training.seed,
            "last": self.history[-1],
        }
        if progress.best_epoch is not None:
            results["best"] = next(record for record in self.history if record["epoch"] == progress.best_epoch)
        results |= self.run.finish()
        on_main(self.accelerator, partial(self._write, results))
        return results

    def _restore(self, state: TrainingState) -> None:
        for name, digest in self.sources.items():
            begun = state.sources.get(name)
            # Earlier versions had another digest of images.
            same = begun == digest or (name == "training images" and begun == self.run.images["train"].former_digest)
            if not same:
                raise ValueError(
                    f"the {name} are not those that the run in {self.folder.path} was begun with; bring them back, or "
                    f"choose another --output"
                )
        self.run.trainer.restore(state, str(self.folder.state))
        self.history = state.history
        progress = state.progress
        if not progress.finished:
            self.accelerator.print(f"going on with epoch {progress.epoch + 1}, step {progress.step + 1}")

    def _prepare(self, *, overwrite: bool) -> None:
        if overwrite:
            self.folder.clear()
        self.folder.write_text(self.folder.recipe.name, dump(self.recipe))
        self.folder.write_json("environment.json", environment(self.accelerator.num_processes, self.accelerator.device))
        self.folder.write_splits(self.run.images)
        # A run that was killed may have written further than its state.
        self.folder.write_history(self.history)

    def _save(self) -> None:
        state = self.run.trainer.state(plain(asdict(self.recipe)), self.sources, self.history)
        state.save(self.folder.state)

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
        if stops or progress.epoch + 1 == self.recipe.training.epochs:
            progress.finished = True
        else:
            progress.next_epoch()

    def _write(self, results: dict[str, Any]) -> None:
        draw_curves(self.history, self.folder.curves)
        # Last, since they say that the run is finished.
        self.folder.write_json(self.folder.results.name, results)


def _check_same_disk(folder: RunFolder, accelerator: Any, progress: dict[str, Any] | None) -> None:
    """Raises OSError when processes, on other machines, find other states: they would train different weights."""
    if accelerator.num_processes == 1:
        return
    found = require("accelerate.utils", "several processes", install="accelerate").gather_object([progress])
    if any(other != found[0] for other in found):
        raise OSError(f"the processes do not find the same state in {folder.path}; it must lie on a disk they share")
