"""Segmentation from recipe to predictions: training, evaluation, comparison, masks of a folder."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from processes import run_ranks
from safetensors.torch import load_file
from support import tiny_unet
from torch.nn.functional import interpolate
from training import assert_same_run, interrupt_after, make_recipe, merged

from difformer import FeatureExtractor, FeatureKey, create_backbone, load_classifier
from difformer.analysis import METRICS, Metric, ridge_path
from difformer.analysis.segmentation import class_counts, mean_iou
from difformer.cli import main
from difformer.config.reading import build, read_yaml
from difformer.data import DataConfig, create_dataset
from difformer.data.joint import Whole
from difformer.diffusion import image_noise
from difformer.engine.config.build import outline_classifier
from difformer.engine.config.recipe import Recipe
from difformer.tables import read_rows
from difformer.tasks import Segmentation
from difformer.verbs.quickstart.dense import quickstart_dense
from difformer.verbs.quickstart.plan import RECIPES, QuickstartConfig
from difformer.verbs.train.train import train
from difformer.verbs.transfer.suite import TransferRecipe

CLASSES = ("background", "red", "blue")
COLOURS = np.array([[40, 160, 40], [220, 30, 30], [30, 30, 220]])


def write_scene(root, split, number, size=(40, 48)):
    """An image of two coloured rectangles on green, with noise, and its mask."""
    rng = np.random.default_rng([number, len(split)])
    mask = np.zeros(size, dtype=np.uint8)
    for label in (1, 2):
        top, left = rng.integers(0, size[0] - 16), rng.integers(0, size[1] - 16)
        mask[top : top + 16, left : left + 16] = label
    pixels = np.clip(COLOURS[mask] + rng.normal(0, 15, (*size, 3)), 0, 255)
    for folder, image in (("images", pixels.astype(np.uint8)), ("masks", mask)):
        path = root / folder / split / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Scenes, and the values of a recipe."""
    folder = tmp_path_factory.mktemp("scenes")
    create_backbone(tiny_unet(), schedule="linear").save(folder / "backbone.safetensors")
    for split, count in (("train", 10), ("val", 5), ("test", 5)):
        for number in range(count):
            write_scene(folder / "data", split, number)
    (folder / "data" / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    values = {
        "output": str(folder / "run"),
        "backbone": {"name": str(folder / "backbone.safetensors")},
        "extractor": {"taps": ["in01", "mid", "out03"], "timesteps": [10]},
        "task": {"name": "segmentation"},
        "head": {"name": "linear_pixel"},
        "data": {"name": "masks", "root": str(folder / "data"), "size": 32, "augmentation": "flip"},
        "optimizer": {"name": "adamw", "lr": 0.02},
        "training": {"epochs": 8, "batch_size": 4, "workers": 0},
        "evaluation": {"validation": "val", "select": "best", "test": "test"},
        "trackers": [],
    }
    return folder, values


@pytest.fixture(scope="module")
def run(place):
    """A finished run."""
    folder, values = place
    train(make_recipe(values))
    return folder / "run"


def opened(run):
    return load_classifier(run / "classifier.safetensors", backbone=run.parent / "backbone.safetensors")


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def test_it_learns_the_colours(run):
    results = results_of(run)
    assert results["test"]["miou"] > 0.5
    assert results["best"]["validation_miou"] == max(
        json.loads(line)["validation_miou"] for line in (run / "metrics.jsonl").read_text().splitlines()
    )


HEADS = {
    "upernet": {"name": "upernet", "arguments": {"width": 16, "auxiliary": True}},
    "pixel_mlp": {"name": "pixel_mlp", "arguments": {"members": 2, "hidden": [16], "samples": 64, "balanced": True}},
    "dense_difformer": {
        "name": "dense_difformer",
        "arguments": {"width": 16, "heads": 2, "layers": 1, "pool": 2, "decoder_width": 16},
    },
}


@pytest.mark.parametrize("name", HEADS)
def test_every_head_learns_and_resumes_to_the_bit(name, place, tmp_path):
    _, values = place
    changes = {"head": HEADS[name], "training": {"epochs": 2, "batch_size": 5}}
    one, other = tmp_path / "one", tmp_path / "other"
    train(make_recipe(values, output=str(one), **changes))
    recipe = make_recipe(values, output=str(other), **changes)
    interrupt_after(lambda: train(recipe), 3)
    train(recipe)
    assert_same_run(one, other)
    history = [json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()]
    assert history[1]["train_loss"] < history[0]["train_loss"]


def test_feedback_learns_through_the_second_pass(place, tmp_path):
    """Gradients of masks reach the feedback layers: with a learning rate of next to nothing they stay as they were."""
    _, values = place
    changes = {"extractor": {"feedback_taps": ["out00"]}, "training": {"epochs": 1}}
    for name, rate in (("learned", 0.02), ("fresh", 1e-12)):
        train(make_recipe(values, output=str(tmp_path / name), optimizer={"lr": rate}, **changes))
    learned, fresh = (load_file(tmp_path / name / "classifier.safetensors") for name in ("learned", "fresh"))
    feedback = [name for name in learned if name.startswith("feedback") and name.endswith("weight")]
    assert feedback
    assert all((learned[name] - fresh[name]).abs().max() > 1e-3 for name in feedback)


def test_two_processes_count_the_same(run, tmp_path):
    run_ranks(2, "eval", run, "--split", "test", "--output", tmp_path / "two")
    assert main(["eval", str(run), "--split", "test", "--output", str(tmp_path / "one")]) == 0
    one, two = (np.load(tmp_path / name / "scores.npz") for name in ("one", "two"))
    np.testing.assert_array_equal(one["counts"], two["counts"])
    np.testing.assert_array_equal(one["ids"], two["ids"])


def test_an_evaluation_is_what_its_masks_say(run, place, tmp_path):
    """Numbers, table and page against masks that were predicted for the same files."""
    folder, _ = place
    images = folder / "data" / "images" / "test"
    words = ["--output", str(tmp_path / "predicted"), "--backbone", str(folder / "backbone.safetensors")]
    assert main(["predict", str(run), str(images), *words]) == 0
    assert main(["eval", str(run), "--split", "test", "--output", str(tmp_path / "eval"), "--overwrite"]) == 0
    confusion = np.zeros((3, 3), dtype=np.int64)
    for number in range(5):
        found = np.asarray(Image.open(tmp_path / "predicted" / "masks" / f"{number}.png"))
        truth = np.asarray(Image.open(folder / "data" / "masks" / "test" / f"{number}.png"))
        assert found.shape == truth.shape
        np.add.at(confusion, (truth, found), 1)
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())["metrics"]
    # The noise of a prediction is by the image's content, that of an evaluation by its number.
    assert metrics["miou"] == pytest.approx(float(mean_iou(class_counts(confusion))), abs=0.03)
    assert metrics["interval"]["low"] <= metrics["miou"] <= metrics["interval"]["high"]
    with (tmp_path / "eval" / "confusion.csv").open(newline="") as file:
        header, *rows = read_rows(file)
    assert header[1:] == list(CLASSES)
    counts = np.array([[int(cell) for cell in row[1:]] for row in rows])
    assert counts.sum() == 5 * 40 * 48
    assert (tmp_path / "eval" / "report.html").stat().st_size > 10_000


