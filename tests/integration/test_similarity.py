"""CKA between blocks, timesteps and models."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch.nn.functional as F
from support import small_unet
from training import merged, write_images, write_subject

from difformer import FeatureExtractor, create_backbone
from difformer.analysis import cka
from difformer.cli import main
from difformer.data import collate, create_dataset
from difformer.engine.recipes.reading import build, plain
from difformer.engine.recipes.similarity import SimilarityRecipe
from difformer.engine.similarity import cka as module
from difformer.engine.similarity.cka import measure_cka

TIMM = "test_resnet"


@pytest.fixture
def values(tmp_path):
    return write_subject(tmp_path, "cka") | {
        "taps": ["in03", "mid", "out01"],
        "timesteps": [50, 300],
        "pool": 2,
    }


def make(values, **changes):
    return build(SimilarityRecipe, plain(merged(values, changes)))


def read_features(values):
    """Pooled features of all test images, in one batch."""
    backbone = create_backbone(values["backbone"]["name"])
    images = create_dataset(values["data"], "test")
    batch = collate([images[place] for place in range(len(images))])
    features = FeatureExtractor(backbone, taps=values["taps"], timesteps=values["timesteps"])(batch.images, batch.ids)
    return {key: F.adaptive_avg_pool2d(maps, 2).flatten(1) for key, maps in features.items()}


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_all_pairs_of_blocks_and_timesteps(values, kernel):
    matrix = measure_cka(make(values, kernel=kernel, bandwidth=0.8))
    assert matrix.shape == (6, 6)
    np.testing.assert_allclose(np.diag(matrix), 1)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-9)
    features = read_features(values)
    keys = sorted(features, key=lambda key: (values["taps"].index(key.tap), key.t))
    for row, one in enumerate(keys):
        for column, other in enumerate(keys):
            expected = cka(features[one], features[other], kernel=kernel, bandwidth=0.8)
            assert matrix[row, column] == pytest.approx(expected, abs=1e-6)


def test_leaves_a_table_and_pictures(values, tmp_path, capsys):
    (tmp_path / "cka.yaml").write_text(json.dumps(values))
    assert main(["cka", str(tmp_path / "cka.yaml")]) == 0
    folder = tmp_path / "cka"
    assert {path.name for path in folder.iterdir()} == {
        "cka.csv", "cka.npy", "blocks.png", "timesteps.png", "recipe.yaml", "environment.json",
    }  # fmt: skip
    header, *rows = csv.reader((folder / "cka.csv").open())
    assert header[1:] == [row[0] for row in rows] == [f"{tap}, t = {t}" for tap in values["taps"] for t in (50, 300)]
    assert main(["cka", str(tmp_path / "cka.yaml")]) == 1
    assert "holds results already" in capsys.readouterr().err


def test_against_other_weights(values, tmp_path):
    same = measure_cka(make(values, other=values["backbone"]["name"]))
    np.testing.assert_allclose(same, measure_cka(make(values, output=str(tmp_path / "own"))), atol=1e-9)
    create_backbone(small_unet(seed=8), schedule="linear").save(tmp_path / "other.safetensors")
    other = measure_cka(make(values, other=str(tmp_path / "other.safetensors"), output=str(tmp_path / "two")))
    assert (np.diag(other) < 0.999).all()
    assert (tmp_path / "two" / "models.png").exists()


def test_the_other_model_is_opened_as_the_backbone_is(values, monkeypatch):
    opened = []

    def note(config, **options):
        opened.append(config)
        return backbone

    backbone = create_backbone(values["backbone"]["name"])
    monkeypatch.setattr(module, "build_backbone", note)
    monkeypatch.setattr(module, "_accumulate", lambda *a: np.eye(6))
    how = {"folder": "weights", "download": True, "dtype": "bfloat16", "attention": "math"}
    recipe = make(values, backbone=how, other="another")
    measure_cka(recipe)
    assert opened == [recipe.backbone, replace(recipe.backbone, name="another")]


@pytest.mark.parametrize("changes", [{"images": 3}, {"split": "few"}])
def test_too_few_images_are_refused_before_any_is_read(values, changes, monkeypatch):
    write_images(Path(values["data"]["root"]), {"few": 1})
    monkeypatch.setattr(module, "build_backbone", lambda *a, **k: pytest.fail("opened"))
    with pytest.raises(ValueError, match="CKA needs at least 4 images, but there are 3 of"):
        measure_cka(make(values, **changes))


def test_against_the_blocks_of_a_timm_model(values):
    matrix = measure_cka(make(values, timm={"name": TIMM, "pretrained": False}))
    assert matrix.shape[0] == 6
    assert matrix.shape[1] >= 4
    assert np.isfinite(matrix).all()
    assert matrix.max() <= 1 + 1e-9


def test_a_part_of_the_images_in_batches(values, monkeypatch):
    sizes = []

    class Noting(module.MinibatchCKA):
        def update(self, xs, ys=None):
            sizes.append(len(next(iter(xs.values()))))
            super().update(xs, ys)

    monkeypatch.setattr(module, "MinibatchCKA", Noting)
    measure_cka(make(values, images=11, batch_size=5))
    # The eleventh image alone would say little.
    assert sizes == [5, 5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 3}, "batch_size must be a number at least 4"),
        ({"kernel": "cosine"}, "kernel must be one of linear, rbf"),
        ({"timesteps": []}, "timesteps must be at least one"),
        ({"bandwidth": 0}, "bandwidth must be a number above 0"),
        ({"other": "x", "timm": {"name": TIMM}}, "give one of other and timm"),
    ],
)
def test_wrong_values(values, changes, message):
    with pytest.raises(ValueError, match=message):
        make(values, **changes)


def test_an_unknown_timm_model_is_named(values):
    with pytest.raises(ValueError, match="timm has no model 'resnet5000'"):
        measure_cka(make(values, timm={"name": "resnet5000"}))
