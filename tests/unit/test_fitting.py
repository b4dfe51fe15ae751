"""Recipes and the backbones they are used with."""

import logging
from pathlib import Path

import pytest
import torch
from support import small_unet

from difformer import create_backbone
from difformer.checkpoints import CheckpointError
from difformer.cli import main
from difformer.config.reading import create_parser, parse
from difformer.engine.config.build import build_backbone, build_extractor, outline_backbone
from difformer.engine.config.fitting import fit_to_backbone, fitting, with_named_taps
from difformer.engine.config.recipe import BackboneConfig, ExtractorConfig, Recipe
from difformer.taps import corresponding_tap, tap_names

ADM256 = tap_names(18)
CONFIGS = Path(__file__).parents[2] / "train" / "configs"
CUB = CONFIGS / "cub.yaml"


@pytest.fixture(scope="module")
def read():
    parser = create_parser(Recipe, "train", "", {})
    return lambda *arguments: parse(
        parser, Recipe, (), [str(argument) for argument in arguments], adapt=fit_to_backbone
    )[0]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A network of 19 blocks for images of 32 pixels."""
    file = tmp_path_factory.mktemp("weights") / "small.safetensors"
    create_backbone(small_unet(), schedule="linear").save(file)
    return file


def test_taps_correspond_by_their_depth():
    for number in (3, 6, 9, 18):
        names = tap_names(number)
        assert [corresponding_tap(tap, names, names) for tap in names] == list(names)
        ends = [corresponding_tap(tap, ADM256, names) for tap in ("in00", "in17", "mid", "out00", "out17")]
        assert ends == ["in00", f"in{number - 1:02}", "mid", "out00", f"out{number - 1:02}"]
    assert [corresponding_tap(block, ADM256, tap_names(6)) for block in (19, 24, 30)] == ["mid", "out01", "out03"]
    assert corresponding_tap("mid", ADM256, tap_names(1)) == "mid"
    assert corresponding_tap("out04", ADM256, tap_names(1)) == "out00"
    with pytest.raises(ValueError, match="unknown tap 'out18'"):
        corresponding_tap("out18", ADM256, tap_names(6))


@pytest.mark.parametrize(
    ("name", "taps", "timesteps"),
    [("adm256_uncond", ("out04",), (150,)), ("adm32_cifar10", ("out01",), (50,)), ("adm_elpv", ("out02",), (80,))],
)
def test_what_is_left_out_suits_the_backbone(name, taps, timesteps, read):
    recipe = read("--data.name", "folder", "--backbone.name", name)
    size = {"adm256_uncond": 256, "adm32_cifar10": 32, "adm_elpv": 64}[name]
    assert (recipe.extractor.taps, recipe.extractor.timesteps, recipe.data.size) == (taps, timesteps, size)
    extractor = build_extractor(ExtractorConfig(), outline_backbone(BackboneConfig(name=name)))
    assert (extractor.taps, extractor.noising.timesteps) == (taps, timesteps)


def test_shorter_schedules_have_shorter_timesteps():
    found = fitting(ExtractorConfig(), ADM256, num_timesteps=500, image_size=256)
    assert found.timesteps == (75,)


def test_a_recipe_for_another_network_asks(small, read):
    with pytest.raises(ValueError, match=r"blocks of adm256_uncond, .* depth are --extractor\.taps mid out02 out05;"):
        read(CUB, "--backbone.name", small)
    with pytest.raises(ValueError, match=r"taps out02 --extractor\.feedback_taps out00 out02 out03 out05"):
        read(CONFIGS / "imagenet_diffeed.yaml", "--backbone.name", small)
    given = read(CUB, "--backbone.name", small, "--extractor.taps", "mid", "out02")
    assert given.extractor.taps == ("mid", "out02")


def test_networks_with_the_same_blocks_need_no_question(read):
    assert read(CUB, "--backbone.name", "adm256_cond").extractor == read(CUB).extractor


def test_taps_of_a_later_file_are_for_its_backbone(small, read, tmp_path):
    (tmp_path / "own.yaml").write_text(f"backbone: {{name: {small}}}\nextractor: {{taps: [out02]}}\n")
    assert read(CUB, "--config", tmp_path / "own.yaml").extractor.taps == ("out02",)


def test_numbers_say_once_which_block_they_are_where_papers_mean_another(small, read, caplog):
    with caplog.at_level(logging.WARNING):
        config = read("--data.name", "folder", "--backbone.name", small, "--extractor.taps", "11").extractor
        found = fitting(config, tap_names(9), num_timesteps=1000, image_size=32)
    assert found.taps == ("out00",)
    assert caplog.text.count("of this network is") == 1
    assert "block 11 of this network is out00" in caplog.text
    assert "in10 of ADM-256, which corresponds to in05 here" in caplog.text
    caplog.clear()
    fitting(ExtractorConfig(taps=(24,)), ADM256, num_timesteps=1000, image_size=256)
    fitting(ExtractorConfig(taps=("out00",)), tap_names(9), num_timesteps=1000, image_size=32)
    assert not caplog.text


def test_an_unknown_tap_names_its_option():
    with pytest.raises(ValueError, match=r"extractor\.taps: unknown tap 24; expected one of in00"):
        fitting(ExtractorConfig(taps=(24,)), tap_names(9), num_timesteps=1000, image_size=32)


def test_other_sizes_are_said(small, read, caplog):
    read("--data.name", "folder", "--backbone.name", small, "--data.size", "64")
    assert "data.size is 64, but" in caplog.text
    assert "trained on images of 32 pixels" in caplog.text
    assert "4 times the work" in caplog.text


def test_classes_and_splits_of_a_recipe_are_those_of_its_data_set(read, tmp_path):
    cifar10 = CONFIGS / "cifar10.yaml"
    assert len(read(cifar10).data.class_names) == len(read(cifar10, "--data.name", "WebDataset").data.class_names) == 10
    assert read(cifar10, "--data.name", "folder").data.class_names is None
    assert read(cifar10, "--data.name", "folder", "--data.class_names", "a", "b").data.class_names == ("a", "b")
    assert read(CONFIGS / "flowers.yaml", "--data.name", "folder").data.splits == {}
    (tmp_path / "own.yaml").write_text("data: {name: folder, class_names: [a, b]}")
    assert read(cifar10, "--config", tmp_path / "own.yaml").data.class_names == ("a", "b")


def test_splits_given_as_options_stay_where_the_data_set_is_another(read, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("data: {name: imagenet, splits: {val: valid, test: val}}\n")
    data = read(file, "--data.name", "folder", "--data.root", "x", "--data.splits.train", "foo").data
    assert dict(data.splits) == {"train": "foo"}


def test_recipes_are_the_same_by_what_they_read():
    values = {"backbone": {"name": "adm256_uncond"}, "extractor": {"taps": [19, 24], "timesteps": [150]}}
    named = with_named_taps(values)["extractor"]
    assert named == with_named_taps(values | {"extractor": {"taps": ["mid", "out04"], "timesteps": [150]}})["extractor"]
    assert with_named_taps(values | {"extractor": {"taps": [24], "timesteps": [150]}}) == with_named_taps(
        values | {"extractor": {}}
    )
    unknown = values | {"backbone": {"name": "nowhere.safetensors"}}
    assert with_named_taps(unknown) == unknown


def test_weights_that_do_not_say_all_are_to_be_converted(tmp_path, capsys):
    torch.save(small_unet().state_dict(), tmp_path / "own.pt")
    with pytest.raises(CheckpointError, match=r"(?s)num_head.*difformer convert .*own\.pt .*own\.safetensors"):
        build_backbone(BackboneConfig(name=str(tmp_path / "own.pt")))
    (tmp_path / "bad.pt").write_bytes(b"nothing that torch can read")
    with pytest.raises(CheckpointError, match=r"bad\.pt") as error:
        build_backbone(BackboneConfig(name=str(tmp_path / "bad.pt")))
    assert "convert" not in str(error.value)
    arguments = ["--data.name", "cub", "--backbone.name", str(tmp_path / "own.pt"), "--dry_run", "--fake_data"]
    assert main(["train", *arguments, "--output", str(tmp_path / "run")]) == 1
    assert f"--backbone.name {tmp_path / 'own.safetensors'}" in capsys.readouterr().err


class TestArgumentsOfAnotherHead:
    """Arguments of a head that a later file or an option replaces are left out, and the log names them."""

    OURS = CONFIGS / "cifar10_attention.yaml"

    @pytest.fixture
    def arguments(self, read, tmp_path):
        def of(*options, **files):
            words = []
            for name, text in files.items():
                (tmp_path / f"{name}.yaml").write_text(text)
                words += ["--config", tmp_path / f"{name}.yaml"]
            head = read(self.OURS, *words, *options).head
            return head.name, dict(head.arguments)

        return of

    def test_an_option_that_names_another_head_drops_them(self, arguments, caplog):
        name, given = arguments()
        assert name == "attention"
        assert {"width", "heads"} <= given.keys()
        assert not caplog.text
        assert arguments("--head.name", "mlp") == ("mlp", {})
        assert f"head.arguments {', '.join(given)} of the recipe are those of attention" in caplog.text
        assert "left out for mlp" in caplog.text

    def test_those_that_are_given_for_the_new_head_stay(self, arguments):
        assert arguments("--head.name=mlp", "--head.arguments.pool", "2") == ("mlp", {"pool": 2})
        assert arguments("--head.name", "mlp", "--head.arguments", '{"pool": 3}') == ("mlp", {"pool": 3})
        assert arguments(own="head: {name: mlp, arguments: {pool: 4}}") == ("mlp", {"pool": 4})
        assert arguments(own="head: {name: mlp}", more="head: {arguments: {pool: 5}}") == ("mlp", {"pool": 5})

    def test_a_later_file_drops_them_too(self, arguments):
        assert arguments(own="head: {name: mlp}") == ("mlp", {})
        assert arguments("--head.arguments.pool", "2", own="head: {name: mlp}") == ("mlp", {"pool": 2})

    def test_the_same_head_keeps_its_own(self, arguments, caplog):
        ours = arguments()
        assert arguments("--head.name", "attention") == ours
        assert arguments("--head.arguments.width", "64") == ("attention", ours[1] | {"width": 64})
        assert "left out" not in caplog.text

    def test_those_of_a_file_without_a_name_belong_to_what_is_named(self, read, tmp_path):
        (tmp_path / "own.yaml").write_text("data: {name: folder}\nhead: {arguments: {pool: 2}}")
        assert read(tmp_path / "own.yaml", "--head.name", "mlp").head.arguments == {"pool": 2}

    def test_a_task_is_as_a_head(self, read, tmp_path, caplog):
        (tmp_path / "own.yaml").write_text("data: {name: folder}\ntask: {name: 'my.tasks:Depth', arguments: {beta: 2}}")
        assert read(tmp_path / "own.yaml").task.arguments == {"beta": 2}
        task = read(tmp_path / "own.yaml", "--task.name", "classification").task
        assert (task.name, task.arguments) == ("classification", {})
        assert "task.arguments beta of the recipe are those of my.tasks:Depth" in caplog.text
