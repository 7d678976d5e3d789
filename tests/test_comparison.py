"""Paired comparison of two trainings."""

from dataclasses import asdict

import numpy as np
import pytest

from pancseg.output.comparison_report import comparison_rows
from pancseg.scoring.comparison import compare, holm
from pancseg.scoring.statistics import agreement


def test_differences_are_those_of_pairs() -> None:
    found = compare("dice", "a", "b", [0.5, 0.6, 0.7, 0.8], [0.6, 0.7, 0.8, 0.7])
    assert found.difference == pytest.approx(0.05)
    assert (found.n, found.higher, found.lower) == (4, 3, 1)
    low, high = found.ci95
    assert low is not None
    assert high is not None
    assert -0.1 <= low < 0.05 < high <= 0.1 + 1e-9


def test_p_is_that_of_the_signed_rank_test_by_hand() -> None:
    # all ten differ in one direction: two of 2^10 signs are as extreme
    found = compare("dice", "a", "b", np.zeros(10).tolist(), np.linspace(0.01, 0.1, 10).tolist())
    assert found.p == pytest.approx(2 / 2**10)


def test_a_run_beside_itself_has_no_difference() -> None:
    found = compare("dice", "a", "a again", [0.5, 0.6], [0.5, 0.6])
    assert (found.difference, found.ci95, found.p) == (0, [0, 0], 1)
    assert (found.higher, found.lower) == (0, 0)


def test_holm_never_makes_a_p_smaller_nor_changes_their_order() -> None:
    p = [0.2, 0.001, 0.04, 0.04, 0.9]
    corrected = holm(p)
    assert all(b >= a for a, b in zip(p, corrected, strict=True))
    assert [corrected[i] for i in np.argsort(p, kind="stable")] == sorted(corrected)
    assert corrected[1] == pytest.approx(0.005)
    assert max(corrected) <= 1
    assert holm([]) == []


def test_volumes_agree_as_bland_and_altman_would_say() -> None:
    found = agreement([52.0, 48.0, 61.0, 39.0], [50.0, 50.0, 60.0, 40.0])
    assert found["bias"] == 0
    sd = np.std([2, -2, 1, -1], ddof=1)
    assert found["limits"] == pytest.approx([-1.96 * sd, 1.96 * sd])
    assert found["correlation"] == pytest.approx(
        np.corrcoef([52, 48, 61, 39], [50, 50, 60, 40])[0, 1]
    )
    assert agreement([1.0], [2.0]) == {"bias": -1, "limits": [None, None], "correlation": None}
    assert agreement([], [])["bias"] is None
    assert agreement([1.0, 1.0, 1.0], [2.0, 3.0, 4.0])["correlation"] is None


def test_two_patients_have_no_correlation() -> None:
    """Through two points there is always a line: r would be 1 or -1 whatever they are."""
    assert agreement([1.0, 2.0], [2.0, 1.9])["correlation"] is None
    assert agreement([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])["correlation"] == pytest.approx(1)


def test_fewer_millimetres_are_better_and_volumes_are_neither() -> None:
    def counts(measure: str) -> list[str]:
        made = compare(measure, "a", "b", [1.0, 1.0, 1.0], [2.0, 3.0, 0.5])
        return comparison_rows({"comparisons": [asdict(made) | {"p_holm": 1.0}]})[0][5:7]

    assert counts("dice") == ["2", "1"]
    assert counts("hd95_mm") == ["1", "2"]
    assert counts("volume_ml") == ["2 higher", "1 lower"]
