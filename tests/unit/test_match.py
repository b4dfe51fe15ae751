"""`difformer match`: places that are known from how images were made, DIFT's protocol, and what is refused."""

import csv
import json

import numpy as np
import pytest
import torch
from pictures import Colours, chart, save
from PIL import Image
from support import small_unet, tiny_unet

from difformer import create_backbone
from difformer.analysis import match
from difformer.backbones import outline_backbone
from difformer.cli import main
from difformer.data import ImageError, content_id, read_image
from difformer.diffusion import image_noise, q_sample
from difformer.report.matches import Truth, draw_matches
from difformer.verbs.match.match import match_images
from difformer.verbs.match.points import checked_points, parse_points, regular_grid
from difformer.verbs.match.reading import MapReader, Reading

# With little noise, which colours are hidden by.
CLEAR = Reading(t=0, size=64)
POINTS = np.array([[20.0, 16.0], [48.0, 32.0], [70.5, 50.0], [33.0, 60.0]])
FLIP, TURN = Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_90


class TestKnownPlaces:
    @pytest.mark.parametrize("aspect", ["stretch", "keep"])
    @pytest.mark.parametrize(
        ("change", "where"),
        [
            (lambda image: image, lambda x, y: (x, y)),
            (lambda image: image.transpose(FLIP), lambda x, y: (96 - x, y)),
            (lambda image: image.transpose(TURN), lambda x, y: (y, 96 - x)),
            (
                lambda image: image.resize((200, 70), Image.Resampling.BILINEAR),
                lambda x, y: (x * 200 / 96, y * 70 / 64),
            ),
            (lambda image: image.crop((10, 4, 90, 64)), lambda x, y: (x - 10, y - 4)),
        ],
        ids=["same", "mirrored", "turned", "scaled", "cropped"],
    )
    def test_a_changed_copy(self, change, where, aspect):
        other = change(chart())
        reading = Reading(t=0, size=64, aspect=aspect)
        found = match_images(Colours(), chart(), other, POINTS, reading=reading, subpixel=True)
        wanted = np.stack(where(*POINTS.T), axis=1)
        # Within a position of the map, which noise and the border spread.
        position = np.divide(other.size, found.inputs[1][::-1]) * 2
        assert (np.abs(found.found - wanted) <= 1.5 * position).all(), found.found - wanted
        assert np.abs(found.found - wanted).mean() < 0.6 * position.mean()
        assert found.mutual.all()
        assert found.similarity.min() > 0.999
        assert found.sizes == ((64, 96), (other.height, other.width))

    def test_coordinates_are_those_of_the_upright_image(self, tmp_path):
        plain = save(chart(), tmp_path / "a.png")
        turned = save(chart().transpose(TURN), tmp_path / "b.png", orientation=6)
        assert Image.open(turned).size == (64, 96)
        expected = match_images(Colours(), plain, plain, POINTS, reading=CLEAR)
        for one, other in ((turned, plain), (plain, turned), (read_image(turned), turned.read_bytes())):
            found = match_images(Colours(), one, other, POINTS, reading=CLEAR)
            assert found.sizes == ((64, 96), (64, 96))
            np.testing.assert_array_equal(found.found, expected.found)

    @pytest.mark.parametrize("subpixel", [False, True])
    def test_large_images(self, subpixel):
        """Places are looked for on a coarser raster, and are then pixels of the image again, whatever its ratio."""
        small, large = chart(), chart(2111, 1301)
        corners = np.array([[0.0, 0.0], [2111.0, 1301.0]])
        ratio = np.divide(large.size, small.size)
        back = match_images(Colours(), large, small, np.concatenate([POINTS * ratio, corners]), reading=CLEAR)
        assert (np.abs(back.found[:4] - POINTS) <= 4.5).all()
        found = match_images(Colours(), small, large, POINTS, reading=CLEAR, subpixel=subpixel)
        assert (np.abs(found.found / ratio - POINTS) <= 4.5).all()
        raster = found.found * np.divide((1024, 631), large.size)
        between = np.abs(raster - np.floor(raster) - 0.5).max()
        assert (between > 1e-3) if subpixel else between < 1e-6

    def test_a_long_and_thin_image(self):
        """Its raster of 2 × 1024 has other ratios in both directions."""
        found = match_images(Colours(), chart(3000, 5), chart(), [[750, 1.5], [2000, 3.75]], reading=CLEAR)
        assert (np.abs(found.found - [[24, 19.2], [64, 48]]) <= 4.5).all(), found.found

    @pytest.mark.parametrize("tap", ["in01", "out06"])
    def test_random_weights_find_a_shifted_copy(self, tap):
        backbone = create_backbone(small_unet(), schedule="linear")
        texture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        whole = Image.fromarray(texture).resize((80, 80), Image.Resampling.BICUBIC)
        one, other = whole.crop((0, 0, 64, 64)), whole.crop((8, 4, 72, 68))
        points = np.stack(np.meshgrid(np.arange(14.5, 60, 6), np.arange(12.5, 60, 6)), axis=-1).reshape(-1, 2)
        found = match_images(backbone, one, other, points, reading=Reading(tap, 0))
        errors = np.linalg.norm(found.found - (points - (8, 4)), axis=1)
        # By chance it would be one in 300.
        assert (errors <= 2).mean() > 0.9, errors


