"""A run: its parts, its evaluations, and what it keeps in its folder."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from difformer.backbones import CheckpointingBackbone, switch_checkpointing
from difformer.checkpoints import CheckpointError, weights_digest
from difformer.classifier import DiffusionClassifier, load_classifier, read_description, save_classifier
from difformer.config.provenance import carried
from difformer.data import collate
from difformer.data.fake import FakeImages
from difformer.engine.config.build import build_backbone, build_classifier, build_task
from difformer.engine.config.evaluation import choice_note
from difformer.engine.config.recipe import EvaluationConfig, Recipe
from difformer.engine.cost.step_memory import needs_checkpointing
from difformer.engine.extraction.estimate import collate_readable
from difformer.engine.extraction.extract import open_or_extract
from difformer.engine.loop.optimisation import create_optimizer, create_schedule
from difformer.engine.loop.state import Progress, restore, snapshot
from difformer.engine.loop.trainer import Trainer
from difformer.engine.runtime.batches import check_batch_statistics
from difformer.engine.runtime.outputs import evaluate
from difformer.engine.runtime.processes import on_main
from difformer.engine.runtime.resources import Resources
from difformer.engine.runtime.run_folder import RunFolder
from difformer.features import collate_features
from difformer.features.conditioning import warn_of_labels
from difformer.tasks.registry import check_labels
from difformer.tasks.task import Measured, Task, task_metric
from difformer.verbs.train.init import read_init, start_from, trusted_modules
from difformer.verbs.train.learning import HeadLearning, Kept

_log = getLogger(__name__)

# A linear layer takes about three times as many.
_FEW_STEPS = 100
# What `Run.sources` calls the classifier that a recipe starts from.
_INIT = "weights of the classifier it starts from"


class Run:
    """The parts of one run.

    Args:
        recipe: everything about it.
        accelerator: from `create_accelerator`.
        begun_with: the `sources` of the run that is resumed; None for one that begins.
        resources: shared with other runs of this process.
        fake: random images and weights in place of the recipe's, and of the classifier it starts from.
        at_once: images of a step in place of the recipe's, for a trial, which writes no cache.

    Attributes:
        recipe: with as many epochs as its least steps take.
        images: the data sets by split.
        classifier: what is trained.
        objective: what its training means.

    Raises:
        ValueError, OSError, ImportError: as the parts; before the first step.
    """

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Any,
        begun_with: Mapping[str, str] | None = None,
        *,
        resources: Resources | None = None,
        fake: bool = False,
        at_once: int | None = None,
    ) -> None:
        resources = resources or Resources()
        self.accelerator = accelerator
        self.folder = RunFolder(recipe.output)
        task = build_task(recipe)
        self._criterion = criterion_of(recipe.evaluation, task)
        self._larger_is_better = task_metric(task, self._criterion, "evaluation.criterion").larger_is_better
        self.images: Mapping[str, Any] = _splits(recipe, resources, task if fake else None)
        if not fake:
            for images in self.images.values():
                check_labels(task, images)
        # Of stand-ins the number is made up.
        self.recipe = recipe if fake else recipe.lengthened(len(self.images["train"]))
        if not fake:
            self._say_what_is_unusual(recipe)
        recipe = self.recipe
        if at_once is not None:
            recipe = replace(recipe, features="live", training=replace(recipe.training, batch_size=at_once))
        how = {"precision": recipe.training.precision, "device": accelerator.device}
        if fake:
            backbone = build_backbone(recipe.backbone, **how, random_weights=True)
        else:
            backbone = resources.backbone(recipe.backbone, **how)
        names = task.output_names(self.images["train"])
        classifier = build_classifier(recipe, backbone, names, task=task)
        if not fake:
            _check_first_target(classifier.head, self.images["train"])
        self.classifier: DiffusionClassifier = classifier.to(accelerator.device)
        self._backbone_digest = "random" if fake else backbone.digest
        self._init_digest = None if recipe.init is None or fake else self._start_from(recipe.init, begun_with)
        checkpointing = recipe.backbone.gradient_checkpointing
        if checkpointing == "auto" and not isinstance(backbone, CheckpointingBackbone):
            checkpointing = False
        elif checkpointing == "auto":
            # Now that the weights have taken their part of the memory.
            checkpointing = needs_checkpointing(recipe, names, len(self.images["train"]), accelerator)
        # The network may be shared with other runs.
        switch_checkpointing(backbone, checkpointing)
        # Of what runs now, a trial maybe; the recipe is that of the run.
        self._training = recipe.training
        self._cached = recipe.features == "cached"
        if self._criterion == "top5" and len(names) <= 5:
            raise ValueError(f"evaluation.criterion: top5 needs more than 5 classes, got {len(names)}")
        self.objective = HeadLearning(self.classifier, recipe.training, seed=recipe.extractor.seed)

    @cached_property
    def inputs(self) -> Mapping[str, Any]:
        """What is read by split: the images, or their features where these are cached, which are extracted and
        verified when they are first asked for.

        Raises:
            ValueError, OSError: as `open_or_extract`; and, before an extraction, for what could not be trained on.
        """
        if not self._cached:
            return self.images
        recipe, images = self.recipe, len(self.images["train"])
        check_batch_statistics(
            self.objective.module, images, recipe.training, self.accelerator, shared=recipe.training.sync_batch_norm
        )
        steps = -(-images // recipe.training.batch_size)
        create_schedule(
            create_optimizer(self.objective.parts, recipe.optimizer), recipe.schedule, recipe.training.epochs, steps
        )
        return {
            split: open_or_extract(
                self.classifier,
                images,
                split,
                data=recipe.data,
                cache=recipe.cache,
                seed=recipe.extractor.seed,
                augment=split == "train",
                processes=self.accelerator,
                workers=recipe.training.workers,
            )
            for split, images in self.images.items()
        }

    @cached_property
    def trainer(self) -> Trainer:
        """What trains."""
        recipe = self.recipe
        return Trainer(
            self.objective,
            self._training,
            recipe.optimizer,
            recipe.schedule,
            self.accelerator,
            self.inputs["train"],
            collate_features if self._cached else collate,
            shuffle_buffer=recipe.data.shuffle_buffer,
            sync_batch_norm=recipe.training.sync_batch_norm,
        )

    @property
    def sources(self) -> dict[str, str]:
        """Digests, by name, of what must be the same where it is resumed."""
        sources = {"training images": self.images["train"].digest, "backbone's weights": self._backbone_digest}
        return sources if self._init_digest is None else sources | {_INIT: self._init_digest}

    @property
    def outputs(self) -> tuple[Path, ...]:
        """The weight files that results belong to."""
        return (self.folder.classifier,)

    def describe(self, progress: Progress) -> str:
        """The progress bar's text."""
        metrics, rates = self.classifier.task.metrics, []
        for name, value in self._rates(progress).items():
            metric = metrics.get(name)
            rates.append(f"{name} {value:.4g}" if metric is None else f"{metric.title or name} {metric.text(value)}")
        return ", ".join([f"loss {progress.loss_sum / max(1, progress.counted):.3f}", *rates])

    def resume(self) -> None:
        """Makes sure of the best classifier so far, which states of earlier versions do not hold.

        Raises:
            CheckpointError: its file, on which such a state relies, is damaged or of another epoch.
            FileNotFoundError: it is missing.
        """
        progress = self.trainer.progress
        best = progress.best_epoch
        if self.recipe.evaluation.select == "best" and best is not None and self.objective.kept is None:
            file = self.folder.classifier
            classifier = load_classifier(
                file, backbone=self.classifier.backbone, trust=trusted_modules(self.recipe, self.classifier)
            )
            notes = read_description(file)["metadata"]
            # Of the current epoch where the run was killed between writing it and the state; it is then written again.
            if notes.get("epoch") not in (best, progress.epoch + 1):
                raise CheckpointError(f"{file} is of epoch {notes.get('epoch')}, not {best}, the best so far")
            self.objective.kept = Kept(_on_cpu(classifier.trained_parts), notes["metrics"])

    def end_epoch(self, record: dict[str, Any]) -> bool:
        """Evaluates, and keeps the classifier.

        Args:
            record: of the epoch; what was measured is added.

        Returns:
            Whether to stop early.
        """
        progress, evaluation, training = self.trainer.progress, self.recipe.evaluation, self.recipe.training
        record |= {f"train_{name}": value for name, value in self._rates(progress).items()}
        due = progress.epoch + 1 == training.epochs or (progress.epoch + 1) % evaluation.every == 0
        improved = False
        with self._as_kept():
            if evaluation.validation is not None and due:
                measured = self.measure(evaluation.validation)
                record |= {f"validation_{name}": value for name, value in measured.summary().items()}
                value = measured.value(self._criterion)
                if value is None or not math.isfinite(value):
                    raise ValueError(f"evaluation.criterion: {self._criterion} is {value} here, and cannot choose")
                record[f"validation_{self._criterion}"] = value
                improved = progress.note(value, larger_is_better=self._larger_is_better)
            best = evaluation.select == "best"
            if best and improved:
                self.objective.kept = Kept(_on_cpu(self.objective.parts), record)
            files = [self.folder.latest] if best else []
            files += [self.folder.classifier] if improved or not best else []
            on_main(self.accelerator, partial(self._save, files, record))
        return training.early_stopping is not None and progress.waiting >= training.early_stopping

    def finish(self, last: dict[str, Any]) -> dict[str, Any]:
        """Writes the classifier that is kept, though its file may be there already, and evaluates the test split with
        it, once.
        """
        results: dict[str, Any] = {
            "trained_parameters": sum(p.numel() for p in self.objective.parts.parameters() if p.requires_grad),
            "classifier": self.folder.classifier.name,
        }
        kept = self.objective.kept
        with self._as_kept():
            if kept is not None:
                restore(self.objective.parts, kept.weights, "the best classifier")
            record = last if kept is None else kept.record
            on_main(self.accelerator, partial(self._save, [self.folder.classifier], record))
            if self.recipe.evaluation.test is not None:
                results["test"] = self.measure(self.recipe.evaluation.test).to_dict()
        return results

    def measure(self, split: str) -> Measured:
        """Evaluates the classifier as it is, with the noise of evaluation."""
        recipe = self.recipe
        self.classifier.extractor.seed = recipe.extractor.seed
        outputs = evaluate(
            self.objective.module,
            self.inputs[split],
            collate_features if self._cached else collate_readable,
            self.accelerator,
            batch_size=recipe.evaluation.batch_size or recipe.training.batch_size,
            workers=recipe.training.workers,
            progress=True,
            task=self.classifier.task,
            names=self.classifier.class_names,
        )
        names, extra = self.classifier.class_names, (self._criterion,)
        return self.classifier.task.measure(outputs.values, outputs.labels, names, extra=extra)

    def _rates(self, progress: Progress) -> dict[str, float]:
        """What was counted in this epoch so far."""
        return self.classifier.task.rates(progress.counts, progress.counted)

    @contextmanager
    def _as_kept(self) -> Iterator[None]:
        """Has the weights that are kept: the moving average, where there is one, and the main process's statistics."""
        own = snapshot(self.objective.parts)
        if self.trainer.averaged is not None:
            restore(self.objective.parts, self.trainer.averaged, "the moving average")
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast

            broadcast(list(self.objective.parts.buffers()))
        try:
            yield
        finally:
            restore(self.objective.parts, own, "the weights in training")

    def _save(self, files: Sequence[Path], record: Mapping[str, Any]) -> None:
        """Writes the classifier as it is, with the record of its epoch."""
        # In place of the epoch's own: what is read again computes as evaluation does.
        self.classifier.extractor.seed = self.recipe.extractor.seed
        notes = {"epoch": record["epoch"], "metrics": dict(record), "recipe": carried(self.recipe)}
        if self._init_digest is not None:
            notes["init_sha256"] = self._init_digest
        for file in files:
            save_classifier(file, self.classifier, **notes)

    def _start_from(self, init: str, begun_with: Mapping[str, str] | None) -> str:
        """Takes the weights of a trained classifier, unless the run is resumed with its own; returns their digest."""
        try:
            found = read_init(self.recipe, self.classifier)
        except (OSError, CheckpointError):
            # A run that has begun has its own weights.
            if begun_with is not None and _INIT in begun_with:
                return begun_with[_INIT]
            raise
        if begun_with is None:
            start_from(self.classifier, found, init)
        return weights_digest(found.trained_state())

    def _say_what_is_unusual(self, asked: Recipe) -> None:
        """Says what a user would not expect of the recipe that was asked for, with these images."""
        if self.accelerator.is_main_process:
            warn_of_labels(self.recipe.extractor.conditioning)
        training, evaluation, images = self.recipe.training, self.recipe.evaluation, len(self.images["train"])
        steps = training.epochs * math.ceil(images / training.batch_size)
        if training.epochs > asked.training.epochs:
            self.accelerator.print(
                f"{training.epochs} epochs in place of {asked.training.epochs}, since {images} training images would "
                f"be fewer steps than training.least_steps, {training.least_steps}"
            )
        elif steps < _FEW_STEPS and self.accelerator.is_main_process:
            _log.warning(
                "%d steps in all, of %d training images: a head learns little in so few; give training.least_steps, "
                "such as 300, for as many epochs as that takes", steps, images,
            )  # fmt: skip
        note = choice_note(self.recipe.data, evaluation.validation) if evaluation.validation else None
        if note is not None and evaluation.select == "best" and self.accelerator.is_main_process:
            _log.warning("the classifier is %s", note)


