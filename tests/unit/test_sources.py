"""From names, paths, addresses and live networks to backbones."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from support import load_recipe, recipe_input, small_config, small_unet

from difformer import (
    PRESETS,
    AttentionUnavailable,
    Backbone,
    CheckpointError,
    NoiseSchedule,
    Schedule,
    UNet,
    UNetBackbone,
    create_backbone,
    q_sample,
)
from difformer.checkpoints import describe, load_strictly, locate, open_weights, read_backbone
from difformer.checkpoints.architecture import see_architecture
from difformer.checkpoints.presets import cache_folder, search_folders, weight_shapes

UNSEEN = {"image_size": 32, "num_head_channels": 16, "use_new_attention_order": False}

# Every kind of network OpenAI's code can build.
ARCHITECTURES = [
    {},
    {"channel_mult": (1,), "attention_resolutions": (32,)},
    {"channel_mult": (2, 1), "num_res_blocks": 1, "attention_resolutions": ()},
    {"resblock_updown": False, "attention_resolutions": (8,)},
    {"resblock_updown": False, "conv_resample": False, "num_res_blocks": 3},
    {"use_scale_shift_norm": False, "num_classes": 7},
    {"model_channels": 64, "channel_mult": (0.5, 1, 1.5), "in_channels": 6, "out_channels": 3},
    {"num_heads": 4, "num_head_channels": None, "use_new_attention_order": True},
]


@pytest.fixture
def anywhere(tmp_path, monkeypatch):
    """An empty working folder and an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DIFFORMER_CHECKPOINTS", raising=False)
    return tmp_path


@pytest.fixture
def tiny_preset(monkeypatch):
    """A preset small enough to have weights in a test."""
    preset = replace(PRESETS["adm64_cond"], name="tiny", config=small_config(num_classes=4), file="tiny_openai.pt")
    monkeypatch.setattr("difformer.checkpoints.sources.PRESETS", {**PRESETS, "tiny": preset})
    return preset


@pytest.mark.parametrize("changes", ARCHITECTURES)
def test_everything_the_weights_show_is_inferred(changes):
    config = small_config(**changes)
    heads = {"num_heads": config.num_heads} if config.num_head_channels is None else {"num_head_channels": 16}
    seen = see_architecture(UNet(config).state_dict(), "some.pt")
    given = {"image_size": 32, "use_new_attention_order": config.use_new_attention_order, **heads}
    assert seen.complete(given) == config


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_recognised_by_their_weights(name):
    config = PRESETS[name].config
    with torch.device("meta"):
        state = UNet(config).state_dict()
    seen = see_architecture(state, "some.pt")
    assert name in [preset.name for preset in seen.matching_presets()]
    arguments = {"image_size": config.image_size, "use_new_attention_order": config.use_new_attention_order}
    arguments |= {"num_heads": config.num_heads, "num_head_channels": config.num_head_channels}
    assert seen.complete(arguments | {"dropout": config.dropout}) == config


def test_the_question_lists_what_is_missing_with_candidates(anywhere):
    torch.save(small_unet().state_dict(), "own.pt")
    with pytest.raises(CheckpointError) as caught:
        create_backbone("own.pt")
    message = str(caught.value)
    for text in (
        "own.pt",
        "still to be given: image_size, use_new_attention_order, num_heads or num_head_channels",
        "channel_mult=(1, 1, 2)",
        "[32, 64, 128, 256, 512]",
        "num_head_channels=64",
        "num_heads=4",
    ):
        assert text in message
    with pytest.raises(CheckpointError, match=r"noise schedule; give schedule='linear' or 'cosine'"):
        create_backbone("own.pt", config=UNSEEN)
    backbone = create_backbone("own.pt", config=UNSEEN, schedule="cosine")
    assert backbone.config == small_config()
    assert backbone.schedule.name == "cosine"


def test_the_question_names_presets_of_the_same_shape():
    with torch.device("meta"):
        state = UNet(PRESETS["lsun_cat"].config).state_dict()
    with pytest.raises(CheckpointError, match="exactly this shape: adm256_uncond, lsun_bedroom"):
        see_architecture(state, "some.pt").complete({})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_head_chanels": 16}, "unknown key 'num_head_chanels'.*'num_head_channels'"),
        ({"model_channels": 64}, "the weights show model_channels 32, not 64"),
        ({"attention_resolutions": [8]}, "the weights show attention_resolutions"),
        ({"image_size": 30}, "multiple of 4"),
        ({"num_head_channels": 24}, "must divide"),
    ],
)
def test_contradictions_raise(given, message):
    with pytest.raises(ValueError, match=message):
        see_architecture(small_unet().state_dict(), "some.pt").complete(UNSEEN | given)


