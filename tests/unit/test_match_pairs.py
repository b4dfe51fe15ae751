"""`difformer match-pairs`: pairs whose points are known, scores counted by hand, and what is refused."""

import csv
import json
import re

import numpy as np
import pytest
from data_sets import write_json, write_lines
from pictures import Colours, chart, save
from PIL import Image

from difformer.analysis import bootstrap_mean
from difformer.annotations import read_pairs
from difformer.cli import main
from difformer.data import DataConfig, DataError
from difformer.verbs.match.pairs import chosen_pairs, find_points, pair_scores, pairs_digest
from difformer.verbs.match.reading import MapReader, Reading

CLEAR = Reading(t=0, size=64)


def record(category, source, target, points, true, size):
    return {
        "category": category, "src_imname": source, "trg_imname": target, "src_kps": points, "trg_kps": true,
        "kps_ids": [str(number) for number in range(len(points))],
        "src_bndbox": [0, 0, 9, 9], "trg_bndbox": [0, 0, *size],
    }  # fmt: skip


# x, y of pixels, from 0 on. Of the first pair, one of four points is said to be far from where it is; of the second,
# one of two is said to be 0.08 of the box's longer side from there.
PAIRS = [
    record("dog", "c.png", "d.png", [[24, 20], [60, 40]], [[30.1, 25.1], [84.7, 50.1]], (120, 80)),
    record("cat", "a.png", "b.png", [[10, 10], [40, 30], [80, 50], [60, 20]], [[85, 10], [55, 30], [15, 50], [85, 20]],
           (96, 64)),
    record("dog", "d.png", "c.png", [[100, 60]], [[79.9, 47.9]], (96, 64)),
]  # fmt: skip
RIGHT = {0.05: (3, 1, 1), 0.1: (3, 2, 1), 0.15: (3, 2, 1)}
COUNTS = (4, 2, 1)


@pytest.fixture
def spair(tmp_path):
    root = tmp_path / "SPair-71k"
    for category in ("cat", "dog"):
        (root / "JPEGImages" / category).mkdir(parents=True)
    save(chart(), root / "JPEGImages/cat/a.png")
    save(chart().transpose(Image.Transpose.FLIP_LEFT_RIGHT), root / "JPEGImages/cat/b.png")
    save(chart(), root / "JPEGImages/dog/c.png")
    save(chart(120, 80), root / "JPEGImages/dog/d.png")
    write_pairs(root, PAIRS)
    return root


def write_pairs(root, records):
    for number, one in enumerate(records):
        write_json(root / f"PairAnnotation/test/{number}.json", one)
    write_lines(root / "Layout/large/test.txt", [str(number) for number in range(len(records))])


def read(root):
    return read_pairs(DataConfig("pairs", root=str(root)), "test")


def found_in(root, places=None, **options):
    data = read(root)
    places = chosen_pairs(data, None) if places is None else places
    return data, places, find_points(MapReader(Colours(), CLEAR), data, places, **options)


