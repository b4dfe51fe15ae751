"""A look at a page in a real browser."""

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Visit:
    """What a browser made of a page.

    Attributes:
        screenshot: a PNG of the whole page, one pixel a CSS pixel.
        images: of each `<img>`: `alt`, `complete`, `naturalWidth`, the drawn `width`, by how many pixels it is `cut`
            by what it lies in, and the width when that is `focused`.
        tables: of each table: by how many pixels it is `cut` by what it lies in, how many are still cut at the end of
            that, and the height of the `hint` that it scrolls.
        log: the browser's messages: `level`, `message`.
        requests: the addresses it asked for, without `data:` ones; the page's own is the first.
        width: of the viewport in CSS pixels, as the page sees it.
        scroll_width: of the document; larger than `width` when the page scrolls sideways.
    """

    screenshot: bytes
    images: list[dict[str, Any]]
    tables: list[dict[str, float]]
    log: list[dict[str, Any]]
    requests: list[str]
    width: int
    scroll_width: int


def open_page(path: Path, width: int, *, dark: bool = False) -> Visit:
    """Opens a file in headless Chromium, laid out at a width in CSS pixels.

    Raises:
        FileNotFoundError: Chromium or its driver is missing.
    """
    with _chromium() as driver:
        # A window cannot be narrower than 500 pixels; what the page is laid out for can.
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        driver.get(path.resolve().as_uri())
        images = driver.execute_script(
            "const width = image => image.getBoundingClientRect().width;"
            "const focused = image => {image.parentElement.focus(); const found = width(image);"
            " document.activeElement.blur(); return found};"
            "return Array.from(document.images, image => ({alt: image.alt, complete: image.complete,"
            " naturalWidth: image.naturalWidth, width: width(image),"
            " cut: image.parentElement.scrollWidth - image.parentElement.clientWidth, focused: focused(image)}))"
        )
        # A timeline follows what scrolls from one frame to the next.
        tables = driver.execute_async_script(
            "const done = arguments[0]; const next = then => requestAnimationFrame(() => requestAnimationFrame(then));"
            "next(() => done(Array.from(document.querySelectorAll('.table .scroll'), card => {"
            " const cut = card.scrollWidth - card.clientWidth, hint = getComputedStyle(card, '::after').height;"
            " card.scrollLeft = 1e6; const left = cut - card.scrollLeft; card.scrollLeft = 0;"
            " return {cut, left, hint: parseFloat(hint)}})))"
        )
        seen, scroll_width = driver.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
        whole = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True})
        return Visit(
            screenshot=base64.b64decode(whole["data"]),
            images=images,
            tables=tables,
            log=driver.get_log("browser"),
            requests=_requests(driver.get_log("performance")),
            width=seen,
            scroll_width=scroll_width,
        )


@contextmanager
def _chromium() -> Iterator[Any]:
    # Here, since the tests that need no browser are collected without Selenium.
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = _program("chromium")
    # Containers have no sandbox for root, and little shared memory.
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=ChromeService(executable_path=_program("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed; run: apt-get install chromium chromium-driver")
    return found


def _requests(log: list[dict[str, Any]]) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in log]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith("data:")]
