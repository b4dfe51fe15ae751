"""Image folders, ImageNet's layout, and what can be wrong before the first step."""

import logging
import os
import pickle
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from data_sets import encoded, make_folder, pixels, write_image, write_lines
from PIL import Image
from torch.utils.data import DataLoader

from difformer.data import (
    DataConfig,
    DataError,
    ImageError,
    Sample,
    collate,
    create_dataset,
    data_set_names,
    read_source,
)
from difformer.data.classes import check_same_classes
from difformer.data.folder import _words
from difformer.data.images import decode_image


@pytest.fixture
def root(tmp_path):
    return make_folder(tmp_path / "pets", {"train/cat": 4, "train/dog": 3, "val/cat": 1, "val/dog": 2})


def spec(root, **changes):
    return {"name": "folder", "root": str(root), "size": 16} | changes


def test_samples_have_image_label_and_stable_id(root):
    dataset = create_dataset(spec(root), "val")
    assert dataset.class_names == ("cat", "dog")
    assert dataset.labels.tolist() == [0, 1, 1]
    assert dataset.names == ["cat/cat_0.png", "dog/dog_0.png", "dog/dog_1.png"]
    sample = dataset[2]
    assert isinstance(sample, Sample)
    assert (sample.label, sample.id) == (1, 2)
    assert sample.image.shape == (3, 16, 16)
    assert sample.image.dtype == torch.float32
    assert sample.image.min() >= -1
    assert sample.image.max() <= 1


def test_collate_stacks(root):
    (batch,) = DataLoader(create_dataset(spec(root), "val"), batch_size=3, collate_fn=collate)
    assert batch.images.shape == (3, 3, 16, 16)
    assert batch.labels.tolist() == [0, 1, 1]
    assert batch.ids.tolist() == [0, 1, 2]
    assert batch.ids.dtype == batch.labels.dtype == torch.int64


def test_a_root_without_splits_is_the_split_dot(tmp_path):
    make_folder(tmp_path, {"a": 10, "b": 10})
    config = spec(tmp_path, splits={"train": "."}, holdout=0.2)
    train, holdout = create_dataset(config, "train"), create_dataset(config, "holdout")
    assert len(train) == 16
    assert np.bincount(holdout.labels).tolist() == [2, 2]
    assert sorted([*train.ids, *holdout.ids]) == list(range(20))
    assert torch.equal(holdout[0].image, create_dataset(config, "holdout")[0].image)


def test_hidden_and_foreign_files_are_no_images(root):
    write_lines(root / "train/cat/notes.txt", ["x"])
    write_lines(root / "train/cat/._cat_0.png", ["x"])
    (root / "train/.thumbnails").mkdir()
    assert len(create_dataset(spec(root))) == 7


def test_images_in_deeper_folders_and_with_capital_suffixes_count(root):
    write_image(root / "train/cat/more/CAT.PNG", 9)
    assert "cat/more/CAT.PNG" in create_dataset(spec(root)).names


def test_names_that_are_not_utf8(root, tmp_path):
    odd = os.fsdecode(b"bad\xff \xc3\xa9.png")
    os.link(root / "train/cat/cat_0.png", root / "train/cat" / odd)
    dataset = create_dataset(spec(root, k_shot=1))
    assert f"cat/{odd}" in create_dataset(spec(root)).names
    dataset.subset.save(tmp_path / "subset.json")
    (tmp_path / "list.txt").write_bytes(os.fsencode(odd))
    assert create_dataset(spec(root, list_file=tmp_path / "list.txt")).names == [f"cat/{odd}"]


def test_linked_images_and_folders_count(root, tmp_path):
    write_image(tmp_path / "elsewhere/deep/x.png")
    (root / "train/cat/link.png").symlink_to(tmp_path / "elsewhere/deep/x.png")
    (root / "train/dog/folder").symlink_to(tmp_path / "elsewhere")
    assert {"cat/link.png", "dog/folder/deep/x.png"} < set(create_dataset(spec(root)).names)


@pytest.mark.parametrize("target", ["train/cat", "train/cat/inner", "train"])
def test_a_link_back_would_repeat_images(root, target):
    write_image(root / "train/cat/inner/y.png")
    (root / "train/cat/inner/back").symlink_to(root / target)
    with pytest.raises(DataError, match=r"inner/back.* is a link to a folder above it"):
        create_dataset(spec(root))


def test_it_survives_pickling(root):
    dataset = create_dataset(spec(root))
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[1].image, dataset[1].image)


