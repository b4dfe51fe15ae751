"""A training run from a recipe to a folder with a classifier; the body of `difformer train`."""

import json
from dataclasses import asdict
from functools import partial
from typing import Any

from difformer.analysis.metrics import ClassificationMetrics
from difformer.engine.epochs import run_epochs
from difformer.engine.reading import dump, plain
from difformer.engine.recipe import Recipe
from difformer.engine.run import Run, create_accelerator
from difformer.engine.run_folder import RunFolder, environment, flat, saved_state
from difformer.engine.state import Progress
from difformer.report.curves import draw_curves

# What a run may go on with another value of: none of it changes the result.
MAY_CHANGE = (
    "output", "trackers", "training.workers", "training.save_minutes", "evaluation.batch_size", "data.root",
    "data.download", "data.check_images", "backbone.folder", "backbone.download", "backbone.attention",
    "backbone.gradient_checkpointing", "extractor.chunk_size", "cache.folder",
)  # fmt: skip


def train(recipe: Recipe, *, overwrite: bool = False, more_to_come: bool = False) -> dict[str, Any]:
    """Trains, or goes on with a run that was interrupted; that ends as one that was not.

    Args:
        recipe: everything about the run.
        overwrite: start anew although there is a run in the folder.
        more_to_come: other runs follow in these processes, so they stay connected.

    Returns:
        The results, as in `results.json`.

    Raises:
        ValueError: the recipe or the data is wrong, or the folder holds a run with another recipe.
        OSError: something cannot be read or written.
        TrainingError: the loss is not finite, or a data worker died.
        Stopped: a signal asked to stop; the state is saved.
    """
    accelerator = create_accelerator(recipe)
    folder = RunFolder(recipe.output)
    folder.check()
    state = None if overwrite else saved_state(folder, recipe, MAY_CHANGE)
    if state is not None and state.progress.finished and folder.results.exists():
        accelerator.print(
            f"this run is finished; its results are in {folder.path}. For another, choose another --output"
        )
        results: dict[str, Any] = json.loads(folder.results.read_text(encoding="utf-8"))
        return results
    run = Run(recipe, accelerator)
    if state is not None:
        run.restore(state)
        accelerator.print(f"going on with epoch {state.progress.epoch + 1}, step {state.progress.step + 1}")
    if accelerator.is_main_process:
        _prepare(run)
    accelerator.wait_for_everyone()
    accelerator.init_trackers("difformer", config=flat(plain(asdict(recipe))))
    try:
        run_epochs(
            run.trainer, accelerator, save=run.save_state, end_epoch=partial(_end_epoch, run), describe=_describe
        )
        return _finish(run)
    finally:
        if more_to_come:
            for tracker in accelerator.trackers:
                tracker.finish()
        else:
            accelerator.end_training()


def _prepare(run: Run) -> None:
    run.folder.create()
    run.folder.write_text(run.folder.recipe.name, dump(run.recipe))
    run.folder.write_json("environment.json", environment(run.accelerator.num_processes, run.accelerator.device))
    run.folder.write_splits(run.images)
    # A run that was killed may have written further than its state.
    run.folder.write_history(run.history)


def _describe(progress: Progress) -> str:
    counted = max(1, progress.counted)
    return f"loss {progress.loss_sum / counted:.3f}, top-1 {progress.correct / counted:.1%}"


def _end_epoch(run: Run, seconds: float, images: int) -> None:
    """Evaluates, records, keeps the classifier, and goes to the next epoch."""
    progress, evaluation = run.trainer.progress, run.recipe.evaluation
    record: dict[str, Any] = {
        "epoch": progress.epoch + 1,
        "images": progress.images,
        "lr": run.trainer.rate,
        "train_loss": progress.loss_sum / max(1, progress.counted),
        "train_top1": progress.correct / max(1, progress.counted),
    }
    last = progress.epoch + 1 == run.recipe.training.epochs
    validated = evaluation.validation is not None and (last or (progress.epoch + 1) % evaluation.every == 0)
    with run.averaged_weights():
        improved = False
        if validated and evaluation.validation is not None:
            metrics = run.measure(evaluation.validation)
            record |= {f"validation_{name}": value for name, value in summary(metrics).items()}
            improved = progress.note(record[f"validation_{evaluation.criterion}"], evaluation.criterion)
        record |= {"seconds": round(seconds, 3), "images_per_second": round(images / max(seconds, 1e-9), 2)}
        run.history.append(record)
        run.save_classifier(chosen=improved or evaluation.select == "last")
    if run.accelerator.is_main_process:
        run.folder.append(record)
    run.accelerator.log({name: value for name, value in record.items() if name != "epoch"}, step=progress.epoch + 1)
    patience = run.recipe.training.early_stopping
    if last or (patience is not None and progress.waiting >= patience):
        progress.finished = True
    else:
        progress.next_epoch()


def _finish(run: Run) -> dict[str, Any]:
    """Evaluates the test split, once, and writes results and curves."""
    progress, evaluation = run.trainer.progress, run.recipe.evaluation
    results: dict[str, Any] = {
        "epochs": progress.epoch + 1,
        "images": progress.images,
        "trained_parameters": sum(p.numel() for p in run.task.parts.parameters() if p.requires_grad),
        "classifier": run.folder.classifier.name,
        "seed": run.recipe.training.seed,
        "last": run.history[-1],
    }
    if progress.best_epoch is not None:
        results["best"] = next(record for record in run.history if record["epoch"] == progress.best_epoch)
    if evaluation.test is not None:
        run.restore_chosen()
        results["test"] = run.measure(evaluation.test).to_dict()
    if run.accelerator.is_main_process:
        run.folder.write_json(run.folder.results.name, results)
        draw_curves(run.history, run.folder.curves)
    run.accelerator.wait_for_everyone()
    return results


def summary(metrics: ClassificationMetrics) -> dict[str, float]:
    """The numbers of a line."""
    line = {"loss": metrics.nll, "top1": metrics.top1, "mean_per_class": metrics.mean_per_class, "ece": metrics.ece}
    return line if metrics.top5 is None else line | {"top5": metrics.top5}
