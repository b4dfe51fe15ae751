"""Which batches are timed, by a clock that the test sets."""

import math

import pytest

from difformer.engine.cost import timing
from difformer.engine.cost.timing import seconds_per_image


class Device:
    """Takes so many seconds an image and so many at the start of a batch, and many times as long for the first batch of
    each size."""

    def __init__(self, seconds, cold=100.0, delays=(), start=0.0):
        self.now = 0.0
        self.counts = []
        self._seconds, self._cold, self._delays, self._start = seconds, cold, list(delays), start

    def __call__(self, count):
        factor = 1.0 if count in self.counts else self._cold
        self.counts.append(count)
        late = self._delays.pop(0) if self._delays else 0.0
        self.now += (self._start + count * self._seconds) * factor + late


@pytest.fixture
def timed(monkeypatch):
    def measure(device, most, **options):
        class Clock:
            def __init__(self):
                self.start = device.now

            @property
            def seconds(self):
                return device.now - self.start

        monkeypatch.setattr(timing, "Clock", Clock)
        return seconds_per_image(device, most, **options)

    return measure


def test_the_first_pass_of_a_size_does_not_count(timed):
    device = Device(0.001)
    assert timed(device, 64) == pytest.approx(0.001)
    assert device.counts == [2, 2, 8, 8, 32, 32, 64, 64, 64, 64]


@pytest.mark.parametrize("most", [1, 2, 3, 9])
def test_batches_are_no_larger_than_is_meant(timed, most):
    device = Device(0.001)
    assert timed(device, most) == pytest.approx(0.001)
    assert max(device.counts) == most


def test_the_fastest_pass_counts(timed):
    device = Device(0.001, delays=[0, 0, 0, 0, 0, 0, 0, 3.0, 0, 1.0])
    assert timed(device, 64) == pytest.approx(0.001)
    assert len(device.counts) == 10


def test_what_takes_long_is_measured_on_few_images(timed):
    for seconds, most in ((50.0, 2), (5.0, 2), (1.0, 8), (0.4, 32)):
        device = Device(seconds, cold=1.0)
        assert timed(device, 64) == pytest.approx(seconds)
        assert max(device.counts) == most
        assert device.now <= max(30, 2 * seconds)


def test_what_a_batch_takes_however_small_is_not_counted_for_each_image(timed):
    """As on a machine that does other work."""
    device = Device(0.05, cold=1.0, start=3.0)
    assert timed(device, 128) == pytest.approx((3.0 + 128 * 0.05) / 128)
    assert max(device.counts) < 128


def test_noise_gives_no_negative_time(timed):
    device = Device(0.01, cold=1.0, delays=[9.0, 9.0])
    assert timed(device, 128) > 0


def test_without_a_limit_the_passes_are_always_the_same(timed):
    counts = []
    for seconds in (0.001, 50.0):
        device = Device(seconds)
        timed(device, 64, budget=math.inf)
        counts.append(device.counts)
    assert counts == [[2, 2, 8, 8, 32, 32, 64, 64, 64, 64]] * 2
