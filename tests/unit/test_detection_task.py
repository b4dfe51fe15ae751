"""The task of detection: the way back to the image, what is right, what is kept, and its pictures."""

import json
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from difformer.analysis import DetectionMatches, average_precision, bootstrap_weights, detection_matches
from difformer.data import Boxes, Origin
from difformer.heads.detection import Detections, paste_masks
from difformer.rle import decode_rle
from difformer.tasks import TASKS, Detection, find_task
from difformer.tasks.detection.records import as_coco, at_own_size, measured_of, outcome_of, score_of
from difformer.tasks.registry import is_dense, stand_in_labels

NAMES = ("cat", "dog")
SIZE = (40, 60)


def target(boxes, labels, crowd=None, masks=None, size=SIZE):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    crowd = torch.zeros(len(boxes), dtype=torch.bool) if crowd is None else torch.tensor(crowd)
    return Boxes(boxes, torch.tensor(labels, dtype=torch.int64), crowd, size, masks=masks)


def detections(boxes, scores, labels, masks=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Detections(boxes, torch.tensor(scores), torch.tensor(labels, dtype=torch.int64), masks)


def disc(box, size):
    """The pixels whose centres lie in the ellipse that fills a box."""
    x1, y1, x2, y2 = box
    x, y = torch.arange(size[1]) + 0.5, torch.arange(size[0]) + 0.5
    return ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1))[:, None] ** 2 < 1


def test_it_is_known_by_name():
    assert isinstance(find_task("detection"), Detection)
    assert "detection" in TASKS
    assert is_dense(Detection())
    assert Detection().arguments == {}
    labels = stand_in_labels(Detection(), 2, (16, 24), 3)
    assert [one.size for one in labels] == [(16, 24)] * 2
    assert labels[0].boxes.tolist() == [[0, 0, 24, 16]]
    assert labels[0].masks.shape == (1, 16, 24)
    assert labels[0].masks.all()


def test_the_loss_is_the_sum_of_the_heads():
    parts = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([10.0, 20.0])}
    assert Detection().losses(parts, None).tolist() == [11, 22]


class TestTheWayBack:
    def test_of_an_image_that_was_stretched(self):
        origin = Origin(target([], [], size=(80, 90)), (80, 90), (40, 60))
        found = at_own_size(detections([[10, 10, 20, 30]], [0.9], [1]), origin)
        assert found.boxes.tolist() == [[15, 20, 30, 60]]
        assert (found.scores.tolist(), found.labels.tolist()) == (pytest.approx([0.9]), [1])

    def test_of_what_lies_in_padding(self):
        """Of a canvas of 40×60 the image takes 40×30."""
        origin = Origin(target([], [], size=(80, 60)), (80, 60), (40, 30))
        given = detections([[10, 0, 50, 20], [35, 5, 50, 20], [0, 0, 10, 10]], [0.9, 0.8, 0.7], [0, 1, 0])
        found = at_own_size(given, origin)
        assert found.boxes.tolist() == [[20, 0, 60, 40], [0, 0, 20, 20]]
        assert found.scores.tolist() == pytest.approx([0.9, 0.7])

    def test_masks_stay_where_they_are_when_their_boxes_are_cut(self):
        origin = Origin(target([], [], size=(80, 60)), (80, 60), (40, 30))
        whole, inside = [10.0, 4.0, 50.0, 36.0], [2.0, 5.0, 22.0, 33.0]
        shape = torch.nn.functional.avg_pool2d(disc((0, 0, 280, 280), (280, 280)).float()[None], 10)
        found = at_own_size(detections([whole, inside], [0.9, 0.8], [0, 0], shape.repeat(2, 1, 1)), origin)
        assert found.masks.shape == (2, 28, 28)
        assert torch.equal(found.masks[1], shape[0])
        for mask, box in zip(paste_masks(found.masks, found.boxes, (80, 60)), (whole, inside), strict=True):
            expected = disc([2 * side for side in box], (80, 60))
            assert (mask & expected).sum() / (mask | expected).sum() > 0.95

    def test_of_nothing(self):
        origin = Origin(target([], [], size=(80, 60)), (80, 60), (40, 30))
        found = at_own_size(detections([], [], [], torch.zeros(0, 28, 28)), origin)
        assert found.boxes.shape == (0, 4)
        assert found.masks.shape == (0, 28, 28)


