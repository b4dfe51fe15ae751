"""What was found on pairs of images, as a table, a page and files."""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from difformer.analysis import Interval
from difformer.annotations.pairs import Pairs
from difformer.data.subset import evenly_spaced
from difformer.engine.runtime.result_folder import table_digests, write_json
from difformer.report import Paragraph, Picture, Row, Section, Table, write_page
from difformer.report.matches import Truth, draw_matches
from difformer.tables import write_table
from difformer.verbs.match.pairs import ALPHAS, Scores, right_points

TABLE, PAGE, RECORD = "pairs.csv", "pairs.html", "results.json"
FILES = (TABLE, PAGE, RECORD, "pair-*.png")

# At which pairs are drawn.
_ALPHA = 0.1
_KINDS = {"per image": attrgetter("per_image"), "per point": attrgetter("per_point")}
_NOTE = (
    "Shares of points in %, in brackets bootstrap intervals of 95 % over pairs, which are rather too narrow, since "
    "pairs share images. Per image is the mean over pairs, per point over all points; papers report either."
)


def text_table(scores: Sequence[Scores]) -> str:
    """The scores in columns: per image, then per point."""
    lines = []
    for kind in _KINDS:
        rows = [_header(kind), *(_cells(one, kind) for one in scores)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
        lines.append("")
    return "\n".join([*lines, *wrap(_NOTE, 110)])


def write_results(
    folder: Path,
    data: Pairs,
    places: Sequence[int],
    found: Sequence[NDArray[np.float64]],
    scores: Sequence[Scores],
    record: Mapping[str, Any],
    *,
    title: str,
    examples: int,
) -> None:
    """Writes `FILES` into a folder.

    Args:
        folder: is there.
        data: the pairs.
        places: of those that were measured.
        found: of `find_points`.
        scores: of `pair_scores`.
        record: what they depend on, JSON types.
        title: the same in a line.
        examples: pairs that are drawn, evenly spaced.
    """
    header = ("pair", "category", "source", "target", "points", *(f"right@{alpha:g}" for alpha in ALPHAS))
    write_table(folder / TABLE, header, map(lambda *one: _row(data, *one), places, found))
    content = {**record, "scores": [one.to_dict() for one in scores], "tables": table_digests(folder)}
    write_json(folder / RECORD, content)
    tables = [Table(_header(kind), [_cells(one, kind) for one in scores]) for kind in _KINDS]
    sections = [Section("Percentage of correct keypoints", [*tables, Paragraph(_NOTE)])]
    drawn = [(places[row], found[row]) for row in evenly_spaced(len(places), examples)] if examples else []
    if drawn:
        words = (
            f"Evenly spaced, not chosen. Green: within {_ALPHA:g} of the longer side of the box in the second image. "
            "Red crosses are farther away; a line leads to where they should be."
        )
        pictures = [_draw(folder, data, place, points) for place, points in drawn]
        sections.append(Section("Some pairs", [Paragraph(words), Row(pictures)]))
    lead = f"{len(places):,} of {len(data.pairs):,} pairs of {record['data']['split']}; {title}."
    write_page(folder / PAGE, "Corresponding points", sections, lead=lead)


def _row(data: Pairs, place: int, found: NDArray[np.float64]) -> list[Any]:
    pair = data.pairs[place]
    source, target = (data.images.describe(image) for image in pair.images)
    category = data.images.class_names[data.images.labels[pair.images[0]]]
    right = (int(right_points(data, place, found, alpha).sum()) for alpha in ALPHAS)
    return [place + 1, category, source, target, len(found), *right]


def _header(kind: str) -> tuple[str, ...]:
    return (kind, "pairs", "points", *(f"@{alpha:g}" for alpha in ALPHAS))


def _cells(scores: Scores, kind: str) -> tuple[str, ...]:
    return scores.name, f"{scores.pairs:,}", f"{scores.points:,}", *map(_share, _KINDS[kind](scores).values())


def _share(found: Interval) -> str:
    return f"{100 * found.mean:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def _draw(folder: Path, data: Pairs, place: int, found: NDArray[np.float64]) -> Picture:
    pair, path = data.pairs[place], folder / f"pair-{place + 1:05}.png"
    right = right_points(data, place, found, _ALPHA)
    names = [data.images.describe(image) for image in pair.images]
    draw_matches(
        (data.images.read(pair.images[0]), data.images.read(pair.images[1])),
        (pair.points[0].double().numpy(), found),
        path,
        names=(names[0], names[1]),
        truth=Truth(pair.points[1].double().numpy(), right),
    )
    caption = f"Pair {place + 1}: {right.sum()} of {len(right)} points are right"
    return Picture(path, f"Points of {names[0]} in {names[1]}", caption)
