"""The benchmark: every case at every architecture, ours and the baseline in turn; the body of `difformer bench`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from difformer.config import as_positive_integer
from difformer.config.reading import plain
from difformer.models.memory import Demand
from difformer.verbs.bench.machine import describe_machine
from difformer.verbs.bench.measuring import Timing
from difformer.verbs.bench.side import Outputs, Side, SideConfig
from difformer.verbs.bench.subjects import CACHED, EPOCHS, SUBJECTS, TRAINING, count_demands

# The largest relative difference of outputs at which a speed-up counts: rounding in float32, and of half precision.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2}

Say = Callable[[str], None]


@dataclass(frozen=True)
class BenchmarkConfig:
    """What is measured.

    Attributes:
        subjects: architectures, by name.
        repeats: measurements of each case.
        batch_size: images at once; that of the subject when None.
        device: cpu or cuda; cuda where there is one when None.
        profile: also report which operations take longest.
        compile: ours is built with torch.compile.

    Raises:
        ValueError: an unknown subject or device, or a number out of range.
    """

    subjects: tuple[str, ...] = ("small", "large_maps", "adm256")
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

    @property
    def dtype(self) -> torch.dtype:
        """Of the convolutions: half precision on a GPU, as the baseline's scripts have it."""
        return torch.float16 if self.place.type == "cuda" else torch.float32


@dataclass(frozen=True)
class Row:
    """The result of one case.

    Attributes:
        subject, case: which one.
        ours, theirs: images a second, from the medians.
        ratio: ours over theirs.
        flops_ratio: operations of theirs over ours, backward passes included: the speed-up that fewer operations
            explain.
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
    flops_ratio: float
    spread: float
    flops_per_second: float
    ceiling_share: float
    our_peak: int
    their_peak: int
    difference: float | None = None
    operations: tuple[tuple[str, float], ...] = ()


def benchmark(config: BenchmarkConfig, say: Say) -> dict[str, Any]:
    """Measures all requested cases.

    Args:
        config: what, how often and where.
        say: called with the name of each case before it begins.

    Returns:
        `machine` and `rows`, as JSON types.

    Raises:
        ImportError: the baseline's package is missing.
        RuntimeError: outputs differ by more than rounding, so that speeds mean nothing; or a process has ended.
    """
    rows: list[Row] = []
    ceilings = []
    how = SideConfig(
        "ours", config.place, config.dtype, config.batch_size, config.compile, threads=torch.get_num_threads()
    )
    for name in config.subjects:
        subject = SUBJECTS[name]
        demands = count_demands(subject, config.batch_size)
        with Side(subject, how) as ours, Side(subject, replace(how, name="theirs")) as theirs:
            ceilings.append(ours.ceiling())
            for case in demands:
                if case != CACHED:
                    say(f"{name}: {case}")
                    rows += _case_rows(name, case, (ours, theirs), demands, config, ceilings[-1])
    machine = describe_machine(config.place, config.dtype, max(ceilings), config.compile)
    return {"machine": machine, "rows": [plain(asdict(row)) for row in rows]}


def _case_rows(
    name: str,
    case: str,
    sides: tuple[Side, Side],
    demands: Mapping[str, tuple[Demand, Demand]],
    config: BenchmarkConfig,
    ceiling: float,
) -> Iterator[Row]:
    """The row of a case; for training, also that of many epochs with features extracted once."""
    ours, theirs = sides
    # The first calls, which also warm up what is measured below.
    found = difference(ours.outputs(case), theirs.outputs(case))
    if not found <= TOLERANCE[config.dtype]:
        raise RuntimeError(
            f"{name}, {case}: outputs differ by {found:.2g}, more than {TOLERANCE[config.dtype]:g}, so their speeds "
            "cannot be compared"
        )
    works = [(ours, "ours"), (theirs, "theirs")]
    if case == TRAINING:
        kept = [(ours, "extract"), (ours, "cached")]
        _in_turn(case, kept, 1)
        works += kept
    timings = _in_turn(case, works, config.repeats)
    images = SUBJECTS[name].images(config.batch_size, config.place)
    row = _row(name, case, images, timings[:2], demands[case], ceiling)
    operations = tuple(ours.operations(case)) if config.profile else ()
    yield replace(row, difference=found, operations=operations)
    if case == TRAINING:
        # Ours keeps extracted features in memory, against live ones of the baseline.
        _, live, extract, cached = timings
        seconds = [once + EPOCHS * step for once, step in zip(extract.seconds, cached.seconds, strict=True)]
        whole = Timing(tuple(seconds), extract.peaks + cached.peaks)
        live = Timing(tuple(EPOCHS * step for step in live.seconds), live.peaks)
        yield _row(name, CACHED, EPOCHS * images, (whole, live), demands[CACHED], ceiling)


def _in_turn(case: str, works: Sequence[tuple[Side, str]], repeats: int) -> list[Timing]:
    """Measures several works in turn, so that other load on the machine affects all of them."""
    measured = [[side.measure(case, work) for side, work in works] for _ in range(repeats)]
    return [Timing(*zip(*of_work, strict=True)) for of_work in zip(*measured, strict=True)]


def _row(
    name: str, case: str, images: int, timings: Sequence[Timing], demands: tuple[Demand, Demand], ceiling: float
) -> Row:
    """The result of a case; timings and demands are of ours, then theirs."""
    ours, theirs = timings
    rate = demands[0].flops / ours.median
    return Row(
        subject=name,
        case=case,
        ours=images / ours.median,
        theirs=images / theirs.median,
        ratio=theirs.median / ours.median,
        flops_ratio=demands[1].flops / demands[0].flops,
        spread=max(ours.spread, theirs.spread),
        flops_per_second=rate,
        ceiling_share=rate / ceiling,
        our_peak=demands[0].peak_bytes if ours.peak_bytes is None else ours.peak_bytes,
        their_peak=demands[1].peak_bytes if theirs.peak_bytes is None else theirs.peak_bytes,
    )


def difference(ours: Outputs, theirs: Outputs) -> float:
    """The largest relative difference, in the norm, of any output; NaN where an output holds NaN.

    Raises:
        ValueError: they have different outputs.
    """
    if ours.keys() != theirs.keys():
        raise ValueError(f"the outputs are {', '.join(ours)} and {', '.join(theirs)}")
    norm = np.linalg.norm
    return float(np.max([norm(ours[name] - theirs[name]) / norm(theirs[name]) for name in ours]))
