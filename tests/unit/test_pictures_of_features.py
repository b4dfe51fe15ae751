"""What pictures of similarities, maps, heat maps and nearest neighbours show."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from difformer import FeatureKey
from difformer.report.heat_maps import draw_heat_maps
from difformer.report.neighbours import draw_neighbours
from difformer.report.scatter import draw_scatter
from difformer.report.similarity import draw_similarities
from difformer.report.sweep import draw_sweep


def labels(ticks):
    return [tick.get_text() for tick in ticks]


def test_similarities_have_a_panel_a_matrix_with_the_first_row_at_the_bottom(tmp_path, figures):
    matrices = {f"t = {t}": np.random.default_rng(t).random((2, 3)) for t in (10, 50)}
    matrices["t = 10"][1, 2] = np.nan
    draw_similarities(matrices, ["in$", "mid"], ["a", "b", "c"], tmp_path / "s.png", titles=("ours", "$theirs"))
    *panels, bar = figures[0].axes
    assert [axes.get_title() for axes in panels] == ["t = 10", "t = 50"]
    for axes, matrix in zip(panels, matrices.values(), strict=True):
        cells = axes.images[0].get_array()
        np.testing.assert_array_equal(cells.mask, np.isnan(matrix))
        np.testing.assert_array_equal(cells.filled(np.nan), matrix)
        assert axes.images[0].get_clim() == (0, 1)
        bottom, top = axes.get_ylim()
        assert bottom < 0 < 1 < top
        assert axes.images[0].origin == "lower"
        assert labels(axes.get_yticklabels()) == [r"in\$", "mid"]
        assert labels(axes.get_xticklabels()) == ["a", "b", "c"]
        # Where there is no number, the grey behind shows.
        assert axes.get_facecolor()[:3] == to_rgb("0.85")
    assert bar.get_ylabel() == "CKA"
    assert (figures[0].get_supylabel(), figures[0].get_supxlabel()) == ("ours", r"\$theirs")


def test_a_small_value_is_dark_and_in_the_lower_row_of_the_file(tmp_path):
    draw_similarities({"": np.array([[0.0], [1.0]])}, ["a", "b"], ["c"], tmp_path / "s.png")
    pixels = np.asarray(Image.open(tmp_path / "s.png").convert("L")).astype(int)
    # A line through the middle of the only column, past the name of the axis and the frame.
    line = pixels[:, pixels.shape[1] // 3]
    places = [int(np.median(np.flatnonzero(part))) for part in (line < 10, (line > 240) & (line < 255))]
    assert places[0] > places[1]


def test_panels_beyond_the_matrices_stay_empty(tmp_path, figures):
    draw_similarities({str(i): np.eye(2) for i in range(6)}, ["a", "b"], ["a", "b"], tmp_path / "s.png")
    drawn = [bool(axes.images) for axes in figures[0].axes[:10]]
    assert drawn == [True] * 6 + [False] * 4
    assert not any(axes.axison for axes in figures[0].axes[6:10])


def test_of_many_names_those_are_written_that_there_is_room_for(tmp_path, figures):
    names = [f"out{i:02}" for i in range(200)]
    draw_similarities({"": np.eye(200)}, names, names, tmp_path / "s.png")
    axes = figures[0].axes[0]
    written = labels(axes.get_yticklabels())
    assert 30 < len(written) < 100
    assert written == [names[int(place)] for place in axes.get_yticks()]


@pytest.mark.parametrize(
    ("matrices", "message"),
    [({}, "no similarities"), ({"t = 9": np.eye(3)}, r"t = 9 must be of shape \(2, 3\), got \(3, 3\)")],
)
def test_similarities_that_do_not_fit_are_refused(matrices, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        draw_similarities(matrices, ["a", "b"], ["a", "b", "c"], tmp_path / "s.png")
    assert not list(tmp_path.iterdir())


def test_points_lie_where_they_belong_in_the_colour_of_their_class(tmp_path, figures):
    points = np.random.default_rng(0).normal(size=(6, 2))
    classes = np.array([2, 0, 2, 2, 0, 2])
    draw_scatter(points, classes, ["cat", "no image", "d$g"], tmp_path / "m.png")
    drawn = figures[0].axes[0].collections
    # A class without an image has neither points nor a name.
    for collection, label in zip(drawn, (0, 2), strict=True):
        np.testing.assert_array_equal(collection.get_offsets(), points[classes == label])
    colors = {tuple(collection.get_facecolor()[0]) for collection in drawn}
    assert len(colors) == 2
    assert labels(figures[0].legends[0].get_texts()) == ["cat", r"d\$g"]


def test_long_names_of_classes_leave_room_for_the_points(tmp_path, figures):
    draw_scatter(np.zeros((2, 2)), np.arange(2), ["cat", 40 * "long "], tmp_path / "m.png")
    assert labels(figures[0].legends[0].get_texts()) == ["cat", "long long long long lon…"]


def test_many_classes_are_coloured_but_not_named(tmp_path, figures):
    draw_scatter(np.zeros((21, 2)), np.arange(21), [str(i) for i in range(21)], tmp_path / "m.png")
    assert len(figures[0].axes[0].collections) == 21
    assert not figures[0].legends


@pytest.mark.parametrize(("points", "count"), [(np.zeros((4, 3)), 4), (np.zeros((4, 2)), 3)])
def test_points_that_do_not_fit_are_refused(points, count, tmp_path):
    with pytest.raises(ValueError, match=r"points must be \(N, 2\) with N labels"):
        draw_scatter(points, np.zeros(count, dtype=np.int64), ["a"], tmp_path / "m.png")


def test_heat_maps_hold_what_was_measured_and_frame_the_choice(tmp_path, figures):
    shares = {"At 1": {("mid", 50): 0.5, ("in$", 10): 0.25}, "At 5": {("mid", 50): 0.75, ("mid", 10): 0.2}}
    draw_heat_maps(shares, tmp_path / "h.png", label="Precision, %", chosen=("At 5", "mid", 10))
    first, second, bar = figures[0].axes
    assert [axes.get_title() for axes in (first, second)] == ["At 1", "At 5"]
    assert labels(first.get_yticklabels()) == ["10", "50"]
    assert labels(second.get_xticklabels()) == ["mid", r"in\$"]
    assert first.images[0].get_array().filled(-1).tolist() == [[-1, 25], [50, -1]]
    assert second.images[0].get_array().filled(-1).tolist() == [[20, -1], [75, -1]]
    # Colours can be compared between the maps.
    assert [axes.images[0].get_clim() for axes in (first, second)] == [(20, 75)] * 2
    assert {text.get_position(): text.get_text() for text in second.texts} == {(0, 0): "20", (0, 1): "75"}
    assert not first.patches
    assert second.patches[0].get_bbox().bounds == (-0.5, -0.5, 1, 1)
    assert bar.get_ylabel() == "Precision, %"


def test_numbers_are_left_out_where_they_would_overlap(tmp_path, figures):
    draw_heat_maps({"": {(f"b{i}", 10): i / 41 for i in range(41)}}, tmp_path / "h.png", label="")
    assert not figures[0].axes[0].texts


@pytest.mark.parametrize("blocks", [2, 12, 37])
def test_heat_maps_of_any_number_of_blocks_fit_a_page(blocks, tmp_path, figures):
    draw_heat_maps({"": {(f"out{i:02}", 10): i / 37 for i in range(blocks)}}, tmp_path / "h.png", label="Precision, %")
    assert figures[0].get_figwidth() < 11
    # Its numbers do not touch.
    written = [text.get_window_extent() for text in figures[0].axes[0].texts]
    assert len(written) == blocks
    assert all(left.x1 < right.x0 for left, right in pairwise(written))


def test_heat_maps_of_nothing_are_refused(tmp_path):
    for shares in ({}, {"At 1": {}}):
        with pytest.raises(ValueError, match="no shares to draw"):
            draw_heat_maps(shares, tmp_path / "h.png", label="")


def test_a_sweep_has_a_heat_map_a_pooling(tmp_path, figures):
    accuracies = {(tap, t, pool): (i + 2 * t + pool) / 20 for i, tap in enumerate(("in00", "mid")) for t in (5, 1)
                  for pool in (4, 2)}  # fmt: skip
    draw_sweep(accuracies, ("mid", 5, 4), tmp_path / "s.png")
    two, four, bar = figures[0].axes
    assert [two.get_title(), four.get_title()] == ["Pool 2", "Pool 4"]
    np.testing.assert_allclose(two.images[0].get_array(), [[20, 25], [60, 65]])
    np.testing.assert_allclose(four.images[0].get_array(), [[30, 35], [70, 75]])
    assert not two.patches
    assert four.patches[0].get_bbox().bounds == (0.5, 0.5, 1, 1)
    assert bar.get_ylabel() == "Validation accuracy, %"
    with pytest.raises(ValueError, match="no accuracies"):
        draw_sweep({}, ("mid", 5, 4), tmp_path / "s.png")


def grey_images(count, height=32, width=32):
    """Images of one shade each, from black to white."""
    return torch.linspace(-1, 1, count)[:, None, None, None].expand(-1, 3, height, width)


def cells_of(figure, rows, columns):
    """(rows, columns, h, w, 3) of the wall of images."""
    wall = np.asarray(figure.axes[0].images[0].get_array())
    return wall.reshape(rows, wall.shape[0] // rows, columns, wall.shape[1] // columns, 3).swapaxes(1, 2)


def test_neighbours_stand_in_their_order_with_their_mark(tmp_path, figures):
    images, classes = grey_images(6), torch.tensor([0, 1, 0, 1, 0, 1])
    nearest = {FeatureKey("in$", 10): [4, 1, 0], FeatureKey("mid", 50, 1): [3, 1, 5]}
    draw_neighbours(images, classes, 2, nearest, tmp_path / "n.png")
    axes = figures[0].axes[0]
    assert labels(axes.get_yticklabels()) == ["in\\$, t = 10\n2 of 3", "mid (pass 2), t = 50\n0 of 3"]
    assert labels(axes.get_xticklabels()) == ["image", "1", "2", "3"]
    # Rows from above.
    assert axes.get_ylim() == (2, 0)
    cells = cells_of(figures[0], 2, 4)
    for row, places in zip(cells, nearest.values(), strict=True):
        middle = row[:, row.shape[1] // 2]
        expected = (images[[2, *places], :, 0, 0] + 1) / 2
        np.testing.assert_allclose(middle[:, row.shape[2] // 2], expected, atol=1e-5)
        red, green, _ = middle[:, 4].T
        assert (red[0], green[0]) == (1, 1)
        assert (green > red)[1:].tolist() == [classes[place] == classes[2] for place in places]
        assert (green < red)[1:].tolist() == [classes[place] != classes[2] for place in places]


def test_the_file_shows_each_pixel_once(tmp_path):
    """The frames of an image of 64 pixels enclose as many, in the picture and not only in the figure."""
    draw_neighbours(grey_images(3, 64, 64), torch.tensor([0, 0, 1]), 0, {FeatureKey("mid", 10): [1, 2]}, tmp_path / "n")
    pixels = np.asarray(Image.open(tmp_path / "n").convert("RGB")).astype(int)
    green = (pixels[..., 1] > pixels[..., 0] + 50).nonzero()
    red = (pixels[..., 0] > pixels[..., 1] + 50).nonzero()
    for rows, columns in (green, red):
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (70, 70)
    assert green[1].max() < red[1].min()


@pytest.mark.parametrize(
    ("height", "width", "features", "expected"),
    [(32, 32, 1, (64, 64)), (256, 128, 1, (64, 32)), (256, 256, 52, (40, 40)), (256, 256, 90, (32, 32))],
)
def test_images_are_smaller_where_there_are_many(height, width, features, expected, tmp_path, figures):
    nearest = {FeatureKey("mid", t): [1, 2, 0, 1, 2] for t in range(features)}
    draw_neighbours(grey_images(3, height, width), torch.zeros(3), 0, nearest, tmp_path / "n.png")
    cells = cells_of(figures[0], features, 6)
    assert cells.shape[2:4] == (expected[0] + 12, expected[1] + 12)


@pytest.mark.parametrize("places", [[], [[]], [[1, 2], [1]]])
def test_neighbours_that_do_not_fit_are_refused(places, tmp_path):
    nearest = {FeatureKey("mid", t): those for t, those in enumerate(places)}
    with pytest.raises(ValueError, match="needs as many neighbours"):
        draw_neighbours(grey_images(3), torch.zeros(3), 0, nearest, tmp_path / "n.png")
    assert not list(tmp_path.iterdir())
