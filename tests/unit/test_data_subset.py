"""Label subsets and held-out splits."""

import json
import random

import numpy as np
import pytest
import torch
from data_sets import make_folder, write_image, write_json, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from difformer.data import DataError, LabelSubset, create_dataset, few_shot, percentage, split_holdout
from difformer.files import read_json, sha256

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [40, 30, 20, 10, 3]))


@pytest.fixture
def root(tmp_path):
    return make_folder(tmp_path / "set", {"train/a": 6, "train/b": 4})


def spec(root, **changes):
    return {"name": "folder", "root": str(root), "size": 16} | changes


def test_few_shot_takes_k_of_each_class(caplog):
    chosen = few_shot(LABELS, 8, seed=0)
    assert np.bincount(LABELS[chosen]).tolist() == [8, 8, 8, 8, 3]
    assert (np.diff(chosen) > 0).all()
    assert "1 classes have fewer than 8 images; the smallest has 3" in caplog.text


def test_smaller_subsets_lie_in_larger_ones():
    assert set(few_shot(LABELS, 2, 1)) < set(few_shot(LABELS, 3, 1))
    assert set(percentage(LABELS, 10, 1)) < set(percentage(LABELS, 30, 1))


def test_percentage_keeps_at_least_one_of_each_class():
    assert np.bincount(LABELS[percentage(LABELS, 10, 0)]).tolist() == [4, 3, 2, 1, 1]
    assert len(percentage(LABELS, 100, 0)) == len(LABELS)
    of_class = np.bincount(LABELS[percentage(LABELS, 10, 0, at_least=3)])
    assert of_class.tolist() == np.clip(np.bincount(LABELS), None, [4, 3, 3, 3, 3]).tolist()


def test_seeds_differ_and_repeat():
    assert few_shot(LABELS, 3, 0).tolist() == few_shot(LABELS, 3, 0).tolist()
    assert few_shot(LABELS, 3, 0).tolist() != few_shot(LABELS, 3, 1).tolist()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=2, max_size=120),
    st.floats(0.05, 0.9),
    st.integers(0, 2**32),
)
def test_a_holdout_is_a_stratified_partition(labels, fraction, seed):
    labels = np.asarray(labels)
    counts = np.bincount(labels)
    try:
        kept, held = split_holdout(labels, fraction, seed)
    except DataError:
        assert round(len(labels) * fraction) == 0 or (counts <= 1).all() or max(counts * fraction) < 1
        return
    assert sorted([*kept, *held]) == list(range(len(labels)))
    held_counts = np.bincount(labels[held], minlength=len(counts))
    assert (held_counts[counts > 0] < counts[counts > 0]).all(), "every class keeps an image"
    assert (np.abs(held_counts - counts * fraction) <= 1 + 1e-9).all()


def test_a_holdout_has_the_size_asked_for():
    _, held = split_holdout(LABELS, 0.25, 3)
    assert len(held) == round(0.25 * len(LABELS))
    with pytest.raises(DataError, match="leaves none to hold out"):
        split_holdout([0, 1, 2], 0.5, 0)
    with pytest.raises(DataError, match="between 0 and 1"):
        split_holdout([0, 0], 1.0, 0)


def test_the_global_generators_are_left_alone():
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    few_shot(LABELS, 3, 0)
    split_holdout(LABELS, 0.5, 0)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


