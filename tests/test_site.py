"""The documentation site: strict, offline, its links lead somewhere, a browser is content."""

import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from selenium.webdriver.support.ui import WebDriverWait

from tests import chromium
from tests.documented import ROOT

DESK, PHONE = 1440, 390  # pixels
SEEN = ("index", "tutorial", "howto/refused_series", "reference/choices", "benchmarks")
ALONE = """
import socket, sys
def refuse(*_):
    raise OSError("no network here")
socket.socket.connect = socket.getaddrinfo = refuse
from mkdocs.__main__ import cli
cli(["build", "--strict", "--quiet", "--site-dir", sys.argv[1]])
"""


class Links(HTMLParser):
    """What a page names: anchors, where links lead, what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link":
            self.loaded.append(given["href"])
        elif given.get("src"):
            self.loaded.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as ``make docs`` builds it, by a process that cannot reach any network."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    words = [sys.executable, "-c", ALONE, str(folder)]
    built = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Links]:
    """Every page but the one that only a server shows, from wherever it was asked for."""
    found = sorted(path for path in site.rglob("*.html") if path.name != "404.html")
    return {path: Links(path.read_text()) for path in found}


def asked_outside(browser) -> list[str]:  # type: ignore[no-untyped-def] # selenium comes untyped
    """What was asked for, since the last look, that lies not on disk."""
    inside = ("file:", "data:", "about:")
    return [address for address in chromium.addresses(browser) if not address.startswith(inside)]


def is_outside(address: str) -> bool:
    return address.startswith(("http:", "https:", "//"))


def test_every_link_and_anchor_leads_somewhere(pages: dict[Path, Links]) -> None:
    broken = []
    for path, page in pages.items():
        inside = [link for link in page.links if not is_outside(link)]
        loaded = [link for link in page.loaded if not link.startswith("data:")]
        for link in [*inside, *loaded]:
            address, anchor = urldefrag(link)
            there = (path.parent / unquote(address)).resolve() if address else path
            known = pages[there].anchors if there in pages else set()
            if not there.is_file() or (anchor and unquote(anchor) not in known):
                broken.append(f"{path.name}: {link}")
    assert broken == []


def test_no_page_loads_anything_from_outside(site: Path, pages: dict[Path, Links]) -> None:
    assert len(pages) > 25
    for path, page in pages.items():
        assert not [one for one in page.loaded if is_outside(one)], path.name
    for path in site.rglob("*.css"):
        text = path.read_text()
        assert "url(http" not in text, path.name
        assert "@import" not in text, path.name


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    driver = chromium.start(tmp_path_factory.mktemp("browser"))
    driver.get("about:blank")
    driver.get_log("performance")  # its own start
    yield driver
    driver.quit()


@chromium.needed
@pytest.mark.parametrize("width", [DESK, PHONE])
def test_pages_open_from_disk_without_an_error_and_without_a_request(  # type: ignore[no-untyped-def]
    browser, site: Path, width: int
) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    for name in SEEN:
        browser.get((site / f"{name}.html").as_uri())
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, name
        assert browser.get_log("browser") == [], name
    assert asked_outside(browser) == []


@chromium.needed
def test_the_search_finds_a_page_from_disk(browser, site: Path) -> None:  # type: ignore[no-untyped-def]
    browser.get((site / "index.html").as_uri())
    script = """const box = document.querySelector("[data-md-component=search-query]");
        box.focus(); box.value = "gantry_tilt"; box.dispatchEvent(new Event("keyup"));
        box.dispatchEvent(new Event("input", {bubbles: true}));"""
    browser.execute_script(script)
    found = "return [...document.querySelectorAll('.md-search-result__link')].map((a) => a.href)"
    links = WebDriverWait(browser, 10).until(lambda one: one.execute_script(found))
    assert any("howto/refused_series.html" in link for link in links)
    assert browser.get_log("browser") == []
    assert asked_outside(browser) == []