def test_given_values_that_agree_are_accepted():
    given = UNSEEN | {"channel_mult": [1, 1, 2], "attention_resolutions": [8, 16], "dropout": 0.2}
    assert see_architecture(small_unet().state_dict(), "some.pt").complete(given) == small_config(dropout=0.2)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"conv.weight": torch.zeros(3)},
        {name: tensor for name, tensor in small_unet().state_dict().items() if "output_blocks" not in name},
        {name: tensor for name, tensor in small_unet().state_dict().items() if "input_blocks.2" not in name},
        small_unet().state_dict() | {"fc.weight": torch.zeros(1)},
    ],
    ids=["empty", "another network", "no decoder", "a block missing", "something more"],
)
def test_other_networks_are_told_apart(state):
    with pytest.raises(CheckpointError, match=r"some\.pt does not hold a guided-diffusion U-Net"):
        see_architecture(state, "some.pt")


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


def test_a_live_network_is_shared_and_frozen():
    unet = small_unet()
    backbone = create_backbone(unet, schedule="linear", dtype=torch.float32)
    assert isinstance(backbone, Backbone)
    weight = unet.input_blocks[0][0].weight
    assert backbone.unet.input_blocks[0][0].weight.data_ptr() == weight.data_ptr()
    assert weight.requires_grad
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.train().modules())
    x = recipe_input(0, 1, 3, 32, 32)
    assert torch.equal(backbone.encode(x), x)
    assert torch.equal(backbone(x, 10), unet(x, 10))
    assert torch.equal(backbone.forward_taps(x, 10, [10])["mid"], unet.forward_taps(x, 10, [10])["mid"])


def test_live_networks_need_a_schedule_and_must_be_unets():
    with pytest.raises(ValueError, match="give schedule="):
        create_backbone(small_unet())
    with pytest.raises(ValueError, match="leave config out"):
        create_backbone(small_unet(), config=small_config(), schedule="linear")
    with pytest.raises(ValueError, match=r"got torch.nn.modules.linear.Linear"):
        create_backbone(torch.nn.Linear(1, 1), schedule="linear")


def test_gradients_reach_injections_and_no_frozen_weight():
    backbone = create_backbone(small_unet(), schedule="linear")
    value = recipe_input(0, 1, 32, 32, 32).requires_grad_()
    backbone.forward_taps(recipe_input(1, 1, 3, 32, 32), 10, ["mid"], inject={"in00": value})["mid"].sum().backward()
    assert value.grad is not None
    assert value.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in backbone.parameters())


@pytest.mark.parametrize("stored", [torch.float16, torch.float32])
def test_dtype_is_that_asked_for_and_not_that_of_the_file(anywhere, stored):
    torch.save({name: tensor.to(stored) for name, tensor in small_unet().state_dict().items()}, "own.pt")
    for dtype in (None, torch.bfloat16):
        backbone = create_backbone("own.pt", config=UNSEEN, schedule="linear", dtype=dtype)
        assert backbone.dtype == (dtype or torch.float32)
        assert backbone.unet.middle_block[0].in_layers[0].weight.dtype == torch.float32


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
    assert "FileNotFoundError hf://someone/net/other.safetensors cannot be had" in lines[1]
    assert lines[2:4] == [f"hub hf://someone/net@{'1' * 40}"] * 2
    assert "ValueError 'hf://someone' is not a hub address" in lines[4]


def test_weight_shapes_allocate_nothing():
    assert weight_shapes(small_config()) == {n: tuple(p.shape) for n, p in small_unet().state_dict().items()}
    assert json.dumps(weight_shapes(PRESETS["adm512_cond"].config))


@pytest.mark.parametrize("way", ["by file name", "by the user"])
def test_weights_that_are_not_those_of_their_preset(anywhere, way):
    torch.save(small_unet().state_dict(), "lsun_cat.pt" if way == "by file name" else "own.pt")
    path, preset = ("lsun_cat.pt", None) if way == "by file name" else ("own.pt", "lsun_cat")
    for attempt in (lambda: create_backbone(path, config=preset), lambda: describe(path, preset=preset)):
        with pytest.raises(CheckpointError, match=rf"{path} does not fit") as caught:
            attempt()
        for text in ("missing from the file", "other shapes", " expected, ", "lsun_cat"):
            assert text in str(caught.value)
    assert create_backbone(path, config=UNSEEN, schedule="linear").config == small_config()


def test_shapes_inside_blocks_are_compared_too(anywhere):
    state = dict(small_unet().state_dict())
    for name in ("input_blocks.2.0.out_layers.3.weight", "out.2.weight"):
        state[name] = state[name][:, :-1].clone()
    torch.save(state, "own.pt")
    for attempt in (create_backbone, describe):
        with pytest.raises(CheckpointError, match=r"own\.pt does not fit(.|\n)*other shapes \(2\): input_blocks\.2"):
            attempt("own.pt", config=UNSEEN, schedule="linear")


def test_made_up_block_numbers_are_refused_at_once():
    state = dict(small_unet().state_dict())
    for name in ("output_blocks.20000000.0.x", "output_blocks.20000000", f"output_blocks.{'9' * 5000}.0.x"):
        start = time.monotonic()
        with pytest.raises(CheckpointError, match="does not hold a guided-diffusion U-Net"):
            see_architecture(state | {name: torch.zeros(1)}, "some.pt")
        assert time.monotonic() - start < 1


