"""A run: its parts, its evaluations, and what it keeps in its folder."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from difformer._optional import require
from difformer.analysis.metrics import ClassificationMetrics, classification_metrics
from difformer.checkpoints import read_weights, weights_digest
from difformer.classifier import DiffusionClassifier, save_classifier
from difformer.data import ImageDataset, collate
from difformer.engine.build import build_backbone, build_classifier, build_dataset
from difformer.engine.classification.init import read_init, start_from
from difformer.engine.classification.task import Classification
from difformer.engine.evaluation.outputs import evaluate
from difformer.engine.evaluation.results import check_same_classes
from difformer.engine.extraction.extract import open_or_extract
from difformer.engine.extraction.plan import collate_readable
from difformer.engine.loop.run_folder import RunFolder
from difformer.engine.loop.state import Progress, restore, snapshot
from difformer.engine.loop.trainer import Trainer
from difformer.engine.processes import on_main
from difformer.engine.recipes.provenance import carried
from difformer.engine.recipes.training import Recipe
from difformer.engine.trial.fake import FakeImages
from difformer.engine.trial.step_memory import needs_checkpointing
from difformer.features import collate_features

# What `Run.sources` calls the classifier that a recipe starts from.
_INIT = "weights of the classifier it starts from"


class Run:
    """The parts of one run.

    Args:
        recipe: everything about it.
        accelerator: from `create_accelerator`.
        begun_with: the `sources` of the run that is to go on; None for one that begins.
        fake: random images and weights in place of the recipe's, and of the classifier it starts from.

    Attributes:
        images: the data sets by split.
        inputs: the same, or their features where these are cached.
        sources: digests, by name, of what it must go on with.
        classifier: what is trained.
        task: what its training means.
        trainer: what trains it.

    Raises:
        ValueError, OSError, ImportError: as the parts; before the first step.
    """

    def __init__(
        self, recipe: Recipe, accelerator: Any, begun_with: Mapping[str, str] | None = None, *, fake: bool = False
    ) -> None:
        self.recipe = recipe
        self.accelerator = accelerator
        self.folder = RunFolder(recipe.output)
        self.images: dict[str, Any] = _fake_splits(recipe) if fake else _open_splits(recipe)
        backbone = build_backbone(
            recipe.backbone, precision=recipe.training.precision, device=accelerator.device, random_weights=fake
        )
        classifier = build_classifier(recipe, backbone, self.images["train"].class_names)
        self.classifier: DiffusionClassifier = classifier.to(accelerator.device)
        # Digests of what it is trained on.
        self.sources = {
            "training images": self.images["train"].digest,
            "backbone's weights": "random" if fake else backbone.digest,
        }
        if recipe.init is not None and not fake:
            self.sources[_INIT] = self._start_from(recipe.init, begun_with)
        if recipe.backbone.gradient_checkpointing == "auto":
            # Now that the weights have taken their part of the memory.
            backbone.unet.gradient_checkpointing = needs_checkpointing(
                recipe, classifier.class_names, len(self.images["train"]), accelerator
            )
        self.inputs: Mapping[str, Any] = self.images
        self.collate: Any = collate
        if recipe.features == "cached":
            self._use_cache()
        self.task = Classification(
            self.classifier, recipe.training, seed=recipe.extractor.seed, on_features=recipe.features == "cached"
        )
        self.trainer = Trainer(
            self.task,
            recipe.training,
            recipe.optimizer,
            recipe.schedule,
            accelerator,
            self.inputs["train"],
            self.collate,
            shuffle_buffer=recipe.data.shuffle_buffer,
            sync_batch_norm=recipe.training.sync_batch_norm,
        )

    def describe(self, progress: Progress) -> str:
        """The progress bar's text."""
        counted = max(1, progress.counted)
        return f"loss {progress.loss_sum / counted:.3f}, top-1 {progress.correct / counted:.1%}"

    def end_epoch(self, record: dict[str, Any]) -> bool:
        """Evaluates, and keeps the classifier.

        Args:
            record: of the epoch; what was measured is added.

        Returns:
            Whether to stop early.
        """
        progress, evaluation, training = self.trainer.progress, self.recipe.evaluation, self.recipe.training
        record["train_top1"] = progress.correct / max(1, progress.counted)
        due = progress.epoch + 1 == training.epochs or (progress.epoch + 1) % evaluation.every == 0
        improved = False
        with self._as_kept():
            if evaluation.validation is not None and due:
                found = _summary(self.measure(evaluation.validation))
                record |= {f"validation_{name}": value for name, value in found.items()}
                improved = progress.note(found[evaluation.criterion], evaluation.criterion)
            chosen = improved or evaluation.select == "last"
            on_main(self.accelerator, partial(self.save_classifier, record, chosen=chosen))
        return training.early_stopping is not None and progress.waiting >= training.early_stopping

    def finish(self) -> dict[str, Any]:
        """Evaluates the test split, once, with the classifier that was kept."""
        results: dict[str, Any] = {
            "trained_parameters": sum(p.numel() for p in self.task.parts.parameters() if p.requires_grad),
            "classifier": self.folder.classifier.name,
        }
        if self.recipe.evaluation.test is not None:
            state = read_weights(self.folder.classifier).state
            restore(self.task.parts, dict(state), str(self.folder.classifier))
            results["test"] = self.measure(self.recipe.evaluation.test).to_dict()
        return results

    def measure(self, split: str) -> ClassificationMetrics:
        """Evaluates the classifier as it is, with the noise of evaluation."""
        recipe = self.recipe
        self.classifier.extractor.seed = recipe.extractor.seed
        outputs = evaluate(
            self.task.module,
            self.inputs[split],
            collate_readable if self.collate is collate else self.collate,
            self.accelerator,
            batch_size=recipe.evaluation.batch_size or recipe.training.batch_size,
            workers=recipe.training.workers,
            progress=True,
        )
        return classification_metrics(outputs.values, outputs.labels, self.classifier.class_names)

    @contextmanager
    def _as_kept(self) -> Iterator[None]:
        """Has the weights that are kept: the moving average, where there is one, and the main process's statistics."""
        own = snapshot(self.task.parts)
        if self.trainer.averaged is not None:
            restore(self.task.parts, self.trainer.averaged, "the moving average")
        if self.accelerator.num_processes > 1:
            utilities = require("accelerate.utils", "several processes", install="accelerate")
            utilities.broadcast(list(self.task.parts.buffers()))
        try:
            yield
        finally:
            restore(self.task.parts, own, "the weights in training")

    def save_classifier(self, metrics: Mapping[str, Any], *, chosen: bool) -> None:
        """Writes the classifier as it is.

        Args:
            metrics: to note with it.
            chosen: whether it is the one to keep; else it is only the latest.
        """
        # In place of the epoch's own: what is read again computes as evaluation does.
        self.classifier.extractor.seed = self.recipe.extractor.seed
        keep_latest = self.recipe.evaluation.select == "best"
        notes = {
            "epoch": self.trainer.progress.epoch + 1,
            "metrics": dict(metrics),
            "recipe": carried(self.recipe),
        }
        if _INIT in self.sources:
            notes["init_sha256"] = self.sources[_INIT]
        if keep_latest:
            save_classifier(self.folder.latest, self.classifier, **notes)
        if chosen:
            save_classifier(self.folder.classifier, self.classifier, **notes)

    def _start_from(self, init: str, begun_with: Mapping[str, str] | None) -> str:
        """Takes the weights of a trained classifier, unless the run goes on with its own; returns their digest."""
        try:
            found = read_init(self.recipe, self.classifier.backbone)
        except OSError:
            if begun_with is not None and _INIT in begun_with:
                return begun_with[_INIT]
            raise
        if begun_with is None:
            start_from(self.classifier, found, init)
        return weights_digest(found.trained_state())

    def _use_cache(self) -> None:
        self.collate = collate_features
        self.inputs = {
            split: open_or_extract(
                self.recipe, self.classifier, images, split, augment=split == "train", accelerator=self.accelerator
            )
            for split, images in self.images.items()
        }


def _open_splits(recipe: Recipe) -> dict[str, ImageDataset]:
    images = {"train": build_dataset(recipe.data, "train", augment=True)}
    for split in (recipe.evaluation.validation, recipe.evaluation.test):
        if split == "train":
            raise ValueError("evaluation on train says nothing of new images; use holdout with data.holdout")
        if split is not None and split not in images:
            images[split] = build_dataset(recipe.data, split)
    names = images["train"].class_names
    for split, dataset in images.items():
        check_same_classes(dataset.class_names, names, f"of {split}", "of train")
    return images


def _fake_splits(recipe: Recipe) -> dict[str, Any]:
    evaluation = recipe.evaluation
    names = dict.fromkeys(("train", evaluation.validation, evaluation.test))
    length = 4 * recipe.training.batch_size
    return {name: FakeImages(recipe.data, name, length) for name in names if name is not None}


def _summary(metrics: ClassificationMetrics) -> dict[str, float]:
    """The numbers of a line."""
    line = {"loss": metrics.nll, "top1": metrics.top1, "mean_per_class": metrics.mean_per_class, "ece": metrics.ece}
    return line if metrics.top5 is None else line | {"top5": metrics.top5}
