"""Checkpoints of the published code, made here as that code makes them, become classifiers with the golden logits."""

import pytest
import torch
from support import config_from_openai, load_recipe, read_golden, recipe_tensor

from difformer import CheckpointError, UNet, UNetBackbone, create_backbone, load_classifier
from difformer.cli import main
from difformer.diffusion import NoiseSchedule
from difformer.published import PublishedOptions, read_published

NAMES = ["linear_probe", "attention_head", "difformer", "diffeed"]


@pytest.fixture(params=NAMES)
def published(request, tmp_path):
    """A `latest.pth`, its backbone's file, and the golden values."""
    tensors, options = read_golden(request.param)
    seeds = options["seeds"]
    unet = load_recipe(UNet(config_from_openai(options["unet"])), seeds["unet"])
    UNetBackbone(unet, NoiseSchedule.linear(), name="small").save(tmp_path / "small.safetensors")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7)
    content = {
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "epoch": 27,
        "model_head": recipe_state(options["head_keys"], seeds["head"]),
    }
    if options["feedback_keys"]:
        content["model_feedback"] = recipe_state(options["feedback_keys"], seeds["feedback"])
    torch.save(content, tmp_path / "latest.pth")
    return tmp_path, tensors, options


def recipe_state(keys, seed):
    return {
        key: torch.tensor(0) if key.endswith("num_batches_tracked") else recipe_tensor(key, shape, seed)
        for key, shape in keys.items()
    }


def arguments_for(options):
    given = [f"--published.timesteps={options['t_list']}"]
    if "fcs.0.weight" in options["head_keys"]:
        given.append(f"--published.taps={options['first_fw_b_list']}")
    if options["feedback_b_list"]:
        given.append(f"--published.feedback_taps={options['feedback_b_list']}")
    return given


def test_converted_checkpoints_give_the_golden_logits(published, capsys):
    folder, tensors, options = published
    out = folder / "classifier.safetensors"
    source = [str(folder / "latest.pth"), str(out), f"--backbone={folder / 'small.safetensors'}"]
    assert main(["convert", *source, *arguments_for(options)]) == 0, capsys.readouterr().err
    classifier = load_classifier(out, backbone=folder / "small.safetensors")
    noise = {t: tensors[f"noise.{t}"] for t in options["t_list"]}
    torch.testing.assert_close(classifier(tensors["x"], noise=noise), tensors["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("published", ["diffeed"], indirect=True)
def test_half_precision_feedback_layers_load(published):
    folder, tensors, options = published
    content = torch.load(folder / "latest.pth")
    state = content["model_feedback"]
    content["model_feedback"] = {k: v.half() if k.endswith(".0.weight") else v for k, v in state.items()}
    torch.save(content, folder / "latest.pth")
    given = PublishedOptions(timesteps=(150,), feedback_taps=tuple(options["feedback_b_list"]))
    classifier = read_published(folder / "latest.pth", create_backbone(folder / "small.safetensors"), given)
    assert {p.dtype for p in classifier.extractor.feedback.parameters()} == {torch.float32}
    logits = classifier(tensors["x"], noise={150: tensors["noise.150"]})
    torch.testing.assert_close(logits, tensors["logits"], rtol=0, atol=2e-2)


def test_missing_options_are_asked_for(published):
    folder, _, options = published
    backbone = create_backbone(folder / "small.safetensors")
    with pytest.raises(CheckpointError, match="still to be given: timesteps"):
        read_published(folder / "latest.pth", backbone, PublishedOptions())
    if options["feedback_keys"]:
        with pytest.raises(CheckpointError, match=r"feedback_taps \(the published ones are \(21, 24"):
            read_published(folder / "latest.pth", backbone, PublishedOptions(timesteps=(150,)))
    else:
        given = PublishedOptions(timesteps=(150,), taps=(24,), feedback_taps=(24,))
        with pytest.raises(CheckpointError, match="no feedback layers"):
            read_published(folder / "latest.pth", backbone, given)


def test_contradictions_are_found(published):
    folder, _, options = published
    backbone = create_backbone(folder / "small.safetensors")
    if options["head"] == "attention":
        given = PublishedOptions(timesteps=(1, 2, 3, 4, 5), feedback_taps=tuple(options["feedback_b_list"]))
        with pytest.raises(CheckpointError, match="timesteps, but 5 were given"):
            read_published(folder / "latest.pth", backbone, given)
    # 64 channels make 512 values of no square map; block 1 would, with 32 channels and a pool of 4
    given = PublishedOptions(
        timesteps=tuple(options["t_list"]), taps=(8,), feedback_taps=(36,) * bool(options["feedback_keys"])
    )
    with pytest.raises((CheckpointError, ValueError), match=r"does not fit|comes after"):
        read_published(folder / "latest.pth", backbone, given)


def test_other_files_are_told_apart(tmp_path):
    torch.save({"model": {}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no entry model_head"):
        read_published(tmp_path / "other.pth", None, PublishedOptions())
    torch.save({"model_head": {"x": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="neither the linear nor the attention head"):
        read_published(
            tmp_path / "other.pth",
            UNetBackbone(UNet(config_from_openai(read_golden("difformer")[1]["unet"])), NoiseSchedule.linear()),
            PublishedOptions(timesteps=(1,), taps=(1,)),
        )
