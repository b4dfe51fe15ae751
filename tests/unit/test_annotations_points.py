"""Points from COCO's files and WFLW's lists, pairs of SPair-71k, and what can be wrong with them."""

import json

import numpy as np
import pytest
import torch
from data_sets import make_keypoints, opened, write_image, write_json, write_lines

from difformer.annotations import read_pairs
from difformer.annotations.coco import swap_of
from difformer.annotations.landmarks import WFLW_NAMES, WFLW_PAIRS
from difformer.data import DataConfig, DataError, Points, create_dataset

FACE = [4, 6, 2, 10, 6, 1, 0, 0, 0]


def own(root, split="train", **changes):
    return opened("points", root, split, **({"size": [24, 30], "augmentation": "none"} | changes))


class TestKeypoints:
    def test_points_and_which_are_visible(self, tmp_path):
        dataset = own(make_keypoints(tmp_path, [FACE, FACE]))
        assert dataset.class_names == ("left_eye", "right_eye", "nose")
        assert dataset.target_type is Points
        found = dataset[0].label
        assert found.points.tolist() == [[4.5, 6.5], [10.5, 6.5], [0, 0]], "the centre of pixel 4 is 4.5"
        assert found.visible.tolist() == [True, True, False], "occluded points are labelled"
        assert found.swap == (1, 0, 2)
        assert found.box is None

    def test_each_object_is_cropped(self, tmp_path):
        root = make_keypoints(tmp_path, [FACE, FACE])
        content = json.loads((root / "keypoints_train.json").read_text())
        content["annotations"][1]["image_id"] = 1
        write_json(root / "keypoints_train.json", content)
        with pytest.raises(DataError, match=r"1\.png has 2 objects with points; crop each, box_scale: 1.25"):
            own(root)
        dataset = own(root, box_scale=1.5, size=16)
        assert dataset.names == ["images/1.png", "images/1.png"]
        sample = dataset[1]
        assert sample.origin.start == (1, 0), "18 pixels about (9, 10)"
        assert sample.origin.size == (18, 18)
        assert torch.allclose(sample.label.points[0], torch.tensor([4.5, 5.5]) * 16 / 18)
        assert torch.allclose(sample.origin.points(sample.label.points[:2]), sample.origin.target.points[:2])

    def test_objects_without_a_visible_point_are_left_out(self, tmp_path, caplog):
        root = make_keypoints(tmp_path, [[0] * 9, FACE, [*FACE[:2], 0, *[0] * 6]])
        dataset = own(root)
        assert dataset.names == ["images/2.png"]
        assert "left out 2 objects without a visible point" in caplog.text
        content = json.loads((root / "keypoints_train.json").read_text())
        content["annotations"][0].update(image_id=2, bbox=[0, 0, 0, 0])
        write_json(root / "keypoints_train.json", content)
        assert own(root).names == own(root, box_scale=1.5).names == ["images/2.png"]

    def test_names_that_lead_out_of_the_data_set(self, tmp_path):
        root = make_keypoints(tmp_path, [FACE], images=[{"id": 1, "file_name": "../x.png", "height": 24, "width": 30}])
        with pytest.raises(DataError, match=r"keypoints_train\.json names '\.\./x\.png', which may lie outside"):
            own(root)

    def test_numbers_that_float32_does_not_hold(self, tmp_path):
        root = make_keypoints(tmp_path, [[1e39, *FACE[1:]]])
        with pytest.raises(DataError, match=r"annotation 1 has the point \[1e\+39, 6, 2\], which is not finite"):
            own(root)

    def test_flip_pairs(self, tmp_path):
        root = make_keypoints(tmp_path, [FACE], names=("a", "b", "c"))
        assert own(root)[0].label.swap is None
        assert own(root, flip_pairs={})[0].label.swap == (0, 1, 2)
        assert own(root, flip_pairs={"a": "c"})[0].label.swap == (2, 1, 0)

    @pytest.mark.parametrize("numbers", [FACE[:8], [*FACE, 1, 1, 2], []])
    def test_another_number_of_points(self, tmp_path, numbers):
        root = make_keypoints(tmp_path, [FACE, numbers])
        message = rf"train\.json: 2\.png, annotation 2 has {len(numbers)} numbers, and 3 points are three each"
        with pytest.raises(DataError, match=message):
            own(root)

    def test_points_that_are_not_finite(self, tmp_path):
        root = make_keypoints(tmp_path, [[float("nan"), *FACE[1:]]])
        with pytest.raises(DataError, match=r"annotation 1 has the point \[nan, 6, 2\], which is not finite"):
            own(root)

    def test_no_names_of_points(self, tmp_path):
        root = make_keypoints(tmp_path, [FACE], categories=[{"id": 1, "name": "face"}])
        with pytest.raises(DataError, match="one category must name its keypoints, got 0"):
            own(root)

    def test_a_box_to_crop_that_is_none(self, tmp_path, caplog):
        root = make_keypoints(tmp_path, [FACE, FACE])
        content = json.loads((root / "keypoints_train.json").read_text())
        content["annotations"][0]["bbox"] = [4, 4, 0, 9]
        write_json(root / "keypoints_train.json", content)
        assert len(own(root)) == 2
        with pytest.raises(DataError, match=r"annotation 1: the box .* has no width or height"):
            own(root, box_scale=1.2)
        assert own(root, box_scale=1.2, on_bad_box="skip").names == ["images/2.png"]
        assert "left out 1 boxes" in caplog.text


