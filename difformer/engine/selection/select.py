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
from difformer.backbones import UNetBackbone
from difformer.data import percentage
from difformer.engine.accelerator import create_accelerator, solver_device
from difformer.engine.build import build_backbone, build_dataset, epoch_seed
from difformer.engine.evaluation.result_folder import ResultFolder, write_json
from difformer.engine.recipes.computing import training_like
from difformer.engine.recipes.reading import dump, plain
from difformer.engine.recipes.sweep import SelectRecipe
from difformer.engine.selection.search import Search, greedy_set, pass_costs
from difformer.engine.sweep.features import PooledInEveryWay, SplitFeatures, read_split
from difformer.features import FeatureExtractor
from difformer.taps import resolve_taps

_FILES = ("select.json", "recommended.yaml", "recipe.yaml")


def select(recipe: SelectRecipe, *, overwrite: bool = False) -> dict[str, Any]:
    """Searches for the best block and timestep, then for features to fuse.

    Args:
        recipe: everything about it.
        overwrite: replace results that are there.

    Returns:
        As in `select.json`: `best`, `measured`, `cost` (share of a whole sweep's), and with labels `fused`; where the
        budget is too small for any feature that was measured, `too_dear` says so in its place.

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
    reader = _Reader(recipe, backbone, accelerator)
    # A timestep that the backbone does not have is refused here, not when its turn comes.
    FeatureExtractor(backbone, taps=taps, timesteps=recipe.timesteps)
    whole = list(backbone.taps.values())[-1].flops
    costs = {tap: backbone.taps[tap].flops / whole for tap in taps}
    if recipe.labels and min(costs.values()) > recipe.budget:
        raise ValueError(f"budget: {_too_dear(costs, recipe.budget)}")
    search = Search(reader.measure if recipe.labels else reader.criterion, taps, costs, recipe.timesteps)
    tap, t = search.run()
    results: dict[str, Any] = {
        "best": {"tap": tap, "t": t, "score": search.found[tap, t]},
        "score": f"{recipe.criterion} on {recipe.validation}"
        if recipe.labels
        else "1 - view criterion, without labels",
        "measured": [{"tap": a, "t": b, "score": score} for (a, b), score in search.found.items()],
        "cost": search.spent / search.grid_cost,
    }
    pairs = [(tap, t)]
    if recipe.labels:
        fused = greedy_set(reader.fused_score, list(search.found), costs, budget=recipe.budget, most=recipe.most)
        pairs = fused or pairs
        if fused:
            results["fused"] = {
                "pairs": [{"tap": a, "t": b} for a, b in pairs],
                "score": reader.fused_score(pairs),
                "passes": pass_costs(pairs, costs),
            }
        else:
            measured = {tap: costs[tap] for tap, _ in search.found}
            results["too_dear"] = f"{_too_dear(measured, recipe.budget)}; recommended is the best without a budget"
    results["recipe"] = plain(asdict(recipe))
    if accelerator.is_main_process:
        _write(folder, recipe, results, _recommended(pairs, taps))
    return results


def _too_dear(costs: Mapping[str, float], budget: float) -> str:
    cheapest = min(costs, key=lambda tap: costs[tap])
    return (
        f"no feature of {', '.join(costs)} is within {budget:g} passes of the network; the cheapest, {cheapest}, takes "
        f"{costs[cheapest]:.3g}"
    )


class _Reader:
    """Features of a part of the images, and how good they are.

    Args:
        recipe: of the search.
        backbone: gives the features.
        accelerator: Accelerate's.
    """

    def __init__(self, recipe: SelectRecipe, backbone: UNetBackbone, accelerator: Any) -> None:
        self._recipe = recipe
        self._backbone = backbone
        self._accelerator = accelerator
        self._device = solver_device(accelerator.device)
        self._kept: dict[tuple[str, int], dict[str, Tensor]] = {}
        self._labels: dict[str, Tensor] = {}
        self._classes = len(build_dataset(recipe.data, "train").class_names)

    def measure(self, t: int, taps: Sequence[str], share: float) -> Mapping[str, float]:
        """Accuracy by tap: of some images by leaving one out, of all of them on the validation split."""
        recipe = self._recipe
        train = self._read("train", t, taps, share)
        if share < 1:
            fits = partial(ridge_path, num_classes=self._classes, strengths=self._strengths, criterion=recipe.criterion)
            labels = torch.from_numpy(train.labels)
            return {
                tap: choose_leave_one_out(fits(train.of(tap, recipe.pool).to(self._device), labels)).leave_one_out
                for tap in taps
            }
        splits = {"train": train, recipe.validation: self._read(recipe.validation, t, taps, 1.0)}
        self._labels = {name: torch.from_numpy(split.labels) for name, split in splits.items()}
        for tap in taps:
            self._kept[tap, t] = {name: split.of(tap, recipe.pool) for name, split in splits.items()}
        return {tap: self.fused_score([(tap, t)]) for tap in taps}

    def fused_score(self, pairs: Sequence[tuple[str, int]]) -> float:
        """Accuracy on the validation split of a probe of several features together, measured before."""
        train, validation = (
            Labelled(torch.cat([self._kept[pair][name] for pair in pairs], dim=1).to(self._device), self._labels[name])
            for name in ("train", self._recipe.validation)
        )
        probe = create_probe("ridge", strengths=self._strengths)
        return best(compare(probe, train, validation, self._classes, criterion=self._recipe.criterion)).accuracy

    def criterion(self, t: int, taps: Sequence[str], share: float) -> Mapping[str, float]:
        """1 minus the label-free criterion by tap, of as many images as make the share together with their views."""
        recipe = self._recipe
        views = [self._read("train", t, taps, share / recipe.views, view=view) for view in range(recipe.views)]
        stacked = {tap: torch.stack([split.of(tap, recipe.pool) for split in views], dim=1) for tap in taps}
        return {tap: 1 - view_criterion(rows.to(self._device)) for tap, rows in stacked.items()}

    @property
    def _strengths(self) -> Sequence[float]:
        # Of few images, the best penalty is larger.
        return self._recipe.strengths or (1e-2, 1e-1, 1.0, 10.0)

    def _read(self, split: str, t: int, taps: Sequence[str], share: float, view: int | None = None) -> SplitFeatures:
        recipe = self._recipe
        images = build_dataset(recipe.data, split, augment=view is not None)
        if share < 1:
            images = images.part(percentage(images.labels, 100 * share, recipe.data.seed))
        seed = recipe.seed if view is None else epoch_seed(recipe.seed, view)
        images.set_epoch(view or 0)
        extractor = FeatureExtractor(self._backbone, taps=taps, timesteps=[t], seed=seed)
        return read_split(
            PooledInEveryWay(extractor, [recipe.pool]),
            images,
            self._accelerator,
            batch_size=recipe.batch_size,
            workers=recipe.workers,
            title=f"t = {t}, {len(images)} images, to {taps[-1]}",
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
    print(f"{chosen['tap']}, t = {chosen['t']}: {chosen['score']:.4f} ({results['score']})")
    print(f"at {results['cost']:.0%} of a sweep's cost")
    if "fused" in results:
        pairs = ", ".join(f"{pair['tap']} at {pair['t']}" for pair in results["fused"]["pairs"])
        print(f"to fuse: {pairs}: {results['fused']['score']:.2%}, {results['fused']['passes']:.2f} passes")
    if "too_dear" in results:
        print(results["too_dear"])
    print(f"{folder.path}: select.json, recommended.yaml", flush=True)
