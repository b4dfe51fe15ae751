"""A page with everything a page can have."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from difformer.report import (
    Code,
    Gallery,
    GalleryItem,
    Paragraph,
    Picture,
    Row,
    Section,
    Table,
    draw_confusion,
    write_page,
)

LONG = "a_name_without_any_place_to_break_it_" * 4


def png(width: int, height: int, seed: int = 0, *, dpi: int | None = None) -> bytes:
    """A picture of noise."""
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, "PNG", **({} if dpi is None else {"dpi": (dpi, dpi)}))
    return out.getvalue()


def write_example_page(folder: Path) -> Path:
    """Writes all kinds of blocks, among them some that are wider than a small screen; returns the page's path."""
    wide, small = folder / "wide.png", folder / "small.png"
    wide.write_bytes(png(1800, 300, dpi=150))
    small.write_bytes(png(20, 20))
    header = ["Method", "Blocks", "Timesteps", "Accuracy", "Balanced accuracy", "Parameters", "Time"]
    rows = [
        [f"method {i}", "in16, mid, out01", "90, 200", "81.0 ± 0.6", "78.0", "27,786,216", "4 min"] for i in range(7)
    ]
    items = [GalleryItem(png(32, 32, i), f"example {i}", LONG, ("right", "wrong", None)[i % 3]) for i in range(11)]
    sections = [
        Section(
            "Words", [Paragraph("A sentence. " * 20), Paragraph(LONG), Code(f"x = 1\n{LONG * 2}", caption="Run it")]
        ),
        Section("Numbers", [Table(header, rows, caption="Results", note="Over 3 seeds.", highlight=5)]),
        Section(
            "Pictures",
            [
                Picture(wide, "noise", caption="Wide"),
                Row([Picture(small, "a little noise"), Table(["", "n"], [["a", "1"]]), Code("ls", "sh")]),
                Gallery([*items, GalleryItem(small, "from a file")], caption="Examples"),
            ],
        ),
    ]
    page = folder / "page.html"
    write_page(page, "A page with everything", sections, lead="What it is for.", footer="The end.")
    return page


def write_confusion_page(folder: Path, classes: int) -> Path:
    """Writes a page with the confusion matrices of three methods side by side, as reports have them; returns its path.

    All show the same numbers, since drawing two hundred classes takes long.
    """
    counts = np.eye(classes, dtype=np.int64) * 30 + np.random.default_rng(0).integers(4, size=(classes, classes))
    file, page = folder / "confusion.png", folder / "page.html"
    draw_confusion(counts, [f"a kind of flower {i}" for i in range(classes)], file)
    pictures = [Picture(file, f"method {i}", f"Method {i}, all seeds together") for i in range(3)]
    write_page(page, f"{classes} classes", [Section("Before", []), Section("Confusion matrices", [Row(pictures)])])
    return page
