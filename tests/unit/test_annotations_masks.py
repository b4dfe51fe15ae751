"""Folders of images and masks, ADE20K, VOC's masks, and what can be wrong with a mask before the first step."""

import shutil

import numpy as np
import pytest
import torch
from data_sets import labels_of, make_masks, opened, pixels, write_image, write_lines, write_mask
from PIL import Image

from difformer.data import DataError, ImageError, Mask, read_source


@pytest.fixture
def root(tmp_path):
    return make_masks(tmp_path / "roads", {"train": 4, "val": 2})


def own(root, split="train", name="masks", **changes):
    return opened(name, root, split, **({"size": [24, 30], "augmentation": "none"} | changes))


def test_an_image_comes_with_its_mask(root):
    dataset = own(root)
    assert dataset.class_names == ("sky", "road", "car")
    assert dataset.target_type is Mask
    assert dataset.names[1] == "images/train/train_1.png"
    sample = dataset[1]
    assert torch.equal(sample.label.labels, torch.from_numpy(labels_of(1)).byte())
    assert torch.allclose(sample.image, torch.from_numpy(pixels(1)).permute(2, 0, 1) / 127.5 - 1)
    assert sample.id == 1


@pytest.mark.parametrize("mode", ["L", "P"])
def test_grey_and_palette_masks_are_the_same(tmp_path, mode):
    root = make_masks(tmp_path, {"train": 1}, mode)
    assert torch.equal(own(root)[0].label.labels, torch.from_numpy(labels_of(0)).byte())


def test_masks_of_one_bit_and_of_sixteen(tmp_path):
    root = make_masks(tmp_path, {"train": 2})
    labels = labels_of(0) == 1
    Image.fromarray(labels).save(root / "masks/train/train_0.png")
    Image.fromarray(labels_of(1).astype(np.uint16)).save(root / "masks/train/train_1.png")
    dataset = own(root)
    assert torch.equal(dataset[0].label.labels, torch.from_numpy(labels).byte())
    assert torch.equal(dataset[1].label.labels, torch.from_numpy(labels_of(1)).byte())


def test_colours_of_classes(tmp_path):
    root = make_masks(tmp_path, {"train": 1}, "RGB")
    write_lines(root / "classes.txt", ["1 0 0 road sign", "0 0 0 sky", "2 0 0 ignore"])
    dataset = own(root)
    assert dataset.class_names == ("road sign", "sky")
    expected = np.asarray([1, 0, 255])[labels_of(0)]
    assert torch.equal(dataset[0].label.labels, torch.from_numpy(expected).byte())


def test_colours_count_in_grey_and_palette_masks_too(tmp_path):
    """Masks of 0 and 255 are as common as the number 255 is for what is ignored."""
    root = make_masks(tmp_path, {"train": 2})
    labels = labels_of(0, classes=2)
    write_mask(root / "masks/train/train_0.png", labels * 255)
    write_mask(root / "masks/train/train_1.png", labels)
    picture = Image.open(root / "masks/train/train_1.png")
    picture.putpalette([0, 0, 0, 255, 255, 255])
    picture.save(root / "masks/train/train_1.png")
    write_lines(root / "classes.txt", ["0 0 0 sound", "255 255 255 crack"])
    dataset = own(root)
    for i in range(2):
        assert torch.equal(dataset[i].label.labels, torch.from_numpy(labels).byte())


class TestLayouts:
    def test_folders_of_splits_first(self, tmp_path):
        root = make_masks(tmp_path, {"train": 2, "val": 1}, images="{split}/images", masks="{split}/masks")
        assert own(root, "val").names == ["val/images/val_0.png"]

    @pytest.mark.parametrize("place", ["part.txt", "splits/part.txt"])
    def test_lists_of_splits(self, tmp_path, place):
        root = make_masks(tmp_path, {"train": 4}, images="images", masks="masks")
        write_lines(root / place, ["train_3", "train_1.png"])
        assert own(root, "part").names == ["images/train_1.png", "images/train_3.png"]
        assert len(own(root, splits={"train": "."})) == 4
        write_lines(root / place, ["train_3", "train_9"])
        with pytest.raises(DataError, match=r"part\.txt names 1 images that are not there, such as train_9"):
            own(root, "part")

    def test_what_no_list_names_need_not_be_whole(self, tmp_path):
        root = make_masks(tmp_path, {"train": 4}, images="images", masks="masks")
        write_lines(root / "part.txt", ["train_3", "train_1"])
        (root / "masks/train_0.png").unlink()
        (root / "images/train_2.png").unlink()
        write_image(root / "images/train_0.jpg", 0)
        assert own(root, "part").names == ["images/train_1.png", "images/train_3.png"]
        for listed, message in [
            ("train_2", "names 1 images that are not there"),
            ("train_0", "differ in their suffix"),
        ]:
            write_lines(root / "part.txt", ["train_1", listed])
            with pytest.raises(DataError, match=message):
                own(root, "part")
        (root / "images/train_0.jpg").unlink()
        with pytest.raises(DataError, match=r"1 files have no mask of the same name, such as train_0\.png"):
            own(root, "part")

    def test_deeper_folders(self, root):
        write_image(root / "images/train/deep/x.png", 7)
        write_mask(root / "masks/train/deep/x.png", labels_of(7))
        assert "images/train/deep/x.png" in own(root).names

    def test_a_split_that_is_not_there(self, root):
        with pytest.raises(DataError, match="has no split 'test'; it has train, val"):
            own(root, "test")

    def test_another_suffix(self, root):
        Image.fromarray(pixels(0)).save(root / "images/train/train_0.jpg")
        (root / "images/train/train_0.png").unlink()
        assert own(root).names[0] == "images/train/train_0.jpg"

    def test_class_names_in_place_of_the_file(self, root):
        (root / "classes.txt").unlink()
        with pytest.raises(DataError, match=r"there is no .*classes\.txt; write one name of a class a line"):
            own(root)
        assert own(root, class_names=["a", "b", "c"]).class_names == ("a", "b", "c")


