"""Data sets in the formats they are published in, as tiny copies on the disk."""

import pickle
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from data_sets import encoded, make_birds, make_elpv, make_folder, pixels, write_image, write_json, write_lines
from PIL import Image, ImageOps

from difformer.data import DataError, ImageError, create_dataset, data_set_names, read_image


def opened(name, root, split, **changes):
    return create_dataset({"name": name, "root": str(root), "size": 16} | changes, split)


def check_samples(dataset):
    """Every image can be read, in a copy as a worker has it too, and ids are places in the split."""
    copy = pickle.loads(pickle.dumps(dataset))
    samples = [dataset[i] for i in range(len(dataset))]
    assert [sample.id for sample in samples] == list(range(len(dataset)))
    assert [sample.label for sample in samples] == dataset.labels.tolist()
    for i, sample in enumerate(samples):
        assert sample.image.shape == (3, 16, 16)
        assert torch.equal(sample.image, copy[i].image)


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


class TestTorchvision:
    @pytest.fixture
    def trusted(self, monkeypatch):
        """Tiny copies do not have the checksums of the originals."""
        import torchvision.datasets as sets

        monkeypatch.setattr(sets.cifar, "check_integrity", lambda *arguments: True)
        monkeypatch.setattr(sets.flowers102, "check_integrity", lambda *arguments: True)

    @pytest.mark.parametrize(("name", "folder", "key"), [
        ("cifar10", "cifar-10-batches-py", "labels"), ("CIFAR100", "cifar-100-python", "fine_labels"),
    ])  # fmt: skip
    def test_cifar(self, tmp_path, trusted, name, folder, key):
        files = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"] if key == "labels" else ["train", "test"]
        (tmp_path / folder).mkdir()
        for i, file in enumerate(files):
            data = np.stack([pixels(10 * i + j, 32, 32).transpose(2, 0, 1).ravel() for j in range(2)])
            (tmp_path / folder / file).write_bytes(pickle.dumps({"data": data, key: [i % 2, 1]}))
        meta, names = ("batches.meta", "label_names") if key == "labels" else ("meta", "fine_label_names")
        (tmp_path / folder / meta).write_bytes(pickle.dumps({names: ["cat", "dog"]}))
        train, test = (opened(name, tmp_path, split, size=32) for split in ("train", "test"))
        assert (len(train), len(test)) == (2 * (len(files) - 1), 2)
        assert train.class_names == ("cat", "dog")
        last = torch.from_numpy(pixels(10 * (len(files) - 1) + 1, 32, 32)).permute(2, 0, 1) / 127.5 - 1
        assert torch.allclose(test[1].image, last, atol=1e-6)
        digest = test.digest
        assert opened(name, tmp_path, "test", size=32).digest == digest
        data[0, 0] ^= 1
        (tmp_path / folder / file).write_bytes(pickle.dumps({"data": data, key: [i % 2, 1]}))
        assert opened(name, tmp_path, "test", size=32).digest != digest

    def test_flowers(self, tmp_path, trusted):
        from scipy.io import savemat

        folder = tmp_path / "flowers-102"
        for i in range(1, 7):
            write_image(folder / f"jpg/image_{i:05}.jpg", i)
        savemat(folder / "imagelabels.mat", {"labels": np.asarray([[1, 2, 3, 102, 5, 6]])})
        savemat(folder / "setid.mat", {"trnid": [[1, 4]], "valid": [[2, 3]], "tstid": [[5, 6]]})
        assert opened("flowers", tmp_path, "train").labels.tolist() == [0, 101]
        both = opened("Flowers102", tmp_path, "trainval")
        assert both.labels.tolist() == [0, 101, 1, 2]
        assert len(both.class_names) == 102
        check_samples(both)

    def test_releases_of_torchvision_that_do_not_name_the_flowers(self, tmp_path, trusted, monkeypatch):
        import torchvision.datasets as sets

        self.test_flowers(tmp_path, trusted)
        monkeypatch.delattr(sets.Flowers102, "classes")
        with pytest.raises(DataError, match="Flowers102 has no class names in this release"):
            opened("flowers", tmp_path, "train")
        names = [f"flower {i}" for i in range(102)]
        assert opened("flowers", tmp_path, "train", class_names=names).class_names == tuple(names)

    def test_damaged_annotations(self, tmp_path, trusted):
        (tmp_path / "cifar-10-batches-py").mkdir()
        for name in ("batches.meta", "test_batch"):
            (tmp_path / "cifar-10-batches-py" / name).write_bytes(b"")
        with pytest.raises(FileNotFoundError, match="CIFAR10 cannot be read"):
            opened("cifar10", tmp_path, "test")

    def test_aircraft(self, tmp_path):
        data = tmp_path / "fgvc-aircraft-2013b/data"
        write_lines(data / "variants.txt", ["707-320", "A300 B4"])
        for split, line in {"train": "1 A300 B4", "val": "2 707-320", "test": "3 A300 B4"}.items():
            write_lines(data / f"images_variant_{split}.txt", [line])
            write_image(data / f"images/{line[0]}.jpg")
        write_lines(data / "images_variant_trainval.txt", ["1 A300 B4", "2 707-320"])
        dataset = opened("aircraft", tmp_path, "train", splits={"train": "trainval"})
        assert dataset.labels.tolist() == [1, 0]
        assert dataset.class_names == ("707-320", "A300 B4")
        check_samples(opened("fgvc_aircraft", tmp_path, "trainval"))

    def test_cars(self, tmp_path):
        from scipy.io import savemat

        folder = tmp_path / "stanford_cars"
        (folder / "devkit").mkdir(parents=True)
        kind = [("fname", object), ("class", object)]
        for file, image in {"devkit/cars_train_annos": "cars_train", "cars_test_annos_withlabels": "cars_test"}.items():
            rows = np.asarray([[("1.jpg", 2), ("2.jpg", 1)]], dtype=kind)
            savemat(folder / f"{file}.mat", {"annotations": rows})
            for name in ("1.jpg", "2.jpg"):
                write_image(folder / image / name)
        savemat(folder / "devkit/cars_meta.mat", {"class_names": np.asarray([["Audi", "BMW"]], dtype=object)})
        dataset = opened("cars", tmp_path, "test")
        assert dataset.class_names == ("Audi", "BMW")
        assert dataset.labels.tolist() == [1, 0]
        check_samples(dataset)

    def test_pets(self, tmp_path):
        folder = tmp_path / "oxford-iiit-pet"
        lines = ["Abyssinian_1 1 1 1", "great_pyrenees_7 2 2 1"]
        for split in ("trainval", "test"):
            write_lines(folder / f"annotations/{split}.txt", lines)
        for line in lines:
            write_image(folder / f"images/{line.split()[0]}.jpg")
        dataset = opened("pets", tmp_path, "test")
        assert dataset.class_names == ("Abyssinian", "Great Pyrenees")
        assert dataset.labels.tolist() == [0, 1]
        assert len(opened("OxfordIIITPet", tmp_path, "train")) == 2
        check_samples(dataset)

    def test_food(self, tmp_path):
        meta = {"ramen": ["ramen/1"], "apple_pie": ["apple_pie/7", "apple_pie/8"]}
        for split in ("train", "test"):
            write_json(tmp_path / f"food-101/meta/{split}.json", meta)
        for name in [name for names in meta.values() for name in names]:
            write_image(tmp_path / f"food-101/images/{name}.jpg")
        dataset = opened("food101", tmp_path, "test")
        assert dataset.class_names == ("apple_pie", "ramen")
        assert dataset.labels.tolist() == [1, 0, 0]
        check_samples(dataset)

    def test_textures(self, tmp_path):
        for i, split in enumerate(("train", "val", "test")):
            names = [f"banded/banded_{i}.jpg", f"dotted/dotted_{i}.jpg"]
            write_lines(tmp_path / f"dtd/dtd/labels/{split}1.txt", names)
            for name in names:
                write_image(tmp_path / "dtd/dtd/images" / name)
        assert opened("dtd", tmp_path, "val").class_names == ("banded", "dotted")
        check_samples(opened("dtd", tmp_path, "test"))
        assert len(opened("dtd", tmp_path, "trainval")) == 4

    def test_eurosat_is_split_here(self, tmp_path):
        make_folder(tmp_path / "eurosat/2750", {"Forest": 10, "River": 5}, suffix="jpg")
        train, test, everything = (opened("eurosat", tmp_path, split) for split in ("train", "test", "all"))
        assert np.bincount(test.labels).tolist() == [2, 1]
        assert sorted(train.names + test.names) == sorted(everything.names)
        check_samples(test)

    def test_what_is_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"DTD cannot be read from .*download: true"):
            opened("dtd", tmp_path, "train")
        with pytest.raises(DataError, match="DTD has no split 'dev'; it has train, val, test, trainval"):
            opened("dtd", tmp_path, "dev")

    def test_an_image_that_is_not_there(self, tmp_path):
        write_json(tmp_path / "food-101/meta/train.json", {"ramen": ["ramen/1"]})
        (tmp_path / "food-101/images").mkdir()
        with pytest.raises(ImageError, match=r"ramen/1\.jpg"):
            opened("food101", tmp_path, "train")


