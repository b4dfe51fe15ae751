"""CSV tables: nothing in them is a formula, and what was written is read."""

import ast
import csv
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import difformer
from difformer.tables import read_rows, write_rows


def written(*cells):
    file = io.StringIO(newline="")
    write_rows(file, [cells])
    return file.getvalue()


def parsed(*cells):
    return next(csv.reader(io.StringIO(written(*cells), newline="")))


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+cmd|' /C calc'!A0",
        "-1+1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n5",
        "=",
        "-",
        "\uff1d1+1",
        "-a.png",
        Path("=a.png"),
    ],
)
def test_what_a_spreadsheet_would_compute_is_marked_as_text(text):
    assert parsed(text, "b") == [f"'{text}", "b"]


def test_numbers_stay_numbers_and_nothing_stays_nothing():
    cells = [-0.5, np.float64(-2.5), -3, "-0.5", "-1e-05", "+4", "-inf", None, "a-b", "x=1", "", "'tis"]
    assert parsed(*cells) == ["-0.5", "-2.5", "-3", "-0.5", "-1e-05", "+4", "-inf", "", "a-b", "x=1", "", "'tis"]


@given(st.lists(st.text(st.sampled_from("'=+-@\t\r\n0a.,\"")), min_size=2))
def test_what_was_written_is_read(cells):
    assert read_rows(io.StringIO(written(*cells), newline="")) == [cells]


def test_what_is_no_table_is_refused():
    with pytest.raises(ValueError, match="no CSV file"):
        read_rows(io.StringIO('a,"' + "b" * (csv.field_size_limit() + 1), newline=""))


def test_every_table_of_the_package_is_written_here():
    """Only this file's writer knows of formulas."""
    package = Path(difformer.__file__).parent
    for path in package.rglob("*.py"):
        uses = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "csv"
        }
        assert path == package / "tables.py" or not uses & {"writer", "DictWriter"}, path