class TestErrors:
    def test_a_mask_of_another_size(self, root):
        write_mask(root / "masks/train/train_2.png", labels_of(2, height=30, width=24))
        with pytest.raises(DataError, match=r"train_2\.png is 24×30 .* but .*masks/train/train_2\.png says 30×24"):
            own(root)

    def test_without_a_check_it_is_refused_when_it_is_read(self, root):
        write_mask(root / "masks/train/train_2.png", labels_of(2, height=30, width=24))
        dataset = own(root, check_images="none")
        assert dataset[1].id == 1
        with pytest.raises(DataError, match=r"train_2\.png is 24×30 .* says 30×24"):
            dataset[2]

    @pytest.mark.parametrize("value", [3, 200])
    def test_a_value_that_is_no_class(self, root, value):
        labels = labels_of(2)
        labels[5, 5] = value
        write_mask(root / "masks/train/train_2.png", labels)
        with pytest.raises(DataError, match=rf"masks/train/train_2\.png holds the value {value}, but there are 3 cla"):
            own(root)

    def test_a_value_is_refused_when_it_is_read_too(self, root):
        dataset = own(root)
        write_mask(root / "masks/train/train_2.png", labels_of(2) + 3)
        with pytest.raises(DataError, match=r"train_2\.png holds the value 3"):
            dataset[2]

    def test_colours_without_a_meaning(self, tmp_path):
        root = make_masks(tmp_path, {"train": 1}, "RGB")
        with pytest.raises(DataError, match=r"train_0\.png has pixels of mode RGB; .* one `R G B name` a line"):
            own(root)
        write_lines(root / "classes.txt", ["0 0 0 sky", "1 0 0 road"])
        with pytest.raises(DataError, match=r"train_0\.png has the colour 2 0 0, which is no class"):
            own(root)

    @pytest.mark.parametrize("lines", [["0 0 0 a", "0 0 0 b"], ["0 0 0 a", "0 0 300 b"]])
    def test_colours_that_repeat_or_are_none(self, root, lines):
        write_lines(root / "classes.txt", lines)
        with pytest.raises(DataError, match=r"is above 255, or stands there twice"):
            own(root)

    def test_colours_of_some_classes_only(self, root):
        write_lines(root / "classes.txt", ["0 0 0 a", "b"])
        with pytest.raises(DataError, match="none in the line 'b'"):
            own(root)

    def test_a_jpeg_mask(self, root):
        Image.fromarray(labels_of(2).astype(np.uint8)).save(root / "masks/train/train_2.jpg")
        (root / "masks/train/train_2.png").unlink()
        with pytest.raises(DataError, match=r"train_2\.jpg is a JPEG, which changes the numbers of pixels"):
            own(root)

    def test_an_image_without_a_mask(self, root):
        (root / "masks/train/train_2.png").unlink()
        with pytest.raises(DataError, match=r"1 files have no mask of the same name, such as train_2\.png"):
            own(root)

    def test_a_mask_without_an_image(self, root):
        (root / "images/train/train_2.png").unlink()
        with pytest.raises(DataError, match=r"1 files have no image of the same name, such as train_2\.png"):
            own(root)

    def test_no_masks_at_all(self, root):
        shutil.rmtree(root / "masks/train")
        with pytest.raises(DataError, match="there is no folder of masks"):
            own(root)

    def test_two_images_of_one_name(self, root):
        Image.fromarray(pixels(0)).save(root / "images/train/train_0.jpg")
        with pytest.raises(DataError, match="differ in their suffix only"):
            own(root)

    def test_only_ignored_pixels(self, root, caplog):
        write_mask(root / "masks/train/train_2.png", np.full((24, 30), 255))
        with pytest.raises(ImageError, match=r"train_2\.png has only pixels that are ignored; remove it, or leave"):
            own(root)
        dataset = own(root, on_bad_image="skip")
        assert dataset.ids.tolist() == [0, 1, 3]
        assert dataset.skipped.tolist() == [2]

    def test_a_mask_that_cannot_be_read(self, root):
        (root / "masks/train/train_2.png").write_text("no mask")
        with pytest.raises(ImageError, match=r"masks/train/train_2\.png cannot be read as a mask"):
            own(root)
        assert own(root, on_bad_image="skip").skipped.tolist() == [2]
        dataset = own(root, on_bad_image="skip", check_images="none")
        assert dataset[2] is None
        assert dataset.skipped.tolist() == [2]

    def test_a_first_mask_that_cannot_be_read_is_skipped_when_it_is_read(self, root):
        (root / "masks/train/train_0.png").write_text("no mask")
        dataset = own(root, on_bad_image="skip", check_images="none", augmentation="jitter")
        assert dataset.target_type is Mask
        assert not len(dataset.skipped)
        assert dataset[0] is None
        assert dataset.skipped.tolist() == [0]

    def test_too_many_classes(self, root):
        write_lines(root / "classes.txt", [f"c{i}" for i in range(256)])
        with pytest.raises(DataError, match="must have 1 to 255 classes"):
            own(root)


