"""What evaluations take from the recipe of a training run, and which images choices are made on."""

from collections.abc import Mapping
from typing import Any, get_type_hints

from difformer.config.options import unknown_key
from difformer.config.reading import check_keys
from difformer.data import HOLDOUT as SET_ASIDE
from difformer.data import DataConfig, canonical_name
from difformer.data.subset import TEST
from difformer.engine.config.recipe import ExtractorConfig, ReadingConfig, Recipe, TaskConfig

# Part of the training split, where a probe chooses on a holdout and the data section does not give its size.
HOLDOUT = 0.1
# The split that the literature reports, where it is not the test split: ImageNet's test labels are not public.
_REPORTED = {"imagenet": "val"}


def take_from_training(values: Mapping[str, Any], configuration: type, *, test_split: bool = True) -> dict[str, Any]:
    """A file's values as those of an `EvaluationRecipe` or `ProbeRecipe`; the file may be a training recipe.

    A file with a section that only training has is a training recipe. Sections that both recipes have are taken from
    it, but not the output, which is the run's. Precision, workers, batch size and splits come from `training` and
    `evaluation`. The rest is checked and left out. A recipe without a test split reports its validation split, if
    nothing is chosen on it; that split is then the test split here.

    Args:
        values: the file's.
        configuration: the dataclass that they are for.
        test_split: take the recipe's test split as `split`; for evaluations that choose nothing on it.

    Raises:
        ValueError: a key that neither recipe has; the message names the nearest.
    """
    own, trained = get_type_hints(configuration), get_type_hints(Recipe)
    values, unread = _without_features(values, own)
    if "task" in own and isinstance(values.get("task"), Mapping):
        # A sweep takes a task by its name alone.
        values = {**values, "task": values["task"].get("name", TaskConfig.name)}
    for key in values:
        if key not in own and key not in trained:
            raise unknown_key(str(key), list(dict.fromkeys([*own, *trained])))
    foreign = {key: value for key, value in values.items() if key not in own} | unread
    if not foreign:
        return dict(values)
    check_keys(Recipe, foreign)
    training, evaluation = foreign.get("training", {}), foreign.get("evaluation", {})
    validation, test = evaluation.get("validation"), evaluation.get("test")
    chooses = evaluation.get("select", "last") == "best" or training.get("early_stopping") is not None
    if test is None and validation != SET_ASIDE and not chooses:
        # The recipe keeps the classifier of its last epoch, so the validation split is what it reports.
        validation, test = None, validation
    found = {
        "precision": training.get("precision"),
        "workers": training.get("workers"),
        "batch_size": evaluation.get("batch_size") or training.get("batch_size"),
        "split": test if test_split else None,
        "validation": validation,
        "test": test,
    }
    if values.get("task") == "segmentation":
        # Its sweep measures no test split.
        found["test"] = None
    taken = {key: value for key, value in found.items() if key in own and value is not None}
    return taken | {key: value for key, value in values.items() if key in own and key != "output"}


def _without_features(values: Mapping[str, Any], own: Mapping[str, type]) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """A file's values, whose extractor keeps only what recipes that look at many features have, and the section as it
    was if something was left out."""
    section = values.get("extractor")
    if own.get("extractor") is not ReadingConfig or not isinstance(section, Mapping):
        return values, {}
    kept = {key: value for key, value in section.items() if key not in get_type_hints(ExtractorConfig)}
    kept |= {key: section[key] for key in get_type_hints(ReadingConfig) if key in section}
    return {**values, "extractor": kept}, {"extractor": section} if len(kept) < len(section) else {}


def choice_note(data: DataConfig, validation: str) -> str | None:
    """The note where a choice is made on the images that the literature reports for a data set; else None."""
    name = canonical_name(data.name)
    if data.split_name(validation) != _REPORTED.get(name, TEST):
        return None
    return (
        f"chosen on {validation}, the images that are reported for {name}: the best result on them overestimates "
        "that on new images, and must not be compared with published numbers; holdout sets training images aside"
    )
