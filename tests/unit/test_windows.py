"""Windows that slide over an image: what they cover, and the mean of what is found in them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from difformer.tasks.segmentation import average_windows, windows_of

SIZES = st.integers(1, 40)


def image_of(height, width, channels=2):
    return torch.randn(channels, height, width, generator=torch.Generator().manual_seed(height * 100 + width))


def whole(windows, logits):
    return torch.cat([strip for _, strip in average_windows(windows, logits)], dim=1)


class TestWindows:
    @settings(max_examples=100, deadline=None)
    @given(SIZES, SIZES, SIZES, SIZES, st.floats(0.05, 1))
    def test_equal_windows_cover_every_pixel(self, height, width, h, w, stride):
        windows = windows_of(height, width, (h, w), stride=stride)
        assert windows.padded == (max(height, h), max(width, w))
        covered = torch.zeros(windows.padded, dtype=torch.int64)
        for number in range(len(windows.corners)):
            part = windows.crop(covered, number)
            assert part.shape == (h, w)
            part += 1
        assert (covered > 0).all()
        assert len(set(windows.corners)) == len(windows.corners)
        assert list(windows.corners) == sorted(windows.corners)

    @pytest.mark.parametrize(
        ("length", "starts"),
        [(512, [0]), (513, [0, 1]), (853, [0, 341]), (854, [0, 341, 342]), (1194, [0, 341, 682]), (100, [0])],
    )
    def test_starts_of_mmsegmentation(self, length, starts):
        """Stride 341 of 512: as many as ceil((length - 512) / 341) + 1, the last moved back into the image."""
        assert [top for top, _ in windows_of(length, 512, 512).corners] == starts

    def test_two_thirds_of_what_three_divides(self):
        for third in range(1, 700):
            assert windows_of(9 * third, 3 * third, 3 * third).corners[1][0] == 2 * third

    def test_a_square_is_one_number(self):
        assert windows_of(20, 30, 8) == windows_of(20, 30, (8, 8))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [((0, 5, 3), "height"), ((5, 2.5, 3), "width"), ((5, 5, 0), "window must be an integer of at least 1"),
         ((5, 5, (1, 2, 3)), "window")],
    )  # fmt: skip
    def test_sizes_that_are_refused(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            windows_of(*arguments)

    @pytest.mark.parametrize("stride", [0, -1, 1.1, float("nan"), "2/3"])
    def test_strides_that_are_refused(self, stride):
        with pytest.raises(ValueError, match="stride must be a number above 0 and at most 1"):
            windows_of(5, 5, 3, stride=stride)


class TestPadding:
    @settings(max_examples=40, deadline=None)
    @given(SIZES, SIZES, st.integers(1, 50))
    def test_it_mirrors_as_numpy_does(self, height, width, window):
        image, windows = image_of(height, width), windows_of(height, width, window)
        after = [(0, 0), *((0, max(0, window - side)) for side in (height, width))]
        np.testing.assert_array_equal(windows.pad(image), np.pad(image.numpy(), after, mode="reflect"))

    def test_a_large_image_is_left_as_it_is(self):
        image = image_of(9, 12)
        assert windows_of(9, 12, 9).pad(image) is image

    def test_any_number_of_axes(self):
        windows = windows_of(2, 3, 4)
        assert windows.pad(torch.zeros(2, 3)).shape == (4, 4)
        assert windows.pad(torch.zeros(5, 6, 2, 3, dtype=torch.uint8)).shape == (5, 6, 4, 4)

    def test_other_sizes_are_refused(self):
        windows = windows_of(2, 3, 4)
        with pytest.raises(ValueError, match=r"2 × 3 pixels \(h × w\), as its windows are, got \(1, 3, 2\)"):
            windows.pad(torch.zeros(1, 3, 2))
        with pytest.raises(ValueError, match=r"padded size \(4, 4\), got \(1, 2, 3\)"):
            windows.crop(torch.zeros(1, 2, 3), 0)


class TestAverage:
    @settings(max_examples=60, deadline=None)
    @given(SIZES, SIZES, st.integers(1, 20), st.integers(1, 20), st.floats(0.2, 1))
    def test_of_crops_it_is_the_image(self, height, width, h, w, stride):
        image, windows = image_of(height, width), windows_of(height, width, (h, w), stride=stride)
        padded = windows.pad(image)
        found = whole(windows, (windows.crop(padded, number) for number in range(len(windows.corners))))
        torch.testing.assert_close(found, image)

    @settings(max_examples=40, deadline=None)
    @given(SIZES, SIZES, st.integers(1, 20), st.floats(0.2, 1))
    def test_it_is_the_mean_at_each_pixel(self, height, width, window, stride):
        windows = windows_of(height, width, window, stride=stride)
        rng = torch.Generator().manual_seed(0)
        maps = torch.randn(len(windows.corners), 3, window, window, generator=rng)
        total, hits = torch.zeros(3, *windows.padded), torch.zeros(windows.padded)
        for number, one in enumerate(maps):
            windows.crop(total, number).add_(one)
            windows.crop(hits, number).add_(1)
        torch.testing.assert_close(whole(windows, maps), (total / hits)[:, :height, :width])

    def test_one_window_is_the_whole_pass(self):
        maps = image_of(5, 6, 4)
        assert whole(windows_of(20, 24, (20, 24)), [maps]).equal(
            F.interpolate(maps[None], (20, 24), mode="bilinear", align_corners=False)[0]
        )

    def test_a_function_of_single_pixels_does_not_see_windows(self):
        image, weights = image_of(33, 47, 3), torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
        windows = windows_of(33, 47, 16)
        crops = (windows.crop(image, number) for number in range(len(windows.corners)))
        found = whole(windows, (torch.einsum("kc,chw->khw", weights, crop) for crop in crops))
        torch.testing.assert_close(found, torch.einsum("kc,chw->khw", weights, image))

    @settings(max_examples=40, deadline=None)
    @given(SIZES, SIZES, st.integers(1, 20), st.floats(0.2, 1))
    def test_strips_follow_each_other_and_come_early(self, height, width, window, stride):
        """Each as soon as the last window that reaches it is there, and no window is asked for before."""
        windows = windows_of(height, width, window, stride=stride)
        asked = []

        def maps():
            for top, _ in windows.corners:
                asked.append(top)
                yield torch.zeros(1, window, window)

        row = 0
        for begin, strip in average_windows(windows, maps()):
            assert begin == row
            assert strip.shape == (1, strip.shape[1], width)
            row += strip.shape[1]
            assert asked[-1] <= begin
        assert row == height

    def test_the_memory_is_a_row_and_two_strips(self):
        """And the window that is added, and single rows of pixels."""
        windows = windows_of(400, 1000, 60)
        maps = (torch.ones(6, 60, 60) for _ in windows.corners)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            for _, strip in average_windows(windows, maps):
                assert (strip == 1).all()
        held, peak = 0, 0
        for event in profile.profiler.kineto_results.events():
            held += event.nbytes() if event.name() == "[memory]" else 0
            peak = max(peak, held)
        row, hits, strip = 4 * 6 * 60 * 1000, 4 * 60 * 1000, 4 * 6 * 40 * 1000
        window = 4 * 6 * 60 * 60
        assert row + hits + strip < peak <= row + 2 * hits + strip + row + 2 * window

    def test_gradients(self):
        """Of the sum, that of each place is one over the windows that show it."""
        windows = windows_of(7, 9, 4, stride=0.4)
        maps = torch.ones(len(windows.corners), 2, 4, 4, requires_grad=True)
        whole(windows, maps).sum().backward()
        hits = torch.zeros(windows.padded)
        for number in range(len(maps)):
            windows.crop(hits, number).add_(1)
        for number, one in enumerate(maps.grad):
            torch.testing.assert_close(one, (1 / windows.crop(hits, number)).expand(2, 4, 4))

    def test_halves_are_added_in_float32(self):
        windows = windows_of(6, 6, 4)
        found = whole(windows, [torch.full((2, 4, 4), 0.1, dtype=torch.bfloat16)] * 4)
        assert found.dtype == torch.float32
        assert found.flatten().tolist() == [torch.tensor(0.1).bfloat16().item()] * 72

    @pytest.mark.parametrize(
        ("maps", "message"),
        [
            ([torch.zeros(2, 4, 4)] * 3, r"must be 4 maps \(K, h, w\) with one K, got none for window 3"),
            ([torch.zeros(2, 4, 4)] * 5, "4 maps, one a window, got more"),
            ([torch.zeros(2, 4, 4), torch.zeros(3, 4, 4)], r"got \(3, 4, 4\) for window 1"),
            ([torch.zeros(4, 4)], r"got \(4, 4\) for window 0"),
            ([], "got none for window 0"),
        ],
    )
    def test_maps_that_are_refused(self, maps, message):
        with pytest.raises(ValueError, match=message):
            whole(windows_of(6, 6, 4), maps)
