"""Options as people write them."""

import pytest
import yaml

from difformer.cli import main
from difformer.config.options import option_kinds, with_lists

TRAIN = ("train", "--data.name", "folder")


def printed(capsys, *arguments):
    """The configuration that comes out of arguments."""
    with pytest.raises(SystemExit) as status:
        main([*arguments, "--print_config"])
    assert status.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "taps"),
    [
        (["--extractor.taps", "6", "9", "12"], [6, 9, 12]),
        (["--extractor.taps", "6,9,12"], [6, 9, 12]),
        (["--extractor.taps=6,9, 12"], [6, 9, 12]),
        (["--extractor.taps", "[6, 9, 12]"], [6, 9, 12]),
        (["--extractor.taps", "mid", "24", "out04"], ["mid", 24, "out04"]),
        (["--extractor.taps", "24"], [24]),
        (["--extractor.taps", "6,", "9,", "12"], [6, 9, 12]),
        (["--extractor.taps", "[6,", "9,", "12]"], [6, 9, 12]),
        (["--extractor.taps", "6", "9", "--output", "there"], [6, 9]),
    ],
)
def test_lists_are_written_in_three_ways(words, taps, capsys):
    assert printed(capsys, *TRAIN, *words)["extractor"]["taps"] == taps


def test_lists_of_words_numbers_and_nothing(capsys):
    values = printed(
        capsys, *TRAIN, "--data.class_names", "tench, Tinca tinca", "2001", "--trackers", "tensorboard,wandb"
    )
    assert values["data"]["class_names"] == ["tench, Tinca tinca", "2001"]
    assert values["trackers"] == ["tensorboard", "wandb"]
    assert printed(capsys, *TRAIN, "--trackers", "[]")["trackers"] == []
    assert printed(capsys, *TRAIN, "--data.class_names", "null")["data"]["class_names"] is None
    swept = printed(capsys, "sweep", "--data.name", "folder", "--strengths", "1e-3", "1", "--pools", "1,2")
    assert (swept["strengths"], swept["pools"]) == ([0.001, 1.0], [1, 2])


def test_an_option_without_a_value_stays_an_error(capsys):
    assert main([*TRAIN, "--extractor.taps"]) == 1
    assert "expected one argument" in capsys.readouterr().err


def test_lists_of_verbs_without_recipes():
    kinds = dict(option_kinds({"subjects": list[str] | None, "name": str}))
    assert with_lists(["--subjects", "a", "b", "--name", "c"], kinds) == ['--subjects=["a", "b"]', "--name", "c"]


@pytest.mark.parametrize(
    ("verb", "option", "ours"),
    [
        ("train", "block_list", "--extractor.taps"),
        ("train", "t_list", "--extractor.timesteps"),
        ("train", "first_fw_b_list", "--extractor.first_pass_taps"),
        ("train", "feedback_b_list", "--extractor.feedback_taps"),
        ("train", "pre_pool_size", "--head.arguments.pool"),
        ("train", "head_type", "--head.name"),
        ("sweep", "block_list", "--taps"),
        ("probe", "pre_pool_size", "--pool"),
        ("cka", "head_type", "there is nothing of the kind here"),
    ],
)
def test_options_of_the_published_code_answer_with_ours(verb, option, ours, capsys):
    for words in ([f"--{option}", "19"], [f"--{option}=19"]):
        assert main([verb, "--data.name", "folder", *words]) == 1
        assert f"--{option} is an option of the published code; " in (said := capsys.readouterr().err)
        assert said.strip().endswith(ours)


def test_converting_knows_them_too(tmp_path, capsys):
    assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "b.safetensors"), "--t_list", "150"]) == 1
    assert "here it is --published.timesteps" in capsys.readouterr().err
