"""What evaluations take from the recipe of a training run, and on which images choices are made."""

from collections.abc import Mapping
from typing import Any, get_type_hints

from difformer.config.options import unknown_key
from difformer.config.reading import check_keys
from difformer.data import HOLDOUT as SET_ASIDE
from difformer.data import DataConfig, canonical_name
from difformer.data.dataset import TEST
from difformer.engine.config.recipe import ExtractorConfig, ReadingConfig, Recipe

# Of the training split, where a probe is to choose on a holdout and the data does not say how large.
HOLDOUT = 0.1
# What the literature reports, where it is not the test split: the labels of ImageNet's are not public.
_REPORTED = {"imagenet": "val"}


def take_from_training(values: Mapping[str, Any], configuration: type, *, test_split: bool = True) -> dict[str, Any]:
    """A file's values as those of an `EvaluationRecipe` or `ProbeRecipe`; the file may be a training recipe.

    A file with a section that only training has is a training recipe. Of one, the sections of the same names are taken,
    but not the output, which is the run's; precision, workers, batch size and splits come from `training` and
    `evaluation`; the rest is checked and left out. A validation split that chooses nothing there, and is what the
    recipe reports for want of a test split, is the test split here.

    Args:
        values: of the file.
        configuration: what they are for.
        test_split: take the recipe's test split as `split`, which is for what chooses nothing on it.

    Raises:
        ValueError: a key that neither has; the message names the nearest.
    """
    own, trained = get_type_hints(configuration), get_type_hints(Recipe)
    values, unread = _without_features(values, own)
    for key in values:
        if key not in own and key not in trained:
            raise unknown_key(str(key), list(dict.fromkeys([*own, *trained])))
    foreign = {key: value for key, value in values.items() if key not in own} | unread
    if not foreign:
        return dict(values)
    check_keys(Recipe, foreign)
    training, evaluation = foreign.get("training", {}), foreign.get("evaluation", {})
    validation, test = _splits(training, evaluation)
    found = {
        "precision": training.get("precision"),
        "workers": training.get("workers"),
        "batch_size": evaluation.get("batch_size") or training.get("batch_size"),
        "split": test if test_split else None,
        "validation": validation,
        "test": test,
    }
    taken = {key: value for key, value in found.items() if key in own and value is not None}
    return taken | {key: value for key, value in values.items() if key in own and key != "output"}


def _without_features(values: Mapping[str, Any], own: Mapping[str, type]) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """A file's values with as much of its extractor as is for a look at many features, and the section where it says
    which features are read, as only recipes of one choice of them do."""
    section = values.get("extractor")
    if own.get("extractor") is not ReadingConfig or not isinstance(section, Mapping):
        return values, {}
    kept = {key: value for key, value in section.items() if key not in get_type_hints(ExtractorConfig)}
    kept |= {key: section[key] for key in get_type_hints(ReadingConfig) if key in section}
    return {**values, "extractor": kept}, {"extractor": section} if len(kept) < len(section) else {}


def choice_note(data: DataConfig, validation: str) -> str | None:
    """What to say where a choice is made on the images that the literature reports of a data set; else None."""
    name = canonical_name(data.name)
    if data.split_name(validation) != _REPORTED.get(name, TEST):
        return None
    return (
        f"chosen on {validation}, the images that are reported of {name}: what comes out best on them says too much of "
        "new images, and is not to be compared with published numbers; holdout sets training images aside"
    )


def _splits(training: Mapping[str, Any], evaluation: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The split that chooses, and the one that is reported.

    Where a recipe keeps the last classifier of a number of epochs that nothing chooses, and has no test split, its
    validation split is what it reports.
    """
    validation, test = evaluation.get("validation"), evaluation.get("test")
    chooses = evaluation.get("select", "last") == "best" or training.get("early_stopping") is not None
    if test is None and validation != SET_ASIDE and not chooses:
        return None, validation
    return validation, test
