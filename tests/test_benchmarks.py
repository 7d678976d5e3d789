"""Benchmarks: examples in their docstrings, metrics by hand, settings that exist."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

from tests.conftest import compose

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)


@pytest.mark.parametrize("name", [path.stem for path in sorted(FOLDER.glob("*.py"))])
def test_a_script_can_be_imported_and_its_examples_are_right(name: str) -> None:
    assert doctest.testmod(import_module(name)).failed == 0


def test_metrics_equal_those_by_hand_and_libraries_differ_where_the_page_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import_module("metrics_by_hand").main()
    page = capsys.readouterr().out
    assert "\n0 of 192 values differ" in page
    assert "| missed: prediction empty | hd95_mm | 52.14 | MONAI | none |" in page
    assert "| half of it | dice, defaults | 0.6667 | torchmetrics | 0.8323 |" in page


def test_options_that_benchmarks_give_to_train_exist() -> None:
    step = import_module("training_step")
    arms = import_module("dice_over_time").ARMS.values()
    given = [[*arm.overrides, *arm.tiny] for arm in arms]
    for words in (*given, step.plain_values(), [measure.on for measure in step.MEASURES]):
        compose("train", *words)
