"""Heat maps of landmarks: targets, points decoded from maps, and the head that gives them."""

import pytest
import torch
from example_dense_heads import ONE, SIZE, build, features_for
from torch import nn

from difformer.heads import HeatmapHead
from difformer.tasks.keypoints import decode_heatmaps, heatmap_targets


def spread(count, margin=0.0):
    """Points (count, 5, 2) within images of 64×96."""
    places = torch.rand(count, 5, 2, generator=torch.Generator().manual_seed(0))
    return margin + places * (torch.tensor([96.0, 64.0]) - 2 * margin)


def test_targets_are_gaussians_around_the_exact_points():
    points = torch.tensor([[[2.0, 2.0], [50.0, 30.0], [96.0, 64.0], [0.5, 63.5], [float("nan"), 9.0]]])
    visible = torch.tensor([[True, True, True, True, False]])
    maps = heatmap_targets(points, visible, (16, 24), SIZE)
    assert (maps.shape, maps.dtype) == ((1, 5, 16, 24), torch.float32)
    # The centre of the first cell is at x = y = 2 pixels.
    assert maps[0, 0, 0, 0] == 1
    assert maps[0, 0, 0, 2].item() == pytest.approx(torch.tensor(-0.5).exp().item())
    x, y = 50 / 4 - 0.5, 30 / 4 - 0.5
    rows, columns = torch.arange(16.0)[:, None], torch.arange(24.0)
    torch.testing.assert_close(maps[0, 1], torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 8))
    assert maps[0, 2].argmax() == 16 * 24 - 1
    assert maps[0, 3].argmax() == 15 * 24
    assert maps[0, 4].eq(0).all()
    assert maps.amin() >= 0
    assert maps.amax() <= 1


@pytest.mark.parametrize(
    ("stride", "size", "sigma"), [(4, (16, 24), 1.0), (2, (32, 48), 2.0), (2, (32, 48), 1.0), (8, (8, 12), 0.75)]
)
def test_points_come_back_to_a_part_of_a_cell(stride, size, sigma):
    # Farther from the border, nothing of a Gaussian is cut off.
    points = spread(40, margin=5 * sigma * stride)
    found, heights = decode_heatmaps(
        heatmap_targets(points, torch.ones(40, 5, dtype=torch.bool), size, SIZE, sigma), SIZE, sigma
    )
    assert (found - points).abs().max() < 0.02 * stride
    assert heights.amin() > 0.6
    assert heights.amax() <= 1


def test_points_at_the_border_are_found_to_a_cell():
    points = spread(60)
    found, _ = decode_heatmaps(heatmap_targets(points, torch.ones(60, 5, dtype=torch.bool), (16, 24), SIZE), SIZE)
    assert (found - points).abs().max() < 0.6 * 4
    assert (found - points).abs().mean() < 0.05 * 4
    assert found.amin() >= 0
    assert (found <= torch.tensor([96.0, 64.0])).all()


def test_noise_moves_points_by_less_than_a_cell():
    points, visible = spread(40, margin=24), torch.ones(40, 5, dtype=torch.bool)
    maps = heatmap_targets(points, visible, (16, 24), SIZE)
    noise = 0.05 * torch.randn(maps.shape, generator=torch.Generator().manual_seed(1))
    found, _ = decode_heatmaps(0.4 * maps + noise, SIZE)
    errors = (found - points).norm(dim=2)
    highest = (0.4 * maps + noise).flatten(2).argmax(dim=2)
    cells = (torch.stack([highest % 24, highest // 24], dim=2) + 0.5) * 4
    assert errors.mean() < 0.6 * (cells - points).norm(dim=2).mean()
    assert errors.max() < 4


def test_mirrored_maps_give_mirrored_points():
    points = spread(10, margin=12)
    maps = heatmap_targets(points, torch.ones(10, 5, dtype=torch.bool), (16, 24), SIZE)
    found, _ = decode_heatmaps(maps, SIZE)
    mirrored, _ = decode_heatmaps(maps.flip(3), SIZE)
    torch.testing.assert_close(mirrored[..., 0], 96 - found[..., 0], rtol=0, atol=1e-3)
    torch.testing.assert_close(mirrored[..., 1], found[..., 1], rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_precision_does_not_move_points(dtype):
    maps = heatmap_targets(spread(10, margin=12), torch.ones(10, 5, dtype=torch.bool), (16, 24), SIZE).to(dtype)
    expected = decode_heatmaps(maps, SIZE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = decode_heatmaps(maps, SIZE)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


@pytest.mark.parametrize("value", [0.0, -1.0, 1.0])
def test_flat_maps_give_finite_points(value):
    found, heights = decode_heatmaps(torch.full((2, 5, 16, 24), value), SIZE)
    assert found.isfinite().all()
    assert heights.eq(value).all()


def test_points_that_do_not_fit_are_refused():
    for points, visible in (
        (torch.zeros(5, 2), torch.ones(5, dtype=torch.bool)),
        (torch.zeros(1, 5, 3), torch.ones(1, 5, dtype=torch.bool)),
        (torch.zeros(1, 5, 2), torch.ones(1, 4, dtype=torch.bool)),
    ):
        with pytest.raises(ValueError, match=r"points must be \(B, K, 2\) and visible \(B, K\), got"):
            heatmap_targets(points, visible, (16, 24), SIZE)


def test_cells_need_not_be_square():
    points = torch.tensor([[[30.0, 20.0], [70.0, 41.0]]])
    maps = heatmap_targets(points, torch.ones(1, 2, dtype=torch.bool), (32, 12), SIZE, 1.0)
    # Two pixels high and eight wide.
    rows, columns = torch.arange(32.0)[:, None] * 2 + 1, torch.arange(12.0) * 8 + 4
    torch.testing.assert_close(maps[0, 1], torch.exp(-(((rows - 41) / 2) ** 2 + ((columns - 70) / 8) ** 2) / 2))
    assert (decode_heatmaps(maps, SIZE, 1.0)[0] - points).abs().max() < 0.1


def test_stride_must_divide_that_of_the_finest_level():
    with pytest.raises(ValueError, match="stride must divide that of the finest level, 4, got 3"):
        HeatmapHead(ONE, 5, image_size=SIZE, stride=3)
    assert build("heatmap finer").scale == 4


def test_it_learns_where_points_are():
    """A feature that is bright where the point lies."""
    torch.manual_seed(0)
    head = HeatmapHead(ONE, 1, width=16, image_size=SIZE)
    points = spread(24, margin=12)[:, :1]
    features = features_for(head, batch=24)
    bright = heatmap_targets(points, torch.ones(24, 1, dtype=torch.bool), (16, 24), SIZE)
    features = {key: 0.2 * value + bright for key, value in features.items()}
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.mse_loss(head(features), bright).backward()
        optimizer.step()
    found, _ = decode_heatmaps(head.eval()(features), SIZE)
    assert (found - points).norm(dim=2).median() < 2