class TestImageNet:
    @pytest.fixture
    def imagenet(self, tmp_path):
        counts = {
            f"{split}/{wnid}": 2 for split in ("train", "val") for wnid in ("n02012849", "n03126707", "n01440764")
        }
        return make_folder(tmp_path / "in1k", counts, suffix="JPEG")

    def test_names_from_the_synset_file_in_its_order(self, imagenet):
        lines = ["n03126707 crane", "n01440764 tench, Tinca tinca", "n02012849 crane"]
        write_lines(imagenet / "LOC_synset_mapping.txt", lines)
        dataset = create_dataset(spec(imagenet, name="imagenet"), "val")
        assert dataset.class_names == ("crane (n03126707)", "tench, Tinca tinca", "crane (n02012849)")
        assert dataset.names[0] == "n01440764/n01440764_0.JPEG", "ids must not depend on the synset file"
        assert dataset[0].label == 1

    def test_every_class_of_imagenet_has_words(self):
        from timm.data import ImageNetInfo

        synsets = ImageNetInfo("imagenet-1k").label_names()
        words = _words(synsets, {})
        assert len(words) == 1000
        assert not set(words) & set(synsets)

    def test_names_from_timm_without_one(self, imagenet):
        names = create_dataset(spec(imagenet, name="imagenet"), "val").class_names
        assert names == ("tench, Tinca tinca", "crane (n02012849)", "crane (n03126707)")

    def test_a_class_of_the_synset_file_without_a_folder(self, imagenet):
        write_lines(imagenet / "LOC_synset_mapping.txt", ["n01440764 tench", "n00000001 unicorn"])
        with pytest.raises(DataError, match="no folder for n00000001"):
            create_dataset(spec(imagenet, name="imagenet"), "val")

    def test_kaggles_layout(self, imagenet):
        deep = imagenet.parent / "kaggle/ILSVRC/Data"
        deep.mkdir(parents=True)
        imagenet.rename(deep / "CLS-LOC")
        write_lines(imagenet.parent / "kaggle/LOC_synset_mapping.txt", ["n02012849 a", "n03126707 b", "n01440764 c"])
        dataset = create_dataset(spec(imagenet.parent / "kaggle", name="imagenet"), "val")
        assert dataset.class_names == ("a", "b", "c")