class TestHuggingFace:
    @pytest.fixture
    def datasets(self, tmp_path, monkeypatch):
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
        datasets.disable_progress_bars()
        return datasets

    def table(self, datasets, count, label, **columns):
        images = [{"bytes": encoded(i), "path": None} for i in range(count)]
        features = datasets.Features(
            {"img": datasets.Image(), "label": label} | {name: datasets.Value("int64") for name in columns}
        )
        classes = label.num_classes if hasattr(label, "num_classes") else 3
        labels = [i % classes if label.dtype == "int64" else "abc"[i % 3] for i in range(count)]
        return datasets.Dataset.from_dict({"img": images, "label": labels} | columns, features=features)

    def test_saved_splits(self, datasets, tmp_path):
        label = datasets.ClassLabel(names=["cat", "dog"])
        tables = {"train": self.table(datasets, 5, label), "validation": self.table(datasets, 3, label)}
        datasets.DatasetDict(tables).save_to_disk(tmp_path / "saved")
        dataset = opened("huggingface", tmp_path / "saved", "val", splits={"val": "validation"})
        assert dataset.class_names == ("cat", "dog")
        assert dataset.labels.tolist() == [0, 1, 0]
        check_samples(dataset)
        assert len(opened("huggingface", tmp_path / "saved", "train", k_shot=1)) == 2
        with pytest.raises(DataError, match="no split 'test'; it has train, validation"):
            opened("huggingface", tmp_path / "saved", "test")

    def test_one_saved_table_is_the_training_split(self, datasets, tmp_path):
        self.table(datasets, 4, datasets.Value("int64")).save_to_disk(tmp_path / "saved")
        dataset = opened("huggingface", tmp_path / "saved", "train")
        assert dataset.class_names == ("0", "1", "2")

    def test_words_as_labels(self, datasets, tmp_path):
        self.table(datasets, 4, datasets.Value("string")).save_to_disk(tmp_path / "saved")
        dataset = opened("huggingface", tmp_path / "saved", "train")
        assert dataset.class_names == ("a", "b", "c")
        assert dataset.labels.tolist() == [0, 1, 2, 0]
        with pytest.raises(DataError, match="label -1"):
            opened("huggingface", tmp_path / "saved", "train", class_names=["a", "b"])

    def test_a_folder_of_parquet_and_a_folder_of_images(self, datasets, tmp_path):
        (tmp_path / "parquet").mkdir()
        self.table(datasets, 4, datasets.ClassLabel(names=["x", "y"])).to_parquet(tmp_path / "parquet/train.parquet")
        assert opened("huggingface", tmp_path / "parquet", "train").class_names == ("x", "y")
        make_folder(tmp_path / "images", {"train/a": 2, "train/b": 1, "test/a": 1, "test/b": 1})
        dataset = opened("huggingface", tmp_path / "images", "test")
        assert dataset.class_names == ("a", "b")
        check_samples(dataset)

    def test_columns_are_asked_for_when_unclear(self, datasets, tmp_path):
        label = datasets.ClassLabel(names=["cat", "dog"])
        table = self.table(datasets, 2, label)
        table.add_column("coarse", [0, 1], feature=label).save_to_disk(tmp_path / "saved")
        with pytest.raises(DataError, match="Set label_column to one of label, coarse"):
            opened("huggingface", tmp_path / "saved", "train")
        assert len(opened("huggingface", tmp_path / "saved", "train", label_column="coarse")) == 2
        with pytest.raises(DataError, match="no image column 'picture'"):
            opened("huggingface", tmp_path / "saved", "train", label_column="coarse", image_column="picture")

    def test_a_damaged_image_names_its_place(self, datasets, tmp_path):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
        images = [{"bytes": encoded(0), "path": None}, {"bytes": b"no image", "path": None}]
        table = datasets.Dataset.from_dict({"image": images, "label": [0, 0]}, features=features)
        table.save_to_disk(tmp_path / "saved")
        with pytest.raises(ImageError, match="image 1 cannot be read"):
            opened("huggingface", tmp_path / "saved", "train", check_images="decode")
        dataset = opened("huggingface", tmp_path / "saved", "train", check_images="decode", on_bad_image="skip")
        assert dataset.ids.tolist() == [0]

    @pytest.mark.parametrize(
        ("values", "kind", "message"),
        [
            ([0, None], "int64", "holds NoneType, int"),
            (["a", None], "string", "holds NoneType, str"),
            ([True, False], "bool", "holds bool"),
            ([0.0, 1.0], "float32", "holds float"),
            ([0, 2_000_000], "int64", "has the label 2000000; set class_names"),
        ],
    )
    def test_labels_that_are_none(self, datasets, tmp_path, values, kind, message):
        features = datasets.Features({"img": datasets.Image(), "label": datasets.Value(kind)})
        images = [{"bytes": encoded(i), "path": None} for i in range(2)]
        datasets.Dataset.from_dict({"img": images, "label": values}, features=features).save_to_disk(tmp_path / "saved")
        with pytest.raises(DataError, match=message):
            opened("huggingface", tmp_path / "saved", "train")

    def test_unlabelled_images_of_declared_classes(self, datasets, tmp_path):
        features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
        images = [{"bytes": encoded(i), "path": None} for i in range(2)]
        table = datasets.Dataset.from_dict({"img": images, "label": [0, None]}, features=features)
        table.save_to_disk(tmp_path / "saved")
        with pytest.raises(DataError, match="labels must be integers or words"):
            opened("huggingface", tmp_path / "saved", "train")

    def test_images_in_files_and_missing_ones(self, datasets, tmp_path):
        features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
        images = [{"bytes": None, "path": str(write_image(tmp_path / "x.png"))}, None]
        table = datasets.Dataset.from_dict({"img": images, "label": [0, 0]}, features=features)
        table.save_to_disk(tmp_path / "saved")
        dataset = opened("huggingface", tmp_path / "saved", "train", on_bad_image="skip")
        assert dataset.ids.tolist() == [0]
        check_samples(dataset)
        assert len(dataset.digest) == 64

    def test_a_configuration_is_chosen(self, datasets, tmp_path, monkeypatch):
        asked = []
        monkeypatch.setattr(datasets, "load_dataset", lambda *names: asked.append(names) or {})
        with pytest.raises(DataError, match="no split 'train'"):
            opened("huggingface", "owner/name", "train", configuration="fine")
        assert asked == [("owner/name", "fine")]

    def test_a_damaged_image_fails_before_the_first_step(self, datasets, tmp_path):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
        images = [{"bytes": encoded(0), "path": None}, {"bytes": encoded(1)[:500], "path": None}]
        table = datasets.Dataset.from_dict({"image": images, "label": [0, 0]}, features=features)
        table.save_to_disk(tmp_path / "saved")
        with pytest.raises(ImageError, match="image 1 cannot be read"):
            opened("huggingface", tmp_path / "saved", "train")

    def test_a_missing_folder(self, datasets, tmp_path):
        with pytest.raises(FileNotFoundError, match="no folder"):
            opened("huggingface", tmp_path / "nowhere", "train")

    def test_without_the_library(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(ImportError, match="pip install --upgrade datasets"):
            opened("huggingface", tmp_path, "train")


def test_every_kind_is_listed():
    names = data_set_names()
    assert {"folder", "imagenet", "webdataset", "huggingface", "cub", "nabirds", "dogs", "elpv", "cifar10"} <= set(
        names
    )


class TestPixelFormats:
    def saved(self, tmp_path, name, image, **options):
        path = tmp_path / f"train/a/{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)
        return path

    def test_grey_and_transparent_images_become_rgb(self, tmp_path):
        for i, mode in enumerate(("L", "RGBA", "P", "CMYK", "1", "LA")):
            suffix = "jpg" if mode == "CMYK" else "png"
            self.saved(tmp_path, f"{i}.{suffix}", Image.fromarray(pixels(i)).convert(mode))
        check_samples(opened("folder", tmp_path, "train"))

    @pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
    @pytest.mark.parametrize("order", ["<u2", ">u2"])
    def test_sixteen_bits_keep_the_upper_eight(self, tmp_path, suffix, order):
        deep = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
        path = tmp_path / f"x.{suffix}"
        if suffix == "pgm":
            path.write_bytes(b"P5 32 32 65535\n" + deep.astype(">u2").tobytes())
        else:
            Image.fromarray(deep.astype(order)).save(path)
        grey = np.asarray(read_image(path))
        assert np.array_equal(grey, np.repeat((deep >> 8)[..., None], 3, axis=2))

    @pytest.mark.parametrize("dtype", [np.int32, np.float32])
    def test_pixels_without_a_known_range_are_refused(self, tmp_path, dtype):
        self.saved(tmp_path, "x.tif", Image.fromarray(np.ones((8, 8), dtype)))
        with pytest.raises(ImageError, match=r"x\.tif .* have no known range"):
            opened("folder", tmp_path, "train")

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_turned_as_pillow_does(self, tmp_path, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = self.saved(tmp_path, "x.png", Image.fromarray(pixels(0)), exif=exif)
        with Image.open(path) as image:
            assert np.array_equal(read_image(path), ImageOps.exif_transpose(image))

    def test_a_damaged_exif_block_spoils_no_image(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        exif[0x011A] = 72.0
        damaged = bytearray(exif.tobytes())
        # The resolution is a fraction; its type becomes that of bytes.
        damaged[damaged.index(b"\x01\x1a\x00\x05") + 3] = 1
        path = self.saved(tmp_path, "x.jpg", Image.fromarray(pixels(0)), exif=bytes(damaged))
        assert read_image(path).size == (24, 30)
