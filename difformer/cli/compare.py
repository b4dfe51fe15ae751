"""The verb that compares runs: compare."""

from pathlib import Path

from difformer.verbs.compare.compare import compare_runs


def compare(
    runs: list[str],
    *,
    output: Path,
    split: str = "test",
    seed: int = 0,
    trust: list[str] | str | None = None,
    overwrite: bool = False,
) -> None:
    """Compares runs on one page: numbers, differences from the first with their significance, curves.

    Args:
        runs: folders of runs, of runs with several seeds, or that `difformer eval` wrote; two or more. Runs that have
            not been measured on the split are measured first.
        output: folder for the page, its pictures and the numbers.
        split: on which runs are compared.
        seed: of the bootstrap.
        trust: packages whose code may run, for runs with a head, data set or backbone of one of them.
        overwrite: replace what is there.
    """
    compare_runs(runs, output, split=split, seed=seed, overwrite=overwrite, trust=trust or ())
