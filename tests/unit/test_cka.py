"""CKA and CKNNA against their definitions, and what they do not depend on."""

import itertools
from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode

from difformer.analysis import MinibatchCKA, cka, cknna

KINDS = [
    {"kernel": "linear", "debiased": True},
    {"kernel": "linear", "debiased": False},
    {"kernel": "rbf", "debiased": True},
    {"kernel": "rbf", "debiased": False, "bandwidth": 0.5},
]


def pair(seed, n=12, d=5, e=7):
    """Two representations with something in common."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, 3))
    return tuple(common @ rng.normal(size=(3, width)) + 0.5 * rng.normal(size=(n, width)) for width in (d, e))


def rotation(seed, width):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


def unbiased_by_definition(left, right):
    """The mean over all quadruples of different images (Song et al. 2012, eq. 4)."""
    terms = [
        left[i, j] * (right[i, j] + right[k, m] - 2 * right[i, k])
        for i, j, k, m in itertools.permutations(range(len(left)), 4)
    ]
    return np.mean(terms)


def test_the_debiased_estimate_is_the_mean_over_quadruples():
    x, y = pair(0, n=7)
    grams = [rows @ rows.T for rows in (x, y)]
    cross, *own = (unbiased_by_definition(a, b) for a, b in ((grams[0], grams[1]), *((g, g) for g in grams)))
    assert cka(x, y) == pytest.approx(cross / np.sqrt(own[0] * own[1]), rel=1e-9)


def test_the_biased_estimate_is_that_of_centred_features():
    x, y = (rows - rows.mean(axis=0) for rows in pair(1))
    expected = np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert cka(x + 3, y - 1, debiased=False) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [4, 5, 6, 7, 8])
def test_the_rbf_kernel_measures_distances_against_their_median(n):
    """Of an even number of pairs, as 4, 5 and 8 images have, it is the mean of the two in the middle."""
    x, y = pair(2, n=n)
    grams = []
    for rows in (x, y):
        distances = np.array([[np.linalg.norm(a - b) for b in rows] for a in rows])
        width = 0.7 * np.median([distances[i, j] for i in range(n) for j in range(i)])
        grams.append(np.exp(-((distances / width) ** 2) / 2))
    cross, *own = (unbiased_by_definition(a, b) for a, b in ((grams[0], grams[1]), *((g, g) for g in grams)))
    assert cka(x, y, kernel="rbf", bandwidth=0.7) == pytest.approx(cross / np.sqrt(own[0] * own[1]), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), scale=st.floats(0.01, 100), shift=st.floats(-3, 3))
def test_rotating_scaling_and_shifting_change_nothing(kind, seed, scale, shift):
    x, y = pair(seed)
    assert cka(x, x, **kind) == pytest.approx(1)
    found = cka(x, y, **kind)
    assert cka(y, x, **kind) == pytest.approx(found)
    assert cka(scale * (x @ rotation(seed, 5)) + shift, y, **kind) == pytest.approx(found, rel=1e-5, abs=1e-7)
    order = np.random.default_rng(seed).permutation(len(x))
    assert cka(x[order], y[order], **kind) == pytest.approx(found)


def test_independent_wide_features_are_unlike_only_without_the_bias():
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(50, 2000)) for _ in range(2))
    assert cka(x, y, debiased=False) > 0.9
    assert abs(cka(x, y)) < 0.05


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_batches_estimate_what_all_images_give(kernel):
    x, y = (torch.from_numpy(rows) for rows in pair(3, n=4000, d=20, e=30))
    whole = cka(x, y, kernel=kernel)
    found = MinibatchCKA(kernel=kernel)
    for rows in torch.randperm(4000, generator=torch.Generator().manual_seed(0)).split(500):
        found.update({"x": x[rows]}, {"y": y[rows]})
    assert found.compute().item() == pytest.approx(whole, abs=1e-3)


def test_all_pairs_at_once_are_the_pairs_alone():
    x, y = pair(4)
    z = x[:, :2] ** 2
    found = MinibatchCKA()
    found.update({"x": x, "y": y, "z": z})
    matrix = found.compute()
    for (i, one), (j, other) in itertools.product(enumerate((x, y, z)), repeat=2):
        assert float(matrix[i, j]) == pytest.approx(cka(one, other))
    across = MinibatchCKA()
    across.update({"x": x, "y": y}, {"z": z})
    torch.testing.assert_close(across.compute(), matrix[:2, 2:])


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_constant_is_like_nothing(kind):
    x, _ = pair(5)
    assert np.isnan(cka(x, np.ones((12, 3)), **kind))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), k=st.integers(3, 11))
def test_cknna_counts_near_images(seed, k):
    x, y = pair(seed)
    assert cknna(x, x, k=k) == pytest.approx(1)
    assert cknna(2 * x @ rotation(seed, 5), y, k=k) == pytest.approx(cknna(x, y, k=k), rel=1e-6)
    assert cknna(x, y, k=11) == pytest.approx(cka(x, y))


def test_cknna_by_its_definition():
    x, y = pair(6, n=8)
    grams = [rows @ rows.T for rows in (x, y)]
    near = []
    for gram in grams:
        others = gram - 1e9 * np.eye(8)
        near.append(np.array([[j in np.argsort(-others[i])[:3] for j in range(8)] for i in range(8)]))
    (a, b), both = grams, near[0] & near[1]
    cross = unbiased_of(a * both, b * both)
    own = unbiased_of(a * near[0], a * near[0]) * unbiased_of(b * near[1], b * near[1])
    assert cknna(x, y, k=3) == pytest.approx(cross / np.sqrt(own))


def unbiased_of(left, right):
    """Song et al. 2012, eq. 5, which for similarities that are not symmetric is no mean over quadruples."""
    n = len(left)
    left, right = (gram - np.diag(np.diag(gram)) for gram in (left, right))
    ones = np.ones(n)
    sums = (ones @ left @ ones) * (ones @ right @ ones) / ((n - 1) * (n - 2))
    return (np.trace(left @ right) + sums - 2 / (n - 2) * (ones @ left @ right @ ones)) / (n * (n - 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: cka(x[:3], y[:3]), "at least 4 images, got 3"),
        (lambda x, y: cka(x, y[:8]), "y has 8 rows, but the first representation has 12"),
        (lambda x, y: cka(x, y, kernel="cubic"), "kernel must be one of linear, rbf"),
        (lambda x, y: cka(x, y, bandwidth=0), "bandwidth must be above 0"),
        (lambda x, y: cka(x, y * np.nan), "the features y must be finite"),
        (lambda x, y: MinibatchCKA().compute(), "there was no batch"),
        (lambda x, y: cknna(x, y, k=12), "less than the number of images, 12; got 12"),
        (lambda x, y: cknna(x, y, k=1), "k must be at least 2"),
        (lambda x, y: cknna(x, y[:8]), "of the same images, got 12 and 8"),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(*pair(0))


def test_other_representations_than_before_are_refused():
    x, y = pair(0)
    found = MinibatchCKA()
    found.update({"x": x, "y": y})
    with pytest.raises(ValueError, match=r"must be \('x', 'y'\) and \('x', 'y'\) in every batch"):
        found.update({"y": y, "x": x})
    with pytest.raises(ValueError, match="in every batch"):
        found.update({"x": x, "y": y}, {"x": x, "y": y})


@pytest.mark.skipif(
    torch.version.cuda is not None and not torch.cuda.is_available(), reason="torch for CUDA looks for its driver"
)
def test_sums_stay_on_the_cpu_when_features_are_on_a_gpu(monkeypatch):
    """Fake tensors have devices that the machine lacks, and refuse to mix them; their values are unknown."""
    # The package's function hides the module of the same name.
    monkeypatch.setattr(import_module("difformer.analysis.cka"), "as_matrix", lambda name, values: values)
    with FakeTensorMode():
        found = MinibatchCKA()
        for _ in range(2):
            found.update({"x": torch.ones(6, 3, device="cuda")}, {"y": torch.ones(6, 2, device="cuda")})
        assert found.compute().device.type == "cpu"


@pytest.mark.parametrize("kind", KINDS)
def test_sums_are_on_the_cpu_whatever_the_default(kind):
    x, y = pair(7)
    with torch.device("meta"):
        found = MinibatchCKA(**kind)
        found.update({"x": x}, {"y": y})
        assert found.compute().item() == pytest.approx(cka(x, y, **kind))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu(kind):
    x, y = pair(7)
    found = MinibatchCKA(**kind)
    found.update({"x": torch.from_numpy(x).cuda()}, {"y": torch.from_numpy(y).float().cuda()})
    assert found.compute().item() == pytest.approx(cka(x, y.astype(np.float32), **kind), rel=1e-9)
    assert cknna(torch.from_numpy(x).cuda(), torch.from_numpy(y).cuda(), k=4) == pytest.approx(cknna(x, y, k=4))
