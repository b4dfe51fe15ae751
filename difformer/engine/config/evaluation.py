"""What an evaluation and a probe are made of, and what they take from the recipe of a training run."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args, get_type_hints

from difformer.config import as_positive_integer
from difformer.data import HOLDOUT as SET_ASIDE
from difformer.data import DataConfig, canonical_name
from difformer.data.dataset import TEST
from difformer.engine.config.computing import check_computing
from difformer.engine.config.reading import check_keys, unknown_key
from difformer.engine.config.training import (
    BackboneConfig,
    BatchSize,
    CacheConfig,
    ExtractorConfig,
    FeatureSource,
    Precision,
    Recipe,
    as_batch_size,
    check_choice,
)

ProbeMethod = Literal["knn", "logistic", "ridge", "sgd"]
ProbeCriterion = Literal["top1", "mean_per_class"]

# Of the training split, where a probe is to choose on a holdout and the data does not say how large.
HOLDOUT = 0.1
# What the literature reports, where it is not the test split: the labels of ImageNet's are not public.
_REPORTED = {"imagenet": "val"}


@dataclass(frozen=True)
class EvaluationRecipe:
    """The evaluation of a classifier.

    Attributes:
        classifier: folder of a run, classifier file, or hf://owner/name, fetched where `backbone.download` allows it.
        data: which images.
        split: which of their splits.
        output: folder for the results; `eval-SPLIT` in the run's folder when null.
        backbone: the diffusion model that the classifier was trained on.
        features: `live`, or `cached` on the disk (not for DifFeed).
        cache: where.
        precision: no, bf16 or fp16 for head and backbone.
        batch_size: images at once, over all processes; `auto` for as many as go through fastest.
        workers: of each process's data loader.
    """

    classifier: str
    data: DataConfig
    split: str = "test"
    output: str | None = None
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    features: FeatureSource = "live"
    cache: CacheConfig = field(default_factory=CacheConfig)
    precision: Precision = "no"
    batch_size: BatchSize = 128
    workers: int = 2

    def __post_init__(self) -> None:
        check_choice("features", self.features, get_args(FeatureSource))
        check_computing(self)
        object.__setattr__(self, "batch_size", as_batch_size("batch_size", self.batch_size))


@dataclass(frozen=True)
class ProbeRecipe:
    """A classifier on pooled features that is fitted at once for a grid of settings.

    Attributes:
        data: which images. Where a holdout is to be the validation split, `holdout` is 0.1 unless given.
        output: folder for the results.
        backbone: the diffusion model the features come from.
        extractor: which features are read.
        pool: side to which each feature map is averaged.
        normalize: scale each feature to length 1 before they are joined, so that none outweighs the others.
        method: knn, logistic, ridge or sgd (linear probes trained by gradient descent).
        ks: numbers of neighbours to choose from; when null those of 10, 20, 100 and 200 that there are images for.
        temperatures: of the neighbours' votes, to choose from.
        strengths: of the L2 penalty of logistic, ridge and sgd, to choose from; when null over several decades.
        rates: learning rates of sgd, to choose from.
        criterion: what is best on the validation split: top1 or mean_per_class.
        validation: split that chooses, and alone does so.
        test: split that is measured once, after the choice; none when null.
        refit: after the choice, fit on training and validation images together; for knn, both are neighbours. Without
            effect where `data` has a label subset (k_shot, percent or list_file), which limits `train` alone: the
            probe is then fitted on no more labels than that, though the whole validation split chooses its settings.
        precision: no, bf16 or fp16 for the backbone.
        batch_size: images at once, over all processes; `auto` for as many as go through fastest.
        workers: of each process's data loader.
    """

    data: DataConfig
    output: str = "runs/probe"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    extractor: ExtractorConfig = field(default_factory=ExtractorConfig)
    pool: int = 1
    normalize: bool = False
    method: ProbeMethod = "knn"
    ks: tuple[int, ...] | None = None
    temperatures: tuple[float, ...] = (0.07,)
    strengths: tuple[float, ...] | None = None
    rates: tuple[float, ...] | None = None
    criterion: ProbeCriterion = "top1"
    validation: str = "holdout"
    test: str | None = "test"
    refit: bool = True
    precision: Precision = "no"
    batch_size: BatchSize = 128
    workers: int = 2

    def __post_init__(self) -> None:
        check_computing(self)
        object.__setattr__(self, "batch_size", as_batch_size("batch_size", self.batch_size))
        object.__setattr__(self, "pool", as_positive_integer("pool", self.pool))
        check_choice("method", self.method, get_args(ProbeMethod))
        check_choice("criterion", self.criterion, get_args(ProbeCriterion))
        self._check_splits()
        self._check_grid()
        if self.extractor.feedback_taps:
            raise ValueError(
                "a probe trains nothing, so DifFeed's feedback layers would stay as they are initialised; leave out "
                "extractor.feedback_taps, or train a classifier"
            )

    @property
    def refits(self) -> bool:
        """Whether validation images are learned from after the choice: as `refit` says, never beyond a label subset."""
        return self.refit and not self.data.has_label_subset

    def _check_splits(self) -> None:
        if "train" in (self.validation, self.test):
            raise ValueError("train cannot be validation or test: the probe is fitted on it")
        if self.validation == self.test:
            raise ValueError(
                f"test: {self.test} would be measured on the images that choose; choose on another split, such as "
                "holdout"
            )
        if "holdout" in (self.validation, self.test) and not self.data.holdout:
            object.__setattr__(self, "data", replace(self.data, holdout=HOLDOUT))

    def _check_grid(self) -> None:
        if self.ks is not None:
            object.__setattr__(self, "ks", tuple(as_positive_integer("ks", k) for k in self.ks))
        for name in ("temperatures", "strengths", "rates"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        for name in ("ks", "temperatures", "strengths", "rates"):
            values = getattr(self, name)
            if values is not None and not (values and len(set(values)) == len(values) and min(values) > 0):
                raise ValueError(f"{name} must be one or more different positive numbers, got {list(values)}")


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
    for key in values:
        if key not in own and key not in trained:
            raise unknown_key(str(key), list(dict.fromkeys([*own, *trained])))
    foreign = {key: value for key, value in values.items() if key not in own}
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
