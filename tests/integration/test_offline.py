"""Nothing is fetched unless the command or the recipe says so: every verb, without a network."""

import socket

import pytest
import timm
import yaml
from data_sets import write_json, write_lines
from PIL import Image
from safetensors.torch import save_file
from support import tiny_unet

from difformer import NoiseSchedule, UNetBackbone
from difformer.cli import main
from difformer.cli.verbs import VERBS
from difformer.config.reading import read_yaml
from difformer.verbs.cka import representations
from difformer.verbs.quickstart.plan import RECIPES

HUB = "hf://nobody/nothing"
DATA = [
    "--data.name",
    "folder",
    "--data.root",
    "images",
    "--data.size",
    "32",
    "--data.splits",
    '{"train": ".", "test": "."}',
]
RECIPE = [*DATA, "--backbone.name", HUB]
PRESET = [*DATA, "--backbone.name", "adm256_uncond"]
HEAD = ["--head.name", "linear", "--extractor.taps", "[mid]", "--extractor.timesteps", "[90]", "--output", "out"]
NEITHER = "allow the download"
MODEL = ["--model.image_size=32", "--model.model_channels=32", "--model.channel_mult=[1,2]"]
MODEL += ["--model.num_res_blocks=1", "--model.attention_resolutions=[16]", "--data.size=32", "--output", "out"]
SUITE = {
    "datasets": {"images": {"name": "folder", "root": "images", "size": 32, "splits": {"train": ".", "test": "."}}},
    "heads": {"linear": {"head": {"name": "linear"}, "extractor": {"taps": ["mid"], "timesteps": [90]}}},
    "base": {"backbone": {"name": HUB}},
    "output": "out",
}

PAIR = {
    "category": "a", "src_imname": "0.png", "trg_imname": "1.png", "kps_ids": ["0"], "src_kps": [[1, 2]],
    "trg_kps": [[3, 4]], "src_bndbox": [0, 0, 9, 9], "trg_bndbox": [0, 0, 9, 9],
}  # fmt: skip

# What each verb would have to fetch, and what it says instead.
COMMANDS = [
    (["info", HUB], NEITHER),
    (["convert", HUB, "own.safetensors"], NEITHER),
    (["convert", "adm256_uncond", "own.safetensors"], NEITHER),
    (["predict", HUB, "images", "--csv", "out.csv"], NEITHER),
    (["export", HUB, "--output", "exported"], NEITHER),
    (["fid", "images/a", "images/b", "--backbone", HUB, "--tap", "mid", "--t", "50"], NEITHER),
    (["match", "images/a/0.png", "images/a/1.png", "--backbone", HUB], NEITHER),
    (["match", "images/a/0.png", "images/a/1.png"], NEITHER),
    (["match-pairs", "pairs", "--backbone", HUB], NEITHER),
    (["sample", HUB, "grid.png"], NEITHER),
    (["sample", "lsun_cat", "grid.png"], NEITHER),
    (["compare", HUB, f"{HUB}2", "--output", "out"], "neither the folder of a run"),
    (["eval", HUB, *DATA, "--output", "out"], NEITHER),
    (["eval", "--classifier", HUB, *DATA, "--output", "out"], NEITHER),
    (["train", *RECIPE, *HEAD], NEITHER),
    (["train", *PRESET, *HEAD], NEITHER),
    (["extract", *RECIPE, *HEAD], NEITHER),
    (["probe", *RECIPE, "--output", "out", "--data.holdout", "0.5"], NEITHER),
    (["sweep", *RECIPE, "--output", "out", "--data.holdout", "0.5"], NEITHER),
    (["select", *RECIPE, "--output", "out", "--data.holdout", "0.5"], NEITHER),
    (["look", *RECIPE, "--output", "out"], NEITHER),
    (["cka", *RECIPE, "--output", "out"], NEITHER),
    (["cka", *DATA, "--backbone.name", "small.safetensors", "--other", HUB, "--output", "out"], NEITHER),
    (["cka", *DATA, "--backbone.name", "small.safetensors", "--timm.name", "test_resnet", "--output", "out"], NEITHER),
    (["transfer", "suite.yaml"], NEITHER),
    (["transfer", "suite.yaml", "--dry_run"], NEITHER),
    (["quickstart", "--data", "images", "--recipe", "quickstart.yaml", "--output", "out"], NEITHER),
    (["pretrain", "--data.name", "cifar10", "--data.root", "empty", *MODEL], "with download: true torchvision fetches"),
    (
        ["pretrain", "--data.name", "huggingface", "--data.root", "nobody/nothing", *MODEL],
        "download: true it is fetched",
    ),
    # Nothing.
    (["completion", "csh"], "shell must be bash, zsh or fish"),
    # Its networks have random weights, and are known by name alone.
    (["bench", "--subjects", HUB], "unknown subject"),
]