def test_predictions_resume_and_skip(run, place, tmp_path, monkeypatch):
    folder, _ = place
    images = tmp_path / "images"
    for name in ("a.png", "b/c.png", "d.jpg", "d.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(folder / "data/images/test/0.png").resize((31, 57)).save(images / name)
    (images / "broken.png").write_bytes(b"no image")
    backbone = str(folder / "backbone.safetensors")
    words = ["predict", str(run), str(images), "--output", str(tmp_path / "out"), "--backbone", backbone]
    seen = []

    def stopping(self, folder, stem, *rest):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(stem)

    with monkeypatch.context() as patch:
        patch.setattr("difformer.tasks.segmentation.task.Segmentation.write", stopping)
        assert main(words) == 130
    assert not (tmp_path / "out" / "predictions.csv").exists()
    # A line that a killed process has cut off.
    with (tmp_path / "out" / "predictions.partial.jsonl").open("a") as file:
        file.write('{"file": "d.j')
    assert main(words) == 3
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        header, *rows = read_rows(file)
    assert header == ["file", *CLASSES, "certainty"]
    assert [row[0] for row in rows] == ["a.png", "b/c.png", "d.jpg", "d.png"]
    assert all(sum(map(float, row[1:4])) == pytest.approx(1) for row in rows)
    there = {str(path.relative_to(tmp_path / "out" / "masks")) for path in (tmp_path / "out" / "masks").rglob("*.png")}
    assert there | {f"{stem}.png" for stem in seen} == {"a.png.png", "b/c.png.png", "d.jpg.png", "d.png.png"}
    assert len(seen) == 2
    assert not {f"{stem}.png" for stem in seen} & there, "what was done is not done again"
    mask = Image.open(tmp_path / "out" / "masks" / "d.jpg.png")
    assert (mask.mode, mask.size) == ("P", (31, 57))


def test_a_prediction_does_not_depend_on_its_batch(run, place):
    folder, _ = place
    classifier = opened(run)
    dataset = create_dataset(DataConfig(name="masks", root=str(folder / "data"), size=32), "test")
    samples = [dataset[place] for place in range(5)]
    images, ids = torch.stack([s.image for s in samples]), torch.tensor([s.id for s in samples])
    together = classifier.task.infer(classifier, images, ids, [s.origin for s in samples])
    for number in range(5):
        (alone,) = classifier.task.infer(
            classifier, images[number : number + 1], ids[number : number + 1], [samples[number].origin]
        )
        torch.testing.assert_close(alone.certainty, together[number].certainty, rtol=1e-4, atol=1e-5)
        assert (alone.labels != together[number].labels).float().mean() < 1e-3


def test_windows_are_a_whole_pass_where_one_covers_the_image(run, place):
    folder, _ = place
    classifier = opened(run)
    dataset = create_dataset(DataConfig(name="masks", root=str(folder / "data"), size=32), "test")
    sample = dataset[0]
    image, number = sample.image[None], torch.tensor([sample.id])
    (whole,) = classifier.task.infer(classifier, image, number, [sample.origin])
    classifier.task.window = 32
    (windowed,) = classifier.task.infer(classifier, image, number, [sample.origin])
    torch.testing.assert_close(windowed.certainty, whole.certainty)
    assert torch.equal(windowed.labels, whole.labels)


def test_windows_share_the_images_noise_and_average_logits(run, place):
    """Against windows cut by hand from the image and its noise."""
    folder, _ = place
    classifier = opened(run)
    config = DataConfig(name="masks", root=str(folder / "data"), size=32, fit="keep")
    sample = create_dataset(config, "test")[0]
    assert sample.image.shape == (3, 40, 48)
    classifier.task.window, classifier.task.stride = 32, 0.5
    number = torch.tensor([sample.id])
    (found,) = classifier.task.infer(classifier, sample.image[None], number, [sample.origin])
    eps = image_noise(sample.image[None], number, 10, seed=classifier.extractor.seed)
    total, hits = torch.zeros(3, 40, 48), torch.zeros(40, 48)
    with torch.no_grad():
        for top in (0, 8):
            for left in (0, 16):
                part = (slice(None), slice(None), slice(top, top + 32), slice(left, left + 32))
                logits = classifier(sample.image[None][part], number, noise={10: eps[part]})
                total[:, top : top + 32, left : left + 32] += interpolate(logits, (32, 32), mode="bilinear")[0]
                hits[top : top + 32, left : left + 32] += 1
    expected = (total / hits).softmax(dim=0).max(dim=0)
    torch.testing.assert_close(found.certainty, expected.values)
    assert torch.equal(found.labels.long(), expected.indices)


def test_an_upright_and_a_turned_file_have_the_same_mask(run, place, tmp_path):
    folder, _ = place
    classifier = opened(run)
    upright = Image.open(folder / "data/images/test/1.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(tmp_path / "upright.png")
    # What a viewer turns by a quarter to the right.
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    one, other = classifier.predict([tmp_path / "upright.png", tmp_path / "turned.png"])
    assert one.labels.shape == other.labels.shape == (40, 48)
    assert torch.equal(one.labels, other.labels)


def test_runs_are_compared_with_a_paired_interval(run, place, tmp_path):
    folder, values = place
    other = folder / "other"
    train(make_recipe(values, output=str(other), optimizer={"lr": 1e-6}, training={"epochs": 1}))
    assert main(["compare", str(run), str(other), "--output", str(tmp_path / "compared")]) == 0
    first, second = json.loads((tmp_path / "compared" / "compare.json").read_text())
    good, bad = (results_of(path)["test"]["miou"] for path in (run, other))
    difference = second["against_first"]["difference"]
    assert difference["mean"] == pytest.approx(bad - good)
    assert difference["low"] <= difference["mean"] <= difference["high"] < 0
    assert first["interval"]["mean"] == pytest.approx(good)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {"arguments": {"losses": {"dise": 1}}}}, "unknown loss 'dise'; did you mean 'dice'"),
        ({"task": {"arguments": {"losses": {}}}}, "losses must map names to weights"),
        ({"task": {"arguments": {"losses": {"dice": -1}}}}, "losses.dice must be .* above 0"),
        ({"task": {"arguments": {"stride": 2}}}, "stride must be a number above 0 and at most 1"),
        ({"features": "cached"}, "features: cached is not for the task segmentation"),
        (
            {"head": {"name": "difformer"}},
            "difformer gives logits .* Segmentation reads maps .* task.name: classification",
        ),
        ({"training": {"mixup": 0.2}}, "training.mixup is for the task classification"),
        ({"extractor": {"conditioning": {"y": "label"}}}, "label"),
        ({"evaluation": {"criterion": "mio"}}, "got 'mio'; did you mean 'miou'"),
    ],
)
def test_wrong_recipes(changes, message, place, tmp_path):
    _, values = place
    with pytest.raises(ValueError, match=message):
        train(make_recipe(values, output=str(tmp_path / "run"), **changes))
    assert not (tmp_path / "run" / "state.pt").exists()


