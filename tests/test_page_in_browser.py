"""The report in a real browser, opened from disk: it works, and asks nobody for anything."""

import json
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from selenium.webdriver.support.ui import WebDriverWait

from pancseg.output.case_view import make_view
from tests import chromium
from tests.conftest import run_command, scored_copy

pytestmark = chromium.needed
PHONE, PAPER, DESK = 390, 700, 1440  # pixels
TABLE = "table.sortable"


@pytest.fixture(scope="module")
def page(trained: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of three training phantoms: more rows to sort than the test ones.

    In place of what two epochs find, a prediction that is near what is drawn.
    """
    run = scored_copy(trained, tmp_path_factory.mktemp("seen") / "run", "train")
    for path in (run / "scores" / "train" / "views").iterdir():
        case = prepared / "cases" / path.stem
        image, label = (nib.load(f"{case}_{name}.nii.gz") for name in ("image", "label"))
        drawn = np.asarray(label.dataobj) > 0
        path.write_text(json.dumps(make_view(image, np.roll(drawn, 1, axis=0), drawn)))
    assert run_command("report", f"run={run}", "subset=train") == 0
    return run / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    driver = chromium.start(tmp_path_factory.mktemp("browser"))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, page: Path):  # type: ignore[no-untyped-def] # selenium comes untyped
    """The page at a desk's width, its first viewer unpacked, nothing remembered."""
    from selenium.webdriver.support.wait import WebDriverWait

    resize(browser, DESK)
    browser.get(page.as_uri())
    browser.execute_script("localStorage.clear()")
    browser.get_log("performance")
    browser.refresh()
    WebDriverWait(browser, 20).until(
        lambda b: (
            b.execute_script("return document.querySelector('.viewer').dataset.state") == "ready"
        )
    )
    return browser


def resize(browser, width: int) -> None:  # type: ignore[no-untyped-def]
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def picture(browser, plane: str = "axial") -> str:  # type: ignore[no-untyped-def]
    script = "return document.querySelector(arguments[0]).toDataURL()"
    return str(browser.execute_script(script, f"figure[data-plane={plane}] canvas"))


def is_coloured(browser, plane: str = "axial") -> bool:  # type: ignore[no-untyped-def]
    """Whether a canvas holds a pixel that is not grey."""
    script = """const c = document.querySelector(arguments[0]);
        const p = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
        for (let i = 0; i < p.length; i += 4) if (Math.abs(p[i] - p[i + 1]) > 40) return true;
        return false;"""
    return bool(browser.execute_script(script, f"figure[data-plane={plane}] canvas"))


def column(browser, number: int) -> list[str]:  # type: ignore[no-untyped-def]
    script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.dataset.value)"
    cells = f"{TABLE} tbody td:nth-child({number})"
    return [str(value) for value in browser.execute_script(script, cells)]


def test_it_opens_without_an_error_and_without_a_request(opened) -> None:  # type: ignore[no-untyped-def]
    assert opened.get_log("browser") == []
    asked = chromium.addresses(opened)
    assert asked
    assert all(address.startswith(("file:", "data:")) for address in asked)


def test_a_click_on_a_heading_sorts_and_another_turns_round(opened) -> None:  # type: ignore[no-untyped-def]
    heading = opened.find_elements("css selector", f"{TABLE} thead button")[1]
    assert heading.text.startswith("Dice")
    for direction, sign in (("ascending", 1), ("descending", -1), ("ascending", 1)):
        heading.click()
        values = [float(value) for value in column(opened, 2)]
        assert len(values) == 3
        assert values == sorted(values, key=lambda value: sign * value)
        assert heading.find_element("xpath", "..").get_attribute("aria-sort") == direction
    names = opened.find_elements("css selector", f"{TABLE} thead button")[0]
    names.click()
    assert column(opened, 1) == sorted(column(opened, 1))


