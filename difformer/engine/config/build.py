"""Builds what a recipe names: backbone, extractor, head, classifier, data sets."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from difformer import backbones
from difformer.backbones import (
    Backbone,
    build_random,
    compile_backbone,
    create_backbone,
    switch_checkpointing,
)
from difformer.checkpoints import UnderspecifiedError
from difformer.classifier import DiffusionClassifier
from difformer.config import Size, sides
from difformer.data import DataConfig, ImageDataset, LabelSubset, Preprocessing, create_dataset
from difformer.data.joint import Whole
from difformer.engine.config.fitting import fitting
from difformer.engine.config.recipe import BackboneConfig, ExtractorConfig, HeadConfig, Recipe
from difformer.features import FeatureExtractor, FeedbackExtractor
from difformer.features.conditioning import check_conditioning, check_targets
from difformer.features.images import check_multiples
from difformer.features.sizes import taps_at
from difformer.heads import HEADS, Head
from difformer.models.shapes import only_shapes
from difformer.registry import did_you_mean, path_of
from difformer.taps import FeatureKey, TapSpec
from difformer.tasks import Task, find_task
from difformer.tasks.registry import check_head, is_dense

Extractor = FeatureExtractor | FeedbackExtractor
_PRECISION_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def torso_dtype(config: BackboneConfig, precision: str) -> torch.dtype:
    """What the backbone's convolutions compute in: its configuration's dtype, or else the head's precision."""
    dtype: torch.dtype = getattr(torch, config.dtype) if config.dtype else _PRECISION_DTYPES[precision]
    return dtype


def build_backbone(
    config: BackboneConfig, *, precision: str = "no", device: torch.device | str = "cpu", random_weights: bool = False
) -> Backbone:
    """Opens the backbone.

    Args:
        config: which, and how; `gradient_checkpointing: auto` counts as false.
        precision: no, bf16 or fp16; gives the dtype where the configuration leaves it out.
        device: where it runs.
        random_weights: use the architecture alone, for a trial run on a machine that has no weights.

    Raises:
        FileNotFoundError, CheckpointError, ValueError, ImportError: as `create_backbone`.
    """
    how = _how(config) | {"dtype": torso_dtype(config, precision)}
    with _says_how_to_convert(config):
        if random_weights:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(0)
                backbone = build_random(config.name, **how)
            if isinstance(backbone, torch.nn.Module):
                backbone.to(device)
        else:
            backbone = create_backbone(config.name, download=config.download, device=device, **how)
    # Training decides what `auto` means; elsewhere nothing is kept for a gradient.
    switch_checkpointing(backbone, config.gradient_checkpointing is True)
    if config.compile:
        compile_backbone(backbone)
    return backbone


def outline_backbone(config: BackboneConfig, *, precision: str = "no") -> Backbone:
    """The backbone on the meta device: shapes and costs, without weights. Named presets need no file.

    Args:
        config: which.
        precision: no, bf16 or fp16; gives the dtype where the configuration leaves it out.

    Raises:
        FileNotFoundError, CheckpointError, ValueError, ImportError: as `create_backbone`.
    """
    with _says_how_to_convert(config):
        return backbones.outline_backbone(config.name, dtype=torso_dtype(config, precision), **_how(config))


def _how(config: BackboneConfig) -> dict[str, Any]:
    """The arguments from a configuration for opening a backbone, or building one without its weights."""
    return {"attention": config.attention, "folder": config.folder, "family": config.family}


@contextmanager
def _says_how_to_convert(config: BackboneConfig) -> Iterator[None]:
    """Makes errors about weights that do not show their whole architecture name the verb with options for it."""
    try:
        yield
    except UnderspecifiedError as error:
        path = Path(config.name)
        target = path.with_name(f"{path.name.removesuffix('.pt')}.safetensors")
        raise UnderspecifiedError(
            f"{error}\nA recipe needs a weight file that describes the whole network: write one with `difformer "
            f"convert {path} {target}` and the options above, then give --backbone.name {target}"
        ) from error


def outline_classifier(
    recipe: Recipe, class_names: tuple[str, ...], backbone: Backbone | None = None
) -> DiffusionClassifier:
    """The classifier on the meta device, in no time and no memory.

    Args:
        recipe: its parts.
        class_names: its classes.
        backbone: from `outline_backbone`, to share one between classifiers.

    Raises:
        FileNotFoundError, CheckpointError, ValueError: as `outline_backbone` and `build_classifier`.
    """
    with only_shapes():
        return build_classifier(recipe, backbone or outline_backbone(recipe.backbone), class_names)


def build_extractor(
    config: ExtractorConfig, backbone: Backbone, size: Size | None = None, num_classes: int | None = None
) -> Extractor:
    """A `FeedbackExtractor` if there are feedback taps, else a `FeatureExtractor`.

    Args:
        config: which features are read.
        backbone: what they are read from.
        size: of the images, a side or (h, w); the backbone's own when left out.
        num_classes: of the data set; None where it is not known.

    Raises:
        ValueError: as the extractors and `check_conditioning`, or the backbone takes no images of that size.
    """
    taps_at(backbone, size)
    check_conditioning(config.conditioning, backbone, num_classes)
    own = backbone.image_size
    config = fitting(config, backbone.taps, num_timesteps=backbone.schedule.num_timesteps, image_size=own)
    common: dict[str, Any] = {
        "taps": config.taps,
        "timesteps": config.timesteps,
        "seed": config.seed,
        "draws": config.draws,
        "clean": config.clean,
        # For squares of any size, heads are built for maps of the backbone's own size, if it has one, as in earlier
        # versions.
        "image_size": size if isinstance(size, tuple) or not isinstance(own, int) else None,
        "conditioning": config.conditioning,
    }
    if not config.feedback_taps:
        return FeatureExtractor(backbone, chunk_size=config.chunk_size, **common)
    return FeedbackExtractor(
        backbone,
        feedback_taps=config.feedback_taps,
        first_pass_taps=config.first_pass_taps,
        norm=config.norm,  # type: ignore[arg-type]
        gate=config.gate,
        **common,
    )


