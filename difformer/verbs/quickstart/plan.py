"""What a quickstart trains and measures: recipes for each method, from a YAML file in this folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from logging import getLogger
from pathlib import Path
from typing import Any, Literal, get_args

from difformer.config import as_integer, as_positive_integer, check_choice
from difformer.config.options import unknown_key
from difformer.config.reading import ADDED_LATER, build, create_parser, overlay, read_values, read_yaml
from difformer.data import DataConfig
from difformer.data.subset import TEST
from difformer.engine.config.recipe import ExtractorConfig, Recipe
from difformer.files import expand_user
from difformer.verbs.probe.recipe import ProbeRecipe
from difformer.verbs.quickstart.folders import check_output, with_splits

_log = getLogger(__name__)

QuickstartTask = Literal["classification", "segmentation", "detection"]
SVM, KNN = "svm", "knn"
RECIPES = Path(__file__).parent
# Sections that all methods must share, so that their numbers can be compared.
_SHARED = ("data", "backbone")
# The key of earlier versions for a head's `training.least_steps`.
_FORMER_STEPS = "least_steps"


@dataclass(frozen=True)
class QuickstartConfig:
    """What a user sets for a quickstart.

    Attributes:
        task: classification, segmentation or detection.
        data: a folder of images with one folder for each class, or with such folders in `train` and `test`; ELPV when
            None. With `recipe`, the root of its data set.
        recipe: a YAML file with the same keys as those beside this file, to use in place of them.
        levels: for ELPV, four levels of certainty in place of two classes.
        output: folder of everything; `runs/quickstart-…` when None.
        seeds: number of seeds of each trained method.
        diffeed_seeds: number of seeds of DifFeed, which takes longest; at most `seeds` if it starts from another head.
        k_shot: train only on that many images of each class, drawn anew for each seed, so that all methods have a
            spread; k-NN also reads a tenth of the training images, to choose its k.

    Raises:
        ValueError: a number out of range, or levels of a folder.
    """

    task: QuickstartTask = field(default="classification", metadata=ADDED_LATER)
    data: str | None = None
    recipe: str | None = None
    levels: bool = False
    output: str | None = None
    seeds: int = 3
    diffeed_seeds: int = 1
    k_shot: int | None = None

    def __post_init__(self) -> None:
        check_choice("task", self.task, get_args(QuickstartTask))
        as_positive_integer("seeds", self.seeds)
        if as_integer("diffeed_seeds", self.diffeed_seeds) < 0:
            raise ValueError(f"diffeed_seeds must be at least 0, got {self.diffeed_seeds}")
        if self.k_shot is not None:
            as_positive_integer("k_shot", self.k_shot)
        if self.levels and (self.data or self.recipe) is not None:
            raise ValueError("levels are ELPV's; leave out data and recipe, or levels")


@dataclass(frozen=True)
class PlannedRun:
    """One training.

    Attributes:
        method: its name in the YAML file, such as difformer.
        seed: of head, order and dropout, and of the images if only some of each class are kept.
        recipe: what is trained.
    """

    method: str
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.method}-{self.seed}"


@dataclass(frozen=True)
class Plan:
    """Everything that a quickstart does.

    Attributes:
        title, about: of the page.
        titles: of the methods, by name, in the order of the table.
        data: which images; if only some of each class are kept, those of the first seed.
        draws: the images of each seed, by the suffix for names of methods without training; a single draw with an empty
            suffix if all seeds have the same images.
        knn: the k-NN probe.
        heads: what is trained, by method. Output, cache folder and seed are set in `runs`. An `init` names the method
            whose run with the same seed a run starts from.
        runs: the trainings, at least one.
        pictured: the features whose principal components the page shows.
        published: rows of published results: name, and values by the table's columns.
        output: the folder of everything.
    """

    title: str
    about: str
    titles: Mapping[str, str]
    data: DataConfig
    draws: Mapping[str, DataConfig]
    knn: ProbeRecipe
    heads: Mapping[str, Recipe]
    runs: tuple[PlannedRun, ...]
    pictured: ExtractorConfig
    published: tuple[Mapping[str, Any], ...]
    output: Path


@dataclass(frozen=True)
class _File:
    """The content of a YAML file."""

    title: str
    about: str
    titles: Mapping[str, str]
    base: Mapping[str, Any]
    heads: Mapping[str, Any]
    knn: Mapping[str, Any]
    pictured: ExtractorConfig
    published: tuple[Mapping[str, Any], ...] = field(default_factory=tuple)


def create_plan(config: QuickstartConfig) -> Plan:
    """The trainings and measurements of a quickstart.

    Raises:
        FileNotFoundError: there is no such folder, or no such recipe.
        ValueError: a recipe with an unknown or missing key, a bad value, or nothing to train.
    """
    file = _read(config)
    parser = create_parser(Recipe, "quickstart", "", {})
    base = read_values(parser, Recipe, file.base)
    data = _data(config, base.data)
    stem = _subject(config) if config.recipe is None else expand_user(config.recipe).stem
    output = expand_user(config.output or f"runs/quickstart-{stem}")
    check_output(data, output)
    heads = {
        method: replace(read_values(parser, Recipe, overlay(Recipe, file.base, section)), data=data)
        for method, section in file.heads.items()
    }
    if any(head.seeds for head in heads.values()):
        raise ValueError("seeds are given to a quickstart by --seeds, how many; leave them out of base and heads")
    _check_inits(config, heads)
    knn = build(ProbeRecipe, {**file.knn, "data": data, "backbone": base.backbone, "output": str(output / "knn")})
    if knn.method != "knn":
        raise ValueError(f"knn.method must be knn, got {knn.method!r}; other classifiers belong to heads")
    measured = {f"evaluation.test of {name}": head.evaluation.test for name, head in heads.items()}
    for key, split in {"knn.test": knn.test, **measured}.items():
        if split != TEST:
            raise ValueError(f"{key} must be {TEST}, on which all methods are measured, got {split!r}")
    return Plan(
        title=file.title.replace("{name}", _subject(config)),
        about=file.about,
        titles=file.titles,
        data=data,
        draws={f"-{seed}": _drawn(data, seed) for seed in range(config.seeds)} if _is_drawn(data) else {"": data},
        knn=knn,
        heads=heads,
        runs=_runs(config, heads, output),
        pictured=file.pictured,
        published=() if config.levels else tuple(file.published),
        output=output,
    )


def _check_inits(config: QuickstartConfig, heads: Mapping[str, Recipe]) -> None:
    """Raises ValueError if a method starts from one that does not come before it, or that has too few seeds."""
    methods = list(heads)
    for place, (method, recipe) in enumerate(heads.items()):
        if recipe.init is None:
            continue
        if recipe.init not in methods[:place]:
            before = f"one of the methods before it, {', '.join(methods[:place])}" if place else "a method before it"
            raise ValueError(f"heads.{method}.init must be {before}, got {recipe.init!r}")
        wanted, there = _seeds(config, recipe), _seeds(config, heads[recipe.init])
        if wanted > there:
            raise ValueError(
                f"{method} starts from {recipe.init} of the same seed, so {recipe.init} needs {wanted} seeds, but has "
                f"{there}; give --seeds {wanted}, or fewer seeds of {method}"
            )


def _seeds(config: QuickstartConfig, recipe: Recipe) -> int:
    return config.diffeed_seeds if recipe.extractor.feedback_taps else config.seeds


def _runs(config: QuickstartConfig, heads: Mapping[str, Recipe], output: Path) -> tuple[PlannedRun, ...]:
    runs = []
    for method, head in heads.items():
        for seed in range(_seeds(config, head)):
            recipe = replace(
                head,
                data=_drawn(head.data, seed),
                output=str(output / f"{method}-{seed}"),
                init=head.init and str(output / f"{head.init}-{seed}"),
                cache=replace(head.cache, folder=str(output / "features")),
                training=replace(head.training, seed=seed),
            )
            runs.append(PlannedRun(method, seed, recipe))
    if not runs:
        raise ValueError("all heads are DifFeed's and diffeed_seeds is 0, so nothing would be trained; give at least 1")
    return tuple(runs)


def _is_drawn(data: DataConfig) -> bool:
    """Whether only some training images of each class are kept, at random."""
    return data.k_shot is not None or data.percent is not None


def _drawn(data: DataConfig, seed: int) -> DataConfig:
    """The images of a seed. The choice of images matters more than anything else that a seed decides."""
    return replace(data, seed=data.seed + seed) if _is_drawn(data) else data


def _read(config: QuickstartConfig) -> _File:
    """Reads the YAML file. Methods must have different names, titles, known keys, and nothing that all must share."""
    path = RECIPES / ("elpv.yaml" if config.data is None else "folder.yaml")
    file = build(_File, read_yaml(config.recipe or path))
    heads = dict(file.heads)
    if not heads:
        raise ValueError("heads must name at least one")
    if taken := {SVM, KNN} & set(heads):
        raise ValueError(f"heads.{min(taken)} has the name of another method; choose another name")
    for name, section in ({KNN: file.knn} | {f"heads.{method}": section for method, section in heads.items()}).items():
        if not isinstance(section, Mapping):
            raise ValueError(f"{name} must hold keys and values, got {section!r}")
        for key in _SHARED:
            if key in section:
                raise ValueError(f"{name}.{key}: all methods share one {key}; give it as base.{key}")
    for method, section in heads.items():
        known = [f"heads.{method}.{field.name}" for field in fields(Recipe)]
        for key in section:
            if key != _FORMER_STEPS and f"heads.{method}.{key}" not in known:
                raise unknown_key(f"heads.{method}.{key}", [*known, f"heads.{method}.training.least_steps"])
    for method, section in file.heads.items():
        if _FORMER_STEPS in section:
            values = dict(section)
            steps = as_positive_integer(f"heads.{method}.{_FORMER_STEPS}", values.pop(_FORMER_STEPS))
            _log.warning("heads.%s.least_steps is now written heads.%s.training.least_steps", method, method)
            heads[method] = values | {"training": {**(values.get("training") or {}), "least_steps": steps}}
    for name in (SVM, KNN, *heads):
        if name not in file.titles:
            raise ValueError(f"titles must name every method; there is none for {name}")
    return replace(file, heads=heads)


def _subject(config: QuickstartConfig) -> str:
    if config.data is not None:
        return expand_user(config.data).resolve().name
    if config.recipe is not None:
        return expand_user(config.recipe).stem
    return "elpv-levels" if config.levels else "elpv"


def _data(config: QuickstartConfig, base: DataConfig) -> DataConfig:
    """The images, with their own test split, or one that is set aside."""
    if config.k_shot is not None:
        base = replace(base, k_shot=config.k_shot)
    if config.data is None:
        return replace(base, name="elpvlevels") if config.levels else base
    # Recipes that say where their splits are, and data sets that know it, only need the root.
    if config.recipe is not None and (base.name != "folder" or base.splits or base.test_fraction):
        return replace(base, root=config.data)
    root = expand_user(config.data)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {config.data}; give one that holds a folder for each class")
    return with_splits(base, root)
