"""CKA between blocks, timesteps and models."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from support import tiny_unet
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import normalize, resize
from training import merged, write_images, write_subject

from difformer import FeatureExtractor, create_backbone
from difformer.analysis import MinibatchCKA, cka
from difformer.checkpoints.weights import CheckpointError
from difformer.cli import main
from difformer.config.reading import build, plain
from difformer.data import Sample, collate, create_dataset
from difformer.models.memory import TensorMemory
from difformer.verbs.cka import cka as module
from difformer.verbs.cka.cka import measure_cka
from difformer.verbs.cka.recipe import SimilarityRecipe, TimmConfig
from difformer.verbs.cka.representations import TimmBlocks

pytestmark = pytest.mark.usefixtures("drawn_once")
TIMM = "resnet10t"


@pytest.fixture
def values(tmp_path):
    return write_subject(tmp_path, "cka") | {
        "taps": ["in03", "mid", "out01"],
        "timesteps": [50, 300],
        "pool": 2,
    }


def make(values, **changes):
    return build(SimilarityRecipe, plain(merged(values, changes)))


def read_batch(values, split="test"):
    """All images of a split."""
    images = create_dataset(values["data"], split)
    return collate([images[place] for place in range(len(images))])


def read_features(values, split="test"):
    """Pooled features of all images, in one batch."""
    backbone = create_backbone(values["backbone"]["name"])
    batch = read_batch(values, split)
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


def estimate(features, batches):
    """Minibatch CKA of all pairs."""
    found = MinibatchCKA()
    for rows in batches:
        found.update({str(key): vectors[rows] for key, vectors in features.items()})
    return found.compute().numpy()


def test_images_sorted_by_class_come_in_mixed_batches(values):
    write_images(Path(values["data"]["root"]), {"sorted": 24})
    values |= {"split": "sorted", "timesteps": [50]}
    whole = measure_cka(make(values))
    found = measure_cka(make(values, batch_size=12), overwrite=True)
    features = read_features(values, "sorted")
    generator = torch.Generator().manual_seed(0)
    mixed = [estimate(features, torch.randperm(72, generator=generator).split(12)) for _ in range(30)]
    tolerance = 4 * np.std(mixed, axis=0) + 1e-9
    assert (np.abs(found - whole) <= tolerance).all()
    # What the tolerance must not allow: batches of one class each.
    in_order = estimate(features, torch.arange(72).split(12))
    assert (np.abs(in_order - whole) > tolerance)[~np.eye(3, dtype=bool)].all()


def test_the_order_is_a_function_of_the_seed(values):
    first, again, other = (module._batches(make(values, batch_size=5, seed=seed), 15) for seed in (1, 1, 2))
    assert first == again != other
    assert sorted(place for batch in first for place in batch) == list(range(15))
    module._batches(make(values, seed=-1), 15)


class ManyImages:
    """Images of four pixels, as many as wanted."""

    class_names = ("one",)

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, place):
        return Sample(torch.full((3, 2, 2), place / self.count), 0, place)


class WideVectors:
    """Stands in for the blocks of a model: two vectors an image, much larger than the image."""

    names = ("one", "two")

    def __init__(self, *arguments):
        generator = torch.Generator().manual_seed(0)
        self.weights = {name: torch.randn(12, 500, generator=generator) for name in self.names}

    def places(self, t):
        return {name: place for place, name in enumerate(self.names)}

    def read(self, images, ids, labels):
        waves = torch.sin(images.flatten(1) * ids[:, None])
        return {name: waves @ weights for name, weights in self.weights.items()}


def test_ten_times_as_many_images_take_no_more_memory(values, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "build_backbone", lambda *a, **k: SimpleNamespace(conditioning={}))
    monkeypatch.setattr(module, "DiffusionBlocks", WideVectors)
    peaks = []
    for count in (1000, 10_000):
        monkeypatch.setattr(module, "build_dataset", lambda *a, count=count: ManyImages(count))
        with TensorMemory() as memory:
            measure_cka(make(values, timesteps=[50], batch_size=100, output=str(tmp_path / str(count))))
        peaks.append(memory.peak)
    # A batch of vectors takes 400,000 bytes, and all of them 100 times as much.
    assert peaks[1] < peaks[0] + 100_000


def test_leaves_a_table_and_pictures(values, tmp_path, capsys):
    (tmp_path / "cka.yaml").write_text(json.dumps(values))
    assert main(["cka", str(tmp_path / "cka.yaml")]) == 0
    folder = tmp_path / "cka"
    assert {path.name for path in folder.iterdir()} == {
        "cka.csv", "cka.npy", "blocks.png", "blocks.pdf", "timesteps.png", "timesteps.pdf", "recipe.yaml",
        "environment.json",
    }  # fmt: skip
    header, *rows = csv.reader((folder / "cka.csv").open())
    assert header[1:] == [row[0] for row in rows] == [f"{tap}, t = {t}" for tap in values["taps"] for t in (50, 300)]
    assert main(["cka", str(tmp_path / "cka.yaml")]) == 1
    assert "holds results already" in capsys.readouterr().err


def test_against_other_weights(values, tmp_path):
    same = measure_cka(make(values, other=values["backbone"]["name"]))
    np.testing.assert_allclose(same, measure_cka(make(values, output=str(tmp_path / "own"))), atol=1e-9)
    create_backbone(tiny_unet(seed=8), schedule="linear").save(tmp_path / "other.safetensors")
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
    monkeypatch.setattr(module, "_accumulate", lambda *a: (np.eye(6), 15))
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


def read_timm(name, checkpoint, images):
    """Pooled features of a timm model, by timm and torchvision alone."""
    model = timm.create_model(name, checkpoint_path=checkpoint).eval()
    expected = model.pretrained_cfg
    sized = resize(images, expected["input_size"][1:], InterpolationMode.BICUBIC, antialias=True)
    with torch.no_grad():
        normal = normalize((sized + 1) / 2, expected["mean"], expected["std"])
        _, maps = model.forward_intermediates(normal)
    return [F.adaptive_avg_pool2d(feature, 2).flatten(1) for feature in maps]


@pytest.mark.parametrize("name", [TIMM, "vit_tiny_patch16_224"])
def test_against_the_blocks_of_a_timm_model(values, tmp_path, name):
    checkpoint = str(tmp_path / "timm.safetensors")
    save_file(timm.create_model(name).state_dict(), checkpoint)
    matrix = measure_cka(make(values, timm={"name": name, "pretrained": False, "checkpoint": checkpoint}))
    own, other = read_features(values), read_timm(name, checkpoint, read_batch(values).images)
    assert matrix.shape == (6, len(other))
    rows = [own[key] for key in sorted(own, key=lambda key: (values["taps"].index(key.tap), key.t))]
    expected = [[cka(one, theirs) for theirs in other] for one in rows]
    np.testing.assert_allclose(matrix, expected, atol=1e-5)


def test_a_pickle_of_a_timm_model_runs_nothing(tmp_path):
    ran = tmp_path / "ran"

    class Harmful:
        def __reduce__(self):
            return ran.touch, ()

    file = tmp_path / "timm.pth"
    torch.save(timm.create_model(TIMM).state_dict() | {"more": Harmful()}, file)
    with pytest.raises(CheckpointError, match="Python objects other than tensors, which could run code"):
        TimmBlocks(TimmConfig(TIMM, checkpoint=str(file)), None, torch.device("cpu"))
    assert not ran.exists()
    torch.save(timm.create_model(TIMM, num_classes=7).state_dict(), file)
    with pytest.raises(CheckpointError, match=r"for timm's resnet10t does not fit .*\n.*fc\.bias \(1000,\) expected"):
        TimmBlocks(TimmConfig(TIMM, checkpoint=str(file)), None, torch.device("cpu"))


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn, by file."""
    calls = {}

    def note(matrices, rows, columns, path, titles=("", ""), caption=None):
        calls[path.name] = SimpleNamespace(
            matrices=matrices, rows=rows, columns=columns, titles=titles, caption=caption
        )

    monkeypatch.setattr(module, "draw_similarities", note)
    return calls


