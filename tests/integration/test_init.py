"""Starting from a trained classifier: where that ended, or an error that says what does not fit."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from support import recipe_input, tiny_unet
from training import assert_same_run, interrupt_after, make_recipe, merged, run_result, write_images, write_workplace

from difformer import create_backbone, load_classifier
from difformer.checkpoints import CheckpointError, weights_digest
from difformer.classifier import read_description
from difformer.engine.runtime.processes import create_accelerator
from difformer.verbs.train.dry_run import try_out
from difformer.verbs.train.run import Run
from difformer.verbs.train.train import train

pytestmark = pytest.mark.usefixtures("drawn_once")
FEEDBACK = {"feedback_taps": ["out03", "out01"], "taps": ["out02"], "timesteps": [90], "gate": True}
HEAD = {"name": "attention", "arguments": {"width": 16, "heads": 2, "layers": 1, "pool": 2, "norm": "batch"}}
JOINT = {"variant": "joint", "width": 16, "heads": 2, "layers": 1, "pool": 2, "dropout": 0.1}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with images, backbones and a run of attention, and the values of that run's recipe."""
    folder = tmp_path_factory.mktemp("work")
    values = write_workplace(folder) | {"head": HEAD, "extractor": {"taps": ["out02"], "timesteps": [90]}}
    create_backbone(tiny_unet(seed=3), schedule="linear").save(folder / "other.safetensors")
    write_images(folder / "two", {"train": 10, "test": 5}, classes=2)
    values |= {"output": str(folder / "attention"), "training": {"epochs": 2, "batch_size": 8, "workers": 0}}
    train(make_recipe(values, training={"ema": 0.9}))
    return folder, values


@pytest.fixture(scope="module")
def trained(work):
    """The folder of a run of DifFeed that started from attention."""
    folder, values = work
    train(make_recipe(values, output=str(folder / "diffeed"), init=str(folder / "attention"), extractor=FEEDBACK))
    return folder / "diffeed"


@pytest.fixture
def diffeed(work, tmp_path):
    """The same run's recipe in another folder, with changes."""
    folder, values = work
    own = {"output": str(tmp_path / "diffeed"), "init": str(folder / "attention"), "extractor": FEEDBACK}

    def make(**changes):
        return make_recipe(merged(values, own), **changes)

    return make


def built(recipe):
    """The run before its first step."""
    return Run(recipe, create_accelerator(recipe.training.precision))


def logits(classifier):
    with torch.no_grad():
        return classifier.eval()(recipe_input(1, 4, 3, 16, 16).clamp(-1, 1), ids=[3, 1, 4, 15])


@pytest.mark.parametrize("source", ["attention", "attention/classifier.safetensors"])
def test_diffeed_starts_where_attention_ended(source, work, diffeed):
    folder, _ = work
    run = built(diffeed(init=str(folder / source), training={"ema": 0.9}))
    attention = load_classifier(folder / "attention" / "classifier.safetensors", backbone=run.classifier.backbone)
    torch.testing.assert_close(logits(run.classifier), logits(attention), rtol=1e-5, atol=1e-5)
    # The moving average, which is what is kept, starts there as well.
    assert all(run.trainer.averaged[f"head.{name}"].equal(x) for name, x in attention.head.state_dict().items())
    fresh = built(diffeed(init=None))
    assert not torch.allclose(logits(fresh.classifier), logits(attention), atol=1e-2)


def test_feedback_learns_from_there(trained, diffeed):
    before = built(diffeed()).classifier.trained_state()
    after = run_result(trained)[0]
    assert before.keys() == after.keys()
    unmoved = {name for name, tensor in before.items() if tensor.equal(after[name])}
    assert not {name for name in unmoved if name.startswith("feedback.")}


def test_a_recipe_with_several_features_starts_from_its_like(work, tmp_path):
    """The joint head knows features by their place, with rounds; dropout is training's affair."""
    _, values = work
    extractor = {"taps": ["mid", "out02"], "timesteps": [90, 150]}
    head = {"name": "difformer", "arguments": JOINT}
    first = make_recipe(values | {"head": head}, output=str(tmp_path / "first"), extractor=extractor)
    train(first)
    head = {"name": "difformer", "arguments": JOINT | {"dropout": 0.0}}
    fed_back = {"feedback_taps": ["out03"], "gate": True}
    second = built(
        make_recipe(values | {"head": head}, output="second", init=first.output, extractor=extractor | fed_back)
    )
    trained = load_classifier(tmp_path / "first" / "classifier.safetensors", backbone=second.classifier.backbone)
    torch.testing.assert_close(logits(second.classifier), logits(trained), rtol=1e-5, atol=1e-5)
    swapped = extractor | {"taps": ["out02", "mid"]}
    with pytest.raises(ValueError, match=r"features: \['mid at t = 90', .* there, \['out02 at t = 90', .* here"):
        built(make_recipe(values | {"head": head}, output="second", init=first.output, extractor=swapped))


