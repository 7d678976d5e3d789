"""Overlap, surface distance, volume and place of one whole case on its own grid.

Stated rules: a missed organ has Dice, NSD, precision and recall 0 and distances equal to the
scan's diagonal; where the reference is empty the case has no score and is reported apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from pancseg.affine import Affine, diagonal_mm, spacing_of, voxel_ml
from pancseg.bounding_box import bounding_box
from pancseg.scoring.surface import Mask, surface_distances

SCORED, MISSED, EMPTY_REFERENCE = "scored", "missed", "empty_reference"
TOUCHING = np.ones((3, 3, 3), bool)  # voxels that share a corner are of one component


@dataclass(frozen=True)
class Scores:
    """Scores of one case; None is what the case cannot have.

    Attributes:
        dice: Hard Dice of the foreground.
        nsd: Share of both surfaces within each tolerance of each other, by tolerance in mm.
        hd95_mm: 95th percentile of the surface distance, the larger of the two directions.
        assd_mm: Mean surface distance over both surfaces.
        precision: Share of the predicted voxels that are drawn.
        recall: Share of the drawn voxels that are predicted.
        volume_ml: Predicted.
        reference_ml: Drawn.
        components: Pieces of the prediction; voxels that share a corner are of one piece.
        centroid_mm: Between the centres of gravity.
        status: ``scored``, ``missed`` or ``empty_reference``; for a case that could not be
            scored, why.
    """

    dice: float | None
    nsd: dict[float, float | None]
    hd95_mm: float | None
    assd_mm: float | None
    precision: float | None
    recall: float | None
    volume_ml: float | None
    reference_ml: float | None
    components: int | None
    centroid_mm: float | None
    status: str

    @classmethod
    def nothing(cls, tolerances_mm: Sequence[float], status: str, **known: Any) -> "Scores":
        """A case without scores.

        Args:
            tolerances_mm: Of the columns that stay empty.
            status: Why.
            known: What there is.
        """
        names = (
            "dice hd95_mm assd_mm precision recall volume_ml reference_ml components centroid_mm"
        )
        empty: dict[str, Any] = dict.fromkeys(names.split())
        return cls(**{**empty, **known}, nsd=dict.fromkeys(tolerances_mm), status=status)

    @property
    def volume_error_ml(self) -> float | None:
        """Predicted less drawn."""
        if self.volume_ml is None or self.reference_ml is None:
            return None
        return self.volume_ml - self.reference_ml

    @property
    def volume_error_percent(self) -> float | None:
        """Predicted less drawn, of what is drawn."""
        error_ml = self.volume_error_ml
        return (
            None
            if error_ml is None or not self.reference_ml
            else 100 * error_ml / self.reference_ml
        )

    def as_row(self) -> dict[str, Any]:
        """The columns of the scores table, in its order."""
        return {
            "dice": self.dice,
            **{nsd_column(tolerance_mm): value for tolerance_mm, value in self.nsd.items()},
            "hd95_mm": self.hd95_mm,
            "assd_mm": self.assd_mm,
            "precision": self.precision,
            "recall": self.recall,
            "volume_ml": self.volume_ml,
            "reference_ml": self.reference_ml,
            "volume_error_ml": self.volume_error_ml,
            "volume_error_percent": self.volume_error_percent,
            "components": self.components,
            "centroid_mm": self.centroid_mm,
            "status": self.status,
        }


def nsd_column(tolerance_mm: float) -> str:
    """Name of the column of the normalised surface Dice.

    >>> nsd_column(2.0), nsd_column(1.5)
    ('nsd_2mm', 'nsd_1.5mm')
    """
    return f"nsd_{tolerance_mm:g}mm"


def score_case(
    prediction: Mask, reference: Mask, affine: Affine, tolerances_mm: Sequence[float]
) -> Scores:
    """Score a mask against the drawn one.

    Args:
        prediction: ``(X, Y, Z)`` bool.
        reference: Of the same shape.
        affine: Of both, RAS, mm.
        tolerances_mm: Of the normalised surface Dice.

    >>> cube = np.zeros((6, 6, 6), bool); cube[1:3, 1:3, 1:3] = True
    >>> half = cube.copy(); half[2] = False
    >>> scores = score_case(half, cube, np.eye(4), tolerances_mm=[1.0])
    >>> round(scores.dice, 4), scores.precision, scores.recall, scores.centroid_mm
    (0.6667, 1.0, 0.5, 0.5)
    """
    box = bounding_box(prediction | reference)
    inside, drawn_inside = prediction[box], reference[box]
    volume, drawn = int(inside.sum()), int(drawn_inside.sum())
    ml = voxel_ml(affine)
    sizes = {"volume_ml": volume * ml, "reference_ml": drawn * ml}
    pieces = int(ndimage.label(inside, TOUCHING)[1]) if volume else 0
    if drawn == 0:
        return Scores.nothing(tolerances_mm, EMPTY_REFERENCE, **sizes, components=pieces)
    if volume == 0:
        farthest_mm = diagonal_mm(reference.shape, affine)
        return Scores(
            0.0, dict.fromkeys(tolerances_mm, 0.0), farthest_mm, farthest_mm, 0.0, 0.0,
            **sizes, components=0, centroid_mm=farthest_mm, status=MISSED,
        )  # fmt: skip
    common = int((inside & drawn_inside).sum())
    distances = surface_distances(inside, drawn_inside, spacing_of(affine))
    return Scores(
        dice=2 * common / (volume + drawn),
        nsd={tolerance_mm: distances.nsd(tolerance_mm) for tolerance_mm in tolerances_mm},
        hd95_mm=distances.hd95_mm(),
        assd_mm=distances.assd_mm(),
        precision=common / volume,
        recall=common / drawn,
        **sizes,
        components=pieces,
        centroid_mm=centroid_distance_mm(inside, drawn_inside, affine),
        status=SCORED,
    )


def centroid_distance_mm(one: Mask, other: Mask, affine: Affine) -> float:
    """Distance between the centres of gravity of two masks, neither empty, on one grid, mm."""
    centres = [np.array(ndimage.center_of_mass(mask)) for mask in (one, other)]
    return float(np.linalg.norm(affine[:3, :3] @ (centres[0] - centres[1])))