def test_classes_are_not_segmented(place, tmp_path):
    folder, values = place
    data = {"name": "folder", "root": str(folder / "data" / "images"), "holdout": 0.2, "splits": {"train": "."}}
    with pytest.raises(ValueError, match="has no Mask an image, which the task Segmentation predicts"):
        train(
            Recipe(
                **vars(
                    make_recipe(
                        {**values, "data": data},
                        output=str(tmp_path / "run"),
                        evaluation={"validation": None, "select": "last", "test": None},
                    )
                )
            )
        )


def test_a_dry_run_needs_no_data(place, tmp_path, capsys):
    _, values = place
    (tmp_path / "recipe.yaml").write_text(json.dumps(values | {"output": str(tmp_path / "run")}))
    assert main(["train", str(tmp_path / "recipe.yaml"), "--dry_run", "--fake_data"]) == 0
    assert "step 2" in capsys.readouterr().out
    for head in HEADS.values():
        (tmp_path / "other.yaml").write_text(json.dumps({"head": head}))
        words = ["train", str(tmp_path / "recipe.yaml"), "--config", str(tmp_path / "other.yaml")]
        assert main([*words, "--dry_run", "--fake_data"]) == 0


def _linear_miou(backbone, tap, data):
    """Of all pixels of the validation images, by a linear fit to all pixels of the training images."""
    extractor = FeatureExtractor(backbone, taps=[tap], timesteps=[10])
    sides = []
    for split in ("train", "val"):
        samples = list(create_dataset(data | {"augmentation": "none"}, split, augment=False))
        images, ids = torch.stack([s.image for s in samples]), [s.id for s in samples]
        (maps,) = extractor(images, ids).values()
        pixels = interpolate(maps, (40, 48), mode="bilinear").movedim(1, -1).flatten(0, 2)
        sides.append((pixels, torch.cat([s.origin.target.labels.flatten() for s in samples]).long()))
    (train_x, train_y), (x, y) = sides
    (fit,) = ridge_path(train_x, train_y, 3, strengths=[1e-3])
    return METRICS.find("miou").compute(fit.model.logits(x).numpy(), y.numpy())


