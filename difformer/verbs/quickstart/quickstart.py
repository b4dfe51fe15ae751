"""Everything on one data set, from pixels to a page; the body of `difformer quickstart`."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import yaml

from difformer.backbones import Backbone
from difformer.config.provenance import check_unchanged
from difformer.config.reading import plain, read_yaml
from difformer.data import ImageDataset
from difformer.data.subset import TEST
from difformer.engine.config.build import outline_classifier
from difformer.engine.runtime.processes import create_accelerator
from difformer.engine.runtime.resources import Resources
from difformer.engine.runtime.run_folder import RunFolder, environment
from difformer.features.conditioning import check_conditioning
from difformer.verbs.quickstart.methods import SECONDS, measure_methods
from difformer.verbs.quickstart.page import PAGE, PICTURES, write_report
from difformer.verbs.quickstart.plan import KNN, Plan, QuickstartConfig, create_plan
from difformer.verbs.quickstart.tables import as_json, table_rows, text_table
from difformer.verbs.train.init import check_init

RECORD, TABLE = "quickstart.yaml", "table.md"
# What may differ when a quickstart resumes: seeds are added or left out; images and recipes are compared by their
# content, wherever they lie.
_MAY_CHANGE = ("output", "seeds", "diffeed_seeds", "data", "recipe")
# What to say in place of digests, which say nothing to a reader.
_OTHERWISE = {
    "made_with.recipes": "its methods or their settings were others (from another recipe, or version of difformer)",
    "made_with.weights": "the weights of the backbone were others",
    "made_with.images": "its images were others",
}


def quickstart(config: QuickstartConfig, *, overwrite: bool = False) -> Path:
    """Trains and measures every method, prints the table and writes the page. What is done already is not done again.

    Args:
        config: which images, and how many seeds.
        overwrite: start anew although there is a quickstart in the folder.

    Returns:
        The page, `report.html`; classifiers, pictures and `results.json` lie beside it.

    Raises:
        FileNotFoundError: weights or images are not there.
        FileExistsError: the folder holds something else, or another quickstart is running in it.
        OSError: something cannot be read, written, or removed to start anew.
        ValueError: the folder holds a quickstart of other images, recipes or weights.
        ImportError: a library of the demo extra is missing.
        Stopped: a signal asked to stop; the same command resumes.
    """
    plan = create_plan(config)
    _check_libraries(plan)
    folder = RunFolder(plan.output, record=RECORD)
    folder.check()
    accelerator = create_accelerator(plan.runs[0].recipe.training.precision)
    resources = Resources()
    backbone = resources.backbone(plan.knn.backbone, device=accelerator.device)
    images = _open_images(plan, backbone, resources)
    record = plain(config) | {"made_with": _made_with(plan, backbone, images)}
    if not overwrite and folder.recipe.exists():
        before = read_yaml(folder.recipe)
        check_unchanged(folder.path, "another quickstart", before, record, may_change=_MAY_CHANGE, words=_OTHERWISE)
    folder.claim()
    try:
        if overwrite:
            _clear(plan, folder)
        folder.write_text(RECORD, yaml.safe_dump(record, sort_keys=False, allow_unicode=True))
        folder.write_json("environment.json", environment(1, accelerator.device))
        return _carry_out(plan, backbone, folder, resources)
    finally:
        folder.release()
        accelerator.end_training()


def _carry_out(plan: Plan, backbone: Backbone, folder: RunFolder, resources: Resources) -> Path:
    print(f"{plan.title}: everything goes to {plan.output}", flush=True)
    results = measure_methods(plan, folder, resources)
    folder.write_json(folder.results.name, as_json(plan, results))
    table = text_table(table_rows(plan, results))
    folder.write_text(TABLE, table + "\n")
    print("drawing the page", flush=True)
    page = write_report(plan, results, backbone, folder, resources)
    print(f"\n{table}\n\n{page}", flush=True)
    return page


def _check_libraries(plan: Plan) -> None:
    own = plan.data.name.startswith("elpv") and plan.data.root is None
    needed = {"sklearn": "scikit-learn"} | ({"elpv_dataset": "elpv-dataset"} if own else {})
    missing = [package for module, package in needed.items() if find_spec(module) is None]
    if missing:
        raise ImportError(
            f"the quickstart needs {' and '.join(missing)}, not installed here; run: pip install {' '.join(missing)}"
        )


def _open_images(plan: Plan, backbone: Backbone, resources: Resources) -> list[ImageDataset]:
    """Training and test images, checked together with the plan before any work starts."""
    train, test = resources.splits(plan.data, ("train", TEST)).values()
    if len(train.class_names) < 2:
        raise ValueError(
            f"there is one class only, {train.class_names[0]}; give a folder with one folder for each class"
        )
    # Fails if a class has too few images to hold any out.
    resources.splits(plan.knn.data, ("train", plan.knn.validation))
    for extractor in (plan.knn.extractor, plan.pictured, *(recipe.extractor for recipe in plan.heads.values())):
        check_conditioning(extractor.conditioning, backbone, len(train.class_names))
    check_inits(plan, backbone, train.class_names)
    return [train, test]


def check_inits(plan: Plan, backbone: Backbone, names: tuple[str, ...]) -> None:
    """Raises ValueError if a method cannot start from the method that its recipe names.

    Args:
        plan: its heads name the method in `init`.
        backbone: of all methods.
        names: of the classes.
    """
    for method, recipe in plan.heads.items():
        if recipe.init is not None:
            trained, own = (outline_classifier(one, names, backbone) for one in (plan.heads[recipe.init], recipe))
            check_init(trained, own, f"{recipe.init} for {method}")


def _made_with(plan: Plan, backbone: Backbone, images: Sequence[ImageDataset]) -> dict[str, str]:
    """Digests of what else the results depend on; the recipes may differ between versions."""
    # All heads, also those without a run: seeds may be added later.
    recipes = {method: plain(recipe) for method, recipe in plan.heads.items()}
    recipes[KNN] = plain(plan.knn)
    for recipe in recipes.values():
        recipe["output"] = recipe["data"]["root"] = None
    parts = {
        "recipes": json.dumps(recipes, sort_keys=True),
        "weights": backbone.digest,
        # Earlier versions drew the same few images for every seed.
        "images": " ".join([*(dataset.digest for dataset in images), *([] if "" in plan.draws else ["by seed"])]),
    }
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in parts.items()}


def _clear(plan: Plan, folder: RunFolder) -> None:
    """Removes all results. Files by which others are recognised go first; raises OSError if one cannot be removed."""
    for name in (folder.results.name, SECONDS, TABLE, PAGE):
        (folder.path / name).unlink(missing_ok=True)
    folders = (path for method in plan.titles for path in folder.path.glob(f"{method}-[0-9]*"))
    for path in (folder.path / PICTURES, *(folder.path / method for method in plan.titles), *folders):
        if path.exists():
            shutil.rmtree(path)
