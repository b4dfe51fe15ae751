"""Bootstrap intervals: closed forms, coverage, seeds and memory."""

import numpy as np
import pytest
import torch
from scipy import stats

from difformer.analysis import (
    bootstrap_counts,
    bootstrap_mean,
    mean_accuracy,
    mean_iou,
    paired_bootstrap,
    paired_bootstrap_counts,
)
from difformer.streams import Stream, generator

SCORES = np.random.default_rng(0).random(400)


def test_close_to_the_normal_interval():
    """For many images the mean's distribution is normal, with the variance of the sample over N."""
    found = bootstrap_mean(SCORES, resamples=20_000, level=0.9)
    half = 1.6449 * SCORES.std() / 20
    assert found.mean == SCORES.mean()
    assert found.low == pytest.approx(SCORES.mean() - half, abs=0.05 * half)
    assert found.high == pytest.approx(SCORES.mean() + half, abs=0.05 * half)


def test_hits_follow_the_binomial_distribution():
    hits = torch.arange(50) < 35
    found = bootstrap_mean(hits, resamples=20_000)
    low, high = stats.binom(50, 0.7).ppf([0.025, 0.975]) / 50
    assert (found.mean, found.level, found.resamples) == (0.7, 0.95, 20_000)
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.0201)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    found = [bootstrap_mean(rng.normal(3, 1, 100), level=0.8, seed=i, resamples=400) for i in range(300)]
    assert sum(i.low < 3 < i.high for i in found) / 300 == pytest.approx(0.8, abs=0.07)


def test_a_constant_has_no_spread():
    found = bootstrap_mean(np.full(7, 2.5))
    assert (found.mean, found.low, found.high) == (2.5, 2.5, 2.5)
    one = bootstrap_mean(np.array([0.25]))
    assert (one.low, one.high) == (0.25, 0.25)


