"""What TensorBoard is given, and what it shows of two runs in a real browser."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pancseg.training.tensorboard import THRESHOLDS, count_by_probability, precision_recall
from tests import chromium
from tests.conftest import run_command, smoke

# TensorBoard's panels lie in shadow roots, which no selector looks into
DEEP = """const deep = (root, wanted) => [...root.querySelectorAll(wanted),
    ...[...root.querySelectorAll("*")].filter((node) => node.shadowRoot)
        .flatMap((node) => deep(node.shadowRoot, wanted))];
    const texts = (wanted) => deep(document, wanted).map((node) => node.innerText.trim());
    """


@pytest.fixture(scope="module")
def events(trained: Path) -> EventAccumulator:
    return EventAccumulator(str(trained / "tensorboard")).Reload()


def test_scalars_pictures_and_curves_stand_in_few_groups(events: EventAccumulator) -> None:
    tags = events.Tags()
    names = ("loss", "dice", "recipe_metric")
    assert {f"{part}/{name}" for part in ("train", "val") for name in names} <= set(tags["scalars"])
    assert {tag.partition("/")[0] for tag in tags["scalars"]} == {"train", "val", "best"}
    assert {"train/samples", "val/volume_1", "val/volume_2"} == set(tags["images"])
    assert events.Images("train/samples")[0].encoded_image_string[:4] == b"\x89PNG"
    assert "val/voxels" in tags["tensors"]


def test_each_patient_counts_once_in_the_histogram_of_equal_bins(events: EventAccumulator) -> None:
    first = events.Histograms("val/dice_of_patients")[0].histogram_value
    assert first.num == 1
    assert first.sum == pytest.approx(events.Scalars("val/dice")[0].value, abs=1e-6)
    assert np.diff([limit for limit in first.bucket_limit if limit > 0]) == pytest.approx(0.02)


def test_a_run_does_not_describe_the_table_of_hyperparameters_for_all(
    events: EventAccumulator,
) -> None:
    """TensorBoard would take the first run's description, and not see what differs."""
    from tensorboard.plugins.hparams import metadata

    stored = events.summary_metadata
    assert metadata.EXPERIMENT_TAG not in stored
    content = stored[metadata.SESSION_START_INFO_TAG].plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(content)
    assert start.hparams["optimizer.lr"].number_value == 0.001
    assert not {"split.path", "data.root", "data.num_workers"} & set(start.hparams)


def test_precision_and_recall_are_those_of_the_voxels() -> None:
    probability = torch.tensor([0.1, 0.4, 0.6, 0.9])
    curve = precision_recall(count_by_probability(probability, torch.arange(4) % 2 == 1))
    # true and false positives, true and false negatives, precision, recall
    assert [values[THRESHOLDS // 2] for values in curve] == [1, 1, 1, 1, 0.5, 0.5]
    assert [values[0] for values in curve[4:]] == [0.5, 1]


@pytest.fixture(scope="module")
def see(trained: Path, prepared: Path, tmp_path_factory: Any) -> Iterator[Callable[..., list[Any]]]:
    """Open a panel of TensorBoard and wait until a script finds something in it."""
    from selenium.webdriver.support.wait import WebDriverWait

    runs = tmp_path_factory.mktemp("board")
    shutil.copytree(trained / "tensorboard", runs / "one" / "tensorboard")
    assert run_command("train", *smoke(prepared, runs / "two", "optimizer.lr=1e-2")) == 0
    words = ["--logdir", str(runs), "--host", "127.0.0.1", "--port", "0", "--load_fast", "false"]
    command, pipe = [sys.executable, "-m", "tensorboard.main", *words], subprocess.PIPE
    server = subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True)
    browser = chromium.start(runs / "browser")
    try:
        assert server.stdout is not None
        line = next(line for line in server.stdout if "http://" in line)
        address = next(word for word in line.split() if word.startswith("http://"))
        browser.set_window_size(1440, 1100)

        def look(panel: str, script: str) -> list[Any]:
            browser.get("about:blank")
            browser.get(f"{address}#{panel}")
            values = WebDriverWait(browser, 90).until(lambda b: b.execute_script(DEEP + script))
            asked = {
                urlparse(url).hostname for url in chromium.addresses(browser) if url[:4] == "http"
            }
            assert asked == {"127.0.0.1"}
            return list(values)

        yield look
    finally:
        browser.quit()
        server.terminate()
        server.communicate()


@chromium.needed
@pytest.mark.slow
def test_tensorboard_shows_groups_charts_pictures_and_what_differs(see: Any) -> None:
    lines = """const found = deep(document, "svg path.line").filter(
        (node) => (node.getAttribute("d") || "").includes("L"));
        return found.length >= 2 && texts(".category-name");"""
    assert see("scalars", lines) == ["best", "train", "val"]
    titles = """const found = texts(".heading-label").filter((text) => text);
        return found.length == 3 && found;"""
    assert see("custom_scalars", titles) == ["loss", "dice", "recipe_metric"]
    pictures = """const found = deep(document, "img").filter(
        (node) => node.src.includes("individualImage") && node.naturalWidth > 0);
        return found.length == 6 && found.map((node) => node.naturalWidth);"""
    # of two runs: samples, two in a row, and two volumes; 32 voxels of 3 pixels each
    assert sorted(see("images", pictures)) == [96] * 4 + [192] * 2
    cells = """const found = texts("vaadin-grid-cell-content").filter((text) => text);
        return found.some((text) => text.startsWith("two/")) && found;"""
    table = see("hparams", cells)
    assert table[: table.index("one/tensorboard")][2] == "optimizer.lr"
    for run, lr in (("one", 0.001), ("two", 0.01)):
        assert float(table[table.index(f"{run}/tensorboard") + 1]) == lr
