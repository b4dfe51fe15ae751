"""CUB, NABirds, Stanford Dogs and ELPV, as tiny copies on the disk."""

import sys
from types import ModuleType

import numpy as np
import pytest
from data_sets import (
    check_samples,
    make_birds,
    make_elpv,
    opened,
    write_image,
    write_lines,
)

from difformer.data import DataError, ImageError, create_dataset

BIRDS = [("001.Auk/a.png", 1, 1), ("001.Auk/b.png", 1, 0), ("002.Rook/c.png", 2, 0), ("002.Rook/d.png", 2, 1)]


class TestBirds:
    @pytest.fixture
    def cub(self, tmp_path):
        make_birds(tmp_path / "CUB_200_2011", {1: "001.Least_Auklet", 2: "002.Rook"}, BIRDS)
        return tmp_path

    @pytest.mark.parametrize("folder", [".", "CUB_200_2011"])
    def test_cub(self, cub, folder):
        train, test = (opened("cub", cub / folder, split) for split in ("train", "test"))
        assert train.class_names == ("Least Auklet", "Rook")
        assert train.names == ["001.Auk/a.png", "002.Rook/d.png"]
        assert test.names == ["001.Auk/b.png", "002.Rook/c.png"]
        assert test.labels.tolist() == [0, 1]
        check_samples(test)

    def test_nabirds_has_only_the_classes_that_occur(self, tmp_path):
        classes = {0: "Birds", 9: "Ducks", 100: "Common Eider (Adult male)", 20: "Rook", 21: "Rook"}
        images = [("0100/a.png", 100, 1), ("0020/b.png", 20, 1), ("0021/c.png", 21, 0), ("0100/d.png", 100, 0)]
        make_birds(tmp_path, classes, images)
        # As published: numbers with leading zeros, and images named by hexadecimal words.
        write_lines(tmp_path / "hierarchy.txt", ["9 0", "100 9", "20 0", "21 0"])
        train, test = (opened("nabirds", tmp_path, split) for split in ("train", "test"))
        assert train.class_names == test.class_names == ("Rook (20)", "Rook (21)", "Common Eider (Adult male)")
        assert train.labels.tolist() == [2, 0]
        assert test.labels.tolist() == [1, 2]
        check_samples(train)

    @pytest.mark.parametrize("name", ["images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"])
    def test_a_missing_file(self, cub, name):
        (cub / "CUB_200_2011" / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"no file .*{name}"):
            opened("cub", cub, "train")

    def test_files_that_contradict_each_other(self, cub):
        write_lines(cub / "CUB_200_2011/image_class_labels.txt", ["1 1", "2 1", "3 2"])
        with pytest.raises(DataError, match=r"image 4 .* has no class"):
            opened("cub", cub, "train")
        write_lines(cub / "CUB_200_2011/image_class_labels.txt", ["1 1", "2 1", "3 2", "4 7"])
        with pytest.raises(DataError, match="class 7 has images but is not in"):
            opened("cub", cub, "train")
        write_lines(cub / "CUB_200_2011/images.txt", ["1"])
        with pytest.raises(DataError, match="a line with one word only: '1'"):
            opened("cub", cub, "train")

    def test_splits_and_classes_that_are_none(self, cub):
        write_lines(cub / "CUB_200_2011/train_test_split.txt", ["1 1", "2 0", "3 0", "4 2"])
        with pytest.raises(DataError, match=r"image 4 .* no split 0 or 1"):
            opened("cub", cub, "train")
        write_lines(cub / "CUB_200_2011/image_class_labels.txt", ["1 1", "2 1", "3 two", "4 2"])
        with pytest.raises(DataError, match=r"image 3 .* no class number"):
            opened("cub", cub, "train")

    def test_unknown_and_empty_splits(self, cub):
        with pytest.raises(DataError, match="no split 'val'; it has train, test"):
            opened("cub", cub, "val")
        write_lines(cub / "CUB_200_2011/train_test_split.txt", [f"{i} 1" for i in range(1, 5)])
        with pytest.raises(DataError, match=r"test in .* holds no image"):
            opened("cub", cub, "test")

    def test_an_image_that_is_not_there(self, cub):
        (cub / "CUB_200_2011/images/002.Rook/c.png").unlink()
        with pytest.raises(ImageError, match=r"002\.Rook/c\.png"):
            opened("cub", cub, "test")


