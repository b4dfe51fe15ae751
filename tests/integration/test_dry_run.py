"""Dry runs: what they print, and that they leave nothing behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import tiny_unet
from training import make_recipe, merged, write_workplace

from difformer import UNet, UNetConfig, create_backbone
from difformer.cli import main
from difformer.config.reading import dump
from difformer.data import DataConfig, Sample, collate
from difformer.data.fake import KNOWN, FakeImages
from difformer.engine.config.build import build_dataset
from difformer.engine.extraction.estimate import time_batches
from difformer.engine.runtime.processes import create_accelerator
from difformer.verbs.train import dry_run
from difformer.verbs.train.dry_run import try_out
from difformer.verbs.train.run import Run
from difformer.verbs.train.train import train

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    return folder, write_workplace(folder)


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty working folder, which must stay so."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "here"
    assert not list((tmp_path / "here").iterdir())


def lines_of(text):
    return {line[:14].strip(): line[14:] for line in text.splitlines()}


def test_a_dry_run_builds_everything_and_writes_nothing(workplace, empty, capsys):
    folder, values = workplace
    before = sorted(folder.rglob("*"))
    found = try_out(make_recipe(values, output="run", trackers=["tensorboard"]))
    assert sorted(folder.rglob("*")) == before
    assert found.images == {"train": 24, "holdout": 6, "test": 15}
    assert len(found.losses) == 2
    assert all(0 < loss < 10 for loss in found.losses)
    # SGD with momentum keeps one number for each weight.
    assert found.optimizer_bytes == 4 * found.costs.head
    printed = lines_of(capsys.readouterr().out)
    assert printed["images"] == "24 train, 6 holdout, 15 test; 3 classes"
    assert f"{found.costs.head:,} parameters: head {found.costs.head:,}, feedback 0" in printed["trained"]
    assert f"{found.costs.flops / 1e9:,.1f} GFLOP an image" in printed["features"]
    assert {"output", "backbone", "an epoch", "memory", "activations", "peak memory", "disk", "time"} <= printed.keys()


def test_the_steps_are_those_of_training(workplace, tmp_path, empty):
    _, values = workplace
    recipe = make_recipe(values, output=str(tmp_path / "run"), training={"batch_size": 2, "epochs": 1})
    losses = try_out(recipe).losses
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        from difformer.engine.loop.trainer import Trainer

        step = Trainer._step
        patch.setattr(Trainer, "_step", lambda *arguments: steps.append(step(*arguments)) or steps[-1])
        train(recipe)
    assert losses == tuple(totals.loss_sum / totals.counted for totals in steps[:2])


def test_optimisers_with_more_state_are_measured(workplace, empty):
    _, values = workplace
    recipe = make_recipe(values, optimizer={"name": "adamw", "lr": 1e-3, "momentum": 0.0}, training={"ema": 0.9})
    found = try_out(recipe)
    # Two moments, and a step count for each tensor.
    assert 8 * found.costs.head <= found.optimizer_bytes < 8 * found.costs.head + 1000
    plain = try_out(make_recipe(values, optimizer={"momentum": 0.0}))
    assert plain.optimizer_bytes == 0


def test_peak_memory_is_that_of_the_process(workplace, empty):
    found = try_out(make_recipe(workplace[1]))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert found.peak_bytes == pytest.approx(1024 * int(status["VmHWM"].split()[0]), rel=0.2)


def test_fake_data_needs_neither_weights_nor_images(workplace, empty, monkeypatch, capsys):
    values = merged(workplace[1], {"data": {"name": "CUB_200-2011", "root": None}, "output": "run"})
    # Of a file that names the backbone, the architecture is read and not the weights.
    monkeypatch.setattr("difformer.backbones.adm.open_weights", lambda *_, **__: pytest.fail("weights were read"))
    found = try_out(make_recipe(values), fake_data=True)
    assert found.images == {"train": 4795, "holdout": 1199, "test": 5794}
    assert "(random stand-ins); 200 classes" in capsys.readouterr().out
    state = torch.random.get_rng_state()
    assert try_out(make_recipe(values), fake_data=True).losses == found.losses
    assert torch.random.get_rng_state().equal(state)


def test_a_dry_run_of_cached_features_says_their_size_and_makes_none(workplace, empty, capsys):
    _, values = workplace
    recipe = make_recipe(values, features="cached", cache={"folder": "features", "views": 3})
    try_out(recipe)
    # in03 and mid are 8×8, pooled to 2×2; two timesteps; 3 views of 24 images and one of 21.
    widths = sum(spec.channels for name, spec in tiny_unet().taps.items() if name in ("in03", "mid"))
    assert f"{widths * 4 * 2 * 2 * (3 * 24 + 21) / 1000:.3g} kB in features" in capsys.readouterr().out


def test_what_cannot_fit_is_refused_before_the_first_step(workplace, empty, monkeypatch, capsys):
    monkeypatch.setattr(dry_run, "two_steps", lambda *_: pytest.fail("a step was taken"))
    monkeypatch.setattr(dry_run, "free_memory", lambda _: 1_000_000)
    with pytest.raises(
        ValueError, match=r"2 images of 64 pixels at once need about .*B of memory, and 1 MB are free.* 16"
    ):
        try_out(make_recipe(workplace[1], data={"size": 64}))
    assert "with 2 images at once; 1 MB are free" in lines_of(capsys.readouterr().out)["a step"]


def test_cached_features_are_extracted_once(workplace, empty, monkeypatch, capsys):
    """Of a run that reads images ten thousand times slower than its head learns from features."""
    monkeypatch.setattr(dry_run, "time_image", lambda *_: 100.0)
    monkeypatch.setattr(dry_run, "_head_seconds", lambda _: 0.5)
    try_out(make_recipe(workplace[1], features="cached", cache={"folder": "features", "views": 3}))
    # 3 views of 24 images and one of 6 and of 15; 3 epochs of 24.
    expected = "02:35:00 for the features of 93 images, once; then 00:12 an epoch; 02:35:36 in all for 3 epochs"
    assert expected.replace("02:", "2:") in lines_of(capsys.readouterr().out)["time"]


def test_a_head_alone_is_timed(workplace, empty):
    recipe = make_recipe(workplace[1], features="cached")
    run = Run(recipe, create_accelerator(recipe.training.precision), at_once=2)
    assert run.inputs is run.images
    assert 0 < dry_run._head_seconds(run) < 1


FEEDBACK = {"feedback_taps": ["out03"], "taps": ["out02"], "timesteps": [90]}


@pytest.mark.parametrize("changes", [{}, {"extractor": FEEDBACK}], ids=["features", "feedback"])
def test_steps_are_timed_with_the_batches_of_the_recipe(changes, workplace, empty, monkeypatch, capsys):
    asked = []

    def time_batches(compute, dataset, most, workers):
        asked.append((most, workers))
        samples = [dataset[place] for place in range(most)]
        before = {name: tensor.clone() for name, tensor in run[-1].classifier.trained_state().items()}
        compute(collate(samples))
        after = run[-1].classifier.trained_state()
        assert any(not after[name].equal(tensor) for name, tensor in before.items()), "a step trains"
        return 0.5

    run = []
    build = Run.__init__
    monkeypatch.setattr(
        Run, "__init__", lambda self, *args, **options: run.append(self) or build(self, *args, **options)
    )
    monkeypatch.setattr(dry_run, "time_batches", time_batches)
    try_out(make_recipe(workplace[1], **changes))
    # Of 24 images in batches of 8.
    assert lines_of(capsys.readouterr().out)["time"] == "00:12 an epoch of training, at 2 images a second"
    try_out(make_recipe(workplace[1], **changes, training={"batch_size": 64, "accumulation": 3, "workers": 2}))
    assert asked == [(8, 0), (8, 2)]


def test_no_more_images_are_timed_than_fit_into_the_memory(workplace, empty, monkeypatch):
    asked = []
    monkeypatch.setattr(dry_run, "time_batches", lambda *arguments: asked.append(arguments[2]) or 1.0)
    monkeypatch.setattr(dry_run, "step_bytes", lambda *arguments, **options: 100 * arguments[2])
    monkeypatch.setattr(dry_run, "free_memory", lambda _: 250)
    try_out(make_recipe(workplace[1]))
    assert asked == [2]


def test_an_image_that_cannot_be_read_is_not_timed():
    images = [None, Sample(torch.zeros(3, 8, 8), 0, 5), None]
    sizes = []
    seconds = time_batches(lambda batch: sizes.append(batch.ids.tolist()), images, 3, 0, budget=0)
    assert seconds > 0
    assert sizes == [[5, 5]]
    assert time_batches(lambda _: pytest.fail("there is no image"), [None], 1, 0) > 0


def test_memory_is_that_of_a_process(workplace, empty, capsys):
    """64 images are more than there are, and go through in three parts."""
    try_out(make_recipe(workplace[1], training={"batch_size": 64, "accumulation": 3}))
    shown = lines_of(capsys.readouterr().out)
    assert re.search(r"with 1 images at once; about .* with 8 of a batch of 64$", shown["activations"])


def test_feedback_is_tried_out(workplace, empty, capsys):
    found = try_out(make_recipe(workplace[1], extractor=FEEDBACK))
    assert found.costs.feedback > 0
    assert "gradients through the backbone about" in capsys.readouterr().out


def test_a_dry_run_finds_what_training_would(workplace, tmp_path, empty):
    _, values = workplace
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("important")
    with pytest.raises(FileExistsError, match="holds something that is no run"):
        try_out(make_recipe(values, output=str(tmp_path / "thesis")))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        try_out(make_recipe(values, data={"root": "/nowhere"}))
    with pytest.raises(ValueError, match="expected one of"):
        try_out(make_recipe(values, extractor={"taps": ["out99"]}))


def test_the_batches_that_training_would_refuse_are_refused(workplace, tmp_path, empty, capsys):
    recipe = make_recipe(
        {**workplace[1], "head": {"name": "linear", "arguments": {"batch_norm": True}}},
        features="cached",
        extractor={"taps": ["mid"], "timesteps": [90]},
        training={"batch_size": 23},
    )
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    options = ["--dry_run", "--output", "run"]
    assert main(["train", str(tmp_path / "recipe.yaml"), *options]) == 1
    assert "the 24 images leave a process one at a time" in capsys.readouterr().err
    # Its own small batches are not what is asked.
    assert main(["train", str(tmp_path / "recipe.yaml"), *options, "--training.batch_size", "12"]) == 0


def test_the_command_line_tries_out(workplace, tmp_path, empty, capsys):
    _, values = workplace
    (tmp_path / "recipe.yaml").write_text(dump(make_recipe(values)))
    assert main(["train", str(tmp_path / "recipe.yaml"), "--dry_run", "--output", "run"]) == 0
    assert "step 2" in capsys.readouterr().out
    assert main(["train", str(tmp_path / "recipe.yaml"), "--fake_data"]) == 1
    assert "--fake_data is for --dry_run" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["cub", "flowers", "imagenet", "elpv", "Stanford-Dogs", "EuroSAT"])
def test_stand_ins_have_the_classes_of_the_data_set(name):
    images = FakeImages(DataConfig(name=name, size=8), "train", 5)
    classes = {"cub": 200, "flowers": 102, "imagenet": 1000, "elpv": 2, "Stanford-Dogs": 120, "EuroSAT": 10}[name]
    assert len(images.class_names) == len(set(images.labels)) == classes
    assert len(images) > 1000
    one, again = images[3], images[3]
    assert one.image.equal(again.image)
    assert one.image.shape == (3, 8, 8)
    assert -1 <= one.image.min() < one.image.max() <= 1


@pytest.mark.parametrize(
    ("changes", "split", "count"),
    [
        ({}, "train", 1020),
        ({"splits": {"train": "trainval"}}, "train", 2040),
        ({"splits": {"train": "trainval"}, "holdout": 0.1}, "train", 1836),
        ({"splits": {"train": "trainval"}, "holdout": 0.1}, "holdout", 204),
        ({"holdout": 0.1, "k_shot": 2}, "train", 204),
        ({"percent": 50}, "train", 510),
        ({"percent": 1}, "train", 102),
        ({"percent": 1}, "test", 6149),
    ],
)
def test_stand_ins_are_as_many_as_the_images(changes, split, count):
    assert len(FakeImages(DataConfig(name="flowers", **changes), split, 5)) == count


def test_unknown_data_sets_get_stand_ins_of_a_few_batches():
    images = FakeImages(DataConfig(name="folder", class_names=("a", "b")), "train", 12)
    assert (len(images), images.class_names) == (12, ("a", "b"))


def test_the_known_size_of_elpv_is_that_of_the_package():
    pytest.importorskip("elpv_dataset")
    for split in ("train", "test", "all"):
        data = build_dataset(DataConfig(name="elpv", size=8, check_images="none"), split)
        assert (len(data), len(data.class_names)) == (KNOWN["elpv"].images[split], KNOWN["elpv"].classes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("linear", "4,097,000 parameters: head 4,097,000, feedback 0"),
        ("diffeed", "30,545,896 parameters: head 27,786,216, feedback 2,759,680"),
    ],
)
def test_published_recipes_run_without_weights_and_data(name, trained, tmp_path):
    """The others of the four differ in the head alone, which the tests of the recipes count."""
    path = ROOT / "train" / "configs" / f"imagenet_{name}.yaml"
    command = [sys.executable, "-c", "import sys; from difformer.cli import main; sys.exit(main(sys.argv[1:]))"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DIFFORMER_CHECKPOINTS": str(tmp_path)}
    done = subprocess.run(
        [*command, "train", str(path), "--dry_run", "--fake_data"],
        capture_output=True, text=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert trained in done.stdout
    assert "552,814,086 parameters, frozen" in done.stdout
    assert "1,281,167 train, 50,000 val (random stand-ins); 1000 classes" in done.stdout
    assert len(re.findall(r"^step \d +2 images, loss \d\.\d+", done.stdout, re.MULTILINE)) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
def test_a_gpu_is_tried_out_with_the_whole_batch(workplace, empty):
    found = try_out(make_recipe(workplace[1], training={"batch_size": 8}))
    assert 0 < found.peak_bytes < torch.cuda.get_device_properties(0).total_memory


@pytest.mark.parametrize(
    "name",
    [
        "folder",
        "elpv_diffeed",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("cifar10", "cifar10_diffeed", "elpv")),
    ],
)
def test_the_small_backbone_is_a_file(workplace, name):
    """The recipes for small images name small backbones; a file takes their place."""
    folder, _ = workplace
    options = ["--backbone.name", str(folder / "backbone.safetensors"), "--dry_run", "--fake_data"]
    assert create_backbone(folder / "backbone.safetensors").config.image_size == 16
    taps = [] if name == "folder" else ["--extractor.taps", "out02"]
    taps += ["--extractor.feedback_taps", "out01", "out03"] if name.endswith("diffeed") else []
    assert main(["train", str(ROOT / "train" / "configs" / f"{name}.yaml"), *options, *taps]) == 0


def test_extraction_is_estimated_and_writes_nothing(workplace, tmp_path, empty, capsys):
    _, values = workplace
    (tmp_path / "recipe.yaml").write_text(dump(make_recipe(values, cache={"folder": str(tmp_path / "features")})))
    assert main(["extract", str(tmp_path / "recipe.yaml"), "--dry_run"]) == 0
    assert re.search(r"train: 24 images in 1 views: .* are missing and take about", capsys.readouterr().out)
    assert not (tmp_path / "features").exists()
    assert main(["extract", str(tmp_path / "recipe.yaml"), "--fake_data"]) == 1
    assert main(["extract", str(tmp_path / "recipe.yaml"), "--dry_run", "--fake_data"]) == 0
    assert "not written in a dry run" in capsys.readouterr().out


def test_pretraining_is_tried_out(tmp_path, empty, capsys):
    model = ["--model.image_size=32", "--model.model_channels=32", "--model.channel_mult=[1,2]"]
    model += ["--model.num_res_blocks=1", "--model.attention_resolutions=[16]"]
    data = ["--data.name=cifar10", "--data.size=32", f"--output={tmp_path / 'run'}"]
    assert main(["pretrain", *data, *model, "--dry_run", "--fake_data"]) == 0
    shown = capsys.readouterr().out
    parameters = sum(p.numel() for p in UNet(UNetConfig(32, 32, (1, 2), 1, (16,))).parameters())
    assert f"{parameters:,} parameters" in shown
    assert "50,000 train (random stand-ins)" in shown
    assert len(re.findall(r"^step \d .*2 images, loss \d", shown, flags=re.M)) == 2
    assert not (tmp_path / "run").exists()