class TestScores:
    def test_they_are_counted(self, spair):
        every, cat, dog = pair_scores(*found_in(spair))
        assert [(one.name, one.pairs, one.points) for one in (every, cat, dog)] == [
            ("all", 3, 7), ("cat", 1, 4), ("dog", 2, 3),
        ]  # fmt: skip
        for alpha, right in RIGHT.items():
            shares = np.divide(right, COUNTS)
            assert every.per_image[alpha].mean == pytest.approx(shares.mean())
            assert every.per_point[alpha].mean == pytest.approx(sum(right) / 7)
            assert cat.per_image[alpha].mean == cat.per_point[alpha].mean == 0.75
            assert dog.per_image[alpha].mean == pytest.approx(shares[1:].mean())
            assert dog.per_point[alpha].mean == pytest.approx(sum(right[1:]) / 3)
            # Pairs are resampled, not points; those of the list come in its order.
            assert every.per_image[alpha] == bootstrap_mean(shares[[1, 0, 2]])
            assert every.per_point[alpha].low <= sum(right) / 7 <= every.per_point[alpha].high

    def test_where_points_were_found(self, spair):
        _, _, found = found_in(spair, subpixel=True)
        np.testing.assert_allclose(found[1], [[85.5, 10.5], [55.5, 30.5], [15.5, 50.5], [35.5, 20.5]], atol=3.5)
        np.testing.assert_allclose(found[2], [[80.4, 48.4]], atol=3.5)

    def test_the_order_of_the_list_does_not_matter(self, spair):
        _, _, found = found_in(spair)
        write_pairs(spair, PAIRS[::-1])
        _, _, other = found_in(spair)
        for one, same in zip(found, other[::-1], strict=True):
            np.testing.assert_array_equal(one, same)

    def test_each_image_is_read_once(self, spair, monkeypatch):
        reads, own = [], MapReader.read
        monkeypatch.setattr(MapReader, "read", lambda reader, picture: reads.append(1) or own(reader, picture))
        _, _, kept = found_in(spair)
        assert len(reads) == 4
        _, _, forgotten = found_in(spair, keep_bytes=0)
        # The first image of the third pair is the second of that before.
        assert len(reads) == 4 + 5
        _, _, some = found_in(spair, keep_bytes=2 * 3 * 32 * 32 * 4)
        assert len(reads) == 4 + 5 + 4
        for one, *others in zip(kept, forgotten, some, strict=True):
            for other in others:
                np.testing.assert_array_equal(one, other)

    def test_the_maps_used_last_are_kept(self, spair, monkeypatch):
        for name in ("e", "f"):
            save(chart(), spair / f"JPEGImages/dog/{name}.png")
        write_pairs(spair, [record("dog", "c.png", f"{name}.png", [[1, 2]], [[1, 2]], (9, 9)) for name in "def"])
        reads, own = [], MapReader.read
        monkeypatch.setattr(MapReader, "read", lambda reader, picture: reads.append(1) or own(reader, picture))
        found_in(spair, keep_bytes=2 * 3 * 32 * 32 * 4)
        assert len(reads) == 4

    def test_pairs_without_points_count_for_nothing(self, spair):
        expected = pair_scores(*found_in(spair))
        write_pairs(spair, [*PAIRS, record("cat", "b.png", "a.png", [], [], (9, 9))])
        data, places, found = found_in(spair)
        assert len(places) == 4
        assert found[3].shape == (0, 2)
        assert pair_scores(data, places, found) == expected

    def test_some_of_the_pairs(self, spair):
        data = read(spair)
        assert chosen_pairs(data, 2) == [0, 2]
        assert chosen_pairs(data, 100) == [0, 1, 2]
        every, dog = pair_scores(*found_in(spair, [0, 2]))
        assert (dog.name, every.pairs, every.points) == ("dog", 2, 3)

    def test_the_digest_is_of_images_and_points(self, spair):
        data = read(spair)
        digest = pairs_digest(data, [0, 1, 2])
        assert pairs_digest(read(spair), [0, 1, 2]) == digest
        assert pairs_digest(data, [0, 1]) != digest
        write_pairs(spair, [{**PAIRS[0], "trg_kps": [[1, 1], [2, 2]]}, *PAIRS[1:]])
        moved = pairs_digest(read(spair), [0, 1, 2])
        save(chart().rotate(180), spair / "JPEGImages/dog/c.png")
        assert len({digest, moved, pairs_digest(read(spair), [0, 1, 2])}) == 3


class TestRefused:
    def test_a_point_outside_its_image(self, spair):
        write_pairs(spair, [*PAIRS[:2], record("dog", "d.png", "c.png", [[5, 5], [120, 3]], [[1, 1], [2, 2]], (9, 9))])
        message = r"pair 3 has the point 120, 3 in dog/d\.png, which has 120 × 80 pixels"
        with pytest.raises(DataError, match=message):
            chosen_pairs(read(spair), None)
        assert chosen_pairs(read(spair), 1) == [0]

    def test_where_points_should_be_may_be_anywhere(self, spair):
        write_pairs(spair, [record("dog", "c.png", "d.png", [[5, 5]], [[-7, 300]], (9, 9))])
        (every, _) = pair_scores(*found_in(spair))
        assert every.per_point[0.1].mean == 0

    def test_no_points_at_all(self, spair):
        write_pairs(spair, [record("dog", "c.png", "d.png", [], [], (9, 9))])
        with pytest.raises(DataError, match="none of 1 pairs has points"):
            chosen_pairs(read(spair), None)

    def test_limits(self, spair):
        with pytest.raises(ValueError, match="limit must be"):
            chosen_pairs(read(spair), 0)


@pytest.fixture
def desk(spair, monkeypatch):
    monkeypatch.chdir(spair.parent)
    monkeypatch.setattr("difformer.cli.matching.create_backbone", lambda *_, **__: Colours())
    monkeypatch.setenv("DIFFORMER_CACHE", str(spair.parent / "cache"))
    return spair.parent


