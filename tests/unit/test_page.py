"""Pages: what is on them, and that they need nothing beside them."""

import base64
from html.parser import HTMLParser

import pytest
from example_pages import png, write_example_page

from difformer.report import Code, Gallery, GalleryItem, Paragraph, Picture, Row, Section, Table, write_page

NASTY = """<script>alert("1")</script> & 'quotes' {{ 1 + 1 }}"""


class Page(HTMLParser):
    """The elements and texts of a page, whose tags must be balanced."""

    EMPTY = ("meta", "link", "img")

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())

    def all(self, tag, **attributes):
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [a for t, a in self.elements if t == tag and wanted.items() <= a.items()]


def write(folder, *blocks, **options):
    path = folder / "page.html"
    write_page(path, "Title", [Section("Section", blocks)], **options)
    return Page(path.read_text(encoding="utf-8"))


def test_a_page_with_everything(tmp_path):
    html = write_example_page(tmp_path).read_text(encoding="utf-8")
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert page.all("html", lang="en")
    assert page.all("meta", charset="utf-8")
    assert page.all("meta", name="viewport")
    assert [len(page.all(tag)) for tag in ("header", "nav", "main", "footer", "h1", "section", "h2")] == [1] * 5 + [
        3
    ] * 2
    assert [link["href"] for link in page.all("a")] == [f"#{section['id']}" for section in page.all("section")]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for text in (
        "A page with everything",
        "What it is for.",
        "Over 3 seeds.",
        "Wide",
        "Examples",
        "Run it",
        "The end.",
    ):
        assert text in page.texts


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    html = write_example_page(tmp_path).read_text(encoding="utf-8")
    for tag, attributes in Page(html).elements:
        assert tag != "script"
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("data:", "#"))
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in html
    assert "@import" not in html
    assert "http://" not in html
    assert "https://" not in html


def test_text_is_escaped(tmp_path):
    picture = tmp_path / "p.png"
    picture.write_bytes(png(8, 8))
    write_page(
        tmp_path / "page.html",
        NASTY,
        [
            Section(NASTY, [Paragraph(NASTY), Table([NASTY, NASTY], [[NASTY, NASTY]], caption=NASTY, note=NASTY)]),
            Section(NASTY, [Picture(picture, NASTY, NASTY), Gallery([GalleryItem(picture, NASTY, NASTY)], NASTY)]),
            Section(NASTY, [Row([Code(NASTY, caption=NASTY)])]),
        ],
        lead=NASTY,
        footer=NASTY,
    )
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "<script" not in html
    assert page.texts.count(NASTY) == 23
    assert [image["alt"] for image in page.all("img")] == [NASTY, NASTY]
    assert {scrolling["aria-label"] for _, scrolling in page.elements if scrolling.get("role") == "region"} == {NASTY}


def test_pictures_are_inside(tmp_path):
    first, second = png(8, 8, 1), png(200, 100, 2, dpi=192)
    (tmp_path / "p.png").write_bytes(second)
    page = write(
        tmp_path,
        Gallery([GalleryItem(first, "one", mark="wrong"), GalleryItem(tmp_path / "p.png", "two")]),
        Picture(tmp_path / "p.png", "three"),
    )
    images = page.all("img")
    contents = [base64.b64decode(image["src"].removeprefix("data:image/png;base64,")) for image in images]
    assert contents == [first, second, second]
    # Twice as many pixels an inch as a screen has, so half as wide.
    assert [(image["width"], image["height"]) for image in images] == [("8", "8"), ("100", "50"), ("100", "50")]
    assert [image.get("class") for image in images] == ["small", None, None]
    assert len(page.all("li", class_="wrong")) == 1
    assert "wrong" in page.texts


def test_a_row_knows_the_widest_of_its_pictures(tmp_path):
    narrow, wide = tmp_path / "n.png", tmp_path / "w.png"
    narrow.write_bytes(png(20, 10))
    wide.write_bytes(png(300, 10))
    page = write(tmp_path, Row([Picture(narrow, "n"), Picture(wide, "w")]), Row([Paragraph("no picture")]))
    assert [row["style"] for row in page.all("div", class_="row")] == ["--width: 300px", "--width: 0px"]


def test_tables_have_headings(tmp_path):
    page = write(tmp_path, Table(["", "top-1"], [["a", "1"], ["b", "2"], ["c", "3"]], highlight=1))
    assert len(page.all("th", scope="col")) == 1
    assert len(page.all("th", scope="row")) == 3
    assert [row.get("class") for row in page.all("tr")] == [None, None, "highlight", None]
    assert not page.all("nav")


def test_lines_of_code_stay_as_they_are(tmp_path):
    text = "\n  def f():\n\treturn 1 < 2\n\n    # end\n"
    path = tmp_path / "page.html"
    write_page(path, "Title", [Section("Section", [Row([Code(text, "sh")])])])
    html = path.read_text(encoding="utf-8")
    assert f'<code class="language-sh">{text.replace("<", "&lt;")}</code></pre>' in html


def test_names_that_are_no_text_are_replaced(tmp_path):
    page = write(tmp_path, Paragraph("caf\udce9 ± é"))
    assert "caf? ± é" in page.texts


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (lambda: Picture("a.png", " "), "a.png needs an alt text"),
        (lambda: GalleryItem(b"", ""), "needs a title"),
        (lambda: GalleryItem(b"", "a", mark="ok"), "unknown mark 'ok'; expected right or wrong, or None"),
        (lambda: Code("ls", "bash"), "unknown language 'bash'; expected python or sh"),
        (lambda: Table([], []), "at least one column"),
        (lambda: Table(["a", "b"], [["1"]]), r"2 cells, got 1: \['1'\]"),
        (lambda: Table(["a"], [["1"]], highlight=1), "one of 1 rows, got 1"),
    ],
)
def test_wrong_blocks_are_refused(block, message):
    with pytest.raises(ValueError, match=message):
        block()


def test_a_page_that_cannot_be_written_leaves_the_one_before(tmp_path):
    write(tmp_path, Paragraph("before"))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        write(tmp_path, Picture(tmp_path / "missing.png", "gone"))
    with pytest.raises(ValueError, match=r"text\.png is not a PNG"):
        write(tmp_path, Picture(tmp_path / "text.png", "text"))
    with pytest.raises(ValueError, match="an example of 3 bytes is not a PNG"):
        write(tmp_path, Gallery([GalleryItem(b"GIF", "gif")]))
    with pytest.raises(ValueError, match="of the kinds Paragraph, Table, Picture, Gallery, Code, Row; got str"):
        write(tmp_path, "text")
    with pytest.raises(ValueError, match="needs a title"):
        write_page(tmp_path / "page.html", "", [])
    assert "before" in Page((tmp_path / "page.html").read_text()).texts
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "text.png"]
