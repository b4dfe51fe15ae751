"""Data sets of the `datasets` library, as tiny copies on the disk."""

import sys
from pathlib import Path

import pytest
from data_sets import (
    check_samples,
    encoded,
    make_folder,
    opened,
    write_image,
)

from difformer.data import DataError, ImageError, read_source


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
        with pytest.raises(DataError, match="the label 'c' is not in class_names"):
            opened("huggingface", tmp_path / "saved", "train", class_names=["a", "b"])

    def test_a_folder_of_parquet_and_a_folder_of_images(self, datasets, tmp_path):
        (tmp_path / "parquet").mkdir()
        self.table(datasets, 4, datasets.ClassLabel(names=["x", "y"])).to_parquet(tmp_path / "parquet/train.parquet")
        assert opened("huggingface", tmp_path / "parquet", "train").class_names == ("x", "y")
        make_folder(tmp_path / "images", {"train/a": 2, "train/b": 1, "test/a": 1, "test/b": 1})
        dataset = opened("huggingface", tmp_path / "images", "test")
        assert dataset.class_names == ("a", "b")
        check_samples(dataset)
        source = read_source({"name": "huggingface", "root": str(tmp_path / "images")}, "test")
        assert [Path(file).name for file in source.files(1)] == ["b_0.png"]

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

    def test_the_files_of_a_table_are_known_without_its_rows(self, datasets, tmp_path, monkeypatch):
        self.table(datasets, 2, datasets.ClassLabel(names=["a"])).save_to_disk(tmp_path / "saved")
        source = read_source({"name": "huggingface", "root": str(tmp_path / "saved")}, "train")
        monkeypatch.setattr(type(source.content), "_find", None)
        assert [Path(file).suffix for file in source.files(1)] == [".arrow"]

    def test_a_configuration_is_chosen(self, datasets, tmp_path, monkeypatch):
        asked = []
        monkeypatch.setattr(datasets, "load_dataset", lambda *names: asked.append(names) or {})
        with pytest.raises(DataError, match="no split 'train'"):
            opened("huggingface", "owner/name", "train", configuration="fine", download=True)
        assert asked == [("owner/name", "fine")]

    def test_a_damaged_image_fails_before_the_first_step(self, datasets, tmp_path):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
        images = [{"bytes": encoded(0), "path": None}, {"bytes": encoded(1)[:500], "path": None}]
        table = datasets.Dataset.from_dict({"image": images, "label": [0, 0]}, features=features)
        table.save_to_disk(tmp_path / "saved")
        with pytest.raises(ImageError, match="image 1 cannot be read"):
            opened("huggingface", tmp_path / "saved", "train")

    @pytest.mark.parametrize("root", ["owner/name", "imagenet", "data/petz"])
    def test_nothing_is_fetched_unasked(self, datasets, monkeypatch, root):
        import socket

        monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: pytest.fail("asked the network"))
        monkeypatch.setattr(socket.socket, "connect", lambda *arguments: pytest.fail("asked the network"))
        with pytest.raises(FileNotFoundError, match=rf"no folder {root}, and no data set of that name.*download: true"):
            opened("huggingface", root, "train")
        assert not datasets.config.HF_HUB_OFFLINE

    @pytest.mark.parametrize("root", ["data/sets/petz", "/data/petz", "~/petz", "./petz", "https://x.org/petz"])
    def test_what_can_be_no_repository_is_not_asked_for(self, datasets, root):
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            opened("huggingface", root, "train", download=True)

    def test_a_data_set_that_was_fetched_before(self, datasets, tmp_path, monkeypatch):
        asked = []
        monkeypatch.setattr(datasets, "load_dataset", lambda *names: asked.append(datasets.config.HF_HUB_OFFLINE) or {})
        for download in (False, True):
            with pytest.raises(DataError, match="no split 'train'"):
                opened("huggingface", "owner/name", "train", download=download)
        assert asked == [True, False]

    def test_labels_from_1(self, datasets, tmp_path):
        features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
        images = [{"bytes": encoded(i), "path": None} for i in range(2)]
        table = datasets.Dataset.from_dict({"img": images, "label": [1, 2]}, features=features)
        table.save_to_disk(tmp_path / "saved")
        with pytest.raises(DataError, match=r"labels go from 1 to 2.*first_label: 1"):
            opened("huggingface", tmp_path / "saved", "train")
        dataset = opened("huggingface", tmp_path / "saved", "train", first_label=1)
        assert (dataset.labels.tolist(), dataset.class_names) == ([0, 1], ("1", "2"))

    @pytest.mark.parametrize("kind", ["names", "words"])
    def test_a_first_label_where_labels_are_no_plain_numbers(self, datasets, tmp_path, kind):
        label = datasets.ClassLabel(names=["a", "b"]) if kind == "names" else datasets.Value("string")
        self.table(datasets, 3, label).save_to_disk(tmp_path / "saved")
        with pytest.raises(DataError, match="leave first_label out"):
            opened("huggingface", tmp_path / "saved", "train", first_label=1)

    def test_a_missing_folder(self, datasets, tmp_path):
        with pytest.raises(FileNotFoundError, match="no folder"):
            opened("huggingface", tmp_path / "nowhere", "train")

    def test_without_the_library(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(ImportError, match="pip install --upgrade datasets"):
            opened("huggingface", tmp_path, "train")
