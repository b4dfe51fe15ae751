"""Checkpoints of the published code, made here as that code makes them, become classifiers with the golden logits."""

from functools import cache

import pytest
import torch
from support import config_from_openai, load_recipe, read_golden, recipe_tensor

from difformer import CheckpointError, UNet, UNetBackbone, create_backbone, load_classifier
from difformer.classifier import read_description
from difformer.classifier.published import PublishedOptions, is_published, read_published
from difformer.cli import main
from difformer.diffusion import NoiseSchedule
from difformer.files import sha256

NAMES = ["linear_probe", "attention_head", "difformer", "diffeed"]


@pytest.fixture(scope="module")
def backbone_file(tmp_path_factory):
    """Writes the file of a backbone, once each."""
    folder = tmp_path_factory.mktemp("backbones")

    def write(name):
        path = folder / f"{name}.safetensors"
        if not path.exists():
            _, options = read_golden(name)
            unet = load_recipe(UNet(config_from_openai(options["unet"])), options["seeds"]["unet"])
            UNetBackbone(unet, NoiseSchedule.linear(), name="small").save(path)
        return path

    return write


@pytest.fixture(params=NAMES)
def published(request, backbone_file, tmp_path):
    """A `latest.pth`, its backbone's file, and the golden values."""
    tensors, options = read_golden(request.param)
    seeds = options["seeds"]
    (tmp_path / "small.safetensors").symlink_to(backbone_file(request.param))
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


def loaded(folder):
    """The backbone beside a checkpoint, read once."""
    return _created((folder / "small.safetensors").resolve())


@cache
def _created(path):
    return create_backbone(path)


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
    classifier = read_published(folder / "latest.pth", loaded(folder), given)
    assert {p.dtype for p in classifier.extractor.feedback.parameters()} == {torch.float32}
    logits = classifier(tensors["x"], noise={150: tensors["noise.150"]})
    torch.testing.assert_close(logits, tensors["logits"], rtol=0, atol=2e-2)


def test_missing_options_are_asked_for(published):
    folder, _, options = published
    backbone = loaded(folder)
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
    backbone = loaded(folder)
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


def options_for(options, **more):
    return PublishedOptions(
        timesteps=tuple(options["t_list"]),
        taps=tuple(options["first_fw_b_list"]) if "fcs.0.weight" in options["head_keys"] else (),
        feedback_taps=tuple(options["feedback_b_list"] or ()),
        **more,
    )


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_malformed_checkpoints_say_what_was_expected(published, step):
    """Whichever entry is missing or has another form, the error is one of ours and names the file."""
    folder, _, options = published
    backbone = loaded(folder)
    content = torch.load(folder / "latest.pth")
    head = content["model_head"]

    def read(**changes):
        torch.save({**content, **changes}, folder / "latest.pth")
        return read_published(folder / "latest.pth", backbone, options_for(options))

    read()
    for name in list(head)[::step]:
        for changed in (
            {key: value for key, value in head.items() if key != name},
            head | {name: torch.zeros(0)},
            head | {name: head[name][None]},
            head | {name: 3},
        ):
            with pytest.raises(CheckpointError, match=r"latest\.pth"):
                read(model_head=changed)
    for wrong in (None, 3, [head], {1: torch.zeros(1)}):
        with pytest.raises(CheckpointError, match="model_head"):
            read(model_head=wrong)
    with pytest.raises(CheckpointError, match="model_feedback must be a state dict, tensors by name, got list"):
        read(model_feedback=[1])


@pytest.mark.parametrize("published", ["difformer"], indirect=True)
def test_attention_heads_without_tokenizers_are_refused(published):
    folder, _, options = published
    content = torch.load(folder / "latest.pth")
    head = {name: tensor for name, tensor in content["model_head"].items() if not name.startswith("pre_layer.")}
    torch.save(content | {"model_head": head}, folder / "latest.pth")
    given = PublishedOptions(timesteps=tuple(options["t_list"]), taps=tuple(options["first_fw_b_list"]))
    with pytest.raises(CheckpointError, match=r"without tokenizers; pre_layer\.\* was expected"):
        read_published(folder / "latest.pth", loaded(folder), given)


@pytest.mark.parametrize("published", ["linear_probe"], indirect=True)
def test_classes_can_be_named(published):
    folder, _, options = published
    backbone = loaded(folder)
    plain = read_published(folder / "latest.pth", backbone, options_for(options))
    names = tuple(f"class {name}" for name in plain.class_names)
    named = read_published(folder / "latest.pth", backbone, options_for(options, class_names=names))
    assert named.class_names == names
    with pytest.raises(CheckpointError, match=f"has {len(names)} classes, but 1 class_names were given"):
        read_published(folder / "latest.pth", backbone, options_for(options, class_names=("cat",)))


def test_a_checkpoint_is_unpickled_once(published, monkeypatch):
    folder, _, options = published
    backbone = loaded(folder)
    loads, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **more: loads.append(args) or load(*args, **more))
    assert is_published(folder / "latest.pth")
    assert not loads
    read_published(folder / "latest.pth", backbone, options_for(options))
    assert len(loads) == 1


def test_published_checkpoints_are_told_by_their_names(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"model_head.weight": torch.zeros(1), "other": torch.zeros(2)}, path)
    assert not is_published(path)
    torch.save({"model_head": {}}, path)
    assert is_published(path)
    content = path.read_bytes()
    for damaged in (content[:-40], content.replace(b"model_head", b"model_hea\xff")):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"x\.pth is truncated or corrupt"):
            is_published(path)
    path.write_bytes(b"something else")
    assert not is_published(path)


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


@pytest.mark.parametrize("published", ["diffeed"], indirect=True)
def test_heads_of_wrapped_networks_load(published):
    folder, tensors, options = published
    content = torch.load(folder / "latest.pth")
    for part in ("model_head", "model_feedback"):
        content[part] = {f"module.{name}": tensor for name, tensor in content[part].items()}
    torch.save(content, folder / "latest.pth")
    backbone = loaded(folder)
    logits = read_published(folder / "latest.pth", backbone, options_for(options))(
        tensors["x"], noise={150: tensors["noise.150"]}
    )
    torch.testing.assert_close(logits, tensors["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("published", ["difformer"], indirect=True)
def test_heads_that_claim_more_than_their_file_are_refused(published):
    folder, _, options = published
    content = torch.load(folder / "latest.pth")
    content["model_head"]["head.weight"] = torch.zeros(1).expand(10**6, 10**6)
    torch.save(content, folder / "latest.pth")
    with pytest.raises(CheckpointError, match=r"latest\.pth was refused: .* values are shared"):
        read_published(folder / "latest.pth", loaded(folder), options_for(options))


@pytest.mark.parametrize("published", ["linear_probe"], indirect=True)
def test_converting_says_what_the_backbone_is_for_and_keeps_the_digest(published, tmp_path, capsys, monkeypatch):
    folder, _, options = published
    monkeypatch.setenv("DIFFORMER_CACHE", str(tmp_path / "none"))
    out = folder / "classifier.safetensors"
    source = ["convert", str(folder / "latest.pth"), str(out), *arguments_for(options)]
    assert main([*source, "--folder", str(folder)]) == 1
    assert "They are read for their digest, which the classifier's file keeps" in capsys.readouterr().err
    assert main([*source, f"--backbone={folder / 'small.safetensors'}"]) == 0
    assert f"from latest.pth, SHA-256 {sha256(folder / 'latest.pth')}" in capsys.readouterr().out
    assert read_description(out)["metadata"]["converted_from_sha256"] == sha256(folder / "latest.pth")
