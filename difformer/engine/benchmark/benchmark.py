"""The benchmark: every case at every architecture, ours and the baseline in turn; the body of `difformer bench`."""

import contextlib
import gc
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import nn

from difformer.backbones import UNetBackbone
from difformer.checkpoints import PRESETS
from difformer.config import UNetConfig, as_positive_integer
from difformer.diffusion import NoiseSchedule
from difformer.engine.benchmark.cases import CachedCase, FeatureCase, FeedbackCase, Setting, difference
from difformer.engine.benchmark.measuring import interleave, matrix_ceiling, top_operations
from difformer.engine.benchmark.openai import HookedNetwork
from difformer.engine.recipes.reading import plain
from difformer.models import UNet

# The largest relative difference of outputs at which a speed-up counts: rounding in float32, and of half precision.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2}


@dataclass(frozen=True)
class Subject:
    """An architecture, and what is read of it.

    Attributes:
        config: the architecture; its weights are random.
        block: whose features are read alone.
        fused: DifFormer's blocks.
        timesteps: DifFormer's; the last but one is that of the single block and of DifFeed.
        fed_back: DifFeed's feedback list.
        batch_sizes: on a CPU and on a GPU.
        head: arguments of DifFormer and of DifFeed's head.
    """

    config: UNetConfig
    block: str | int
    fused: tuple[str | int, ...]
    timesteps: tuple[int, ...]
    fed_back: tuple[str | int, ...]
    batch_sizes: tuple[int, int]
    head: Mapping[str, Any] = field(default_factory=dict)


