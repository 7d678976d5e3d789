"""Figures over patients: mean, median, spread, bootstrap intervals, agreement of volumes."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy.stats import bootstrap, pearsonr

RESAMPLES = 9999
AT_ONCE = 10**6  # values drawn at a time: of 20,000 patients, all would be gigabytes
CONFIDENCE = 0.95
FEWEST = 3  # patients of a correlation: through two points there is always a line
LIMITS_SD = 1.96  # of the limits of agreement: 95 % of a normal distribution


def per_patient(patients: Iterable[str], values: Iterable[float]) -> list[float]:
    """One value a patient: the mean over the patient's cases.

    >>> per_patient(["a", "b", "a"], [0.5, 0.9, 0.7])
    [0.6, 0.9]
    """
    collected: dict[str, list[float]] = {}
    for patient, value in zip(patients, values, strict=True):
        collected.setdefault(patient, []).append(value)
    return [float(np.mean(collected[patient])) for patient in sorted(collected)]


def describe(values: list[float]) -> dict[str, Any]:
    """Mean, median, spread, quartiles, extremes, and the mean's 95 % interval over patients.

    >>> describe([0.5])["ci95"], describe([1.0, 2.0, 3.0])["q1"]
    ([None, None], 1.5)
    """
    if not values:
        none = dict.fromkeys(("mean", "median", "sd", "min", "q1", "q3", "max"))
        return {**none, "ci95": [None, None]}
    array = np.array(values)
    low, middle, high = (float(value) for value in np.percentile(array, [25, 50, 75]))
    return {
        "mean": float(array.mean()),
        "median": middle,
        "sd": float(array.std(ddof=1)) if len(array) > 1 else None,
        "min": float(array.min()),
        "q1": low,
        "q3": high,
        "max": float(array.max()),
        "ci95": interval(array),
    }


def interval(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[float | None]:
    """Percentile bootstrap interval of the mean (Efron 1979), the same at every call."""
    if len(values) < 2:
        return [None, None]
    if np.ptp(values) == 0:
        return [float(values[0])] * 2
    found = bootstrap(
        (values,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES,
        method="percentile", rng=np.random.default_rng(0), batch=max(1, AT_ONCE // len(values)),
    )  # fmt: skip
    return [float(found.confidence_interval.low), float(found.confidence_interval.high)]


def agreement(measured: list[float], reference: list[float]) -> dict[str, Any]:
    """How volumes agree: bias, limits of agreement (Bland and Altman 1986), correlation.

    Args:
        measured: One a patient.
        reference: Of the same patients.

    >>> found = agreement([11.0, 19.0, 33.0], [10.0, 20.0, 30.0])
    >>> found["bias"], [round(limit, 2) for limit in found["limits"]]
    (1.0, [-2.92, 4.92])
    >>> round(found["correlation"], 3)
    0.988
    """
    differences = np.subtract(measured, reference)
    found = {"bias": None, "limits": [None, None], "correlation": None}
    if not len(differences):
        return found
    bias = float(differences.mean())
    if len(differences) < 2:
        return {**found, "bias": bias}
    reach = LIMITS_SD * float(differences.std(ddof=1))
    varied = len(differences) >= FEWEST and np.ptp(measured) > 0 and np.ptp(reference) > 0
    correlation = float(pearsonr(measured, reference).statistic) if varied else None
    return {"bias": bias, "limits": [bias - reach, bias + reach], "correlation": correlation}
