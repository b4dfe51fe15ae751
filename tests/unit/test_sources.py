"""From names, paths and addresses to weights and what is known about them."""

import os
import subprocess
import sys
import textwrap
import threading
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from support import UNSEEN, load_recipe, small_config, small_unet

from difformer import (
    PRESETS,
    CheckpointError,
    NoiseSchedule,
    UNet,
    UNetBackbone,
    create_backbone,
)
from difformer.checkpoints import describe, load_strictly, locate, open_weights, read_backbone
from difformer.checkpoints.presets import cache_folder, search_folders


@pytest.fixture
def tiny_preset(monkeypatch):
    """A preset small enough to have weights in a test."""
    preset = replace(PRESETS["adm64_cond"], name="tiny", config=small_config(num_classes=4), file="tiny_openai.pt")
    monkeypatch.setattr("difformer.checkpoints.sources.PRESETS", {**PRESETS, "tiny": preset})
    return preset


def test_unknown_names_suggest_presets(anywhere):
    with pytest.raises(
        FileNotFoundError, match=r"no file adm256_unconditional.*lsun_cat.*Did you mean 'adm256_uncond'"
    ):
        create_backbone("adm256_unconditional")


def test_missing_weights_say_where_they_were_looked_for_and_how_to_get_them(anywhere):
    with pytest.raises(FileNotFoundError) as caught:
        create_backbone("lsun_cat")
    for text in (
        "lsun_cat.pt",
        "lsun_cat.safetensors",
        "checkpoints",
        "cache",
        "download=True",
        "(--download; in a recipe, backbone.download: true)",
        "jul-2021/lsun_cat.pt",
    ):
        assert text in str(caught.value)


def test_presets_are_found_under_either_name(anywhere, tiny_preset, monkeypatch):
    unet = load_recipe(UNet(tiny_preset.config), 1)
    (anywhere / "checkpoints").mkdir()
    torch.save(unet.state_dict(), anywhere / "checkpoints" / "tiny_openai.pt")
    backbone = create_backbone("tiny")
    assert (backbone.name, backbone.config, backbone.schedule.name) == ("tiny", tiny_preset.config, "cosine")
    assert backbone.provenance["url"] == tiny_preset.url
    by_path = create_backbone(anywhere / "checkpoints" / "tiny_openai.pt")
    by_config = create_backbone(anywhere / "checkpoints" / "tiny_openai.pt", config="tiny")
    assert by_path.digest == by_config.digest == backbone.digest
    assert by_path.config == by_config.config == tiny_preset.config

    (anywhere / "elsewhere").mkdir()
    backbone.save(anywhere / "elsewhere" / "tiny.safetensors")
    assert create_backbone("tiny", folder="elsewhere").digest == backbone.digest
    monkeypatch.setenv("DIFFORMER_CHECKPOINTS", "elsewhere")
    assert create_backbone("tiny").digest == backbone.digest


def test_a_preset_with_the_wrong_digest_is_refused(anywhere, tiny_preset, monkeypatch):
    known = replace(tiny_preset, sha256="0" * 64)
    monkeypatch.setattr("difformer.checkpoints.sources.PRESETS", {"tiny": known})
    torch.save(UNet(tiny_preset.config).state_dict(), "tiny_openai.pt")
    with pytest.raises(CheckpointError, match=r"tiny_openai\.pt has SHA-256 .*, but tiny has 000.*verify=False"):
        create_backbone("tiny", folder=".")
    assert create_backbone("tiny", folder=".", verify=False).name == "tiny"
    # Of another file the user says so; it cannot be OpenAI's, byte for byte, and need not be.
    Path("tiny_openai.pt").rename("own.pt")
    assert create_backbone("own.pt", config="tiny").name == "tiny"


def test_what_a_file_says_cannot_be_contradicted(anywhere):
    UNetBackbone(small_unet(), NoiseSchedule.linear()).save("own.safetensors")
    assert create_backbone("own.safetensors", config=small_config(), schedule="linear").config == small_config()
    assert create_backbone("own.safetensors", config={"image_size": 32}).config == small_config()
    with pytest.raises(ValueError, match="contradicts"):
        create_backbone("own.safetensors", config=asdict(small_config()) | {"num_head_channels": 32})
    with pytest.raises(ValueError, match="linear schedule"):
        create_backbone("own.safetensors", schedule="cosine")
    with pytest.raises(ValueError, match="contradicts"):
        create_backbone("own.safetensors", config="adm256_uncond")
    with pytest.raises(ValueError, match="unknown preset 'adm257'"):
        create_backbone("own.safetensors", config="adm257")