class TestWhatIsRight:
    def outcome(self, found, wanted):
        return outcome_of(score_of(detections(*found), target(*wanted)))

    def test_by_class_overlap_and_score(self):
        wanted = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], [0, 0, 1]
        boxes = [[0, 0, 10, 9], [0, 0, 10, 8], [20, 0, 30, 4], [40, 0, 50, 10], [40, 0, 50, 10]]
        found = self.outcome((boxes, [0.9, 0.8, 0.7, 0.6, 0.4], [0, 0, 0, 0, 1]), wanted)
        # A second one of the same object, too small an overlap, another class; the last is too uncertain.
        assert found.right.tolist() == [True, False, False, False, False]
        assert found.counted.tolist() == [True, True, True, True, False]
        assert found.found.tolist() == [True, False, False]
        assert found.missed.tolist() == [False, True, True]
        assert found.f1 == pytest.approx(2 / 7)

    def test_crowds_do_not_count(self):
        """An object in the crowd is found; two other detections in it are neither right nor wrong."""
        wanted = [[0, 0, 40, 40], [5, 5, 15, 15]], [0, 0], [True, False]
        boxes = [[5, 5, 15, 15], [20, 20, 30, 30], [22, 5, 32, 15], [45, 0, 55, 10]]
        found = self.outcome((boxes, [0.9, 0.8, 0.7, 0.6], [0, 0, 0, 0]), wanted)
        assert found.right.tolist() == [True, False, False, False]
        assert found.counted.tolist() == [True, False, False, True]
        assert (found.found.tolist(), found.missed.tolist()) == ([False, True], [False, False])
        assert found.f1 == pytest.approx(2 / 3)

    @pytest.mark.parametrize(("boxes", "f1"), [([], 1), ([[0, 0, 9, 9]], 0)])
    def test_of_an_image_without_objects(self, boxes, f1):
        found = self.outcome((boxes, [0.9] * len(boxes), [0] * len(boxes)), ([], []))
        assert found.f1 == f1

    @pytest.mark.parametrize("seed", range(5))
    def test_it_is_pycocotools_matching(self, seed):
        rng = np.random.default_rng(seed)
        corner = rng.uniform(0, 25, (6, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(5, 15, (6, 2))], axis=1)
        found = np.repeat(boxes, 2, axis=0) + rng.normal(0, 1.5, (12, 4))
        scores = np.sort(rng.uniform(0.5, 1, 12))[::-1].copy()
        given = Detections(torch.tensor(found), torch.tensor(scores), torch.tensor(rng.integers(0, 2, 12)))
        crowd = (rng.random(6) < 0.3).tolist()
        score = score_of(given, target(boxes.tolist(), rng.integers(0, 2, 6).tolist(), crowd))
        matches, outcome = detection_matches(*as_coco([score], [0], NAMES)), outcome_of(score)
        order = np.argsort(-matches.score)
        np.testing.assert_array_equal(outcome.right, matches.right[order, 0])
        np.testing.assert_array_equal(outcome.counted, matches.counted[order, 0])
        assert outcome.found.sum() + outcome.missed.sum() == matches.objects.sum()


