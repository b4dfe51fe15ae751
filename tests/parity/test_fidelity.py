"""Measures of generation against torch-fidelity and prdc (the `parity` extra), and Inception's port."""

from unittest import mock

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import nn

from difformer.analysis import (
    FeatureMoments,
    frechet_distance,
    frechet_distance_of_features,
    inception_score,
    kernel_distance,
    neighbourhoods,
)
from difformer.verbs.fid.fid import compare_images
from difformer.verbs.fid.spaces import InceptionSpace

pytestmark = pytest.mark.parity


def features(seed, n=300, d=24):
    """Of the kind that Inception gives: not negative, correlated, float32."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(0.3 + 0.01 * seed, 1, (n, d)) @ np.random.default_rng(9).normal(size=(d, d)) / d**0.5
    return np.maximum(mixed, 0).astype(np.float32)


def adm_frechet(x, y):
    """The arithmetic of ADM's evaluator: numpy's covariance and scipy's root of the product."""
    (mean_x, cov_x), (mean_y, cov_y) = ((one.mean(0, dtype=float), np.cov(one, rowvar=False)) for one in (x, y))
    root = linalg.sqrtm(cov_x.dot(cov_y)).real
    apart = mean_x - mean_y
    return apart.dot(apart) + np.trace(cov_x) + np.trace(cov_y) - 2 * np.trace(root)


def test_frechet_distance():
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    x, y = features(0).astype(float), features(1, n=250).astype(float)
    known = [{"mu": one.mean(axis=0), "sigma": np.cov(one, rowvar=False)} for one in (x, y)]
    expected = fid_statistics_to_metric(*known, verbose=False)["frechet_inception_distance"]
    assert frechet_distance_of_features(x, y) == pytest.approx(expected, rel=1e-8)
    assert adm_frechet(x, y) == pytest.approx(expected, rel=1e-8)
    ours = [FeatureMoments(), FeatureMoments()]
    for moments, rows in zip(ours, (x, y), strict=True):
        for part in np.split(rows, [7, 100]):
            moments.update(part)
    assert frechet_distance(*(one.statistics() for one in ours)) == pytest.approx(expected, rel=1e-8)


def test_kernel_distance():
    from torch_fidelity.metric_kid import kernel_mmd

    x, y = features(0).astype(float), features(1).astype(float)
    options = {"kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}
    expected = kernel_mmd(x, y, kid_kernel="poly", **options)
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_precision_recall_density_coverage():
    from prdc import compute_prdc
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    fake, real = features(0, n=200), features(1)
    found = neighbourhoods(fake, real, k=5)
    for name, expected in compute_prdc(real.astype(float), fake.astype(float), nearest_k=5).items():
        assert getattr(found, name) == pytest.approx(expected, rel=1e-9), name
    theirs = calculate_precision_recall_full(*(torch.from_numpy(one).double() for one in (fake, real)), 5)
    assert (found.precision, found.recall) == pytest.approx(theirs, rel=1e-6)


def test_inception_score():
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = torch.from_numpy(features(0, n=240, d=40)) * 3
    expected = isc_features_to_metric(logits, splits=6, shuffle=False)
    found = inception_score(logits, split_size=40)
    assert found.mean() == pytest.approx(expected["inception_score_mean"], rel=1e-9)
    assert found.std() == pytest.approx(expected["inception_score_std"], rel=1e-7)


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """The port with random weights, whose digest stands in for that of the published ones."""
    from torch_fidelity import feature_extractor_inceptionv3 as port

    torch.manual_seed(0)
    arguments = "inception", ["2048", "logits_unbiased"]
    with (
        mock.patch.object(port, "load_state_dict_from_url", return_value={}),
        mock.patch.object(nn.Module, "load_state_dict", return_value=None),
    ):
        network = port.FeatureExtractorInceptionV3(*arguments)
    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), file)
    with mock.patch("difformer.verbs.fid.spaces.sha256", return_value=InceptionSpace.digest):
        return InceptionSpace(file, torch.device("cpu")), network


def tensorflow_resize(images, size):
    """Bilinear as in TensorFlow 1, pixel by pixel: place i of the output lies at i · h / size of the input."""
    found = images.astype(np.float64)
    for axis in (2, 3):
        places = np.arange(size) * (found.shape[axis] / size)
        low = np.floor(places).astype(int)
        high = np.minimum(low + 1, found.shape[axis] - 1)
        shape = [-1 if i == axis else 1 for i in range(4)]
        share = (places - low).reshape(shape)
        found = found.take(low, axis) * (1 - share) + found.take(high, axis) * share
    return found


def test_inception_gets_what_adm_s_evaluator_gives_it(inception):
    space, network = inception
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 32, 48), dtype=np.uint8))
    read = space.read(images)
    assert read.vectors.shape == (2, space.width)
    assert read.spatial.shape == (2, space.spatial_width) == (2, 2023)
    assert read.logits.shape == (2, 1008)
    taken = []
    handle = network.Conv2d_1a_3x3.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0]))
    vectors, logits = network(images)
    handle.remove()
    torch.testing.assert_close(read.vectors, vectors)
    torch.testing.assert_close(read.logits, logits)
    expected = (tensorflow_resize(images.numpy(), 299) - 128) / 128
    np.testing.assert_allclose(taken[0].numpy(), expected, atol=2e-5)


def test_spatial_features_are_those_of_mixed_6(inception):
    """`mixed_6/conv` is the 1×1 branch of the fourth block of 17 × 17; channels come last, as TensorFlow has them."""
    space, network = inception
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (1, 3, 64, 64), dtype=np.uint8))
    kept = []
    handle = network.Mixed_6d.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    network(images)
    handle.remove()
    maps = network.Mixed_6d.branch1x1(kept[0])[0, :7].numpy()
    assert maps.shape == (7, 17, 17)
    found = space.read(images).spatial[0].numpy().reshape(17, 17, 7)
    np.testing.assert_allclose(found, maps.transpose(1, 2, 0), rtol=1e-4, atol=1e-6)


def test_a_comparison_in_inception(inception, tmp_path):
    rng = np.random.default_rng(2)
    for name in ("fake", "real"):
        np.savez(tmp_path / f"{name}.npz", rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8))
    found = compare_images(tmp_path / "fake.npz", tmp_path / "real.npz", inception[0], frechet=False)
    names = [measure.name for measure in found.measures]
    assert names == ["KID", "precision", "recall", "density", "coverage", "Inception score"]
    with pytest.raises(ValueError, match=r"2,048 features needs more than 2,048 images .* 6 samples"):
        compare_images(tmp_path / "fake.npz", tmp_path / "real.npz", inception[0])