class TestSwap:
    @pytest.mark.parametrize(
        ("names", "swap"),
        [
            (("nose", "left_eye", "right_eye"), (0, 2, 1)),
            (("LeftEar", "RightEar"), (1, 0)),
            (("left", "nose"), None),
            (("paw1", "paw2"), None),
        ],
    )
    def test_left_and_right_by_name(self, names, swap):
        assert swap_of(names, None, "faces") == swap

    def test_sides_without_a_partner_are_said(self, caplog):
        assert swap_of(("left_eye", "right_eye", "nose", "tail"), None, "mice") == (1, 0, 2, 3)
        assert not caplog.text
        assert swap_of(("left_eye", "right_eye", "paw_l", "paw_r", "leftover", "tail"), None, "mice") == (
            1,
            0,
            2,
            3,
            4,
            5,
        )
        assert (
            "mice: in mirrored images left_eye and others change places, but paw_l, paw_r, leftover do" in caplog.text
        )
        caplog.clear()
        swap_of(("left_eye", "right_eye", "paw_l"), {"left_eye": "right_eye"}, "mice")
        assert not caplog.text

    @pytest.mark.parametrize("pairs", [{"a": "b", "b": "c"}, {"a": "b", "c": "b"}])
    def test_pairs_that_are_no_involution(self, pairs):
        with pytest.raises(DataError, match="faces: flip_pairs has 'b' change places with 'a' and with 'c'"):
            swap_of(("a", "b", "c"), pairs, "faces")

    def test_pairs_may_be_named_in_both_directions(self):
        assert swap_of(("a", "b", "c"), {"a": "b", "b": "a", "c": "c"}, "faces") == (1, 0, 2)

    def test_a_pair_of_what_is_no_point(self):
        with pytest.raises(DataError, match="names 'd', which is no point; there are a, b, c"):
            swap_of(("a", "b", "c"), {"a": "d"}, "faces")


class TestWFLW:
    POINTS = np.arange(196).reshape(98, 2) % 24

    def make(self, root, *lines):
        write_image(root / "WFLW_images/event/1.png", 0)
        write_lines(root / "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_train.txt", lines)
        return root

    def line(self, points=None, box=(2, 2, 20, 22), name="event/1.png"):
        points = self.POINTS if points is None else points
        return " ".join(map(str, [*np.asarray(points).ravel(), *box, *[0] * 6, name]))

    def test_faces(self, tmp_path):
        dataset = own(self.make(tmp_path, self.line(), self.line()))
        assert (len(dataset), len(dataset.class_names)) == (2, 98)
        found = dataset[0].label
        assert torch.equal(found.points, torch.from_numpy(self.POINTS).float() + 0.5)
        assert found.visible.all()
        assert found.size == (24, 30)
        cropped = own(tmp_path, box_scale=1.0, size=20)[0]
        assert (cropped.origin.start, cropped.origin.size) == ((2, 1), (20, 20))

    def test_a_list_that_is_named(self, tmp_path):
        self.make(tmp_path, self.line(), self.line())
        write_lines(tmp_path / "lists/few_train.txt", [self.line()])
        assert len(own(tmp_path, annotation_file="lists/few_{split}.txt")) == 1

    def test_what_changes_places(self):
        """Outline, brows, eyes, mouth: their ends and middles, as the points are numbered in the paper's figure."""
        swap = swap_of(WFLW_NAMES, WFLW_PAIRS, "")
        pairs = {0: 32, 16: 16, 33: 46, 37: 42, 38: 50, 41: 47, 51: 51, 54: 54, 55: 59, 57: 57, 60: 72, 64: 68, 67: 73}
        pairs |= {76: 82, 79: 79, 85: 85, 88: 92, 90: 90, 94: 94, 95: 93, 96: 97}
        assert all(swap[a] == b for a, b in pairs.items())
        assert sum(a == b for a, b in enumerate(swap)) == 10

    @pytest.mark.parametrize(
        ("points", "message"),
        [(POINTS[:97], r"line 2 has 204 numbers before the image"), ([["x", 1]] * 98, "line 2: could not convert")],
    )
    def test_lines_of_something_else(self, tmp_path, points, message):
        with pytest.raises(DataError, match=message):
            own(self.make(tmp_path, self.line(), self.line(points)))

    def test_flip_pairs(self, tmp_path):
        root = self.make(tmp_path, self.line())
        assert own(root)[0].label.swap[0] == 32
        assert own(root, flip_pairs={})[0].label.swap == tuple(range(98)), "none change places"
        assert own(root, flip_pairs={"0": "1"})[0].label.swap[:3] == (1, 0, 2)

    def test_names_that_lead_out_of_the_data_set(self, tmp_path):
        for name in ("../event/1.png", "/event/1.png"):
            with pytest.raises(
                DataError, match=rf"list_98pt_rect_attr_train\.txt names '{name}', which may lie outside"
            ):
                own(self.make(tmp_path, self.line(name=name)))

    def test_an_image_of_another_size(self, tmp_path):
        dataset = own(self.make(tmp_path, self.line()))
        write_image(tmp_path / "WFLW_images/event/1.png", 0, height=12)
        with pytest.raises(DataError, match=r"1\.png is 12×30 .* but .*list_98pt_rect_attr_train\.txt says 24×30"):
            dataset[0]

    def test_an_image_that_is_missing(self, tmp_path):
        with pytest.raises(ValueError, match=r"event/2\.png cannot be read as an image"):
            own(self.make(tmp_path, self.line(name="event/2.png")))


