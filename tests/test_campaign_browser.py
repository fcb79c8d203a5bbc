"""The resilience report in a real browser: on a phone, on a desk, in the dark and on paper."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import pytest
import synthetic_campaigns as synthetic

from fitact_fx.reports.campaigns.page import SECTIONS, write_page

CAMPAIGNS = {
    "rates": synthetic.rate_sweep,
    "tensors": lambda: synthetic.per_tensor(160, trials=8),
    "bits": synthetic.per_bit,
    "exhaustive": synthetic.exhaustive,
}
SIZES = {"phone": browser.PHONE, "desktop": browser.DESKTOP}


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with browser.opened() as made:
        yield made


@pytest.fixture(scope="module")
def pages(driver: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {name: write_page(make(), folder / f"{name}.html") for name, make in CAMPAIGNS.items()}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CAMPAIGNS)
def test_a_report_can_be_read_on_a_phone_and_on_a_desk(
    driver: Any, pages: dict[str, Path], name: str, size: str
) -> None:
    browser.show(driver, pages[name], SIZES[size])
    browser.keep(browser.whole_page(driver), f"{name}-{size}.png")
    assert driver.get_log("browser") == []
    assert driver.execute_script("return innerWidth") == SIZES[size][0]
    shown = {one.get_attribute("id") for one in driver.find_elements("css selector", "section") if one.is_displayed()}
    assert shown == {key for key, _, _ in SECTIONS}
    # The page itself never scrolls sideways, whatever its tables do.
    wide, visible = driver.execute_script("const e = document.documentElement; return [e.scrollWidth, e.clientWidth]")
    assert wide <= visible


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", CAMPAIGNS)
def test_every_figure_is_seen_as_wide_as_its_page(driver: Any, pages: dict[str, Path], name: str, dark: bool) -> None:
    browser.show(driver, pages[name], browser.PHONE, dark=dark)
    figures = driver.find_elements("css selector", "figure > svg")
    assert figures
    for figure in figures:
        assert figure.is_displayed()
        assert 300 < figure.size["width"] <= browser.PHONE[0]
        assert figure.size["height"] > 120
        picture = figure.screenshot_as_png
        assert browser.colours(picture) > 20  # lines, letters and their smooth edges; a blank one has a single colour
        ground = browser.pixels(picture)[20, 2]  # beside everything that is drawn
        assert ground.tolist() == [255, 255, 255]  # black lines would not be seen on a dark one


def test_tables_scroll_within_themselves_on_a_phone(driver: Any, pages: dict[str, Path]) -> None:
    browser.show(driver, pages["rates"], browser.PHONE)
    inner, outer = driver.execute_script(
        "const e = document.querySelector('#results .scroll'); return [e.scrollWidth, e.clientWidth]"
    )
    assert inner > outer
    assert outer <= browser.PHONE[0]


def test_folded_lists_open_without_a_script(driver: Any, pages: dict[str, Path]) -> None:
    browser.show(driver, pages["tensors"], browser.DESKTOP)
    folded = driver.find_element("css selector", "#results details")
    rows = folded.find_elements("css selector", "tbody tr")
    assert len(rows) == 320
    assert not rows[-1].is_displayed()
    folded.find_element("css selector", "summary").click()
    assert rows[-1].is_displayed()


def test_a_name_that_is_markup_is_shown_and_not_run(driver: Any, tmp_path: Path) -> None:
    evil = "<script>document.title='taken'</script><b>"
    page = write_page(synthetic.rate_sweep((evil, "fitact"), trials=5), tmp_path / "evil.html")
    browser.show(driver, page, browser.DESKTOP)
    assert driver.title == f"Resilience report: {evil} and fitact"
    assert driver.find_elements("css selector", "script, section b") == []
    assert evil in driver.find_element("css selector", "#results tbody").text


def test_the_report_prints_on_several_pages(driver: Any, pages: dict[str, Path]) -> None:
    browser.show(driver, pages["rates"], browser.DESKTOP)
    document = browser.printed(driver)
    browser.keep(document, "rates.pdf")
    assert document.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b(?!s)", document)) > 1


@pytest.mark.parametrize(("promised", "outcome"), [("1", pytest.fail.Exception), ("0", pytest.skip.Exception)])
def test_where_a_browser_is_promised_its_absence_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, promised: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("FITACT_BROWSER", promised)
    with pytest.raises(outcome, match="chromium or chromedriver is not installed"), browser.opened():
        pass
