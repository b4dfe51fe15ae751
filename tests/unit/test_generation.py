"""Kernel distance, precision and recall, density and coverage, Inception score: golden numbers, properties, oracles."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import pairwise_distances
from sklearn.metrics.pairwise import polynomial_kernel
from support import read_golden

from difformer.analysis import (
    InceptionScore,
    KernelDistance,
    inception_score,
    kernel_distance,
    kernel_distance_in_blocks,
    neighbour_radii,
    neighbourhoods,
)


def golden(name):
    return {key: value.numpy() for key, value in read_golden(f"metrics/{name}")[0].items()}


def rows(seed, n=40, d=6, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1, (n, d))


class TestKernelDistance:
    def test_golden_numbers(self):
        """Origin: own arithmetic in float64, equal to torch-fidelity, torchmetrics and scikit-learn's kernel to 5e-15;
        tolerance relative to the mean of k(x, x)."""
        known = golden("kid")
        x, y = known["x"], known["y"]
        assert kernel_distance(x, y) == pytest.approx(float(known["full.unbiased"]), abs=1e-9)
        assert kernel_distance(x, y, unbiased=False) == pytest.approx(float(known["full.biased"]), abs=1e-9)
        assert kernel_distance(x[:100], x[100:]) == pytest.approx(float(known["null.unbiased"]), abs=1e-9)
        pairs = zip(known["subset.x"], known["subset.y"], strict=True)
        blocks = np.asarray([kernel_distance(x[a], y[b]) for a, b in pairs])
        np.testing.assert_allclose(blocks, known["blocks"], atol=1e-9)
        found = KernelDistance(blocks, 50)
        assert found.mean == pytest.approx(float(known["blocks.mean"]), abs=1e-9)
        assert found.standard_error == pytest.approx(float(known["blocks.standard_error"]), abs=1e-9)

    def test_scikit_learn_agrees(self):
        x, y = rows(0), rows(1, n=30, shift=0.3)
        own = [polynomial_kernel(a, degree=3, gamma=1 / 6, coef0=1) for a in (x, y)]
        cross = polynomial_kernel(x, y, degree=3, gamma=1 / 6, coef0=1).mean()
        within = sum((kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1)) for kernel in own)
        assert kernel_distance(x, y) == pytest.approx(within - 2 * cross, rel=1e-10)

    def test_torchmetrics_agrees(self):
        from torchmetrics.image.kid import poly_mmd

        x, y = torch.from_numpy(rows(0)), torch.from_numpy(rows(1, shift=0.3))
        assert kernel_distance(x, y) == pytest.approx(float(poly_mmd(x, y)), rel=1e-9)

    def test_chunks_and_order_do_not_matter(self, monkeypatch):
        x, y = rows(0), rows(1, n=30)
        whole = kernel_distance(x, y)
        monkeypatch.setattr("difformer.analysis.generation._ELEMENTS", 64)
        assert kernel_distance(x[::-1].copy(), y) == pytest.approx(whole, rel=1e-9, abs=1e-12)
        assert kernel_distance(y, x) == pytest.approx(whole, rel=1e-9, abs=1e-12)

    def test_no_bias(self):
        """Over many pairs of samples of one distribution, the mean is 0 within its error."""
        found = np.asarray([kernel_distance(rows(2 * i, n=10), rows(2 * i + 1, n=10)) for i in range(300)])
        assert abs(found.mean()) < 3 * found.std() / 300**0.5
        assert (found < 0).any()

    def test_blocks_tell_the_error(self):
        """The standard error is the spread of the mean over independent samples."""
        found = [kernel_distance_in_blocks(rows(2 * i, n=100), rows(2 * i + 1, n=100, shift=0.2)) for i in range(80)]
        spread = np.std([one.mean for one in found])
        assert np.mean([one.standard_error for one in found]) == pytest.approx(spread, rel=0.3)
        assert {(len(one.blocks), one.block_size) for one in found} == {(10, 10)}

    def test_blocks_take_all_images_of_the_larger_set(self):
        x, y = rows(0, n=20), rows(1, n=100)
        found = kernel_distance_in_blocks(x, y, block_size=20)
        assert found.blocks.tolist() == [pytest.approx(kernel_distance(x, y), rel=1e-9)]
        assert np.isnan(found.standard_error)
        several = kernel_distance_in_blocks(x, y, block_size=5)
        assert len(several.blocks) == 4
        assert several.mean != kernel_distance_in_blocks(x, y, block_size=5, seed=1).mean
        np.testing.assert_array_equal(several.blocks, kernel_distance_in_blocks(x, y, block_size=5).blocks)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: kernel_distance(rows(0), rows(0, d=5)), "must have 6 columns"),
            (lambda: kernel_distance(rows(0), rows(0, n=1)), "at least two images a side, got 40 and 1"),
            (lambda: kernel_distance_in_blocks(rows(0), rows(1), block_size=41), "at most the 40 images"),
            (lambda: kernel_distance_in_blocks(rows(0), rows(1), block_size=1), "at least 2"),
            (lambda: kernel_distance_in_blocks(rows(0), rows(1), seed=-1), "seed must not be negative"),
            (lambda: kernel_distance(rows(0).astype(int), rows(0)), "must be floating-point"),
        ],
    )
    def test_wrong_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


class TestNeighbourhoods:
    @pytest.mark.parametrize("k", [3, 5])
    def test_golden_numbers(self, k):
        """Origin: own arithmetic in float64, equal to prdc (2e-16), torch-fidelity and ADM's evaluator."""
        known = golden("precision_recall")
        real, fake = known["real"], known["fake"]
        for name, features in (("real", real), ("fake", fake)):
            np.testing.assert_allclose(neighbour_radii(features, k), known[f"k{k}.radii.{name}"], rtol=1e-12)
        found = neighbourhoods(fake, real, k=k)
        for name in ("precision", "recall", "coverage"):
            assert getattr(found, name) == float(known[f"k{k}.{name}"]), name
        assert found.density == pytest.approx(float(known[f"k{k}.density"]), rel=1e-12)

    def test_golden_numbers_of_copies(self):
        known = golden("precision_recall")
        found = neighbourhoods(known["duplicates.fake"], known["duplicates.real"], k=3)
        for name in ("precision", "recall", "coverage", "density"):
            assert getattr(found, name) == pytest.approx(float(known[f"duplicates.k3.le.{name}"]), rel=1e-12), name
            # The other convention gives other numbers where images are copies.
        assert found.precision != float(known["duplicates.k3.lt.precision"])

    def test_by_definition(self):
        fake, real = rows(0), rows(1, n=50, shift=0.5)
        own = [np.sort(pairwise_distances(one), axis=1)[:, 2] for one in (fake, real)]
        between = pairwise_distances(fake, real)
        found = neighbourhoods(fake, real, k=2)
        np.testing.assert_array_equal(found.near_reference, (between <= own[1]).sum(axis=1))
        np.testing.assert_array_equal(found.near_sample, (between <= own[0][:, None]).any(axis=0))
        np.testing.assert_array_equal(found.covered, (between <= own[1]).any(axis=0))

    def test_the_same_set_and_one_far_away(self):
        same = neighbourhoods(rows(0), rows(0))
        assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
        away = neighbourhoods(rows(0, shift=100), rows(1))
        assert (away.precision, away.recall, away.density, away.coverage) == (0, 0, 0, 0)

    def test_copies_far_from_zero_are_copies(self):
        """In products of float32, these have distances of up to 0.02."""
        real = (rows(0) + 1000).astype(np.float32)
        real = np.concatenate([real] * 4)
        assert not neighbour_radii(real, 3).any()
        found = neighbourhoods(real[:20], real, k=3)
        assert (found.precision, found.density, found.coverage) == (1, 4 / 3, 0.5)

    def test_chunks_and_order_do_not_matter(self, monkeypatch):
        fake, real = rows(0), rows(1, n=50)
        whole = neighbourhoods(fake, real)
        monkeypatch.setattr("difformer.analysis.generation._ELEMENTS", 150)
        parts = neighbourhoods(fake[::-1].copy(), real)
        np.testing.assert_array_equal(parts.near_reference[::-1], whole.near_reference)
        np.testing.assert_array_equal(parts.near_sample, whole.near_sample)
        np.testing.assert_array_equal(parts.covered, whole.covered)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: neighbourhoods(rows(0), rows(0, d=5)), "must have 6 columns"),
            (lambda: neighbourhoods(rows(0, n=3), rows(0)), "the 3-th neighbour needs more than 3 images, got 3"),
            (lambda: neighbour_radii(rows(0), 0), "k must be"),
            (lambda: neighbour_radii(np.full((5, 2), np.inf), 1), "must be finite"),
        ],
    )
    def test_wrong_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


