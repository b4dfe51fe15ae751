"""Data sets that torchvision reads, as tiny copies on the disk."""

import pickle

import numpy as np
import pytest
import torch
from data_sets import (
    check_samples,
    make_folder,
    opened,
    pixels,
    write_image,
    write_json,
    write_lines,
)

from difformer.data import DataError, ImageError


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

    def test_cars_that_are_not_there(self, tmp_path):
        with pytest.raises(
            FileNotFoundError, match=r"must hold stanford_cars/ with devkit/cars_meta\.mat, .*cars_train/"
        ):
            opened("cars", tmp_path, "train")

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