class TestReading:
    def test_difts_protocol_spelt_out(self):
        """The image squeezed to a square by Pillow, eight draws of noise, their mean at one block."""
        backbone, picture = create_backbone(tiny_unet(), schedule="linear"), chart(40, 24)
        reader = MapReader(backbone, Reading("out01", 101, size=32, seed=5))
        x_0 = torch.from_numpy(np.array(picture.resize((32, 32)))).permute(2, 0, 1)[None] / 255.0
        x_0 = (x_0 - 0.5) / 0.5
        draws = []
        for draw in range(8):
            eps = image_noise(x_0, [content_id(x_0[0])], 101, seed=5, draw=draw)
            x_t = q_sample(x_0, 101, eps, backbone.schedule)
            draws.append(backbone.forward_taps(x_t, 101, ["out01"])["out01"][0])
        torch.testing.assert_close(reader.read(picture), torch.stack(draws).mean(dim=0), rtol=1e-4, atol=1e-5)

    def test_maps_do_not_depend_on_what_else_is_read(self):
        backbone = create_backbone(tiny_unet(), schedule="linear")
        reader = MapReader(backbone, Reading(draws=2))
        first = reader.read(chart())
        reader.read(chart(30, 30))
        assert reader.read(chart()).equal(first)
        # One noisy image at a time: the same to rounding.
        alone = MapReader(backbone, Reading(draws=2, chunk_size=1)).read(chart())
        torch.testing.assert_close(alone, first, rtol=1e-4, atol=1e-5)
        assert not MapReader(backbone, Reading(draws=2, seed=1)).read(chart()).allclose(first, atol=1e-3)

    def test_defaults_are_difts_for_adm256(self):
        published = outline_backbone("adm256_uncond")
        assert Reading().place(published) == ("out04", 101, 512)
        assert Reading(tap="27", t=0, size=256).place(published) == ("out07", 0, 256)

    def test_defaults_of_other_backbones(self):
        backbone = create_backbone(small_unet(), schedule="linear")
        assert Reading().place(backbone) == ("out02", 50, 64)

    @pytest.mark.parametrize(("height", "width"), [(64, 64), (480, 640), (3000, 1000), (1, 500), (500, 1)])
    def test_proportions_that_are_kept(self, height, width):
        backbone = create_backbone(small_unet(), schedule="linear")
        reader = MapReader(backbone, Reading(size=64, aspect="keep"))
        tall, wide = reader.input_size(height, width)
        assert tall % 4 == wide % 4 == 0
        assert tall * wide == pytest.approx(64**2, rel=0.12)
        ratio = min(max(height / width, 1 / 8), 8)
        assert tall / wide == pytest.approx(ratio, rel=0.15)
        assert reader.read(Image.new("RGB", (width, height))).shape[1:] == (tall // 2, wide // 2)
        assert MapReader(backbone, Reading(size=64)).input_size(height, width) == (64, 64)

    def test_class_conditional_backbones(self):
        backbone = create_backbone(tiny_unet(num_classes=5), schedule="linear")
        with pytest.raises(ValueError, match="is class-conditional; give label"):
            MapReader(backbone)
        with pytest.raises(ValueError, match=r"in \[0, 5\), got 5"):
            MapReader(backbone, Reading(label=5))
        one, other = (MapReader(backbone, Reading(label=label)).read(chart()) for label in (0, 4))
        assert not one.allclose(other, atol=1e-4)
        with pytest.raises(ValueError, match="is not class-conditional; leave out label"):
            MapReader(Colours(), Reading(label=0))

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"aspect": "crop"}, "aspect"),
            ({"draws": 0}, "draws must be"),
            ({"size": 0}, "size must be"),
            ({"size": 9000}, "size must be at most 8192 pixels, got 9000"),
            ({"seed": -1}, r"seed must lie in \[0, 2\*\*63\), got -1"),
            ({"chunk_size": 0}, "chunk_size must be"),
            ({"size": 33}, "size must be a multiple of 2 for colours, got 33; give 34"),
            ({"tap": "mid"}, "unknown tap 'mid'; expected one of mean"),
            ({"t": 1000}, r"timesteps must lie in \[0, 1000\)"),
        ],
    )
    def test_wrong_values(self, wrong, message):
        with pytest.raises(ValueError, match=message):
            MapReader(Colours(), Reading(**wrong))

    def test_a_backbone_that_does_not_say_its_size(self):
        unknown = Colours()
        unknown.image_size = None
        with pytest.raises(ValueError, match="colours does not say its image size; give size"):
            MapReader(unknown)
        assert MapReader(unknown, Reading(size=10)).input_size(4, 4) == (10, 10)


