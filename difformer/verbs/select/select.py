"""The choice of block and timestep, and of several to fuse; the body of `difformer select`."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from difformer.analysis.probes import find_criterion
from difformer.config.provenance import carried
from difformer.config.reading import dump
from difformer.engine.config.build import build_backbone
from difformer.engine.config.evaluation import choice_note
from difformer.engine.runtime.processes import create_accelerator
from difformer.engine.runtime.result_folder import ResultFolder, write_json
from difformer.features.sizes import taps_at
from difformer.taps import TapSpec, resolve_taps
from difformer.tasks.classification.certainty import Chooser
from difformer.verbs.select.accuracy import Accuracy
from difformer.verbs.select.parts import Pair, Parts
from difformer.verbs.select.recipe import SelectRecipe
from difformer.verbs.select.search import Search, set_cost
from difformer.verbs.select.views import Views

_FILES = ("select.json", "recommended.yaml", "recipe.yaml")


def select(recipe: SelectRecipe, *, overwrite: bool = False) -> dict[str, Any]:
    """Searches for the best block and timestep, then for features to fuse.

    Args:
        recipe: everything about it.
        overwrite: replace results that are there.

    Returns:
        As in `select.json`: `best`, `measured` (on all images), `coarse` (on few), `cost` (share of a whole sweep's),
        and with labels `images` (how many chose), the best's `interval`, of 95 % (None of a criterion that is no share
        of images), and `fused`.

    Raises:
        ValueError: a value in the recipe or in the data.
        OSError: something cannot be read or written.
        ImageError: an image cannot be read, and such are not to be skipped.
    """
    folder = ResultFolder(recipe.output, _FILES)
    folder.check(overwrite=overwrite)
    if recipe.labels:
        find_criterion(recipe.criterion, "ridge")
    accelerator = create_accelerator(recipe.precision)
    backbone = build_backbone(recipe.backbone, precision=recipe.precision, device=accelerator.device)
    taps = resolve_taps(recipe.taps, backbone.taps) if recipe.taps else tuple(backbone.taps)
    taps = tuple(tap for tap in backbone.taps if tap in taps)
    costs = _costs(taps_at(backbone, recipe.data.size), taps)
    _check_budget(recipe, costs)
    parts = Parts(recipe, backbone, taps, accelerator)
    measured = Accuracy(parts) if recipe.labels else Views(parts)
    search = Search(measured.measure, recipe.timesteps, recipe.fused_timesteps)
    best = search.run()
    results = _found(recipe, search, best, measured)
    pairs, chooser = [best], None
    if isinstance(measured, Accuracy):
        chooser = Chooser(parts.images[recipe.validation].labels, recipe.validation, recipe.criterion)
        results["best"]["interval"] = chooser.interval(results["best"]["score"])
        results["images"] = len(chooser.labels)
        candidates = _candidates(search.found, recipe.fused_timesteps)
        pairs, score = measured.fuse({pair: search.found[pair] for pair in candidates}, costs)
        results["fused"] = {
            "pairs": [{"tap": tap, "t": t, "pool": measured.pools[tap, t]} for tap, t in pairs],
            "score": measured.sign * score,
            "passes": set_cost(pairs, costs),
        }
    results["note"] = choice_note(recipe.data, recipe.validation) if recipe.labels else None
    results["recipe"] = carried(recipe)
    results["sources"] = {"weights": backbone.digest} | {name: images.digest for name, images in parts.images.items()}
    if accelerator.is_main_process:
        pools, conditioning = {pair: measured.pools[pair] for pair in pairs}, recipe.extractor.conditioning
        recommended = _recommended(pools, taps, conditioning, pooled=recipe.labels)
        _write(folder, recipe, results, recommended, chooser)
    return results


def _costs(offered: Mapping[str, TapSpec], taps: Sequence[str]) -> dict[str, float]:
    """Of an image up to each tap, in passes through the whole network."""
    whole = list(offered.values())[-1].flops
    return {tap: offered[tap].flops / whole for tap in taps}


def _check_budget(recipe: SelectRecipe, costs: Mapping[str, float]) -> None:
    cheapest = min(costs, key=lambda tap: costs[tap])
    if recipe.labels and costs[cheapest] > recipe.budget:
        raise ValueError(
            f"budget: no feature of {', '.join(costs)} is within {recipe.budget:g} passes of the network; the "
            f"cheapest, {cheapest}, takes {costs[cheapest]:.3g}"
        )


def _candidates(found: Mapping[Pair, float], timesteps: int) -> list[Pair]:
    """Features at the best timesteps."""
    best = sorted(found, key=lambda pair: -found[pair])
    chosen = list(dict.fromkeys(t for _, t in best))[:timesteps]
    return [pair for pair in found if pair[1] in chosen]


def _found(recipe: SelectRecipe, search: Search, best: Pair, by: Accuracy | Views) -> dict[str, Any]:
    """What the search has seen."""
    measured = {
        (tap, t): {"tap": tap, "t": t, "pool": by.pools[tap, t], "score": by.sign * score}
        for (tap, t), score in search.found.items()
    }
    return {
        "best": dict(measured[best]),
        "score": f"{recipe.criterion} on {recipe.validation}"
        if recipe.labels
        else "1 - view criterion, without labels",
        "measured": list(measured.values()),
        "coarse": [
            {"tap": tap, "t": t, "score": by.sign * score}
            for t, scores in search.coarse.items()
            for tap, score in scores.items()
        ],
        "cost": search.spent / len(search.timesteps),
    }


def _recommended(
    pools: Mapping[Pair, int], taps: Sequence[str], conditioning: Mapping[str, int | str], *, pooled: bool
) -> str:
    """What to read, as a YAML file that goes over a recipe: all blocks at all timesteps that were chosen.

    Args:
        pools: of the features that were chosen.
        taps: all, in network order.
        conditioning: with which the features were read.
        pooled: whether poolings were compared. The head, which pools all maps alike, then takes the finest of them.
    """
    chosen = {tap for tap, _ in pools}
    values: dict[str, Any] = {
        "extractor": {
            "taps": [tap for tap in taps if tap in chosen],
            "timesteps": sorted({t for _, t in pools}),
            "feedback_taps": [],
        },
    }
    if conditioning:
        values["extractor"]["conditioning"] = dict(conditioning)
    if pooled:
        values["head"] = {"name": "difformer", "arguments": {"variant": "joint", "pool": max(pools.values())}}
    found = ", ".join(f"{tap} at t = {t} in pool {pool}" for (tap, t), pool in pools.items())
    return f"# Found: {found}.\n{yaml.safe_dump(values, sort_keys=False)}"


def _write(
    folder: ResultFolder, recipe: SelectRecipe, results: Mapping[str, Any], recommended: str, chooser: Chooser | None
) -> None:
    """Args: as found; `chooser` of the images by whose labels it was chosen, None without labels."""
    with folder.write() as temporary:
        write_json(temporary / "select.json", dict(results))
        (temporary / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
        note = "" if results["note"] is None else f"# {results['note']}\n"
        (temporary / "recommended.yaml").write_text(note + recommended, encoding="utf-8")
    chosen = results["best"]
    score = f"{chosen['score']:.4f} ({results['score']})" if chooser is None else chooser.certain(chosen["score"])
    print(f"{chosen['tap']}, t = {chosen['t']}, pool {chosen['pool']}: {score}")
    print(f"at {results['cost']:.0%} of a sweep's cost")
    if chooser is not None:
        fused = results["fused"]
        pairs = ", ".join(f"{pair['tap']} at {pair['t']} in pool {pair['pool']}" for pair in fused["pairs"])
        print(f"to fuse: {pairs}: {chooser.certain(fused['score'])}, {fused['passes']:.2f} passes")
        print(chooser.caution(len(results["measured"]) * len(recipe.pools)))
    if results["note"] is not None:
        print(results["note"])
    print(f"{folder.path}: select.json, recommended.yaml", flush=True)
