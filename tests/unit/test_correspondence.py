"""Corresponding points: features moved by hand, the protocol spelt out, and the share of points that is correct."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from difformer.analysis import match, pairs_pck


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def smooth(height, width, shift=(0.0, 0.0), waves=12):
    """(2 · waves, h, w) features that are functions of the place, and at (y, x) those of (y - shift, x - shift)."""
    y = torch.arange(height)[None, :, None] - shift[0]
    x = torch.arange(width)[None, None, :] - shift[1]
    rates = 0.35 * noise(waves, 2)
    phase = rates[:, 0, None, None] * y + rates[:, 1, None, None] * x
    return torch.cat([phase.sin(), phase.cos()])


def spelt_out(a, b, points, size_a, size_b):
    """Both maps enlarged whole, as in the published code; the points are centres of pixels."""
    one, other = (
        F.interpolate(maps[None].double(), size, mode="bilinear", align_corners=False)[0]
        for maps, size in ((a, size_a), (b, size_b))
    )
    queries = one[:, points[:, 1].long(), points[:, 0].long()]
    cosine = F.normalize(queries, dim=0).T @ F.normalize(other.flatten(1), dim=0)
    return cosine.unflatten(1, size_b)


class TestMatch:
    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 6), st.integers(1, 25), st.integers(1, 25))
    def test_the_protocol(self, seed, h, w, height, width):
        """Also where the image is smaller than the map, and the images differ in size."""
        a, b = noise(8, h, w, seed=seed), noise(8, w, h, seed=seed + 1)
        size_a, size_b = (height, width), (width + 3, height)
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        points = torch.stack([columns, rows], dim=-1).reshape(-1, 2)[::3] + 0.5
        found = match(a, b, points, size_a=size_a, size_b=size_b)
        cosine = spelt_out(a, b, points, size_a, size_b)
        x, y = found.points.long().T
        assert found.points.equal(torch.stack([x, y], dim=1) + 0.5)
        # Where two pixels are equally similar, to the rounding, either is right.
        best = cosine.flatten(1).amax(dim=1)
        torch.testing.assert_close(cosine[torch.arange(len(points)), y, x], best, rtol=0, atol=1e-6)
        torch.testing.assert_close(found.similarity.double(), best, rtol=0, atol=1e-6)
        assert found.mutual is None

    def test_chunks_change_nothing(self, monkeypatch):
        a, b, points = noise(5, 6, 7), noise(5, 6, 7, seed=1), noise(40, 2, seed=2).sigmoid() * 20
        whole = match(a, b, points, size_a=20, size_b=(24, 30), mutual=True, subpixel=True)
        monkeypatch.setattr("difformer.analysis.correspondence._CHUNK_ELEMENTS", 1000)
        parts = match(a, b, points, size_a=20, size_b=(24, 30), mutual=True, subpixel=True)
        assert parts.points.equal(whole.points)
        assert parts.mutual.equal(whole.mutual)

    def test_an_image_matches_itself(self):
        maps = noise(16, 8, 8)
        points = torch.tensor([[2.5, 3.5], [0.5, 29.5], [10.5, 20.5]])
        found = match(maps, maps, points, size_a=32, size_b=32, mutual=True)
        assert found.points.equal(points)
        torch.testing.assert_close(found.similarity, torch.ones(3))
        assert found.mutual.all()

    def test_what_is_moved_is_found_where_it_went(self):
        """By two positions down and three to the right, of 4 pixels each."""
        a = noise(16, 10, 10)
        b = torch.roll(a, (2, 3), dims=(1, 2))
        places = np.array([[3, 2], [0, 0], [5, 6]])
        found = match(a, b, 4.0 * places + 2.5, size_a=40, size_b=40, mutual=True)
        # The centre of a position lies between four pixels.
        assert (found.points - torch.from_numpy(4.0 * (places + np.array([3, 2])) + 2)).abs().max() <= 0.5
        assert found.mutual.all()

    @pytest.mark.parametrize("shift", [(0.0, 0.3), (0.4, -0.2), (-0.45, 0.45)])
    def test_between_pixels(self, shift):
        """Features that move by a part of a position: the parabola finds how far, to an eighth of it."""
        a, b = smooth(16, 16), smooth(16, 16, shift)
        points = torch.tensor([[40.0, 40.0], [72.0, 56.0], [88.0, 104.0]]) + 4
        wanted = points + 8 * torch.tensor(shift[::-1])
        one = match(a, b, points, size_a=128, size_b=128)
        other = match(a, b, points, size_a=128, size_b=128, subpixel=True)
        errors = [(found.points - wanted).norm(dim=1) for found in (one, other)]
        assert errors[1].max() < 1
        assert errors[1].mean() < 0.6 * errors[0].mean()

    def test_at_the_border_nothing_is_moved(self):
        a = smooth(4, 4)
        corners = torch.tensor([[0.5, 0.5], [31.5, 0.5], [0.5, 31.5], [31.5, 31.5]])
        found = match(a, a, corners, size_a=32, size_b=32, subpixel=True)
        assert found.points.equal(match(a, a, corners, size_a=32, size_b=32).points)

    def test_of_equal_pixels_the_first_is_found(self):
        """Beyond the centres of the last positions, at 30, a map that is enlarged does not change."""
        maps = noise(16, 8, 8)
        points = torch.tensor([[31.5, 31.5], [30.5, 31.5], [1.5, 0.5]])
        assert match(maps, maps, points, size_a=32, size_b=32).points.tolist() == [[30.5, 30.5]] * 2 + [[0.5, 0.5]]

    def test_a_way_that_does_not_lead_back(self):
        """Two places of a look like one of b, which looks most like the second."""
        a, b = torch.zeros(3, 1, 6), torch.zeros(3, 1, 6)
        a[:, 0, 0], a[:, 0, 5] = torch.tensor([1, 0.2, 0.0]), torch.tensor([1, 0, 0.0])
        a[2, 0, 1:5], b[1, 0] = 1, 1
        b[:, 0, 3] = torch.tensor([1, 0, 0.0])
        points = torch.tensor([[0.5, 0.5], [5.5, 0.5]])
        found = match(a, b, points, size_a=(1, 6), size_b=(1, 6), mutual=True)
        assert found.points.tolist() == [[3.5, 0.5], [3.5, 0.5]]
        assert found.mutual.tolist() == [False, True]

    def test_where_neighbours_cancel_out_rounding_is_no_likeness(self):
        """At 1.5, a quarter on the way from f to -3 f, nothing is left but 1e-10 of -f."""
        f = noise(4, 1, 1).double()
        b = torch.cat([f, -3 * (1 + 1e-10) * f], dim=2)
        found = match(-f, b, torch.full((1, 2), 0.5), size_a=1, size_b=(1, 4))
        assert found.points.tolist() == [[2.5, 0.5]]
        assert match(f, b, torch.full((1, 2), 0.5), size_a=1, size_b=(1, 4)).points.tolist() == [[0.5, 0.5]]

    def test_features_of_zeros_are_like_nothing(self):
        found = match(torch.zeros(3, 2, 2), noise(3, 2, 2), torch.full((1, 2), 1.0), size_a=4, size_b=4)
        assert (found.points.tolist(), found.similarity.tolist()) == ([[0.5, 0.5]], [0])

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 2**32))
    def test_the_scale_of_features_does_not_matter(self, seed):
        a, b, points = noise(6, 5, 5, seed=seed), noise(6, 5, 5, seed=seed + 1), noise(9, 2).sigmoid() * 20
        one = match(a, b, points, size_a=20, size_b=20)
        assert match(8 * a, b / 4, points, size_a=20, size_b=20).points.equal(one.points)

    def test_no_points(self):
        found = match(noise(3, 2, 2), noise(3, 2, 2), torch.zeros(0, 2), size_a=4, size_b=4, mutual=True, subpixel=True)
        assert (found.points.shape, found.similarity.shape, found.mutual.shape) == ((0, 2), (0,), (0,))

    def test_arrays_and_half_precision(self):
        a, b = noise(8, 4, 4), noise(8, 4, 4, seed=1)
        points = np.array([[3, 5], [12, 9]])
        halves = match(a.half(), b.half().numpy(), points, size_a=16, size_b=16)
        assert halves.points.dtype == torch.float32
        assert halves.points.equal(match(a.half().float(), b.half().float(), points, size_a=16, size_b=16).points)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"features_a": noise(8, 4)}, r"features_a must be floating-point numbers \(C, h, w\)"),
            ({"features_b": noise(7, 4, 4)}, "same channels, got 8 and 7"),
            ({"features_b": torch.full((8, 4, 4), torch.nan)}, r"features_b must be finite, got nan at .* \[0, 0, 0\]"),
            ({"features_a": torch.zeros(8, 4, 4).int()}, "got torch.int32"),
            ({"points": torch.tensor([[3.0, 17.0]])}, r"image of 16 × 20 pixels \(h × w\), got x, y = \[3.0, 17.0\]"),
            ({"points": torch.tensor([[1.0, 1.0], [-0.1, 0.0]])}, "for point 1"),
            ({"points": torch.tensor([[torch.nan, 0.0]])}, "got x, y = "),
            ({"points": torch.zeros(3)}, r"points must be of shape \(any, 2\), got \(3,\)"),
            ({"size_a": 0}, "size_a must be an integer of at least 1"),
            ({"size_b": (1, 2, 3)}, "size_b"),
        ],
    )
    def test_what_is_refused(self, changes, message):
        arguments = {"features_a": noise(8, 4, 4), "features_b": noise(8, 4, 4), "points": torch.zeros(1, 2)}
        with pytest.raises(ValueError, match=message):
            match(**(arguments | {"size_a": (16, 20), "size_b": 16} | changes))


class TestPairs:
    TRUE = (np.array([[10.0, 10], [50, 10]]), np.zeros((0, 2)), np.array([[5.0, 5]]))

    def test_a_small_case_worked_out(self):
        """One of two points is 10 pixels off, at a length of 100; the last is 10 off at 99."""
        found = [self.TRUE[0] + [[6, 8], [0, 11]], self.TRUE[1], self.TRUE[2] + [[10, 0]]]
        scores = pairs_pck(found, self.TRUE, np.array([100, 50, 99.0]))
        np.testing.assert_array_equal(scores.per_pair, [0.5, np.nan, 0])
        assert (scores.per_image, scores.per_point) == (0.25, pytest.approx(1 / 3))
        assert pairs_pck(found, self.TRUE, np.array([100, 50, 99.0]), alpha=0.2).per_point == 1

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"predicted": TRUE[:2]}, "same pairs, got 2 and 3"),
            ({"predicted": (TRUE[2], *TRUE[1:])}, r"points of pair 0 must be of shape \(2, 2\), got \(1, 2\)"),
            ({"predicted": (TRUE[0] * np.nan, *TRUE[1:])}, "of pair 0 must be finite"),
            ({"lengths": np.array([1, 1, 0.0])}, "lengths must be above 0, got 0.0"),
            ({"lengths": np.array([1, 1, np.nan])}, "length of pair 2 must be finite"),
            ({"lengths": np.ones(2)}, "lengths must be of shape"),
            ({"predicted": TRUE[1:2], "true": TRUE[1:2], "lengths": np.ones(1)}, "none of 1 pairs has points"),
            ({"alpha": 0}, "alpha"),
        ],
    )
    def test_what_is_refused(self, changes, message):
        arguments = {"predicted": self.TRUE, "true": self.TRUE, "lengths": np.ones(3)}
        with pytest.raises(ValueError, match=message):
            pairs_pck(**(arguments | changes))


@pytest.mark.gpu
def test_on_cuda_the_matches_are_the_same():
    a, b, points = noise(8, 6, 6), noise(8, 6, 6, seed=1), noise(50, 2, seed=2).sigmoid() * 48
    options = {"size_a": 48, "size_b": 60, "subpixel": True, "mutual": True}
    found, wanted = match(a.cuda(), b, points, **options), match(a, b, points, **options)
    assert found.points.is_cuda
    torch.testing.assert_close(found.points.cpu(), wanted.points)
    assert found.mutual.cpu().equal(wanted.mutual)
