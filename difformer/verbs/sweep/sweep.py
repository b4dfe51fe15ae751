"""Probes of every block, timestep and pooling; the body of `difformer sweep`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from difformer.analysis.metrics import find_metric
from difformer.analysis.probes import Labelled, best, create_probe, judge
from difformer.backbones import Backbone
from difformer.config.provenance import check_unchanged
from difformer.config.reading import dump, plain, read_yaml
from difformer.data import ImageDataset
from difformer.engine.config.evaluation import choice_note
from difformer.engine.extraction.pixels import PixelsOfEveryTap, read_pixels
from difformer.engine.extraction.pooled import PooledInEveryWay, SplitFeatures, check_memory, read_split
from difformer.engine.runtime.processes import create_accelerator, on_main, solver_device
from difformer.engine.runtime.resources import Resources
from difformer.engine.runtime.run_folder import RunFolder, environment
from difformer.features import FeatureExtractor
from difformer.features.conditioning import check_conditioning, warn_of_labels
from difformer.features.sizes import taps_at
from difformer.files import MADE_ANEW, read_json, sealed
from difformer.report.sweep import draw_pareto, draw_sweep
from difformer.taps import TapSpec
from difformer.tasks import find_task
from difformer.tasks.classification.certainty import Chooser, has_interval
from difformer.verbs.probe.probe import open_splits, run_probe
from difformer.verbs.sweep.fitting import fit_places
from difformer.verbs.sweep.recipe import SweepRecipe
from difformer.verbs.sweep.recommending import recommended_recipes, recommended_segmentation
from difformer.verbs.sweep.scores import Score, best_score, csv_table, pareto_front, ranked

# The keys whose values may change when a sweep resumes.
_MAY_CHANGE = (
    "output", "timesteps", "workers", "batch_size", "test", "data.root", "data.download", "data.check_images",
    "backbone.folder", "backbone.download", "backbone.attention", "backbone.gradient_checkpointing",
)  # fmt: skip


def sweep(recipe: SweepRecipe, *, overwrite: bool = False) -> list[Score]:
    """Fits all probes of one timestep after another, and recommends features. What is done already is not done again.

    Args:
        recipe: everything about it.
        overwrite: start anew although there is a sweep in the folder.

    Returns:
        The scores, in the order of timesteps, blocks and poolings.

    Raises:
        ValueError: a value in the recipe or in the data, or the folder holds a sweep with another recipe.
        OSError: something cannot be read or written.
        ImageError: an image cannot be read, and the recipe does not skip such images.
    """
    resources = Resources()
    # All probes have the same splits; the test split is only checked here.
    opened = open_splits(recipe.probe(1, 0, 1), resources, find_task(recipe.task))
    images = {split: opened[split] for split in ("train", recipe.validation)}
    folder = RunFolder(recipe.output, record="sweep.yaml")
    folder.check()
    accelerator = create_accelerator(recipe.precision)
    backbone = resources.backbone(recipe.backbone, precision=recipe.precision, device=accelerator.device)
    check_conditioning(recipe.extractor.conditioning, backbone, len(images["train"].class_names))
    # Refuses now a timestep that the backbone does not have, before any is read.
    _extractor(recipe, backbone, recipe.timesteps)
    on_main(accelerator, partial(warn_of_labels, recipe.extractor.conditioning))
    on_main(accelerator, folder.claim)
    try:
        on_main(accelerator, partial(_prepare, folder, recipe, backbone, images, accelerator, overwrite))
        scores = [one for t in recipe.timesteps for one in _timestep(recipe, backbone, images, t, folder, accelerator)]
        chooser = Chooser(images[recipe.validation].labels, recipe.validation, _criterion(recipe))
        on_main(accelerator, partial(_conclude, recipe, taps_at(backbone, recipe.data.size), scores, folder, chooser))
    finally:
        folder.release()
    if recipe.test is not None:
        chosen = best_score(scores, larger_is_better=chooser.larger_is_better)
        alone = recipe.probe(chosen.tap, chosen.t, chosen.pool, chosen.settings)
        run_probe(replace(alone, output=str(folder.path / "best")), overwrite=True, resources=resources)
    return scores


def _criterion(recipe: SweepRecipe) -> str:
    assert recipe.criterion is not None, "set where the recipe is checked"
    return recipe.criterion


def _extractor(recipe: SweepRecipe, backbone: Backbone, timesteps: Sequence[int]) -> FeatureExtractor:
    return FeatureExtractor(
        backbone,
        taps=recipe.taps or tuple(backbone.taps),
        timesteps=timesteps,
        seed=recipe.seed,
        image_size=recipe.data.size,
        conditioning=recipe.extractor.conditioning,
    )


def _prepare(
    folder: RunFolder,
    recipe: SweepRecipe,
    backbone: Backbone,
    images: Mapping[str, ImageDataset],
    accelerator: Any,
    overwrite: bool,
) -> None:
    """Checks that the folder holds the same sweep or none, and records this one in it.

    Raises:
        ValueError: the folder holds a sweep of another recipe, or of other images or weights.
    """
    sources = {"weights": backbone.digest} | {split: dataset.digest for split, dataset in images.items()}
    record = {"recipe": plain(recipe), "sources": sources}
    known = folder.path / "sources.json"
    if overwrite:
        for file in folder.path.glob("scores-*.json"):
            file.unlink()
    elif folder.recipe.exists() and known.exists():
        before = {"recipe": read_yaml(folder.recipe), "sources": read_json(known, MADE_ANEW)}
        for split, dataset in images.items():
            # Earlier versions computed the digest of images in another way.
            found = before["sources"].get(split)
            if found != dataset.digest and found == dataset.former_digest:
                before["sources"][split] = dataset.digest
        check_unchanged(
            folder.path, "another sweep", before, record, may_change=[f"recipe.{key}" for key in _MAY_CHANGE]
        )
    folder.write_text(folder.recipe.name, dump(recipe))
    folder.write_json(known.name, sources)
    folder.write_json("environment.json", environment(accelerator.num_processes, accelerator.device))


def _timestep(
    recipe: SweepRecipe,
    backbone: Backbone,
    images: Mapping[str, ImageDataset],
    t: int,
    folder: RunFolder,
    accelerator: Any,
) -> list[Score]:
    """The scores of one timestep, read from its file if it is done already."""
    file = folder.path / f"scores-{t:04}.json"
    found: list[Score] | None = on_main(accelerator, partial(_read_scores, file, taps_at(backbone, recipe.data.size)))
    if found is not None:
        return found
    extractor, counts = _extractor(recipe, backbone, [t]), [len(dataset) for dataset in images.values()]
    reading: dict[str, Any] = {"batch_size": recipe.batch_size, "workers": recipe.workers}
    if recipe.task == "segmentation":
        pixels = PixelsOfEveryTap(extractor, recipe.pixels, recipe.seed)
        on_main(accelerator, partial(check_memory, pixels.width, [recipe.pixels * count for count in counts]))
        read = partial(read_pixels, pixels)
    else:
        pooled = PooledInEveryWay(extractor, recipe.pools)
        on_main(accelerator, partial(check_memory, pooled.width, counts))
        read = partial(read_split, pooled)
    splits = {
        split: read(dataset, accelerator, title=f"t = {t}, reading {split}", **reading)
        for split, dataset in images.items()
    }
    device = solver_device(accelerator.device)
    scores = on_main(accelerator, partial(_fit, recipe, backbone, splits, images, t, device))
    record = sealed({"scores": [asdict(score) for score in scores]})
    on_main(accelerator, partial(folder.write_json, file.name, record))
    return scores


def _read_scores(file: Path, taps: Mapping[str, TapSpec]) -> list[Score] | None:
    """The scores of a timestep with the costs of these taps; None if the file does not exist."""
    if not file.exists():
        return None
    record = read_json(file, MADE_ANEW)
    try:
        # Earlier versions wrote the list alone.
        scores = [Score(**values) for values in (record if isinstance(record, list) else record["scores"])]
        # Earlier versions wrote costs for images of the backbone's own size.
        return [replace(score, gflop=taps[score.tap].flops / 1e9) for score in scores]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error!r}); {MADE_ANEW}") from error


def _fit(
    recipe: SweepRecipe,
    backbone: Backbone,
    splits: Mapping[str, SplitFeatures],
    images: Mapping[str, ImageDataset],
    t: int,
    device: torch.device,
) -> list[Score]:
    """Probes of every block and pooling at one timestep, with the settings that are best on the validation images."""
    train, validation = splits["train"], splits[recipe.validation]
    labels = torch.from_numpy(validation.labels)
    criterion = _criterion(recipe)
    larger = find_metric(criterion).larger_is_better
    probe = create_probe(recipe.method, strengths=recipe.strengths, rates=recipe.rates)
    fits = fit_places(probe, train, len(images["train"].class_names), device)
    offered = taps_at(backbone, recipe.data.size)
    found = {}
    for (tap, pool), scorer in tqdm(fits, total=len(train.places), desc=f"t = {t}, probes", leave=False):
        unseen = Labelled(validation.of(tap, pool).to(device), labels)
        chosen = best(judge(scorer, unseen, criterion=criterion), larger_is_better=larger)
        spec = offered[tap]
        found[tap, pool] = Score(tap, spec.block, t, pool, dict(chosen.settings), chosen.accuracy, spec.flops / 1e9)
    return [found[place] for place in train.places]


def _conclude(
    recipe: SweepRecipe, taps: Mapping[str, TapSpec], scores: list[Score], folder: RunFolder, chooser: Chooser
) -> None:
    """Writes the table, the pictures and the recommended recipes, and prints the best scores."""
    larger, shown = chooser.larger_is_better, None if has_interval(chooser.criterion) else chooser.criterion
    percent = find_metric(chooser.criterion).share
    folder.write_text("scores.csv", csv_table(scores, column=shown or "accuracy"))
    values = {(score.tap, score.t, score.pool): score.accuracy for score in scores}
    first = best_score(scores, larger_is_better=larger)
    found = f"{first.tap}, t = {first.t}, pool {first.pool}: {chooser.certain(first.accuracy)}"
    caption = f"Best: {found}, {chooser.caution(len(scores))}."
    draw_sweep(
        values,
        (first.tap, first.t, first.pool),
        folder.path / "scores.png",
        criterion=shown,
        percent=percent,
        caption=caption,
    )
    front = pareto_front(scores, larger_is_better=larger)
    draw_pareto(
        [(score.gflop, score.accuracy) for score in scores],
        [(score.gflop, score.accuracy, f"{score.tap}, t = {score.t}, pool {score.pool}") for score in front],
        folder.path / "pareto.png",
        criterion=shown,
        percent=percent,
        caption=caption,
    )
    recommend = recommended_recipes if recipe.task == "classification" else recommended_segmentation
    recipes = recommend(scores, taps, chooser, recipe.extractor.conditioning)
    note = choice_note(recipe.data, recipe.validation)
    for name, text in recipes.items():
        folder.write_text(name, text if note is None else f"# {note}\n{text}")
    for score in ranked(scores, larger_is_better=larger)[:5]:
        accuracy = chooser.certain(score.accuracy)
        print(f"{score.tap:<6} t = {score.t:<4} pool {score.pool}: {accuracy}, {score.gflop:.3g} GFLOP")
    print(chooser.caution(len(scores)))
    if note is not None:
        print(note)
    print(f"{folder.path / 'scores.png'}; beside it scores.csv, pareto.png, {', '.join(recipes)}", flush=True)