def test_a_hub_repository(anywhere):
    """Against a local server that speaks the hub's protocol."""
    UNetBackbone(small_unet(), NoiseSchedule.linear(), name="hub").save("model.safetensors")
    content = (anywhere / "model.safetensors").read_bytes()

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            found = self.path.startswith("/someone/net/resolve/main/model.safetensors")
            self.send_response(200 if found else 404)
            self.send_header("ETag", '"abc"')
            self.send_header("X-Repo-Commit", "1" * 40)
            if not found:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", str(len(content) if found else 0))
            self.end_headers()
            return found

        def do_GET(self):
            if self.do_HEAD():
                self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    script = """
        from difformer import create_backbone
        def attempt(*args, **options):
            try:
                backbone = create_backbone(*args, **options)
                print(backbone.name, backbone.provenance["hub"])
            except Exception as error:
                print(type(error).__name__, error)
        attempt("hf://someone/net")
        attempt("hf://someone/net/other.safetensors", download=True)
        attempt("hf://someone/net", download=True)
        attempt("hf://someone/net")
        attempt("hf://someone")
    """
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(anywhere / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True, text=True, check=True
    )
    server.shutdown()
    lines = done.stdout.splitlines()
    assert "FileNotFoundError hf://someone/net is not on this machine; allow the download" in lines[0]
    assert "FileNotFoundError hf://someone/net/other.safetensors cannot be fetched" in lines[1]
    assert lines[2:4] == [f"hub hf://someone/net@{'1' * 40}"] * 2
    assert "ValueError 'hf://someone' is not a hub address" in lines[4]


@pytest.mark.parametrize("way", ["by file name", "by the user"])
def test_weights_that_are_not_those_of_their_preset(anywhere, way):
    torch.save(small_unet().state_dict(), "lsun_cat.pt" if way == "by file name" else "own.pt")
    path, preset = ("lsun_cat.pt", None) if way == "by file name" else ("own.pt", "lsun_cat")
    for attempt in (lambda: create_backbone(path, config=preset), lambda: describe(path, preset=preset)):
        with pytest.raises(CheckpointError, match=rf"{path} does not fit") as caught:
            attempt()
        for text in ("missing from the file", "other shapes", " expected, ", "lsun_cat"):
            assert text in str(caught.value)
    assert create_backbone(path, config=UNSEEN, schedule=NoiseSchedule.linear()).config == small_config()


def test_shapes_inside_blocks_are_compared_too(anywhere):
    state = dict(small_unet().state_dict())
    for name in ("input_blocks.2.0.out_layers.3.weight", "out.2.weight"):
        state[name] = state[name][:, :-1].clone()
    torch.save(state, "own.pt")
    for attempt in (create_backbone, describe):
        with pytest.raises(CheckpointError, match=r"own\.pt does not fit(.|\n)*other shapes \(2\): input_blocks\.2"):
            attempt("own.pt", config=UNSEEN, schedule="linear")


def test_no_argument_is_ignored(anywhere):
    UNetBackbone(small_unet(), NoiseSchedule.linear()).save("own.safetensors")
    for attempt, message in [
        (lambda: create_backbone(small_unet(), schedule="linear", config="nonsense"), "leave out config"),
        (lambda: create_backbone(small_unet(), schedule="linear", folder="."), "folder"),
        (lambda: create_backbone(small_unet(), schedule="linear", download=True), "download"),
        (lambda: create_backbone("adm256_uncond", config="lsun_cat"), "adm256_uncond is a preset itself"),
        (lambda: create_backbone("adm256_uncond", config="nonsense"), "unknown preset 'nonsense'"),
        (lambda: create_backbone("own.safetensors", config=[32]), "config must be"),
        (lambda: describe("adm256_uncond", preset="nonsense"), "unknown preset 'nonsense'"),
        (lambda: describe("adm256_uncond", preset="lsun_cat"), "adm256_uncond is a preset itself"),
        (lambda: describe("own.safetensors", preset="nonsense"), "unknown preset 'nonsense'"),
        (lambda: describe("own.safetensors", preset="lsun_cat"), "contradicts"),
        (lambda: read_backbone(Path("own.safetensors"), preset="nonsense"), "unknown preset 'nonsense'"),
        (lambda: read_backbone(Path("own.safetensors"), preset="lsun_cat"), "contradicts"),
    ]:
        with pytest.raises(ValueError, match=message):
            attempt()
    assert describe("adm256_uncond", preset="adm256_uncond")[0] == PRESETS["adm256_uncond"].config