def test_own_blocks_and_timesteps_are_drawn_by_each_other(values, drawn):
    matrix = measure_cka(make(values))
    assert drawn.keys() == {"blocks.png", "timesteps.png"}
    blocks, steps = drawn["blocks.png"], drawn["timesteps.png"]
    assert blocks.rows == blocks.columns == values["taps"]
    assert list(blocks.matrices) == ["t = 50", "t = 300"]
    assert steps.rows == steps.columns == ["50", "300"]
    assert list(steps.matrices) == values["taps"]
    assert blocks.caption == steps.caption == "CKA, linear kernel; n = 15 images of test, in batches of 256."
    np.testing.assert_array_equal(blocks.matrices["t = 300"], matrix[1::2, 1::2])
    np.testing.assert_array_equal(steps.matrices["mid"], matrix[2:4, 2:4])


def test_another_model_is_drawn_at_equal_timesteps(values, tmp_path, drawn):
    create_backbone(tiny_unet(seed=8), schedule="linear").save(tmp_path / "other.safetensors")
    matrix = measure_cka(make(values, other=str(tmp_path / "other.safetensors")))
    picture = drawn.pop("models.png")
    assert not drawn
    assert picture.rows == picture.columns == values["taps"]
    assert picture.titles == ("backbone: backbone.safetensors", "other: other.safetensors")
    assert list(picture.matrices) == ["t = 50", "t = 300"]
    for first, panel in enumerate(picture.matrices.values()):
        np.testing.assert_array_equal(panel, matrix[first::2, first::2])


def test_a_timm_model_is_drawn_beside_every_timestep(values, drawn):
    matrix = measure_cka(make(values, timm={"name": TIMM, "pretrained": False}))
    picture = drawn["models.png"]
    assert picture.rows == values["taps"]
    # As timm calls them.
    assert picture.columns == ["act1", "layer1", "layer2", "layer3", "layer4"]
    assert len(picture.columns) == matrix.shape[1]
    assert picture.titles[1] == "timm: resnet10t"
    for first, panel in enumerate(picture.matrices.values()):
        np.testing.assert_array_equal(panel, matrix[first::2])


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
