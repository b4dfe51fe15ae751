"""The choice of block and timestep, and of several to fuse; the body of `difformer select`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
import yaml
from torch import Tensor

from difformer.analysis import choose_leave_one_out, ridge_path, view_criterion
from difformer.analysis.probes import Labelled, best, compare, create_probe
from difformer.analysis.ridge import STRENGTHS
from difformer.backbones import UNetBackbone
from difformer.data import percentage
from difformer.engine.accelerator import create_accelerator, solver_device
from difformer.engine.build import build_backbone, build_dataset, epoch_seed
from difformer.engine.evaluation.result_folder import ResultFolder, write_json
from difformer.engine.processes import on_main
from difformer.engine.recipes.computing import training_like
from difformer.engine.recipes.reading import dump, plain
from difformer.engine.recipes.sweep import SelectRecipe
from difformer.engine.selection.search import Search, greedy_set, pass_costs
from difformer.engine.sweep.features import PooledInEveryWay, SplitFeatures, check_memory, read_split
from difformer.features import FeatureExtractor
from difformer.taps import resolve_taps

_FILES = ("select.json", "recommended.yaml", "recipe.yaml")


def select(recipe: SelectRecipe, *, overwrite: bool = False) -> dict[str, Any]:
    """Searches for the best block and timestep, then for features to fuse.

    Args:
        recipe: everything about it.
        overwrite: replace results that are there.

    Returns:
        As in `select.json`: `best`, `measured` (on all images), `coarse` (on few), `cost` (share of a whole sweep's),
        and with labels `fused`.

    Raises:
        ValueError: a value in the recipe or in the data.
        OSError: something cannot be read or written.
        ImageError: an image cannot be read, and such are not to be skipped.
    """
    folder = ResultFolder(recipe.output, _FILES)
    folder.check(overwrite=overwrite)
    accelerator = create_accelerator(training_like(recipe), trackers=False)
    backbone = build_backbone(recipe.backbone, precision=recipe.precision, device=accelerator.device)
    taps = resolve_taps(recipe.taps, backbone.taps) if recipe.taps else tuple(backbone.taps)
    taps = tuple(tap for tap in backbone.taps if tap in taps)
    reader = _Reader(recipe, backbone, taps, accelerator)
    # A timestep that the backbone does not have is refused here, not when its turn comes.
    FeatureExtractor(backbone, taps=taps, timesteps=recipe.timesteps)
    costs = _costs(backbone, taps)
    if recipe.labels:
        _check_budget(recipe.budget, costs)
    # More passes than one can only be filled with more timesteps than one.
    passes = max(1, int(recipe.budget)) if recipe.labels else 1
    search = Search(reader.measure if recipe.labels else reader.criterion, recipe.timesteps, passes)
    best_pair = search.run()
    pairs = [best_pair]
    results = _found(search, best_pair, reader)
    if recipe.labels:
        pairs = greedy_set(reader.fused_score, list(search.found), costs, budget=recipe.budget, most=recipe.most)
        results["score"] = f"{recipe.criterion} on {recipe.validation}"
        results["fused"] = {
            "pairs": [{"tap": tap, "t": t, "pool": reader.pools[tap, t]} for tap, t in pairs],
            "score": reader.fused_score(pairs),
            "passes": pass_costs(pairs, costs),
        }
    results["recipe"] = plain(asdict(recipe))
    if accelerator.is_main_process:
        _write(folder, recipe, results, _recommended(pairs, taps))
    return results


def _costs(backbone: UNetBackbone, taps: Sequence[str]) -> dict[str, float]:
    """Of an image up to each tap, in passes through the whole network."""
    whole = list(backbone.taps.values())[-1].flops
    return {tap: backbone.taps[tap].flops / whole for tap in taps}


def _check_budget(budget: float, costs: Mapping[str, float]) -> None:
    cheapest = min(costs, key=lambda tap: costs[tap])
    if costs[cheapest] > budget:
        raise ValueError(
            f"budget: no feature of {', '.join(costs)} is within {budget:g} passes of the network; the cheapest, "
            f"{cheapest}, takes {costs[cheapest]:.3g}"
        )


def _found(search: Search, best_pair: tuple[str, int], reader: "_Reader") -> dict[str, Any]:
    """What the search has seen."""
    measured = [
        {"tap": tap, "t": t, "pool": reader.pools[tap, t], "score": score} for (tap, t), score in search.found.items()
    ]
    return {
        "best": next(row for row in measured if (row["tap"], row["t"]) == best_pair),
        "score": "1 - view criterion, without labels",
        "measured": measured,
        "coarse": [
            {"tap": tap, "t": t, "score": score} for t, scores in search.coarse.items() for tap, score in scores.items()
        ],
        "cost": search.spent / search.grid_cost,
    }


class _Reader:
    """Features of a part of the images, and how good they are.

    Args:
        recipe: of the search.
        backbone: gives the features.
        taps: blocks to read.
        accelerator: Accelerate's.

    Attributes:
        pools: the best pooling of each feature that was measured on all images.
    """

    def __init__(self, recipe: SelectRecipe, backbone: UNetBackbone, taps: Sequence[str], accelerator: Any) -> None:
        self._recipe = recipe
        self._backbone = backbone
        self._taps = taps
        self._accelerator = accelerator
        self._device = solver_device(accelerator.device)
        self._kept: dict[tuple[str, int], dict[str, Tensor]] = {}
        self._labels: dict[str, Tensor] = {}
        self._classes = len(build_dataset(recipe.data, "train").class_names)
        self.pools: dict[tuple[str, int], int] = {}

    def measure(self, t: int, share: float) -> Mapping[str, float]:
        """Accuracy by tap in its best pooling: of some images by leaving one out, of all on the validation split."""
        train = self._read("train", t, share)
        if share < 1:
            return {tap: max(self._leave_one_out(train, tap)) for tap in self._taps}
        splits = {"train": train, self._recipe.validation: self._read(self._recipe.validation, t, 1.0)}
        self._labels = {name: torch.from_numpy(split.labels) for name, split in splits.items()}
        return {tap: self._keep_best_pool(splits, tap, t) for tap in self._taps}

    def _leave_one_out(self, train: SplitFeatures, tap: str) -> list[float]:
        """By pooling."""
        labels = torch.from_numpy(train.labels)
        strengths = self._recipe.strengths or STRENGTHS
        fits = partial(ridge_path, num_classes=self._classes, strengths=strengths, criterion=self._recipe.criterion)
        return [
            choose_leave_one_out(fits(train.of(tap, pool).to(self._device), labels)).leave_one_out
            for pool in self._recipe.pools
        ]

    def _keep_best_pool(self, splits: Mapping[str, SplitFeatures], tap: str, t: int) -> float:
        """Accuracy in the best pooling, whose vectors are kept for fusing."""
        scores = {}
        for pool in self._recipe.pools:
            vectors = {name: split.of(tap, pool) for name, split in splits.items()}
            scores[pool] = self._score(vectors)
            if scores[pool] == max(scores.values()):
                self.pools[tap, t] = pool
                # A copy, which lets go of the columns of all other blocks and poolings.
                self._kept[tap, t] = {name: rows.clone() for name, rows in vectors.items()}
        return max(scores.values())

    def fused_score(self, pairs: Sequence[tuple[str, int]]) -> float:
        """Accuracy on the validation split of a probe of several features together, measured before."""
        names = ("train", self._recipe.validation)
        return self._score({name: torch.cat([self._kept[pair][name] for pair in pairs], dim=1) for name in names})

    def _score(self, vectors: Mapping[str, Tensor]) -> float:
        train, validation = (
            Labelled(vectors[name].to(self._device), self._labels[name]) for name in ("train", self._recipe.validation)
        )
        probe = create_probe("ridge", strengths=self._recipe.strengths)
        return best(compare(probe, train, validation, self._classes, criterion=self._recipe.criterion)).accuracy

    def criterion(self, t: int, share: float) -> Mapping[str, float]:
        """1 minus the label-free criterion by tap, of as many images as make the share together with their views."""
        recipe = self._recipe
        (pool,) = recipe.pools
        views = [self._read("train", t, share / recipe.views, view=view) for view in range(recipe.views)]
        stacked = {tap: torch.stack([split.of(tap, pool) for split in views], dim=1) for tap in self._taps}
        self.pools |= {(tap, t): pool for tap in self._taps}
        return {tap: 1 - view_criterion(rows.to(self._device)) for tap, rows in stacked.items()}

    def _read(self, split: str, t: int, share: float, view: int | None = None) -> SplitFeatures:
        recipe = self._recipe
        images = build_dataset(recipe.data, split, augment=view is not None)
        if share < 1:
            images = images.part(percentage(images.labels, 100 * share, recipe.data.seed))
        seed = recipe.seed if view is None else epoch_seed(recipe.seed, view)
        images.set_epoch(view or 0)
        extractor = FeatureExtractor(self._backbone, taps=self._taps, timesteps=[t], seed=seed)
        model = PooledInEveryWay(extractor, recipe.pools)
        on_main(self._accelerator, partial(check_memory, model, [len(images)]))
        return read_split(
            model,
            images,
            self._accelerator,
            batch_size=recipe.batch_size,
            workers=recipe.workers,
            title=f"t = {t}, {len(images)} images of {split}",
        )


def _recommended(pairs: Sequence[tuple[str, int]], taps: Sequence[str]) -> str:
    """What to read, as a YAML file that goes over a recipe: all blocks at all timesteps that were chosen."""
    chosen = {tap for tap, _ in pairs}
    values = {
        "extractor": {
            "taps": [tap for tap in taps if tap in chosen],
            "timesteps": sorted({t for _, t in pairs}),
        }
    }
    return yaml.safe_dump(values, sort_keys=False)


def _write(folder: ResultFolder, recipe: SelectRecipe, results: Mapping[str, Any], recommended: str) -> None:
    with folder.write() as temporary:
        write_json(temporary / "select.json", dict(results))
        (temporary / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
        (temporary / "recommended.yaml").write_text(recommended, encoding="utf-8")
    chosen = results["best"]
    print(f"{chosen['tap']}, t = {chosen['t']}, pool {chosen['pool']}: {chosen['score']:.4f} ({results['score']})")
    print(f"at {results['cost']:.0%} of a sweep's cost")
    if "fused" in results:
        pairs = ", ".join(f"{pair['tap']} at {pair['t']}" for pair in results["fused"]["pairs"])
        print(f"to fuse: {pairs}: {results['fused']['score']:.2%}, {results['fused']['passes']:.2f} passes")
    print(f"{folder.path}: select.json, recommended.yaml", flush=True)
