"""Two trainings on the same patients: paired differences, and whether chance explains them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import wilcoxon

from pancseg.scoring.statistics import interval

EQUAL = 1e-9  # differences this small are none


@dataclass(frozen=True)
class Comparison:
    """One measure of two configurations, patient by patient: the other less the one.

    Attributes:
        measure: Column of the scores table.
        one: Name of a configuration.
        other: Name of the configuration that is compared with it.
        n: Patients.
        difference: Mean over patients.
        ci95: Bootstrap interval of the mean, over patients.
        higher: Patients in which the other is higher.
        lower: Patients in which the other is lower.
        p: Of Wilcoxon's signed-rank test, two-sided.
        p_holm: The same, corrected for the tests made together; None until it is.
    """

    measure: str
    one: str
    other: str
    n: int
    difference: float
    ci95: list[float | None]
    higher: int
    lower: int
    p: float
    p_holm: float | None = None


def compare(
    measure: str, one: str, other: str, before: Sequence[float], after: Sequence[float]
) -> Comparison:
    """Compare two configurations by a measure of the same patients.

    Args:
        measure: Column of the scores table.
        one: Name.
        other: Name.
        before: A value a patient, of ``one``.
        after: Of the same patients in the same order, of ``other``.

    >>> found = compare("dice", "a", "b", [0.5, 0.6, 0.7], [0.6, 0.6, 0.6])
    >>> found.higher, found.lower, round(abs(found.difference), 6)
    (1, 1, 0.0)
    """
    differences = np.subtract(after, before)
    differences[np.abs(differences) < EQUAL] = 0.0
    moved = differences[differences != 0]
    # without the pairs that are equal, as Wilcoxon did; where all are, nothing speaks for either
    p = float(wilcoxon(moved).pvalue) if len(moved) else 1.0
    return Comparison(
        measure,
        one,
        other,
        len(differences),
        float(differences.mean()),
        interval(differences),
        int((differences > 0).sum()),
        int((differences < 0).sum()),
        p,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for being made together (Holm 1979); scipy has no such function.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
