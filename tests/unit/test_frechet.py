"""Fréchet distances against independent numbers and closed forms, and what they do not depend on."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from support import read_golden

from difformer.analysis import (
    FeatureMoments,
    FeatureStatistics,
    bootstrap_frechet,
    check_image_count,
    frechet_distance,
    frechet_distance_of_features,
)

GOLDEN = {name: value.numpy() for name, value in read_golden("metrics/frechet")[0].items()}


def statistics(mean, covariance, count=None):
    return FeatureStatistics(torch.as_tensor(mean), torch.as_tensor(covariance), count)


def moments(features, sizes=None):
    found = FeatureMoments()
    for rows in [features] if sizes is None else np.split(features, np.cumsum(sizes)[:-1]):
        found.update(rows)
    return found.statistics()


def rows(seed, n=60, d=5, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + shift


def test_golden_numbers_of_many_images():
    """Origin: NumPy and SciPy in float64, equal to scipy's sqrtm, torchmetrics and torch-fidelity to 7e-13."""
    x, y = GOLDEN["full.x"], GOLDEN["full.y"]
    ours = [moments(x), moments(y)]
    for number, found in enumerate(ours, 1):
        np.testing.assert_allclose(found.mean, GOLDEN[f"full.mu{number}"], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(found.covariance, GOLDEN[f"full.sigma{number}"], rtol=1e-9, atol=1e-13)
    expected = float(GOLDEN["full.distance"])
    assert frechet_distance(*ours) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance_of_features(x, y) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(*ours) != pytest.approx(float(GOLDEN["full.distance_biased"]), rel=1e-4)


def test_golden_numbers_of_fewer_images_than_features():
    """Origin: nuclear norm in float64; mpmath with 40 digits agrees to 3e-9, the libraries to 4e-8."""
    x, y = GOLDEN["full.x"], GOLDEN["full.y"]
    for first, second, name in ((x[:20], y[:30], "rank_deficient"), (x[:20], y, "rank_deficient.mixed")):
        expected = float(GOLDEN[f"{name}.distance"])
        assert frechet_distance_of_features(first, second, allow_few=True) == pytest.approx(expected, rel=1e-8)
        ours = frechet_distance(moments(first), moments(second), allow_few=True)
        assert ours == pytest.approx(expected, rel=1e-6)
    assert frechet_distance_of_features(x[:20], x[:20], allow_few=True) == pytest.approx(0, abs=1e-9)


def test_golden_numbers_from_statistics():
    """Origin: as above; closed form for the diagonal one, eigenvalues from 1 to 1e-14 for the nearly singular."""
    given = [GOLDEN[f"nearly_singular.{name}"] for name in ("mu1", "sigma1", "mu2", "sigma2")]
    found = frechet_distance(statistics(*given[:2]), statistics(*given[2:]))
    assert found == pytest.approx(float(GOLDEN["nearly_singular.distance"]), rel=1e-6)
    given = [statistics(GOLDEN[f"diagonal.mu{i}"], np.diag(GOLDEN[f"diagonal.var{i}"])) for i in (1, 2)]
    assert frechet_distance(*given) == pytest.approx(float(GOLDEN["diagonal.distance"]), rel=1e-12)


def test_golden_numbers_far_from_zero():
    """Sums of products in float32 destroy a covariance at mean 1000."""
    x, y = GOLDEN["offset.x"], GOLDEN["offset.y"]
    expected = float(GOLDEN["offset.distance"])
    assert frechet_distance_of_features(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(moments(x, [7] * 28 + [4]), moments(y)) == pytest.approx(expected, rel=1e-9)


def test_golden_numbers_of_a_stream():
    sizes = GOLDEN["streaming.sizes"].tolist()
    x = GOLDEN["full.x"][: sum(sizes)]
    np.testing.assert_allclose(
        [part.astype(float).sum(axis=0) for part in np.split(x, np.cumsum(sizes)[:-1])], GOLDEN["streaming.sums"]
    )
    found = moments(x, sizes)
    np.testing.assert_allclose(found.mean, GOLDEN["streaming.mu"], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.covariance, GOLDEN["streaming.sigma"], rtol=1e-10, atol=1e-13)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 30), min_size=1, max_size=8), st.floats(-1e5, 1e5))
def test_a_stream_is_the_whole_whatever_its_batches_and_their_order(seed, sizes, shift):
    x = rows(seed, n=sum(sizes) + 1, shift=shift)
    whole = moments(x)
    scale = np.abs(np.cov(x.T)).max()
    shuffled = np.random.default_rng(seed).permutation(x)
    for found in (moments(x, [*sizes, 1]), moments(shuffled, [*sizes, 1])):
        np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(found.covariance, whole.covariance, rtol=1e-8, atol=1e-9 * scale)
    parts = FeatureMoments(), FeatureMoments()
    for one, part in zip(parts, np.split(x, [sizes[0]]), strict=True):
        one.update(part)
    parts[0].merge(parts[1])
    parts[0].merge(FeatureMoments())
    assert parts[0].count == len(x)
    np.testing.assert_allclose(parts[0].statistics().covariance, whole.covariance, rtol=1e-8, atol=1e-9 * scale)
    np.testing.assert_allclose(whole.covariance, np.cov(x.T), rtol=1e-8, atol=1e-9 * scale)


def test_batches_longer_than_a_chunk_are_taken_apart(monkeypatch):
    monkeypatch.setattr("difformer.analysis.frechet._CHUNK", 7)
    np.testing.assert_allclose(moments(rows(0)).covariance, np.cov(rows(0).T), rtol=1e-10)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 10))