def test_seeds_repeat_and_differ_and_leave_the_global_generators_alone():
    before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert bootstrap_mean(SCORES, seed=3) == bootstrap_mean(SCORES, seed=3)
    assert bootstrap_mean(SCORES, seed=3) != bootstrap_mean(SCORES, seed=4)
    assert (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_resamples_are_drawn_in_pieces(monkeypatch):
    """No more places at once than the bound allows, and every resample all the same."""
    monkeypatch.setattr("difformer.analysis.bootstrap._CHUNK_ELEMENTS", 1000)
    drawn = []
    default_rng = np.random.default_rng

    class Recording:
        def __init__(self, seed):
            self.rng = default_rng(seed)

        def integers(self, high, size):
            drawn.append(size)
            return self.rng.integers(high, size=size)

    monkeypatch.setattr(np.random, "default_rng", Recording)
    bootstrap_mean(SCORES, resamples=5)
    assert drawn == [(2, 400), (2, 400), (1, 400)]


class TestPaired:
    def test_it_is_the_interval_of_the_differences(self):
        other = SCORES[::-1] * 0.9
        found = paired_bootstrap(SCORES, other, seed=5).difference
        assert found == bootstrap_mean(SCORES - other, seed=5)

    def test_pairing_removes_what_images_have_in_common(self):
        found = paired_bootstrap(SCORES, SCORES - 0.01)
        assert [found.difference.low, found.difference.high] == pytest.approx([0.01, 0.01])
        assert found.p_value == pytest.approx(2 / 1001)
        assert paired_bootstrap(SCORES - 0.01, SCORES).p_value == found.p_value

    def test_no_difference(self):
        found = paired_bootstrap(SCORES > 0.5, SCORES > 0.5)
        assert (found.difference.mean, found.difference.low, found.difference.high, found.p_value) == (0, 0, 0, 1)

    def test_the_p_value_agrees_with_the_normal_test(self):
        difference = np.random.default_rng(2).normal(0.1, 1, 300)
        found = paired_bootstrap(difference, np.zeros(300), resamples=20_000)
        z = difference.mean() / difference.std() * 300**0.5
        assert found.p_value == pytest.approx(2 * stats.norm.sf(abs(z)), rel=0.2)

    def test_different_images(self):
        with pytest.raises(ValueError, match="got 400 and 399 of them"):
            paired_bootstrap(SCORES, SCORES[:-1])


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        (SCORES[:0], {}, r"shape \(N,\), N at least 1"),
        (SCORES[None], {}, r"got \(1, 400\)"),
        (np.array([0.5, np.nan]), {}, "scores must be finite, got nan"),
        (SCORES.tolist(), {}, "got list"),
        (SCORES, {"resamples": 0}, "resamples"),
        (SCORES, {"level": 0}, "level"),
        (SCORES, {"seed": -1}, "seed must not be negative, got -1"),
        (SCORES, {"seed": 1.5}, "seed must be an integer"),
    ],
)
def test_what_is_refused(scores, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_mean(scores, **options)


class TestCounts:
    """Of a number that follows from counts summed over images."""

    COUNTS = np.random.default_rng(4).integers(0, 30, (60, 3, 3)) + np.array([0, 40, 40])
    OTHER = COUNTS + np.array([4, 0, 0])

    def test_of_a_mean_it_is_the_interval_of_the_mean(self):
        """With the same draws; sums of whole numbers have no rounding."""
        scores = np.random.default_rng(1).integers(0, 9, 50)
        found = bootstrap_counts(scores, lambda sums: sums / 50, resamples=500)
        wanted = bootstrap_mean(scores, resamples=500)
        assert (found.mean, found.low, found.high) == pytest.approx((wanted.mean, wanted.low, wanted.high), rel=1e-12)
        pair = paired_bootstrap_counts(scores, scores[::-1] // 2, lambda sums: sums / 50, resamples=500)
        expected = paired_bootstrap(scores, scores[::-1] // 2, resamples=500)
        assert pair.p_value == expected.p_value
        assert pair.difference.high == pytest.approx(expected.difference.high, rel=1e-12)

    def test_of_the_mean_iou(self):
        found = bootstrap_counts(self.COUNTS, mean_iou, resamples=300, seed=2)
        assert found.mean == mean_iou(self.COUNTS.sum(axis=0))
        assert found.low < found.mean < found.high
        rng = generator(Stream.BOOTSTRAP, 2)
        by_hand = [mean_iou(self.COUNTS[rng.integers(60, size=60)].sum(axis=0)) for _ in range(300)]
        assert [found.low, found.high] == pytest.approx(np.quantile(by_hand, [0.025, 0.975]), rel=1e-12)

    def test_images_are_drawn_together(self):
        """The difference between models varies less than either, and its sign is certain."""
        found = paired_bootstrap_counts(self.OTHER, self.COUNTS, mean_iou)
        assert found.difference.mean == mean_iou(self.OTHER.sum(axis=0)) - mean_iou(self.COUNTS.sum(axis=0))
        assert 0 < found.difference.low < found.difference.high
        assert found.p_value == pytest.approx(2 / 1001)
        one = bootstrap_counts(self.OTHER, mean_iou)
        assert found.difference.high - found.difference.low < one.high - one.low
        assert paired_bootstrap_counts(self.COUNTS, self.COUNTS, mean_iou).p_value == 1

    def test_pieces_change_nothing(self, monkeypatch):
        whole = paired_bootstrap_counts(self.OTHER, self.COUNTS, mean_iou)
        monkeypatch.setattr("difformer.analysis.bootstrap._CHUNK_ELEMENTS", 1000)
        assert paired_bootstrap_counts(self.OTHER, self.COUNTS, mean_iou) == whole

    def test_resamples_without_a_number_are_left_out(self):
        """One image of four has labels: a third of the resamples lacks it."""
        counts = np.zeros((4, 2, 3), int)
        counts[0] = [5, 10, 10]
        found = bootstrap_counts(counts, mean_iou)
        assert found.mean == found.low == found.high == pytest.approx(1 / 3)
        assert found.resamples == pytest.approx(1000 * (1 - 0.75**4), abs=60)

    def test_all_resamples_have_the_same_classes(self):
        """Of the third class, which one image of six has, all pixels are found; of the others half. Without it, the
        mean would be over two classes, and 0.5."""
        counts = np.tile([[10, 15, 15], [10, 15, 15], [0, 0, 0]], (6, 1, 1))
        counts[0, 2] = [20, 20, 20]
        for statistic, value in ((mean_iou, 2 / 3), (mean_accuracy, (2 / 3 + 2 / 3 + 1) / 3)):
            found = bootstrap_counts(counts, statistic)
            assert found.mean == found.low == found.high == pytest.approx(value)
            assert found.resamples == pytest.approx(1000 * (1 - (5 / 6) ** 6), abs=60)

    def test_both_sides_are_means_over_the_same_classes(self):
        """One side takes other pixels for the rare class. Where no image has it, that side's mean was over one class
        more."""
        counts = np.tile([[10, 15, 15], [10, 15, 15], [0, 0, 0]], (6, 1, 1))
        counts[0, 2] = [20, 20, 20]
        other = counts + np.array([[0, 0, 0], [0, 0, 0], [0, 0, 1]])
        found = paired_bootstrap_counts(counts, other, mean_iou).difference
        assert found.resamples < 1000
        assert found.mean == pytest.approx((1 - 20 / 26) / 3)
        assert 0 < found.low < found.high < 0.2, "not 1 / 6, the mean over three classes against that over two"

    def test_a_class_that_is_never_labelled_counts_as_0_in_all(self):
        """One image of six has a pixel that is taken for it."""
        counts = np.tile([[10, 15, 15], [10, 15, 15], [0, 0, 0]], (6, 1, 1))
        counts[0, 2] = [0, 0, 1]
        found = bootstrap_counts(counts, mean_iou)
        assert found.mean == found.low == found.high == pytest.approx(1 / 3)
        assert found.resamples == 1000

    def test_a_statistic_may_know_the_whole_or_be_built_in(self):
        scores = np.arange(1.0, 5)
        found = bootstrap_counts(scores, lambda sums, whole: sums / whole)
        assert found.mean == 1
        assert bootstrap_counts(scores, np.sqrt).mean == pytest.approx(10**0.5)

    @pytest.mark.parametrize(
        ("counts", "message"),
        [
            (np.zeros((4, 2, 3), int), "a finite number for all images together, got nan"),
            (np.zeros((0, 2, 3), int), "counts must be of one image at least"),
        ],
    )
    def test_what_is_refused(self, counts, message):
        with pytest.raises(ValueError, match=message):
            bootstrap_counts(counts, mean_iou)

    def test_others_are_refused(self):
        with pytest.raises(ValueError, match="same images and classes"):
            paired_bootstrap_counts(self.COUNTS, self.COUNTS[1:], mean_iou)
        for options, message in (({"seed": -1}, "seed"), ({"resamples": 0}, "resamples"), ({"level": 1}, "level")):
            with pytest.raises(ValueError, match=message):
                bootstrap_counts(self.COUNTS, mean_iou, **options)
