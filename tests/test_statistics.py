"""Figures over patients."""

from typing import Any

import pytest

from pancseg.scoring.score_file import summarise
from pancseg.scoring.statistics import describe


def test_figures_are_those_worked_out_by_hand() -> None:
    figures = describe([0.2, 0.4, 0.9])
    assert figures["mean"] == pytest.approx(0.5)
    assert figures["median"] == pytest.approx(0.4)
    assert figures["min"] == pytest.approx(0.2)
    assert figures["sd"] == pytest.approx(0.36056, abs=1e-5)


def test_the_interval_holds_the_mean_and_is_the_same_at_every_call() -> None:
    values = [0.5, 0.6, 0.7, 0.8, 0.9, 0.55, 0.65, 0.75]
    low, high = describe(values)["ci95"]
    assert 0.5 < low < sum(values) / 8 < high < 0.9
    assert describe(values)["ci95"] == [low, high]
    assert describe([0.7, 0.7])["ci95"] == [0.7, 0.7]


def test_n_counts_patients_and_cases_without_reference_are_reported_apart() -> None:
    rows: list[dict[str, Any]] = [
        {"patient": "a", "case": "a", "dice": 0.8, "volume_error_ml": 4.0, "status": "scored"},
        {"patient": "a", "case": "a-2", "dice": 0.6, "volume_error_ml": 0.0, "status": "scored"},
        {
            "patient": "b",
            "case": "b",
            "dice": None,
            "volume_error_ml": 64.0,
            "status": "empty_reference",
        },
        {"patient": "c", "case": "c", "dice": 0.0, "volume_error_ml": -60.0, "status": "missed"},
        {
            "patient": "d",
            "case": "d",
            "dice": None,
            "volume_error_ml": None,
            "status": "failed: OSError: gone",
        },
    ]
    for row in rows:
        row |= {"volume_ml": 60.0 + (row["volume_error_ml"] or 0.0), "reference_ml": 60.0}
    figures = summarise(rows, [], about={"subset": "test", "held_out": True})
    assert figures["n"] == 2
    assert figures["dice"]["mean"] == pytest.approx((0.7 + 0.0) / 2)
    assert figures["volume_error_ml"]["mean"] == pytest.approx((2 - 60) / 2)
    assert figures["volume_agreement_ml"]["bias"] == pytest.approx((2 - 60) / 2)
    assert figures["empty_reference"] == ["b"]
    assert figures["failed"] == ["d"]
