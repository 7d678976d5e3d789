"""Scores of a whole case on the scan's own grid, as a row of ``scores/<subset>.csv``; calibration.

A missed organ has Dice, NSD, precision and recall 0, and distances equal to the scan's diagonal. A
case with an empty reference has volumes and components only, and is left out of every mean.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from pancseg import geometry
from pancseg.geometry import CONNECTIVITY_26, Affine, spacing_of, voxel_ml
from pancseg.metrics.surface import Mask, surface_dice, surface_distances

SMOOTH = 1e-5  # of MONAI's DiceLoss, in numerator and denominator
BINS = 10  # of calibration, of equal width, 0 to 1
SCORED, MISSED, EMPTY_REFERENCE = "scored", "missed", "empty_reference"


class Measure(NamedTuple):
    """How to print a column."""

    heading: str
    digits: int
    better: int = 0  # 1 where higher values are better, -1 where lower ones are


# columns besides the normalised surface Dice, whose names hold the tolerance
MEASURES = {
    "dice": Measure("Dice", 3, better=1),
    "hd95_mm": Measure("HD95 mm", 1, better=-1),
    "assd_mm": Measure("ASSD mm", 2, better=-1),
    "precision": Measure("precision", 3, better=1),
    "recall": Measure("recall", 3, better=1),
    "volume_ml": Measure("predicted ml", 1),
    "reference_ml": Measure("reference ml", 1),
    "volume_error_ml": Measure("error ml", 1),
    "volume_error_percent": Measure("error %", 1),
    "components": Measure("components", 0),
    "centroid_mm": Measure("centroid mm", 1, better=-1),
}


def nsd_column(tolerance_mm: float) -> str:
    """Name of the column of the normalised surface Dice: ``nsd_2mm``, ``nsd_1.5mm``."""
    return f"nsd_{tolerance_mm:g}mm"


def no_scores(tolerances_mm: Sequence[float], status: str) -> dict[str, Any]:
    """The columns of :func:`score_case` for a case without scores: None."""
    dice, *others = MEASURES
    return {**dict.fromkeys([dice, *map(nsd_column, tolerances_mm), *others]), "status": status}


def score_case(
    prediction: Mask, reference: Mask, affine: Affine, tolerances_mm: Sequence[float]
) -> dict[str, Any]:
    """Columns from ``dice`` to ``centroid_mm``, None where undefined, and ``status``.

    The masks are ``(X, Y, Z)``; ``affine`` is RAS, mm.

    >>> cube = np.zeros((6, 6, 6), bool)
    >>> cube[1:3, 1:3, 1:3] = True
    >>> half = cube.copy()
    >>> half[2] = False
    >>> row = score_case(half, cube, np.eye(4), tolerances_mm=[1.0])
    >>> round(row["dice"], 4), row["precision"], row["recall"], row["centroid_mm"]
    (0.6667, 1.0, 0.5, 0.5)
    """
    box = geometry.bounding_box(prediction | reference)
    p, r = prediction[box], reference[box]
    p_voxels, r_voxels = int(p.sum()), int(r.sum())
    row = no_scores(tolerances_mm, EMPTY_REFERENCE)
    row["volume_ml"], row["reference_ml"] = (n * voxel_ml(affine) for n in (p_voxels, r_voxels))
    row["volume_error_ml"] = row["volume_ml"] - row["reference_ml"]
    row["components"] = int(ndimage.label(p, CONNECTIVITY_26)[1])
    if r_voxels == 0:
        return row
    row["volume_error_percent"] = 100 * row["volume_error_ml"] / row["reference_ml"]
    if p_voxels == 0:
        worst = {1: 0.0, -1: geometry.diagonal_mm(reference.shape, affine)}
        row |= dict.fromkeys(map(nsd_column, tolerances_mm), 0.0)
        row |= {name: worst[m.better] for name, m in MEASURES.items() if m.better}
        return row | {"status": MISSED}
    common, spacing_mm = int((p & r).sum()), spacing_of(affine)
    nsd = surface_dice(p, r, spacing_mm, tolerances_mm)
    distances = surface_distances(p, r, spacing_mm)
    between_centres = np.subtract(ndimage.center_of_mass(p), ndimage.center_of_mass(r))
    return {
        **row,
        "dice": 2 * common / (p_voxels + r_voxels),
        **dict(zip(map(nsd_column, tolerances_mm), nsd, strict=True)),
        "hd95_mm": max(float(np.percentile(one_way, 95)) for one_way in distances),
        "assd_mm": float(np.concatenate(distances).mean()),
        "precision": common / p_voxels,
        "recall": common / r_voxels,
        "centroid_mm": float(np.linalg.norm(affine[:3, :3] @ between_centres)),
        "status": SCORED,
    }


def calibration_counts(
    probability: NDArray[np.float32], reference: NDArray[np.bool_], box: Sequence[slice]
) -> NDArray[np.float64]:
    """Voxels, sum of their probabilities, and reference voxels in each of ten bins: ``(3, 10)``.

    Only ``box`` counts: far from the organ every network is calibrated.
    """
    p, r = probability[tuple(box)].ravel(), reference[tuple(box)].ravel()
    edges = np.linspace(0.0, 1.0, BINS + 1)
    weights = (None, p.astype(np.float64), r.astype(np.float64))
    return np.stack([np.histogram(p, edges, weights=w)[0].astype(np.float64) for w in weights])


def calibration_summary(counts: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """Expected calibration error (Naeini et al. 2015) and the bins of the reliability diagram.

    Every patient has the same weight: a patient's counts, those of :func:`calibration_counts` of
    each case, are divided by the patient's voxels.
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
    box = geometry.bounding_box(reference)
    common = float(probability[box][reference[box]].sum(dtype=np.float64))
    total = float(p.sum(dtype=np.float64))
    squares = float(np.einsum("i,i->", p, p, dtype=np.float64))
    foreground = (2 * common + SMOOTH) / (squares + r + SMOOTH)
    # the same of 1 - probability and 1 - reference, without another array
    common, squares = n - total - r + common, n - 2 * total + squares
    background = (2 * common + SMOOTH) / (squares + n - r + SMOOTH)
    return (foreground + background) / 2
