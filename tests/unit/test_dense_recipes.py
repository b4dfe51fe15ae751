"""The recipes for masks, boxes and points: whole, and fit for their networks."""

from pathlib import Path

import pytest

from difformer.config.reading import build, read_yaml
from difformer.engine.config.build import build_task, outline_classifier
from difformer.engine.config.recipe import Recipe
from difformer.tasks.registry import is_dense

FOLDER = Path(__file__).parents[2] / "train" / "dense"
RECIPES = sorted(FOLDER.glob("*.yaml"))
NAMES = {
    "ade20k_upernet", "ade20k_diffeed", "few_labels", "el_cracks", "mirror_mouse", "wflw", "coco_mask_rcnn", "bccd",
}  # fmt: skip


def test_every_recipe_is_there():
    assert {path.stem for path in RECIPES} == NAMES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_how_it_is_started_and_what_to_expect(path):
    head = path.read_text().partition("\n\n")[0]
    assert f"#   accelerate launch train/train.py train/dense/{path.name}" in head
    assert f"#   difformer train train/dense/{path.name}" in head
    assert "# Expected: " in head
    recipe = build(Recipe, read_yaml(path))
    assert recipe.output == f"runs/{path.stem}"
    # Nothing is chosen on the images that are reported.
    assert recipe.evaluation.select == "last" or recipe.evaluation.test not in (None, recipe.evaluation.validation)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_fits_its_network(path):
    recipe = build(Recipe, read_yaml(path))
    assert is_dense(build_task(recipe))
    classifier = outline_classifier(recipe, tuple(map(str, range(5))))
    assert classifier.head.num_classes == 5
    assert set(classifier.head.specs) <= set(classifier.extractor.specs)