class TestOnADataSet:
    def test_ids_are_places_in_the_full_split(self, root):
        dataset = create_dataset(spec(root, k_shot=2))
        full = create_dataset(spec(root))
        assert np.bincount(dataset.labels).tolist() == [2, 2]
        assert [full.names[i] for i in dataset.ids] == dataset.names

    def test_the_holdout_comes_first(self, root):
        config = spec(root, holdout=0.3, k_shot=2)
        train, holdout = create_dataset(config), create_dataset(config, "holdout")
        assert len(holdout) == 3
        assert len(train) == 4
        assert not set(train.ids) & set(holdout.ids)
        assert set(train.ids) < set(range(10))

    def test_saved_and_used_again(self, root, tmp_path):
        dataset = create_dataset(spec(root, percent=50, seed=3))
        dataset.subset.save(tmp_path / "subset.json")
        subset = LabelSubset.load(tmp_path / "subset.json")
        assert (subset.rule, subset.seed) == ({"percent": 50}, 3)
        again = create_dataset(spec(root), subset=subset)
        assert again.ids.tolist() == dataset.ids.tolist() == subset.indices.tolist()
        make_folder(root, {"train/b": 5})
        with pytest.raises(DataError, match="another version"):
            create_dataset(spec(root), subset=subset)

    def test_a_saved_subset_never_reaches_into_the_holdout(self, root):
        subset = create_dataset(spec(root, percent=100)).subset
        for split in ("train", "holdout"):
            with pytest.raises(DataError, match="not among those to choose from"):
                create_dataset(spec(root, holdout=0.3), split, subset=subset)
        own = create_dataset(spec(root, holdout=0.3, k_shot=2)).subset
        assert len(create_dataset(spec(root, holdout=0.3), subset=own)) == 4

    def test_what_is_no_saved_subset(self, tmp_path):
        with pytest.raises(DataError, match="not a saved label subset"):
            LabelSubset.load(write_lines(tmp_path / "x.json", ["{}"]))

    @pytest.mark.parametrize(
        "change",
        [
            {"indices": [0, 0, 1]}, {"indices": [1, 0]}, {"indices": [-1, 0]}, {"indices": [0, 1.5]},
            {"indices": [True]}, {"indices": [10**30]}, {"indices": "01"}, {"rule": 3}, {"seed": None},
            {"seed": float("inf")}, {"indices": [0, 2]}, {"rule": {"k_shot": 3}}, {"digest": "1" * 64}, {"more": 1},
        ],
    )  # fmt: skip
    def test_an_altered_subset_is_refused(self, tmp_path, change):
        path = tmp_path / "subset.json"
        LabelSubset(np.asarray([0, 1]), {"k_shot": 1}, 0, "0" * 64).save(path)
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | change))
        with pytest.raises(DataError, match="not a saved label subset, or is damaged"):
            LabelSubset.load(path)

    def test_it_is_saved_as_other_files_are(self, tmp_path):
        path = tmp_path / "subset.json"
        LabelSubset(np.asarray([0, 1]), {"k_shot": 1}, 0, "0" * 64).save(path)
        assert set(read_json(path, "")) == {"rule", "seed", "digest", "indices"}
        path.write_text(path.read_text().replace("[0, 1]", "[0, 2]"))
        with pytest.raises(DataError, match="restore it from a copy"):
            LabelSubset.load(path)

    def test_a_subset_of_an_earlier_version(self, tmp_path):
        record = {"rule": {"k_shot": 1}, "seed": 3, "digest": "0" * 64, "indices": [0, 4]}
        found = LabelSubset.load(write_json(tmp_path / "subset.json", record))
        assert (found.indices.tolist(), found.rule, found.seed) == ([0, 4], {"k_shot": 1}, 3)
        for change in ({"indices": [4, 0]}, {"indices": [0, 0]}, {"indices": [0.5]}):
            with pytest.raises(DataError, match="not a saved label subset"):
                LabelSubset.load(write_json(tmp_path / "subset.json", record | change))

    def test_a_list_file_by_file_name_and_by_path(self, root, tmp_path):
        listing = write_lines(tmp_path / "1percent.txt", ["b_3.png", "a/a_1.png", ""])
        dataset = create_dataset(spec(root, list_file=str(listing)))
        assert dataset.names == ["a/a_1.png", "b/b_3.png"]
        assert dataset.ids.tolist() == [1, 9]

    def test_a_list_file_from_elsewhere(self, root, tmp_path):
        """Windows' line ends, a byte order mark, other endings, names that repeat, and a path that is no string."""
        (tmp_path / "list.txt").write_bytes("\ufeffb_3.JPEG\r\na/a_1.png\r\na_1.png\r\n\r\n".encode())
        dataset = create_dataset(spec(root, list_file=tmp_path / "list.txt"))
        assert dataset.names == ["a/a_1.png", "b/b_3.png"]
        dataset.subset.save(tmp_path / "subset.json")
        rule = {"list_file": "list.txt", "list_sha256": sha256(tmp_path / "list.txt")}
        assert LabelSubset.load(tmp_path / "subset.json").rule == rule
        earlier = LabelSubset(
            dataset.subset.indices, {"list_file": str(tmp_path / "list.txt")}, 0, dataset.subset.digest
        )
        earlier.save(tmp_path / "subset.json")
        again = create_dataset(spec(root, list_file="gone.txt"), subset=LabelSubset.load(tmp_path / "subset.json"))
        assert again.names == dataset.names

    @pytest.fixture
    def twins(self, tmp_path):
        """Classes that count their images alike, but for one."""
        root = make_folder(tmp_path / "twins", {"train/cat": 1, "train/dog": 1, "val/cat": 1})
        for path in root.rglob("*.png"):
            path.rename(path.with_name("0.png"))
        write_image(root / "train/cat/99.png", 9)
        return root

    @pytest.mark.parametrize(
        "line",
        ["dog/99.png", "dog/99.jpeg", "emu/99.v2.bmp", "99.v2.bmp", "cat/99.png 1", "{root}/val/cat/0.png",
         "val/cat/0.png", "at/99.png", "/cat/99.png", "/elsewhere/train/cat/99.png", "cat/../dog/99.png"],
    )  # fmt: skip
    def test_a_list_file_selects_no_image_of_another_folder(self, twins, tmp_path, line):
        listing = write_lines(tmp_path / "list.txt", [line.format(root=twins)])
        with pytest.raises(DataError, match=r"names 1 images that .* does not have, such as"):
            create_dataset(spec(twins, list_file=str(listing)))

    @pytest.mark.parametrize(
        "line",
        ["cat/0.png", "train/cat/0.png", "./cat/0.png", "dog/../cat/0.png", "{root}/train/cat/0.png",
         "twins/train/cat/0.png", "cat/0.JPEG", "cat/0", "{link}/train/cat/0.png"],
    )  # fmt: skip
    def test_a_list_file_names_folders_up_to_the_root(self, twins, tmp_path, line):
        (tmp_path / "link").symlink_to(twins)
        listing = write_lines(tmp_path / "list.txt", [line.format(root=twins, link=tmp_path / "link")])
        root = tmp_path / "link" if "{link}" in line else twins
        assert create_dataset(spec(root, list_file=str(listing))).names == ["cat/0.png"]
        if "{root}" in line:
            assert create_dataset(spec(tmp_path / "link", list_file=str(listing))).names == ["cat/0.png"]

    def test_a_name_that_is_another_s_last_part(self, tmp_path):
        root = make_folder(tmp_path / "set", {"train/a": 1, "train/b/a": 1})
        listing = write_lines(tmp_path / "list.txt", ["a/a_0.png"])
        assert create_dataset(spec(root, list_file=str(listing))).names == ["a/a_0.png"]

    def test_a_list_file_with_unknown_names(self, root, tmp_path):
        listing = write_lines(tmp_path / "list.txt", ["a_1.png", "zebra.png"])
        with pytest.raises(DataError, match=r"names 1 images .* such as zebra\.png"):
            create_dataset(spec(root, list_file=str(listing)))

    def test_a_list_file_with_ambiguous_names(self, tmp_path):
        make_folder(tmp_path, {"train/a": 1, "train/b": 1})
        for name in ("a", "b"):
            (tmp_path / f"train/{name}/{name}_0.png").rename(tmp_path / f"train/{name}/0.png")
        with pytest.raises(DataError, match=r"0\.png is there several times"):
            create_dataset(spec(tmp_path, list_file=str(write_lines(tmp_path / "list.txt", ["0.png"]))))

    def test_a_missing_or_empty_list_file(self, root, tmp_path):
        with pytest.raises(FileNotFoundError, match="no list file"):
            create_dataset(spec(root, list_file=str(tmp_path / "none.txt")))
        with pytest.raises(DataError, match="leaves no image"):
            create_dataset(spec(root, list_file=str(write_lines(tmp_path / "empty.txt", []))))

    def test_evaluation_splits_are_whole(self, root):
        make_folder(root, {"val/a": 3, "val/b": 3})
        assert len(create_dataset(spec(root, k_shot=1), "val")) == 6


