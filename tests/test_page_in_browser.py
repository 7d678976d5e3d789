"""The report in Chromium, opened from disk: it works, and requests nothing."""

import json

import nibabel as nib
import numpy as np
import pytest

from pancseg.reports.pictures import make_view
from tests import chromium
from tests.conftest import run_command
from tests.tiny_scores import score_row, write_run

pytestmark = chromium.needed
PHONE, DESK = 390, 1400  # pixels
NAMES = ("c", "a 50 %", "b")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = tmp_path_factory.mktemp("seen") / "run"
    write_run(run, [score_row(name, 0.5 + n / 10) for n, name in enumerate(NAMES)], phantoms=True)
    x, y, z = np.meshgrid(*(np.arange(n) for n in (60, 50, 40)), indexing="ij")
    organ = ((x - 30) / 16) ** 2 + ((y - 25) / 8) ** 2 + ((z - 20) / 10) ** 2 < 1
    hu = np.random.default_rng(0).normal(40, 30, organ.shape).astype(np.int16)
    image = nib.Nifti1Image(hu, np.diag([-3.0, -3.0, 3.0, 1.0]))
    views = run / "scores" / "test" / "views"
    views.mkdir(parents=True)
    for name in NAMES:
        view = make_view(image, np.roll(organ, 2, 0), organ)
        (views / f"{name}.json").write_text(json.dumps(view))
    assert run_command("report", f"run={run}", "by=manufacturer") == 0
    return run / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = chromium.start(tmp_path_factory.mktemp("browser"))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, page):
    """The page at a desk's width, its first viewer ready, no theme stored."""
    resize(browser, DESK)
    browser.get(page.as_uri())
    browser.execute_script("localStorage.clear()")
    browser.get_log("performance")
    browser.refresh()
    wait_for(browser, "document.querySelector('.viewer').dataset.state == 'ready'")
    return browser


def wait_for(browser, condition):
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 60).until(lambda _: browser.execute_script(f"return {condition}"))


def resize(browser, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def part(browser, plane, tag):
    return browser.find_element("css selector", f"figure[data-plane={plane}] {tag}")


def picture(browser, plane):
    script = "const c = arguments[0]; return [Number(c.dataset.slice), c.toDataURL()]"
    k, pixels = browser.execute_script(script, part(browser, plane, "canvas"))
    return k, pixels


def test_the_page_opens_without_an_error_or_a_request_and_sorts(opened):
    assert opened.get_log("browser") == []
    requests = chromium.addresses(opened)
    assert requests and all(address.startswith(("file:", "data:")) for address in requests)
    dice = opened.find_elements("css selector", "table.sortable thead button")[1]
    cells = "[...document.querySelectorAll('table.sortable tbody td:nth-child(2)')]"
    for direction in (1, -1, 1):
        dice.click()
        values = opened.execute_script(f"return {cells}.map((c) => Number(c.dataset.value))")
        assert values == [0.5, 0.6, 0.7][::direction]
    opened.find_element("link text", "a 50 %").click()
    wait_for(opened, "document.getElementById('case-a 50 %').open")


def test_planes_scroll_hide_outlines_and_a_click_moves_the_other_planes(opened):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    for plane in ("axial", "coronal", "sagittal"):
        k, pixels = picture(opened, plane)
        part(opened, plane, "input").send_keys(Keys.ARROW_RIGHT * 3)
        moved = picture(opened, plane)
        assert moved[0] == k + 3 and moved[1] != pixels
        part(opened, plane, "canvas").send_keys(Keys.ARROW_DOWN * 3)
        assert picture(opened, plane) == (k, pixels)
    for switch in opened.find_elements("css selector", ".viewer .switches input")[:2]:
        before = picture(opened, "axial")
        switch.click()  # an outline disappears
        assert picture(opened, "axial") != before
    canvas = part(opened, "axial", "canvas")
    count = int(part(opened, "sagittal", "input").get_attribute("max")) + 1
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    offset = -canvas.size["width"] // 4
    ActionChains(opened).move_to_element_with_offset(canvas, offset, 0).click().perform()
    assert picture(opened, "sagittal")[0] == pytest.approx(count / 4, abs=1)


def test_the_theme_is_stored_and_paper_is_white(opened):
    ground = "return getComputedStyle(document.body).backgroundColor"
    light = opened.execute_script(ground)
    opened.find_element("id", "theme").click()
    opened.refresh()
    assert opened.execute_script(ground) != light
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    paper = opened.execute_script(ground)
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert paper == "rgb(255, 255, 255)"


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_the_page_fits_the_width(opened, width):
    resize(opened, width)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    for element in ("header h1", ".headline", ".charts svg", ".planes canvas"):
        box = opened.find_element("css selector", element).rect
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
