"""Which folders of a quickstart are splits, and which are classes."""

from pathlib import Path

import pytest

from difformer.data import DataConfig
from difformer.verbs.quickstart.folders import check_output, with_splits


def make(root: Path, *folders: str) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True)
    return root


@pytest.mark.parametrize(
    ("folders", "splits", "test_fraction"),
    [
        (["cat", "dog"], {"train": "."}, 0.25),
        (["train/cat", "train/dog"], {"train": "train"}, 0.25),
        (["train/cat", "test/cat"], {"train": "train", "test": "test"}, 0),
        (["Train/cat", "Test/cat"], {"train": "Train", "test": "Test"}, 0),
        (["training_set/cat", "test_set/cat"], {"train": "training_set", "test": "test_set"}, 0),
        (["train/cat", "val/cat"], {"train": "train", "test": "val"}, 0),
        (["train/cat", "val/cat", "test/cat"], {"train": "train", "test": "test"}, 0),
        # Images without labels, and a class that is called train.
        (["train/cat", "train/dog", "test"], {"train": "train"}, 0.25),
        (["bus", "car", "train"], {"train": "."}, 0.25),
        # Classes may have folders inside.
        (["cat/2020", "cat/2021", "dog/2021", "dog/2022"], {"train": "."}, 0.25),
        (["cat/all", "dog/all"], {"train": "."}, 0.25),
        ([".cache/a", ".cache/b", "cat", "dog"], {"train": "."}, 0.25),
    ],
)
def test_splits_are_found_by_their_names(folders, splits, test_fraction, tmp_path):
    data = with_splits(DataConfig(name="folder"), make(tmp_path / "pets", *folders))
    assert data.root == str(tmp_path / "pets")
    assert data.splits == splits
    assert data.test_fraction == test_fraction


def test_splits_of_unknown_names_are_not_taken_for_classes(tmp_path):
    root = make(tmp_path / "pets", "one/cat", "one/dog", "two/cat", "two/dog")
    with pytest.raises(ValueError, match=r"\(one, two\) all hold the same folders \(cat, dog\).*call them train and"):
        with_splits(DataConfig(name="folder"), root)


@pytest.mark.parametrize("output", [".", "runs/out", "cat", "../pets/runs"])
def test_results_do_not_lie_among_the_classes(output, tmp_path, monkeypatch):
    root = make(tmp_path / "pets", "cat", "dog")
    monkeypatch.chdir(root)
    data = with_splits(DataConfig(name="folder"), Path("."))
    with pytest.raises(ValueError, match=r"lies among the images in .*; choose an --output outside that folder"):
        check_output(data, Path(output))


def test_results_may_lie_beside_classes_and_beside_splits(tmp_path):
    flat, split = make(tmp_path / "pets", "cat", "dog"), make(tmp_path / "other", "train/cat", "test/cat")
    check_output(with_splits(DataConfig(name="folder"), flat), tmp_path / "pets-results")
    check_output(with_splits(DataConfig(name="folder"), split), split / "runs")
    check_output(DataConfig(name="elpv"), tmp_path)
