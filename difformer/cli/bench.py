"""The verb that measures speed: bench."""

import json
from pathlib import Path
from typing import Literal

from difformer.files import check_target, write_atomically
from difformer.verbs.bench.benchmark import BenchmarkConfig
from difformer.verbs.bench.benchmark import benchmark as measure
from difformer.verbs.bench.table import text_report


def bench(
    *,
    quick: bool = False,
    subjects: list[str] | None = None,
    repeats: int = 3,
    batch_size: int | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    profile: bool = False,
    compile: bool = False,
    json_file: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Measures speed beside OpenAI's network with hooks, run whole and once a timestep, on the same random weights.

    Args:
        quick: the small architecture alone.
        subjects: architectures to measure: small, large_maps, adm256; all by default.
        repeats: measurements of each case.
        batch_size: images at once; by default as suits the architecture and the device.
        device: where to run; a GPU where there is one, by default.
        profile: also print which operations take longest.
        compile: build ours with torch.compile first, which takes a minute or more.
        json_file: write the results there, too.
        overwrite: replace the file if it exists.
    """
    if quick and subjects is not None:
        raise ValueError("quick chooses the subjects; leave out one of quick and subjects")
    if json_file is not None:
        check_target(json_file, overwrite=overwrite, ending=".json")
    chosen = ("small",) if quick else tuple(subjects or BenchmarkConfig.subjects)
    config = BenchmarkConfig(chosen, repeats, batch_size, device, profile, compile)
    results = measure(config, say=lambda text: print(text, flush=True))
    print(text_report(results))
    if json_file is not None:
        with write_atomically(json_file, overwrite=True) as temporary:
            temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