def test_a_converted_file_remembers_which_preset_it_is(anywhere, monkeypatch):
    cat, dog = (
        replace(PRESETS["lsun_cat"], name=name, config=small_config(), file=f"{name}.pt") for name in ("cat", "dog")
    )
    monkeypatch.setattr("difformer.checkpoints.sources.PRESETS", {"cat": cat, "dog": dog})
    torch.save(small_unet().state_dict(), "cat.pt")
    create_backbone("cat.pt").save("own.safetensors")
    assert create_backbone("own.safetensors", config="cat").name == "cat"
    with pytest.raises(ValueError, match="was made of cat, which the preset dog contradicts"):
        create_backbone("own.safetensors", config="dog")


@pytest.mark.parametrize(
    "given",
    [{"dropout": 0.3}, {"attention_resolutions": [8, 16, 8]}, {"attention_resolutions": (16, 8, 4)}],
)
def test_equal_networks_do_not_contradict_each_other(anywhere, given):
    UNetBackbone(small_unet(), NoiseSchedule.linear()).save("own.safetensors")
    assert create_backbone("own.safetensors", config=given).config == small_config()
    assert create_backbone("own.safetensors", config=small_config(num_heads=4, **given)).config == small_config()


def test_a_contradiction_names_only_what_differs(anywhere):
    UNetBackbone(small_unet(), NoiseSchedule.linear()).save("own.safetensors")
    with pytest.raises(ValueError, match="has num_head_channels 16, which") as caught:
        create_backbone("own.safetensors", config={"num_head_channels": 8})
    assert "model_channels" not in str(caught.value)
    with pytest.raises(ValueError, match="num_heads 4"):
        create_backbone("own.safetensors", config={"num_heads": 4})


def test_a_preset_is_fetched_when_it_may_be(anywhere, tiny_preset, monkeypatch):
    (anywhere / "served").mkdir()
    torch.save(load_recipe(UNet(tiny_preset.config), 1).state_dict(), anywhere / "served" / tiny_preset.file)

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(anywhere / "served"))

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("difformer.checkpoints.presets._URL", f"http://127.0.0.1:{server.server_port}/")
    backbone = create_backbone("tiny", download=True)
    server.shutdown()
    assert (anywhere / "cache" / tiny_preset.file).exists()
    assert backbone.provenance["url"] == f"http://127.0.0.1:{server.server_port}/{tiny_preset.file}"
    assert create_backbone("tiny").digest == backbone.digest


def test_home_folders_are_understood(anywhere, monkeypatch):
    monkeypatch.setenv("HOME", str(anywhere))
    monkeypatch.setenv("DIFFORMER_CACHE", "~/cached")
    monkeypatch.setenv("DIFFORMER_CHECKPOINTS", "~/mine")
    assert cache_folder() == anywhere / "cached"
    assert search_folders()[0] == anywhere / "mine"
    assert search_folders(Path("~/given")) == (anywhere / "given",)
    (anywhere / "some.pt").touch()
    assert locate("~/some.pt") == anywhere / "some.pt"


def test_everything_in_one_call(anywhere, tiny_preset):
    torch.save(load_recipe(UNet(tiny_preset.config), 1).state_dict(), "tiny_openai.pt")
    state, stored = open_weights("tiny", folder=Path())
    assert (stored.name, stored.config) == ("tiny", tiny_preset.config)
    load_strictly(UNet(stored.config), state, "tiny")


