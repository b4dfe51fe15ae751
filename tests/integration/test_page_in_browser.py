"""Pages as a browser shows them."""

import io

import numpy as np
import pytest
from browser import open_page
from example_pages import write_example_page
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


def test_small_examples_are_enlarged_and_wide_pictures_stay_readable(tmp_path):
    images = {image["alt"]: image for image in open_page(write_example_page(tmp_path), 400).images}
    assert images["example 0"]["width"] > 3 * images["example 0"]["naturalWidth"]
    # 1800 pixels at 150 an inch are 1152 on a screen, of which a narrow one shows at least six tenths, scrolling.
    assert images["noise"]["width"] == pytest.approx(0.6 * 1152, abs=1)
    assert images["a little noise"]["width"] == pytest.approx(20, abs=1)
