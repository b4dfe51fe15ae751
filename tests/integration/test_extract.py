"""Features in the cache are those of the live path, and extraction survives whatever happens to it."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_sets import make_folder
from extraction import bytes_of, kill_at, recipe_for, run_in_child
from support import small_unet
from torch.utils.data import DataLoader

from difformer import FeatureKey, create_backbone
from difformer.data import ImageError, collate
from difformer.engine import caching, extract
from difformer.engine.build import build_classifier, build_dataset, build_extractor, epoch_seed
from difformer.engine.caching import plan_cache
from difformer.engine.extract import extract_features, open_or_extract
from difformer.features import CachedFeatures, FeatureCacheError, collate_features
from difformer.features import shards as shards_module
from difformer.features.shards import shard_path, write_shard

TRAIN, VAL, SHARD = 13, 5, 4
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


def parts(recipe, backbone, split="train"):
    augment = split == "train"
    dataset = build_dataset(recipe.data, split, augment=augment)
    classifier = build_classifier(recipe, backbone, dataset.class_names).eval()
    return {"recipe": recipe, "classifier": classifier, "dataset": dataset, "split": split, "augment": augment}


def run(recipe, backbone, split="train", **options):
    return extract_features(**parts(recipe, backbone, split), **options)


def folder_of(recipe, backbone, split="train"):
    return plan_cache(**parts(recipe, backbone, split)).folder


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
    assert plan_cache(**parts(made, backbone)).manifest.shapes[FeatureKey("mid", 90)] == (64, 16, 16)
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
    used = parts(recipe(), backbone)
    used["classifier"].extractor.seed = 77
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    extract_features(**used)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert used["classifier"].extractor.seed == 77
    assert used["dataset"]._reader.epoch == 0


class TestStopped:
    def counted(self, monkeypatch, error=None, after=0):
        """Counts written shards; raises before one."""
        written = []

        def write(folder, manifest, view, shard, *content):
            if error is not None and len(written) == after:
                raise error
            written.append((view, shard))
            write_shard(folder, manifest, view, shard, *content)

        monkeypatch.setattr(extract, "write_shard", write)
        return written

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory"), OSError(5, "gone")])
    def test_whole_shards_stay(self, recipe, backbone, monkeypatch, caplog, error):
        expected = bytes_of(run(recipe(cache={"views": 2}), backbone).folder)
        used = parts(recipe(cache={"views": 2, "folder": recipe().cache.folder + "2"}), backbone)
        self.counted(monkeypatch, error, after=5)
        with pytest.raises(type(error)):
            open_or_extract(**used)
        assert "5 of 8 shards are whole and stay in" in caplog.text
        assert "the same command goes on with the others" in caplog.text
        written = self.counted(monkeypatch)
        cached = open_or_extract(**used)
        assert written == [(1, 1), (1, 2), (1, 3)]
        assert bytes_of(cached.folder) == expected
        written.clear()
        open_or_extract(**used)
        assert written == []

    def test_a_damaged_shard_is_found_at_the_end_and_written_again(self, recipe, backbone, monkeypatch):
        cached = run(recipe(), backbone)
        expected = bytes_of(cached.folder)
        path = shard_path(cached.folder, 0, 1)
        content = bytearray(path.read_bytes())
        content[-9] ^= 1
        path.write_bytes(content)
        with pytest.raises(FeatureCacheError, match=r"view-00-shard-00001\.safetensors is damaged.*remove it and"):
            run(recipe(), backbone)
        path.unlink()
        shard_path(cached.folder, 0, 2).write_bytes(b"half")
        written = self.counted(monkeypatch)
        run(recipe(), backbone)
        assert written == [(0, 1), (0, 2)]
        assert bytes_of(cached.folder) == expected

    def test_a_whole_shard_with_the_wrong_images(self, recipe, backbone):
        used = parts(recipe(), backbone)
        plan = plan_cache(**used)
        cached = extract_features(**used)
        batch = collate_features([cached[place] for place in (1, 0, 2, 3)])
        write_shard(cached.folder, plan.manifest, 0, 0, *batch)
        with pytest.raises(FeatureCacheError, match=r"shards 00000 in .* each once and in order"):
            extract_features(**used)
        batch = collate_features([cached[place] for place in (0, 1, 1, 3)])
        write_shard(cached.folder, plan.manifest, 0, 0, *batch)
        with pytest.raises(FeatureCacheError, match="each once and in order"):
            extract_features(**used)
        batch = collate_features([cached[place] for place in (0, 1, 3)])
        write_shard(cached.folder, plan.manifest, 0, 0, *batch)
        with pytest.raises(FeatureCacheError, match="lacks 1 images"):
            extract_features(**used)

    def test_a_disk_that_is_too_small(self, recipe, backbone, monkeypatch):
        used = parts(recipe(), backbone)
        free = caching._MARGIN_BYTES
        monkeypatch.setattr(caching.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
        with pytest.raises(OSError, match=r"the features need 11 kB more, but the disk of .* 67\.1 MB free"):
            open_or_extract(**used)
        assert not plan_cache(**used).folder.exists()
        free += 12_000
        cached = open_or_extract(**used)
        free = 0
        assert open_or_extract(**used).folder == cached.folder, "nothing is missing"

    def test_a_disk_that_fills_up(self, recipe, backbone, monkeypatch, caplog):
        used = parts(recipe(), backbone)
        save, calls = shards_module.save_file, []

        def fail(*arguments):
            calls.append(1)
            if len(calls) == 3:
                raise shards_module.SafetensorError("No space left on device (os error 28)")
            save(*arguments)

        monkeypatch.setattr(shards_module, "save_file", fail)
        with pytest.raises(OSError, match=r"view-00-shard-00002\.safetensors could not be written: No space left"):
            open_or_extract(**used)
        assert "2 of 4 shards are whole" in caplog.text
        assert not list(plan_cache(**used).folder.glob(".*"))
        assert len(open_or_extract(**used)) == TRAIN


class TestImages:
    def spoiled(self, root, tmp_path, names):
        copy = shutil.copytree(root, tmp_path / "copy")
        for name in names:
            (copy / "train" / name).write_bytes(b"no image")
        return str(copy)

    def test_unreadable_ones_are_left_out_and_counted(self, recipe, backbone, root, tmp_path, caplog):
        folder = self.spoiled(root, tmp_path, ["a/a_1.png", "b/b_5.png"])
        data = {"root": folder, "on_bad_image": "skip", "check_images": "none"}
        cached = run(recipe(data=data, cache={"views": 2}), backbone)
        assert (len(cached), cached.missing) == (TRAIN - 2, 2)
        assert sorted({*range(TRAIN)} - set(cached.ids.tolist())) == [1, 12]
        assert "2 of 13 images could not be read and are left out" in caplog.text
        found = [cached[place] for place in range(len(cached))]
        assert [sample.label for sample in found] == [0] * 6 + [1] * 5

    # torch waits ten seconds for workers after an error.
    @pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
    def test_unreadable_ones_end_it_otherwise(self, recipe, backbone, root, tmp_path, caplog, workers):
        folder = self.spoiled(root, tmp_path, ["b/b_2.png"])
        made = recipe(data={"root": folder, "check_images": "none"}, training={"workers": workers})
        used = parts(made, backbone)
        with pytest.raises(ImageError, match=r"b_2\.png"):
            open_or_extract(**used)
        assert "2 of 4 shards are whole" in caplog.text

    def test_not_one_readable(self, recipe, backbone, root, tmp_path):
        names = [f"{name}/{name}_{i}.png" for name, count in (("a", 7), ("b", 6)) for i in range(count)]
        data = {"root": self.spoiled(root, tmp_path, names), "on_bad_image": "skip", "check_images": "none"}
        with pytest.raises(ImageError, match="not one of the 13 images can be read"):
            run(recipe(data=data), backbone)

    def test_a_folder_that_vanishes(self, recipe, backbone, root, tmp_path, caplog):
        copy = shutil.copytree(root, tmp_path / "copy")
        used = parts(recipe(data={"root": str(copy)}), backbone)
        plan_cache(**used)
        (copy / "train/b").rename(tmp_path / "b")
        with pytest.raises(ImageError, match=r"b_\d\.png"):
            extract_features(**used)
        assert "1 of 4 shards are whole" in caplog.text
        (tmp_path / "b").rename(copy / "train/b")
        assert len(extract_features(**used)) == TRAIN


def test_values_that_the_dtype_cannot_hold(recipe, backbone):
    used = parts(recipe(cache={"dtype": "float16"}), backbone)
    extractor = used["classifier"].extractor
    extractor.register_forward_hook(lambda module, given, features: {k: v * 1e6 for k, v in features.items()})
    with pytest.raises(ValueError, match=r"not finite as float16; with cache\.dtype: float16 choose bfloat16"):
        extract_features(**used)


def test_difffeed_is_refused(recipe, backbone):
    feedback = {"taps": ["out02"], "feedback_taps": ["out01"]}
    with pytest.raises(ValueError, match="DifFeed cannot be cached past its first pass"):
        extract.extract(recipe(features="live", extractor=feedback))
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
    caches = extract.extract(made)
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
    extract.extract(made, splits=["val"])
    assert capsys.readouterr().out.splitlines()[0].endswith("5 images in 1 views: 4.69 kB, all there")


def test_shards_are_bounded_by_memory(recipe, backbone, monkeypatch):
    monkeypatch.setattr(caching, "MAX_SHARD_BYTES", 2 * (64 * 4 * 2 + 16) + 5)
    assert plan_cache(**parts(recipe(), backbone)).manifest.shard_size == 2


def test_two_processes_write_the_files_of_one(recipe, backbone, root, tmp_path):
    made = recipe(cache={"views": 2})
    expected = bytes_of(run(made, backbone).folder)
    for name, gone in (("fresh", ()), ("begun", ((0, 1), (1, 0), (1, 3)))):
        folder = tmp_path / name
        if gone:
            shutil.copytree(tmp_path / "cache", folder)
            for place in gone:
                shard_path(next(folder.iterdir()), *place).unlink()
        children = [run_in_child(root, folder, rank=rank, world=2) for rank in range(2)]
        for child in children:
            child.join(120)
            assert child.exitcode == 0
        assert bytes_of(next(folder.iterdir())) == expected


def test_an_error_in_one_process_reaches_all(root, tmp_path):
    """The image is in the share of the second process."""
    copy = shutil.copytree(root, tmp_path / "copy")
    (copy / "train/a/a_5.png").write_bytes(b"no image")
    children = [run_in_child(copy, tmp_path / "cache", rank=rank, world=2, message="a_5.png") for rank in range(2)]
    for child in children:
        child.join(120)
        assert child.exitcode == 0


def test_killed_at_twenty_random_moments(recipe, backbone, root, tmp_path):
    """Each is resumed to the files of an extraction that was not killed."""
    shards = 2 * TRAIN
    whole = run(recipe(cache={"views": 2, "shard_size": 1}), backbone)
    expected = bytes_of(whole.folder)
    rng = np.random.default_rng(0)
    stopped = set()
    for number in range(20):
        folder = tmp_path / f"killed{number}"
        inside = folder / whole.folder.name
        child = run_in_child(root, folder, shard_size=1)
        # From before the first shard to the verification, and anywhere while a shard is computed and written.
        kill_at(child, inside, shards=int(rng.integers(0, shards + 1)), seconds=float(rng.random()) * 0.02)
        stopped.add(len(list(inside.glob("view*"))))
        resumed = run(recipe(cache={"views": 2, "shard_size": 1, "folder": str(folder)}), backbone)
        found = {name: content for name, content in bytes_of(inside).items() if not name.endswith(".tmp")}
        assert found == expected
        assert len(resumed) == TRAIN
    assert len(stopped) > 5


def test_features_through_a_data_loader_train(recipe, backbone):
    cached = run(recipe(cache={"views": 2}), backbone)
    head = parts(recipe(), backbone)["classifier"].head.train()
    for epoch in range(2):
        cached.set_epoch(epoch)
        for batch in DataLoader(cached, batch_size=4, shuffle=True, collate_fn=collate_features):
            torch.nn.functional.cross_entropy(head(batch.features), batch.labels).backward()
    assert head.fcs[0].weight.grad.norm() > 0
    assert isinstance(cached, CachedFeatures)