def test_properties(seed, factor):
    x, y = rows(seed), rows(seed + 1, n=45, shift=1.0)
    distance = frechet_distance_of_features(x, y)
    assert distance == pytest.approx(frechet_distance_of_features(y, x), rel=1e-9)
    assert distance == pytest.approx(frechet_distance(moments(x), moments(y)), rel=1e-7)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(5, 5)))[0]
    moved = frechet_distance_of_features(x @ rotation + 3, y @ rotation + 3)
    assert moved == pytest.approx(distance, rel=1e-7)
    assert frechet_distance_of_features(factor * x, factor * y) == pytest.approx(factor**2 * distance, rel=1e-7)
    assert frechet_distance_of_features(x, x) == pytest.approx(0, abs=1e-9)
    shifted = frechet_distance_of_features(x, x + factor)
    assert shifted == pytest.approx(5 * factor**2, rel=1e-6, abs=1e-9)


def test_commuting_covariances_have_a_closed_form():
    """sum (s_i - t_i)² of the standard deviations along common axes (Dowson & Landau 1982)."""
    rng = np.random.default_rng(3)
    axes = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    s, t = rng.uniform(0, 3, 6), rng.uniform(0, 3, 6)
    s[0] = 0
    mean = rng.normal(size=6)
    found = frechet_distance(statistics(mean, axes * s**2 @ axes.T), statistics(np.zeros(6), axes * t**2 @ axes.T))
    # An eigenvalue of 0 is one of 1e-16 after rounding, and its root 1e-8.
    assert found == pytest.approx((mean**2).sum() + ((s - t) ** 2).sum(), rel=1e-7)


def test_scipy_agrees():
    x, y = rows(1, n=200, d=12), rows(2, n=150, d=12)
    a, b = np.cov(x.T), np.cov(y.T)
    root = np.trace(linalg.sqrtm(a @ b).real)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * root
    assert frechet_distance_of_features(x, y) == pytest.approx(expected, rel=1e-9)


def test_torchmetrics_agrees():
    from torchmetrics.image.fid import _compute_fid

    ours = [moments(rows(i, n=200, d=12)) for i in (4, 5)]
    expected = _compute_fid(ours[0].mean, ours[0].covariance, ours[1].mean, ours[1].covariance)
    assert frechet_distance(*ours) == pytest.approx(float(expected), rel=1e-9)


def test_the_interval_is_about_the_distance_of_as_many_images():
    """Of 40 pairs of sets, about 95 % of the intervals hold the mean of all distances."""
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(150, 3)), rng.normal(size=(120, 3)) * 1.5 + 0.5
        found.append(bootstrap_frechet(x, y, resamples=40, seed=seed))
    typical = np.mean([interval.mean for interval in found])
    assert np.mean([interval.low < typical < interval.high for interval in found]) >= 0.8
    assert all(interval.low < interval.mean < interval.high for interval in found)


def test_the_interval_follows_the_seed_and_may_leave_statistics_as_they_are():
    x, y = rows(0), rows(1, n=80)
    whole = bootstrap_frechet(x, y, resamples=20)
    assert whole == bootstrap_frechet(torch.from_numpy(x), torch.from_numpy(y), resamples=20)
    assert whole != bootstrap_frechet(x, y, resamples=20, seed=1)
    assert whole.mean == pytest.approx(frechet_distance_of_features(x, y), rel=1e-8)
    known = bootstrap_frechet(x, moments(y), resamples=20)
    assert known.mean == whole.mean
    assert known.high - known.low < whole.high - whole.low
    assert whole.resamples == 20
    assert bootstrap_frechet(x, x, resamples=20).low == 0


def test_few_images_are_refused_or_warned_of(caplog):
    x = rows(0, n=60, d=6)
    with caplog.at_level(logging.WARNING):
        frechet_distance_of_features(x, x)
        assert "60 images are few" not in caplog.text
        frechet_distance_of_features(x[:59], x)
        assert "59 images are few for a Fréchet distance of 6 features" in caplog.text
    message = "6 features needs more than 6 images on either side, better 60; there are 6"
    for call in (
        lambda: frechet_distance_of_features(x, x[:6]),
        lambda: frechet_distance(moments(x), moments(x[:6])),
        lambda: bootstrap_frechet(x[:6], x),
        lambda: check_image_count(6, 6, "samples"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FeatureMoments().statistics(), "at least two images, got 0"),
        (lambda: frechet_distance_of_features(rows(0), rows(0, d=4)), "must have 5 columns"),
        (lambda: frechet_distance(moments(rows(0)), moments(rows(0, d=4))), "same features, got 5 and 4"),
        (lambda: moments(rows(0).astype(int)), "must be floating-point"),
        (lambda: moments(np.full((3, 2), np.nan)), "must be finite"),
        (lambda: statistics(np.zeros(2), np.asarray([[1.0, 2], [0, 1]])), "must be symmetric"),
        (lambda: statistics(np.zeros(3), np.eye(2)), "must have 2 columns"),
        (lambda: statistics(np.zeros(2), np.ones((2, 3))), "square|columns"),
        (lambda: frechet_distance(*[statistics(np.zeros(2), -np.eye(2))] * 2), "no negative eigenvalues"),
        (lambda: bootstrap_frechet(rows(0), rows(1), resamples=0), "resamples"),
        (lambda: bootstrap_frechet(rows(0), rows(1), seed=-1), "seed must not be negative"),
        (lambda: bootstrap_frechet(rows(0), rows(1), level=1.0, resamples=2), "level"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_stream_of_another_width_is_refused():
    found = FeatureMoments()
    found.update(rows(0))
    with pytest.raises(ValueError, match="must have 5 columns as before, got 4"):
        found.update(rows(0, d=4))
