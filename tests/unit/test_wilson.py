"""Intervals of shares."""

import numpy as np
import pytest
from scipy.stats import binomtest

from difformer.analysis import images_of_equal_weight, share_interval


@pytest.mark.parametrize(("hits", "count"), [(68, 72), (0, 5), (5, 5), (813, 1000)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_it_is_wilsons(hits, count, level):
    expected = binomtest(hits, count).proportion_ci(level, method="wilson")
    assert share_interval(hits / count, count, level=level) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_classes_of_equal_weight_count_as_their_mean_varies():
    assert images_of_equal_weight(np.repeat([3, 5, 9], 20)) == pytest.approx(60)
    labels = np.repeat([0, 1], [90, 10])
    hits = np.random.default_rng(0).random((20_000, 100)) < 0.7
    means = (hits[:, labels == 0].mean(axis=1) + hits[:, labels == 1].mean(axis=1)) / 2
    assert 0.7 * 0.3 / images_of_equal_weight(labels) == pytest.approx(means.var(), rel=0.03)


@pytest.mark.parametrize("wrong", [(1.2, 5), (-0.1, 5), (0.5, 0), (float("nan"), 5)])
def test_what_is_no_share_is_refused(wrong):
    with pytest.raises(ValueError, match="a share in \\[0, 1\\] of more than 0 images"):
        share_interval(*wrong)
