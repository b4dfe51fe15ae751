import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import small_config, small_unet

from difformer import create_backbone
from difformer.cli import main

WEIGHTS = ["--image_size=32", "--num_head_channels=16", "--use_new_attention_order=false", "--schedule=cosine"]


@pytest.fixture
def weights(tmp_path):
    torch.save(small_unet().state_dict(), tmp_path / "own.pt")
    return str(tmp_path / "own.pt")


def test_info_prints_the_table_without_weights(capsys):
    assert main(["info", "adm256_uncond"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if line.lstrip()[:1].isdigit()]
    assert [int(row[0]) for row in rows] == list(range(1, 38))
    assert rows[23] == ["24", "out04", "1024", "16×16", "639.3", "28.6%"]
    assert any("schedule: linear, 1000 timesteps" in line for line in lines)


def test_info_never_allocates_the_weights():
    """A whole process, limited to less memory than the weights alone would need beyond its own start."""
    script = """
import resource, difformer.cli
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
difformer.cli.main(["info", "adm512_cond", "--as_json=true"])
assert peak() - before < 300_000, peak() - before  # KiB; the weights are 2.2 million
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["taps"]) == 43


def test_info_reads_files(weights, capsys, tmp_path):
    assert main(["info", weights, *WEIGHTS, "--as_json=true"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["config"]["channel_mult"] == [1, 1, 2]
    assert told["schedule"] == {"name": "cosine", "num_timesteps": 1000}
    assert told["taps"][9]["name"] == "mid"
    main(["convert", weights, str(tmp_path / "own.safetensors"), *WEIGHTS])
    capsys.readouterr()
    assert main(["info", str(tmp_path / "own.safetensors"), "--as_json=true"]) == 0
    assert json.loads(capsys.readouterr().out) == told


def test_convert_writes_a_file_that_is_enough(weights, tmp_path, capsys):
    out = tmp_path / "own.safetensors"
    assert main(["convert", weights, str(out), *WEIGHTS]) == 0
    assert "wrote" in capsys.readouterr().out
    backbone = create_backbone(out)
    assert backbone.config == small_config()
    assert backbone.provenance["file"] == "own.pt"
    assert backbone.digest == create_backbone(weights, config=small_config(), schedule="cosine").digest
    assert main(["convert", weights, str(out), *WEIGHTS]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["convert", weights, str(out), *WEIGHTS, "--overwrite=true"]) == 0


def test_convert_refuses_what_it_cannot_know(weights, tmp_path, capsys):
    assert main(["convert", weights, str(tmp_path / "own.safetensors")]) == 1
    assert "still to be given: image_size" in capsys.readouterr().err
    assert main(["convert", weights, str(tmp_path / "own.safetensors"), "--preset=adm256_uncond"]) == 1
    assert "SHA-256" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["own.pt"]


def test_errors_are_one_message_and_no_traceback(capsys, tmp_path):
    assert main(["info", "adm256_unconditional"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("difformer: error: there is no file adm256_unconditional")
    assert captured.out == ""
    (tmp_path / "empty.pt").touch()
    assert main(["info", str(tmp_path / "empty.pt")]) == 1
    assert "empty.pt is empty (0 bytes)" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["inform"], ["info"], ["info", "adm256_uncond", "--unknown=1"], []])
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: difformer" in capsys.readouterr().err


def test_the_console_command_is_installed():
    command = Path(sys.executable).with_name("difformer")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    assert {"info", "convert"} <= set(done.stdout.replace("{", " ").replace("}", " ").replace(",", " ").split())
