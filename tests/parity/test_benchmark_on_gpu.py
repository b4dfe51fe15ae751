"""The benchmark on a GPU, against the baseline's own network in half precision."""

import pytest

from difformer.verbs.bench.benchmark import BenchmarkConfig, benchmark


@pytest.mark.gpu
def test_half_precision():
    """Outputs that differ by more than rounding would be an error."""
    results = benchmark(BenchmarkConfig(("small",), repeats=1, device="cuda"), say=lambda text: None)
    assert results["machine"]["precision"] == "float16"
    for row in results["rows"]:
        assert row["our_peak"] > 0
