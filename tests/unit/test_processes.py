"""What Accelerate's launcher asks for: honoured where it says where to run, refused where the recipe decides."""

import pytest
import torch

from difformer.cli import main
from difformer.engine.runtime.processes import check_launcher, only_cpu


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_MIXED_PRECISION", "fp16", "mixed precision fp16, but the recipe for bf16; give that precision"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "mixed precision fp8"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", r"4 steps of gradient .*training\.accumulation: 4"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", r"compilation by inductor; give backbone\.compile: true"),
        ("ACCELERATE_USE_FSDP", "true", "asks for FSDP; every process has the whole network here"),
        ("ACCELERATE_USE_DEEPSPEED", "True", "asks for DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "1", "asks for Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "asks for a parallelism configuration"),
    ],
)
def test_what_a_recipe_decides_is_refused(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        check_launcher("bf16")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16"),
        # The launcher's own defaults.
        ("ACCELERATE_MIXED_PRECISION", "no"),
        ("ACCELERATE_DYNAMO_BACKEND", "NO"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"),
        ("ACCELERATE_USE_FSDP", "false"),
    ],
)
def test_what_agrees_is_not(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    check_launcher("bf16")


def test_the_cpu_can_be_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert not only_cpu()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert only_cpu()


@pytest.mark.parametrize("verb", ["train", "extract"])
def test_verbs_refuse_it_before_anything_is_written(monkeypatch, tmp_path, capsys, verb):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    given = ["--output", str(tmp_path / "run"), "--data.name", "folder", "--data.root", str(tmp_path / "images")]
    assert main([verb, *given]) == 1
    assert "mixed precision bf16, but the recipe for no" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
