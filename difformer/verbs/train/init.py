"""Where training starts in place of fresh weights: at a classifier that is trained already."""

from collections.abc import Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

from difformer.classifier import DiffusionClassifier, load_classifier, read_description
from difformer.config.provenance import changed_keys
from difformer.config.reading import plain
from difformer.data import DataConfig
from difformer.data.classes import check_same_classes
from difformer.engine.config.recipe import Recipe
from difformer.engine.loop.state import restore
from difformer.engine.runtime.locating import classifier_file
from difformer.features import FeedbackExtractor
from difformer.files import expand_user
from difformer.registry import UntrustedError, path_of
from difformer.tasks import Classification, Task

_log = getLogger(__name__)

# Of a head's arguments, what only training knows: the same weights give the same logits without it.
_TRAINING_ONLY = ("dropout", "drop_path")
_CLASSIFICATION = "classification"


def trusted_modules(recipe: Recipe, classifier: DiffusionClassifier) -> list[str]:
    """The modules whose code a classifier file of this recipe may run.

    Args:
        recipe: names some, maybe of packages that only give another module's class a shorter name.
        classifier: built from it. Files name the modules that define its head and task.
    """
    return [*recipe.own_modules, *(type(part).__module__ for part in (classifier.head, classifier.task))]


def read_init(recipe: Recipe, classifier: DiffusionClassifier) -> DiffusionClassifier:
    """The trained classifier that a recipe names as its `init`.

    Warns where it may have learned from images that the recipe sets aside to measure on.

    Args:
        recipe: with `init`.
        classifier: the recipe's, whose backbone must be the one it was trained on.

    Raises:
        FileNotFoundError: it is not there, or the run it is of has none yet.
        CheckpointError: it is damaged, no classifier, or of another backbone.
        ValueError: it is the run's own, or its head or task is code that the recipe does not name.
    """
    assert recipe.init is not None
    try:
        file = classifier_file(recipe.init, download=recipe.backbone.download)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"init: {error}") from error
    if file.resolve().parent == expand_user(recipe.output).resolve():
        raise ValueError(f"init: {recipe.init} is the run's own; choose another --output, so that it stays")
    try:
        found = load_classifier(file, backbone=classifier.backbone, trust=trusted_modules(recipe, classifier))
    except UntrustedError:
        # Code that the recipe does not name is not its own, so it is not run to find out what else differs.
        there = read_description(file)
        names = {"task": there.get("task", {"type": _CLASSIFICATION})["type"], "head": there["head"]["type"]}
        here = {"task": _task_name(classifier.task), "head": path_of(type(classifier.head), "head")}
        _refuse({name: (names[name], here[name]) for name in names if ":" in names[name]}, recipe.init)
        raise
    _warn_of_seen_images(file, recipe.data)
    return found


def start_from(classifier: DiffusionClassifier, found: DiffusionClassifier, source: str) -> None:
    """Gives a classifier the weights of a trained one: the head's, and the feedback layers' where that has any.

    New feedback layers with gates, which are zero, leave the output as the trained one's.

    Args:
        classifier: changed in place.
        found: the trained one.
        source: where it came from, for messages.

    Raises:
        ValueError: as `check_init`.
    """
    check_init(found, classifier, source)
    restore(classifier.head, found.head.state_dict(), source)
    feedback = _feedback(classifier)
    if (trained := _feedback(found)) is not None and feedback is not None:
        restore(feedback.feedback, trained.feedback.state_dict(), source)
    elif feedback is not None and not feedback.gate:
        _log.warning(
            "init: new feedback layers without a gate change what the head of %s reads; with extractor.gate: true, "
            "training starts where it ended",
            source,
        )


def check_init(found: DiffusionClassifier, classifier: DiffusionClassifier, source: str) -> None:
    """Raises ValueError when weights would mean something else in another classifier; the message has both sides.

    Features of a plain pass count as those of a second pass into which nothing is fed back yet.

    Args:
        found: whose weights they are.
        classifier: what is to start from them.
        source: where they came from, for the message.
    """
    if type(found.task) is type(classifier.task):
        check_same_classes(classifier.class_names, found.class_names, "of the data set", f"of {source}")
    begins_feedback = _feedback(found) is None and _feedback(classifier) is not None
    there, here = (_meaning(one, feedback=not begins_feedback) for one in (found, classifier))
    _refuse(changed_keys(there, here), source)


def _refuse(differing: Mapping[str, tuple[Any, Any]], source: str) -> None:
    """Raises ValueError where something differs.

    Args:
        differing: what is there and what is here, by name.
        source: where the weights came from.
    """
    differing = {name: (old, new) for name, (old, new) in differing.items() if old != new}
    if differing:
        listed = "; ".join(f"{name}: {old} there, {new} here" for name, (old, new) in differing.items())
        raise ValueError(
            f"init: the weights of {source} do not fit here: {listed}. Give the recipe the values there, or another "
            f"init"
        )


def _meaning(classifier: DiffusionClassifier, *, feedback: bool) -> dict[str, Any]:
    """What the weights of a classifier stand for, which their shapes do not tell.

    Args:
        classifier: on any device.
        feedback: whether rounds and feedback layers are part of it.
    """
    head: Any = classifier.head
    arguments: Mapping[str, Any] = head.arguments
    # In the order in which the head reads them: its weights know features by their place.
    features = [f"{key.tap} at t = {key.t}{' after feedback' * (feedback and key.round)}" for key in head.specs]
    meaning: dict[str, Any] = {
        "features": features,
        "extractor.clean": classifier.extractor.noising.clean,
        "extractor.conditioning": classifier.conditioning.values,
        "head": type(head).__name__,
        "task": _task_name(classifier.task),
        "task.arguments": classifier.task.arguments,
        "head.arguments": {name: value for name, value in arguments.items() if name not in _TRAINING_ONLY},
    }
    if feedback:
        layers = _feedback(classifier)
        names = ("feedback_taps", "norm", "gate")
        meaning |= {f"extractor.{name}": None if layers is None else getattr(layers, name) for name in names}
    return meaning


def _task_name(task: Task) -> str:
    """As recipes and files name it."""
    return _CLASSIFICATION if type(task) is Classification else path_of(type(task), "task")


def _feedback(classifier: DiffusionClassifier) -> FeedbackExtractor | None:
    return classifier.extractor if isinstance(classifier.extractor, FeedbackExtractor) else None


def _warn_of_seen_images(file: Path, data: DataConfig) -> None:
    before: Any = read_description(file)
    for key in ("metadata", "recipe", "data"):
        before = before.get(key) if isinstance(before, Mapping) else None
    if not isinstance(before, Mapping) or before.get("name") != data.name:
        return
    set_aside = [name for name in ("holdout", "test_fraction") if getattr(data, name)]
    names = ["splits", *set_aside, *(["split_seed"] if set_aside else [])]
    differing = [f"data.{name}" for name in names if name in before and before[name] != plain(getattr(data, name))]
    if differing:
        _log.warning(
            "init: %s was trained with another %s, so it may have learned from images that are measured on here",
            file, " and ".join(differing),
        )  # fmt: skip
