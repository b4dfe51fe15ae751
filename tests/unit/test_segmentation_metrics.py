"""Measures of maps of classes: golden numbers, closed forms, and counts that may be added."""

import json

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import read_golden

from difformer.analysis import (
    boundary_counts,
    boundary_f,
    class_accuracy,
    class_counts,
    class_iou,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
    pixel_confusion,
    segmentation_metrics,
)

TENSORS, _ = read_golden("segmentation")
TARGET, PREDICTED = TENSORS["target"], TENSORS["pred"]
NAMES = [f"class {i}" for i in range(7)]


def golden(name):
    return TENSORS[name].numpy()


@st.composite
def maps(draw, classes=4):
    """Predicted and labelled maps with blocks of equal pixels, of which some are not labelled."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 12)), draw(st.integers(1, 12))
    labels = rng.choice([*range(classes), 255], shape)
    predicted = np.where(rng.random(shape) < 0.6, labels % classes, rng.integers(classes, size=shape))
    return predicted, labels


class TestCounts:
    def test_golden(self):
        found = pixel_confusion(PREDICTED, TARGET, 7)
        assert found.dtype == torch.int64
        assert found.equal(TENSORS["confusion.per_image"])
        assert found.sum(dim=0).equal(TENSORS["confusion"])
        counts = class_counts(found.sum(dim=0))
        for name, value in {
            "iou": class_iou(counts),
            "class_accuracy": class_accuracy(counts),
            "miou": mean_iou(counts),
            "mean_accuracy": mean_accuracy(counts),
            "pixel_accuracy": pixel_accuracy(counts),
            "iou.per_image": class_iou(class_counts(found)),
        }.items():
            np.testing.assert_allclose(value, golden(name), rtol=1e-12, err_msg=name)
        assert mean_iou(class_counts(found)).mean() == pytest.approx(golden("miou.mean_of_images").item(), rel=1e-12)

    @settings(max_examples=60, deadline=None)
    @given(maps())
    def test_one_pixel_at_a_time(self, pair):
        predicted, labels = pair
        found = pixel_confusion(predicted, labels, 4)
        wanted = np.zeros((len(labels), 4, 4), int)
        for place, own in np.ndenumerate(labels):
            if own != 255:
                wanted[place[0], own, predicted[place]] += 1
        assert found.tolist() == wanted.tolist()
        counts = class_counts(found.sum(dim=0))
        for number, value in enumerate(class_iou(counts)):
            own, taken = labels == number, (predicted == number) & (labels != 255)
            union = (own | taken).sum()
            assert np.isnan(value) if not union else value == (own & taken).sum() / union

    @settings(max_examples=40, deadline=None)
    @given(maps(), st.data())
    def test_one_pass_is_the_sum_of_the_parts(self, pair, data):
        predicted, labels = pair
        whole = pixel_confusion(predicted, labels, 4).sum(dim=0)
        axis = data.draw(st.integers(0, 2))
        cut = data.draw(st.integers(0, labels.shape[axis]))
        parts = zip(*(np.split(x, [cut], axis=axis) for x in pair), strict=True)
        assert sum(pixel_confusion(*part, 4).sum(dim=0) for part in parts if part[0].size).equal(whole)

    def test_chunks_change_nothing(self, monkeypatch):
        whole = pixel_confusion(PREDICTED, TARGET, 7)
        monkeypatch.setattr("difformer.analysis.segmentation._CHUNK_ELEMENTS", 100)
        assert pixel_confusion(PREDICTED, TARGET, 7).equal(whole)

    def test_types_of_integers_are_the_same(self):
        whole = pixel_confusion(PREDICTED, TARGET, 7)
        assert pixel_confusion(PREDICTED.numpy().astype(np.uint16), TARGET.long(), 7).equal(whole)
        relabelled = TARGET.int().masked_fill(TARGET == 255, -1)
        assert pixel_confusion(PREDICTED.short(), relabelled, 7, ignore_index=-1).equal(whole)

    def test_an_image_without_labels_counts_nothing(self):
        assert not pixel_confusion(np.zeros((1, 2, 3), int), np.full((1, 2, 3), 255), 2).any()
        assert pixel_confusion(np.zeros((0, 2, 3), int), np.zeros((0, 2, 3), int), 2).shape == (0, 2, 2)

    @pytest.mark.parametrize(
        ("predicted", "labels", "message"),
        [
            (np.zeros((1, 2, 2), int), np.full((1, 2, 2), 3), r"labels must lie in \[0, 3\) or be ignore_index, got 3"),
            (np.zeros((1, 2, 2), int), np.full((1, 2, 2), -1), "got -1 in image 0 at row 0, column 0"),
            (
                np.eye(2, dtype=int)[None] * 7,
                np.full((1, 2, 2), 255),
                r"predicted must lie in \[0, 3\), got 7 in image 0",
            ),
            (np.zeros((1, 2, 3), int), np.zeros((1, 3, 2), int), r"one shape, got \(1, 2, 3\) and \(1, 3, 2\)"),
            (np.zeros((1, 2, 2)), np.zeros((1, 2, 2), int), "predicted must be integers, got torch.float64; of logits"),
            (np.zeros((1, 2, 2), int), np.full((1, 2, 2), np.nan), "labels must be integers"),
            (np.zeros((1, 2, 2), bool), np.zeros((1, 2, 2), int), "integers, got torch.bool"),
            (np.zeros((2, 2), int), np.zeros((2, 2), int), r"shape \(B, H, W\)"),
            (np.zeros((1, 0, 2), int), np.zeros((1, 0, 2), int), "at least 1, got"),
            ([[0]], np.zeros((1, 1, 1), int), "torch tensor or a numpy array"),
        ],
    )
    def test_what_is_refused(self, predicted, labels, message):
        with pytest.raises(ValueError, match=message):
            pixel_confusion(predicted, labels, 3)

    def test_the_place_of_a_wrong_label_is_named(self, monkeypatch):
        monkeypatch.setattr("difformer.analysis.segmentation._CHUNK_ELEMENTS", 8)
        labels = np.zeros((2, 6, 4), int)
        labels[1, 5, 2] = 9
        with pytest.raises(ValueError, match="got 9 in image 1 at row 5, column 2"):
            pixel_confusion(np.zeros_like(labels), labels, 3)

    @pytest.mark.parametrize(("ignored", "classes"), [(0, 3), (255, 256), (1.5, 3)])
    def test_what_can_not_be_ignored(self, ignored, classes):
        maps = np.zeros((1, 1, 1), int)
        for measure in (pixel_confusion, boundary_counts):
            with pytest.raises(ValueError, match="ignore_index"):
                measure(maps, maps, classes, ignore_index=ignored)

    def test_other_counts_are_refused(self):
        with pytest.raises(ValueError, match=r"shape \(…, K, K\), got \(2, 3\)"):
            class_counts(np.zeros((2, 3), int))
        for shares in (np.full((2, 2), 0.25), torch.full((3, 2, 2), torch.nan), np.ones((2, 2), bool)):
            with pytest.raises(ValueError, match=r"confusion must be integers, counts of pixels, got (float|bool)"):
                class_counts(shares)
        with pytest.raises(ValueError, match="as class_counts gives them"):
            mean_iou(np.zeros((2, 2), int))


class TestClosedForms:
    def test_a_small_case_worked_out(self):
        """Of six labelled pixels four are right; the third class is predicted only, the fourth is nowhere."""
        labels = np.array([[[0, 0, 0, 255], [1, 1, 1, 255]]])
        predicted = np.array([[[0, 0, 1, 3], [1, 1, 2, 0]]])
        counts = class_counts(pixel_confusion(predicted, labels, 4).sum(dim=0))
        assert counts.tolist() == [[2, 3, 2], [2, 3, 3], [0, 0, 1], [0, 0, 0]]
        np.testing.assert_array_equal(class_iou(counts), [2 / 3, 2 / 4, 0, np.nan])
        np.testing.assert_array_equal(class_accuracy(counts), [2 / 3, 2 / 3, np.nan, np.nan])
        assert mean_iou(counts) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
        assert (mean_accuracy(counts), pixel_accuracy(counts)) == (pytest.approx(2 / 3), pytest.approx(4 / 6))

    @settings(max_examples=30, deadline=None)
    @given(maps())
    def test_bounds_and_symmetry(self, pair):
        predicted, labels = pair
        labelled = labels != 255
        counts = class_counts(pixel_confusion(predicted, labels, 4).sum(dim=0))
        swapped = np.where(labelled, predicted, 255), np.where(labelled, labels, 0)
        back = class_counts(pixel_confusion(swapped[1], swapped[0], 4).sum(dim=0))
        np.testing.assert_array_equal(class_iou(counts), class_iou(back))
        values = class_iou(counts)
        assert ((values >= 0) & (values <= class_accuracy(counts)) | np.isnan(values) | (counts[:, 1] == 0)).all()
        right = class_counts(pixel_confusion(np.where(labelled, labels, 0), labels, 4).sum(dim=0))
        assert set(class_iou(right)[~np.isnan(class_iou(right))]) <= {1.0}

    def test_nothing_labelled_has_no_value_and_gives_no_warning(self, recwarn):
        counts = np.zeros((2, 3, 3), int)
        for measure in (mean_iou, mean_accuracy, pixel_accuracy):
            assert np.isnan(measure(counts)).all()
        assert not recwarn


class TestBoundaries:
    @pytest.mark.parametrize("pixels", [1, 2, 3])
    def test_golden(self, pixels):
        tolerance = (pixels + 1e-9) / np.hypot(32, 40)
        counts = boundary_counts(PREDICTED, TARGET, 7, tolerance=tolerance)
        assert counts.equal(TENSORS[f"boundary.tol{pixels}.counts"])
        np.testing.assert_allclose(boundary_f(counts.numpy()), golden(f"boundary.tol{pixels}.per_image"), rtol=1e-12)
        pooled = boundary_f(counts.sum(dim=0).numpy())
        np.testing.assert_allclose(pooled, golden(f"boundary.tol{pixels}.pooled"), rtol=1e-12)

    @settings(max_examples=40, deadline=None)
    @given(maps(), st.floats(0.01, 0.6))
    def test_one_pixel_at_a_time(self, pair, tolerance):
        """The definition, with distances between all pairs of boundary pixels."""
        predicted, labels = pair
        found = boundary_counts(predicted, labels, 4, tolerance=tolerance).numpy()
        radius = tolerance * np.hypot(*labels.shape[1:])
        # Squares of distances are whole numbers; at one of them rounding decides.
        assume(abs(radius**2 - round(radius**2)) > 1e-6)
        for image in range(len(labels)):
            known = labels[image] != 255
            edges = [by_hand(own[image], known) for own in (predicted, labels)]
            for number in range(4):
                a, b = (np.argwhere(edge & (own[image] == number)) for edge, own in zip(edges, pair, strict=True))
                distance = np.linalg.norm(a[:, None] - b[None], axis=-1)
                near = [(distance <= radius).any(axis=axis).sum() if distance.size else 0 for axis in (1, 0)]
                assert found[image, number].tolist() == [near[0], len(a), near[1], len(b)]

    @settings(max_examples=30, deadline=None)
    @given(maps())
    def test_the_same_maps_agree(self, pair):
        labels = np.where(pair[1] == 255, 0, pair[1])
        values = boundary_f(boundary_counts(labels, labels, 4).numpy())
        assert set(values[~np.isnan(values)]) <= {1.0}

    @pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (2, 1.0), (3, 0.0)])
    def test_a_line_that_moves(self, shift, expected):
        labels = np.zeros((1, 16, 20), int)
        predicted = labels.copy()
        labels[..., 8:] = 1
        predicted[..., 8 + shift :] = 1
        values = boundary_f(boundary_counts(predicted, labels, 2, tolerance=2.5 / np.hypot(16, 20)).numpy())
        assert values.tolist() == [[expected, expected]]

    def test_what_is_no_boundary(self):
        """The border of the image, and that of pixels that are not labelled."""
        labels = np.zeros((1, 6, 6), int)
        labels[:, :, 3] = 255
        labels[:, :, 4:] = 1
        predicted = np.where(labels == 255, 0, labels)
        assert boundary_counts(predicted, labels, 2).tolist() == [[[0] * 4] * 2]
        assert np.isnan(boundary_f(np.zeros((2, 4), int))).all()

    def test_closed_forms(self):
        assert boundary_f(np.array([2, 4, 3, 4])) == pytest.approx(2 * 0.5 * 0.75 / 1.25)
        assert boundary_f(np.array([[0, 4, 0, 0], [0, 0, 0, 5], [0, 3, 0, 5]])).tolist() == [0, 0, 0]

    def test_one_pixel(self):
        assert boundary_counts(np.zeros((1, 1, 1), int), np.zeros((1, 1, 1), int), 2).tolist() == [[[0] * 4] * 2]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [({"tolerance": 0}, "tolerance must be a finite number above 0"), ({"num_classes": 0}, "num_classes"),
         ({"labels": TARGET[:2]}, "one shape"), ({"predicted": PREDICTED.float()}, "integers")],
    )  # fmt: skip
    def test_what_is_refused(self, changes, message):
        with pytest.raises(ValueError, match=message):
            boundary_counts(**({"predicted": PREDICTED, "labels": TARGET, "num_classes": 7} | changes))


def by_hand(own, known):
    """Known pixels beside a known one of another class."""
    edge = np.zeros_like(known)
    height, width = own.shape
    for y, x in np.argwhere(known):
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= v < height and 0 <= u < width and known[v, u] and own[v, u] != own[y, x]:
                edge[y, x] = True
    return edge


class TestMetrics:
    def metrics(self, **changes):
        boundary = boundary_counts(PREDICTED, TARGET, 7, tolerance=2 / np.hypot(32, 40) + 1e-12)
        arguments = {"num_images": 4, "boundary": boundary, "class_names": NAMES} | changes
        return segmentation_metrics(arguments.pop("confusion", TENSORS["confusion"]), **arguments)

    def test_golden(self):
        found = self.metrics()
        assert found.value("miou") == pytest.approx(golden("miou").item(), rel=1e-12)
        assert found.absent == ("class 6",)
        precision = [np.nan if row.precision is None else row.precision for row in found.per_class]
        np.testing.assert_allclose(precision, golden("precision"), rtol=1e-12)
        per_image = golden("boundary.tol2.per_image")
        wanted = [np.mean(column[~np.isnan(column)]) if not np.isnan(column).all() else None for column in per_image.T]
        assert [row.boundary_f for row in found.per_class] == pytest.approx(wanted)
        assert found.boundary_f == pytest.approx(np.mean([value for value in wanted if value is not None]))
        assert found.confusion.tolist() == golden("confusion").tolist()

    def test_a_record_is_json(self):
        found = self.metrics()
        record = found.to_dict()
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        assert record["per_class"][6] == {
            "name": "class 6", "pixels": 0, "iou": None, "accuracy": None, "precision": None, "boundary_f": None,
        }  # fmt: skip
        assert set(record) - set(found.to_dict(tables=False)) == {"confusion", "per_class"}
        assert set(found.summary()) == {"miou", "pixel_accuracy", "mean_accuracy", "boundary_f"}
        assert self.metrics(boundary=None).value("boundary_f") is None
        assert "boundary_f" not in self.metrics(boundary=None).summary()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"class_names": NAMES[:-1]}, r"6 class names need .* got \(7, 7\)"),
            ({"confusion": np.zeros((7, 7), int)}, "no pixel of any image is labelled"),
            ({"confusion": np.zeros((4, 7, 7), int)}, r"got \(4, 7, 7\)"),
            ({"confusion": np.full((7, 7), 1 / 49)}, "confusion must be integers, counts of pixels, got float64"),
            ({"num_images": 5}, r"here \(5, 7, 4\), got \(4, 7, 4\)"),
            ({"num_images": 0, "boundary": None}, "num_images must be a positive integer"),
        ],
    )
    def test_what_is_refused(self, changes, message):
        with pytest.raises(ValueError, match=message):
            self.metrics(**changes)


@pytest.mark.gpu
def test_on_cuda_the_counts_are_the_same():
    on_cuda = [x.cuda() for x in (PREDICTED, TARGET)]
    assert pixel_confusion(*on_cuda, 7).cpu().equal(pixel_confusion(PREDICTED, TARGET, 7))
    found = boundary_counts(*on_cuda, 7, tolerance=0.04)
    assert found.is_cuda
    assert found.cpu().equal(boundary_counts(PREDICTED, TARGET, 7, tolerance=0.04))
