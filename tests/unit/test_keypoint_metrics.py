"""Measures of points: golden numbers, closed forms, and what is left out."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import read_golden

from difformer.analysis import (
    box_lengths,
    error_auc,
    failure_rate,
    image_errors,
    keypoint_metrics,
    near_points,
    point_distances,
    point_errors,
)

TENSORS, _ = read_golden("keypoints")
PREDICTED, TRUE, VISIBLE = TENSORS["pred"], TENSORS["true"], TENSORS["visible"]
NAMES = [f"point {i}" for i in range(9)]
# Kept as x, y, width, height there.
BOXES = torch.cat([TENSORS["box"][:, :2], TENSORS["box"][:, :2] + TENSORS["box"][:, 2:]], dim=1)


def golden(name):
    return TENSORS[name].numpy()


LENGTHS = {
    "interocular": point_distances(TRUE, VISIBLE, 0, 1),
    "box_sqrt_area": box_lengths(BOXES, "sqrt_area"),
    "box_longer": box_lengths(BOXES),
    "box_diagonal": box_lengths(BOXES, "diagonal"),
}


class TestGolden:
    @pytest.mark.parametrize("name", LENGTHS)
    def test_errors(self, name):
        """The eyes of image 7 are not visible, so that it has no length; it has no visible point either."""
        errors, lengths = point_errors(PREDICTED, TRUE, VISIBLE), LENGTHS[name]
        known = ~np.isnan(lengths)
        assert np.flatnonzero(~known).tolist() == ([7] if name == "interocular" else [])
        np.testing.assert_allclose(lengths[known], golden(f"nme.{name}.norm")[known], rtol=1e-12)
        np.testing.assert_allclose(image_errors(errors, lengths), golden(f"nme.{name}.per_image"), rtol=1e-12)
        found = keypoint_metrics(PREDICTED, TRUE, VISIBLE, lengths, point_names=NAMES)
        assert found.nme == pytest.approx(golden(f"nme.{name}.mean_of_images").item(), rel=1e-12)
        per_point = [row.nme for row in found.per_point]
        np.testing.assert_allclose(per_point, golden(f"nme.{name}.per_point"), rtol=1e-12)
        assert np.nanmean(errors / lengths[:, None]) == pytest.approx(
            golden(f"nme.{name}.mean_of_points").item(), rel=1e-12
        )

    def test_failures_and_area(self):
        found = keypoint_metrics(PREDICTED, TRUE, VISIBLE, LENGTHS["interocular"], point_names=NAMES)
        assert found.failure_rate == golden("nme.failure_rate_0.1")
        assert found.auc == pytest.approx(golden("nme.auc_0.1").item(), rel=1e-12)

    @pytest.mark.parametrize("name", ["box_longer", "interocular"])
    def test_pck(self, name):
        """Point 3 of image 0 lies on the threshold of box_longer, and is correct."""
        near = near_points(point_errors(PREDICTED, TRUE, VISIBLE), LENGTHS[name], 0.1)
        seen = VISIBLE.numpy()
        assert (near[seen] == golden(f"pck.{name}.correct")[seen]).all()
        assert np.isnan(near[~seen]).all()
        np.testing.assert_allclose(np.nanmean(near), golden(f"pck.{name}.all_points"), rtol=1e-12)
        np.testing.assert_allclose(np.nanmean(near, axis=0), golden(f"pck.{name}.per_point"), rtol=1e-12)
        shown = seen.any(axis=1)
        np.testing.assert_allclose(np.nanmean(near[shown], axis=1), golden(f"pck.{name}.per_image")[shown], rtol=1e-12)
        found = keypoint_metrics(PREDICTED, TRUE, VISIBLE, LENGTHS[name], point_names=NAMES)
        assert found.value("pck@0.1") == pytest.approx(golden(f"pck.{name}.all_points").item(), rel=1e-12)


class TestClosedForms:
    def test_a_small_case_worked_out(self):
        true = np.array([[[0, 0], [10, 0]], [[0, 0], [0, 20]]], dtype=np.float32)
        predicted = true + np.array([[[3, 4], [0, 0]], [[0, 0], [6, 8]]])
        visible = np.array([[True, True], [True, False]])
        errors = point_errors(predicted, true, visible)
        np.testing.assert_array_equal(errors, [[5, 0], [0, np.nan]])
        assert image_errors(errors, np.array([10.0, 20.0])).tolist() == [0.25, 0]
        np.testing.assert_array_equal(near_points(errors, np.array([50.0, 1.0])), [[1, 1], [1, np.nan]])
        np.testing.assert_array_equal(point_distances(true, visible, 0, 1), [10, np.nan])

    def test_the_centre_of_several_points(self):
        true = np.array([[[0, 0], [2, 0], [10, 0], [10, 4]]], dtype=float)
        assert point_distances(true, np.ones((1, 4), bool), [0, 1], [2, 3]) == pytest.approx(np.hypot(9, 2))

    def test_lengths_of_boxes(self):
        boxes = np.array([[10, 20, 13, 24]], dtype=np.float32)
        found = [box_lengths(boxes, side).item() for side in ("longer", "sqrt_area", "diagonal")]
        assert found == pytest.approx([4, 12**0.5, 5])

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.floats(0, 0.3), min_size=1, max_size=8), st.floats(0.01, 0.2))
    def test_the_area_is_that_under_the_curve(self, values, threshold):
        nme = np.array([*values, np.nan])
        steps = np.linspace(0, threshold, 20_001)
        curve = (np.array(values)[None] <= steps[:, None]).mean(axis=1)
        assert error_auc(nme, threshold) == pytest.approx((curve[1:] + curve[:-1]).mean() / 2, abs=1e-4)
        assert failure_rate(nme, threshold) == (np.array(values) > threshold).mean()

    def test_the_threshold_itself_is_no_failure(self):
        assert failure_rate(np.array([0.1, np.nextafter(0.1, 1)]), 0.1) == 0.5
        assert (error_auc(np.zeros(3)), error_auc(np.array([0.1, 5.0]))) == (1, 0)
        assert np.isnan([failure_rate(np.array([np.nan])), error_auc(np.array([np.nan]))]).all()

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 2**32), st.floats(0.1, 100))
    def test_scale_and_place_do_not_matter(self, seed, scale):
        rng = np.random.default_rng(seed)
        true, visible = rng.random((5, 3, 2)), rng.random((5, 3)) < 0.7
        predicted, lengths = true + rng.normal(0, 0.1, true.shape), rng.random(5) + 0.5
        one = image_errors(point_errors(predicted, true, visible), lengths)
        moved = [x * scale + 3 for x in (predicted, true)]
        other = image_errors(point_errors(*moved, visible), lengths * scale)
        np.testing.assert_allclose(other, one, rtol=1e-6)

    @pytest.mark.parametrize("cut", [1, 5, 11])
    def test_one_pass_is_the_sum_of_the_parts(self, cut):
        whole = image_errors(point_errors(PREDICTED, TRUE, VISIBLE), LENGTHS["box_longer"])
        parts = [
            image_errors(point_errors(PREDICTED[part], TRUE[part], VISIBLE[part]), LENGTHS["box_longer"][part])
            for part in (slice(cut), slice(cut, None))
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


class TestWhatIsLeftOut:
    def test_points_that_are_not_visible_may_be_anything(self):
        wild = TRUE.clone()
        wild[~VISIBLE] = torch.nan
        one = keypoint_metrics(PREDICTED, wild, VISIBLE, LENGTHS["box_longer"], point_names=NAMES)
        other = keypoint_metrics(PREDICTED, TRUE, VISIBLE, LENGTHS["box_longer"], point_names=NAMES)
        assert one.to_dict() == other.to_dict()

    def test_an_image_without_a_length(self):
        lengths = LENGTHS["box_longer"].copy()
        lengths[3] = np.nan
        found = keypoint_metrics(PREDICTED, TRUE, VISIBLE, lengths, point_names=NAMES)
        rest = torch.arange(12) != 3
        wanted = keypoint_metrics(PREDICTED[rest], TRUE[rest], VISIBLE[rest], lengths[rest.numpy()], point_names=NAMES)
        assert (found.num_images, found.num_measured, wanted.num_measured) == (12, 10, 10)
        assert found.to_dict() | {"num_images": 11} == wanted.to_dict()

    def test_a_point_that_no_image_shows(self):
        visible = VISIBLE.clone()
        visible[:, 2] = False
        found = keypoint_metrics(PREDICTED, TRUE, visible, LENGTHS["box_longer"], point_names=NAMES)
        row = found.per_point[2]
        assert (row.images, row.error, row.nme, row.pck) == (0, None, None, {0.05: None, 0.1: None})
        record = found.to_dict()
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        assert set(record) - set(found.to_dict(tables=False)) == {"per_point"}

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"predicted": PREDICTED.clone().index_fill(0, torch.tensor([5]), torch.nan)}, "point 0 of image 5"),
            (
                {"true": torch.full_like(TRUE, torch.inf)},
                r"true must be finite, got \[inf, inf\] for point 0",
            ),
            ({"true": TRUE[:, :8]}, r"true must be of shape \(12, 9, 2\), got \(12, 8, 2\)"),
            ({"visible": VISIBLE.int()}, "visible must be truth values"),
            ({"visible": torch.zeros_like(VISIBLE)}, "none of 12 images has a visible point"),
            ({"lengths": np.zeros(12)}, "lengths must be above 0, got 0.0 for image 0; give NaN to leave"),
            ({"lengths": np.full(12, np.inf)}, "got inf for image 0"),
            ({"lengths": np.ones(11)}, r"lengths must be of shape \(12\), got \(11,\)"),
            ({"point_names": NAMES[:3]}, "9 points need as many names, got 3"),
            ({"threshold": 0}, "threshold must be a finite number above 0"),
            ({"alphas": [-1]}, "alpha must be a finite number above 0"),
        ],
    )
    def test_what_is_refused(self, changes, message):
        arguments = {"predicted": PREDICTED, "true": TRUE, "visible": VISIBLE, "lengths": np.ones(12)}
        with pytest.raises(ValueError, match=message):
            keypoint_metrics(**(arguments | {"point_names": NAMES} | changes))

    @pytest.mark.parametrize("first", [9, -1, [], [0, 9], 0.5])
    def test_numbers_that_no_point_has(self, first):
        with pytest.raises(ValueError, match=r"first must be numbers of points in \[0, 9\)"):
            point_distances(TRUE, VISIBLE, first, 1)

    def test_boxes_that_are_refused(self):
        with pytest.raises(ValueError, match=r"got \[3.0, 0.0, 1.0, 1.0\] for image 1"):
            box_lengths(np.array([[0, 0, 1, 1], [3, 0, 1, 1.0]]))
        with pytest.raises(ValueError, match="for image 0"):
            box_lengths(np.array([[0, 0, np.nan, 1]]))
        with pytest.raises(ValueError, match="side must be one of longer"):
            box_lengths(np.zeros((1, 4)), "shorter")