class TestPairs:
    @pytest.fixture
    def spair(self, tmp_path):
        root = tmp_path / "SPair-71k"
        for number, name in enumerate(["cat/a", "cat/b", "dog/a", "dog/c"]):
            write_image(root / f"JPEGImages/{name}.jpg", number)
        for number, (category, source, target) in enumerate([("dog", "a", "c"), ("cat", "b", "a"), ("dog", "c", "a")]):
            record = {
                "category": category, "src_imname": f"{source}.jpg", "trg_imname": f"{target}.jpg",
                "kps_ids": ["0", "4"], "src_kps": [[1, 2], [3, 4]], "trg_kps": [[5, 6], [7, 8 + number]],
                "src_bndbox": [0, 0, 9, 9], "trg_bndbox": [1, 2, 20, 20],
            }  # fmt: skip
            write_json(root / f"PairAnnotation/trn/{number}:{category}.json", record)
        write_lines(root / "Layout/large/trn.txt", ["0:dog", "1:cat", "2:dog"])
        return tmp_path

    def pairs(self, root, split="train"):
        return read_pairs(DataConfig("pairs", root=str(root)), split)

    def test_images_once_and_pairs_in_order(self, spair):
        found = self.pairs(spair)
        assert list(found.images.names) == ["cat/a.jpg", "cat/b.jpg", "dog/a.jpg", "dog/c.jpg"]
        assert found.images.class_names == ("cat", "dog")
        assert found.images.labels.tolist() == [0, 0, 1, 1]
        assert [pair.images for pair in found.pairs] == [(2, 3), (1, 0), (3, 2)]
        pair = found.pairs[1]
        assert pair.points[0].tolist() == [[1.5, 2.5], [3.5, 4.5]]
        assert pair.points[1].tolist() == [[5.5, 6.5], [7.5, 9.5]]
        assert pair.boxes == ((0, 0, 9, 9), (1, 2, 20, 20))
        assert pair.names == ("0", "4")

    def test_as_a_data_set_it_gives_the_images(self, spair):
        dataset = create_dataset({"name": "pairs", "root": str(spair), "size": 16}, "train", augment=False)
        assert (len(dataset), dataset[2].label) == (4, 1)
        assert dataset.target_type is None

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"trg_kps": [[5, 6]]}, "trg_kps of 2 points"),
            ({"src_kps": [[1, 2], [3]]}, "src_kps of 2 points"),
            ({"src_kps": [[1, 2], [3, float("nan")]]}, "src_kps is not finite"),
            ({"trg_bndbox": [1, 2, 1, 9]}, r"trg_bndbox \[1, 2, 1, 9\] has no width or height"),
            ({"trg_bndbox": [1, 2, 9]}, "trg_bndbox of four numbers"),
        ],
    )
    def test_what_is_wrong_with_a_pair(self, spair, changes, message):
        path = spair / "SPair-71k/PairAnnotation/trn/1:cat.json"
        write_json(path, json.loads(path.read_text()) | changes)
        with pytest.raises(DataError, match=rf"1:cat\.json: .*{message}"):
            self.pairs(spair)

    @pytest.mark.parametrize("changes", [{"category": "../cat"}, {"src_imname": "../../x.jpg"}, {"category": "/cat"}])
    def test_names_that_lead_out_of_the_data_set(self, spair, changes):
        path = spair / "SPair-71k/PairAnnotation/trn/1:cat.json"
        write_json(path, json.loads(path.read_text()) | changes)
        with pytest.raises(DataError, match=r"1:cat\.json names .*, which may lie outside the data set"):
            self.pairs(spair)

    def test_lists_that_lead_out_of_the_data_set(self, spair):
        write_lines(spair / "SPair-71k/Layout/large/trn.txt", ["../trn/1:cat"])
        with pytest.raises(DataError, match=r"trn\.txt names '\.\./trn/1:cat', which may lie outside the data set"):
            self.pairs(spair)

    def test_damaged_and_missing_files(self, spair):
        with pytest.raises(DataError, match="no split 'test'; it has trn"):
            self.pairs(spair, "test")
        path = spair / "SPair-71k/PairAnnotation/trn/1:cat.json"
        path.write_text("{}")
        with pytest.raises(DataError, match=r"1:cat\.json is not as its format has it"):
            self.pairs(spair)
        path.unlink()
        with pytest.raises(DataError, match=r"1:cat\.json cannot be read"):
            self.pairs(spair)