class TestPoints:
    def test_a_grid(self):
        assert regular_grid(20, 40, 2).tolist() == [[10, 10], [30, 10]]
        assert regular_grid(400, 10, 3).tolist() == [[5, 400 / 6], [5, 200], [5, 2000 / 6]]
        with pytest.raises(ValueError, match="grid must be"):
            regular_grid(20, 40, 0)

    @pytest.mark.parametrize(
        ("text", "points"),
        [
            ("1,2", [[1, 2]]),
            ("  1.5,2   3,4e1 ", [[1.5, 2], [3, 40]]),
        ],
    )
    def test_points_in_words(self, text, points):
        assert parse_points(text).tolist() == points

    @pytest.mark.parametrize("text", ["", "1", "1,2,3", "1,2 3", "1;2", "a,b", "1,nan", "inf,2", "1, 2"])
    def test_words_that_are_no_points(self, text):
        with pytest.raises(ValueError, match=r"points must be numbers, as in --points '120,80 200,95\.5'"):
            parse_points(text)

    def test_a_table(self, tmp_path):
        file = tmp_path / "p.CSV"
        file.write_text("name, Y ,x\nnose,2,1.5\n\ntail,4,3\n", encoding="utf-8-sig")
        assert parse_points(str(file)).tolist() == [[1.5, 2], [3, 4]]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "must have columns x and y; its first line is ''"),
            (b"x;y\n1;2\n", "must have columns x and y; its first line is 'x;y'"),
            (b"x,y\n", "points must be numbers"),
            (b"x,y\n1\n", "points must be numbers"),
            (b"x,y\n1,left\n", r"points must be numbers.*'left'"),
            (b"x,y\n\xff,1\n", "cannot be read as a CSV file"),
        ],
    )
    def test_tables_without_points(self, tmp_path, content, message):
        file = tmp_path / "p.csv"
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            parse_points(str(file))

    @pytest.mark.parametrize("points", [[], [1, 2], [[1, 2, 3]], [["a", "b"]], [[1], [1, 2]], torch.ones(2)])
    def test_what_is_no_array_of_points(self, points):
        with pytest.raises(ValueError, match=r"points must be \(P, 2\) numbers x, y"):
            match_images(Colours(), chart(), chart(), points)

    @pytest.mark.parametrize("outside", [[97, 1], [1, 65], [-1, 1], [1, float("nan")]])
    def test_points_outside(self, outside):
        with pytest.raises(ValueError, match=r"with x in \[0, 96\] and y in \[0, 64\] .* as point 2"):
            match_images(Colours(), chart(), chart(), [[0, 0], outside])

    def test_points_in_any_form(self):
        for points in (POINTS, torch.from_numpy(POINTS), POINTS.tolist()):
            np.testing.assert_array_equal(checked_points(points, 64, 96), POINTS)