class TestErrors:
    def test_missing_root(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; root must be the folder"):
            create_dataset(spec(tmp_path / "nowhere"))

    def test_a_file_as_root(self, root):
        with pytest.raises(FileNotFoundError, match=r"cat_0\.png is a file; root must be the folder"):
            create_dataset(spec(root / "train/cat/cat_0.png"))

    def test_a_root_without_splits_says_what_to_do(self, root):
        with pytest.raises(DataError, match=r"it has cat, dog.*If these are the classes, use splits: \{train: \.\}"):
            create_dataset(spec(root / "train"))

    @pytest.mark.parametrize("name", ["folder", "imagenet"])
    def test_other_splits_are_not_taken_for_classes(self, root, name):
        with pytest.raises(DataError, match=r"it has train, val.*splits: \{test: NAME\}$"):
            create_dataset(spec(root, name=name), "test")

    @pytest.mark.parametrize("split", ["", None, 3])
    def test_a_split_that_is_no_name(self, root, split):
        with pytest.raises(ValueError, match="split must be a name"):
            create_dataset(spec(root), split)

    @pytest.mark.parametrize("given", [None, "folder", ["folder"]])
    def test_a_specification_that_is_none(self, given):
        with pytest.raises(ValueError, match="given by a DataConfig or a mapping"):
            create_dataset(given)

    def test_no_root(self):
        with pytest.raises(DataError, match="needs root"):
            create_dataset({"name": "folder"})

    def test_unknown_split_names_those_there(self, root):
        with pytest.raises(DataError, match=r"no split 'test'; it has train, val.*splits: \{test: NAME\}"):
            create_dataset(spec(root), "test")

    def test_missing_class_folder(self, root):
        for path in (root / "val/dog").iterdir():
            path.unlink()
        (root / "val/dog").rmdir()
        with pytest.raises(DataError, match=r"has no image of dog \(no such folder\)"):
            create_dataset(spec(root, splits={"train": "val"}, class_names=["cat", "dog"]))

    def test_another_split_may_lack_classes(self, root, caplog):
        make_folder(root, {"train/emu": 1})
        (root / "val/cat").rename(root / "val/.cat")
        dataset = create_dataset(spec(root), "val")
        assert (dataset.class_names, dataset.labels.tolist()) == (("cat", "dog", "emu"), [1, 1])
        assert "no image of cat (no such folder), emu (no such folder); it has images of 1 of the 3" in caplog.text

    def test_labels_are_numbers_of_the_classes_asked_for(self, root):
        shutil.rmtree(root / "train")
        alone = create_dataset(spec(root), "val")
        assert (alone.class_names, alone.labels.tolist()) == (("cat", "dog"), [0, 1, 1])
        dataset = create_dataset(spec(root), "val", classes=["emu", "dog", "cow", "cat"])
        assert (dataset.class_names, dataset.labels.tolist()) == (("emu", "dog", "cow", "cat"), [3, 1, 1])
        assert create_dataset(spec(root), "val", classes=["emu", "dog"]).class_names == ("cat", "dog")

    def test_names_that_differ_in_code_points_only(self, root):
        one, two = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
        make_folder(root, {f"train/{one}": 1, f"val/{two}": 1})
        with pytest.raises(DataError, match=r"no class of the training split.*same letters in other code points"):
            create_dataset(spec(root), "val")
        make_folder(root, {f"train/{two}": 1})
        with pytest.raises(DataError, match="class names must differ, also in another spelling of accents"):
            create_dataset(spec(root))
        with pytest.raises(ValueError, match="same letters in other code points"):
            check_same_classes((one, "a"), (two, "a"), "of val", "of train")

    def test_class_that_training_does_not_know(self, root):
        write_image(root / "val/cow/0.png")
        with pytest.raises(DataError, match="no class of the training split: cow"):
            create_dataset(spec(root), "val")

    def test_empty_class_folder(self, root):
        (root / "train/emu").mkdir()
        with pytest.raises(DataError, match="train has no image of emu"):
            create_dataset(spec(root))

    def test_images_without_class_folders(self, tmp_path):
        write_image(tmp_path / "train/0.png")
        with pytest.raises(DataError, match="no class folders"):
            create_dataset(spec(tmp_path))

    def test_class_names_that_do_not_fit(self, root):
        with pytest.raises(DataError, match="no folder for horse"):
            create_dataset(spec(root, class_names=["cat", "horse"]))

    def test_unknown_name(self):
        with pytest.raises(DataError, match="did you mean 'imagenet'"):
            create_dataset({"name": "imagnet"})

    def test_unknown_key(self):
        with pytest.raises(ValueError, match=r"unknown key 'kshot'.*'k_shot'"):
            create_dataset({"name": "folder", "kshot": 3})

    def test_no_holdout(self, root):
        with pytest.raises(DataError, match="there is no holdout"):
            create_dataset(spec(root), "holdout")

    def test_names_are_tolerant(self, root):
        assert len(create_dataset(spec(root, name="Folder"), "val")) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k_shot": 0}, "k_shot must be at least 1"),
        ({"percent": 0}, "percent must be above 0"),
        ({"k_shot": 4, "percent": 10}, "give one rule .* k_shot and percent"),
        ({"seed": -1}, "seed must be"),
        ({"size": 0}, "size must be"),
        ({"resize": 10}, "resize must be at least size, which is 16"),
        ({"holdout": 1.0}, "holdout must be"),
        ({"on_bad_image": "ignore"}, "on_bad_image must be one of raise, skip"),
        ({"check_images": True}, "check_images must be one of"),
        ({"splits": ["train"]}, "splits must map"),
        ({"class_names": "cat"}, "class_names must be a list"),
        ({"random_erasing": 2}, "random_erasing must be"),
        ({"stream": "no"}, "stream must be true or false"),
        ({"k_shot": True}, "k_shot must be an integer"),
        ({"k_shot": 2.0}, "k_shot must be an integer"),
        ({"size": "16"}, "size must be an integer"),
        ({"seed": None}, "seed must be an integer"),
        ({"percent": True}, "percent must be a number"),
        ({"percent": "10"}, "percent must be a number"),
        ({"percent": float("nan")}, "percent must be above 0"),
        ({"holdout": "0.1"}, "holdout must be a number"),
        ({"random_erasing": "x"}, "random_erasing must be a number"),
        ({"name": 3}, "name must be a word"),
        ({"augmentation": None}, "augmentation must be a word"),
        ({"root": ""}, "root must be a word"),
        ({"list_file": 3}, "list_file must be a word"),
        ({"splits": {"train": 3}}, "splits must map"),
        ({"class_names": 3}, "class_names must be a list"),
        ({"first_label": 2}, "first_label must be 0 or 1, got 2"),
        ({"first_label": -1}, "first_label must be 0 or 1, got -1"),
        ({"first_label": True}, "first_label must be an integer"),
    ],
)
def test_bad_values_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**({"name": "folder", "size": 16} | changes))


def test_a_first_label_is_refused_where_it_does_nothing(tmp_path):
    make_folder(tmp_path, {"train/a": 1})
    with pytest.raises(DataError, match="folder: first_label is for labels that are plain numbers"):
        create_dataset({"name": "folder", "root": str(tmp_path), "size": 16, "first_label": 1})


