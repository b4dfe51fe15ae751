"""Features in the cache are those of the live path, and the digest covers what they depend on."""

import os
import shutil

import numpy as np
import pytest
import torch
from data_sets import make_folder
from extraction import bytes_of, extracted, folder_of, parts, plan_of, recipe_for, run
from support import small_unet
from training import assert_same_run, make_recipe, run_result, write_workplace

from difformer import FeatureKey, create_backbone
from difformer.data import ImageDataset, collate
from difformer.engine.config.build import build_extractor
from difformer.engine.extraction.extract import open_or_extract
from difformer.features import CachedFeatures, collate_features
from difformer.features import planning as caching
from difformer.streams import epoch_seed
from difformer.verbs.extract.extract import extract
from difformer.verbs.train.train import train

pytestmark = pytest.mark.usefixtures("drawn_once")
TRAIN, VAL = 13, 5
HEADS = {
    "linear": ({"name": "linear"}, {}),
    "linear, one cell": ({"name": "linear", "arguments": {"pool": 1, "batch_norm": True}}, {}),
    "linear, above the map": ({"name": "linear", "arguments": {"pool": 12}}, {"taps": ["mid"]}),
    "mlp": ({"name": "mlp", "arguments": {"hidden": [8], "pool": 3}}, {}),
    "cnn": ({"name": "cnn", "arguments": {"channels": [8, 8]}}, {}),
    "attention": ({"name": "attention", "arguments": {"width": 16, "heads": 2, "pool": 4}}, {}),
    "published": (
        {"name": "difformer", "arguments": {"width": 16, "heads": 2, "pool": 4}},
        {"taps": ["mid", "out02", "out05"], "timesteps": [90, 300]},
    ),
    "joint": (
        {"name": "difformer", "arguments": {"variant": "joint", "width": 16, "heads": 2, "pool": 12}},
        {"taps": ["out05", "mid"], "timesteps": [90, 300], "draws": 2},
    ),
    "joint, clean": (
        {"name": "difformer", "arguments": {"variant": "joint", "width": 16, "heads": 2, "pool": 5}},
        {"taps": ["out05", "mid"], "clean": True},
    ),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    counts = {"train/a": 7, "train/b": 6, "val/a": 3, "val/b": 2}
    return make_folder(tmp_path_factory.mktemp("data") / "set", counts)


@pytest.fixture(scope="module")
def backbone():
    return create_backbone(small_unet(), schedule="linear")


@pytest.fixture
def recipe(root, tmp_path):
    def make(**changes):
        return recipe_for(root, tmp_path / "cache", **changes)

    return make


@torch.no_grad()
def logits(recipe, backbone, split, epoch):
    """From the cache and live, of all images."""
    used = parts(recipe, backbone, split)
    classifier, dataset = used["classifier"], used["dataset"]
    cached = open_or_extract(**used)
    cached.set_epoch(epoch)
    batch = collate_features([cached[place] for place in range(len(cached))])
    dataset.set_epoch(epoch)
    seed = recipe.extractor.seed
    classifier.extractor.seed = epoch_seed(seed, epoch) if split == "train" else seed
    images = collate([dataset[place] for place in range(len(dataset))])
    assert torch.equal(images.ids, batch.ids)
    assert torch.equal(images.labels, batch.labels)
    return classifier.head(batch.features), classifier(images.images, images.ids)


@pytest.mark.parametrize("name", HEADS)
def test_logits_are_those_of_the_live_path(recipe, backbone, name):
    head, extractor = HEADS[name]
    exact = recipe(head=head, extractor=extractor, cache={"dtype": "float32", "views": 2})
    assert run(exact, backbone, "val").views == 1
    found = {}
    for split, epoch in (("train", 0), ("train", 1), ("val", 0)):
        found[split, epoch], live = logits(exact, backbone, split, epoch)
        torch.testing.assert_close(found[split, epoch], live, rtol=1e-5, atol=1e-5)
    assert (found["train", 0] - found["train", 1]).abs().max() > 1e-3, "views differ"
    rounded = recipe(head=head, extractor=extractor, cache={"dtype": "bfloat16"})
    found, live = logits(rounded, backbone, "train", 0)
    assert 0 < (found - live).norm() / live.norm() < 2e-2


def test_half_precision_is_closer_in_float16(recipe, backbone):
    errors = []
    for dtype in ("float16", "bfloat16"):
        found, live = logits(recipe(cache={"dtype": dtype}), backbone, "train", 0)
        errors.append(float((found - live).norm() / live.norm()))
    assert errors[0] < errors[1] / 3


def test_images_larger_than_the_backbone_was_trained_on(recipe, backbone):
    extractor = {"taps": ["mid", "out02"]}
    made = recipe(head=HEADS["joint"][0], extractor=extractor, cache={"dtype": "float32"}, data={"size": 64})
    assert plan_of(parts(made, backbone)).manifest.shapes[FeatureKey("mid", 90)] == (64, 16, 16)
    found, live = logits(made, backbone, "train", 0)
    torch.testing.assert_close(found, live, rtol=1e-5, atol=1e-5)


def test_only_what_heads_read_is_kept(recipe, backbone):
    cached = run(recipe(), backbone)
    assert {tuple(maps.shape) for maps in cached[0].features.values()} == {(64, 2, 2)}
    size = sum(path.stat().st_size for path in cached.folder.glob("*.safetensors"))
    assert size < 4 * 1024 + TRAIN * (64 * 4 * 2 + 16)


CHANGES = {
    "taps": {"extractor": {"taps": ["out02"]}},
    "timesteps": {"extractor": {"timesteps": [91]}},
    "seed": {"extractor": {"seed": 1}},
    "draws": {"extractor": {"draws": 2}},
    "clean": {"extractor": {"clean": True}},
    "pool": {"head": {"name": "linear", "arguments": {"pool": 1}}},
    "augmentation": {"data": {"augmentation": "none"}},
    "augmentation seed": {"data": {"seed": 1}},
    "size": {"data": {"size": 16}},
    "subset": {"data": {"k_shot": 6}},
    "holdout": {"data": {"holdout": 0.2}},
    "dtype": {"cache": {"dtype": "float16"}},
    "shard size": {"cache": {"shard_size": 5}},
}
IRRELEVANT = {
    "views": {"cache": {"views": 3}},
    "chunks": {"extractor": {"chunk_size": 1}},
    "head": {"head": {"name": "mlp", "arguments": {"hidden": [4]}}},
    "batch size": {"training": {"batch_size": 3}},
    "workers": {"training": {"workers": 1}},
    "optimiser": {"optimizer": {"lr": 3.0}},
    "output": {"output": "elsewhere"},
    "checks": {"data": {"check_images": "decode"}},
    "resize, which augmentation ignores": {"data": {"resize": 40}},
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_features_depend_on_is_in_the_digest(recipe, backbone, name):
    assert folder_of(recipe(**CHANGES[name]), backbone) != folder_of(recipe(), backbone)


@pytest.mark.parametrize("name", IRRELEVANT)
def test_what_they_do_not_is_not(recipe, backbone, name):
    assert folder_of(recipe(**IRRELEVANT[name]), backbone) == folder_of(recipe(), backbone)


def test_the_backbone_and_the_split_are_in_the_digest(recipe, backbone):
    others = [
        create_backbone(small_unet(seed=8), schedule="linear"),
        create_backbone(small_unet(), schedule="cosine"),
        create_backbone(small_unet(), schedule="linear", dtype=torch.bfloat16),
        create_backbone(small_unet(num_head_channels=32), schedule="linear"),
        create_backbone(small_unet(), schedule="linear", attention="math"),
    ]
    folders = [folder_of(recipe(), other) for other in others]
    assert len({*folders, folder_of(recipe(), backbone), folder_of(recipe(), backbone, "val")}) == 6
    assert folders[4] == folder_of(recipe(), backbone), "implementations of attention differ by rounding"
    several = [
        recipe(extractor={"taps": taps}, head=HEADS["joint"][0]) for taps in (["mid", "out02"], ["out02", "mid"])
    ]
    assert folder_of(several[0], backbone) == folder_of(several[1], backbone)
    renamed = plan_of(parts(recipe(data={"splits": {"other": "val"}}), backbone, "other"))
    assert renamed.manifest.digest != plan_of(parts(recipe(), backbone, "val")).manifest.digest
    used = parts(recipe(), backbone)
    used["classifier"].extractor.dtype = torch.bfloat16
    assert plan_of(used).folder != folder_of(recipe(), backbone)
    resized = recipe(data={"resize": 40})
    assert folder_of(resized, backbone, "val") != folder_of(recipe(), backbone, "val")
    assert folder_of(recipe(data={"seed": 1}), backbone, "val") == folder_of(recipe(), backbone, "val")


def test_other_images_under_the_same_names(recipe, backbone, root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    moved = recipe(data={"root": str(copy)})
    assert folder_of(moved, backbone) == folder_of(recipe(), backbone)
    shutil.copy(copy / "train/a/a_0.png", copy / "train/a/a_1.png")
    assert folder_of(moved, backbone) != folder_of(recipe(), backbone)


def test_batch_size_and_workers_change_rounding_only(recipe, backbone):
    made = recipe(cache={"dtype": "float32"})
    cached = run(made, backbone)
    before = bytes_of(cached.folder)
    shutil.rmtree(cached.folder)
    run(recipe(cache={"dtype": "float32"}, training={"workers": 2}), backbone)
    assert bytes_of(cached.folder) == before
    rows = [sample.features for sample in cached]
    shutil.rmtree(cached.folder)
    other = run(made, backbone, batch_size=3)
    for row, sample in zip(rows, other, strict=True):
        for key, maps in row.items():
            torch.testing.assert_close(sample.features[key], maps, rtol=1e-5, atol=1e-5)


def test_more_views_are_added_to_those_there(recipe, backbone):
    first = run(recipe(cache={"views": 1}), backbone)
    before = bytes_of(first.folder)
    more = run(recipe(cache={"views": 3}), backbone)
    assert (more.folder, more.views) == (first.folder, 3)
    after = bytes_of(first.folder)
    assert {name: after[name] for name in before} == before
    assert len(after) == 1 + 3 * (len(before) - 1)


def test_nothing_global_is_touched(recipe, backbone):
    used = parts(recipe(cache={"views": 2}), backbone)
    used["classifier"].extractor.seed = 77
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    extracted(used)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert used["classifier"].extractor.seed == 77
    assert used["dataset"]._reader.epoch == 0


def test_values_that_the_dtype_cannot_hold(recipe, backbone):
    used = parts(recipe(cache={"dtype": "float16"}), backbone)
    extractor = used["classifier"].extractor
    extractor.register_forward_hook(lambda module, given, features: {k: v * 1e6 for k, v in features.items()})
    with pytest.raises(ValueError, match=r"not finite as float16; with cache\.dtype: float16 choose bfloat16"):
        extracted(used)


def test_difffeed_is_refused(recipe, backbone):
    feedback = {"taps": ["out02"], "feedback_taps": ["out01"]}
    with pytest.raises(ValueError, match="DifFeed cannot be cached past its first pass"):
        extract(recipe(features="live", extractor=feedback))
    used = parts(recipe(features="live"), backbone)
    used["classifier"].extractor = build_extractor(recipe(features="live", extractor=feedback).extractor, backbone)
    with pytest.raises(ValueError, match="DifFeed cannot be cached past its first pass"):
        open_or_extract(**used)


def test_the_verb_says_what_it_takes_and_where_it_is(recipe, backbone, tmp_path, capsys):
    backbone.save(tmp_path / "backbone.safetensors")
    made = recipe(
        backbone={"name": str(tmp_path / "backbone.safetensors")},
        evaluation={"validation": "holdout", "test": "val"},
        data={"holdout": 0.25},
    )
    caches = extract(made)
    lines = capsys.readouterr().out.splitlines()
    assert {name: len(cache) for name, cache in caches.items()} == {"train": 10, "holdout": 3, "val": VAL}
    assert (
        "train: 10 images in 1 views: 8.35 kB, of which 8.35 kB (10 images) are missing and take about 00:0" in lines[0]
    )
    assert lines[3] == f"train: 10 images in 1 views, verified, in {caches['train'].folder}"
    assert len(lines) == 6
    assert [path.name.rpartition("-")[0] for path in sorted((tmp_path / "cache").iterdir())] == [
        "folder-holdout", "folder-train-augmented", "folder-val",
    ]  # fmt: skip
    extract(made, splits=["val"])
    assert capsys.readouterr().out.splitlines()[0].endswith("5 images in 1 views: 4.69 kB, complete")


def test_shards_are_bounded_by_memory(recipe, backbone, monkeypatch):
    monkeypatch.setattr(caching, "MAX_SHARD_BYTES", 2 * (64 * 4 * 2 + 16) + 5)
    assert plan_of(parts(recipe(), backbone)).manifest.shard_size == 2


def test_training_is_the_same_as_live(tmp_path, capsys):
    """With as many views as epochs, every step sees the same features."""
    values = write_workplace(tmp_path)
    results = {}
    for features in ("live", "cached"):
        cache = {"folder": str(tmp_path / "cache"), "views": 3, "dtype": "float32", "shard_size": 7}
        train(make_recipe(values, output=str(tmp_path / features), features=features, cache=cache))
        results[features] = run_result(tmp_path / features)
    assert "train: 24 images in 3 views" in capsys.readouterr().out
    (live, _, _), (cached, _, _) = results["live"], results["cached"]
    assert live.keys() == cached.keys()
    for name, tensor in live.items():
        torch.testing.assert_close(cached[name], tensor, rtol=1e-3, atol=1e-4)
    recipe = make_recipe(values, output=str(tmp_path / "again"), features="cached", cache=cache)
    train(recipe)
    assert_same_run(tmp_path / "cached", tmp_path / "again")
    assert "missing" not in capsys.readouterr().out


def test_another_recipes_cache_serves_where_it_holds_the_same(recipe, backbone):
    head = {"name": "difformer", "arguments": {"variant": "joint", "width": 16, "heads": 2, "pool": 2}}
    rich = recipe(head=head, extractor={"taps": ["in03", "mid"], "timesteps": [90, 150]}, cache={"views": 2})
    rich_folder = run(rich, backbone).folder

    plain = recipe(extractor={"taps": ["mid"], "timesteps": [150]}, cache={"views": 2})
    found = open_or_extract(**parts(plain, backbone))
    assert found.folder == rich_folder
    assert found.keys == (FeatureKey("mid", 150),)
    own = run(plain, backbone)
    assert own.folder != rich_folder
    for epoch in (0, 1):
        found.set_epoch(epoch)
        own.set_epoch(epoch)
        for one, other in zip(found, own, strict=True):
            assert one.features.keys() == other.features.keys()
            assert torch.equal(one.features[FeatureKey("mid", 150)], other.features[FeatureKey("mid", 150)])
            assert (one.label, one.id) == (other.label, other.id)


@pytest.mark.parametrize(
    "changes",
    [
        {"extractor": {"timesteps": [200]}},
        {"extractor": {"seed": 1}},
        {"cache": {"views": 3}},
        {"cache": {"dtype": "float32"}},
        {"head": {"name": "linear", "arguments": {"pool": 1}}},
        {"data": {"augmentation": "none"}},
    ],
)
def test_another_recipes_cache_does_not_serve_where_something_differs(recipe, backbone, changes):
    base = {"extractor": {"taps": ["mid"], "timesteps": [150]}, "cache": {"views": 2}}
    rich = run(
        recipe(
            extractor={"taps": ["in03", "mid"], "timesteps": [150]},
            head={"name": "difformer", "arguments": {"variant": "joint", "width": 16, "heads": 2, "pool": 2}},
            cache={"views": 2},
        ),
        backbone,
    ).folder
    wanted = {name: {**base.get(name, {}), **value} for name, value in {**base, **changes}.items()}
    assert open_or_extract(**parts(recipe(**wanted), backbone)).folder != rich


def test_a_cache_of_an_earlier_version(recipe, backbone, root, tmp_path, monkeypatch, caplog):
    """Which identified images by file size and both ends: it is used, with a warning, while no image is newer."""
    copy = shutil.copytree(root, tmp_path / "copy")
    made = recipe(data={"root": str(copy)})
    with monkeypatch.context() as earlier:
        earlier.setattr(ImageDataset, "digest", ImageDataset.former_digest)
        old = run(made, backbone).folder
    manifest = (old / "manifest.json").stat().st_mtime + 9
    os.utime(old / "manifest.json", (manifest, manifest))
    assert open_or_extract(**parts(made, backbone)).folder == old
    assert "is of an earlier version, which identified images by file size and both ends only" in caplog.text
    os.utime(copy / "train/a/a_0.png", (manifest + 9, manifest + 9))
    assert open_or_extract(**parts(made, backbone)).folder != old


def test_an_unfinished_cache_of_another_recipe_does_not_serve(recipe, backbone):
    head = {"name": "difformer", "arguments": {"variant": "joint", "width": 16, "heads": 2, "pool": 2}}
    rich = run(recipe(head=head, extractor={"taps": ["in03", "mid"]}), backbone).folder
    next(rich.glob("view-00-shard-*.safetensors")).unlink()
    assert open_or_extract(**parts(recipe(), backbone)).folder != rich


def test_features_that_are_not_there_cannot_be_read(recipe, backbone):
    folder = run(recipe(), backbone).folder
    with pytest.raises(ValueError, match=r"does not hold .*out00.*; it has .*mid"):
        CachedFeatures(folder, keys=[FeatureKey("out00", 90)])