class TestFraction:
    """A test split made of the training split, where the data has none."""

    def test_splits_share_no_image_and_lose_none(self, root):
        config = spec(root, test_fraction=0.3, holdout=0.3)
        train, holdout, test = (create_dataset(config, split) for split in ("train", "holdout", "test"))
        assert sorted([*train.ids, *holdout.ids, *test.ids]) == list(range(10))
        assert np.bincount(test.labels).tolist() == [2, 1]
        assert np.bincount(holdout.labels).tolist() == [1, 1]
        assert len({dataset.digest for dataset in (train, holdout, test)}) == 3

    def test_the_test_split_depends_on_the_split_seed_alone(self, root):
        test = create_dataset(spec(root, test_fraction=0.3), "test").ids.tolist()
        assert create_dataset(spec(root, test_fraction=0.3, holdout=0.2, k_shot=1, seed=5), "test").ids.tolist() == test
        others = [create_dataset(spec(root, test_fraction=0.3, split_seed=s), "test").ids.tolist() for s in range(1, 6)]
        assert any(other != test for other in others)

    def test_it_is_no_augmentation(self, root):
        test = create_dataset(spec(root, test_fraction=0.3), "test")
        test.set_epoch(1)
        first = test[0].image
        test.set_epoch(2)
        assert torch.equal(test[0].image, first)

    def test_label_subsets_are_chosen_from_the_rest(self, root):
        subset = create_dataset(spec(root, test_fraction=0.3, k_shot=2)).subset
        assert subset.rule == {"k_shot": 2, "test_fraction": 0.3, "split_seed": 0}
        assert not set(subset.indices) & set(create_dataset(spec(root, test_fraction=0.3), "test").ids)

    @pytest.mark.parametrize("value", [1.0, -0.1, "half", True])
    def test_a_fraction_that_is_none(self, root, value):
        with pytest.raises(ValueError, match="test_fraction must be a"):
            create_dataset(spec(root, test_fraction=value))
