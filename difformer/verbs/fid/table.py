"""A comparison of two sets of images, to read."""

from difformer.verbs.fid.fid import Comparison, Measure

_HEADER = ("measure", "value", "95 % interval", "samples", "reference", "features", "")


def text_table(found: Comparison) -> str:
    """The numbers with their intervals, and what they are of.

    Args:
        found: from `compare_images`.
    """
    rows = [_HEADER, *map(_cells, found.measures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = [
        f"samples:   {found.samples}",
        f"reference: {found.reference}",
        f"features:  {found.features}, {found.width:,} numbers, digest {found.digest[:16]}",
        "",
    ]
    for row in rows:
        cells = (
            cell.ljust(width) if column in (0, len(_HEADER) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def _cells(measure: Measure) -> tuple[str, ...]:
    spread = ""
    if measure.low is not None and measure.high is not None:
        spread = f"{measure.low:.4g} … {measure.high:.4g}"
    elif measure.standard_error is not None:
        spread = f"± {measure.standard_error:.2g} (s.e.)"
    counts = ["?" if count is None else f"{count:,}" for count in (measure.samples, measure.reference)]
    if measure.reference is None and measure.name == "Inception score":
        counts[1] = ""
    width = "" if measure.width is None else f"{measure.width:,}"
    return measure.name, f"{measure.value:.5g}", spread, *counts, width, measure.how
