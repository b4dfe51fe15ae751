"""CSV tables that spreadsheets show as what they are: text that looks like a formula is marked as text."""

import csv
from collections.abc import Iterable, Sequence
from numbers import Number
from pathlib import Path
from typing import Any, TextIO

# What a spreadsheet takes for the beginning of a formula (OWASP, "CSV injection"), in full width too.
_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
_MARK = "'"


def write_rows(file: TextIO, rows: Iterable[Sequence[object]], *, end: str = "\r\n") -> None:
    """Writes rows of a CSV file.

    Args:
        file: open for text with `newline=""`.
        rows: numbers are written unchanged and None as an empty cell. Anything else is written as text, with an
            apostrophe in front if it looks like a formula.
        end: of each line.
    """
    csv.writer(file, lineterminator=end).writerows([_written(cell) for cell in row] for row in rows)


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file; None becomes an empty cell."""
    # File names may hold bytes that are not UTF-8.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        write_rows(file, [header, *rows])


def read_rows(file: TextIO) -> list[list[str]]:
    """The rows that `write_rows` wrote, as text without the marks.

    Raises:
        ValueError: it is no CSV file.
    """
    try:
        rows = list(csv.reader(file))
    except csv.Error as error:
        raise ValueError(f"it is no CSV file: {error}") from error
    return [[cell[1:] if cell.startswith(_MARK) and _is_formula(cell) else cell for cell in row] for row in rows]


def _written(cell: object) -> object:
    if cell is None or isinstance(cell, Number):
        return cell
    text = str(cell)
    if not _is_formula(text):
        return text
    # Text such as -1 is a number, unless white space comes first.
    try:
        float(text)
    except ValueError:
        return _MARK + text
    return _MARK + text if text.startswith(("\t", "\r", "\n")) else text


def _is_formula(text: str) -> bool:
    """Whether text looks like a formula, with or without marks: marked text gets another mark, so that reading restores
    it.
    """
    return text.lstrip(_MARK).startswith(_FORMULA)