def test_feedback_layers_come_along(trained, diffeed):
    run = built(diffeed(init=str(trained)))
    classifier = load_classifier(trained / "classifier.safetensors", backbone=run.classifier.backbone)
    assert weights_digest(run.classifier.trained_state()) == weights_digest(classifier.trained_state())
    assert logits(run.classifier).equal(logits(classifier))
    for changes, message in (
        ({"norm": "group"}, "extractor.norm: batch there, group here"),
        ({"gate": False}, "extractor.gate: True there, False here"),
        (
            {"feedback_taps": ["out01", "out03"]},
            r"feedback_taps: \['out03', 'out01'\] there, \['out01', 'out03'\] here",
        ),
        (
            {"feedback_taps": [], "gate": False},
            r"\['out02 at t = 90 after feedback'\] there, \['out02",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            built(diffeed(init=str(trained), extractor=changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extractor": {"taps": ["out01"], "feedback_taps": ["out03"]}}, r"\['out02 at t = 90'\] there, \['out01 at"),
        ({"extractor": {"timesteps": [150]}}, r"features: \['out02 at t = 90'\] there, \['out02 at t = 150'\] here"),
        ({"extractor": {"clean": True}}, r"extractor\.clean: False there, True here"),
        ({"head": {"arguments": {"norm": "channel"}}}, r"head\.arguments\.norm: batch there, channel here\. Give"),
        ({"head": {"arguments": {"pool": 4}}}, r"head\.arguments\.pool: 2 there, 4 here"),
        ({"head": {"arguments": {"heads": 4}}}, r"head\.arguments\.heads: 2 there, 4 here"),
        ({"head": {"name": "difformer"}}, "head: AttentionHead there, DifFormerHead here"),
        ({"backbone": {"name": "other.safetensors"}}, r"classifier\.safetensors was trained on the backbone"),
        ({"data": {"root": "two"}}, r"names of the data set \(2\) are not those of .*attention \(3\): .* 'class2'"),
        ({"init": "nowhere"}, "init: there is no run and no classifier nowhere"),
        ({"init": "images"}, "init: .*images is not the folder of a run"),
        ({"init": "backbone.safetensors"}, "not a classifier"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(changes, message, work, diffeed, monkeypatch, tmp_path):
    monkeypatch.chdir(work[0])
    recipe = diffeed(**changes)
    with pytest.raises((ValueError, OSError), match=message):
        train(recipe)
    assert not (tmp_path / "diffeed").exists()


def test_a_damaged_classifier_is_refused(work, diffeed, tmp_path):
    content = bytearray((work[0] / "attention" / "classifier.safetensors").read_bytes())
    content[-3] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged\.safetensors is corrupt"):
        built(diffeed(init=str(tmp_path / "damaged.safetensors")))


def test_a_run_does_not_start_from_itself(work, diffeed):
    with pytest.raises(ValueError, match="is the run's own; choose another --output"):
        built(diffeed(output=str(work[0] / "attention")))


def test_a_run_that_has_begun_does_without_a_damaged_one(work, trained, diffeed, tmp_path):
    shutil.copytree(work[0] / "attention", tmp_path / "source")
    recipe = diffeed(init=str(tmp_path / "source"))
    interrupt_after(lambda: train(recipe), steps=4)
    (tmp_path / "source" / "classifier.safetensors").write_bytes(b"damaged")
    train(recipe)
    assert_same_run(trained, Path(recipe.output))


@pytest.mark.parametrize("init", ["", 5])
def test_init_is_a_name(init, diffeed):
    with pytest.raises(ValueError, match="init must name a run or a classifier, got"):
        diffeed(init=init)


def test_a_run_goes_on_without_what_it_started_from(work, trained, diffeed, tmp_path):
    shutil.copytree(work[0] / "attention", tmp_path / "source")
    recipe = diffeed(init=str(tmp_path / "source"))
    interrupt_after(lambda: train(recipe), steps=4)
    shutil.move(tmp_path / "source", tmp_path / "moved")
    interrupt_after(lambda: train(recipe), steps=1)
    # What it started from is part of what it is, wherever that lies.
    for init in (None, str(trained)):
        with pytest.raises(ValueError, match="the weights of the classifier it starts from are not those that the run"):
            train(diffeed(init=init))
    train(diffeed(init=str(tmp_path / "moved")))
    assert_same_run(trained, Path(recipe.output))
    digest = weights_digest(run_result(work[0] / "attention")[0])
    assert read_description(Path(recipe.output) / "classifier.safetensors")["metadata"]["init_sha256"] == digest


def test_a_dry_run_reads_it_unless_all_is_made_up(diffeed, capsys):
    recipe = diffeed()
    try_out(recipe)
    assert f"starts from   {recipe.init}\n" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="init: there is no run"):
        try_out(diffeed(init="nowhere"))
    try_out(diffeed(init="nowhere"), fake_data=True)
    assert "starts from   nowhere (not read in a dry run with stand-ins)\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"data": {"holdout": 0.4}}, "with another data.holdout, so it may have learned from images that are measured"),
        ({"data": {"split_seed": 1}}, "with another data.split_seed, so"),
        ({"extractor": {"gate": False}}, "new feedback layers without a gate change what the head of"),
    ],
)
def test_what_is_probably_not_meant_is_said(changes, message, diffeed, caplog):
    with caplog.at_level(logging.WARNING):
        built(diffeed(**changes))
    said = [record for record in caplog.records if record.name.endswith(".init")]
    assert bool(said) == (message is not None)
    assert message is None or message in caplog.text
