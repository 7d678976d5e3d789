"""Overlap, surface distance, volume and place of one whole case on its own grid.

Stated rules: a missed organ has Dice, NSD, precision and recall 0 and distances equal to the
scan's diagonal; where the reference is empty the case has no score and is reported apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
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
from pancseg.scoring.surface import Mask, surface_distances

SCORED, MISSED, EMPTY_REFERENCE = "scored", "missed", "empty_reference"
FARTHEST = "diagonal"  # of the scan: what a missed organ has for a distance


@dataclass(frozen=True)
class Measure:
    """How a measure is told.

    Attributes:
        heading: Of its column.
        digits: After the point.
        better: 1 where it is a share of which more is better, -1 where less is better, else 0.
        missed: Its value where nothing was found: a number or :data:`FARTHEST`; None where it has
            to be worked out.
    """

    heading: str
    digits: int
    better: int = 0
    missed: float | str | None = None


def told(*how: Any, **more: Any) -> Any:
    """A field of :class:`Scores` that is a column: what :class:`Measure` takes."""
    return field(metadata={"measure": Measure(*how, **more)})


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of one case, in the order of the table's columns; None is what the case cannot have.

    Attributes:
        dice: Hard Dice of the foreground.
        nsd: Share of both surfaces within each tolerance of each other, by tolerance in mm.
        hd95_mm: 95th percentile of the surface distance, the larger of the two directions.
        assd_mm: Mean surface distance over both surfaces.
        precision: Share of the predicted voxels that are drawn.
        recall: Share of the drawn voxels that are predicted.
        volume_ml: Predicted.
        reference_ml: Drawn.
        volume_error_ml: Predicted less drawn.
        volume_error_percent: Predicted less drawn, of what is drawn.
        components: Pieces of the prediction; voxels that share a corner are of one piece.
        centroid_mm: Between the centres of gravity.
        status: ``scored``, ``missed`` or ``empty_reference``; for a case that could not be
            scored, why.
    """

    dice: float | None = told("Dice", 3, better=1, missed=0.0)
    nsd: Mapping[float, float | None]
    hd95_mm: float | None = told("HD95 mm", 1, better=-1, missed=FARTHEST)
    assd_mm: float | None = told("ASSD mm", 2, better=-1, missed=FARTHEST)
    precision: float | None = told("precision", 3, better=1, missed=0.0)
    recall: float | None = told("recall", 3, better=1, missed=0.0)
    volume_ml: float | None = told("predicted ml", 1)
    reference_ml: float | None = told("drawn ml", 1)
    volume_error_ml: float | None = told("error ml", 1)
    volume_error_percent: float | None = told("error %", 1)
    components: int | None = told("pieces", 0, missed=0)
    centroid_mm: float | None = told("centroid mm", 1, better=-1, missed=FARTHEST)
    status: str

    @classmethod
    def nothing(cls, tolerances_mm: Sequence[float], status: str, **known: Any) -> "Scores":
        """A case without scores.

        Args:
            tolerances_mm: Of the columns that stay empty.
            status: Why.
            known: What there is.
        """
        empty = dict.fromkeys(MEASURES)
        return cls(**{**empty, **known}, nsd=dict.fromkeys(tolerances_mm), status=status)

    @classmethod
    def missed(cls, tolerances_mm: Sequence[float], diagonal_mm: float, **known: Any) -> "Scores":
        """A case in which nothing was found.

        Args:
            tolerances_mm: Of the normalised surface Dice.
            diagonal_mm: Of the scan.
            known: What has to be worked out.
        """
        values = {
            name: diagonal_mm if measure.missed == FARTHEST else measure.missed
            for name, measure in MEASURES.items()
        }
        nsd = dict.fromkeys(tolerances_mm, 0.0)
        return cls(**{**values, **known}, nsd=nsd, status=MISSED)

    def as_row(self) -> dict[str, Any]:
        """The columns of the scores table."""
        row: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name == "nsd":
                row |= {nsd_column(tolerance_mm): share for tolerance_mm, share in value.items()}
            else:
                row[one.name] = value
        return row


MEASURES: dict[str, Measure] = {
    one.name: one.metadata["measure"] for one in fields(Scores) if one.metadata
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
    sizes = sizes_ml(volume, drawn, voxel_ml(affine))
    pieces = int(ndimage.label(inside, CONNECTIVITY_26)[1]) if volume else 0
    if drawn == 0:
        return Scores.nothing(tolerances_mm, EMPTY_REFERENCE, **sizes, components=pieces)
    if volume == 0:
        return Scores.missed(tolerances_mm, diagonal_mm(reference.shape, affine), **sizes)
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


def sizes_ml(volume: int, drawn: int, voxel_ml: float) -> dict[str, float | None]:
    """Volumes and their difference.

    Args:
        volume: Voxels predicted.
        drawn: Voxels drawn.
        voxel_ml: Of one voxel.
    """
    predicted_ml, drawn_ml = volume * voxel_ml, drawn * voxel_ml
    error_ml = predicted_ml - drawn_ml
    return {
        "volume_ml": predicted_ml,
        "reference_ml": drawn_ml,
        "volume_error_ml": error_ml,
        "volume_error_percent": 100 * error_ml / drawn_ml if drawn else None,
    }


def centroid_distance_mm(one: Mask, other: Mask, affine: Affine) -> float:
    """Distance between the centres of gravity of two masks, neither empty, on one grid, mm."""
    centres = [np.array(ndimage.center_of_mass(mask)) for mask in (one, other)]
    return float(np.linalg.norm(affine[:3, :3] @ (centres[0] - centres[1])))
