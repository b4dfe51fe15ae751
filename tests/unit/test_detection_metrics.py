"""COCO's average precision and run-length codes: golden numbers, closed forms, and what is refused."""

import copy
import json
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import read_golden

from difformer.analysis import (
    IOU_THRESHOLDS,
    RECALLS,
    coco_annotations,
    coco_results,
    coco_truth,
    decode_rle,
    detection_metrics,
    encode_rle,
)
from difformer.rle import run_lengths

TENSORS, METADATA = read_golden("detection")
TRUTH, RESULTS, RLE = METADATA["ground_truth"], METADATA["predictions"], {one["name"]: one for one in METADATA["rle"]}
KINDS = ["bbox", "segm"]


def golden(name):
    return TENSORS[name].numpy()


class TestGolden:
    @pytest.mark.parametrize("overlap", KINDS)
    def test_average_precision(self, overlap):
        found = detection_metrics(TRUTH, RESULTS, overlap=overlap)
        names = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"]
        assert [found.value(name) for name in names] == pytest.approx(golden(f"{overlap}.stats")[:6], rel=1e-12)
        assert found.ar == pytest.approx(golden(f"{overlap}.stats")[8], rel=1e-12)
        wanted = golden(f"{overlap}.precision")
        np.testing.assert_allclose(found.precision, np.where(wanted < 0, np.nan, wanted), rtol=1e-12)
        per_class = [None if value < 0 else value for value in golden(f"{overlap}.ap_per_class")]
        assert [row.ap for row in found.per_class][:3] == pytest.approx(per_class[:3], rel=1e-12)
        assert found.per_class[3].ap is per_class[3] is None
        assert [row.name for row in found.per_class] == ["a", "b", "c", "never_annotated"]
        assert found.num_images == 6

    def test_boxes_alone_with_the_areas_of_the_file(self):
        """An object is as large as its outline, also where only boxes are at hand."""
        numbers = [one["id"] for one in TRUTH["categories"]]
        annotations = []
        for each in TRUTH["images"]:
            own = [one for one in TRUTH["annotations"] if one["image_id"] == each["id"]]
            boxes = np.array([one["bbox"] for one in own], dtype=np.float64).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            annotations += coco_annotations(
                each["id"],
                boxes,
                np.array([numbers.index(one["category_id"]) for one in own], dtype=int),
                crowd=np.array([bool(one["iscrowd"]) for one in own], dtype=bool),
                areas=np.array([one["area"] for one in own], dtype=np.float64),
                category_ids=numbers,
            )
        sizes = {one["id"]: (one["height"], one["width"]) for one in TRUTH["images"]}
        names = [one["name"] for one in TRUTH["categories"]]
        found = detection_metrics(coco_truth(sizes, annotations, names, category_ids=numbers), RESULTS)
        by_size = [found.ap, found.ap_small, found.ap_medium, found.ap_large]
        assert by_size == pytest.approx(golden("bbox.stats")[[0, 3, 4, 5]], rel=1e-9)
        for one in annotations:
            one["area"] = one["bbox"][2] * one["bbox"][3]
        other = detection_metrics(coco_truth(sizes, annotations, names, category_ids=numbers), RESULTS)
        assert other.ap == found.ap
        assert [other.ap_small, other.ap_medium] != pytest.approx(by_size[1:3], rel=1e-3)

    def test_the_numbers_of_annotations_do_not_matter(self):
        """A detection that matches an annotation with the number 0 counts as a wrong one in pycocotools."""
        other = copy.deepcopy(TRUTH)
        for number, one in enumerate(other["annotations"]):
            one["id"] = number
        assert detection_metrics(other, RESULTS).to_dict() == detection_metrics(TRUTH, RESULTS).to_dict()

    def test_nothing_is_changed_or_printed(self, capsys):
        before = copy.deepcopy((TRUTH, RESULTS))
        for overlap in KINDS:
            detection_metrics(TRUTH, RESULTS, overlap=overlap)
        assert before == (TRUTH, RESULTS)
        assert capsys.readouterr() == ("", "")

    @pytest.mark.parametrize("name", RLE)
    def test_run_length_codes(self, name):
        code = RLE[name]
        found = decode_rle({"size": code["size"], "counts": code["string"]}, tuple(code["size"]))
        assert found.dtype == bool
        assert found.sum() == code["area"]
        if f"rle.{name}" in TENSORS:
            np.testing.assert_array_equal(found, golden(f"rle.{name}") > 0)
        assert encode_rle(found) == {"size": code["size"], "counts": code["string"]}
        runs = {"size": code["size"], "counts": code["counts"]}
        np.testing.assert_array_equal(decode_rle(runs), found)