def test_a_sweep_of_pixels_finds_what_its_recipe_then_learns(place, tmp_path):
    """Every block's numbers are those of a ridge fit on the same pixels, and the recipe that is advised trains."""
    folder, values = place
    common = {name: values[name] for name in ("backbone", "data")}
    recipe = common | {
        "task": "segmentation", "timesteps": [10], "pixels": 64, "validation": "val", "workers": 0,
        "output": str(tmp_path / "sweep"),
    }  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(json.dumps(recipe))
    assert main(["sweep", str(tmp_path / "sweep.yaml")]) == 0
    with (tmp_path / "sweep" / "scores.csv").open(newline="") as file:
        header, *rows = read_rows(file)
    assert "miou" in header
    found = {row[header.index("tap")]: float(row[header.index("miou")]) for row in rows}
    backbone = create_backbone(folder / "backbone.safetensors")
    assert list(found) == list(backbone.taps)
    assert found["mid"] == pytest.approx(_linear_miou(backbone, "mid", values["data"]), abs=0.05)
    (tmp_path / "train.yaml").write_text(json.dumps(values | {"output": str(tmp_path / "run")}))
    small = {"width": 16, "heads": 2, "layers": 1, "pool": 2, "decoder_width": 16}
    words = ["--config", str(tmp_path / "sweep" / "recommended.yaml"), "--training.epochs", "1"]
    assert main(["train", str(tmp_path / "train.yaml"), *words, "--head.arguments", json.dumps(small)]) == 0
    assert results_of(tmp_path / "run")["test"]["num_images"] == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": "test"}, "test is for classification; for segmentation train the recommended recipe"),
        ({"data": {"fit": "keep"}}, "reads images with data.fit: stretch, got keep"),
        ({"task": "segmentatoin"}, "Got value: segmentatoin"),
        ({"pixels": 0}, "pixels must be a positive integer, got 0"),
    ],
)
def test_wrong_sweeps(changes, message, place, tmp_path, capsys):
    _, values = place
    recipe = merged({name: values[name] for name in ("backbone", "data")} | {"task": "segmentation"}, changes)
    (tmp_path / "sweep.yaml").write_text(json.dumps(recipe | {"output": str(tmp_path / "sweep")}))
    assert main(["sweep", str(tmp_path / "sweep.yaml")]) == 1
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def quickstart(place):
    """A quickstart of three methods on the scenes, stopped once, and its folder."""
    folder, values = place
    base = {name: values[name] for name in ("backbone", "extractor", "task", "optimizer", "trackers")}
    base["data"] = {"name": "masks", "size": 32}
    base |= {"training": {"epochs": 2, "batch_size": 5, "workers": 0}, "evaluation": {"test": "test"}}
    pixels = {"taps": ["patch", "half"], "timesteps": [0], "clean": True}
    recipe = {
        "title": "Scenes: {name}",
        "about": "Three methods.",
        "titles": {"pixels": "Raw pixels", "linear": "Linear", "diffeed": "DifFeed"},
        "base": base,
        "heads": {
            "pixels": {"backbone": {"name": "pixels", "family": "pixels"}, "extractor": pixels,
                       "head": {"name": "linear_pixel"}},
            "linear": {"head": {"name": "linear_pixel"}},
            "diffeed": {"extractor": {"feedback_taps": ["out00"]}, "head": {"name": "linear_pixel"}},
        },
    }  # fmt: skip
    (folder / "quickstart.yaml").write_text(json.dumps(recipe))
    words = ["quickstart", "--task", "segmentation", "--data", str(folder / "data"), "--seeds", "2"]
    words += ["--recipe", str(folder / "quickstart.yaml"), "--output", str(folder / "quickstart")]
    config = QuickstartConfig(
        task="segmentation", data=str(folder / "data"), recipe=str(folder / "quickstart.yaml"), seeds=2,
        output=str(folder / "quickstart"),
    )  # fmt: skip
    interrupt_after(lambda: quickstart_dense(config), 3)
    assert not (folder / "quickstart" / "report.html").exists()
    assert main(words) == 0
    return folder / "quickstart", words