def test_values_of_other_types_become_plain():
    config = DataConfig(
        "folder",
        root=Path("x"),
        k_shot=np.int64(4),
        size=np.int32(32),
        holdout=np.float32(0.25),
        class_names=["a", "b"],
    )
    plain = DataConfig("folder", root="x", k_shot=4, size=32, holdout=0.25, class_names=("a", "b"))
    assert config == plain
    assert [type(value) for value in (config.root, config.k_shot, config.holdout)] == [str, int, float]


class TestBadImages:
    @pytest.fixture
    def broken(self, root):
        (root / "train/cat/cat_1.png").write_text("no image")
        return root

    def test_raise_before_the_first_step(self, broken):
        with pytest.raises(ImageError, match=r"train/cat/cat_1\.png cannot be read as an image.*; remove it, or leave"):
            create_dataset(spec(broken))

    def test_skip_before_the_first_step_keeps_ids(self, broken, caplog):
        with caplog.at_level(logging.WARNING):
            dataset = create_dataset(spec(broken, on_bad_image="skip"))
        assert dataset.ids.tolist() == [0, 2, 3, 4, 5, 6]
        assert dataset.skipped.tolist() == [1]
        assert "skipping image 1" in caplog.text
        assert "cat_1.png" in caplog.text

    @pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp", "tif"])
    def test_a_file_that_is_cut_off(self, root, suffix):
        path = write_image(root / f"train/dog/x.{suffix}", height=100, width=100)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ImageError, match=f"x.{suffix} cannot be read"):
            create_dataset(spec(root))
        assert create_dataset(spec(root, on_bad_image="skip")).skipped.tolist() == [7]

    def test_bytes_after_the_end_do_no_harm(self, root):
        for suffix in ("jpg", "png"):
            path = write_image(root / f"train/dog/x.{suffix}")
            path.write_bytes(path.read_bytes() + b"padding" * 100)
        assert len(create_dataset(spec(root))) == 9

    def test_damage_in_the_middle_is_found_by_decoding(self, root):
        path = root / "train/dog/dog_0.png"
        content = path.read_bytes()
        path.write_bytes(content[:41] + bytes(40) + content[81:])
        assert len(create_dataset(spec(root))) == 7
        with pytest.raises(ImageError, match=r"dog_0\.png"):
            create_dataset(spec(root, check_images="decode"))

    def test_raise_while_reading(self, broken):
        dataset = create_dataset(spec(broken, check_images="none"))
        with pytest.raises(ImageError, match=r"cat_1\.png"):
            dataset[1]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_skip_while_reading_is_counted_once(self, broken, workers):
        dataset = create_dataset(spec(broken, check_images="none", on_bad_image="skip"))
        loader = DataLoader(dataset, batch_size=3, num_workers=workers, collate_fn=collate)
        for _ in range(2):
            assert sorted(i for batch in loader for i in batch.ids.tolist()) == [0, 2, 3, 4, 5, 6]
        assert dataset.skipped.tolist() == [1]

    def test_a_batch_of_nothing_but_bad_images(self):
        with pytest.raises(ImageError, match="none of the 2 images"):
            collate([None, None])

    def test_errors_of_pillow_say_what_to_do(self, monkeypatch):
        with pytest.raises(ImageError, match=r"x cannot be read as an image: it is damaged, or of a format that this"):
            decode_image(b"no image", "x")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(ImageError, match=r"exceeds limit of 200 pixels.* Scale it down first"):
            decode_image(encoded(0), "x")

    def test_nothing_readable(self, tmp_path):
        write_lines(tmp_path / "train/a/0.png", ["x"])
        with pytest.raises(ImageError, match="not one of the 1 images"):
            create_dataset(spec(tmp_path, on_bad_image="skip"))

    def test_a_file_that_vanishes(self, root):
        dataset = create_dataset(spec(root))
        (root / "train/cat/cat_0.png").unlink()
        with pytest.raises(ImageError, match=r"cat_0\.png"):
            dataset[0]


def test_the_digest_tells_splits_apart(root):
    train = read_source(spec(root), "train")
    assert train.digest == read_source(spec(root), "train").digest
    assert train.digest != read_source(spec(root), "val").digest


def test_pixels_are_those_of_the_file(root):
    write_image(root / "val/cat/cat_0.png", 99, height=16, width=16)
    image = create_dataset(spec(root), "val")[0].image
    assert torch.allclose(image, torch.from_numpy(pixels(99, 16, 16)).permute(2, 0, 1) / 127.5 - 1, atol=1e-6)


def test_every_kind_is_listed():
    names = data_set_names()
    assert {"folder", "imagenet", "webdataset", "huggingface", "cub", "nabirds", "dogs", "elpv", "cifar10"} <= set(
        names
    )
