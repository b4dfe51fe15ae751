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
from torch._subclasses.fake_tensor import FakeTensorMode

from difformer.allocator import keep_freed_memory
from difformer.backbones import UNetBackbone
from difformer.checkpoints import PRESETS
from difformer.config import UNetConfig, as_positive_integer
from difformer.diffusion import NoiseSchedule
from difformer.engine.benchmark.cases import CLASSES, CachedCase, FeatureCase, FeedbackCase, Setting, difference
from difformer.engine.benchmark.measuring import interleave, matrix_ceiling, top_operations
from difformer.engine.benchmark.openai import HookedNetwork
from difformer.engine.recipes.reading import plain
from difformer.engine.trial.memory import Demand, demand
from difformer.models import UNet

# The largest relative difference of outputs at which a speed-up counts: rounding in float32, and of half precision.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2}
# Of DifFormer's published recipe.
EPOCHS = 28
_START_AT_ZERO = ("out_layers.3.weight", "proj_out.weight", "out.2.weight")

Say = Callable[[str], None]


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
        compile: ours is built with torch.compile.

    Raises:
        ValueError: an unknown subject or device, or a number out of range.
    """

    subjects: tuple[str, ...] = ("small", "adm256")
    repeats: int = 3
    batch_size: int | None = None
    device: str | None = None
    profile: bool = False
    compile: bool = False

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
        flops_ratio: operations of theirs over ours, backward passes included: what doing less explains.
        spread: the larger relative spread of both.
        flops_per_second: that ours achieves.
        ceiling_share: of a large matrix product's, in the same precision.
        our_peak, their_peak: most bytes at once beyond weights and images: measured on a GPU, counted on a CPU.
        difference: the largest relative difference of outputs; None where there is nothing to compare.
        operations: those that take longest in ours, with their shares.
    """

    subject: str
    case: str
    ours: float
    theirs: float
    ratio: float
    flops_ratio: float | None = None
    spread: float = 0.0
    flops_per_second: float | None = None
    ceiling_share: float | None = None
    our_peak: int | None = None
    their_peak: int | None = None
    difference: float | None = None
    operations: tuple[tuple[str, float], ...] = ()


def benchmark(config: BenchmarkConfig, say: Say) -> dict[str, Any]:
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
    # The baseline's behaviour from the start: large blocks that come to lie in kept memory stay in it.
    keep_freed_memory(False)
    device = config.place
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    ceiling = matrix_ceiling(device, dtype)
    rows = []
    for name in config.subjects:
        for row in _rows(name, config, device, dtype, ceiling, say):
            if row.difference is not None and row.difference > TOLERANCE[dtype]:
                raise RuntimeError(
                    f"{name}, {row.case}: outputs differ by {row.difference:.2g}, more than {TOLERANCE[dtype]:g}; "
                    "a speed at other numbers is no result"
                )
            rows.append(row)
        gc.collect()
    return {"machine": _machine(device, dtype, ceiling, config.compile), "rows": [plain(asdict(row)) for row in rows]}


def _setting(
    subject: Subject, device: torch.device, dtype: torch.dtype, batch_size: int | None, schedule: NoiseSchedule
) -> Setting:
    """Networks with random weights, and random images; fake ones under a `FakeTensorMode`."""
    with torch.random.fork_rng(), device:
        torch.manual_seed(0)
        unet = UNet(subject.config)
        for name, parameter in unet.named_parameters():
            # Layers that start at zero would make blocks trivial.
            if name.endswith(_START_AT_ZERO):
                nn.init.normal_(parameter, std=0.02)
        size = batch_size or subject.batch_sizes[device.type == "cuda"]
        side = subject.config.image_size
        images = torch.rand(size, 3, side, side) * 2 - 1
        labels = torch.randint(0, CLASSES, (size,))
        baseline = HookedNetwork(unet, device)
    if dtype != unet.dtype:
        unet.cast_torso(dtype)
    return Setting(UNetBackbone(unet, schedule), baseline, images, labels)


