"""The loop over epochs, with a progress bar, saving and stopping; the caller defines the work between epochs."""

import signal
from collections.abc import Callable
from typing import Any

from difformer.engine.loop.state import Progress
from difformer.engine.loop.trainer import Clock, Totals, Trainer
from difformer.engine.runtime.progress import progress_bar
from difformer.engine.runtime.stopping import Stopped, StopRequest


def run_epochs(
    trainer: Trainer,
    accelerator: Any,
    *,
    save: Callable[[], None],
    end_epoch: Callable[[float, int], None],
    describe: Callable[[Progress], str],
) -> None:
    """Trains until `progress.finished`.

    Args:
        trainer: what trains.
        accelerator: Accelerate's.
        save: writes the training state; called on all processes.
        end_epoch: called with the seconds and images of an epoch; sets `progress` to the next epoch, or to finished. A
            signal interrupts it; the state before it is saved.
        describe: the bar's text.

    Raises:
        TrainingError: as `Trainer.run_epoch`.
        Stopped: a signal asked to stop; the state is saved.
    """
    progress = trainer.progress
    length, epochs = len(trainer.dataset), trainer.loop.epochs
    shown = accelerator.is_main_process
    options: dict[str, Any] = {"initial": progress.images, "unit_scale": True, "disable": not shown, "smoothing": 0.1}
    with progress_bar(epochs * length, "training", **options) as bar, StopRequest() as stop:

        def save_now() -> None:
            save()
            trainer.unsaved.lap()

        def after_step(totals: Totals) -> None:
            bar.update(totals.counted)
            bar.set_postfix_str(f"epoch {progress.epoch + 1}/{epochs}, {describe(progress)}", refresh=False)
            if totals.save:
                save_now()

        while not progress.finished:
            epoch, before = Clock(), progress.images
            if not trainer.run_epoch(stop, after_step):
                save_now()
                # Another process may have been the one that was signalled.
                raise Stopped(_resting_place(trainer), int(stop.signal_seen() or signal.SIGTERM))
            save_now()
            with stop.at_once(_resting_place(trainer)):
                end_epoch(epoch.lap(), progress.images - before)
            save_now()


def _resting_place(trainer: Trainer) -> str:
    progress = trainer.progress
    return (
        f"stopped in epoch {progress.epoch + 1} after step {progress.step} of {trainer.steps}; the same command "
        f"resumes from there"
    )