class TestWhatIsKept:
    def test_it_is_small_and_can_be_pickled(self):
        masks = torch.zeros(1, 400, 600, dtype=torch.bool)
        masks[0, 50:100, 50:100] = True
        wanted = target([[50, 50, 100, 100]], [1], masks=masks, size=(400, 600))
        found = detections([[50, 50, 100, 100]], [0.75], [1], torch.ones(1, 28, 28))
        score = pickle.loads(pickle.dumps(score_of(found, wanted)))
        assert len(pickle.dumps(score)) < 2000
        assert score.masks
        assert (decode_rle(score.objects[0]["segmentation"]) == masks[0].numpy()).all()
        measured = measured_of([score], NAMES)
        assert measured.value("ap") == measured.value("mask_ap") == pytest.approx(1)
        json.dumps(measured.to_dict())

    @pytest.mark.parametrize(("head", "data"), [(True, False), (False, True)])
    def test_masks_are_measured_where_both_sides_have_them(self, head, data):
        wanted = target([[0, 0, 9, 9]], [0], masks=torch.ones(1, *SIZE, dtype=torch.bool) if data else None)
        found = detections([[0, 0, 9, 9]], [0.9], [0], torch.ones(1, 28, 28) if head else None)
        measured = measured_of([score_of(found, wanted)], NAMES)
        assert measured.masks is None
        assert measured.value("mask_ap") is None
        assert not any(name.startswith("mask") for name in measured.summary())

    def test_metrics_by_name(self):
        scores = np.empty(2, dtype=object)
        scores[:] = [score_of(detections([], [], []), target([[0, 0, 9, 9]], [0]))] * 2
        task, labels = Detection(), np.zeros(2)
        assert next(iter(task.metrics)) == "ap"
        assert task.metrics["ap50"].compute(scores, labels) == 0
        assert np.isnan(task.metrics["ap_large"].compute(scores, labels))
        assert task.measure(scores, labels, NAMES, extra=["ap"]).value("ap") == 0
        with pytest.raises(ValueError, match="mask_ap is not measured here, since the head or the data set has no mas"):
            task.measure(scores, labels, NAMES, extra=["mask_ap"])
        with pytest.raises(ValueError, match="ap_large is not measured here, since there are no such objects"):
            task.measure(scores, labels, NAMES, extra=["ap_large"])

    def test_intervals_of_several_models_are_of_their_mean(self):
        rng = np.random.default_rng(0)
        wanted = [target([[5, 5, 20, 20]], [int(rng.integers(2))]) for _ in range(12)]
        kept = []
        for share in (0.3, 0.8):
            scores = []
            for one in wanted:
                boxes = one.boxes.tolist() if rng.random() < share else [[30, 20, 50, 35]]
                scores.append(score_of(detections(boxes, [0.9], one.labels.tolist()), one))
            kept.append(vars(detection_matches(*as_coco(scores, range(12), NAMES))))
        task = Detection()
        alone = [task.interval([one], resamples=50, seed=0).mean for one in kept]
        assert task.interval(kept, resamples=50, seed=0).mean == pytest.approx(np.mean(alone))
        difference = task.difference(kept[1:], kept[:1], resamples=200, seed=0)
        assert difference.difference.mean == pytest.approx(alone[1] - alone[0])
        assert difference.p_value < 0.1
        same = task.difference(kept, kept, resamples=50, seed=0)
        assert (same.difference.low, same.difference.high, same.p_value) == (0, 0, 1)

    def test_an_interval_holds_the_number_and_stays_between_0_and_1(self):
        """Detections that are right by chance, for which a plain percentile interval lies above the number."""
        rng = np.random.default_rng(0)
        image, label, score = np.repeat(np.arange(100), 100), rng.integers(0, 20, 10_000), rng.random(10_000)
        right = rng.random(10_000)[:, None] < np.linspace(0.2, 0.02, 10)
        objects = rng.multinomial(7, [0.05] * 20, size=100)
        kept = vars(DetectionMatches(objects, image, label, score, right, np.ones_like(right)))
        plain = bootstrap_weights(100, partial(average_precision, DetectionMatches(**kept)), resamples=50)
        found = Detection().interval([kept], resamples=50, seed=0)
        assert plain.low > plain.mean
        assert found.low < found.mean < found.high
        sure = kept | {"right": np.ones_like(right), "objects": np.full((100, 20), 4)}
        assert Detection().interval([sure], resamples=20, seed=0).high == 1


class TestPictures:
    def test_colours_say_what_is_right(self, tmp_path, monkeypatch):
        drawn = []
        monkeypatch.setattr(
            "difformer.tasks.detection.pictures._draw_boxes",
            lambda axes, boxes: drawn.append([(one["bbox"][0], colour, text) for one, colour, text in boxes]),
        )
        wanted = target([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 60, 40]], [0, 1, 0], [False, False, True])
        found = detections(
            [[0, 0, 10, 10], [10, 20, 20, 30], [45, 5, 55, 15], [20, 0, 30, 10]], [0.9, 0.8, 0.7, 0.2], [0, 1, 0, 1]
        )
        Detection().draw(tmp_path / "a.png", Image.new("RGB", (60, 40)), wanted, found, NAMES)
        green, red, blue, grey = "#1a9641", "#d7301f", "#2c7fb8", "#969696"
        assert drawn == [
            [],
            [(0, green, "cat"), (20, blue, "dog"), (40, grey, "cat")],
            [(0, green, "cat 0.90"), (10, red, "dog 0.80"), (45, grey, "cat 0.70")],
        ]
        assert Image.open(tmp_path / "a.png").width > 500

    def test_masks_and_boxes_are_laid_over_the_image(self, tmp_path):
        picture = Image.new("RGB", (60, 40), (200, 200, 200))
        # The second one is too uncertain to be drawn.
        found = detections([[10, 10, 40, 30], [0, 32, 60, 40]], [0.9, 0.4], [0, 0], torch.ones(2, 28, 28))
        Detection().write(tmp_path, "a/b", picture, found, ("$cat$", "dog"))
        pixels = np.asarray(Image.open(tmp_path / "overlays" / "a" / "b.jpg")).astype(int)
        assert abs(pixels[20, 25] - [168, 110, 110]).max() < 12
        assert abs(pixels[35, 55] - 200).max() < 6
        assert pixels[25, 40, 0] - pixels[25, 40, 1] > 30

    def test_an_image_without_objects_is_drawn(self, tmp_path):
        nothing = detections([], [], [])
        Detection().draw(tmp_path / "a.png", Image.new("RGB", (60, 40)), target([], []), nothing, NAMES)
        Detection().write(tmp_path, "a", Image.new("RGB", (60, 40)), nothing, NAMES)
        Detection().finish(tmp_path, ["a"], NAMES)
        assert json.loads((tmp_path / "detections.json").read_text()) == []