def image(boxes, labels=None, **options):
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return {"boxes": boxes, "labels": np.zeros(len(boxes), int) if labels is None else np.array(labels), **options}


def measure(truths, found, classes=("one",), **options):
    """By lists of arguments, one an image, from arrays."""
    sizes = dict.fromkeys(range(len(truths)), (50, 60))
    annotations = [one for number, each in enumerate(truths) for one in coco_annotations(number, **each)]
    results = [one for number, each in enumerate(found) for one in coco_results(number, **each)]
    return detection_metrics(coco_truth(sizes, annotations, classes), results, **options)


class TestClosedForms:
    def test_what_is_found_exactly(self):
        found = measure([image([[1, 2, 11, 22]])], [image([[1, 2, 11, 22]], scores=np.array([0.3]))])
        values = [found.ap, found.ap50, found.ap75, found.ap_small, found.ar]
        assert values == pytest.approx([1] * 5)
        assert found.ap_medium is found.ap_large is None
        assert found.curve() == pytest.approx(1)

    def test_an_overlap_between_thresholds(self):
        """IoU 0.7: right at five of ten thresholds (0.7 is not below 0.7)."""
        found = measure([image([[0, 0, 10, 10]])], [image([[0, 0, 7, 10]], scores=np.array([1.0]))])
        assert found.ap == pytest.approx(0.5)
        assert (found.ap50, found.ap75) == (pytest.approx(1), 0)

    def test_a_wrong_one_before_the_right_one(self):
        """Precision 1/2 at every recall up to 1."""
        scores = np.array([0.9, 0.8])
        found = measure([image([[0, 0, 10, 10]])], [image([[30, 30, 40, 40], [0, 0, 10, 10]], scores=scores)])
        assert found.ap == pytest.approx(0.5)
        assert found.curve(iou=0.95).tolist() == pytest.approx([0.5] * 101)

    def test_half_of_the_objects(self):
        """Recall ends at 1/2: 51 of 101 places have precision 1."""
        found = measure([image([[0, 0, 10, 10], [20, 20, 30, 30]])], [image([[0, 0, 10, 10]], scores=np.array([1.0]))])
        assert found.ap == pytest.approx(51 / 101)
        assert found.curve("one") == pytest.approx(np.where(RECALLS <= 0.5, 1.0, 0.0))
        assert found.ar == pytest.approx(0.5)

    def test_classes_do_not_mix(self):
        boxes = [[0, 0, 10, 10], [20, 20, 30, 30]]
        swapped = measure([image(boxes, [0, 1])], [image(boxes, [1, 0], scores=np.ones(2))], ("a", "b"))
        assert swapped.ap == 0
        half = measure([image(boxes, [0, 1])], [image(boxes, [0, 0], scores=np.array([0.9, 0.5]))], ("a", "b", "c"))
        assert [row.ap for row in half.per_class] == [pytest.approx(1), 0, None]
        assert [row.objects for row in half.per_class] == [1, 1, 0]
        assert half.ap == pytest.approx(0.5)
        assert half.curve().tolist() == ((half.curve("a") + half.curve("b")) / 2).tolist()
        assert np.isnan(half.curve("c")).all()

    def test_crowds_are_neither_right_nor_wrong(self):
        truth = image([[0, 0, 10, 10], [20, 20, 50, 50]], crowd=np.array([False, True]))
        boxes = [[22, 22, 30, 30], [31, 31, 40, 40], [0, 0, 10, 10]]
        found = measure([truth], [image(boxes, scores=np.array([0.9, 0.8, 0.7]))])
        assert (found.ap, found.per_class[0].objects) == (pytest.approx(1), 1)

    def test_size_is_that_of_the_mask(self):
        """A thin mask in a large box is small."""
        mask = np.zeros((1, 200, 200), bool)
        mask[0, :100, 3] = True
        boxes = np.array([[0, 0, 100, 100]], np.float32)
        parts = {"boxes": boxes, "labels": np.array([0]), "masks": mask}
        assert [one["area"] for one in coco_annotations(3, **parts)] == [100]
        assert [one["area"] for one in coco_annotations(3, **parts, areas=np.array([99.5]))] == [99.5]
        truth = coco_truth({3: (200, 200)}, coco_annotations(3, **parts), ["one"])
        found = detection_metrics(truth, coco_results(3, **parts, scores=np.array([0.5])), overlap="segm")
        assert [found.ap, found.ap_small] == pytest.approx([1, 1])
        assert found.ap_large is None

    def test_images_without_objects_are_kept(self):
        """What is found there is wrong, and lowers the precision."""
        nothing, box = image([]), [[0, 0, 10, 10]]
        found = measure([image(box), nothing], [image(box, scores=np.array([0.5])), image(box, scores=np.array([0.9]))])
        assert (found.num_images, found.ap) == (2, pytest.approx(0.5))
        assert measure([image(box), nothing], [nothing | {"scores": np.zeros(0)}] * 2).ap == 0

    @pytest.mark.parametrize("results", [[], [image([[0, 0, 1, 1]], scores=np.array([0.5]))]])
    def test_no_objects_at_all(self, results):
        found = measure([image([])], results)
        assert found.ap is None
        assert found.summary() == {}
        assert np.isnan(found.curve()).all()
        json.dumps(found.to_dict(), allow_nan=False)

    def test_no_images(self):
        assert measure([], []).to_dict()["num_images"] == 0

    @settings(max_examples=15, deadline=None)
    @given(st.integers(0, 2**32))
    def test_the_order_of_images_and_results_does_not_matter(self, seed):
        """Where no two scores are equal."""
        rng = np.random.default_rng(seed)
        corners = rng.integers(0, 30, (12, 2))
        boxes = np.concatenate([corners, corners + rng.integers(3, 20, (12, 2))], axis=1).astype(float)
        moved = boxes + rng.integers(-2, 3, (12, 1))
        places, scores = rng.integers(3, size=12), rng.permutation(12) / 12
        truths = [image(boxes[places == i]) for i in range(3)]
        found = [image(moved[places == i], scores=scores[places == i]) for i in range(3)]
        one = measure(truths, found).to_dict()
        assert one == measure(truths[::-1], found[::-1]).to_dict()
        flipped = [{name: part[::-1] for name, part in each.items()} for each in found]
        assert one == measure(truths, flipped).to_dict()

    def test_a_record_is_json(self):
        found = detection_metrics(TRUTH, RESULTS)
        record = found.to_dict()
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        assert set(record) - set(found.to_dict(tables=False)) == {"per_class"}
        assert set(found.summary()) <= set(record)

    def test_the_thresholds_are_pycocotools_own(self):
        from pycocotools.cocoeval import Params

        assert Params("bbox").iouThrs.tolist() == IOU_THRESHOLDS.tolist()
        assert Params("bbox").recThrs.tolist() == RECALLS.tolist()


