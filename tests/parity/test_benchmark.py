"""The benchmark against the baseline's own network."""

import json
import sys

import numpy as np
import pytest
import torch

from difformer import UNetConfig
from difformer.cli import main
from difformer.verbs.bench import benchmark as module
from difformer.verbs.bench.benchmark import BenchmarkConfig, benchmark
from difformer.verbs.bench.side import Side, SideConfig
from difformer.verbs.bench.subjects import SUBJECTS, Subject, count_demands

pytestmark = pytest.mark.parity
TINY = Subject(
    UNetConfig(16, 32, (1, 2), 1, (8,), num_head_channels=16),
    "out00", ("mid", "out01"), (50, 100), ("out00", "out01"), (2, 2),
    {"width": 16, "heads": 2}, ("out00", "out01"),
)  # fmt: skip


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(module, "SUBJECTS", {"tiny": TINY, "small": TINY})


def test_every_case_gives_the_baselines_numbers(tiny):
    results = benchmark(BenchmarkConfig(("tiny",), repeats=2, device="cpu"), say=lambda text: None)
    one, fused, live, cached, feedback, *dense = results["rows"]
    assert [row["case"].partition(" ")[0] for row in dense] == ["segmentation", "detection", "landmarks"]
    for row in (one, fused, live, feedback, *dense):
        assert row["difference"] < 1e-5
    assert cached["difference"] is None
    for row in results["rows"]:
        assert row["ours"] > 0
        assert row["ratio"] == pytest.approx(row["ours"] / row["theirs"])
    # Two blocks, the deeper of which needs most of the network, at two timesteps.
    assert one["flops_ratio"] > fused["flops_ratio"] > live["flops_ratio"] > 1
    assert cached["flops_ratio"] > live["flops_ratio"]
    assert feedback["our_peak"] < feedback["their_peak"]
    assert json.loads(json.dumps(results)) == results


def test_what_adm256_asks_for_beside_the_baseline():
    """Counted, not measured, so that no machine is too small or too busy."""
    demands = count_demands(SUBJECTS["adm256"], None)
    one, fused, live, cached, feedback, *dense = (theirs.flops / ours.flops for ours, theirs in demands.values())
    # Block 33 of 37 is the deepest that masks, boxes and landmarks read: the pass stops there.
    assert len(dense) == 3
    assert min(dense) > 1.1
    assert one > 3.5
    assert fused > 2.43
    assert feedback > 1.66
    assert live > 2.34
    assert cached > 25
    ours, theirs = demands["DifFeed training step"]
    assert ours.peak_bytes < 0.37 * theirs.peak_bytes


def test_a_speed_at_other_numbers_is_no_result(tiny, monkeypatch):
    def outputs(side, case):
        factor = 1.01 if side.name == "theirs" else 1
        return {key: factor * value for key, value in original(side, case).items()}

    original = Side.outputs
    monkeypatch.setattr(Side, "outputs", outputs)
    with pytest.raises(RuntimeError, match=r"tiny, features, block out00: outputs differ by 0\.0099"):
        benchmark(BenchmarkConfig(("tiny",), repeats=1, device="cpu"), say=lambda text: None)


def test_outputs_that_are_no_numbers_are_no_result(tiny, monkeypatch):
    monkeypatch.setattr(Side, "outputs", lambda side, case: {"a": np.ones(2), "b": np.full(2, np.nan)})
    with pytest.raises(RuntimeError, match="outputs differ by nan"):
        benchmark(BenchmarkConfig(("tiny",), repeats=1, device="cpu"), say=lambda text: None)


def test_a_side_that_ends_is_said():
    config = SideConfig("theirs", torch.device("cpu"), torch.float32, None, compile=False, threads=1)
    with Side(TINY, config) as side:
        assert side.ceiling() > 0
        side._process.kill()
        with pytest.raises(RuntimeError, match="the process of theirs ended in 'features, block out00', probably"):
            side.outputs("features, block out00")
    assert not side._process.is_alive()


def test_what_a_side_raises_is_raised_here():
    config = SideConfig("ours", torch.device("cpu"), torch.float32, None, compile=False, threads=1)
    with Side(TINY, config) as side, pytest.raises(KeyError, match="no case"):
        side.outputs("no case")


def test_a_missing_baseline_is_said(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "guided_diffusion.unet", None)
    assert main(["bench", "--quick"]) == 1
    assert "needs guided-diffusion-sdk, which is not installed" in capsys.readouterr().err


def test_prints_a_table_and_writes_json(tiny, tmp_path, capsys):
    file = tmp_path / "speed.json"
    assert main(["bench", "--quick", "--repeats", "1", "--device", "cpu", "--json_file", str(file)]) == 0
    assert "DifFeed training step" in capsys.readouterr().out
    assert len(json.loads(file.read_text())["rows"]) == 8
    assert main(["bench", "--quick", "--json_file", str(file)]) == 1
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--subjects", "[huge]"], "unknown subject 'huge'; known are small, large_maps, adm256"),
        (["--quick", "--subjects", "[small]"], "leave out one of quick and subjects"),
        (["--repeats", "0"], "repeats"),
        pytest.param(
            ["--device", "cuda"],
            "there is no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_wrong_words(arguments, message, capsys):
    assert main(["bench", *arguments]) == 1
    assert message in capsys.readouterr().err
