"""Scores of a whole case on the scan's own grid, as a row of ``scores/<subset>.csv``.

A missed organ has Dice, NSD, precision and recall 0, and distances equal to the scan's diagonal. A
case with an empty reference has volumes and components only, and is left out of every mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from pancseg.geometry import (
    CONNECTIVITY_26,
    Affine,
    bounding_box,
    diagonal_mm,
    spacing_of,
    voxel_ml,
)
from pancseg.metrics.surface import Mask, surface_dice, surface_distances

SCORED, MISSED, EMPTY_REFERENCE = "scored", "missed", "empty_reference"
DIAGONAL = "diagonal"  # of the scan, mm


@dataclass(frozen=True)
class Measure:
    """How to print a column, and its value for a missed organ.

    Attributes:
        heading: Of the column.
        digits: After the decimal point.
        better: 1 where higher values are better, -1 where lower ones are, else 0.
        missed: Value where nothing was predicted; None where it follows from the volumes.
    """

    heading: str
    digits: int
    better: int = 0
    missed: float | str | None = None


MEASURES = {
    "dice": Measure("Dice", 3, better=1, missed=0.0),
    "hd95_mm": Measure("HD95 mm", 1, better=-1, missed=DIAGONAL),
    "assd_mm": Measure("ASSD mm", 2, better=-1, missed=DIAGONAL),
    "precision": Measure("precision", 3, better=1, missed=0.0),
    "recall": Measure("recall", 3, better=1, missed=0.0),
    "volume_ml": Measure("predicted ml", 1),
    "reference_ml": Measure("reference ml", 1),
    "volume_error_ml": Measure("error ml", 1),
    "volume_error_percent": Measure("error %", 1),
    "components": Measure("components", 0),
    "centroid_mm": Measure("centroid mm", 1, better=-1, missed=DIAGONAL),
}
"""Columns besides the normalised surface Dice, whose names hold the tolerance."""


def nsd_column(tolerance_mm: float) -> str:
    """Name of the column of the normalised surface Dice.

    >>> nsd_column(2.0), nsd_column(1.5)
    ('nsd_2mm', 'nsd_1.5mm')
    """
    return f"nsd_{tolerance_mm:g}mm"


def no_scores(tolerances_mm: Sequence[float], status: str) -> dict[str, Any]:
    """The columns of :func:`score_case` for a case without scores: None.

    >>> list(no_scores([2.0], "failed"))[:3]
    ['dice', 'nsd_2mm', 'hd95_mm']
    """
    dice, *others = MEASURES
    return {**dict.fromkeys([dice, *map(nsd_column, tolerances_mm), *others]), "status": status}


def score_case(
    prediction: Mask, reference: Mask, affine: Affine, tolerances_mm: Sequence[float]
) -> dict[str, Any]:
    """Columns from ``dice`` to ``centroid_mm``, None where undefined, and ``status``.

    Args:
        prediction: ``(X, Y, Z)``.
        reference: Of the same shape.
        affine: Of both, RAS, mm.
        tolerances_mm: Of the normalised surface Dice.

    >>> cube = np.zeros((6, 6, 6), bool)
    >>> cube[1:3, 1:3, 1:3] = True
    >>> half = cube.copy()
    >>> half[2] = False
    >>> row = score_case(half, cube, np.eye(4), tolerances_mm=[1.0])
    >>> round(row["dice"], 4), row["precision"], row["recall"], row["centroid_mm"]
    (0.6667, 1.0, 0.5, 0.5)
    """
    box = bounding_box(prediction | reference)
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
        diagonal = diagonal_mm(reference.shape, affine)
        row |= dict.fromkeys(map(nsd_column, tolerances_mm), 0.0)
        for name, measure in MEASURES.items():
            if measure.missed is not None:
                row[name] = diagonal if measure.missed == DIAGONAL else measure.missed
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