class TestForms:
    def test_results_are_what_files_hold(self):
        masks = torch.zeros(2, 4, 5, dtype=torch.bool)
        masks[0, 1:3, 2:4] = True
        boxes = torch.tensor([[2, 1, 4, 3], [0.5, 0, 0.5, 4]])
        found = coco_results(
            7, boxes, torch.tensor([1, 0]), torch.tensor([0.25, 0.5]), masks=masks, category_ids=[3, 8]
        )
        assert json.loads(json.dumps(found)) == found
        assert [(one["image_id"], one["category_id"], one["score"]) for one in found] == [(7, 8, 0.25), (7, 3, 0.5)]
        assert [one["bbox"] for one in found] == [[2, 1, 2, 2], [0.5, 0, 0, 4]]
        for mask, one in zip(masks, found, strict=True):
            np.testing.assert_array_equal(decode_rle(one["segmentation"], (4, 5)), mask)

    def test_masks_may_come_one_by_one(self):
        """So that no more than one of them is held."""
        masks = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)) < 0.5
        held = []

        def one_by_one():
            for mask in masks:
                assert not [one for one in held if one() is not None]
                held.append(weakref.ref(copied := mask.clone()))
                yield copied
                del copied

        parts = image([[0, 0, 2, 3]] * 3)
        assert coco_annotations(4, **parts, masks=one_by_one()) == coco_annotations(4, **parts, masks=masks)
        scores = np.ones(3)
        assert coco_results(4, **parts, scores=scores, masks=list(masks.numpy())) == coco_results(
            4, **parts, scores=scores, masks=masks
        )
        assert coco_results(4, **image([]), scores=scores[:0], masks=iter(())) == []

    def test_truth_is_numbered_from_one(self):
        annotations = coco_annotations(4, **image([[0, 0, 2, 3]])) + coco_annotations(9, **image([[0, 0, 1, 1]]))
        truth = coco_truth({4: (5, 6), 9: (7, 8)}, annotations, ["a", "b"])
        assert [one["id"] for one in truth["annotations"]] == [1, 2]
        assert [one["area"] for one in truth["annotations"]] == [6, 1]
        assert truth["images"] == [{"id": 4, "height": 5, "width": 6}, {"id": 9, "height": 7, "width": 8}]
        assert truth["categories"] == [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"boxes": np.zeros((1, 3))}, r"boxes must be of shape \(any, 4\), got \(1, 3\)"),
            ({"boxes": np.array([[5, 0, 1, 1.0]])}, r"x1 <= x2, y1 <= y2, got \[5.0, 0.0, 1.0, 1.0\]"),
            ({"boxes": np.array([[np.nan, 0, 1, 1]])}, "boxes must be finite"),
            ({"labels": np.zeros(1)}, "labels must be 1 integers, got float64"),
            ({"labels": np.zeros(2, int)}, r"of shape \(2,\)"),
            ({"labels": np.array([-1])}, "class numbers from 0, got -1"),
            ({"labels": np.array([2]), "category_ids": [1, 5]}, "class numbers from 0 to 1, got 2"),
            ({"masks": np.zeros((2, 5, 5), bool)}, r"masks must be 1 of one shape \(H, W\), got 2 of \[\(5, 5\)\]"),
            ({"masks": iter([np.zeros((2, 5), bool), np.zeros((5, 2), bool)])}, r"got 2 of \[\(2, 5\), \(5, 2\)\]"),
            ({"masks": np.zeros((5, 5), bool)}, r"masks must be of shape \(1, H, W\)"),
            ({"masks": torch.tensor(True)}, r"masks must be of shape \(1, H, W\)"),
            ({"masks": 5}, r"masks must be of shape \(1, H, W\) .* got int"),
            ({"masks": np.full((1, 5, 5), 0.7)}, "compare probabilities with 0.5"),
            ({"scores": np.array([np.nan])}, "scores must be finite, got nan for image 3"),
            ({"scores": np.ones(2)}, r"scores must be of shape \(1\)"),
        ],
    )
    def test_what_is_refused(self, changes, message):
        arguments = {"boxes": np.zeros((1, 4)), "labels": np.zeros(1, int), "scores": np.ones(1)}
        with pytest.raises(ValueError, match=message):
            coco_results(3, **(arguments | changes))

    @pytest.mark.parametrize("crowd", [np.zeros(2, bool), np.zeros(1)])
    def test_crowds_that_are_refused(self, crowd):
        with pytest.raises(ValueError, match="crowd must be 1 truth values"):
            coco_annotations(3, **image([[0, 0, 1, 1]]), crowd=crowd)

    @pytest.mark.parametrize(
        ("areas", "message"),
        [
            (np.zeros(2), r"areas must be of shape \(1\)"),
            (np.array([-1.0]), "finite and not negative, got -1.0 in image 3"),
            (np.array([np.nan]), "got nan"),
        ],
    )
    def test_areas_that_are_refused(self, areas, message):
        with pytest.raises(ValueError, match=message):
            coco_annotations(3, **image([[0, 0, 1, 1]]), areas=areas)

    @pytest.mark.parametrize(
        ("overlap", "where", "changes", "message"),
        [
            ("bbox", "result", {"image_id": 99}, "result 0 is of image 99, which is not among the 6"),
            ("bbox", "result", {"category_id": 3}, r"result 0 is of category 3; known are \[1, 2, 5, 9\]"),
            ("bbox", "result", {"score": float("nan")}, "finite score, got nan"),
            ("bbox", "result", {"score": None}, "finite score, got None"),
            ("bbox", "result", {"bbox": [0, 0, 1]}, "bbox of finite x, y, width and height"),
            ("bbox", "result", {"bbox": [0, 0, -1, 1]}, r"got \[0, 0, -1, 1\]"),
            ("bbox", "annotation", {"bbox": [0, 0, 1, float("inf")]}, "annotation 0 must have a bbox of finite"),
            ("bbox", "annotation", {"image_id": 4}, "annotation 0 is of image 4"),
            ("bbox", "result", {"bbox": 5}, "result 0 must have a bbox of finite x, y, width and height, got 5"),
            ("bbox", "result", {"bbox": "0011"}, "got '0011'"),
            ("bbox", "result", {"bbox": {0: 0, 1: 0, 2: 1, 3: 1}}, "result 0 must have a bbox"),
            ("bbox", "result", {"image_id": [1]}, r"result 0 is of image \[1\], which is not among the 6"),
            ("bbox", "result", {"category_id": {}}, "result 0 is of category {}; known are"),
            ("bbox", "annotation", {"area": None}, "annotation 0 must have a finite area, got None"),
            ("bbox", "annotation", {"iscrowd": None}, "annotation 0 must have an iscrowd of 0 or 1, got None"),
            ("segm", "result", {"segmentation": [[0, 0, 4, 0, 4, 4]]}, "result 0 must have a run-length code"),
            ("segm", "result", {"segmentation": {"size": 5, "counts": [20]}}, "got size 5"),
            ("segm", "result", {"segmentation": {"size": [176, 208]}}, "a mapping with size and counts"),
            ("segm", "annotation", {"segmentation": 5}, "annotation 0 must have polygons .* got 5"),
            ("segm", "annotation", {"segmentation": [[0, 0, 4, 0, 4]]}, "three corners or more"),
            (
                "segm",
                "annotation",
                {"segmentation": [[0, 0, 4, 0, 4, float("nan")]]},
                "annotation 0 must have polygons",
            ),
            ("segm", "result", {"segmentation": {"size": [4, 5], "counts": [20]}}, "size, 176 × 208"),
            ("segm", "annotation", {"segmentation": {"size": [176, 208], "counts": "S1"}}, "fill 176 × 208 pixels"),
        ],
    )
    def test_entries_that_are_refused(self, overlap, where, changes, message):
        truth, results = copy.deepcopy((TRUTH, RESULTS))
        {"result": results, "annotation": truth["annotations"]}[where][0].update(changes)
        with pytest.raises(ValueError, match=message):
            detection_metrics(truth, results, overlap=overlap)

    @pytest.mark.parametrize(("part", "overlap"), [("bbox", "bbox"), ("segmentation", "segm"), ("score", "bbox")])
    def test_a_missing_part(self, part, overlap):
        with pytest.raises(ValueError, match=f"result 0 must have '{part}'"):
            detection_metrics(TRUTH, [{name: RESULTS[0][name] for name in RESULTS[0] if name != part}], overlap=overlap)

    def test_annotations_and_results_need_different_parts(self):
        annotation = {name: value for name, value in TRUTH["annotations"][0].items() if name != "area"}
        with pytest.raises(ValueError, match="annotation 0 must have 'area'"):
            detection_metrics(TRUTH | {"annotations": [annotation]}, RESULTS)
        with pytest.raises(ValueError, match="result 0 must have 'image_id' to be measured, got 5"):
            detection_metrics(TRUTH, [5])

    def test_forms_that_json_does_not_have(self):
        """Tuples and arrays are measured as lists are."""
        truth, results = copy.deepcopy((TRUTH, RESULTS))
        for one in [*truth["annotations"], *results]:
            one["bbox"] = tuple(one["bbox"])
        assert detection_metrics(truth, results).to_dict() == detection_metrics(TRUTH, RESULTS).to_dict()
        results[0]["bbox"] = np.array(results[0]["bbox"])
        assert detection_metrics(truth, results).to_dict() == detection_metrics(TRUTH, RESULTS).to_dict()
        for one in results:
            code = one["segmentation"]
            one["segmentation"] = {"size": tuple(code["size"]), "counts": tuple(run_lengths(code))}
        assert (
            detection_metrics(truth, results, overlap="segm").ap == detection_metrics(TRUTH, RESULTS, overlap="segm").ap
        )

    def test_truth_without_sizes(self):
        truth = copy.deepcopy(TRUTH)
        del truth["images"][0]["height"]
        detection_metrics(truth, RESULTS)
        with pytest.raises(ValueError, match=r"image 3 must have a height and width in pixels .* got \[None, 208\]"):
            detection_metrics(truth, RESULTS, overlap="segm")

    def test_each_code_is_read_once(self, monkeypatch):
        read = []
        monkeypatch.setattr(
            "difformer.analysis.detection.run_lengths",
            lambda *args, **options: read.append(1) or run_lengths(*args, **options),
        )
        coded = [one for one in TRUTH["annotations"] if isinstance(one["segmentation"], dict)]
        detection_metrics(TRUTH, RESULTS, overlap="segm")
        assert len(read) == len(coded) + len(RESULTS)

    def test_numbers_that_stand_twice(self):
        with pytest.raises(ValueError, match="every image of the truth must have its own id, and 3 stands twice"):
            detection_metrics(TRUTH | {"images": [*TRUTH["images"], TRUTH["images"][0]]}, RESULTS)
        with pytest.raises(ValueError, match="every image of the truth must have an id"):
            detection_metrics(TRUTH | {"images": [{"id": [3]}]}, RESULTS)

    def test_unknown_choices(self):
        with pytest.raises(ValueError, match="overlap must be one of bbox, segm, got 'mask'"):
            detection_metrics(TRUTH, RESULTS, overlap="mask")
        found = detection_metrics(TRUTH, RESULTS)
        with pytest.raises(ValueError, match=r"iou must be one of 0\.5, 0\.55"):
            found.curve(iou=0.51)
        with pytest.raises(ValueError, match="class_name must be one of a, b, c, never_annotated, got 'd'"):
            found.curve("d")


