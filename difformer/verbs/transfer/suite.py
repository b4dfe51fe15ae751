"""A transfer suite: its recipe, and the training runs that follow from it."""

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from difformer.analysis import Metric
from difformer.config import as_integer
from difformer.config.reading import (
    build,
    check_key,
    check_keys,
    create_parser,
    dotted,
    overlay,
    plain,
    put,
    read_values,
)
from difformer.data import DataConfig
from difformer.engine.config.recipe import Recipe, TaskConfig
from difformer.files import expand_user
from difformer.tasks import find_task

# Of classifications; of other tasks, all that they have.
METRICS = ("top1", "mean_per_class")
_OWN_KEYS = (
    "output", "data.holdout", "evaluation.validation", "evaluation.select", "evaluation.criterion", "evaluation.test",
    "seeds",
)  # fmt: skip


@dataclass(frozen=True)
class TransferRecipe:
    """The recipe of a suite: heads that are trained on several data sets.

    For each data set and head, every combination of the candidates is trained without a part of the training images
    and measured on that part. The best is then trained on all training images, once for each seed, and measured on the
    test images.

    Attributes:
        datasets: data sections by name.
        heads: sections of a recipe by name, laid over `base`.
        base: sections of a recipe.
        output: folder of the suite.
        root: folder in which relative roots of data sets lie.
        candidates: lists of values by the recipe's dotted key, `{optimizer.lr: [0.01, 0.1]}`.
        holdout: fraction of each class of the training images on which candidates are compared.
        seeds: of the runs that are tested; candidates are compared with the first.
        seed_keys: the keys that a seed sets. With cached features, training.seed alone avoids extracting them anew.
        metrics: by data set, by which candidates are chosen: top1 or mean_per_class, of another task one of its
            metrics; top1, or the task's first, when left out.
        published: test top-1 in %, or the first metric of another task, by row and data set, to show beside the
            results; rows may be heads and others.
        source: where the published numbers are from.
    """

    datasets: Mapping[str, Any]
    heads: Mapping[str, Any]
    base: Mapping[str, Any] = field(default_factory=dict)
    output: str = "runs/transfer"
    root: str | None = None
    candidates: Mapping[str, Any] = field(default_factory=dict)
    holdout: float = 0.1
    seeds: tuple[int, ...] = (0, 1, 2)
    seed_keys: tuple[str, ...] = ("training.seed", "data.seed", "extractor.seed")
    metrics: Mapping[str, str] = field(default_factory=dict)
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("seeds", "seed_keys"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be at least one number, each once, got {list(self.seeds)}")
        for seed in self.seeds:
            as_integer("seeds", seed)
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout must lie between 0 and 1, got {self.holdout}")
        self._check_sections()
        for kind, names in (("datasets", self.datasets), ("heads", self.heads)):
            if not names:
                raise ValueError(f"{kind} must name at least one")
            for name in names:
                if not re.fullmatch(r"\w[\w.-]*", str(name)):
                    raise ValueError(f"{kind} must have names that folders can have, got {name!r}")
        known = self.reported_metrics
        for name, metric in self.metrics.items():
            if name not in self.datasets or metric not in known:
                raise ValueError(
                    f"metrics must give one of {', '.join(known)} for data sets of the suite, got {name}: {metric}"
                )
        for key in self.seed_keys:
            check_key(Recipe, key)

    @property
    def reported_metrics(self) -> dict[str, Metric]:
        """Those of the task that are reported, the first by default."""
        task = build(TaskConfig, self.base.get("task") or {})
        found = find_task(task.name, task.arguments).metrics
        return {name: found[name] for name in (METRICS if task.classifies else found)}

    def _check_sections(self) -> None:
        object.__setattr__(self, "candidates", dict(dotted(self.candidates)))
        for key, values in self.candidates.items():
            check_key(Recipe, key, "candidates.")
            if not isinstance(values, list | tuple) or not values:
                raise ValueError(f"candidates.{key} must be a list of values, got {values!r}")
        for name, section in self.datasets.items():
            check_keys(DataConfig, _section("datasets", name, section), f"datasets.{name}.")
        for kind, sections in (("heads", self.heads), ("base", {"base": self.base})):
            for name, section in sections.items():
                where = "base." if kind == "base" else f"heads.{name}."
                check_keys(Recipe, _section(kind, name, section), where)
                self._check_own(section, where)
        self._check_own(self.candidates, "candidates.")

    def _check_own(self, section: Mapping[str, Any], where: str) -> None:
        for key, _ in dotted(section):
            if key in (*_OWN_KEYS, *self.seed_keys):
                raise ValueError(f"{where}{key} is set by the suite itself, from output, holdout, seeds and metrics")


@dataclass(frozen=True)
class PlannedRun:
    """One training of a suite.

    Attributes:
        name: its folder in that of the suite.
        recipe: what is trained.
        values: of the candidate, by dotted key.
        seed: one of the suite's.
    """

    name: str
    recipe: Recipe
    values: Mapping[str, Any]
    seed: int


class Suite:
    """The runs of a transfer recipe. All of them are built here, so that mistakes show before the first.

    Args:
        recipe: of the suite.

    Attributes:
        pairs: data set and head, in the order of the recipe.
        metrics: that are reported, the first by default.

    Raises:
        ValueError: a recipe of a run is wrong, runs have different tasks, or would differ in precision or share a
            folder.
    """

    def __init__(self, recipe: TransferRecipe) -> None:
        self.recipe = recipe
        self.pairs = list(product(recipe.datasets, recipe.heads))
        self._parser = create_parser(Recipe, "transfer", "", {})
        keys = list(recipe.candidates)
        self._grid = [dict(zip(keys, values, strict=True)) for values in product(*recipe.candidates.values())]
        self.metrics = recipe.reported_metrics
        planned = [
            self.finals(*pair, values, seeds=recipe.seeds[:1])[0] for pair in self.pairs for values in self._grid
        ]
        if len({run.name for run in planned}) < len(planned):
            raise ValueError("candidates must differ in more than punctuation, since their folders are named by them")
        task = build(TaskConfig, recipe.base.get("task") or {}).name
        if other := {run.recipe.task.name for run in planned} - {task}:
            raise ValueError(f"all runs of a suite must have the task of base.task, {task}, got {min(other)}")
        if len({run.recipe.training.precision for run in planned}) > 1:
            raise ValueError("training.precision must be the same for all runs of a suite")

    def metric(self, dataset: str) -> str:
        """The metric by which candidates are compared on a data set."""
        return self.recipe.metrics.get(dataset, next(iter(self.metrics)))

    def choices(self, dataset: str, head: str) -> list[PlannedRun]:
        """The runs that compare the candidates; none if there is a single one."""
        if len(self._grid) == 1:
            return []
        settings = {
            "evaluation.validation": "holdout",
            "evaluation.criterion": self.metric(dataset),
            "data.holdout": self.recipe.holdout,
        }
        seed = self.recipe.seeds[0]
        return [self._plan(dataset, head, "choice", values, seed, settings) for values in self._grid]

    def finals(
        self, dataset: str, head: str, values: Mapping[str, Any] | None = None, seeds: tuple[int, ...] | None = None
    ) -> list[PlannedRun]:
        """The runs that are tested, one for each seed.

        Args:
            dataset, head: a pair.
            values: of the chosen candidate; of the first one when left out.
            seeds: those of the suite when left out.
        """
        values = self._grid[0] if values is None else values
        seeds = self.recipe.seeds if seeds is None else seeds
        settings = {"evaluation.test": "test", "data.holdout": 0.0}
        return [self._plan(dataset, head, f"test-seed{seed}", values, seed, settings) for seed in seeds]

    def __len__(self) -> int:
        choices = len(self._grid) if len(self._grid) > 1 else 0
        return len(self.pairs) * (choices + len(self.recipe.seeds))

    def _plan(
        self, dataset: str, head: str, purpose: str, values: Mapping[str, Any], seed: int, settings: Mapping[str, Any]
    ) -> PlannedRun:
        """Builds a run; its folder is named by purpose and values, its recipe lays data set and head over the base."""
        words = [purpose, *(f"{key}={value}" for key, value in values.items())]
        folder = re.sub(r"[^\w.=+-]+", "_", "-".join(words))
        name = f"{dataset}/{head}/{folder}"
        suite = self.recipe
        data = dict(suite.datasets[dataset])
        if suite.root is not None:
            data["root"] = str(expand_user(suite.root) / (data.get("root") or ""))
        content = overlay(Recipe, overlay(Recipe, suite.base, suite.heads[head]), {"data": data})
        content = deepcopy(plain(content))
        settings = {
            **values,
            **dict.fromkeys(suite.seed_keys, seed),
            **settings,
            "evaluation.select": "last",
            "output": str(Path(suite.output) / name),
        }
        for key, value in settings.items():
            put(content, key, value)
        try:
            recipe = read_values(self._parser, Recipe, content)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        return PlannedRun(name, recipe, values, seed)


def _section(kind: str, name: str, section: Any) -> Mapping[str, Any]:
    if not isinstance(section, Mapping):
        raise ValueError(f"{kind}: {name} must hold keys and values, got {section!r}")
    return section
