"""Overlap, surface distance and volume of one whole case on its own grid.

Stated rules: a missed organ has Dice 0, NSD 0 and distances equal to the scan's diagonal; where
the reference is empty the case has no Dice and is reported apart.
"""

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_hausdorff_distance,
    compute_surface_dice,
)
from numpy.typing import NDArray

from pancseg.affine import Affine, diagonal_mm, spacing_of, voxel_ml

Mask = NDArray[np.bool_]
SCORED, MISSED, EMPTY_REFERENCE = "scored", "missed", "empty_reference"


@dataclass(frozen=True)
class Scores:
    """Scores of one case.

    Attributes:
        dice: Hard Dice of the foreground, None where the reference is empty.
        nsd: Share of both surfaces within the tolerance of each other.
        hd95_mm: 95th percentile of the surface distance, the larger of the two directions.
        assd_mm: Mean surface distance over both surfaces.
        volume_ml: Predicted.
        reference_ml: Drawn.
        status: ``scored``, ``missed`` or ``empty_reference``; for a case that could not be
            scored, why.
    """

    dice: float | None
    nsd: float | None
    hd95_mm: float | None
    assd_mm: float | None
    volume_ml: float | None
    reference_ml: float | None
    status: str

    def as_row(self, tolerance_mm: float) -> dict[str, Any]:
        """The columns of the scores table, in its order."""
        values = asdict(self)
        row = {"dice": values["dice"], nsd_column(tolerance_mm): values["nsd"]}
        row |= {key: values[key] for key in ("hd95_mm", "assd_mm", "volume_ml", "reference_ml")}
        known = self.volume_ml is not None and self.reference_ml is not None
        row["volume_error_ml"] = self.volume_ml - self.reference_ml if known else None  # type: ignore[operator]
        row["status"] = values["status"]
        return row


def nsd_column(tolerance_mm: float) -> str:
    """Name of the column of the normalised surface Dice.

    >>> nsd_column(2.0), nsd_column(1.5)
    ('nsd_2mm', 'nsd_1.5mm')
    """
    return f"nsd_{tolerance_mm:g}mm"


def score_case(prediction: Mask, reference: Mask, affine: Affine, tolerance_mm: float) -> Scores:
    """Score a mask against the drawn one.

    >>> cube = np.zeros((6, 6, 6), bool); cube[1:3, 1:3, 1:3] = True
    >>> half = cube.copy(); half[2] = False
    >>> round(score_case(half, cube, np.eye(4), tolerance_mm=1.0).dice, 4)
    0.6667
    """
    volume, drawn = int(prediction.sum()), int(reference.sum())
    ml = voxel_ml(affine)
    sizes = {"volume_ml": volume * ml, "reference_ml": drawn * ml}
    if drawn == 0:
        return Scores(None, None, None, None, **sizes, status=EMPTY_REFERENCE)
    if volume == 0:
        farthest_mm = diagonal_mm(reference.shape, affine)
        return Scores(0.0, 0.0, farthest_mm, farthest_mm, **sizes, status=MISSED)
    dice = 2 * int((prediction & reference).sum()) / (volume + drawn)
    nsd, hd95_mm, assd_mm = surface_scores(prediction, reference, spacing_of(affine), tolerance_mm)
    return Scores(dice, nsd, hd95_mm, assd_mm, **sizes, status=SCORED)


def surface_scores(
    prediction: Mask, reference: Mask, spacing_mm: tuple[float, float, float], tolerance_mm: float
) -> tuple[float, float, float]:
    """Normalised surface Dice, HD95 and ASSD by MONAI, computed inside the masks' box."""
    box = bounding_box(prediction | reference, margin=1)
    predicted, drawn = (
        torch.as_tensor(np.pad(mask[box], 1)[None, None].astype(np.float32))
        for mask in (prediction, reference)
    )
    options: dict[str, Any] = {"include_background": True, "spacing": list(spacing_mm)}
    with warnings.catch_warnings():  # MONAI 1.6 passes itself an argument that it deprecates
        warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
        nsd = compute_surface_dice(predicted, drawn, [tolerance_mm], **options)
        hd95 = compute_hausdorff_distance(predicted, drawn, percentile=95, **options)
        assd = compute_average_surface_distance(predicted, drawn, symmetric=True, **options)
    return float(nsd), float(hd95), float(assd)


def bounding_box(mask: Mask, margin: int) -> tuple[slice, ...]:
    """Slices that hold a mask and a margin, inside the array.

    >>> bounding_box(np.array([False, False, True, False]), margin=1)
    (slice(1, 4, None),)
    """
    found = np.nonzero(mask)
    return tuple(
        slice(max(0, int(axis.min()) - margin), min(size, int(axis.max()) + margin + 1))
        for axis, size in zip(found, mask.shape, strict=True)
    )
