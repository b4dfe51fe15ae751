"""Which batches are timed, by a clock that the test sets."""

import math

import pytest

from difformer.engine.cost import timing
from difformer.engine.cost.timing import seconds_per_image


class Device:
    """Takes so many seconds an image, and many times as long for the first batch of each size."""

    def __init__(self, seconds, cold=100.0, delays=()):
        self.now = 0.0
        self.counts = []
        self._seconds, self._cold, self._delays = seconds, cold, list(delays)

    def __call__(self, count):
        factor = 1.0 if count in self.counts else self._cold
        self.counts.append(count)
        late = self._delays.pop(0) if self._delays else 0.0
        self.now += count * self._seconds * factor + late


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
    assert device.counts == [2, 2, 64, 64, 64, 64]


def test_batches_are_no_larger_than_is_meant(timed):
    for most in (1, 2, 3):
        device = Device(0.001)
        assert timed(device, most) == pytest.approx(0.001)
        assert max(device.counts) == most


def test_the_fastest_pass_counts(timed):
    device = Device(0.001, delays=[0, 0, 0, 3.0, 0, 1.0])
    assert timed(device, 64, budget=20) == pytest.approx(0.001)
    assert len(device.counts) == 6


def test_what_takes_long_is_measured_on_few_images(timed):
    device = Device(5.0, cold=1.0)
    assert timed(device, 64) == pytest.approx(5.0)
    assert device.counts == [2, 2]
    device = Device(0.1, cold=1.0)
    assert timed(device, 64) == pytest.approx(0.1)
    # As many at once as can be passed four times in the 9.6 seconds that are left.
    assert device.counts[2:4] == [23, 23] or device.counts[2:4] == [24, 24]
    assert device.now < 10


def test_without_a_limit_the_passes_are_always_the_same(timed):
    counts = []
    for seconds in (0.001, 50.0):
        device = Device(seconds)
        timed(device, 64, budget=math.inf)
        counts.append(device.counts)
    assert counts == [[2, 2, 64, 64, 64, 64]] * 2
