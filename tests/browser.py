"""A real browser for pages that were written to a file: Chromium, without a window, driven by selenium."""

import base64
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PHONE, DESKTOP = (390, 844), (1280, 900)


def needed(why: str) -> None:
    """Skips with the reason; where continuous integration has installed a browser, its absence is a failure."""
    if os.environ.get("FITACT_BROWSER") == "1":
        pytest.fail(f"FITACT_BROWSER=1 says that there is a browser, but {why}")
    pytest.skip(f"{why}: install Debian's chromium and chromium-driver, and selenium")


@contextmanager
def opened() -> Iterator[Any]:
    """A driver, or a skip that says what is missing."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        needed("chromium or chromedriver is not installed")
    try:
        from selenium import webdriver
    except ImportError:
        needed("selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    # Chromium's sandbox refuses root, as whom containers run; pages here are our own.
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    made = webdriver.Chrome(options=options, service=service)
    try:
        yield made
    finally:
        made.quit()


def show(driver: Any, page: Path, size: tuple[int, int], *, dark: bool = False) -> None:
    """Open a file as on a device that wide and high, in CSS pixels: a window cannot be as narrow as a phone."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    driver.get_log("browser")  # of pages before this one
    driver.get(page.as_uri())


def pixels(png: bytes) -> np.ndarray:
    """(height, width, 3)."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def colours(png: bytes) -> int:
    """How many different colours a picture has."""
    return len(np.unique(pixels(png).reshape(-1, 3), axis=0))


def whole_page(driver: Any) -> bytes:
    """A picture of all of the page, also of what lies below the screen."""
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True})
    return base64.b64decode(shot["data"])


def printed(driver: Any) -> bytes:
    """The page as a PDF on A4."""
    options = {"paperWidth": 8.27, "paperHeight": 11.69, "printBackground": True}
    return base64.b64decode(driver.execute_cdp_cmd("Page.printToPDF", options)["data"])


def keep(picture: bytes, name: str) -> None:
    """In the folder FITACT_SCREENSHOTS, if it is set."""
    folder = os.environ.get("FITACT_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / name).write_bytes(picture)
