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
    """Writes a CSV file; of None, nothing is written."""
    # File names may hold bytes that are not UTF-8.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        write_rows(file, [header, *rows])


def read_rows(file: TextIO) -> list[list[str]]:
    """The rows that `write_rows` wrote, as text without the marks.

    Raises:
        ValueError: it is no CSV file.
    """
    try:
        return [[_read(cell) for cell in row] for row in csv.reader(file)]
    except csv.Error as error:
        raise ValueError(f"it is no CSV file: {error}") from error


def _written(cell: object) -> object:
    if cell is None or isinstance(cell, Number):
        return cell
    text = str(cell)
    return _MARK + text if _is_formula(text) and not _is_number(text) else text


def _read(text: str) -> str:
    return text[1:] if text.startswith(_MARK) and _is_formula(text) else text


def _is_formula(text: str) -> bool:
    """Whether it is one, marked or not: text that already has marks gets another, so that reading gives it back."""
    return text.lstrip(_MARK).startswith(_FORMULA)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return not text.startswith(("\t", "\r", "\n"))