class TestVerb:
    words = ("match-pairs", "SPair-71k", "--t", "0", "--size", "64", "--output", "out")

    def test_everything(self, desk, capsys):
        assert main([*self.words]) == 0
        names = {path.name for path in (desk / "out").iterdir()}
        assert names == {"pairs.csv", "pairs.html", "results.json", *(f"pair-0000{n}.png" for n in (1, 2, 3))}
        printed = capsys.readouterr().out
        assert "colours, mean at t = 0, 8 draws, images read as 64×64" in printed
        lines = [line for line in printed.splitlines() if line.startswith(("all", "cat", "dog"))]
        rows = [re.sub(r" \(.*?\)", "", line).split() for line in lines]
        assert [row[:5] for row in rows] == [
            ["all", "3", "7", "75.0", "91.7"], ["cat", "1", "4", "75.0", "75.0"], ["dog", "2", "3", "75.0", "100.0"],
            ["all", "3", "7", "71.4", "85.7"], ["cat", "1", "4", "75.0", "75.0"], ["dog", "2", "3", "66.7", "100.0"],
        ], "per image, then per point"  # fmt: skip
        with (desk / "out/pairs.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["pair"], row["category"], row["source"], row["target"]) for row in rows] == [
            ("1", "dog", "dog/c.png", "dog/d.png"), ("2", "cat", "cat/a.png", "cat/b.png"),
            ("3", "dog", "dog/d.png", "dog/c.png"),
        ]  # fmt: skip
        assert [(row["points"], row["right@0.05"], row["right@0.1"]) for row in rows] == [
            ("2", "1", "2"), ("4", "3", "3"), ("1", "1", "1"),
        ]  # fmt: skip

    def test_the_record_says_what_made_it(self, desk):
        assert main([*self.words, "--seed", "3", "--subpixel", "--examples", "0"]) == 0
        found = json.loads((desk / "out/results.json").read_text())
        assert found["reading"]["backbone"] == {"name": "colours", "digest": "0" * 64}
        known = {name: found["reading"][name] for name in ("tap", "t", "draws", "size", "aspect", "seed")}
        assert known == {"tap": "mean", "t": 0, "draws": 8, "size": 64, "aspect": "stretch", "seed": 3}
        assert found["data"] == {"split": "test", "pairs": 3, "of": 3, "digest": pairs_digest(read("."), [0, 1, 2])}
        assert found["subpixel"] is True
        assert found["environment"]["device"] == "cpu"
        assert set(found["tables"]) == {"pairs.csv"}
        every = found["scores"][0]
        assert every["per_image"]["0.1"]["mean"] == pytest.approx(11 / 12)
        assert every["per_point"]["0.05"]["mean"] == pytest.approx(5 / 7)
        text = (desk / "out/results.json").read_text() + (desk / "out/pairs.html").read_text()
        assert str(desk) not in text

    def test_the_page_shows_pairs(self, desk, figures):
        assert main([*self.words, "--examples", "2", "--limit", "3"]) == 0
        html = (desk / "out/pairs.html").read_text()
        assert html.count("<img") == 2
        assert "Pair 1: 2 of 2 points are right" in html
        assert "3 of 3 pairs of test; colours, mean at t = 0" in html
        assert main([*self.words, "--examples", "0", "--overwrite"]) == 0
        assert "<img" not in (desk / "out/pairs.html").read_text()
        assert not list((desk / "out").glob("*.png")), "those of before are gone"

    def test_interrupted(self, desk, capsys, monkeypatch):
        passes, own = [], Colours.forward_taps

        def forward(*arguments):
            passes.append(1)
            if len(passes) == 3:
                raise KeyboardInterrupt
            return own(*arguments)

        monkeypatch.setattr(Colours, "forward_taps", forward)
        assert main([*self.words]) == 130
        assert [path.name for path in desk.iterdir() if path.name != "cache"] == ["SPair-71k"]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--split", "val"], "no split 'val'; it has test"),
            (["--limit", "0"], "limit must be"),
            (["--keep_mb", "-1"], "keep_mb must be at least 0, got -1"),
            (["--examples", "-1"], "examples must be at least 0, got -1"),
            (["--seed", "-1"], "seed must lie in"),
            (["--tap", "out01"], "unknown tap 'out01'"),
            (["--output", "SPair-71k"], "which is no result"),
        ],
    )
    def test_what_is_refused(self, desk, capsys, words, message):
        assert main([*self.words, *words]) == 1
        assert message in capsys.readouterr().err
        assert not (desk / "out").exists()

    def test_no_data_set(self, desk, capsys):
        assert main(["match-pairs", "elsewhere"]) == 1
        assert "there is no folder elsewhere" in capsys.readouterr().err

    def test_a_damaged_image(self, desk, capsys):
        path = desk / "SPair-71k/JPEGImages/dog/d.png"
        path.write_bytes(path.read_bytes()[:-60])
        assert main([*self.words]) == 1
        assert "dog/d.png cannot be read as an image" in capsys.readouterr().err
        assert not (desk / "out").exists()
