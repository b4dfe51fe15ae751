"""Nearest images against what is plain to see."""

import numpy as np
import pytest
import torch

from difformer.analysis import nearest_images, precision_at_k
from difformer.analysis import retrieval as module


def test_neighbours_by_angle():
    angles = np.deg2rad([0, 10, 30, 90, 100])
    lengths = np.array([1, 5, 0.1, 2, 3])
    rows = np.c_[np.cos(angles), np.sin(angles)] * lengths[:, None]
    assert nearest_images(rows, 2).tolist() == [[1, 2], [0, 2], [1, 0], [4, 2], [3, 2]]


def test_parts_at_a_time_are_the_whole(monkeypatch):
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    whole = nearest_images(rows, 5)
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 150)
    assert nearest_images(rows, 5).equal(whole)
    assert not (whole == torch.arange(50)[:, None]).any()


def test_precision_counts_neighbours_of_the_same_class():
    rows = np.array([[1, 0], [1, 0.1], [1, 0.2], [0, 1], [0.1, 1]])
    labels = np.array([0, 0, 1, 2, 2])
    # The nearest are 1, 2, 1, 4 and 3.
    assert precision_at_k(rows, labels, [1])[1] == pytest.approx(3 / 5)
    random = np.random.default_rng(0)
    found = precision_at_k(random.normal(size=(2000, 20)), random.integers(0, 4, 2000), [5, 10])
    assert found == pytest.approx({5: 0.25, 10: 0.25}, abs=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: nearest_images(x, 4), "less than the number of images, 4; got 4"),
        (lambda x, y: precision_at_k(x, y, []), "at least one number"),
        (lambda x, y: precision_at_k(x, y[:2], [1]), "labels must be 4 integers"),
        (lambda x, y: nearest_images(x * np.nan, 1), "features must be finite"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.eye(4), np.arange(4))
