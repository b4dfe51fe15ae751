"""Whether splits of a run have images in common: found by file name and content, and cheaply."""

import logging
import shutil

import numpy as np
import pytest
from data_sets import make_folder, make_shards, write_image

from difformer.data import DataError, create_dataset
from difformer.data import identity as identity_module
from difformer.data.apart import check_apart
from difformer.data.source import Pixels, Source
from difformer.data.spec import DataConfig
from difformer.engine.runtime.resources import Resources


@pytest.fixture
def root(tmp_path):
    """Two classes, whose files have the same names in both splits, as numbered files do."""
    folder = tmp_path / "set"
    for number, name in enumerate(["train/a/0", "train/a/1", "train/b/0", "train/b/1", "test/a/0", "test/b/0"]):
        write_image(folder / f"{name}.png", number, height=20 + number)
    return folder


@pytest.fixture
def read(monkeypatch):
    """The images whose content is read."""
    read, seen = identity_module._content_bytes, []
    monkeypatch.setattr(identity_module, "_content_bytes", lambda content: seen.append(content) or read(content))
    return seen


def config(root, **changes):
    return DataConfig(**{"name": "folder", "root": str(root), "size": 8} | changes)


def splits(root, names=("train", "test"), **changes):
    return Resources().splits(config(root, **changes), names)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_splits_of_different_images_pass_and_none_is_read(root, read, caplog):
    assert list(splits(root)) == ["train", "test"]
    assert not warnings(caplog)
    assert not read


def test_a_split_that_is_the_training_images_is_refused(root):
    message = r"all 4 images of test are images of train too.*data\.splits.*data\.test_fraction.*data\.holdout"
    with pytest.raises(DataError, match=message):
        splits(root, splits={"test": "train"})


def test_a_split_of_all_images_is_refused_when_a_part_of_them_is_for_training(tmp_path):
    flat = make_folder(tmp_path / "flat", {"a": 10, "b": 10})
    with pytest.raises(DataError, match="all 10 images of train are images of test too"):
        splits(flat, splits={"train": ".", "test": "."}, holdout=0.5)
    names = ("train", "holdout", "test")
    found = splits(flat, names, splits={"train": "."}, holdout=0.5, test_fraction=0.2)
    assert [len(found[name]) for name in names] == [8, 8, 4]


def test_copies_are_found_in_any_folder_and_warned_of_once(root, caplog):
    (root / "test/b/deeper").mkdir()
    shutil.copy(root / "train/a/1.png", root / "test/b/deeper/1.png")
    resources = Resources()
    for _ in range(2):
        resources.splits(config(root), ("train", "test"))
    (message,) = warnings(caplog)
    assert message.startswith("1 of 3 images of test are images of train too, such as b/deeper/1.png: ")


def test_the_same_name_and_size_is_not_enough(root, caplog):
    for split, number in (("train", 50), ("test", 51)):
        write_image(root / split / "a/x.bmp", number)
    assert (root / "train/a/x.bmp").stat().st_size == (root / "test/a/x.bmp").stat().st_size
    splits(root)
    assert not warnings(caplog)


def test_all_of_a_validation_split_in_the_test_split_is_warned_of(root, caplog):
    shutil.copytree(root / "test", root / "val")
    splits(root, ("train", "val", "test"))
    (message,) = warnings(caplog)
    assert message.startswith("2 of 2 images of test are images of val too")


def test_shards_are_compared_by_their_keys(tmp_path, read):
    shards = make_shards(tmp_path, [4, 4])
    both = {"name": "webdataset", "root": str(shards), "size": 8, "stream": False}
    patterns = {"train": "*-000.tar", "test": "*-001.tar"}
    Resources().splits(DataConfig(**both, splits=patterns), ("train", "test"))
    assert not read
    with pytest.raises(DataError, match="all 4 images of test"):
        Resources().splits(DataConfig(**both, splits=patterns | {"test": "*-000.tar"}), ("train", "test"))


def in_memory(config, split):
    """Images without files, whose ids count from 0 in every split."""
    rng = np.random.default_rng({"train": 0, "same": 0}.get(split, 1))
    images = rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    return Source(f"numbers {split}", np.arange(6) % 2, ("a", "b"), Pixels(images))


def test_images_in_memory_are_compared_by_their_pixels(caplog):
    data = {"name": f"{__name__}:in_memory", "size": 8}
    opened = {name: create_dataset(data, name, augment=False) for name in ("train", "other", "same")}
    assert not opened["other"].also_in(opened["train"]).any()
    assert opened["same"].also_in(opened["train"]).all()
    check_apart({name: opened[name] for name in ("train", "other")})
    with pytest.raises(DataError, match="all 6 images of same"):
        check_apart(opened)


def test_no_splits_are_apart():
    check_apart({})
