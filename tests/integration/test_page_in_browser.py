"""Pages as a browser shows them."""

import io

import numpy as np
import pytest
from browser import open_page
from example_pages import write_confusion_page, write_example_page
from PIL import Image

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1400])
def test_a_page_with_everything_fits(width, dark, tmp_path):
    page = write_example_page(tmp_path)
    visit = open_page(page, width, dark=dark)
    (tmp_path / "page.png").write_bytes(visit.screenshot)

    assert visit.width == width
    assert visit.scroll_width <= width
    assert [entry for entry in visit.log if entry["level"] == "SEVERE"] == []
    assert visit.requests == [page.as_uri()]
    assert len(visit.images) == 14
    for image in visit.images:
        assert image["complete"]
        assert image["naturalWidth"] > 0
        assert image["alt"]

    pixels = np.asarray(Image.open(io.BytesIO(visit.screenshot)).convert("L")).astype(int)
    assert pixels.shape[1] == width
    assert pixels.shape[0] > 900
    # Text and pictures on a ground that covers much of the page.
    assert pixels.std() > 10
    assert (np.median(pixels) < 64) == dark


def test_small_examples_are_enlarged_and_wide_pictures_fit_until_they_are_clicked(tmp_path):
    images = {image["alt"]: image for image in open_page(write_example_page(tmp_path), 400).images}
    assert images["example 0"]["width"] > 3 * images["example 0"]["naturalWidth"]
    # 1800 pixels at 150 an inch are 1152 on a screen.
    assert 300 < images["noise"]["width"] < 400
    assert images["noise"]["focused"] == pytest.approx(1152, abs=1)
    assert images["a little noise"]["width"] == images["a little noise"]["focused"] == pytest.approx(20, abs=1)
    assert all(image["cut"] == 0 for image in images.values())


def test_a_table_that_is_wider_than_the_page_scrolls_and_says_so(tmp_path):
    page = write_example_page(tmp_path)
    wide, narrow = open_page(page, 400).tables
    assert wide["cut"] > 100
    assert wide["left"] == pytest.approx(0, abs=1)
    assert wide["hint"] > 10
    assert (narrow["cut"], narrow["hint"]) == (0, 0)
    assert [(table["cut"], table["hint"]) for table in open_page(page, 1400).tables] == [(0, 0), (0, 0)]


@pytest.mark.parametrize("classes", [2, 12, 200])
def test_pictures_of_any_number_of_classes_fit_their_cards(classes, tmp_path):
    page = write_confusion_page(tmp_path, classes)
    for width in (400, 1200, 1400):
        visit = open_page(page, width)
        assert visit.scroll_width <= width
        widths = {image["width"] for image in visit.images}
        # All as large as each other, and large enough to be read where the page is.
        assert len(widths) == 1
        assert widths.pop() >= min(0.55 * visit.images[0]["focused"], 0.72 * width, 900)
        assert [image["cut"] for image in visit.images] == [0, 0, 0]
