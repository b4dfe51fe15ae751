"""A page of results: one HTML file that needs nothing beside it."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from PIL import Image, UnidentifiedImageError

from difformer.files import expand_user, write_atomically

Mark = Literal["right", "wrong"]
Language = Literal["python", "sh"]

# Pixels an inch of a screen, by the definition of CSS. Pictures with more are shown at their size in inches.
_CSS_DENSITY = 96
# Pixels a side up to which an example is enlarged with its pixels visible.
_SMALL = 128


@dataclass(frozen=True)
class Paragraph:
    """Plain text.

    Attributes:
        text: of one paragraph.
    """

    text: str


@dataclass(frozen=True)
class Table:
    """Numbers beside names.

    Attributes:
        header: names of the columns, at least one; the first may be empty.
        rows: cells, as many a row as the header has; the first names the row.
        caption: above the table.
        note: below the table.
        highlight: index of a row to emphasise.

    Raises:
        ValueError: rows of another length than the header, or no such row to emphasise.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    note: str = ""
    highlight: int | None = None

    def __post_init__(self) -> None:
        if not self.header:
            raise ValueError("a table needs at least one column")
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"a row of this table has {len(self.header)} cells, got {len(row)}: {list(row)}")
        if self.highlight is not None and not 0 <= self.highlight < len(self.rows):
            raise ValueError(f"highlight must be the index of one of {len(self.rows)} rows, got {self.highlight}")


def percent(share: float | None) -> str:
    """A cell for a share in [0, 1]: in %, with one decimal, or - where there is none."""
    return "-" if share is None else f"{100 * share:.1f}"


@dataclass(frozen=True)
class Picture:
    """A picture with its caption.

    Attributes:
        path: a PNG; read when the page is written.
        alt: what the picture shows, for those who cannot see it.
        caption: below the picture.

    Raises:
        ValueError: an empty `alt`.
    """

    path: Path
    alt: str
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.alt.strip():
            raise ValueError(f"the picture {self.path} needs an alt text: say in a few words what it shows")


@dataclass(frozen=True)
class GalleryItem:
    """One example.

    Attributes:
        image: a PNG, as a file or as its bytes. One of at most 128 pixels a side is shown enlarged.
        title: a line below the image, and its alt text.
        text: further lines.
        mark: whether what the example shows is right; None where there is nothing to judge.

    Raises:
        ValueError: an empty title, or an unknown mark.
    """

    image: Path | bytes
    title: str
    text: str = ""
    mark: Mark | None = None

    def __post_init__(self) -> None:
        if not self.title.strip():
            raise ValueError("an example needs a title: it is the alt text of its image, too")
        if self.mark is not None and self.mark not in get_args(Mark):
            raise ValueError(f"unknown mark {self.mark!r}; expected {' or '.join(get_args(Mark))}, or None")


@dataclass(frozen=True)
class Gallery:
    """Examples in a grid that fits the width.

    Attributes:
        items: the examples.
        caption: below the grid.
    """

    items: Sequence[GalleryItem]
    caption: str = ""


@dataclass(frozen=True)
class Code:
    """Lines to run.

    Attributes:
        text: the lines.
        language: "python" or "sh".
        caption: above the lines.

    Raises:
        ValueError: another language.
    """

    text: str
    language: Language = "python"
    caption: str = ""

    def __post_init__(self) -> None:
        if self.language not in get_args(Language):
            raise ValueError(f"unknown language {self.language!r}; expected {' or '.join(get_args(Language))}")


@dataclass(frozen=True)
class Row:
    """Blocks side by side; on a narrow screen, and where pictures would become too small, one below the other.

    Attributes:
        blocks: from left to right.
    """

    blocks: "Sequence[Block]"


Block: TypeAlias = Paragraph | Table | Picture | Gallery | Code | Row


@dataclass(frozen=True)
class Section:
    """A part of the page, with an entry in the table of contents.

    Attributes:
        title: its heading.
        blocks: from top to bottom.
    """

    title: str
    blocks: Sequence[Block]


def write_page(path: Path, title: str, sections: Sequence[Section], *, lead: str = "", footer: str = "") -> None:
    """Writes one HTML file with its pictures inside: no scripts, and nothing is loaded from elsewhere.

    It fits screens from 400 pixels on, follows the reader's choice of light or dark, and prints. All text is escaped.

    Args:
        path: the file; replaced when it is there.
        title: heading of the page.
        sections: from top to bottom.
        lead: a sentence or two below the heading.
        footer: small print at the end.

    Raises:
        ValueError: an empty title, a picture that is no PNG, or an unknown kind of block.
        OSError: a picture cannot be read, or the page not written.
    """
    if not title.strip():
        raise ValueError("a page needs a title")
    # Here, as nothing but a page needs it.
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("difformer.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("page.html.j2").render(
        title=title,
        lead=lead,
        sections=[{"title": section.title, "blocks": [_view(b) for b in section.blocks]} for section in sections],
        footer=footer,
    )
    with write_atomically(path, overwrite=True) as temporary:
        # Names of files may hold bytes that are no text.
        temporary.write_text(html, encoding="utf-8", errors="replace", newline="\n")


def _view(block: Block) -> dict[str, Any]:
    """What the template reads of a block."""
    if not isinstance(block, Block):
        expected = ", ".join(kind.__name__ for kind in get_args(Block))
        raise ValueError(f"a section holds blocks of the kinds {expected}; got {type(block).__name__}")
    view: dict[str, Any] = {"kind": type(block).__name__.lower(), **vars(block)}
    if isinstance(block, Picture):
        view |= _inline(block.path)
    elif isinstance(block, Gallery):
        # Not `items`, which is a method of every dictionary.
        view["entries"] = [{**vars(item), **_inline(item.image)} for item in block.items]
    elif isinstance(block, Row):
        view["blocks"] = [_view(part) for part in block.blocks]
        view["width"] = max((part["width"] for part in view["blocks"] if part["kind"] == "picture"), default=0)
    return view


def _inline(image: Path | bytes) -> dict[str, Any]:
    """A PNG as an address that holds all of it, with the size to show it at, in CSS pixels."""
    data = image if isinstance(image, bytes) else expand_user(image).read_bytes()
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as opened:
            (width, height), density = opened.size, opened.info.get("dpi", (_CSS_DENSITY,))[0]
    except UnidentifiedImageError:
        name = f"an example of {len(data)} bytes" if isinstance(image, bytes) else str(image)
        raise ValueError(f"{name} is not a PNG") from None
    scale = min(1, _CSS_DENSITY / density) if density > 0 else 1
    return {
        "source": f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}",
        "width": max(1, round(scale * width)),
        "height": max(1, round(scale * height)),
        "small": max(width, height) <= _SMALL,
    }
