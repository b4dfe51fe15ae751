"""Features that are reduced as they are read."""

import pytest
import torch
from support import small_unet

from difformer import FeatureExtractor, create_backbone
from difformer.features import reduced
from difformer.features.reduced import read_reduced


@pytest.fixture
def extractor():
    backbone = create_backbone(small_unet(), schedule="linear")
    return FeatureExtractor(backbone, taps=["in03", "mid"], timesteps=[50, 300])


def test_no_images_have_no_features(extractor):
    images, ids = torch.empty(0, 3, 32, 32), torch.empty(0, dtype=torch.int64)
    found = read_reduced(extractor, images, ids, lambda key, maps: {key: maps.mean((2, 3))})
    assert {key: tuple(rows.shape) for key, rows in found.items()} == {
        key: (0, spec.channels) for key, spec in extractor.specs.items()
    }


@pytest.mark.parametrize("images_at_once", [None, 2, 0])
def test_equals_all_at_once_whatever_there_is_room_for(extractor, monkeypatch, images_at_once):
    images, ids = torch.rand(5, 3, 32, 32) * 2 - 1, torch.tensor([3, 1, 4, 15, 9])
    expected = extractor(images, ids)
    read = []
    forward = extractor.forward
    monkeypatch.setattr(extractor, "forward", lambda images, ids: read.append(len(images)) or forward(images, ids))
    if images_at_once is not None:
        per_image = sum(maps[0].numel() * 4 for maps in expected.values())
        monkeypatch.setattr(reduced, "_MOST_BYTES", per_image * images_at_once + 1)
    found = read_reduced(extractor, images, ids, lambda key, maps: {(key, "mean"): maps.mean((2, 3))})
    assert read == {None: [5], 2: [2, 2, 1], 0: [1] * 5}[images_at_once]
    assert set(found) == {(key, "mean") for key in extractor.specs}
    for key, maps in expected.items():
        torch.testing.assert_close(found[key, "mean"], maps.mean((2, 3)), rtol=1e-4, atol=1e-5)
