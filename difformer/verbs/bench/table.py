"""A benchmark's results as text."""

from collections.abc import Mapping
from typing import Any

from difformer.engine.cost.costs import human_bytes, human_flops

_HEADER = (
    "case",
    "images/s",
    "baseline",
    "ratio",
    "by operations",
    "spread",
    "speed",
    "of ceiling",
    "peak",
    "baseline",
)


def text_report(results: Mapping[str, Any]) -> str:
    """A table for each subject, and the machine they were measured on.

    Args:
        results: from `benchmark`.
    """
    machine, rows = results["machine"], results["rows"]
    lines = [
        f"{machine['device']}, {machine['threads']} threads, {machine['precision']}, torch {machine['torch']}"
        f"{', ours compiled' if machine['compiled'] else ''}, "
        f"{machine['date']}; matrix product {human_flops(machine['matrix_product_flops'])}/s"
    ]
    for subject in dict.fromkeys(row["subject"] for row in rows):
        chosen = [row for row in rows if row["subject"] == subject]
        table = [list(_HEADER), *map(_cells, chosen)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines += ["", subject]
        for case, *numbers in table:
            padded = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
            lines.append("  ".join([case.ljust(widths[0]), *padded]))
        for row in chosen:
            if row["operations"]:
                shares = ", ".join(f"{name} {share:.0%}" for name, share in row["operations"])
                lines.append(f"{row['case']}: {shares}")
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        row["case"],
        f"{row['ours']:.3g}",
        f"{row['theirs']:.3g}",
        f"{row['ratio']:.2f}",
        f"{row['flops_ratio']:.2f}",
        f"{row['spread']:.0%}",
        f"{human_flops(row['flops_per_second'])}/s",
        f"{row['ceiling_share']:.0%}",
        human_bytes(row["our_peak"]),
        human_bytes(row["their_peak"]),
    ]