@pytest.fixture
def attempts(tmp_path, monkeypatch):
    """Addresses that something wanted to reach, in an empty workplace without a network."""
    found = []

    def refuse(*arguments, **options):
        found.append(arguments)
        # Of another kind than the errors of a network, after which the hub's client tries again for minutes.
        raise RuntimeError("there is no network")

    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    connect = socket.socket.connect
    monkeypatch.setattr(
        socket.socket, "connect", lambda self, to: connect(self, to) if self.family == socket.AF_UNIX else refuse(to)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DIFFORMER_CHECKPOINTS", raising=False)
    for kind in "ab":
        for number in range(6):
            path = tmp_path / "images" / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (40 * number, 0, 90)).save(path)
    (tmp_path / "empty").mkdir()
    UNetBackbone(tiny_unet(), NoiseSchedule.linear(), name="small").save("small.safetensors")
    write_json(tmp_path / "pairs/PairAnnotation/test/1.json", PAIR)
    write_lines(tmp_path / "pairs/Layout/large/test.txt", ["1"])
    (tmp_path / "pairs/JPEGImages").symlink_to(tmp_path / "images")
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(SUITE))
    values = read_yaml(RECIPES / "folder.yaml")
    values["base"]["backbone"]["name"] = HUB
    (tmp_path / "quickstart.yaml").write_text(yaml.safe_dump(values))
    return found


def test_every_verb_is_here():
    assert {arguments[0] for arguments, _ in COMMANDS} == set(VERBS)


@pytest.mark.parametrize(("arguments", "message"), COMMANDS, ids=[" ".join(a[:2]) for a, _ in COMMANDS])
def test_nothing_is_fetched_without_being_asked_for(attempts, capsys, arguments, message):
    assert main(arguments) == 1
    assert message in capsys.readouterr().err.lower()
    assert attempts == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", HUB, *DATA, "--output", "out", "--download"],
        ["predict", HUB, "images", "--csv", "out.csv", "--download"],
        ["cka", *DATA, "--backbone.name", "small.safetensors", "--timm.name", "test_resnet", "--timm.download", "true"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_is_asked_for_is(attempts, arguments):
    assert main(arguments) == 1
    assert attempts


def test_weights_of_timm_that_are_here_are_read(attempts, monkeypatch):
    """The file in the hub's cache is used, and no other."""
    model = timm.create_model("test_resnet")
    save_file(model.state_dict(), "model.safetensors")
    asked = []

    def locate(address, *, download):
        asked.append((address, download))
        return "model.safetensors"

    monkeypatch.setattr(representations, "locate_on_hub", locate)
    arguments = [
        "--timm.name",
        "test_resnet",
        "--timesteps",
        "[90]",
        "--taps",
        "[mid]",
        "--output",
        "out",
        "--workers",
        "0",
    ]
    assert main(["cka", *DATA, "--backbone.name", "small.safetensors", *arguments]) == 0
    assert asked == [("hf://timm/test_resnet.r160_in1k", False)]
    assert attempts == []