class TestPicture:
    def drawn(self, figures):
        axes = figures[-1].axes[0]
        return [text.get_text() for text in axes.texts], axes

    def test_numbers_stand_beside_points_in_both_images(self, tmp_path, figures):
        images = chart(), chart(30, 60)
        points = np.array([[0.0, 0.0], [96.0, 64.0], [48.0, 32.0]]), np.array([[0.0, 0.0], [30.0, 60.0], [15.0, 30.0]])
        draw_matches(images, points, tmp_path / "m.png", names=("a", "$b$"), numbers=[3, 1, 7], caption="c")
        texts, axes = self.drawn(figures)
        assert texts == ["a", r"\$b\$", "3", "3", "1", "1", "7", "7"]
        assert (tmp_path / "m.png").read_bytes()[:4] == b"\x89PNG"
        assert (tmp_path / "m.pdf").read_bytes()[:4] == b"%PDF"
        marks = [line.get_xydata()[0] for line in axes.lines if line.get_marker() == "o"]
        for number, image in enumerate(axes.images):
            left, right, bottom, top = image.get_extent()
            # The longer side of both is 1, and the middles lie on one line.
            assert max(right - left, bottom - top) == pytest.approx(1)
            own = np.asarray(marks[number::2])
            np.testing.assert_allclose(own, [[left, top], [right, bottom], [(left + right) / 2, (top + bottom) / 2]])
        np.testing.assert_allclose(marks[4][1], marks[5][1])

    def test_right_and_wrong_points(self, tmp_path, figures):
        found = np.array([[10.0, 10.0], [20.0, 20.0]])
        truth = Truth(np.array([[10.0, 11.0], [60.0, 40.0]]), np.array([True, False]))
        draw_matches((chart(), chart()), (found, found), tmp_path / "m.png", truth=truth)
        _, axes = self.drawn(figures)
        assert not (tmp_path / "m.pdf").exists()
        marked = {(line.get_marker(), line.get_color()) for line in axes.lines if line.get_marker() != "None"}
        assert marked == {("o", "#1a9850"), ("X", "#d73027"), ("o", "white")}
        (wrong,) = [line for line in axes.lines if line.get_linewidth() == 1.8]
        np.testing.assert_allclose(np.diff(wrong.get_xydata(), axis=0), [[40 / 96, 20 / 96]])

    def test_large_pictures_are_made_small(self, tmp_path, figures):
        draw_matches((chart(3000, 1500), chart()), (POINTS, POINTS), tmp_path / "m.png")
        _, axes = self.drawn(figures)
        assert axes.images[0].get_array().shape == (500, 1000, 3)

    def test_points_that_do_not_fit(self, tmp_path):
        with pytest.raises(ValueError, match=r"points of both images must be \(P, 2\), got \(4, 2\) and \(2, 2\)"):
            draw_matches((chart(), chart()), (POINTS, POINTS[:2]), tmp_path / "m.png")


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with two pictures, the second mirrored, and the backbone of colours in place of any other."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("difformer.cli.matching.create_backbone", lambda *_, **__: Colours())
    save(chart(), tmp_path / "a.png")
    save(chart().transpose(FLIP), tmp_path / "b.png")
    return tmp_path


def table(path):
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


