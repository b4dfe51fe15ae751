"""Extraction of all features that a recipe reads; the body of `difformer extract`."""

from collections.abc import Sequence
from functools import partial

from difformer.engine.config.build import build_classifier
from difformer.engine.config.recipe import Recipe
from difformer.engine.extraction.extract import BATCH_SIZE, Job, announce, extract_missing, plan_for
from difformer.engine.runtime.processes import create_accelerator, on_main
from difformer.engine.runtime.resources import Resources
from difformer.features import CachedFeatures
from difformer.features.conditioning import warn_of_labels
from difformer.features.planning import DIFFEED


def extract(
    recipe: Recipe,
    *,
    splits: Sequence[str] | None = None,
    estimate_only: bool = False,
    resources: Resources | None = None,
) -> dict[str, CachedFeatures]:
    """Extracts the features that training and evaluation of a recipe read, after printing what it will take.

    Args:
        recipe: with any value of `features`.
        splits: `train` (with augmentation) and others (without); by default those the recipe trains on and evaluates.
        estimate_only: print what it will take, and extract nothing.
        resources: shared with other runs of this process.

    Returns:
        The features by split; none of them with `estimate_only`.

    Raises:
        As `open_or_extract`, `build_dataset` and `build_backbone`.
    """
    if recipe.extractor.feedback_taps:
        raise ValueError(DIFFEED)
    resources = resources or Resources()
    processes = create_accelerator(recipe.training.precision)
    evaluated = [name for name in (recipe.evaluation.validation, recipe.evaluation.test) if name]
    datasets = resources.splits(recipe.data, splits or ("train", *evaluated), augment=True)
    backbone = resources.backbone(recipe.backbone, precision=recipe.training.precision, device=processes.device)
    classes = next(iter(datasets.values())).class_names
    classifier = build_classifier(recipe, backbone, classes).to(processes.device).eval()
    if processes.is_main_process:
        warn_of_labels(recipe.extractor.conditioning)
    wanted = {"data": recipe.data, "cache": recipe.cache, "seed": recipe.extractor.seed}
    jobs = []
    for name, dataset in datasets.items():
        plan = plan_for(classifier, dataset, name, **wanted, augment=name == "train")
        jobs.append(Job(name, plan, classifier, dataset, processes, recipe.training.workers, BATCH_SIZE))
    on_main(processes, partial(announce, jobs))
    if estimate_only:
        return {}
    caches = {job.split: extract_missing(job) for job in jobs}
    if processes.is_main_process:
        for name, cache in caches.items():
            print(f"{name}: {len(cache)} images in {cache.views} views, verified, in {cache.folder}", flush=True)
    return caches