def _splits(recipe: Recipe, resources: Resources, stand_in_for: Task | None) -> Mapping[str, Any]:
    """The data sets by split; stand-ins with labels of a task, where one is given."""
    names = dict.fromkeys(("train", recipe.evaluation.validation, recipe.evaluation.test))
    if stand_in_for is None:
        if "train" in (recipe.evaluation.validation, recipe.evaluation.test):
            raise ValueError("evaluation on train says nothing of new images; use holdout with data.holdout")
        return resources.splits(recipe.data, names, augment=True)
    length, label = 4 * recipe.training.batch_size, stand_in_for.stand_in()
    return {name: FakeImages(recipe.data, name, length, label=label) for name in names if name is not None}


def _check_first_target(head: Any, images: Any) -> None:
    """Raises ValueError where targets lack what a head learns from, such as masks, before the first step does."""
    if hasattr(head, "check_target"):
        sample = next((sample for i in range(len(images)) if (sample := images[i]) is not None), None)
        if sample is not None:
            head.check_target(sample.label, str(images))


def _on_cpu(parts: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in snapshot(parts).items()}


def criterion_of(evaluation: EvaluationConfig, task: Task) -> str:
    """The metric that chooses: the recipe's, or the task's first where that has no top1, which is the default."""
    default = evaluation.criterion == EvaluationConfig.criterion and evaluation.criterion not in task.metrics
    return next(iter(task.metrics)) if default else evaluation.criterion
