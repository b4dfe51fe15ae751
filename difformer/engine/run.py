"""A run: its parts, its evaluations, and what it keeps in its folder."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch

from difformer._optional import require
from difformer.analysis.metrics import ClassificationMetrics, classification_metrics
from difformer.checkpoints import read_weights
from difformer.classifier import DiffusionClassifier, save_classifier
from difformer.data import ImageDataset, collate
from difformer.engine.build import build_backbone, build_classifier, build_dataset
from difformer.engine.classification import Classification
from difformer.engine.evaluate import evaluate
from difformer.engine.extract import open_or_extract
from difformer.engine.fake import FakeImages
from difformer.engine.loop import Trainer
from difformer.engine.pretrain_recipe import PretrainRecipe
from difformer.engine.reading import plain
from difformer.engine.recipe import Recipe
from difformer.engine.run_folder import RunFolder
from difformer.engine.state import TrainingState, restore, snapshot
from difformer.features import collate_features


def create_accelerator(recipe: Recipe | PretrainRecipe, *, trackers: bool = True) -> Any:
    """Accelerate's entry point, with the recipe's precision and trackers.

    Raises:
        ValueError: a tracker that is unknown or not installed, or fp16 on a CPU.
    """
    accelerate = require("accelerate", "training")
    cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())
    if cpu and recipe.training.precision == "fp16":
        raise ValueError("training.precision: fp16 needs a GPU; use bf16 or no on a CPU")
    wanted = list(recipe.trackers) if trackers else []
    known = require("accelerate.tracking", "training", install="accelerate").LOGGER_TYPE_TO_CLASS
    available = [str(name) for name in require("accelerate.tracking", "training").get_available_trackers()]
    for name in wanted:
        if name not in available:
            hint = f"pip install {name}" if name in known else f"known are {', '.join(known)}"
            raise ValueError(f"the tracker {name!r} is not there; {hint}, or leave it out of trackers")
    return accelerate.Accelerator(
        cpu=cpu,
        mixed_precision=recipe.training.precision,
        log_with=wanted or None,
        project_dir=str(RunFolder(recipe.output).path),
    )


class Run:
    """The parts of one run.

    Args:
        recipe: everything about it.
        accelerator: from `create_accelerator`.
        fake: random images and weights in place of the recipe's.

    Attributes:
        images: the data sets by split.
        inputs: the same, or their features where these are cached.
        classifier: what is trained.
        task: what its training means.
        trainer: what trains it.
        history: the records of the epochs so far.

    Raises:
        ValueError, OSError, ImportError: as the parts; before the first step.
    """

    def __init__(self, recipe: Recipe, accelerator: Any, *, fake: bool = False) -> None:
        self.recipe = recipe
        self.accelerator = accelerator
        self.folder = RunFolder(recipe.output)
        self.images: dict[str, Any] = _fake_splits(recipe) if fake else _open_splits(recipe)
        backbone = build_backbone(
            recipe.backbone, precision=recipe.training.precision, device=accelerator.device, random_weights=fake
        )
        classifier = build_classifier(recipe, backbone, self.images["train"].class_names)
        self.classifier: DiffusionClassifier = classifier.to(accelerator.device)
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
        self.history: list[dict[str, Any]] = []

    @property
    def data_digest(self) -> str:
        """Which images it is trained on."""
        return self.images["train"].digest

    def restore(self, state: TrainingState) -> None:
        """Goes on where a saved state stopped.

        Raises:
            ValueError: the training images are others than they were.
            CheckpointError: the weights are of another model.
        """
        if state.data_digest != self.data_digest:
            raise ValueError(
                f"the training images are not those that the run in {self.folder.path} was begun with; bring them "
                f"back, or choose another --output"
            )
        self.trainer.restore(state, str(self.folder.state))
        self.history = state.history

    def save_state(self) -> None:
        """Writes the training state, on the main process."""
        if self.accelerator.is_main_process:
            recipe = plain(asdict(self.recipe))
            self.trainer.state(recipe, self.data_digest, self.history).save(self.folder.state)

    def measure(self, split: str) -> ClassificationMetrics:
        """Evaluates the classifier as it is, with the noise of evaluation."""
        recipe = self.recipe
        self.classifier.extractor.seed = recipe.extractor.seed
        outputs = evaluate(
            self.task.module,
            self.inputs[split],
            self.collate,
            self.accelerator,
            batch_size=recipe.evaluation.batch_size or recipe.training.batch_size,
            workers=recipe.training.workers,
            progress=True,
        )
        return classification_metrics(outputs.values, outputs.labels, self.classifier.class_names)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Has the moving average in place of the weights, where there is one."""
        trainer = self.trainer
        if trainer.averaged is None:
            yield
            return
        own = snapshot(self.task.parts)
        restore(self.task.parts, trainer.averaged, "the moving average")
        try:
            yield
        finally:
            restore(self.task.parts, own, "the weights in training")

    def save_classifier(self, *, chosen: bool) -> None:
        """Writes the classifier as it is, on the main process.

        Args:
            chosen: whether it is the one to keep; else it is only the latest.
        """
        if not self.accelerator.is_main_process:
            return
        # In place of the epoch's own: what is read again computes as evaluation does.
        self.classifier.extractor.seed = self.recipe.extractor.seed
        keep_latest = self.recipe.evaluation.select == "best"
        notes = {"epoch": self.trainer.progress.epoch + 1, "metrics": self.history[-1], "recipe": _json(self.recipe)}
        if keep_latest:
            save_classifier(self.folder.latest, self.classifier, **notes)
        if chosen:
            save_classifier(self.folder.classifier, self.classifier, **notes)

    def restore_chosen(self) -> None:
        """Takes the weights of the classifier that was kept, on every process."""
        self.accelerator.wait_for_everyone()
        state = read_weights(self.folder.classifier).state
        restore(self.task.parts, dict(state), str(self.folder.classifier))

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
        if dataset.class_names != names:
            raise ValueError(
                f"the classes of {split} are not those of train: {list(dataset.class_names[:5])} … "
                f"({len(dataset.class_names)}) and {list(names[:5])} … ({len(names)}); give data.class_names"
            )
    return images


def _fake_splits(recipe: Recipe) -> dict[str, Any]:
    evaluation = recipe.evaluation
    names = dict.fromkeys(("train", evaluation.validation, evaluation.test))
    length = 4 * recipe.training.batch_size
    return {name: FakeImages(recipe.data, name, length) for name in names if name is not None}


def _json(recipe: Recipe) -> Any:
    return plain(asdict(recipe))