class TestInceptionScore:
    def test_golden_numbers(self):
        """Origin: own arithmetic in float64, equal to torch-fidelity and scipy's entropy to 5e-16."""
        known = golden("inception_score")
        for size in (50, 100, 250):
            found = inception_score(known["logits"], split_size=size)
            np.testing.assert_allclose(found, known[f"split{size}.scores"], rtol=1e-10)
            assert found.mean() == pytest.approx(float(known[f"split{size}.mean"]), rel=1e-10)
            assert found.std() == pytest.approx(float(known[f"split{size}.std_ddof0"]), rel=1e-8, abs=1e-12)

    def test_probabilities_that_are_zero(self):
        found = inception_score(golden("inception_score")["peaked.logits"], split_size=40)
        assert found.tolist() == [pytest.approx(8, rel=1e-10)]

    def test_closed_forms(self):
        """As many as the classes where each image is surely one of them, 1 where all images are alike."""
        sure = np.eye(7).repeat(3, axis=0) * 1e4
        assert inception_score(sure).tolist() == [pytest.approx(7, rel=1e-12)]
        assert inception_score(np.tile(rows(0, n=1), (9, 1))).tolist() == [pytest.approx(1, abs=1e-12)]

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 10**6), st.integers(1, 25), st.lists(st.integers(1, 20), min_size=1, max_size=5))
    def test_a_stream_is_the_whole(self, seed, split_size, sizes):
        logits = rows(seed, n=sum(sizes)) * 3
        score = InceptionScore(split_size)
        for part in np.split(logits, np.cumsum(sizes)[:-1]):
            score.update(part)
        expected = [
            inception_score(logits[i : i + split_size], split_size=split_size)[0]
            for i in range(0, len(logits), split_size)
        ]
        np.testing.assert_allclose(score.compute(), expected, rtol=1e-10)
        assert (score.compute() >= 1 - 1e-12).all()

    def test_wrong_input(self):
        with pytest.raises(ValueError, match="there was no image yet"):
            InceptionScore().compute()
        with pytest.raises(ValueError, match="split_size must be"):
            InceptionScore(0)
        with pytest.raises(ValueError, match="must be finite"):
            inception_score(np.full((3, 2), np.nan))