class TestVerb:
    clear = ("--t", "0", "--size", "64")

    def test_points_that_are_given(self, desk, capsys, figures):
        assert main(["match", "a.png", "b.png", *self.clear, "--points", "20,16 70.5,50", "--output", "out"]) == 0
        assert {path.name for path in (desk / "out").iterdir()} == {
            "points.csv", "matches.png", "matches.pdf", "match.json",
        }  # fmt: skip
        rows = table(desk / "out/points.csv")
        assert [(row["point"], row["x"], row["y"]) for row in rows] == [(1, 20, 16), (2, 70.5, 50)]
        for row in rows:
            assert row["found_x"] == pytest.approx(96 - row["x"], abs=4)
            assert row["found_y"] == pytest.approx(row["y"], abs=3)
            assert row["mutual"] == 1
        record = json.loads((desk / "out/match.json").read_text())
        assert record["reading"] == {
            "backbone": {"name": "colours", "digest": "0" * 64}, "tap": "mean", "t": 0, "draws": 8, "size": 64,
            "aspect": "stretch", "seed": 0, "label": None, "chunk_size": None,
        }  # fmt: skip
        assert record["images"][1] == {"name": "b.png", "size": [64, 96], "read_as": [64, 64]}
        printed = capsys.readouterr().out
        assert "colours, mean at t = 0, 8 draws, images read as 64×64" in printed
        assert "  1  20.0,16.0 -> 7" in printed
        assert "2 of 2 matches are mutual" in printed

    def test_its_own_table_can_be_given_again(self, desk):
        words = ["match", "a.png", "b.png", *self.clear, "--overwrite"]
        assert main([*words, "--grid", "3", "--output", "one"]) == 0
        assert main([*words, "--points", "one/points.csv", "--output", "two"]) == 0
        assert (desk / "one/points.csv").read_text() == (desk / "two/points.csv").read_text()

    def test_of_a_grid_only_mutual_matches_are_drawn(self, desk, monkeypatch, figures):
        save(chart().crop((0, 0, 48, 64)), desk / "b.png")
        words = ["match", "a.png", "b.png", *self.clear, "--grid", "8", "--overwrite"]
        assert main([*words, "--output", "out"]) == 0
        rows = table(desk / "out/points.csv")
        assert len(rows) == 40
        mutual = [f"{row['point']:.0f}" for row in rows if row["mutual"]]
        assert 10 < len(mutual) < 40
        numbers = [text.get_text() for text in figures[-1].axes[0].texts[2:]]
        assert numbers == [number for number in mutual for _ in "ab"]
        for flags, shown in (([], 40), (["--mutual"], len(mutual))):
            assert main([*words, "--points", "out/points.csv", "--output", "other", *flags]) == 0
            assert len(figures[-1].axes[0].texts) == 2 + 2 * shown

    def test_weights_of_a_file(self, tmp_path, capsys):
        create_backbone(tiny_unet(), schedule="linear").save(tmp_path / "tiny.safetensors")
        for name, size in (("a", (20, 30)), ("b", (31, 17))):
            save(chart(*size), tmp_path / f"{name}.png")
        words = [str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--backbone", str(tmp_path / "tiny.safetensors")]
        assert main(["match", *words, "--output", str(tmp_path / "out"), "--draws", "2", "--tap", "6"]) == 0
        assert "out00 at t = 50, 2 draws, images read as 32×32" in capsys.readouterr().out
        assert str(tmp_path) not in (tmp_path / "out/match.json").read_text()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["c.png", "b.png"], "c.png cannot be read as an image"),
            (["a.png", "text.png"], "text.png cannot be read as an image"),
            (["a.png", "b.png", "--points", "97,1"], "points must lie in the first image"),
            (["a.png", "b.png", "--points", "no.csv"], "no.csv"),
            (["a.png", "b.png", "--size", "33"], "size must be a multiple of 2"),
            (["a.png", "b.png", "--tap", "out99"], "unknown tap 'out99'"),
            (["a.png", "b.png", "--draws", "0"], "draws must be"),
            (["a.png", "b.png", "--grid", "0"], "grid must be"),
            (["a.png", "b.png", "--output", "a.png"], "a.png is a file"),
            (["a.png", "b.png", "--output", "full"], "holds notes.txt, which is no result"),
        ],
    )
    def test_what_is_refused(self, desk, capsys, words, message):
        (desk / "text.png").write_text("text")
        (desk / "full").mkdir()
        (desk / "full/notes.txt").write_text("mine")
        before = sorted(desk.rglob("*"))
        assert main(["match", *words]) == 1
        assert message in capsys.readouterr().err
        assert sorted(path for path in desk.rglob("*") if path.name != "runs") == before

    def test_results_are_replaced_only_when_asked(self, desk, capsys):
        words = ["match", "a.png", "b.png", *self.clear, "--output", "out"]
        assert main([*words, "--grid", "2"]) == 0
        assert main(words) == 1
        assert "out holds results already" in capsys.readouterr().err
        assert main([*words, "--overwrite"]) == 0
        assert len(table(desk / "out/points.csv")) == 24

    def test_interrupted(self, desk, capsys, monkeypatch):
        def stop(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("difformer.verbs.match.match.draw_matches", stop)
        assert main(["match", "a.png", "b.png", *self.clear, "--output", "out"]) == 130
        assert sorted(path.name for path in desk.iterdir()) == ["a.png", "b.png"]


def test_features_that_are_not_finite_are_refused():
    class Broken(Colours):
        def forward_taps(self, x_t, t, taps):
            return {tap: torch.full((len(x_t), 3, 4, 4), float("nan")) for tap in taps}

    with pytest.raises(ValueError, match="must be finite, got nan"):
        match_images(Broken(), chart(), chart())


def test_images_that_are_none():
    with pytest.raises(ImageError, match="cannot be read"):
        match_images(Colours(), "nowhere.png", chart())
    with pytest.raises(ValueError, match="an image must be a path"):
        match_images(Colours(), 3, chart())


def test_it_is_the_match_of_the_maps():
    """Of images that are small enough to be looked at pixel by pixel."""
    backbone = create_backbone(tiny_unet(), schedule="linear")
    images, reader = (chart(), chart(40, 50)), MapReader(backbone)
    found = match_images(backbone, *images, POINTS)
    maps = [reader.read(image) for image in images]
    expected = match(*maps, POINTS, size_a=(64, 96), size_b=(50, 40), mutual=True)
    np.testing.assert_allclose(found.found, expected.points.numpy())
    np.testing.assert_array_equal(found.mutual, expected.mutual.numpy())
