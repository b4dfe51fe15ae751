"""What pictures of attention, features and learning show."""

import itertools

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from difformer import FeatureKey
from difformer.analysis import pca_maps
from difformer.report import draw_attention, draw_feature_maps, draw_learning

SHARES = {
    FeatureKey("out04", 200): 0.125,
    FeatureKey("mid", 90): 0.5,
    FeatureKey("out04", 90): 0.25,
    FeatureKey("out04", 90, 1): 0.125,
}


def labels(ticks):
    return [tick.get_text() for tick in ticks]


def test_attention_is_written_where_it_belongs(tmp_path, figures):
    draw_attention(SHARES, tmp_path / "a.png")
    axes, bar = figures[0].axes
    assert labels(axes.get_yticklabels()) == ["out04", "mid", "out04 (pass 2)"]
    assert labels(axes.get_xticklabels()) == ["90", "200"]
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {(0, 0): "25.0%", (1, 0): "12.5%", (0, 1): "50.0%", (0, 2): "12.5%"}
    table = axes.images[0].get_array()
    assert table.mask.tolist() == [[False, False], [False, True], [False, True]]
    assert table.compressed().tolist() == [0.25, 0.125, 0.5, 0.125]
    assert "all equal: 25.0%" in axes.get_title()
    assert bar.texts[0].xy[1] == 0.25


def test_the_largest_share_is_the_darkest(tmp_path):
    draw_attention(
        {FeatureKey("out04", t): share for t, share in [(10, 0.1), (20, 0.6), (30, 0.3)]}, tmp_path / "a.png"
    )
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("L")).astype(int)
    # A line through the cells, above their numbers: what is as wide as a cell, and not the white around them.
    runs = [(value, len(list(run))) for value, run in itertools.groupby(pixels[pixels.shape[0] // 4].tolist())]
    first, second, third = (value for value, length in runs if length > 50 and value < 255)
    assert second < third < first


@pytest.mark.parametrize("values", [[], [0.5, 0.4], [1.5, -0.5], [float("nan"), 1]])
def test_what_is_no_distribution_is_refused(values, tmp_path):
    shares = {FeatureKey("mid", t): value for t, value in enumerate(values)}
    with pytest.raises(ValueError, match="at least 0 and sum to 1"):
        draw_attention(shares, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def random_features(*keys, channels=5, size=6, images=3):
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(images, channels, size, size + 2, generator=generator) for key in keys}


def test_feature_maps_stand_by_block_and_timestep(tmp_path, figures):
    images = torch.linspace(-1.5, 1, 3 * 3 * 8 * 8).view(3, 3, 8, 8)
    keys = [FeatureKey("out04", 200), FeatureKey("out04", 90), FeatureKey("mid", 90), FeatureKey("mid", 90, 1)]
    features = random_features(*keys)
    draw_feature_maps(images, features, tmp_path / "f.png")
    panels = np.array(figures[0].axes).reshape(2, 4)
    assert [axes.get_title() for axes in panels[0]] == [
        "Images", "out04\n6 × 8, 5 channels", "mid\n6 × 8, 5 channels", "mid (pass 2)\n6 × 8, 5 channels",
    ]  # fmt: skip
    assert [axes.get_ylabel() for axes in panels[:, 0]] == ["t = 90", "t = 200"]
    drawn = [[np.stack([image.get_array() for image in axes.images]) for axes in row] for row in panels]
    for row in drawn:
        np.testing.assert_allclose(row[0], (images.clamp(-1, 1).permute(0, 2, 3, 1) + 1) / 2, atol=1e-6)
    for place, key in zip([(1, 1), (0, 1), (0, 2), (0, 3)], keys, strict=True):
        np.testing.assert_allclose(drawn[place[0]][place[1]], pca_maps(features[key]), atol=1e-6)
    assert (drawn[1][2] == 1).all()
    assert (drawn[1][3] == 1).all()


def test_feature_maps_of_wide_images_are_wide(tmp_path, figures):
    draw_feature_maps(torch.zeros(2, 3, 10, 40), random_features(FeatureKey("mid", 1), images=2), tmp_path / "f.png")
    left, right, bottom, top = figures[0].axes[1].images[1].get_extent()
    assert (right - left, bottom - top) == pytest.approx((1, 0.25))
    assert left > 1
    picture = Image.open(tmp_path / "f.png")
    assert picture.width > 2 * picture.height


@pytest.mark.parametrize(
    ("images", "features", "message"),
    [
        (torch.zeros(3, 1, 8, 8), random_features(FeatureKey("mid", 1)), r"\(N, 3, H, W\), got \(3, 1, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8), random_features(FeatureKey("mid", 1)), r"\(2, C, h, w\), got \(3, 5, 6, 8\)"),
        (torch.zeros(3, 3, 8, 8), {}, "no features"),
    ],
)
def test_features_that_do_not_fit_are_refused(images, features, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        draw_feature_maps(images, features, tmp_path / "f.png")


def history(values, *, every=1):
    return [
        {"epoch": epoch, "lr": 0.1, "train_loss": value} | ({"validation_top1": value} if epoch % every == 0 else {})
        for epoch, value in enumerate(values, start=1)
    ]


def test_methods_keep_their_colour_and_means_are_over_seeds(tmp_path, figures):
    runs = {
        "DifFormer": [history([4, 2, 1, 0.5], every=2), history([2, 1, 0], every=2)],
        "Linear": [history([3, 2], every=2)],
    }
    draw_learning(runs, tmp_path / "l.png")
    panels = figures[0].axes
    assert [axes.get_title() for axes in panels] == ["Training loss", "Validation accuracy"]
    lines = [[line for line in axes.lines if line.get_linewidth() == 2] for axes in panels]
    assert [len(axes.lines) for axes in panels] == [4, 4]
    drawn = [[line.get_xydata().tolist() for line in panel] for panel in lines]
    assert drawn[0] == [[[1, 3], [2, 1.5], [3, 0.5]], [[1, 3], [2, 2]]]
    assert drawn[1] == [[[2, 1.5]], [[2, 2]]]
    for panel in panels:
        assert len({line.get_color() for line in panel.lines[:3]}) == 1
    colors = [[line.get_color() for line in panel] for panel in lines]
    assert colors[0] == colors[1]
    assert colors[0][0] != colors[0][1]
    assert labels(figures[0].legends[0].get_texts()) == ["DifFormer", "Linear"]


def test_many_methods_are_told_apart(tmp_path, figures):
    draw_learning({f"${i}": [history([i, i + 1])] for i in range(23)}, tmp_path / "l.png")
    styles = {(to_rgb(line.get_color()), line.get_linestyle()) for line in figures[0].axes[0].lines}
    assert len(styles) == 23
    picture = np.asarray(Image.open(tmp_path / "l.png").convert("RGB"))
    assert len({tuple(pixel) for pixel in picture.reshape(-1, 3)}) > 100


def test_learning_without_records_is_refused(tmp_path):
    for runs in ({}, {"a": []}, {"a": [[{"epoch": 1, "lr": 0.1}]]}):
        with pytest.raises(ValueError, match="nothing to draw"):
            draw_learning(runs, tmp_path / "l.png")
