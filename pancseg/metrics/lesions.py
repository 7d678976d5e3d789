"""Lesions: found, missed and false ones of a case; sensitivity and AUROC over patients."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from pancseg.geometry import CONNECTIVITY_26, bounding_box
from pancseg.metrics.statistics import interval

MIN_IOU = 0.1  # of a lesion that counts as found, as in the PI-CAI challenge (Saha et al. 2024)
RESAMPLES, MAX_VALUES = 9_999, 10**7  # of the bootstrap: fewer for thousands of patients
LESION_COLUMNS = (
    "lesions", "lesions_found", "false_positives", "lesions_found_iou", "false_positives_iou",
    "max_probability",
)  # fmt: skip
Mask = NDArray[np.bool_]
Row = dict[str, Any]


def lesion_counts(prediction: Mask, reference: Mask) -> dict[str, int]:
    """Lesions of a case, which are 26-connected components of ``(X, Y, Z)``, as columns.

    A lesion is found at any overlap, and predicted lesions without overlap are false positives. In
    the columns ``*_iou`` lesions are matched one to one at an IoU above 0.1, and predicted lesions
    without such an IoU are false positives.

    >>> reference = np.zeros((20, 4, 4), bool)
    >>> reference[:4], reference[10:14] = True, True
    >>> prediction = np.zeros_like(reference)
    >>> prediction[3:9], prediction[18:] = True, True
    >>> list(lesion_counts(prediction, reference).values())
    [2, 1, 1, 1, 1]
    """
    either = prediction | reference
    if not either.any():
        return dict.fromkeys(LESION_COLUMNS[:-1], 0)
    box = bounding_box(either)
    found, n_found = ndimage.label(prediction[box], CONNECTIVITY_26)
    lesions, n_lesions = ndimage.label(reference[box], CONNECTIVITY_26)
    pairs = lesions[either[box]].astype(np.int64) * (n_found + 1) + found[either[box]]
    table = np.bincount(pairs, minlength=(n_lesions + 1) * (n_found + 1))
    voxels = table.reshape(n_lesions + 1, n_found + 1)
    common = voxels[1:, 1:]
    iou = common / (voxels[1:].sum(1)[:, None] + voxels[:, 1:].sum(0) - common)
    pairs_above = iou[linear_sum_assignment(-np.where(iou > MIN_IOU, 1 + iou, 0.0))] > MIN_IOU
    return {
        "lesions": n_lesions,
        "lesions_found": int(common.any(axis=1).sum()),
        "false_positives": int((~common.any(axis=0)).sum()),
        "lesions_found_iou": int(pairs_above.sum()),
        "false_positives_iou": int((~(iou > MIN_IOU).any(axis=0)).sum()),
    }


def lesion_summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Figures over patients of rows with the columns of :func:`lesion_counts`.

    Sensitivity is the share of all lesions that are found, with an interval by bootstrap over
    patients. A patient is positive if any case has a lesion; ``auroc`` is of the largest
    ``max_probability`` of the patient's cases, ``specificity`` the share of patients without a
    lesion in whom nothing is predicted.
    """
    patients: dict[str, list[Row]] = {}
    for row in rows:
        if row.get("lesions") is not None:
            patients.setdefault(row["patient"], []).append(row)

    def sums(name: str) -> NDArray[np.float64]:
        return np.array([sum(row[name] for row in own) for own in patients.values()], float)

    lesions = sums("lesions")
    figures: dict[str, Any] = {"patients": len(patients), "lesions": int(lesions.sum())}
    figures["patients_with_lesion"] = int((lesions > 0).sum())
    for ending in ("", "_iou"):
        found, false = sums(f"lesions_found{ending}"), sums(f"false_positives{ending}")
        figures[f"sensitivity{ending}"] = share(found, lesions)
        mean = float(false.mean()) if len(false) else None
        figures[f"false_positives{ending}"] = {"mean": mean, "ci95": interval(false)}
    is_clean = sums("false_positives")[lesions == 0] == 0
    figures["specificity"] = share(is_clean, np.ones(len(is_clean)))
    scores = [[row["max_probability"] for row in own] for own in patients.values()]
    known = all(score is not None for own in scores for score in own)
    figures["auroc"] = auroc([max(own) for own in scores], lesions > 0) if known else None
    return figures


def share(counts: ArrayLike, totals: ArrayLike) -> dict[str, Any]:
    """Share of the sums over patients, with its 95 % interval by bootstrap over patients."""
    pairs = np.stack([np.asarray(counts, float), np.asarray(totals, float)])
    pairs = pairs[:, pairs[1] > 0]
    if not pairs.size:
        return {"mean": None, "ci95": [None, None]}
    mean, ends = float(pairs[0].sum() / pairs[1].sum()), [None, None]
    if pairs.shape[1] > 1:
        part, total = pairs @ resample_weights(pairs.shape[1]).T
        ends = np.percentile(part / total, [2.5, 97.5]).tolist()
    return {"mean": mean, "ci95": ends}


def resample_weights(n: int) -> NDArray[np.int64]:
    """How often each of ``n`` patients is drawn in each bootstrap resample, ``(resamples, n)``."""
    resamples = min(RESAMPLES, max(999, MAX_VALUES // n))
    return np.random.default_rng(n).multinomial(n, [1 / n] * n, resamples)


def auroc(scores: Sequence[float], is_positive: ArrayLike) -> dict[str, Any]:
    """Area under the ROC curve (Hanley and McNeil 1982), 95 % interval by stratified bootstrap.

    >>> auroc([0.9, 0.8, 0.7, 0.1], [True, False, True, False])["mean"]
    0.75
    """
    values, positive = np.asarray(scores, float), np.asarray(is_positive, bool)
    high, low = values[positive][:, None], values[~positive]
    if not (len(high) and len(low)):
        return {"mean": None, "ci95": [None, None]}
    ranked = (high > low) + 0.5 * (high == low)
    if min(ranked.shape) < 2:
        return {"mean": float(ranked.mean()), "ci95": [None, None]}
    rows, columns = (resample_weights(n) / n for n in ranked.shape)
    resampled = ((rows @ ranked) * columns).sum(axis=1)
    return {"mean": float(ranked.mean()), "ci95": np.percentile(resampled, [2.5, 97.5]).tolist()}
