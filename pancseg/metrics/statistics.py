"""Statistics over patients: description, agreement of volumes, and paired comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import bootstrap, pearsonr, wilcoxon

MAX_VALUES_A_BATCH = 10**6  # of the bootstrap: all resamples of 20,000 patients are gigabytes
MIN_PATIENTS = 3  # of a correlation: two points always lie on a line
LIMITS_SD = 1.96  # of the limits of agreement: 95 % of a normal distribution
EQUAL = 1e-9  # smaller differences are rounding


def describe(values: Sequence[float]) -> dict[str, Any]:
    """Mean with its 95 % interval, median, standard deviation, quartiles and extremes."""
    names, percent = ("min", "q1", "median", "q3", "max"), [0, 25, 50, 75, 100]
    percentiles = np.percentile(values, percent).tolist() if values else [None] * 5
    return {
        "mean": float(np.mean(values)) if values else None,
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        **dict(zip(names, percentiles, strict=True)),
        "ci95": interval(values),
    }


def interval(values: ArrayLike) -> list[float | None]:
    """Percentile bootstrap interval of the mean (Efron 1979): 95 %, 9,999 resamples, fixed seed."""
    array = np.asarray(values, np.float64)
    if len(array) < 2:
        return [None, None]
    if np.ptp(array) == 0:
        return [float(array[0])] * 2
    batch, rng = max(1, MAX_VALUES_A_BATCH // len(array)), np.random.default_rng(0)
    resampled = bootstrap((array,), np.mean, method="percentile", batch=batch, rng=rng)
    return [float(end) for end in resampled.confidence_interval]


def agreement(measured: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """Bias and limits of agreement (Bland and Altman 1986), and Pearson's correlation."""
    figures: dict[str, Any] = {"bias": None, "limits": [None, None], "correlation": None}
    differences = np.subtract(measured, reference)
    if len(differences):
        figures["bias"] = bias = float(differences.mean())
    if len(differences) > 1:
        half_width = LIMITS_SD * float(differences.std(ddof=1))
        figures["limits"] = [bias - half_width, bias + half_width]
    if len(differences) >= MIN_PATIENTS and np.ptp(measured) > 0 and np.ptp(reference) > 0:
        figures["correlation"] = float(pearsonr(measured, reference).statistic)
    return figures


@dataclass(frozen=True)
class Comparison:
    """A measure of two configurations, ``other`` minus ``one``, over ``n`` patients."""

    measure: str
    one: str  # names; keys of comparison.json
    other: str
    n: int
    difference: float  # mean over patients
    ci95: list[float | None]  # bootstrap interval
    higher: int  # patients in whom ``other`` is higher
    lower: int
    p: float  # of Wilcoxon's signed-rank test, two-sided
    p_holm: float | None = None  # corrected for multiple tests


def compare(
    measure: str, one: str, other: str, baseline: Sequence[float], candidate: Sequence[float]
) -> Comparison:
    """Compare values of ``one``, the baseline, with those of ``other`` in the same patients."""
    differences = np.subtract(candidate, baseline)
    differences[np.abs(differences) < EQUAL] = 0.0
    unequal = differences[differences != 0]  # the test leaves equal pairs out (Wilcoxon 1945)
    return Comparison(
        measure,
        one,
        other,
        n=len(differences),
        difference=float(differences.mean()),
        ci95=interval(differences),
        higher=int((differences > 0).sum()),
        lower=int((differences < 0).sum()),
        p=float(wilcoxon(unequal).pvalue) if len(unequal) else 1.0,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for multiple tests (Holm 1979); scipy has no such function."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(corrected, 1.0).tolist()