def build_head(
    config: HeadConfig, specs: Mapping[FeatureKey, TapSpec], num_classes: int, image_size: Size | None = None
) -> torch.nn.Module:
    """The head, for features as an extractor's `specs` describe them.

    Args:
        config: which head.
        specs: of the extractor.
        num_classes: length of the logits.
        image_size: of the images that the specs are for, a side or (h, w). A head with such an argument gets it, where
            `config` does not give another; None leaves the head's own default.

    Raises:
        ValueError: an argument the head does not have (the message names the nearest), or as the head.
    """
    kind: Any = HEADS.find(config.name)
    parameters = inspect.signature(kind).parameters
    known = [name for name in parameters if name not in ("specs", "num_classes")]
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in config.arguments:
        if name not in known and not takes_any:
            hint = did_you_mean(str(name), known)
            raise ValueError(
                f"unknown key 'head.arguments.{name}' for the {config.name} head; {hint}. Arguments of another head, "
                "which the recipe's file has, are dropped by --head.arguments '{}'"
            )
    told = {"image_size": image_size} if "image_size" in known and image_size is not None else {}
    arguments = {**told, **config.arguments}
    head = kind(specs, num_classes, **arguments)
    # Checked before training: a head without these could not be saved.
    if not isinstance(head, torch.nn.Module) or not isinstance(head, Head):
        raise ValueError(
            f"the head {config.name} must be a torch.nn.Module with specs, num_classes, arguments and map_sizes, as "
            f"difformer.heads.Head says, got {type(head).__name__}"
        )
    path_of(kind, "head")
    return head


def build_task(recipe: Recipe) -> Task:
    """The task, with the label smoothing of training.

    Raises:
        ValueError, ImportError: as `find_task`; or the recipe's head gives something else than the task reads.
    """
    smoothing = recipe.training.label_smoothing
    arguments = {"label_smoothing": smoothing} if recipe.task.classifies and smoothing else {}
    task = find_task(recipe.task.name, {**recipe.task.arguments, **arguments})
    check_head(task, HEADS.find(recipe.head.name), recipe.head.name)
    return task


def build_classifier(
    recipe: Recipe, backbone: Backbone, class_names: tuple[str, ...], *, task: Task | None = None
) -> DiffusionClassifier:
    """An untrained classifier, whose initial weights depend on the recipe's seed alone.

    Args:
        recipe: its parts.
        backbone: what it reads.
        class_names: its classes, or the names of another task's outputs.
        task: from `build_task`, to share one between classifiers.

    Raises:
        ValueError: as extractor, head, task and classifier.
    """
    task = task or build_task(recipe)
    window = getattr(task, "window", None)
    if is_dense(task) and recipe.data.fit == "keep" and window is None:
        raise ValueError(
            "data.fit: keep leaves images at their own sizes, for sliding windows: give task.arguments.window, such as "
            f"{recipe.data.size}, with segmentation, or data.fit: pad or stretch"
        )
    if window is not None:
        check_multiples(*sides(window), backbone.multiple)
        if recipe.extractor.draws > 1:
            raise ValueError(
                "task.arguments.window: sliding windows read one noise draw of an image, got extractor.draws "
                f"{recipe.extractor.draws}; set it to 1, or leave the window out"
            )
    # An outline is built on the meta device, where targets could not check their numbers.
    with torch.device("cpu"):
        labels_are_classes = task.stand_in() is None
    if not labels_are_classes:
        check_targets(recipe.extractor.conditioning, recipe.task.name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.training.seed)
        # Outputs for targets are not the classes of the images.
        classes = len(class_names) if labels_are_classes else None
        extractor = build_extractor(recipe.extractor, backbone, recipe.data.size, classes)
        image_size = extractor.image_size or backbone.image_size
        head = build_head(recipe.head, extractor.specs, len(class_names), image_size)
    data = recipe.data
    preprocessing: Preprocessing | Whole = Preprocessing(data.size, data.resize)
    if is_dense(task):
        preprocessing = Whole(data.size, data.fit, data.resize, data.box_scale)
    return DiffusionClassifier(extractor, head, class_names=class_names, preprocessing=preprocessing, task=task)


def build_dataset(
    config: DataConfig,
    split: str,
    *,
    augment: bool = False,
    subset: LabelSubset | None = None,
    classes: Sequence[str] | None = None,
) -> ImageDataset:
    """A split with random access, which sampling and resuming in the middle of an epoch need; see `create_dataset`.

    Raises:
        FileNotFoundError, DataError, ImageError, ValueError, ImportError: as `create_dataset`.
    """
    dataset = create_dataset(replace(config, stream=False), split, augment=augment, subset=subset, classes=classes)
    assert isinstance(dataset, ImageDataset)
    return dataset
