"""Detection from recipe to predictions: training, evaluation, comparison, boxes and masks of a folder."""

import io
import json
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from data_sets import write_json
from PIL import Image
from processes import run_ranks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import load_file
from support import tiny_unet
from training import assert_same_run, interrupt_after, make_recipe, merged

from difformer import create_backbone, load_classifier
from difformer.analysis import average_precision
from difformer.cli import main
from difformer.data import DataConfig, create_dataset
from difformer.rle import decode_rle
from difformer.tables import read_rows
from difformer.tasks.dense import read_scores
from difformer.tasks.detection.tables import kept_matches
from difformer.verbs.train.train import train

NAMES = ("red", "blue")
COLOURS = np.array([[225, 30, 30], [30, 30, 225]])
SIZE = (48, 64)


def write_scenes(root, split, count, *, size=SIZE, empty=(), crowd=()):
    """Images of two coloured squares on noise, one of each class; the last ones given are empty, or have a crowd."""
    images, annotations = [], []
    for number in range(1, count + 1):
        rng = np.random.default_rng([number, len(split)])
        pixels = rng.integers(90, 150, (*size, 3))
        for label in () if number in empty else (0, 1):
            side = int(rng.integers(14, 22))
            top = int(rng.integers(0, size[0] - side))
            left = int(rng.integers(0, size[1] // 2 - side)) + label * size[1] // 2
            pixels[top : top + side, left : left + side] = COLOURS[label]
            x, y = left, top
            corners = [x, y, x + side, y, x + side, y + side, x, y + side]
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": number, "category_id": 3 + 2 * label,
                    "bbox": [x, y, side, side], "area": side**2, "iscrowd": int(number in crowd and label == 1),
                    "segmentation": [corners],
                }
            )  # fmt: skip
        path = root / "images" / split / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        images.append({"id": number, "file_name": path.name, "height": size[0], "width": size[1]})
    categories = [{"id": 3 + 2 * label, "name": name} for label, name in enumerate(NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(root / "annotations" / f"instances_{split}.json", content)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Scenes, and the values of a recipe."""
    folder = tmp_path_factory.mktemp("scenes")
    create_backbone(tiny_unet(), schedule="linear").save(folder / "backbone.safetensors")
    for split, count in (("train", 8), ("val", 4)):
        write_scenes(folder / "data", split, count)
    write_scenes(folder / "data", "test", 5, empty=(4,), crowd=(5,))
    values = {
        "output": str(folder / "run"),
        "backbone": {"name": str(folder / "backbone.safetensors")},
        "extractor": {"taps": ["in01", "in03", "out01"], "timesteps": [10]},
        "task": {"name": "detection"},
        "head": {
            "name": "detection",
            "arguments": {"detector": "fcos", "width": 32, "finest_stride": 2, "max_detections": 20},
        },
        "data": {"name": "coco", "root": str(folder / "data"), "size": list(SIZE), "augmentation": "flip"},
        "optimizer": {"name": "adamw", "lr": 0.004},
        "training": {"epochs": 25, "batch_size": 4, "workers": 0},
        "evaluation": {"validation": "val", "select": "last", "every": 25, "test": "test"},
        "trackers": [],
    }
    return folder, values


MASKS = {
    "head": {"arguments": {"detector": "mask_rcnn", "width": 16, "finest_stride": 4, "anchor_scale": 4}},
    "data": {"object_masks": True, "size": [24, 32]},
    "training": {"epochs": 1, "batch_size": 2},
    "evaluation": {"every": 1},
}


@pytest.fixture(scope="module")
def run(place):
    """A finished run."""
    folder, values = place
    train(make_recipe(values))
    return folder / "run"


@pytest.fixture(scope="module")
def masked(place):
    """A finished run of Mask R-CNN, which has learned little."""
    folder, values = place
    train(make_recipe(values, output=str(folder / "masked"), **MASKS))
    return folder / "masked"


def opened(run):
    return load_classifier(run / "classifier.safetensors", backbone=run.parent / "backbone.safetensors")


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())["metrics"]


def pycocotools_of(folder, overlap):
    """What pycocotools says of the files of an evaluation."""
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "truth.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(folder / "detections.json")), overlap)
        for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
            step()
    return evaluation.stats


def test_it_learns_to_find_squares(run):
    found = results_of(run)["test"]
    assert found["ap50"] > 0.6
    assert found["num_images"] == 5
    record = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["validation_ap50"] > 0.6
    assert "mask_ap" not in found


@pytest.mark.slow
def test_masks_are_learned(place, tmp_path):
    _, values = place
    changes = MASKS | {"training": {"epochs": 12, "batch_size": 4}, "evaluation": {"every": 12}}
    train(make_recipe(values, output=str(tmp_path / "run"), **changes))
    found = results_of(tmp_path / "run")["test"]
    assert found["mask_ap50"] > 0.4
    assert found["ap50"] > 0.4


@pytest.mark.parametrize("name", ["run", "masked"])
def test_an_evaluation_is_what_pycocotools_says_of_its_files(name, tmp_path, request):
    run = request.getfixturevalue(name)
    assert main(["eval", str(run), "--split", "test", "--output", str(tmp_path / "eval")]) == 0
    found = metrics_of(tmp_path / "eval")
    assert found["ap"] == pytest.approx(results_of(run)["test"]["ap"], abs=1e-9)
    parts = {"": "bbox"} | ({"mask_": "segm"} if name == "masked" else {})
    for start, overlap in parts.items():
        stats = pycocotools_of(tmp_path / "eval", overlap)
        keys = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
        expected = {
            start + key: None if value < 0 else pytest.approx(value) for key, value in zip(keys, stats, strict=False)
        }
        assert {key: found[key] for key in expected} == expected
    kept = read_scores(tmp_path / "eval")
    assert average_precision(kept_matches(kept)).item() == pytest.approx(found["ap"], abs=1e-6)
    assert found["interval"]["mean"] == pytest.approx(found["ap"], abs=1e-6)
    assert found["interval"]["low"] <= found["ap"] <= found["interval"]["high"]
    truth = json.loads((tmp_path / "eval" / "truth.json").read_text())
    assert [image["file_name"] for image in truth["images"]] == [f"images/test/{i}.png" for i in range(1, 6)]
    assert sum(one["iscrowd"] for one in truth["annotations"]) == 1


def test_tables_of_an_evaluation(run, tmp_path):
    assert main(["eval", str(run), "--split", "test", "--output", str(tmp_path / "eval")]) == 0
    with (tmp_path / "eval" / "per_image.csv").open(newline="") as file:
        header, *rows = read_rows(file)
    assert header == ["id", "name", "objects", "detections", "right", "missed", "f1"]
    # The fourth has no objects, and of the fifth one is a crowd.
    assert [int(row[2]) for row in rows] == [2, 2, 2, 0, 1]
    for row in rows:
        objects, detections, right, missed = map(int, row[2:6])
        assert right + missed == objects
        assert float(row[6]) == pytest.approx(2 * right / (objects + detections) if objects + detections else 1)
    with (tmp_path / "eval" / "per_class.csv").open(newline="") as file:
        header, *rows = read_rows(file)
    assert [row[:2] for row in rows] == [["red", "4"], ["blue", "3"]]
    found = metrics_of(tmp_path / "eval")
    assert np.mean([float(row[2]) for row in rows]) == pytest.approx(found["ap"])
    for name in ("precision_recall.png", "precision_recall.pdf", "report.html"):
        assert (tmp_path / "eval" / name).stat().st_size > 5000


def test_two_processes_find_the_same(run, tmp_path):
    # An image a pass in both: convolutions of larger batches may add up in another order.
    run_ranks(2, "eval", run, "--split", "test", "--batch_size", "2", "--output", tmp_path / "two")
    assert main(["eval", str(run), "--split", "test", "--batch_size", "1", "--output", str(tmp_path / "one")]) == 0
    one, two = (metrics_of(tmp_path / name) for name in ("one", "two"))
    assert one == two
    assert (tmp_path / "one" / "detections.json").read_text() == (tmp_path / "two" / "detections.json").read_text()


def test_two_processes_learn_the_same(place, tmp_path):
    """Which regions are drawn depends on the step and the image, and not on the process."""
    _, values = place
    arguments = MASKS["head"]["arguments"] | {"detector": "faster_rcnn"}
    changes = MASKS | {"head": {"arguments": arguments}, "evaluation": {"validation": None, "test": None}}
    losses = []
    for name in ("one", "two"):
        recipe = merged(values, changes | {"output": str(tmp_path / name)})
        (tmp_path / f"{name}.yaml").write_text(json.dumps(recipe))
        if name == "one":
            assert main(["train", str(tmp_path / "one.yaml")]) == 0
        else:
            run_ranks(2, "train", tmp_path / "two.yaml")
        losses.append(json.loads((tmp_path / name / "metrics.jsonl").read_text())["train_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("detector", ["faster_rcnn", "mask_rcnn"])
def test_a_stopped_run_resumes_to_the_bit(detector, place, tmp_path):
    """Regions are drawn at random, by the step and the image."""
    _, values = place
    changes = MASKS | {"head": {"arguments": MASKS["head"]["arguments"] | {"detector": detector}}}
    one, other = tmp_path / "one", tmp_path / "other"
    train(make_recipe(values, output=str(one), **changes))
    torch.manual_seed(5)
    recipe = make_recipe(values, output=str(other), **changes)
    interrupt_after(lambda: train(recipe), 2)
    train(recipe)
    assert_same_run(one, other)


def test_feedback_learns_through_the_second_pass(place, tmp_path):
    """Losses of boxes reach the feedback layers: with a learning rate of next to nothing they stay as they were. With
    gradient checkpointing they come to the same."""
    _, values = place
    extractor = {"feedback_taps": ["out00"], "taps": ["in01", "mid", "out01"]}
    changes = {"extractor": extractor, "training": {"epochs": 1}, "evaluation": {"validation": None, "test": None}}
    kinds = {"learned": (0.02, False), "fresh": (1e-12, False), "recomputed": (0.02, True)}
    found = {}
    for name, (rate, checkpointing) in kinds.items():
        backbone = {"gradient_checkpointing": checkpointing}
        output = str(tmp_path / name)
        train(make_recipe(values, output=output, optimizer={"lr": rate}, backbone=backbone, **changes))
        found[name] = load_file(tmp_path / name / "classifier.safetensors")
    feedback = [name for name in found["learned"] if name.startswith("feedback") and name.endswith("weight")]
    assert feedback
    assert all((found["learned"][name] - found["fresh"][name]).abs().max() > 1e-3 for name in feedback)
    for name, weight in found["learned"].items():
        torch.testing.assert_close(found["recomputed"][name], weight)


def samples_of(folder, split, **changes):
    dataset = create_dataset(DataConfig(name="coco", root=str(folder / "data"), size=SIZE, **changes), split)
    return [dataset[place] for place in range(len(dataset))]


def assert_same(found, expected):
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-4)


def test_detections_do_not_depend_on_the_batch(run, place):
    classifier, samples = opened(run), samples_of(place[0], "test")
    images, ids = torch.stack([s.image for s in samples]), torch.tensor([s.id for s in samples])
    together = classifier.task.infer(classifier, images, ids, [s.origin for s in samples])
    assert sum(len(one.boxes) for one in together) > 8
    for place, sample in enumerate(samples):
        (alone,) = classifier.task.infer(classifier, sample.image[None], ids[place : place + 1], [sample.origin])
        assert_same(alone, together[place])


def overlaps(boxes, other):
    """(n,) IoU of boxes (n, 4) with one."""
    sides = np.minimum(boxes[:, 2:], other[2:]) - np.maximum(boxes[:, :2], other[:2])
    shared = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) + np.prod(np.subtract(other[2:], other[:2]))
    return shared / (areas - shared)


def test_boxes_come_back_to_larger_and_turned_images(run, place, tmp_path):
    """The same scene at twice the size, and as a file that a viewer turns."""
    folder, _ = place
    classifier = opened(run)
    scene = Image.open(folder / "data" / "images" / "test" / "1.png")
    truth = samples_of(folder, "test")[0].origin.target.boxes.numpy()
    exif = Image.Exif()
    exif[0x0112] = 6
    scene.resize((128, 96), Image.Resampling.NEAREST).save(tmp_path / "larger.png")
    scene.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    scene.save(tmp_path / "upright.png")
    larger, turned, upright = classifier.predict([tmp_path / f"{n}.png" for n in ("larger", "turned", "upright")])
    assert_same(turned, upright)
    for found, scale in ((upright, 1), (larger, 2)):
        for label, box in enumerate(truth):
            own = found.boxes[(found.labels == label) & (found.scores > 0.3)].numpy()
            assert overlaps(own, scale * box).max() > 0.5


def test_predictions_of_a_folder(masked, place, tmp_path):
    folder, _ = place
    images = tmp_path / "images"
    for name, size in (("a.png", (64, 48)), ("more/b.png", (40, 70))):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(folder / "data/images/test/2.png").resize(size).save(images / name)
    words = ["--output", str(tmp_path / "out"), "--backbone", str(folder / "backbone.safetensors")]
    assert main(["predict", str(masked), str(images), *words]) == 0
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        header, *rows = read_rows(file)
    assert header == ["file", "label", "score", "x1", "y1", "x2", "y2"]
    assert {row[0] for row in rows} <= {"a.png", "more/b.png"}
    listed = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert len(listed) == len(rows) > 0
    sizes = {"a": [48, 64], "more/b": [70, 40]}
    for one, row in zip(listed, rows, strict=True):
        assert one["category"] == NAMES[one["category_id"] - 1] == row[1]
        assert one["image_id"] == list(sizes).index(one["image"]) + 1
        x1, y1, x2, y2 = map(float, row[3:])
        assert one["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1])
        assert one["segmentation"]["size"] == sizes[one["image"]]
        ys, xs = decode_rle(one["segmentation"]).nonzero()
        if len(xs):
            assert x1 - 1 <= xs.min() <= xs.max() <= x2
            assert y1 - 1 <= ys.min() <= ys.max() <= y2
    for stem, size in sizes.items():
        assert Image.open(tmp_path / "out" / "overlays" / f"{stem}.jpg").size == (size[1], size[0])
        content = json.loads((tmp_path / "out" / "objects" / f"{stem}.json").read_text())
        assert [content["height"], content["width"]] == size


def test_runs_are_compared_with_a_paired_interval(run, place, tmp_path):
    folder, values = place
    other = folder / "other"
    train(make_recipe(values, output=str(other), training={"epochs": 2}, evaluation={"every": 2}))
    assert main(["compare", str(run), str(other), "--output", str(tmp_path / "compared")]) == 0
    first, second = json.loads((tmp_path / "compared" / "compare.json").read_text())
    good, bad = (results_of(path)["test"]["ap"] for path in (run, other))
    difference = second["against_first"]["difference"]
    assert difference["mean"] == pytest.approx(bad - good)
    assert difference["low"] <= difference["mean"] <= difference["high"] <= 0
    assert first["interval"]["mean"] == pytest.approx(good)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"head": MASKS["head"]},
            "data, train: 8 images, 2 classes.: mask_rcnn learns from masks .* set data.object_masks: true",
        ),
        ({"task": {"arguments": {"losses": 1}}}, "the task detection cannot be built with losses=1"),
        ({"features": "cached"}, "features: cached is not for the task detection"),
        ({"head": {"name": "linear", "arguments": {}}}, "linear gives logits .* Detection reads boxes of objects"),
        ({"evaluation": {"criterion": "mask_apx"}}, "got 'mask_apx'; did you mean 'mask_ap'"),
        ({"training": {"mixup": 0.2}}, "training.mixup is for the task classification"),
    ],
)
def test_wrong_recipes(changes, message, place, tmp_path):
    _, values = place
    with pytest.raises(ValueError, match=message):
        train(make_recipe(values, output=str(tmp_path / "run"), **changes))
    assert not (tmp_path / "run" / "state.pt").exists()


def test_numbers_that_there_are_not(run, tmp_path, capsys):
    words = ["eval", str(run), "--split", "test", "--output", str(tmp_path / "eval")]
    assert main([*words, "--metrics", "mask_ap50"]) == 1
    assert "mask_ap50 is not measured here, since the head or the data set has no masks" in capsys.readouterr().err


def test_a_split_without_objects_is_not_measured(run, place, tmp_path, capsys):
    write_scenes(place[0] / "data", "none", 2, empty=(1, 2))
    assert main(["eval", str(run), "--split", "none", "--output", str(tmp_path / "eval")]) == 1
    assert "none of 2 images has an object that could be found" in capsys.readouterr().err
    assert not (tmp_path / "eval" / "metrics.json").exists()


@pytest.mark.parametrize("detector", ["faster_rcnn", "mask_rcnn", "fcos", "retinanet"])
def test_a_dry_run_needs_no_data(detector, place, tmp_path, capsys):
    _, values = place
    size = {"anchor_scale": 2} if detector != "fcos" else {}
    head = {"name": "detection", "arguments": {"detector": detector, "width": 32, "finest_stride": 4, **size}}
    recipe = values | {"output": str(tmp_path / "run"), "head": head}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    assert main(["train", str(tmp_path / "recipe.yaml"), "--dry_run", "--fake_data"]) == 0
    assert "step 2" in capsys.readouterr().out


@pytest.mark.slow
def test_a_compiled_backbone_gives_the_same_losses(place, tmp_path):
    _, values = place
    changes = {"training": {"epochs": 1}, "evaluation": {"validation": None, "test": None}}
    losses = []
    for compiled in (False, True):
        output = tmp_path / str(compiled)
        train(make_recipe(values, output=str(output), backbone={"compile": compiled}, **changes))
        (record,) = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
        losses.append(record["train_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