def test_a_quickstart_compares_all_methods_with_raw_pixels(quickstart):
    folder, _ = quickstart
    pixels, linear, diffeed = json.loads((folder / "compare.json").read_text())
    assert [method["name"] for method in (pixels, linear, diffeed)] == ["Raw pixels", "Linear", "DifFeed"]
    assert [len(method["runs"]) for method in (pixels, linear, diffeed)] == [2, 2, 1]
    scores = [results_of(folder / f"linear-{seed}")["test"]["miou"] for seed in (0, 1)]
    assert linear["interval"]["mean"] == pytest.approx(np.mean(scores))
    assert scores[0] != scores[1]
    assert pixels["against_first"] is None
    assert diffeed["against_first"]["difference"]["mean"] == pytest.approx(
        diffeed["interval"]["mean"] - pixels["interval"]["mean"]
    )
    page = (folder / "report.html").read_text()
    assert all(title in page for title in ("Scenes: data", "Raw pixels", "DifFeed", "Training", "Images"))


def test_a_quickstart_that_is_done_is_not_done_again(quickstart, monkeypatch, capsys):
    folder, words = quickstart
    before = (folder / "linear-1" / "state.pt").stat().st_mtime_ns
    assert main(words) == 0
    assert (folder / "linear-1" / "state.pt").stat().st_mtime_ns == before
    assert main([*words[:-2], "--output", str(folder), "--k_shot", "2"]) == 1
    assert "another quickstart" in capsys.readouterr().err
    assert main(["quickstart", "--task", "segmentation"]) == 1
    assert "give --data, the folder of images for the task segmentation" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["segmentation", "el_cracks", "detection"])
