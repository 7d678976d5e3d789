"""The report in Chromium, opened from disk: it works, and requests nothing."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from pancseg.reports.pictures import make_view
from tests import chromium
from tests.conftest import run_command
from tests.tiny_scores import score_row, write_run

pytestmark = chromium.needed
PHONE, PAPER, DESK = 390, 700, 1400  # pixels
Browser = Any  # selenium comes untyped
NAMES = ("c", "a 50 %", "b")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of three patients with slices."""
    run = tmp_path_factory.mktemp("seen") / "run"
    write_run(run, [score_row(name, 0.5 + n / 10) for n, name in enumerate(NAMES)], phantoms=True)
    (run / "metrics.csv").write_text("epoch,train/loss,val/loss,val/dice\n1,0.5,0.6,0.7\n")
    x, y, z = np.meshgrid(*(np.arange(n) for n in (60, 50, 40)), indexing="ij")
    organ = ((x - 30) / 16) ** 2 + ((y - 25) / 8) ** 2 + ((z - 20) / 10) ** 2 < 1
    hu = np.random.default_rng(0).normal(40, 30, organ.shape).astype(np.int16)
    view = make_view(
        nib.Nifti1Image(hu, np.diag([-3.0, -3.0, 3.0, 1.0])), np.roll(organ, 2, 0), organ
    )
    views = run / "scores" / "test" / "views"
    views.mkdir(parents=True)
    for name in NAMES:
        (views / f"{name}.json").write_text(json.dumps(view))
    assert run_command("report", f"run={run}", "by=manufacturer") == 0
    return run / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    driver = chromium.start(tmp_path_factory.mktemp("browser"))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    """The page at a desk's width, its first viewer ready, no theme stored."""
    resize(browser, DESK)
    browser.get(page.as_uri())
    browser.execute_script("localStorage.clear()")
    browser.get_log("performance")
    browser.refresh()
    ready = "return document.querySelector('.viewer').dataset.state == 'ready'"
    wait_for(browser, lambda: browser.execute_script(ready))
    return browser


def wait_for(browser: Browser, condition: Callable[[], Any]) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 20).until(lambda _: condition())


def resize(browser: Browser, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def part(browser: Browser, plane: str, tag: str) -> Any:
    return browser.find_element("css selector", f"figure[data-plane={plane}] {tag}")


def picture(browser: Browser, plane: str = "axial") -> str:
    return str(
        browser.execute_script("return arguments[0].toDataURL()", part(browser, plane, "canvas"))
    )


def slice_of(browser: Browser, plane: str) -> int:
    return int(part(browser, plane, "canvas").get_attribute("data-slice"))


def test_the_page_opens_without_an_error_or_a_request_and_sorts(opened: Browser) -> None:
    assert opened.get_log("browser") == []
    requests = chromium.addresses(opened)
    assert requests and all(address.startswith(("file:", "data:")) for address in requests)
    buttons = opened.find_elements("css selector", "table.sortable thead button")

    def column(number: int) -> list[str]:
        cells = f"table.sortable tbody td:nth-child({number})"
        script = f"return [...document.querySelectorAll('{cells}')].map((c) => c.dataset.value)"
        return [str(value) for value in opened.execute_script(script)]

    for direction, sign in (("ascending", 1), ("descending", -1), ("ascending", 1)):
        buttons[1].click()
        values = [float(value) for value in column(2)]
        assert len(values) == 3 and values == sorted(values, key=lambda value: sign * value)
        assert buttons[1].find_element("xpath", "..").get_attribute("aria-sort") == direction
    buttons[0].click()
    assert column(1) == sorted(NAMES)


def test_planes_scroll_and_a_click_moves_the_other_planes(opened: Browser) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    for plane in ("axial", "coronal", "sagittal"):
        before, k = picture(opened, plane), slice_of(opened, plane)
        part(opened, plane, "input").send_keys(Keys.ARROW_RIGHT * 3)
        assert slice_of(opened, plane) == k + 3
        assert picture(opened, plane) != before
        assert part(opened, plane, "output").text.startswith(f"{k + 4} of ")
        part(opened, plane, "canvas").send_keys(Keys.ARROW_DOWN * 3)
        assert picture(opened, plane) == before
    canvas = part(opened, "axial", "canvas")
    count = int(part(opened, "sagittal", "input").get_attribute("max")) + 1
    script = "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})"
    opened.execute_script(script, canvas)
    move = ActionChains(opened).move_to_element_with_offset
    move(canvas, -canvas.size["width"] // 4, 0).click().perform()
    assert slice_of(opened, "sagittal") == pytest.approx(count / 4, abs=1)


def test_outlines_can_be_switched_off(opened: Browser) -> None:
    def is_coloured() -> bool:
        script = """const c = arguments[0];
            const p = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
            for (let i = 0; i < p.length; i += 4) if (Math.abs(p[i] - p[i + 1]) > 40) return true;
            return false;"""
        return bool(opened.execute_script(script, part(opened, "axial", "canvas")))

    both = picture(opened)
    assert is_coloured()
    reference, predicted = opened.find_elements("css selector", ".viewer .switches input")[:2]
    reference.click()
    single = picture(opened)
    predicted.click()
    assert not is_coloured()
    assert len({both, single, picture(opened)}) == 3
    reference.click()
    predicted.click()
    assert picture(opened) == both


def test_a_name_in_the_table_opens_its_slices(opened: Browser) -> None:
    link = opened.find_elements("css selector", "table.sortable tbody a")[1]
    assert link.text == "a 50 %"
    target = opened.find_element("id", "case-a 50 %")
    assert target.get_attribute("open") is None
    link.click()
    # the page opens it on hashchange, which comes after the click has ended
    wait_for(opened, lambda: target.get_attribute("open") is not None)


def test_the_theme_is_stored_and_paper_is_white(opened: Browser) -> None:
    def style(element: str, name: str) -> str:
        script = f"return getComputedStyle(document.querySelector('{element}')).{name}"
        return str(opened.execute_script(script))

    light = style("body", "backgroundColor")
    button = opened.find_element("id", "theme")
    assert button.text == "Dark theme"
    button.click()
    assert style("body", "backgroundColor") != light
    opened.refresh()
    assert style("body", "backgroundColor") != light
    resize(opened, PAPER)
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    colours = [style("body", "color"), style(".charts svg text", "fill")]
    colours.append(style("body", "backgroundColor"))
    first, second = opened.find_elements("css selector", ".charts figure")[:2]
    tops = first.rect["y"], second.rect["y"]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert colours == ["rgb(0, 0, 0)", "rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    assert tops[0] == tops[1]  # two charts a row


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_the_page_fits_the_width(opened: Browser, width: int) -> None:
    resize(opened, width)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    for element in ("header h1", ".headline", ".charts svg", ".planes canvas"):
        box = opened.find_element("css selector", element).rect
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