def test_saved_backbones_are_found_by_name_where_presets_lie(anywhere):
    for place in ("checkpoints", "elsewhere"):
        Path(place).mkdir()
        UNetBackbone(small_unet(), NoiseSchedule.linear(), name=place).save(f"{place}/own.safetensors")
    assert create_backbone("own").name == "checkpoints"
    assert create_backbone("own", folder="elsewhere").name == "elsewhere"
    with pytest.raises(FileNotFoundError, match="no file mine"):
        create_backbone("mine")


GIVEN = {"config": UNSEEN, "schedule": NoiseSchedule.linear()}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_weights_of_wrapped_networks_open(anywhere, prefix):
    state = small_unet().state_dict()
    torch.save({prefix + name: tensor for name, tensor in state.items()}, "own.pt")
    backbone = create_backbone("own.pt", **GIVEN)
    assert backbone.config == describe("own.pt", **GIVEN)[0] == small_config()
    torch.save(state, "plain.pt")
    assert create_backbone("plain.pt", **GIVEN).digest == backbone.digest


def test_one_of_several_networks_opens(anywhere):
    torch.save({"model": small_unet().state_dict(), "ema": small_unet(seed=3).state_dict(), "step": 3}, "own.pt")
    with pytest.raises(CheckpointError, match=r"own\.pt.*it has model .* ema .*--entry model"):
        create_backbone("own.pt", **GIVEN)
    backbone = create_backbone("own.pt", entry="ema", **GIVEN)
    assert torch.equal(backbone.unet.state_dict()["out.2.bias"], small_unet(seed=3).state_dict()["out.2.bias"])
    assert backbone.provenance["entry"] == "ema"
    assert describe("own.pt", entry="ema", **GIVEN)[0] == small_config()
    with pytest.raises(ValueError, match="leave out config, entry"):
        create_backbone(small_unet(), schedule="linear", entry="ema")


def test_classifiers_that_guide_sampling_are_told_apart(anywhere):
    state = {name: x for name, x in small_unet().state_dict().items() if not name.startswith(("output_blocks", "out."))}
    torch.save(state | {"out.2.positional_embedding": torch.zeros(4, 65)}, "256x256_classifier.pt")
    for preset in (None, "adm256_cond"):
        with pytest.raises(CheckpointError, match=r"an encoder but no decoder.*Give the diffusion model"):
            create_backbone("256x256_classifier.pt", schedule="linear", config=preset)


@pytest.mark.parametrize("source", ["own.pt", "own.safetensors"])
def test_networks_of_other_than_rgb_images_are_refused(anywhere, source):
    unet = small_unet(in_channels=6)
    torch.save(unet.state_dict(), "own.pt")
    UNetBackbone(unet, NoiseSchedule.linear()).save("own.safetensors")
    for attempt in (create_backbone, describe):
        with pytest.raises(CheckpointError, match=r"takes 6 input channels.*RGB images, which have 3.*upsamplers"):
            attempt(source, **(GIVEN if source == "own.pt" else {}))


@pytest.mark.parametrize(("given", "missing"), [(None, "the noise schedule and its"), ("cosine", "the schedule's")])
def test_the_number_of_steps_is_asked_for(anywhere, given, missing):
    torch.save(small_unet().state_dict(), "own.pt")
    for attempt in (create_backbone, describe):
        with pytest.raises(CheckpointError, match=rf"own\.pt: weights cannot show {missing} number of steps") as caught:
            attempt("own.pt", config=UNSEEN, schedule=given)
        for text in (f"NoiseSchedule.{given or 'linear'}(1000)", "--num_timesteps 1000", "--diffusion_steps"):
            assert text in str(caught.value)
    long = create_backbone("own.pt", config=UNSEEN, schedule=NoiseSchedule.cosine(4000))
    assert long.schedule.alpha_bar[150] == pytest.approx(0.995, abs=5e-4)
    long.save("own.safetensors")
    # A name alone contradicts no number.
    assert create_backbone("own.safetensors", schedule="cosine").schedule.num_timesteps == 4000
    for other in (NoiseSchedule.cosine(1000), NoiseSchedule.cosine(4000, rescale_timesteps=True), "linear"):
        with pytest.raises(ValueError, match="has the cosine schedule of 4000 steps; leave out the one given"):
            create_backbone("own.safetensors", schedule=other)