def test_the_quickstarts_own_recipes_are_whole(name, place):
    """Every method of the file can be built for its backbone, without training it."""
    folder, _ = place
    file = read_yaml(RECIPES / f"{name}.yaml")
    assert list(file["titles"]) == list(file["heads"])
    for section in file["heads"].values():
        recipe = build(Recipe, merged(merged(file["base"], section), {"data": {"root": str(folder / "data")}}))
        classifier = outline_classifier(recipe, CLASSES)
        assert classifier.head.num_classes == 3


def test_raw_pixels_are_the_neighbourhood_of_each_pixel():
    backbone = create_backbone("pixels", family="pixels")
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    found = FeatureExtractor(backbone, taps=list(backbone.taps), timesteps=[0], clean=True)(images)
    for key, maps in found.items():
        spec = backbone.taps_at(32, 48)[key.tap]
        assert maps.shape == (2, spec.channels, spec.height, spec.width)
    patch = found[FeatureKey("patch", 0)].unflatten(1, (3, 7, 7))
    torch.testing.assert_close(patch[:, :, 3, 3], images)
    torch.testing.assert_close(patch[:, :, 0, 5, 10, 20], images[:, :, 7, 22])
    # Beyond the edge, the pixels of the edge.
    torch.testing.assert_close(patch[:, :, 0, 3, 0, 20], images[:, :, 0, 20])
    half = found[FeatureKey("half", 0)].unflatten(1, (3, 3, 3))
    torch.testing.assert_close(half[:, :, 1, 1, 4, 5], images[:, :, 8:10, 10:12].mean(dim=(2, 3)))
    with pytest.raises(ValueError, match="multiples of 16, got 30×30"):
        backbone.taps_at(30, 30)
    with pytest.raises(ValueError, match="the family pixels has one backbone, pixels, got patch"):
        create_backbone("patch", family="pixels")


