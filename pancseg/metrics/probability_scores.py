"""Scores of probabilities: calibration, and the Dice that tutorial scripts print."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pancseg.geometry import bounding_box

SMOOTH = 1e-5  # of MONAI's DiceLoss, in numerator and denominator
BINS = 10  # of equal width, 0 to 1


def calibration_counts(
    probability: NDArray[np.float32], reference: NDArray[np.bool_], box: Sequence[slice]
) -> NDArray[np.float64]:
    """Voxels, sum of their probabilities, and reference voxels in each of ten bins: ``(3, 10)``.

    Args:
        probability: ``(X, Y, Z)``, 0 to 1.
        reference: Of the same shape.
        box: Part that counts; far from the organ every network is calibrated.

    >>> p = np.full((10, 1, 1), 0.75, np.float32)
    >>> reference = np.arange(10).reshape(10, 1, 1) < 5
    >>> calibration_counts(p, reference, (slice(None),) * 3)[:, 7].tolist()
    [10.0, 7.5, 5.0]
    """
    p, r = probability[tuple(box)].ravel(), reference[tuple(box)].ravel()
    edges = np.linspace(0.0, 1.0, BINS + 1)
    weights = (None, p.astype(np.float64), r.astype(np.float64))
    return np.stack([np.histogram(p, edges, weights=w)[0].astype(np.float64) for w in weights])


def calibration_summary(counts: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """Expected calibration error (Naeini et al. 2015) and the bins of the reliability diagram.

    Every patient has the same weight: a patient's counts are divided by the patient's voxels.

    Args:
        counts: :func:`calibration_counts` of each case, by patient.

    Returns:
        ``error``, None without patients, and of each bin with voxels the mean ``probability``, the
        share of the ``reference`` and the number of ``voxels``.
    """
    if not counts:
        return {"error": None, "bins": []}
    patients = np.stack([np.sum(cases, axis=0) for cases in counts.values()])  # (n, 3, bins)
    weights, p, r = (patients / patients[:, :1].sum(axis=2, keepdims=True)).mean(axis=0).tolist()
    bins = [
        {"probability": p[i] / weights[i], "reference": r[i] / weights[i], "voxels": voxels}
        for i, voxels in enumerate(patients[:, 0].sum(axis=0).astype(int).tolist())
        if voxels
    ]
    return {"error": float(np.abs(np.subtract(r, p)).sum()), "bins": bins}


def recipe_metric(probability: NDArray[np.float32], reference: NDArray[np.bool_]) -> float:
    """The Dice of tutorial scripts: ``1 - DiceLoss``, soft, mean of foreground and background.

    As MONAI's ``DiceLoss`` with ``squared_pred`` and ``include_background``, where the background
    is one minus the probability. Kept beside the Dice to compare with older results; an empty
    prediction has 0.50.
    """
    p = probability.ravel(order="K")
    n, r = p.size, int(reference.sum())
    box = bounding_box(reference)
    common = float(probability[box][reference[box]].sum(dtype=np.float64))
    total = float(p.sum(dtype=np.float64))
    squares = float(np.einsum("i,i->", p, p, dtype=np.float64))
    foreground = (2 * common + SMOOTH) / (squares + r + SMOOTH)
    # the same of 1 - probability and 1 - reference, without another array
    common, squares = n - total - r + common, n - 2 * total + squares
    background = (2 * common + SMOOTH) / (squares + n - r + SMOOTH)
    return (foreground + background) / 2
