"""TensorBoard on two real runs, in a real browser: what one looks for is there to be seen."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import pytest

from tests import chromium
from tests.conftest import run_command, smoke

pytestmark = [chromium.needed, pytest.mark.slow]
PATIENCE_S = 60
# TensorBoard's panels lie in shadow roots, which no selector looks into
DEEP = """const deep = (root, wanted) => [...root.querySelectorAll(wanted),
    ...[...root.querySelectorAll("*")].filter((one) => one.shadowRoot)
        .flatMap((one) => deep(one.shadowRoot, wanted))];
    const texts = (wanted) => deep(document, wanted).map((one) => one.innerText.trim());
    """


@pytest.fixture(scope="module")
def address(
    trained: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """TensorBoard on loopback, at a free port, with two runs that differ in their rate."""
    runs = tmp_path_factory.mktemp("board")
    shutil.copytree(trained / "tensorboard", runs / "one" / "tensorboard")
    assert run_command("train", *smoke(prepared, runs / "two", "optimizer.lr=1e-2")) == 0
    words = ["--logdir", str(runs), "--host", "127.0.0.1", "--port", "0", "--load_fast", "false"]
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    said = ""
    for line in server.stdout:
        said += line
        if "http://" in line:
            break
    else:
        pytest.fail(f"TensorBoard did not start: {said}")
    yield next(word for word in said.split() if word.startswith("http://"))
    server.terminate()
    server.communicate()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    driver = chromium.start(tmp_path_factory.mktemp("browser"))
    driver.set_window_size(1440, 1100)
    yield driver
    driver.quit()


@pytest.fixture
def see(browser, address: str):  # type: ignore[no-untyped-def] # selenium comes untyped
    """Open a panel and wait until a script finds something in it, which is given back."""
    from selenium.webdriver.support.wait import WebDriverWait

    def look(panel: str, script: str) -> list[object]:
        browser.get("about:blank")
        browser.get(f"{address}#{panel}")
        found = WebDriverWait(browser, PATIENCE_S).until(lambda b: b.execute_script(DEEP + script))
        asked = {urlparse(one).hostname for one in chromium.addresses(browser) if one[:4] == "http"}
        assert asked == {"127.0.0.1"}
        return list(found)

    return look


def test_scalars_stand_in_three_groups_with_a_line_a_run(see) -> None:  # type: ignore[no-untyped-def]
    lines = """const found = deep(document, "svg path.line").filter(
        (one) => (one.getAttribute("d") || "").includes("L"));
        return found.length >= 2 && found.map((one) => one.getAttribute("d"));"""
    assert len(see("scalars", lines)) >= 2
    groups = see("scalars", 'return texts(".category-name")')
    assert [str(one) for one in groups] == ["best", "train", "val"]


def test_training_and_validation_share_a_chart(see) -> None:  # type: ignore[no-untyped-def]
    titles = """const found = texts(".heading-label").filter((one) => one);
        return found.length == 3 && found;"""
    assert see("custom_scalars", titles) == ["loss", "dice", "recipe_metric"]


def test_samples_and_overlays_are_shown_as_pictures(see) -> None:  # type: ignore[no-untyped-def]
    pictures = """const found = deep(document, "img").filter(
        (one) => one.src.includes("individualImage") && one.complete && one.naturalWidth > 0);
        return found.length == 6 && found.map((one) => one.naturalWidth);"""
    # of two runs: samples, two in a row, and two volumes; 32 voxels of 3 pixels each
    assert sorted(see("images", pictures)) == [96] * 4 + [192] * 2
    tags = see("images", 'return texts(".heading-label")')
    assert {"train/samples", "val/volume_1", "val/volume_2"} <= {str(one) for one in tags}


def test_what_differs_between_runs_stands_first_beside_the_score(see) -> None:  # type: ignore[no-untyped-def]
    cells = """const found = texts("vaadin-grid-cell-content").filter((one) => one);
        return found.some((one) => one.startsWith("two/")) && found;"""
    table = [str(one) for one in see("hparams", cells)]
    heads = table[: table.index("one/tensorboard")]
    assert heads[2] == "optimizer.lr"
    assert "best/val_dice" in heads
    assert float(table[table.index("one/tensorboard") + 1]) == 0.001
    assert float(table[table.index("two/tensorboard") + 1]) == 0.01