class TestDogs:
    @pytest.fixture
    def dogs(self, tmp_path):
        for i, name in enumerate(["n1-Chow/n1_1.png", "n2-toy_terrier/n2_1.png", "n2-toy_terrier/n2_2.png"]):
            write_image(tmp_path / "Images" / name, i)
        self.write(tmp_path, "train", ["n2-toy_terrier/n2_2.png"], [2])
        self.write(tmp_path, "test", ["n1-Chow/n1_1.png", "n2-toy_terrier/n2_1.png"], [1, 2])
        return tmp_path

    def write(self, root, split, files, labels):
        from scipy.io import savemat

        cells = np.empty((len(files), 1), dtype=object)
        cells[:, 0] = files
        savemat(root / f"{split}_list.mat", {"file_list": cells, "labels": np.asarray(labels)[:, None]})

    @pytest.mark.parametrize("folder", [".", "lists"])
    def test_official_lists(self, dogs, folder):
        (dogs / "lists").mkdir()
        for split in ("train", "test"):
            (dogs / f"{split}_list.mat").rename(dogs / folder / f"{split}_list.mat")
        train, test = (opened("dogs", dogs, split) for split in ("train", "test"))
        assert train.class_names == test.class_names == ("Chow", "toy terrier")
        assert train.labels.tolist() == [1]
        assert test.names == ["n1-Chow/n1_1.png", "n2-toy_terrier/n2_1.png"]
        check_samples(test)

    def test_what_is_missing_is_named(self, dogs):
        with pytest.raises(DataError, match="no split 'val'"):
            opened("dogs", dogs, "val")
        (dogs / "test_list.mat").unlink()
        with pytest.raises(FileNotFoundError, match=r"no test_list\.mat"):
            opened("dogs", dogs, "train")
        with pytest.raises(FileNotFoundError, match=r"no folder .*Images"):
            opened("dogs", dogs / "Images", "train")

    def test_a_list_that_is_damaged(self, dogs):
        (dogs / "train_list.mat").write_bytes(b"MATLAB 5.0 and then nothing")
        with pytest.raises(DataError, match=r"train_list\.mat is not a list of Stanford Dogs"):
            opened("dogs", dogs, "train")

    def test_labels_with_gaps(self, dogs):
        self.write(dogs, "train", ["n2-toy_terrier/n2_2.png"], [3])
        self.write(dogs, "test", ["n1-Chow/n1_1.png"], [1])
        with pytest.raises(DataError, match="number the classes from 1 without gaps"):
            opened("dogs", dogs, "train")

    def test_two_breeds_with_one_label(self, dogs):
        self.write(dogs, "train", ["n2-toy_terrier/n2_2.png"], [1])
        with pytest.raises(DataError, match="class 1 is both"):
            opened("dogs", dogs, "train")


class TestElpv:
    @pytest.fixture
    def elpv(self, tmp_path):
        return make_elpv(tmp_path / "elpv", 4)

    def test_two_classes_split_by_level_and_type(self, elpv):
        train, test, everything = (opened("elpv", elpv, split) for split in ("train", "test", "all"))
        assert train.class_names == ("functional", "defective")
        assert (len(train), len(test)) == (24, 8)
        assert sorted(train.names + test.names) == everything.names
        assert everything.labels.tolist() == [0] * 16 + [1] * 16
        lines = dict(line.split(maxsplit=1) for line in (elpv / "labels.csv").read_text().splitlines())
        assert len({lines[name] for name in test.names}) == 8, "one of each combination"
        check_samples(test)

    def test_four_classes_have_the_same_split(self, elpv):
        levels = opened("elpv-levels", elpv, "test")
        assert levels.names == opened("elpv", elpv, "test").names
        assert len(levels.class_names) == 4
        assert levels.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]

    def test_the_split_depends_on_its_own_seed(self, elpv):
        names = opened("elpv", elpv, "test").names
        assert opened("elpv", elpv, "test", seed=7).names == names
        assert opened("elpv", elpv, "test", split_seed=7).names != names

    def test_the_package_is_used_without_a_root(self, elpv, tmp_path, monkeypatch):
        package = ModuleType("elpv_dataset")
        package.__file__ = str(tmp_path / "package/__init__.py")
        monkeypatch.setitem(sys.modules, "elpv_dataset", package)
        (tmp_path / "package").mkdir()
        elpv.rename(tmp_path / "package/data")
        assert len(create_dataset({"name": "elpv", "size": 16}, "train")) == 24

    def test_without_a_root_and_the_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "elpv_dataset", None)
        with pytest.raises(ImportError, match="pip install --upgrade elpv-dataset"):
            create_dataset({"name": "elpv"}, "train")

    @pytest.mark.parametrize(
        ("line", "message"), [("images/x.png 0.5", "line 1: expected"), ("x 1.5 mono", r"must lie in \[0, 1\]")]
    )
    def test_malformed_lines(self, elpv, line, message):
        write_lines(elpv / "labels.csv", [line])
        with pytest.raises(DataError, match=message):
            opened("elpv", elpv, "train")
