"""Figures over patients: mean, median, spread and bootstrap intervals."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 9999
CONFIDENCE = 0.95


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
    """Mean, median, standard deviation, smallest, and the mean's 95 % interval over patients.

    >>> describe([0.5])
    {'mean': 0.5, 'median': 0.5, 'sd': None, 'min': 0.5, 'ci95': [None, None]}
    """
    if not values:
        return {"mean": None, "median": None, "sd": None, "min": None, "ci95": [None, None]}
    array = np.array(values)
    return {
        "mean": float(array.mean()),
        "median": float(np.median(array)),
        "sd": float(array.std(ddof=1)) if len(array) > 1 else None,
        "min": float(array.min()),
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
        method="percentile", rng=np.random.default_rng(0),
    )  # fmt: skip
    return [float(found.confidence_interval.low), float(found.confidence_interval.high)]
