"""Extraction survives whatever happens to it, and is the same in one process and in many."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from data_sets import make_folder
from extraction import bytes_of, extracted, kill_at, parts, plan_of, recipe_for, run, run_in_child
from processes import joined, variables_of_ranks
from support import tiny_unet

from difformer import create_backbone
from difformer.data import ImageError
from difformer.engine.extraction import estimate as caching
from difformer.engine.extraction import extract
from difformer.engine.extraction.extract import open_or_extract
from difformer.features import FeatureCacheError, collate_features
from difformer.features import shards as shards_module
from difformer.features.shards import shard_path, write_shard

TRAIN = 13


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    counts = {"train/a": 7, "train/b": 6, "val/a": 3, "val/b": 2}
    return make_folder(tmp_path_factory.mktemp("data") / "set", counts)


@pytest.fixture(scope="module")
def backbone():
    return create_backbone(tiny_unet(), schedule="linear")


@pytest.fixture
def recipe(root, tmp_path):
    def make(**changes):
        return recipe_for(root, tmp_path / "cache", **changes)

    return make


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

    def test_whole_shards_stay(self, recipe, backbone, monkeypatch, caplog):
        expected = bytes_of(run(recipe(cache={"views": 2}), backbone).folder)
        for number, error in enumerate((KeyboardInterrupt(), RuntimeError("out of memory"), OSError(5, "gone"))):
            used = parts(recipe(cache={"views": 2, "folder": f"{recipe().cache.folder}{number}"}), backbone)
            self.counted(monkeypatch, error, after=5)
            with pytest.raises(type(error)):
                open_or_extract(**used)
            assert "5 of 8 shards are whole and stay in" in caplog.text
            assert "the same command resumes with the others" in caplog.text
            caplog.clear()
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
        plan = plan_of(used)
        cached = extracted(used)
        batch = collate_features([cached[place] for place in (1, 0, 2, 3)])
        write_shard(cached.folder, plan.manifest, 0, 0, *batch)
        with pytest.raises(FeatureCacheError, match=r"shards 00000 in .* each once and in order"):
            extracted(used)
        batch = collate_features([cached[place] for place in (0, 1, 1, 3)])
        write_shard(cached.folder, plan.manifest, 0, 0, *batch)
        with pytest.raises(FeatureCacheError, match="each once and in order"):
            extracted(used)
        batch = collate_features([cached[place] for place in range(4)])
        write_shard(cached.folder, plan.manifest, 0, 0, *batch._replace(labels=1 - batch.labels))
        with pytest.raises(FeatureCacheError, match="each once and in order"):
            extracted(used)
        batch = collate_features([cached[place] for place in (0, 1, 3)])
        write_shard(cached.folder, plan.manifest, 0, 0, *batch)
        with pytest.raises(FeatureCacheError, match="lacks 1 images"):
            extracted(used)

    def test_what_was_left_half_written_is_removed(self, recipe, backbone, monkeypatch):
        folder = run(recipe(), backbone).folder
        (folder / ".view-00-shard-00000.safetensors.abc.tmp").write_bytes(b"half")
        monkeypatch.setattr(shards_module, "_STALE_SECONDS", -1)
        run(recipe(), backbone)
        assert not list(folder.glob(".*"))

    def test_a_disk_that_is_too_small(self, recipe, backbone, monkeypatch):
        used = parts(recipe(), backbone)
        free = caching._MARGIN_BYTES
        monkeypatch.setattr(caching.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
        with pytest.raises(OSError, match=r"the features need 7\.63 kB more, but the disk of .* 67\.1 MB free"):
            open_or_extract(**used)
        assert not plan_of(used).folder.exists()
        free += 8_000
        cached = open_or_extract(**used)
        free = 0
        assert extracted(used).folder == cached.folder, "nothing is missing"

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
        assert not list(plan_of(used).folder.glob(".*"))
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
        plan_of(used)
        (copy / "train/b").rename(tmp_path / "b")
        with pytest.raises(ImageError, match=r"b_\d\.png"):
            extracted(used)
        assert "1 of 4 shards are whole" in caplog.text
        (tmp_path / "b").rename(copy / "train/b")
        assert len(extracted(used)) == TRAIN


def test_two_processes_write_the_files_of_one(recipe, backbone, root, tmp_path):
    made = recipe(cache={"views": 2})
    expected = bytes_of(run(made, backbone).folder)
    for name, gone in (("fresh", ()), ("begun", ((0, 1), (1, 0), (1, 3)))):
        folder = tmp_path / name
        if gone:
            shutil.copytree(tmp_path / "cache", folder)
            for place in gone:
                shard_path(next(folder.iterdir()), *place).unlink()
        children = [run_in_child(root, folder, variables=variables) for variables in variables_of_ranks(2)]
        assert [joined(child) for child in children] == [0, 0]
        assert bytes_of(next(folder.iterdir())) == expected


def test_an_error_in_one_process_reaches_all(root, tmp_path):
    """The image is in the share of the second process."""
    copy = shutil.copytree(root, tmp_path / "copy")
    (copy / "train/a/a_5.png").write_bytes(b"no image")
    children = [
        run_in_child(copy, tmp_path / "cache", variables=variables, message="a_5.png")
        for variables in variables_of_ranks(2)
    ]
    assert [joined(child) for child in children] == [0, 0]


@pytest.mark.parametrize("trials", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(recipe, backbone, root, tmp_path, trials):
    """Each is resumed to the files of an extraction that was not killed."""
    shards = 2 * TRAIN
    whole = run(recipe(cache={"views": 2, "shard_size": 1}), backbone)
    expected = bytes_of(whole.folder)
    rng = np.random.default_rng(0)
    stopped = set()
    for number in range(trials):
        folder = tmp_path / f"killed{number}"
        inside = folder / whole.folder.name
        child = run_in_child(root, folder, shard_size=1)
        # From before the first shard to the verification, and anywhere while a shard is computed and written.
        kill_at(child, inside, shards=int(rng.integers(0, shards + 1)), seconds=float(rng.random()) * 0.02)
        stopped.add(len(list(inside.glob("view*"))))
        resumed = run(recipe(cache={"views": 2, "shard_size": 1, "folder": str(folder)}), backbone)
        found = {name: content for name, content in bytes_of(inside).items() if not name.startswith(".")}
        assert found == expected
        assert len(resumed) == TRAIN
    assert len(stopped) > trials // 4