SUBJECTS = {
    "small": Subject(
        UNetConfig(32, 64, (1, 1, 2), 1, (16, 8), num_head_channels=32),
        "out01", ("mid", "out01", "out03"), (10, 50, 100), ("out00", "out01", "out03"), (32, 256),
        {"width": 128, "heads": 4},
    ),
    "adm256": Subject(
        PRESETS["adm256_uncond"].config, 24, (19, 24, 30), (90, 150, 300), (21, 24, 27, 30, 33, 36), (1, 8)
    ),
}  # fmt: skip


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is measured.

    Attributes:
        subjects: architectures, by name.
        repeats: measurements of each case.
        batch_size: images at once; that of the subject when None.
        device: cpu or cuda; cuda where there is one when None.
        profile: also say which operations take longest.

    Raises:
        ValueError: an unknown subject or device, or a number out of range.
    """

    subjects: tuple[str, ...] = ("small", "adm256")
    repeats: int = 3
    batch_size: int | None = None
    device: str | None = None
    profile: bool = False

    def __post_init__(self) -> None:
        for name in self.subjects:
            if name not in SUBJECTS:
                raise ValueError(f"unknown subject {name!r}; known are {', '.join(SUBJECTS)}")
        as_positive_integer("repeats", self.repeats)
        if self.batch_size is not None:
            as_positive_integer("batch_size", self.batch_size)
        if self.device not in (None, "cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, got {self.device!r}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("there is no CUDA device; leave --device out, or give cpu")

    @property
    def place(self) -> torch.device:
        """Where it runs."""
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))


@dataclass(frozen=True)
class Row:
    """What one case came to.

    Attributes:
        subject, case: which one.
        ours, theirs: images a second, from the medians.
        ratio: ours over theirs.
        flops_ratio: operations of theirs over ours: what doing less explains.
        spread: the larger relative spread of both.
        flops_per_second: that ours achieves.
        ceiling_share: of a large matrix product's, in the same precision.
        our_peak, their_peak: bytes; None where it cannot be told.
        difference: the largest relative difference of outputs; None where there is nothing to compare.
        operations: those that take longest in ours, with their shares.
    """

    subject: str
    case: str
    ours: float
    theirs: float
    ratio: float
    flops_ratio: float | None
    spread: float
    flops_per_second: float | None
    ceiling_share: float | None
    our_peak: int | None
    their_peak: int | None
    difference: float | None
    operations: tuple[tuple[str, float], ...] = ()


def benchmark(config: BenchmarkConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """Measures everything that is asked for.

    Args:
        config: what, how often and where.
        say: is told of each case before it begins.

    Returns:
        `machine` and `rows`, as JSON types.

    Raises:
        ImportError: the baseline's package is missing.
        RuntimeError: outputs differ by more than rounding, so that speeds mean nothing.
    """
    device = config.place
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    ceiling = matrix_ceiling(device, dtype)
    rows = []
    for name in config.subjects:
        setting = _setting(SUBJECTS[name], device, dtype, config.batch_size)
        for row in _rows(name, SUBJECTS[name], setting, config, ceiling, say):
            if row.difference is not None and row.difference > TOLERANCE[dtype]:
                raise RuntimeError(
                    f"{name}, {row.case}: outputs differ by {row.difference:.2g}, more than {TOLERANCE[dtype]:g}; "
                    "a speed at other numbers is no result"
                )
            rows.append(row)
        del setting
        gc.collect()
    return {"machine": _machine(device, dtype, ceiling), "rows": [plain(asdict(row)) for row in rows]}


def _setting(subject: Subject, device: torch.device, dtype: torch.dtype, batch_size: int | None) -> Setting:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        unet = UNet(subject.config)
        for parameter in unet.parameters():
            # Layers that start at zero would make blocks trivial.
            if parameter.ndim > 1 and not parameter.any():
                nn.init.normal_(parameter, std=0.02)
        size = batch_size or subject.batch_sizes[device.type == "cuda"]
        side = subject.config.image_size
        images = (torch.rand(size, 3, side, side) * 2 - 1).to(device)
        labels = torch.randint(0, 1000, (size,)).to(device)
    baseline = HookedNetwork(unet, device)
    backbone = UNetBackbone(unet, NoiseSchedule.linear(1000)).to(device)
    backbone.unet.cast_torso(dtype)
    return Setting(backbone, baseline, images, labels)


def _rows(
    name: str,
    subject: Subject,
    setting: Setting,
    config: BenchmarkConfig,
    ceiling: float,
    say: Callable[[str], None],
) -> Iterator[Row]:
    middle = subject.timesteps[-2]
    say(f"{name}: features at one block")
    case = FeatureCase(setting, [subject.block], [middle])
    yield _compare(name, f"features, block {subject.block}", case, setting, config, ceiling)
    say(f"{name}: DifFormer's features")
    fused = FeatureCase(setting, subject.fused, subject.timesteps)
    what = f"DifFormer features, {len(subject.fused)} blocks × {len(subject.timesteps)} timesteps"
    yield _compare(name, what, fused, setting, config, ceiling)
    say(f"{name}: training from a cache")
    yield _from_cache(name, subject, setting, config)
    say(f"{name}: a training step of DifFeed")
    step = FeedbackCase(setting, subject.fed_back, subject.block, middle, subject.head)
    yield _compare(name, "DifFeed training step", step, setting, config, ceiling)


def _compare(
    name: str, what: str, case: FeatureCase | FeedbackCase, setting: Setting, config: BenchmarkConfig, ceiling: float
) -> Row:
    found = difference(case.ours(), case.theirs())
    ours, theirs = interleave([case.ours, case.theirs], config.repeats, setting.images.device, warmups=0)
    images = len(setting.images)
    # A backward pass is not counted in operations, so there is no rate of a training step.
    rate = case.flops * images / ours.median if isinstance(case, FeatureCase) else None
    return Row(
        subject=name,
        case=what,
        ours=images / ours.median,
        theirs=images / theirs.median,
        ratio=theirs.median / ours.median,
        flops_ratio=case.baseline_flops / case.flops if rate else None,
        spread=max(ours.spread, theirs.spread),
        flops_per_second=rate,
        ceiling_share=rate / ceiling if rate else None,
        our_peak=ours.peak_bytes,
        their_peak=theirs.peak_bytes,
        difference=found,
        operations=tuple(top_operations(case.ours, setting.images.device)) if config.profile else (),
    )


def _from_cache(name: str, subject: Subject, setting: Setting, config: BenchmarkConfig, epochs: int = 28) -> Row:
    """28 epochs of DifFormer with features extracted once, against the baseline's live features in every epoch."""
    case = CachedCase(setting, subject.fused, subject.timesteps, subject.head)
    works = [case.features.ours, case.features.theirs, case.cached]
    extract, live, step = (timing.median for timing in interleave(works, config.repeats, setting.images.device))
    ours, theirs = extract + epochs * step, epochs * (live + step)
    images = epochs * len(setting.images)
    return Row(
        subject=name,
        case=f"DifFormer, {epochs} epochs from a cache",
        ours=images / ours,
        theirs=images / theirs,
        ratio=theirs / ours,
        flops_ratio=None,
        spread=0.0,
        flops_per_second=None,
        ceiling_share=None,
        our_peak=None,
        their_peak=None,
        difference=None,
    )


def _machine(device: torch.device, dtype: torch.dtype, ceiling: float) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "precision": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "matrix_product_flops": ceiling,
        "date": date.today().isoformat(),
    }


def _processor() -> str:
    """The model's name, where Linux says it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