def test_a_suite_chooses_by_the_tasks_metric(place, tmp_path):
    folder, values = place
    base = {name: values[name] for name in ("backbone", "extractor", "task", "trackers")}
    base |= {"optimizer": {"name": "adamw"}, "training": {"epochs": 2, "batch_size": 5, "workers": 0}}
    suite = {
        "datasets": {"scenes": {"name": "masks", "root": str(folder / "data"), "size": 32}},
        "heads": {"linear": {"head": {"name": "linear_pixel"}}},
        "base": base,
        "candidates": {"optimizer.lr": [1e-9, 0.03]},
        "holdout": 0.4,
        "seeds": [0, 1],
        "output": str(tmp_path / "suite"),
    }
    (tmp_path / "suite.yaml").write_text(json.dumps(suite))
    assert main(["transfer", str(tmp_path / "suite.yaml")]) == 0
    (row,) = json.loads((tmp_path / "suite" / "results.json").read_text())["rows"]
    assert row["metric"] == "miou"
    assert row["chosen"] == {"optimizer.lr": 0.03}
    assert len(row["scores"]["miou"]) == 2
    assert "boundary_f" not in row["scores"] or row["scores"]["boundary_f"] == []
    table = (tmp_path / "suite" / "table.md").read_text()
    assert "Mean IoU of the test images in %".casefold() in table.casefold()
    with pytest.raises(ValueError, match=r"metrics must give one of miou, .*, got scenes: top1"):
        build(TransferRecipe, suite | {"metrics": {"scenes": "top1"}})


def test_a_sweep_takes_a_recipe_of_training(place, tmp_path):
    _, values = place
    (tmp_path / "train.yaml").write_text(json.dumps(values | {"output": str(tmp_path / "run")}))
    words = ["--timesteps", "10", "--taps", "in00", "--pixels", "16", "--validation", "val"]
    assert main(["sweep", str(tmp_path / "train.yaml"), *words, "--output", str(tmp_path / "sweep")]) == 0
    with (tmp_path / "sweep" / "scores.csv").open(newline="") as file:
        assert "miou" in read_rows(file)[0]


def test_a_saved_file_is_evaluated_on_data_that_is_named(run, place, tmp_path):
    _, values = place
    words = ["--data.name", "masks", "--data.root", values["data"]["root"], "--split", "test"]
    words += ["--backbone.name", values["backbone"]["name"], "--output", str(tmp_path / "results")]
    assert main(["eval", str(run / "classifier.safetensors"), *words]) == 0
    found = json.loads((tmp_path / "results" / "metrics.json").read_text())["metrics"]
    assert found["miou"] == pytest.approx(results_of(run)["test"]["miou"])


def test_images_that_keep_their_sizes_are_measured_by_windows(run, place, tmp_path):
    """Of images of two sizes, also where the fastest batch is looked for."""
    _, values = place
    write_scene(tmp_path / "data", "test", 0)
    write_scene(tmp_path / "data", "test", 1, size=(33, 70))
    write_scene(tmp_path / "data", "train", 0)
    (tmp_path / "data" / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    changes = {
        "task": {"arguments": {"window": 32}},
        "data": {"root": str(tmp_path / "data"), "fit": "keep", "augmentation": "jitter"},
        "training": {"epochs": 1, "batch_size": 1},
        "evaluation": {"validation": None, "select": "last", "batch_size": "auto"},
        "head": {"arguments": {"batch_norm": False}},
    }
    train(make_recipe(values, output=str(tmp_path / "run"), **changes))
    assert results_of(tmp_path / "run")["test"]["num_images"] == 2


def test_padding_is_no_part_of_a_windowed_mask(run, place):
    """A wide image in a square input: by windows as large as the input, what one pass gives."""
    classifier = opened(run)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 40, 3), dtype=np.uint8))
    classifier.preprocessing = Whole(32, "pad")
    (whole,) = classifier.predict(picture)
    classifier.task.window = 32
    (windowed,) = classifier.predict(picture)
    torch.testing.assert_close(windowed.certainty, whole.certainty)
    assert torch.equal(windowed.labels, whole.labels)


def test_damaged_weights_are_seen_through_windows_too(run):
    classifier = opened(run)
    classifier.head.fc.bias.data.fill_(float("nan"))
    picture = Image.new("RGB", (40, 40))
    for window in (None, 32):
        classifier.task.window = window
        with pytest.raises(ValueError, match="logits are not finite"):
            classifier.predict(picture)