class TestOrientation:
    @pytest.mark.parametrize("orientation", [3, 6])
    def test_the_mask_fits_the_upright_image(self, tmp_path, orientation):
        """The camera's pixels lie on their side; the mask was drawn on what the viewer shows."""
        root = make_masks(tmp_path, {"train": 1})
        picture = Image.open(root / "images/train/train_0.png").convert("RGB")
        lying = picture.transpose({3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation])
        exif = Image.Exif()
        exif[0x0112] = orientation
        lying.save(root / "images/train/train_0.png", exif=exif)
        sample = own(root)[0]
        assert torch.allclose(sample.image, torch.from_numpy(pixels(0)).permute(2, 0, 1) / 127.5 - 1)
        assert torch.equal(sample.label.labels, torch.from_numpy(labels_of(0)).byte())

    def test_a_mask_drawn_on_the_lying_image_is_refused(self, tmp_path):
        root = make_masks(tmp_path, {"train": 1})
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.open(root / "images/train/train_0.png").save(root / "images/train/train_0.png", exif=exif)
        with pytest.raises(DataError, match=r"is 30×24 .*upright, as its EXIF orientation says.* says 24×30"):
            own(root)


class TestADE20K:
    @pytest.fixture
    def scenes(self, tmp_path):
        folders = {"images": "images/{split}", "masks": "annotations/{split}"}
        root = make_masks(tmp_path / "ADEChallengeData2016", {"training": 2, "validation": 1}, **folders)
        (root / "classes.txt").unlink()
        lines = ["Idx\tRatio\tTrain\tVal\tName", "1\t0.1\t1\t1\twall", "2\t0.1\t1\t1\tbuilding, edifice"]
        write_lines(root / "objectInfo150.txt", lines)
        return root.parent

    def test_zero_is_ignored_and_classes_count_from_one(self, scenes):
        dataset = own(scenes, name="ade20k")
        assert dataset.class_names == ("wall", "building, edifice")
        assert len(own(scenes, "val", name="ade20k")) == 1
        expected = np.asarray([255, 0, 1])[labels_of(0)]
        assert torch.equal(dataset[0].label.labels, torch.from_numpy(expected).byte())

    def test_a_class_beyond_the_last(self, scenes):
        write_mask(scenes / "ADEChallengeData2016/annotations/training/training_1.png", labels_of(1) + 1)
        with pytest.raises(DataError, match=r"training_1\.png holds the value 3, but there are 2 classes, from 1 to 2"):
            own(scenes, name="ade20k")

    def test_other_splits(self, scenes):
        with pytest.raises(DataError, match="no split 'test'; it has training, validation"):
            own(scenes, "test", name="ade20k")


class TestVOC:
    @pytest.fixture
    def voc(self, tmp_path):
        root = tmp_path / "VOCdevkit/VOC2012"
        for i in range(2):
            write_image(root / f"JPEGImages/{i}.jpg", i)
            labels = labels_of(i, classes=21)
            labels[:3] = 255
            write_mask(root / f"SegmentationClass/{i}.png", labels, "P")
        write_lines(root / "ImageSets/Segmentation/train.txt", ["1", "0"])
        return tmp_path

    def test_edges_are_ignored(self, voc):
        dataset = own(voc, name="voc_segmentation")
        assert (len(dataset.class_names), dataset.class_names[:2]) == (21, ("background", "aeroplane"))
        assert dataset.names == ["JPEGImages/1.jpg", "JPEGImages/0.jpg"]
        assert (dataset[0].label.labels[:3] == 255).all()
        assert torch.equal(dataset[0].label.labels[3:], torch.from_numpy(labels_of(1, classes=21)[3:]).byte())

    def test_a_mask_that_is_missing(self, voc):
        (voc / "VOCdevkit/VOC2012/SegmentationClass/0.png").unlink()
        with pytest.raises(DataError, match=r"1 files have no mask of the same name, such as SegmentationClass/0\.png"):
            own(voc, name="voc_segmentation")


def test_no_first_label(root):
    with pytest.raises(DataError, match="first_label is for labels that are plain numbers"):
        read_source({"name": "masks", "root": str(root), "first_label": 1}, "train")