def test_shapes_beyond_any_memory_are_refused():
    """One number can stand for a tensor of any shape."""
    state = small_unet().state_dict() | {"time_embed.0.weight": torch.zeros(1).expand(2**30, 2**30)}
    with pytest.raises(CheckpointError, match="does not hold a guided-diffusion U-Net"):
        see_architecture(state, "some.pt")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image_size": "32"}, "image_size must be an integer, got '32'"),
        ({"image_size": 32.0}, r"image_size must be an integer, got 32\.0"),
        ({"image_size": 1}, "multiple of 4"),
        ({"attention_resolutions": 8}, "attention_resolutions must be a sequence"),
        ({"channel_mult": (1, float("inf"), 2)}, "channel_mult must hold positive numbers"),
        ({"dropout": "0.1"}, "dropout must be a number"),
    ],
)
def test_odd_types_are_told_clearly(given, message):
    with pytest.raises(ValueError, match=message):
        see_architecture(small_unet().state_dict(), "some.pt").complete(UNSEEN | given)


def test_attention_at_sizes_that_do_not_occur_contradicts_nothing():
    given = UNSEEN | {"attention_resolutions": [16, 8, 4]}
    assert see_architecture(small_unet().state_dict(), "some.pt").complete(given) == small_config()


def test_the_question_says_how_to_answer():
    with torch.device("meta"):
        state = UNet(PRESETS["lsun_cat"].config).state_dict()
    with pytest.raises(CheckpointError) as caught:
        see_architecture(state, "some.pt").complete({})
    for text in ("config={'image_size'", "--arch.image_size", "config='adm256_uncond'", "--preset adm256_uncond"):
        assert text in str(caught.value)


@pytest.mark.parametrize("schedule", [5, {"name": "linear"}, "sigmoid"])
def test_schedules_are_schedules_or_names(anywhere, schedule):
    torch.save(small_unet().state_dict(), "own.pt")
    for source in (small_unet(), "own.pt"):
        config = UNSEEN if source == "own.pt" else None
        with pytest.raises(ValueError, match="schedule"):
            create_backbone(source, config=config, schedule=schedule)


def test_no_argument_is_ignored(anywhere):
    UNetBackbone(small_unet(), NoiseSchedule.linear()).save("own.safetensors")
    for attempt, message in [
        (lambda: create_backbone(small_unet(), schedule="linear", config="nonsense"), "leave config out"),
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


def test_a_live_networks_digest_is_that_of_its_weights_now():
    unet = small_unet()
    backbone = create_backbone(unet, schedule="linear")
    before = backbone.digest
    with torch.no_grad():
        unet.out[2].bias += 1
    assert backbone.digest != before
    assert backbone.digest == create_backbone(unet, schedule="linear").digest
    assert create_backbone(unet, schedule="linear", dtype=torch.bfloat16).digest == backbone.digest


def test_a_live_network_stays_where_it_is(monkeypatch):
    asked = []
    monkeypatch.setattr(UNet, "to", lambda self, device: asked.append(torch.device(device)) or self)
    monkeypatch.setattr("difformer.backbones.load_strictly", lambda unet, state, source: None)
    with torch.device("meta"):  # the one other device there is everywhere
        unet = UNet(small_config())
    create_backbone(unet, schedule="linear")
    create_backbone(small_unet(), schedule="linear", device="meta")
    assert asked == [torch.device("meta")] * 2


def test_other_networks_of_the_same_name_are_told_what_they_lack():
    class UNetModel(torch.nn.Linear):
        pass

    network = UNetModel(1, 1)
    with pytest.raises(ValueError, match=r"UNetModel: it has no image_size, num_heads, .*middle_block"):
        create_backbone(network, schedule="linear")
    for name in ("image_size", "num_heads", "num_heads_upsample", "num_head_channels", "dropout"):
        setattr(network, name, 1)
    network.middle_block = torch.nn.Sequential()
    with pytest.raises(ValueError, match=r"it has no middle_block\[1\]\.attention"):
        create_backbone(network, schedule="linear")


def test_attention_that_cannot_run_is_refused_on_opening():
    with pytest.raises(AttentionUnavailable, match="no attention for cpu"):
        create_backbone(small_unet(), schedule="linear", attention="xformers")


def test_any_schedule_that_gives_coefficients_makes_a_backbone():
    class Flow:
        num_timesteps = 10

        def coefficients(self, t):
            s_t = torch.as_tensor(t) / 10
            return 1 - s_t, s_t

    assert isinstance(Flow(), Schedule)
    assert isinstance(NoiseSchedule.linear(), Schedule)
    x_0, eps = recipe_input(0, 2, 3, 4, 4), recipe_input(1, 2, 3, 4, 4)
    torch.testing.assert_close(q_sample(x_0, 5, eps, Flow()), 0.5 * x_0 + 0.5 * eps)


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