class TestRunLengthCodes:
    @settings(max_examples=60, deadline=None)
    @given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32))
    def test_what_is_encoded_is_decoded(self, height, width, share, seed):
        mask = np.random.default_rng(seed).random((height, width)) < share
        code = encode_rle(mask)
        np.testing.assert_array_equal(decode_rle(code, (height, width)), mask)
        np.testing.assert_array_equal(decode_rle(code | {"counts": code["counts"].encode()}), mask)
        assert encode_rle(torch.from_numpy(mask).int()) == code

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            ({"size": [5, 7], "counts": "R1"}, "fill 5 × 7 pixels, got 1 runs of 34 pixels"),
            ({"size": [5, 7], "counts": "T1"}, "got 1 runs of 36 pixels"),
            ({"size": [5, 7], "counts": [40, -5]}, "fill 5 × 7 pixels"),
            ({"size": [5, 7], "counts": "S"}, "cut off"),
            ({"size": [5, 7], "counts": "S\n"}, r"characters from '0' to 'o', got '\\n'"),
            ({"size": [7, 5], "counts": "S1"}, r"image's size, 5 × 7 \(h × w\), got size \[7, 5\]"),
            ({"size": [35], "counts": "S1"}, "got size"),
            ({"size": 35, "counts": "S1"}, "got size 35"),
            ({"size": [5.0, 7.0], "counts": "S1"}, "got size"),
            ({"size": [5, 7]}, "a mapping with size and counts"),
            ([[0, 0, 4, 0, 4, 4]], "a mapping with size and counts"),
            ({"size": [5, 7], "counts": None}, "text, bytes or a list of integers, got None"),
            ({"size": [5, 7], "counts": [35.0]}, "a list of integers"),
            ({"size": [5, 7], "counts": [True, 34]}, "a list of integers"),
            ({"size": [5, 7], "counts": "é"}, "characters from '0' to 'o', got 'é'"),
            ({"size": [5, 7], "counts": b"o" * 1_000_000}, "numbers of 40 bits at most"),
        ],
    )
    def test_codes_that_are_refused(self, code, message):
        with pytest.raises(ValueError, match=message):
            decode_rle(code, (5, 7))

    @pytest.mark.parametrize(
        ("mask", "message"),
        [(np.zeros(4, bool), r"shape \(H, W\)"), (np.zeros((0, 4), bool), "at least 1"),
         (np.full((2, 2), 255, np.uint8), "0 and 1, got uint8"), (np.zeros((2, 2)), "compare probabilities")],
    )  # fmt: skip
    def test_masks_that_are_refused(self, mask, message):
        with pytest.raises(ValueError, match=message):
            encode_rle(mask)
