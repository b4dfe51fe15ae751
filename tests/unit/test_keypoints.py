"""The task of landmarks: what it learns, finds, keeps and measures; images go through the readers."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from data_sets import opened, write_json
from example_landmarks import NAMES, Seeing, dots, make_dots
from PIL import Image
from torch import Tensor

from difformer.analysis import Metric
from difformer.annotations.landmarks import WFLW_NAMES
from difformer.data import Points, collate
from difformer.tasks import DenseTask, Keypoints, Landmarks, Outputs, find_task
from difformer.tasks.dense import read_scores
from difformer.tasks.keypoints import heatmap_mse, heatmap_targets
from difformer.tasks.keypoints.scores import KeypointScore, length_of
from difformer.tasks.registry import check_head, stand_in_labels

SEEN = torch.tensor([True, True, False])


def faces(root, sizes=((24, 30),) * 3, **changes):
    """The data set of images with dots, and where these are."""
    make_dots(root, "train", list(sizes))
    return opened("points", root, "train", **({"augmentation": "none"} | changes))


def inferred(task, dataset, classifier, at_once=1):
    """(N, 3, 2) points of all images and their confidences."""
    found = []
    for start in range(0, len(dataset), at_once):
        batch = collate([dataset[place] for place in range(start, min(len(dataset), start + at_once))])
        found += task.infer(classifier, batch.images, batch.ids, batch.origins)
    return np.stack([one.points.numpy() for one in found]), np.stack([one.confidence.numpy() for one in found])


def score(predicted, true, visible, length=10.0):
    arrays = (np.asarray(one, dtype=np.float32) for one in (predicted, np.ones(len(visible)), true))
    return KeypointScore(*arrays, np.asarray(visible, dtype=bool), length)


def records(*scores):
    kept = np.empty(len(scores), dtype=object)
    kept[:] = scores
    return kept


class TestPlaces:
    """Predictions come back to the image's own pixels; where dots are drawn, nothing of the package says."""

    @pytest.mark.parametrize(
        ("options", "stride", "within"),
        [
            ({"size": 64}, 1, 0.1),
            ({"size": 64}, 2, 0.2),
            ({"size": [48, 64], "fit": "pad"}, 1, 0.15),
            ({"size": 16, "fit": "keep"}, 1, 0.05),
            ({"size": 16, "fit": "keep", "resize": 40}, 1, 0.1),
        ],
    )
    def test_of_odd_images_that_are_not_square(self, tmp_path, options, stride, within):
        sizes = [(33, 47), (41, 29), (30, 30)]
        places = make_dots(tmp_path, "train", sizes, seed=3)
        dataset = opened("points", tmp_path, "train", augmentation="none", **options)
        found, confidence = inferred(Keypoints(sigma=2.0), dataset, Seeing(stride))
        assert np.abs(found - places).max() < within
        assert confidence.min() > 0.5

    def test_of_an_image_that_the_camera_turned(self, tmp_path):
        places = make_dots(tmp_path, "train", [(33, 47)])
        path, exif = tmp_path / "images/train_0.png", Image.Exif()
        exif[0x0112] = 6
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
        dataset = opened("points", tmp_path, "train", augmentation="none", size=64)
        assert np.abs(inferred(Keypoints(), dataset, Seeing())[0] - places).max() < 0.1
        picture = dataset.picture(0)
        assert picture.size == (47, 33)

    @pytest.mark.parametrize("box_scale", [1.0, 1.3, 3.0])
    def test_of_crops_around_objects(self, tmp_path, box_scale):
        """The largest reach over the edges."""
        places = make_dots(tmp_path, "train", [(60, 90), (75, 51)], seed=1)
        dataset = opened("points", tmp_path, "train", augmentation="none", size=[64, 80], box_scale=box_scale)
        found, _ = inferred(Keypoints(), dataset, Seeing())
        assert np.abs(found - places).max() < 0.35

    def test_do_not_depend_on_the_batch(self, tmp_path):
        dataset = faces(tmp_path, size=32)
        alone, together = (inferred(Keypoints(), dataset, Seeing(2), count) for count in (1, 3))
        np.testing.assert_array_equal(alone[0], together[0])
        np.testing.assert_array_equal(alone[1], together[1])

    def test_rows_are_points_with_their_names(self):
        found = Landmarks(torch.tensor([[1.5, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([0.5, 1.0, 0.25]))
        task = Keypoints()
        assert task.columns(NAMES) == ["point", "x", "y", "confidence"]
        assert task.rows(found, NAMES)[0] == ["left_eye", 1.5, 2.0, 0.5]
        assert json.loads(json.dumps(task.rows(found, NAMES))) == task.rows(found, NAMES)


class Sided(Seeing):
    """Sees brightness alone: the left eye is the dot on the left, and the right eye that on the right."""

    def __call__(self, images: Tensor, ids: Tensor) -> Tensor:
        bright = super().__call__(images, ids).amax(dim=1)
        half = bright.shape[2] // 2
        left, right = bright.clone(), bright.clone()
        left[:, :, half:], right[:, :, :half] = 0, 0
        return torch.stack([left, right, bright], dim=1)


class TestMirrored:
    def pair(self, root):
        """An image with an eye on each side, at places that are no mirror of each other."""
        make_dots(root, "train", [(32, 40)])
        points = np.asarray([[8.5, 12.0], [27.0, 20.5], [np.nan, np.nan]])
        Image.fromarray(dots(points, 32, 40)).save(root / "images/train_0.png")
        return points[:2], opened("points", root, "train", augmentation="none", size=[32, 40])

    def test_points_change_places_and_come_back(self, tmp_path):
        points, dataset = self.pair(tmp_path)
        found, _ = inferred(Keypoints(flip_test=True), dataset, Sided())
        assert np.abs(found[0, :2] - points).max() < 0.05
        plain, _ = inferred(Keypoints(), dataset, Sided())
        np.testing.assert_allclose(found[:, :2], plain[:, :2], atol=1e-3)

    def test_another_order_is_seen(self, tmp_path):
        _, dataset = self.pair(tmp_path)
        _, heights = inferred(Keypoints(flip_test=True, flip_pairs={"left_eye": "nose"}), dataset, Sided())
        assert heights[0, 1] < 0.6, "the right eye of the image and the left one of its mirror are at two places"

    def test_errors_that_mirroring_turns_round_average_out(self, tmp_path):
        points, dataset = self.pair(tmp_path)
        once, _ = inferred(Keypoints(sigma=2.0), dataset, Sided(shift=1))
        both, _ = inferred(Keypoints(sigma=2.0, flip_test=True), dataset, Sided(shift=1))
        np.testing.assert_allclose(once[0, :2] - points, [[1, 0], [1, 0]], atol=0.05)
        np.testing.assert_allclose(both[0, :2], points, atol=0.05)

    def test_wflw_has_its_own_pairs(self):
        class Faces:
            class_names = WFLW_NAMES

        assert Keypoints(flip_test=True)._swap(WFLW_NAMES)[60] == 72
        assert Keypoints(flip_test=True).output_names(Faces()) == WFLW_NAMES

    def test_what_is_not_known_is_refused_before_anything_is_computed(self, tmp_path):
        dataset = faces(tmp_path, class_names=["a", "b", "c"])
        message = (
            "flip_test needs to know which points change places .* a, b, c, … .* set task.arguments.flip_pairs, {} w"
        )
        with pytest.raises(ValueError, match=message):
            Keypoints(flip_test=True).output_names(dataset)
        assert Keypoints(flip_test=True, flip_pairs={}).output_names(faces(tmp_path, flip_pairs={})) == NAMES

    def test_the_data_sets_own_pairs_must_be_the_same(self, tmp_path):
        dataset = faces(tmp_path, flip_pairs={"left_eye": "nose"})
        with pytest.raises(ValueError, match=r"task\.arguments\.flip_pairs must be those of the data set"):
            Keypoints(flip_test=True).output_names(dataset)
        assert Keypoints(flip_test=True, flip_pairs={"nose": "left_eye"}).output_names(dataset) == NAMES


class TestLosses:
    def labels(self):
        generator = torch.Generator().manual_seed(0)
        size = (16, 24)
        points = [torch.rand(3, 2, generator=generator) * torch.tensor([24.0, 16.0]) for _ in range(2)]
        return [Points(points[0], torch.ones(3, dtype=torch.bool), size), Points(points[1], SEEN, size)]

    def test_are_those_of_the_targets(self):
        labels = self.labels()
        maps = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(1))
        points, visible = (torch.stack([getattr(one, name) for one in labels]) for name in ("points", "visible"))
        targets = heatmap_targets(points, visible, (8, 12), (16, 24), 1.5)
        found = Keypoints(sigma=1.5).losses(maps, labels)
        assert torch.equal(found, heatmap_mse(maps, targets, visible))
        # By hand: a Gaussian around the place in cells of two pixels.
        x, y = labels[1].points[1].tolist()
        rows, columns = np.arange(8)[:, None] + 0.5, np.arange(12) + 0.5
        wanted = np.exp(-((columns - x / 2) ** 2 + (rows - y / 2) ** 2) / (2 * 1.5**2))
        np.testing.assert_allclose(targets[1, 1], wanted, atol=1e-6)

    def test_perfect_maps_have_none(self):
        labels = self.labels()
        points, visible = (torch.stack([getattr(one, name) for one in labels]) for name in ("points", "visible"))
        targets = heatmap_targets(points, visible, (8, 12), (16, 24))
        assert Keypoints().losses(targets, labels).tolist() == [0, 0]

    def test_an_image_without_a_visible_point_teaches_nothing(self):
        hidden = Points(torch.full((3, 2), float("nan")), torch.zeros(3, dtype=torch.bool), (16, 24))
        maps = torch.rand(2, 3, 8, 12, requires_grad=True)
        losses = Keypoints().losses(maps, [hidden, self.labels()[0]])
        losses.mean().backward()
        assert losses[0] == 0
        assert losses[1] > 0
        assert not maps.grad[0].any()
        assert maps.grad.isfinite().all()

    def test_a_heads_own_are_added_up(self):
        own = {"one": torch.tensor([1.0, 2.0]), "other": torch.tensor([0.5, 0.5])}
        assert Keypoints().losses(own, self.labels()).tolist() == [1.5, 2.5]

    def test_another_number_of_points(self):
        with pytest.raises(ValueError, match=r"targets must be .* of the heat maps' shape"):
            Keypoints().losses(torch.zeros(2, 4, 8, 12), self.labels())

    def test_stand_ins_are_points_too(self):
        labels = stand_in_labels(Keypoints(), 2, (16, 24), 5)
        assert Keypoints().losses(torch.zeros(2, 5, 8, 12), labels).shape == (2,)


class TestLengths:
    target = Points(
        torch.tensor([[3.0, 4.0], [9.0, 12.0], [5.0, 0.0], [0.0, 0.0]]),
        torch.tensor([True, True, True, False]), (30, 40), None, (2.0, 3.0, 11.0, 15.0),
    )  # fmt: skip
    names = ("a", "b", "c", "d")

    @pytest.mark.parametrize(
        ("normalize", "length"),
        [
            ("image", 50.0), ("box", 12.0), ("box_sqrt_area", 108**0.5), ("box_diagonal", 15.0), (["a", "b"], 10.0),
            ([["a", "b"], ["c"]], float(np.hypot(1, 8))), (["a", "d"], float("nan")),
            ([["a", "d"], "b"], float("nan")),
        ],
    )  # fmt: skip
    def test_of_an_image(self, normalize, length):
        found = length_of(Keypoints(normalize=normalize).length, self.target, self.names)
        assert found == pytest.approx(length, nan_ok=True)

    def test_two_points_at_one_place_are_none(self):
        target = Points(torch.ones(2, 2), torch.ones(2, dtype=torch.bool), (30, 40))
        assert np.isnan(length_of(Keypoints(normalize=["a", "b"]).length, target, ("a", "b")))

    def test_names_may_be_numbers(self):
        assert Keypoints(normalize=[60, 72]).arguments["normalize"] == ["60", "72"]

    @pytest.mark.parametrize("normalize", ["box", "box_diagonal"])
    def test_a_data_set_without_boxes_is_refused_before_anything_is_computed(self, tmp_path, normalize):
        message = f"normalize {normalize} needs the boxes of objects, .* data.box_scale only; set it, or choose"
        with pytest.raises(ValueError, match=message):
            Keypoints(normalize=normalize).output_names(faces(tmp_path))
        assert Keypoints(normalize=normalize).output_names(faces(tmp_path, box_scale=1.5)) == NAMES

    def test_a_name_that_is_no_point_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="normalize names 'left_ear', which is no point; did you mean 'left_eye'"):
            Keypoints(normalize=["left_ear", "nose"]).output_names(faces(tmp_path))


class TestNumbers:
    """Of three images: errors of 3 and 1 pixels, one point seen, and none."""

    scores = records(
        score([[3, 0], [10, 1], [7, 7]], [[0, 0], [10, 0], [0, 0]], [True, True, False]),
        score([[5, 5], [0, 0], [0, 0]], [[5, 7], [0, 0], [0, 0]], [True, False, False], 20.0),
        score([[5, 5], [0, 0], [0, 0]], [[0, 0], [0, 0], [0, 0]], [False, False, False]),
    )

    def test_are_those_of_hand(self):
        task = Keypoints(threshold=0.15, alphas=(0.1, 0.3))
        found = task.measure(self.scores, np.zeros(3), NAMES)
        assert (found.num_images, found.num_measured) == (3, 2)
        assert found.nme == pytest.approx((0.2 + 0.1) / 2)
        assert found.error == pytest.approx((3 + 1 + 2) / 3)
        assert found.value("pck@0.1") == pytest.approx(2 / 3)
        assert found.value("pck@0.3") == pytest.approx(1)
        assert found.failure_rate == 0.5
        assert found.auc == pytest.approx((0 + 1 / 3) / 2)
        assert [row.images for row in found.per_point] == [2, 1, 0]
        lines = "\n".join(task.lines(found.to_dict(tables=False)))
        assert "NME             15.0%\nerror            2.00 pixels" in lines
        assert "PCK@0.3        100.0%" in lines
        assert "left out       1 of 3 images, without a visible point or a length" in lines

    def test_metrics_say_their_direction(self):
        metrics = Keypoints(alphas=[0.2]).metrics
        assert {name: metric.larger_is_better for name, metric in metrics.items()} == {
            "nme": False, "error": False, "pck@0.2": True, "failure_rate": False, "auc": True,
        }  # fmt: skip
        assert next(iter(metrics)) == "nme"
        found = Keypoints(alphas=[0.2]).measure(self.scores, np.zeros(3), NAMES)
        for name, metric in metrics.items():
            assert metric.compute(self.scores, np.zeros(3)) == found.value(name)

    def test_merit_is_minus_the_error(self):
        task = Keypoints()
        assert [task.merit(one) for one in self.scores] == pytest.approx([-0.2, -0.1, float("-inf")])

    def test_nothing_to_measure(self):
        with pytest.raises(ValueError, match="none of 1 images has a visible point and a length"):
            Keypoints().measure(self.scores[2:], np.zeros(1), NAMES)

    def test_a_metric_of_ones_own(self, monkeypatch):
        task, name = Keypoints(), "test_keypoints:LARGEST"
        found = task.measure(self.scores, np.zeros(3), NAMES, extra=("nme", name))
        assert found.value(name) == 3
        assert found.summary()[name] == found.to_dict()[name] == 3
        monkeypatch.setattr("test_keypoints.LARGEST", Metric(lambda scores, labels: float("nan")))
        with pytest.raises(ValueError, match="LARGEST must be a finite number, got nan"):
            task.measure(self.scores, np.zeros(3), NAMES, extra=(name,))

    def test_intervals_leave_out_images_without_an_error(self):
        rng = np.random.default_rng(0)
        one, other = rng.random(40), rng.random(40)
        one[:5], other[3:8] = np.nan, np.nan
        task, how = Keypoints(), {"resamples": 200, "seed": 0}
        found = task.interval([{"nme": one}], **how)
        assert found.mean == pytest.approx(np.nanmean(one))
        assert found.low < found.mean < found.high
        both = task.difference([{"nme": one}], [{"nme": other}], **how)
        assert both.difference.mean == pytest.approx((one - other)[8:].mean())
        two = task.interval([{"nme": one}, {"nme": one + 2}], **how)
        assert two.mean == pytest.approx(np.nanmean(one) + 1)
        assert two.high - two.low == pytest.approx(found.high - found.low)
        several = task.difference([{"nme": one}, {"nme": one + 2}], [{"nme": other}], **how)
        assert several.difference.mean == pytest.approx(both.difference.mean + 1)


LARGEST = Metric(lambda scores, labels: float(max(np.nanmax(one.errors, initial=0) for one in scores)))


class TestFiles:
    @pytest.fixture(scope="class")
    @classmethod
    def tables(cls, tmp_path_factory):
        root = tmp_path_factory.mktemp("faces")
        dataset = faces(root, [(24, 30), (33, 21), (24, 30)])
        task = Keypoints()
        kept = []
        for place in range(len(dataset)):
            batch = collate([dataset[place]])
            (found,) = task.infer(Seeing(), batch.images, batch.ids, batch.origins)
            kept.append(task.score(found, batch.origins[0].target, NAMES))
        # As if the second image showed nothing.
        kept[1] = score(kept[1].predicted, kept[1].true, [False] * 3)
        outputs = Outputs(records(*kept), np.zeros(3, dtype=np.int64), dataset.ids)
        folder = root / "tables"
        folder.mkdir()
        task.write_tables(folder, task.measure(outputs.values, outputs.labels, NAMES), outputs, dataset)
        return folder, task, outputs

    def test_all_are_there(self, tables):
        folder, task, _ = tables
        assert {path.name for path in folder.iterdir()} == set(task.tables)
        assert (folder / "error_curve.pdf").read_bytes()[:5] == b"%PDF-"
        assert Image.open(folder / "error_curve.png").size[0] > 300

    def test_points_and_images(self, tables):
        folder, _, outputs = tables
        rows = list(csv.DictReader((folder / "points.csv").open()))
        assert [row["point"] for row in rows] == [*NAMES] * 3
        assert (rows[0]["id"], rows[0]["name"]) == ("0", "images/train_0.png")
        assert float(rows[2]["x"]) == pytest.approx(outputs.values[0].predicted[2, 0])
        assert float(rows[2]["error"]) == pytest.approx(outputs.values[0].errors[2])
        assert rows[3]["error"] == rows[3]["true_x"] == ""
        assert rows[3]["x"], "it is predicted all the same"
        images = list(csv.DictReader((folder / "per_image.csv").open()))
        assert [row["visible"] for row in images] == ["3", "0", "3"]
        assert images[1]["nme"] == images[1]["error"] == ""
        assert float(images[2]["nme"]) == pytest.approx(outputs.values[2].nme)
        points = list(csv.DictReader((folder / "per_point.csv").open()))
        assert [(row["point"], row["images"]) for row in points] == [(name, "2") for name in NAMES]

    def test_what_a_comparison_reads(self, tables):
        folder, task, outputs = tables
        kept = read_scores(folder)
        assert kept["ids"].tolist() == outputs.ids.tolist()
        np.testing.assert_allclose(kept["nme"], [one.nme for one in outputs.values])
        assert task.interval([kept], resamples=50, seed=0).mean == pytest.approx(np.nanmean(kept["nme"]))

    def test_sections_of_a_page(self, tables):
        folder, task, outputs = tables
        measured = task.measure(outputs.values, outputs.labels, NAMES)
        points, errors = task.sections(measured, folder)
        assert [row[0] for row in points.blocks[0].rows] == list(NAMES)
        assert errors.blocks[0].path.exists()

    def test_points_are_drawn_where_they_are(self, tmp_path):
        picture = Image.new("RGB", (40, 30))
        found = Landmarks(torch.tensor([[10.5, 20.5], [30.5, 5.5], [20.5, 15.5]]), torch.ones(3))
        Keypoints().write(tmp_path, "deep/one", picture, found, NAMES)
        pixels = np.asarray(Image.open(tmp_path / "overlays/deep/one.jpg")).astype(int)
        assert pixels[20, 10].max() > 120
        assert pixels[5, 30].max() > 120
        assert pixels[28, 2].max() < 60
        assert np.asarray(picture).max() == 0, "the picture itself is left as it was"
        Keypoints().finish(tmp_path, ["a"], NAMES)

    @pytest.mark.parametrize("visible", [[True, True, False], [False] * 3])
    def test_truth_and_prediction_side_by_side(self, tmp_path, visible):
        target = Points(torch.tensor([[5.0, 6.0], [20.0, 9.0], [0.0, 0.0]]), torch.tensor(visible), (30, 40))
        found = Landmarks(torch.tensor([[6.0, 6.0], [25.0, 9.0], [30.0, 20.0]]), torch.ones(3))
        Keypoints().draw(tmp_path / "one.png", Image.new("RGB", (40, 30)), target, found, NAMES)
        width, height = Image.open(tmp_path / "one.png").size
        assert width > 2 * height


class TestArguments:
    def test_they_build_it_again(self):
        arguments = {
            "sigma": 1.5, "normalize": [["left_eye", "nose"], "right_eye"], "threshold": 0.08, "alphas": [0.1, 0.2],
            "flip_test": True, "flip_pairs": {"left_eye": "right_eye"},
        }  # fmt: skip
        task = find_task("keypoints", arguments)
        assert isinstance(task, DenseTask)
        assert task.arguments == json.loads(json.dumps(task.arguments)) == arguments
        assert Keypoints(**Keypoints().arguments).arguments == Keypoints().arguments

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"sigma": 0}, "sigma must be a finite number above 0, got 0"),
            ({"sigma": "2"}, "sigma must be a finite number above 0, got '2'"),
            ({"normalize": "eyes"}, "normalize must be one of image, box, box_sqrt_area, box_diagonal, got 'eyes'"),
            ({"normalize": None}, r"normalize must be one of image, .* or two points such as .*; got None"),
            ({"normalize": ["a"]}, r"or two points such as .*; got \['a'\]"),
            ({"normalize": ["a", []]}, r"or two points such as .*; got \['a', \[\]\]"),
            ({"normalize": ["a", True]}, r"or two points such as .*; got \['a', True\]"),
            ({"normalize": ["a", ["a"]]}, r"normalize must name two different places, got \['a', \['a'\]\]"),
            ({"threshold": -1}, "threshold must be a finite number above 0, got -1"),
            ({"alphas": 0.1}, r"alphas must be a list, got 0\.1"),
            ({"alphas": [0.1, "b"]}, "every entry of alphas must be a finite number above 0, got 'b'"),
            ({"alphas": [0.1, 0.1]}, r"alphas must be different numbers, got \[0\.1, 0\.1\]"),
            ({"flip_test": "yes"}, "flip_test must be true or false, got 'yes'"),
            ({"flip_test": True, "flip_pairs": ["a"]}, r"flip_pairs must map names of points .*, got \['a'\]"),
            ({"flip_pairs": {}}, "flip_pairs are for flip_test: true"),
            ({"sigmas": 2}, "the task keypoints cannot be built with sigmas=2"),
        ],
    )
    def test_wrong_ones(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            find_task("keypoints", arguments)

    def test_a_head_that_gives_something_else(self):
        class Maps:
            gives = "maps"

        message = "gives maps of logits .*, and the task Keypoints reads heat maps of landmarks"
        with pytest.raises(ValueError, match=message):
            check_head(Keypoints(), Maps())

    def test_maps_that_are_not_finite(self, tmp_path):
        class Damaged(Seeing):
            def __call__(self, images, ids):
                return super().__call__(images, ids) * float("nan")

        with pytest.raises(ValueError, match=re.escape("heat maps are not finite: weights of the head are damaged")):
            inferred(Keypoints(), faces(tmp_path), Damaged())


def test_points_without_annotation_are_skipped_in_numbers_and_predicted(tmp_path):
    """Of an object whose points all lie outside of its crop."""
    make_dots(tmp_path, "train", [(60, 60)] * 2)
    content = json.loads((tmp_path / "keypoints_train.json").read_text())
    content["annotations"][0]["bbox"] = [0, 0, 2, 2]
    write_json(tmp_path / "keypoints_train.json", content)
    dataset = opened("points", tmp_path, "train", augmentation="none", size=32, box_scale=1.0)
    assert not dataset[0].label.visible.any()
    losses = Keypoints().losses(torch.zeros(1, 3, 32, 32), [dataset[0].label])
    assert losses.tolist() == [0]
    found, _ = inferred(Keypoints(), dataset, Seeing())
    assert np.isfinite(found).all()