def test_too_few_images_have_no_interval(place, tmp_path):
    """Each class in one image only: hardly a resample has them all."""
    _, values = place
    for split, count in (("train", 6), ("test", 6)):
        for number in range(count):
            mask = np.full((32, 32), number, dtype=np.uint8)
            # Not the same pixels in both splits, which would be refused.
            grey = mask * 40 + (split == "test")
            for kind, pixels in (("images", np.stack([grey] * 3, axis=2)), ("masks", mask)):
                path = tmp_path / "data" / kind / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    (tmp_path / "data" / "classes.txt").write_text("a\nb\nc\nd\ne\nf\n")
    for name in ("one", "other"):
        changes = {"data": {"root": str(tmp_path / "data")}, "evaluation": {"validation": None, "select": "last"}}
        train(make_recipe(values, output=str(tmp_path / name), training={"epochs": 1}, **changes))
    words = ["compare", str(tmp_path / "one"), str(tmp_path / "other"), "--output", str(tmp_path / "compared")]
    assert main(words) == 0
    metrics = json.loads((tmp_path / "one" / "eval-test" / "metrics.json").read_text())["metrics"]
    assert metrics["interval"] is None
    first, second = json.loads((tmp_path / "compared" / "compare.json").read_text())
    assert first["interval"] is second["against_first"] is None


def test_another_folder_is_not_taken_for_the_one_before(run, place, tmp_path, monkeypatch, capsys):
    """What was predicted for a folder is not kept for another, nor for a file that was replaced."""
    folder, _ = place
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in (0, 1):
            Image.open(folder / f"data/images/test/{number}.png").save(tmp_path / name / f"{number}.png")
    backbone = ["--backbone", str(folder / "backbone.safetensors"), "--output", str(tmp_path / "out")]
    calls = []
    write = Segmentation.write

    def stopping(self, folder, stem, *rest):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(stem)
        write(self, folder, stem, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Segmentation, "write", stopping)
        assert main(["predict", str(run), str(tmp_path / "a"), *backbone]) == 130
    assert main(["predict", str(run), str(tmp_path / "b"), *backbone]) == 1
    assert "of another folder" in capsys.readouterr().err
    Image.new("RGB", (9, 7)).save(tmp_path / "a" / "0.png")
    assert main(["predict", str(run), str(tmp_path / "a"), *backbone]) == 0
    assert Image.open(tmp_path / "out" / "masks" / "0.png").size == (9, 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"fit": "keep"}}, "data.fit: keep leaves images at their own sizes"),
        ({"task": {"arguments": {"window": 32}}, "extractor": {"draws": 2}}, "sliding windows read one noise draw"),
        ({"task": {"arguments": {"window": 31}}}, "image sides must be multiples of"),
        ({"evaluation": {"criterion": "boundary_f"}}, "must be a metric of the task, or one of .*, got 'boundary_f'"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_training(changes, message, place, tmp_path):
    _, values = place
    with pytest.raises(ValueError, match=message):
        train(make_recipe(values, output=str(tmp_path / "run"), **changes))
    assert not (tmp_path / "run" / "state.pt").exists()


# The least pixel accuracy of an image.
WORST = Metric(lambda scores, labels: float(min(np.trace(s.confusion) / s.confusion.sum() for s in scores)), share=True)


def test_a_metric_of_ones_own_chooses_and_is_reported(place, tmp_path):
    _, values = place
    name = "test_segmentation:WORST"
    train(make_recipe(values, output=str(tmp_path / "run"), evaluation={"criterion": name}, training={"epochs": 2}))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert results_of(tmp_path / "run")["best"] == max(records, key=lambda record: record[f"validation_{name}"])
    words = ["eval", str(tmp_path / "run"), "--metrics", name, "--output", str(tmp_path / "results")]
    assert main(words) == 0
    with (tmp_path / "results" / "per_image.csv").open(newline="") as file:
        header, *rows = read_rows(file)
    worst = min(float(row[header.index("pixel_accuracy")]) for row in rows)
    found = json.loads((tmp_path / "results" / "metrics.json").read_text())["metrics"][name]
    assert found == pytest.approx(worst)
