"""ELPV: electroluminescence images of solar cells with the probability of a defect (Deitsch et al. 2019)."""

from pathlib import Path

from difformer._optional import require
from difformer.data.source import DataError, Source, file_source, find_root, read_lines, unknown_split
from difformer.data.spec import DataConfig
from difformer.data.subset import split_holdout

CLASSES = ("functional", "defective")
# The annotators' four answers: probabilities 0, 1/3, 2/3 and 1.
LEVELS = ("functional, sure", "functional, unsure", "defective, unsure", "defective, sure")
TEST_FRACTION = 0.25


def read_elpv(config: DataConfig, split: str, *, levels: bool = False) -> Source:
    """One split of ELPV, from the installed package `elpv-dataset` or from a folder with its `labels.csv`.

    There is no official split: a quarter of each combination of level and cell type is the test split, chosen by
    `split_seed`, the same for two and for four classes.

    Args:
        config: root is the folder with `labels.csv`; the package's own when None.
        split: `train`, `test` or `all`.
        levels: four classes in place of two; a cell is defective from a probability of 0.5.

    Raises:
        FileNotFoundError: there is no `labels.csv`.
        DataError: no such split, or a malformed line.
        ImportError: neither root nor the package is there.
    """
    if split not in ("train", "test", "all"):
        raise unknown_split("ELPV", split, ("train", "test", "all"))
    if config.root:
        root = find_root(config.root, "ELPV")
    else:
        package = require("elpv_dataset", "ELPV without a root", install="elpv-dataset")
        root = Path(str(package.__file__)).parent / "data"
    rows = _rows(root / "labels.csv")
    steps = [round(probability * 3) for _, probability, _ in rows]
    chosen = list(range(len(rows)))
    if split != "all":
        kinds = sorted({kind for *_, kind in rows})
        strata = [step * len(kinds) + kinds.index(row[2]) for step, row in zip(steps, rows, strict=True)]
        kept, held = split_holdout(strata, TEST_FRACTION, config.split_seed)
        chosen = (held if split == "test" else kept).tolist()
    labels = [steps[i] if levels else int(rows[i][1] >= 0.5) for i in chosen]
    names = [rows[i][0] for i in chosen]
    return file_source(f"ELPV {split} in {root}", root, names, labels, LEVELS if levels else CLASSES)


def read_elpv_levels(config: DataConfig, split: str) -> Source:
    """ELPV with its four levels as classes; see `read_elpv`."""
    return read_elpv(config, split, levels=True)


def _rows(path: Path) -> list[tuple[str, float, str]]:
    """File, probability of a defect and cell type of every line."""
    if not path.is_file():
        raise FileNotFoundError(f"ELPV: there is no file {path}")
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        words = line.split()
        if not words:
            continue
        try:
            name, probability, kind = words[0], float(words[1]), words[2]
        except (IndexError, ValueError) as error:
            raise DataError(f"{path}, line {number}: expected file, probability and type, got {line!r}") from error
        if not 0 <= probability <= 1:
            raise DataError(f"{path}, line {number}: the probability must lie in [0, 1], got {probability}")
        rows.append((name, probability, kind))
    return rows
