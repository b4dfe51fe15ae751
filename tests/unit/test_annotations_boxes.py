"""Boxes from COCO's and VOC's files, and what can be wrong with them before the first step."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from data_sets import make_coco, make_voc, opened, write_image, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from difformer.annotations import records
from difformer.annotations.records import mask_of
from difformer.data import Boxes, DataError, read_source
from difformer.data.source import Names
from difformer.rle import run_lengths

OBJECTS = [[(2, 3, 10, 8, 0), (5, 5, 6, 6, 1)], [], [(0, 0, 30, 24, 1)]]


def own(root, split="train", name="coco", **changes):
    return opened(name, root, split, **({"size": [24, 30], "augmentation": "none"} | changes))


def edit(root, change, split="train"):
    """Changes what the annotation file holds."""
    path = root / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return root


class TestCOCO:
    def test_boxes_labels_and_ids(self, tmp_path):
        dataset = own(make_coco(tmp_path, OBJECTS))
        assert dataset.class_names == ("cat", "dog")
        assert dataset.target_type is Boxes
        assert dataset.ids.tolist() == [1, 2, 3], "COCO's own"
        found = dataset[0].label
        assert found.boxes.tolist() == [[2, 3, 12, 11], [5, 5, 11, 11]]
        assert found.labels.tolist() == [0, 1]
        assert found.areas.tolist() == [80, 36]
        assert found.crowd.tolist() == [False, False]
        assert found.masks is None

    def test_images_without_objects_are_kept(self, tmp_path):
        dataset = own(make_coco(tmp_path, OBJECTS))
        assert len(dataset) == 3
        assert dataset[1].label.boxes.shape == (0, 4)

    @pytest.mark.parametrize(
        ("images", "annotations"),
        [
            ("images/train", "annotations/instances_train2017.json"),
            ("train2017", "annotations/instances_train2017.json"),
            ("images", "instances_train.json"),
            ("train", "train/_annotations.coco.json"),
            (".", "train.json"),
            ("elsewhere", "elsewhere/train.json"),
        ],
    )
    def test_layouts(self, tmp_path, images, annotations):
        root = make_coco(tmp_path / "made", OBJECTS)
        new = tmp_path / "set"
        for path in (root / "images/train").iterdir():
            (new / images).mkdir(parents=True, exist_ok=True)
            path.rename(new / images / path.name)
        (new / annotations).parent.mkdir(parents=True, exist_ok=True)
        (root / "annotations/instances_train.json").rename(new / annotations)
        changes = {"annotation_file": "elsewhere/{split}.json"} if images == "elsewhere" else {}
        assert own(new, **changes)[0].label.labels.tolist() == [0, 1]

    def test_masks_of_objects(self, tmp_path):
        polygon = [[2, 3, 12, 3, 12, 11, 2, 11]]
        runs = {"size": [24, 30], "counts": [0, 24 * 3, 24 * 27]}
        whole = [(2, 3, 10, 8, 0, {"segmentation": polygon}), (0, 0, 3, 24, 1, {"segmentation": runs, "iscrowd": 1})]
        dataset = own(make_coco(tmp_path, [whole, []]), object_masks=True)
        masks = dataset[0].label.masks
        assert dataset[0].label.crowd.tolist() == [False, True]
        expected = torch.zeros(2, 24, 30, dtype=torch.bool)
        expected[0, 3:11, 2:12] = True
        expected[1, :, :3] = True
        assert torch.equal(masks, expected)
        assert dataset[1].label.masks.shape == (0, 24, 30)

    def test_compressed_runs(self, tmp_path):
        coco = pytest.importorskip("pycocotools.mask")
        mask = np.random.default_rng(0).random((24, 30)) < 0.3
        runs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        segment = {"size": [24, 30], "counts": runs["counts"].decode()}
        root = make_coco(tmp_path, [[(0, 0, 30, 24, 0, {"segmentation": segment})]])
        assert torch.equal(own(root, object_masks=True)[0].label.masks[0], torch.from_numpy(mask))

    @pytest.mark.parametrize(
        ("text", "counts"),
        [("S1", [35]), ("0S1", [0, 35]), ("01R1", [0, 1, 34]), ("066000", [0, 6, 6, 6, 6, 6]), ("111000", [1] * 6)],
    )
    def test_run_lengths_from_text(self, text, counts):
        for form in (text, text.encode(), counts):
            assert run_lengths({"size": [1, sum(counts)], "counts": form}) == counts

    @given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
    @settings(max_examples=60, deadline=None)
    def test_run_lengths_are_pycocotools(self, seed, height, width, share):
        coco = pytest.importorskip("pycocotools.mask")
        mask = np.random.default_rng(seed).random((height, width)) < share
        runs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        for counts in (runs["counts"], runs["counts"].decode(), run_lengths(runs)):
            assert (mask_of({"size": [height, width], "counts": counts}, height, width) == mask).all()

    def test_two_copies_of_a_set_are_the_same_and_an_edited_one_is_not(self, tmp_path):
        one, other = (make_coco(tmp_path / name, OBJECTS) for name in "ab")
        assert own(one).digest == own(other).digest

        def move(content):
            content["annotations"][1]["bbox"][0] += 1

        before = own(other).digest
        assert own(edit(other, move)).digest != before


def first(content, **changes):
    content["annotations"][0].update(changes)


class TestCOCOErrors:
    @pytest.mark.parametrize(
        ("box", "problem"),
        [
            ([2, 3, 0, 8], "has no width or height"),
            ([2, 3, 10, -1], "has no width or height"),
            ([2, 3, float("nan"), 8], "is not finite"),
            ([25, 3, 10, 8], "reaches out of its image of 24×30"),
            ([-4, 3, 10, 8], "reaches out of its image of 24×30"),
            ([2, 3, 10], "must be four numbers"),
            (None, "must be four numbers"),
            (["a", 3, 10, 8], "must be four numbers"),
        ],
    )
    def test_a_box_that_is_none(self, tmp_path, caplog, box, problem):
        root = edit(make_coco(tmp_path, OBJECTS), lambda content: first(content, bbox=box))
        with pytest.raises(DataError, match=rf"train\.json: train_1\.png, annotation 1: the box .* {problem}; .*skip"):
            own(root)
        dataset = own(root, on_bad_box="skip")
        assert [len(dataset[i].label.boxes) for i in range(3)] == [1, 0, 1]
        assert "left out 1 boxes" in caplog.text

    def test_rounding_is_no_mistake(self, tmp_path):
        root = make_coco(tmp_path, [[(20.5, 3, 10, 8, 0)]])
        assert own(root)[0].label.boxes.tolist() == [[20.5, 3, 30, 11]]

    def test_an_unknown_category(self, tmp_path):
        root = edit(make_coco(tmp_path, OBJECTS), lambda content: first(content, category_id=99))
        with pytest.raises(DataError, match=r"annotation 1 is of image 1 and category 99.*has categories \[7, 17\]"):
            own(root)

    def test_an_unknown_image(self, tmp_path):
        root = edit(make_coco(tmp_path, OBJECTS), lambda content: first(content, image_id=99))
        with pytest.raises(DataError, match="annotation 1 is of image 99"):
            own(root)

    @pytest.mark.parametrize("kind", ["images", "annotations", "categories"])
    def test_ids_that_repeat(self, tmp_path, kind):
        def repeat(content):
            content[kind][1]["id"] = content[kind][0]["id"]

        root = edit(make_coco(tmp_path, OBJECTS), repeat)
        with pytest.raises(DataError, match=rf"the id \d+ stands twice in {kind}"):
            own(root)

    def test_ids_that_are_no_numbers(self, tmp_path):
        root = edit(make_coco(tmp_path, OBJECTS), lambda content: content["images"][0].update(id="one"))
        with pytest.raises(DataError, match=r"ids in images must be integers from 0 .*, got 'one'"):
            own(root)

    def test_runs_for_another_size(self, tmp_path):
        runs = {"size": [30, 24], "counts": [0, 720]}
        root = make_coco(tmp_path, [[(2, 3, 10, 8, 0, {"segmentation": runs})]])
        with pytest.raises(
            DataError, match=r"train\.json: train_1\.png, annotation 1 must .*24 × 30 .*got size \[30, 24\]"
        ):
            own(root, object_masks=True)
        assert len(own(root)) == 1, "masks are not asked for"

    @pytest.mark.parametrize("counts", [[0, 719], [0, 721], [-5, 725], "0", "0S1", ""])
    def test_runs_that_do_not_fill_the_image(self, tmp_path, counts):
        """pycocotools would leave what is left of the mask as the memory has it."""
        root = make_coco(tmp_path, [[(2, 3, 10, 8, 0, {"segmentation": {"size": [24, 30], "counts": counts}})]])
        with pytest.raises(DataError, match=r"annotation 1 must .* fill 24 × 30 pixels, got \d runs of -?\d+ pixels"):
            own(root, object_masks=True)

    @pytest.mark.parametrize("counts", [[0, 1.5], [True, 719], None, "~~~", "o", "\u00e9", "oooooooooooo"])
    def test_runs_that_are_none(self, tmp_path, counts):
        root = make_coco(tmp_path, [[(2, 3, 10, 8, 0, {"segmentation": {"size": [24, 30], "counts": counts}})]])
        with pytest.raises(DataError, match=r"train\.json: train_1\.png, annotation 1 must be a run-length code"):
            own(root, object_masks=True)

    @pytest.mark.parametrize("value", [1e9, float("nan"), -31])
    def test_polygons_far_outside(self, tmp_path, value):
        """pycocotools would not come to an end."""
        root = make_coco(tmp_path, [[(2, 3, 10, 8, 0, {"segmentation": [[value, 3, 12, 3, 12, 11]]})]])
        with pytest.raises(DataError, match="annotation 1 has a polygon far outside its image of 24×30"):
            own(root, object_masks=True)

    @pytest.mark.parametrize("changes", [{"height": 0}, {"width": 10**9}, {"height": "24"}, {"file_name": ""}])
    def test_images_without_a_size_or_name(self, tmp_path, changes):
        root = edit(make_coco(tmp_path, OBJECTS), lambda content: content["images"][0].update(changes))
        with pytest.raises(DataError, match="must have a"):
            own(root)

    @pytest.mark.parametrize("segment", [None, [], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5]]])
    def test_objects_without_a_mask(self, tmp_path, segment):
        root = make_coco(tmp_path, [[(2, 3, 10, 8, 0, {"segmentation": segment})]])
        with pytest.raises(DataError, match="must have polygons of three corners or more"):
            own(root, object_masks=True)

    def test_an_image_of_another_size(self, tmp_path):
        root = make_coco(tmp_path, OBJECTS)
        write_image(root / "images/train/train_2.png", 0, height=12, width=30)
        with pytest.raises(DataError, match=r"train_2\.png is 12×30 .* but .*instances_train\.json says 24×30"):
            own(root)

    def test_a_made_up_size_is_refused_before_a_mask_is_decoded(self, tmp_path, monkeypatch):
        """65536² pixels from one run would fill the memory."""
        decoded = []
        monkeypatch.setattr(records, "mask_of", lambda segment, *size: decoded.append(size) or np.zeros((24, 30), bool))
        runs = {"size": [1 << 16, 1 << 16], "counts": [0, 1 << 32]}

        def enlarge(content):
            content["images"][0].update(height=1 << 16, width=1 << 16)

        root = edit(make_coco(tmp_path, [[(2, 3, 10, 8, 0, {"segmentation": runs})]]), enlarge)
        for changes in ({}, {"augmentation": "jitter"}):
            with pytest.raises(DataError, match=r"train_1\.png is 24×30 .*instances_train\.json says 65536×65536"):
                own(root, object_masks=True, **changes)
        dataset = own(root, object_masks=True, check_images="none")
        with pytest.raises(DataError, match="says 65536×65536"):
            dataset[0]
        assert not decoded

    def test_a_record_that_makes_no_target_is_said_with_its_file(self, tmp_path):
        source = read_source({"name": "coco", "root": str(make_coco(tmp_path, OBJECTS))}, "train")
        damaged = replace(source.annotations, texts=Names(['{"size":[24,30],"boxes":[[1,2,3]]}'] * 3))
        with pytest.raises(DataError, match=r"instances_train\.json: what it says of images/train/train_2\.png is not"):
            damaged(1)

    @pytest.mark.parametrize("name", ["../../x.png", "/x.png", "a/../../x.png", "..\\x.png", "C:/x.png"])
    def test_names_that_lead_out_of_the_data_set(self, tmp_path, name):
        root = edit(make_coco(tmp_path, OBJECTS), lambda content: content["images"][0].update(file_name=name))
        with pytest.raises(DataError, match=r"instances_train\.json names .*, which may lie outside the data set"):
            own(root)

    @pytest.mark.parametrize("area", [-1, float("nan"), float("inf"), 1e39, "80", [80]])
    def test_an_area_that_is_none(self, tmp_path, area):
        root = edit(make_coco(tmp_path, OBJECTS), lambda content: first(content, area=area))
        with pytest.raises(DataError, match=r"train_1\.png, annotation 1 must have a finite area of at least 0, got"):
            own(root)

    @pytest.mark.parametrize("missing", [True, False])
    def test_no_area_is_that_of_the_box(self, tmp_path, missing):
        def remove(content):
            content["annotations"][0]["area"] = None
            if missing:
                del content["annotations"][0]["area"]

        assert own(edit(make_coco(tmp_path, OBJECTS), remove))[0].label.areas.tolist() == [80, 36]

    @pytest.mark.parametrize(
        "box", [[29.9999999, 3, 0.5, 8], [2, 3, 1e-9, 8], [2, 3, 0.009, 8], [29.995, 3, 0.9, 8], [-0.9, 3, 0.905, 8]]
    )
    def test_a_box_that_float32_or_the_edge_leaves_nothing_of(self, tmp_path, box):
        root = make_coco(tmp_path, [[(*box, 0), (2, 3, 10, 8, 0)]])
        with pytest.raises(DataError, match=r"annotation 1: the box .* on_bad_box: skip"):
            own(root)
        dataset = own(root, on_bad_box="skip", augmentation="flip", size=16)
        for epoch in range(8):
            dataset.set_epoch(epoch)
            assert len(dataset[0].label.boxes) == 1

    def test_images_that_are_nowhere(self, tmp_path):
        root = make_coco(tmp_path, OBJECTS)
        (root / "images").rename(root / "pictures")
        with pytest.raises(DataError, match=r"names train_1\.png, which is in none of the folders images/train, "):
            own(root)

    def test_an_image_that_is_missing(self, tmp_path):
        root = make_coco(tmp_path, OBJECTS)
        (root / "images/train/train_2.png").unlink()
        with pytest.raises(ValueError, match=r"train_2\.png cannot be read"):
            own(root)
        assert own(root, on_bad_image="skip").ids.tolist() == [1, 3]

    def test_no_file(self, tmp_path):
        root = make_coco(tmp_path, OBJECTS)
        with pytest.raises(DataError, match=r"no split 'val'.*instances_val\.json.*annotation_file, where \{split\}"):
            own(root, "val")

    @pytest.mark.parametrize("text", ["", "[]", '{"images": []}', '{"images": [{}], "categories": []}', "{"])
    def test_damaged_files(self, tmp_path, text):
        root = make_coco(tmp_path, OBJECTS)
        (root / "annotations/instances_train.json").write_text(text)
        with pytest.raises(DataError, match=r"train\.json is not as its format has it, or is damaged"):
            own(root)


class TestVOC:
    def test_boxes_include_their_last_pixel(self, tmp_path):
        root = make_voc(tmp_path, [[("cat", 1, 1, 30, 24), ("dog", 5, 6, 6, 7, "<difficult>1</difficult>")], []])
        dataset = own(root, name="voc")
        assert len(dataset.class_names) == 20
        found = dataset[0].label
        assert found.boxes.tolist() == [[0, 0, 30, 24], [4, 5, 6, 7]]
        assert [dataset.class_names[i] for i in found.labels] == ["cat", "dog"]
        assert found.crowd.tolist() == [False, True]
        assert found.areas.tolist() == [720, 4]
        assert len(dataset[1].label.boxes) == 0

    def test_own_classes(self, tmp_path):
        root = make_voc(tmp_path, [[("RBC", 1, 1, 9, 9)]])
        with pytest.raises(DataError, match=r"0\.xml has an object 'RBC', which is no class; there are aeroplane"):
            own(root, name="voc")
        assert own(root, name="voc", class_names=["WBC", "RBC"])[0].label.labels.tolist() == [1]

    def test_boxes_that_begin_at_zero(self, tmp_path, caplog):
        own(make_voc(tmp_path / "one", [[("cat", 1, 1, 9, 9)]]), name="voc")
        assert "begin at pixel 0" not in caplog.text
        root = make_voc(tmp_path / "zero", [[("cat", 1, 1, 9, 9)], [("cat", 0, 3, 9, 9)]])
        assert own(root, name="voc")[1].label.boxes.tolist() == [[0, 2, 9, 9]]
        assert "1 boxes begin at pixel 0, such as one of 1.xml. VOC counts from 1" in caplog.text

    def test_an_image_of_another_size(self, tmp_path):
        root = make_voc(tmp_path, [[], []])
        write_image(root / "JPEGImages/1.jpg", 0, height=12, width=30)
        with pytest.raises(DataError, match=r"1\.jpg is 12×30 .* but .*Annotations/1\.xml says 24×30"):
            own(root, name="voc")

    def test_names_that_lead_out_of_the_data_set(self, tmp_path):
        root = make_voc(tmp_path, [[]])
        for name in ("../0", "/0"):
            write_lines(root / "ImageSets/Main/train.txt", [name])
            with pytest.raises(DataError, match=rf"train\.txt names '{name}', which may lie outside the data set"):
                own(root, name="voc")

    def test_no_size(self, tmp_path):
        root = make_voc(tmp_path, [[("cat", 1, 1, 9, 9)]])
        path = root / "Annotations/0.xml"
        path.write_text(re.sub("<size>.*</size>", "", path.read_text()))
        assert own(root, name="voc")[0].label.size == (24, 30)

    @pytest.mark.parametrize("corners", [(9, 1, 8, 9), (5, 1, 5, 9), (1, 1, 40, 9), ("nan", 1, 9, 9)])
    def test_a_box_that_is_none(self, tmp_path, caplog, corners):
        root = make_voc(tmp_path, [[("cat", *corners), ("dog", 1, 1, 9, 9)]])
        with pytest.raises(DataError, match=r"0\.xml, cat: the box .* leave such boxes out with on_bad_box: skip"):
            own(root, name="voc")
        assert len(own(root, name="voc", on_bad_box="skip")[0].label.boxes) == 1
        assert "left out 1 boxes: 0.xml, cat" in caplog.text

    @pytest.mark.parametrize("text", ["<annotation>", "x", "<annotation><size><width>a</width></size></annotation>"])
    def test_damaged_files(self, tmp_path, text):
        root = make_voc(tmp_path, [[("cat", 1, 1, 9, 9)]])
        (root / "Annotations/0.xml").write_text(text)
        with pytest.raises(DataError, match=r"0\.xml is not as its format has it, or is damaged"):
            own(root, name="voc")

    def test_corners_that_are_no_numbers_or_missing(self, tmp_path):
        root = make_voc(tmp_path, [[("cat", 1, 1, 9, "x")]])
        with pytest.raises(DataError, match=r"0\.xml has the box \['1', '1', '9', 'x'\]"):
            own(root, name="voc")
        path = root / "Annotations/0.xml"
        path.write_text(path.read_text().replace("<ymax>x</ymax>", ""))
        with pytest.raises(DataError, match="nothing"):
            own(root, name="voc")

    def test_lists(self, tmp_path):
        root = make_voc(tmp_path, [[], []])
        with pytest.raises(DataError, match="no split 'val'; it has train"):
            own(root, "val", name="voc")
        write_lines(root / "ImageSets/Main/train.txt", ["0", "1", "0"])
        with pytest.raises(DataError, match=r"train\.txt names 0 twice"):
            own(root, name="voc")
        write_lines(root / "ImageSets/Main/train.txt", ["0", "5"])
        with pytest.raises(DataError, match=r"5\.xml cannot be read"):
            own(root, name="voc")