def test_each_plane_scrolls_through_its_slices(opened) -> None:  # type: ignore[no-untyped-def]
    from selenium.webdriver.common.keys import Keys

    for plane in ("axial", "coronal", "sagittal"):
        canvas = opened.find_element("css selector", f"figure[data-plane={plane}] canvas")
        slider = opened.find_element("css selector", f"figure[data-plane={plane}] input")
        before, at = picture(opened, plane), int(canvas.get_attribute("data-slice"))
        slider.send_keys(Keys.ARROW_RIGHT * 3)
        assert int(canvas.get_attribute("data-slice")) == at + 3
        assert picture(opened, plane) != before
        said = opened.find_element("css selector", f"figure[data-plane={plane}] output").text
        assert said.startswith(f"{at + 4} of ")
        canvas.send_keys(Keys.ARROW_DOWN * 3)
        assert picture(opened, plane) == before


def test_a_click_into_a_picture_brings_the_other_planes_there(opened) -> None:  # type: ignore[no-untyped-def]
    from selenium.webdriver.common.action_chains import ActionChains

    canvas = opened.find_element("css selector", "figure[data-plane=axial] canvas")
    count = int(
        opened.find_element("css selector", "figure[data-plane=sagittal] input").get_attribute(
            "max"
        )
    )
    opened.execute_script(
        "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", canvas
    )
    ActionChains(opened).move_to_element_with_offset(
        canvas, -canvas.size["width"] // 4, 0
    ).click().perform()
    sagittal = opened.find_element("css selector", "figure[data-plane=sagittal] canvas")
    assert int(sagittal.get_attribute("data-slice")) == pytest.approx((count + 1) / 4, abs=1)


def test_outlines_go_and_come_back(opened) -> None:  # type: ignore[no-untyped-def]
    both = picture(opened)
    assert is_coloured(opened)
    drawn, predicted = opened.find_elements(
        "css selector", ".viewer:first-of-type .switches input"
    )[:2]
    drawn.click()
    one = picture(opened)
    predicted.click()
    assert not is_coloured(opened)
    assert len({both, one, picture(opened)}) == 3
    drawn.click()
    predicted.click()
    assert picture(opened) == both


def test_the_theme_changes_and_is_remembered(opened) -> None:  # type: ignore[no-untyped-def]
    def ground() -> str:
        return str(opened.execute_script("return getComputedStyle(document.body).backgroundColor"))

    light = ground()
    button = opened.find_element("id", "theme")
    assert button.text == "Dark theme"
    button.click()
    assert ground() != light
    opened.refresh()
    assert ground() != light
    opened.find_element("id", "theme").click()
    assert ground() == light


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_paper_is_white_whatever_the_theme_and_holds_two_charts_a_row(opened, theme: str) -> None:  # type: ignore[no-untyped-def]
    opened.execute_script("document.documentElement.dataset.theme = arguments[0]", theme)
    resize(opened, PAPER)
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    style = """const of = (one) => getComputedStyle(document.querySelector(one));
        return [of("body").color, of(".charts svg text").fill, of("body").backgroundColor];"""
    found = opened.execute_script(style)
    first, second = opened.find_elements("css selector", ".charts figure")[:2]
    beside = first.rect["y"] == second.rect["y"]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert found == ["rgb(0, 0, 0)", "rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    assert beside


def test_a_name_in_the_table_opens_its_slices(opened) -> None:  # type: ignore[no-untyped-def]
    links = opened.find_elements("css selector", f"{TABLE} tbody a")
    link = links[-1]
    target = opened.find_element("id", link.get_attribute("href").partition("#")[2])
    assert target.get_attribute("open") is None
    link.click()
    # the page opens it on hashchange, which comes after the click has ended
    WebDriverWait(opened, 5).until(lambda _: target.get_attribute("open") is not None)


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_nothing_sticks_out_sideways(opened, width: int) -> None:  # type: ignore[no-untyped-def]
    resize(opened, width)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    for element in ("header h1", ".headline", ".charts svg", ".planes canvas"):
        box = opened.find_element("css selector", element).rect
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
