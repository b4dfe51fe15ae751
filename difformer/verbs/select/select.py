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
from difformer.verbs.select.search import Search
from difformer.verbs.select.views import Views

_FILES = ("select.json", "recommended.yaml", "recipe.yaml")


def select(recipe: SelectRecipe, *, overwrite: bool = False) -> dict[str, Any]:
    """Searches for the best block and timestep, then for features to fuse.

    Args:
        recipe: everything about it.
        overwrite: replace results that are there.

    Returns:
        As in `select.json`: `best`, `measured` (on all images), `coarse` (on few), `cost` (share of a sweep's). With
        labels also `images` (how many chose), `fused`, the best's 95 % `interval` (None unless a share of images).

    Raises:
        ValueError: a value in the recipe or in the data.
        OSError: something cannot be read or written.
        ImageError: an image cannot be read, and the recipe does not skip such images.
    """
    folder = ResultFolder(recipe.output, _FILES)
    folder.check(overwrite=overwrite)
    if recipe.labels:
        find_criterion(recipe.criterion, "ridge")
    accelerator = create_accelerator(recipe.precision)
    backbone = build_backbone(recipe.backbone, precision=recipe.precision, device=accelerator.device)
    taps = resolve_taps(recipe.taps, backbone.taps) if recipe.taps else tuple(backbone.taps)
    taps = tuple(tap for tap in backbone.taps if tap in taps)
    costs = _costs(recipe, taps_at(backbone, recipe.data.size), taps)
    parts = Parts(recipe, backbone, taps, accelerator)
    measured = Accuracy(parts) if recipe.labels else Views(parts)
    search = Search(measured.measure, recipe.timesteps, recipe.fused_timesteps)
    results, chooser = _found(recipe, search, search.run(), measured), None
    if isinstance(measured, Accuracy):
        chooser = Chooser(parts.images[recipe.validation].labels, recipe.validation, recipe.criterion)
        results["best"]["interval"] = chooser.interval(results["best"]["score"])
        results["images"] = len(chooser.labels)
        results["fused"] = measured.fuse(search.found, costs)
    results["note"] = choice_note(recipe.data, recipe.validation) if recipe.labels else None
    results["recipe"] = carried(recipe)
    results["sources"] = {"weights": backbone.digest} | {name: images.digest for name, images in parts.images.items()}
    if accelerator.is_main_process:
        _write(folder, recipe, results, taps, chooser)
    return results


def _costs(recipe: SelectRecipe, offered: Mapping[str, TapSpec], taps: Sequence[str]) -> dict[str, float]:
    """Costs of an image up to each tap, in passes of the network; with labels, at least one is within the budget."""
    whole = list(offered.values())[-1].flops
    costs = {tap: offered[tap].flops / whole for tap in taps}
    cheapest = min(costs, key=lambda tap: costs[tap])
    if recipe.labels and costs[cheapest] > recipe.budget:
        raise ValueError(
            f"budget: no feature of {', '.join(costs)} is within {recipe.budget:g} passes of the network; the "
            f"cheapest, {cheapest}, takes {costs[cheapest]:.3g}"
        )
    return costs


def _found(recipe: SelectRecipe, search: Search, best: Pair, by: Accuracy | Views) -> dict[str, Any]:
    """The part of the results that is the same with and without labels."""
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


def _recommended(recipe: SelectRecipe, features: Sequence[Mapping[str, Any]], taps: Sequence[str]) -> str:
    """What to read, as a YAML file to lay over a recipe: all chosen blocks at all chosen timesteps.

    With labels, which compare poolings, also a head. It pools all maps alike, so it takes the finest pooling.

    Args:
        recipe: of the search.
        features: those that were chosen, with `tap`, `t` and `pool`.
        taps: all, in network order.
    """
    chosen = {feature["tap"] for feature in features}
    values: dict[str, Any] = {
        "extractor": {
            "taps": [tap for tap in taps if tap in chosen],
            "timesteps": sorted({feature["t"] for feature in features}),
            "feedback_taps": [],
        },
    }
    if recipe.extractor.conditioning:
        values["extractor"]["conditioning"] = dict(recipe.extractor.conditioning)
    if recipe.labels:
        pool = max(feature["pool"] for feature in features)
        values["head"] = {"name": "difformer", "arguments": {"variant": "joint", "pool": pool}}
    found = ", ".join(f"{feature['tap']} at t = {feature['t']} in pool {feature['pool']}" for feature in features)
    return f"# Found: {found}.\n{yaml.safe_dump(values, sort_keys=False)}"


def _write(
    folder: ResultFolder,
    recipe: SelectRecipe,
    results: Mapping[str, Any],
    taps: Sequence[str],
    chooser: Chooser | None,
) -> None:
    """Writes and prints the results; `chooser` is None without labels."""
    chosen = results["best"]
    recommended = _recommended(recipe, [chosen] if chooser is None else results["fused"]["pairs"], taps)
    with folder.write() as temporary:
        write_json(temporary / "select.json", dict(results))
        (temporary / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
        note = "" if results["note"] is None else f"# {results['note']}\n"
        (temporary / "recommended.yaml").write_text(note + recommended, encoding="utf-8")
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