def _rows(
    name: str, config: BenchmarkConfig, device: torch.device, dtype: torch.dtype, ceiling: float, say: Say
) -> Iterator[Row]:
    subject = SUBJECTS[name]
    demands = _demands(subject, config.batch_size)
    setting = _setting(subject, device, dtype, config.batch_size, NoiseSchedule.linear(1000))
    if config.compile:
        setting.backbone.compile()
    for what, case in _cases(subject, setting):
        say(f"{name}: {what}")
        yield _compare(name, what, case, demands[what], config, ceiling)
    say(f"{name}: training, live and from a cache")
    yield from _training(name, subject, setting, config)


def _cases(subject: Subject, setting: Setting) -> Iterator[tuple[str, FeatureCase | FeedbackCase]]:
    middle = subject.timesteps[-2]
    yield f"features, block {subject.block}", FeatureCase(setting, [subject.block], [middle])
    fused = f"DifFormer features, {len(subject.fused)} blocks × {len(subject.timesteps)} timesteps"
    yield fused, FeatureCase(setting, subject.fused, subject.timesteps)
    yield "DifFeed training step", FeedbackCase(setting, subject.fed_back, subject.block, middle, subject.head)


def _demands(subject: Subject, batch_size: int | None) -> dict[str, tuple[Demand, Demand]]:
    """What ours and theirs ask for in each case in float32, counted on fake tensors."""
    # Its values are looked at when it is made, so it has to be real; it keeps fake ones of what it computes later.
    schedule = NoiseSchedule.linear(1000)
    with FakeTensorMode(allow_non_fake_inputs=True):
        setting = _setting(subject, torch.device("cpu"), torch.float32, batch_size, schedule)
        return {what: (demand(case.ours), demand(case.theirs)) for what, case in _cases(subject, setting)}


def _compare(
    name: str,
    what: str,
    case: FeatureCase | FeedbackCase,
    demands: tuple[Demand, Demand],
    config: BenchmarkConfig,
    ceiling: float,
) -> Row:
    found = difference(case.ours(), case.theirs())
    works = [_keeping_memory(case.ours), case.theirs]
    ours, theirs = interleave(works, config.repeats, config.place, warmups=0)
    images = len(case.setting.images)
    rate = demands[0].flops / ours.median
    return Row(
        subject=name,
        case=what,
        ours=images / ours.median,
        theirs=images / theirs.median,
        ratio=theirs.median / ours.median,
        flops_ratio=demands[1].flops / demands[0].flops,
        spread=max(ours.spread, theirs.spread),
        flops_per_second=rate,
        ceiling_share=rate / ceiling,
        our_peak=demands[0].peak_bytes if ours.peak_bytes is None else ours.peak_bytes,
        their_peak=demands[1].peak_bytes if theirs.peak_bytes is None else theirs.peak_bytes,
        difference=found,
        operations=tuple(top_operations(case.ours, config.place)) if config.profile else (),
    )


def _keeping_memory(work: Callable[[], object]) -> Callable[[], None]:
    """Work as the command line does it; the baseline has the C library's own behaviour, as in its users' scripts."""

    def kept() -> None:
        keep_freed_memory()
        try:
            work()
        finally:
            keep_freed_memory(False)

    return kept


def _training(name: str, subject: Subject, setting: Setting, config: BenchmarkConfig) -> Iterator[Row]:
    """DifFormer's training: a step with live features, and 28 epochs with features extracted once.

    The baseline's features are live in both, and its head is ours.
    """
    case = CachedCase(setting, subject.fused, subject.timesteps, subject.head)
    works = [_keeping_memory(case.features.ours), case.features.theirs, _keeping_memory(case.cached)]
    timings = interleave(works, config.repeats, config.place)
    ours, theirs, step = (timing.median for timing in timings)
    spread = max(timing.spread for timing in timings)

    def row(what: str, our_seconds: float, their_seconds: float, epochs: int) -> Row:
        images = epochs * len(setting.images)
        ratio = their_seconds / our_seconds
        return Row(name, what, images / our_seconds, images / their_seconds, ratio, spread=spread)

    yield row("DifFormer training step, live", ours + step, theirs + step, 1)
    yield row(f"DifFormer, {EPOCHS} epochs from a cache", ours + EPOCHS * step, EPOCHS * (theirs + step), EPOCHS)


def _machine(device: torch.device, dtype: torch.dtype, ceiling: float, compiled: bool) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "precision": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "compiled": compiled,
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
