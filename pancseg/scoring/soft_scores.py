"""What probabilities say beyond the mask: calibration, and the number that old scripts print."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pancseg.geometry import bounding_box

Counts = NDArray[np.int64]
SMOOTH = 1e-5  # of MONAI's DiceLoss, in numerator and denominator
BINS = 10


@dataclass(frozen=True)
class Calibration:
    """How often voxels of a probability are pancreas.

    Attributes:
        voxels: In each of ten bins of equal width, 0 to 1.
        predicted: Sum of their probabilities.
        drawn: How many of them are drawn.
    """

    voxels: Counts
    predicted: NDArray[np.float64]
    drawn: Counts

    def __add__(self, other: "Calibration") -> "Calibration":
        return Calibration(
            self.voxels + other.voxels,
            self.predicted + other.predicted,
            self.drawn + other.drawn,
        )

    def expected_error(self) -> float | None:
        """Expected calibration error: mean over voxels of the bins' |drawn - predicted| share.

        Naeini et al. 2015. None where there is no voxel.
        """
        total = int(self.voxels.sum())
        return float(np.abs(self.drawn - self.predicted).sum() / total) if total else None

    def points(self) -> list[dict[str, float]]:
        """Mean probability and drawn share of each bin that has voxels."""
        return [
            {"probability": float(p / n), "drawn": float(d / n), "voxels": int(n)}
            for n, p, d in zip(self.voxels, self.predicted, self.drawn, strict=True)
            if n
        ]


NO_VOXELS = Calibration(np.zeros(BINS, np.int64), np.zeros(BINS), np.zeros(BINS, np.int64))


def calibration_of(
    probability: NDArray[np.float32], reference: NDArray[np.bool_], box: Sequence[slice]
) -> Calibration:
    """Calibration of one case inside a box around the organ.

    Over the whole scan, where nearly every voxel is certainly no pancreas, every network would
    look calibrated.

    Args:
        probability: ``(X, Y, Z)``, 0 to 1.
        reference: Of the same shape.
        box: Part that counts.

    >>> p = np.full((10, 1, 1), 0.75, np.float32)
    >>> drawn = np.arange(10).reshape(10, 1, 1) < 5
    >>> calibration_of(p, drawn, (slice(None),) * 3).expected_error()
    0.25
    """
    p, drawn = probability[tuple(box)].ravel(), reference[tuple(box)].ravel()
    edges = np.linspace(0.0, 1.0, BINS + 1)
    return Calibration(
        np.histogram(p, edges)[0].astype(np.int64),
        np.histogram(p, edges, weights=p.astype(np.float64))[0],
        np.histogram(p[drawn], edges)[0].astype(np.int64),
    )


def recipe_metric(probability: NDArray[np.float32], reference: NDArray[np.bool_]) -> float:
    """What a tutorial script prints as Dice: ``1 - DiceLoss``, soft, averaged with background.

    Squared denominator, background as one less the probability (MONAI's ``DiceLoss`` with
    ``squared_pred`` and ``include_background``). Kept beside the Dice so that old numbers can
    be compared; an empty prediction reads 0.50.

    >>> drawn = np.zeros((10, 10, 10), bool); drawn[:2, :2, :2] = True
    >>> round(recipe_metric(np.zeros(drawn.shape, np.float32), drawn), 2)
    0.5
    """
    p = probability.ravel(order="K")
    n, drawn = p.size, int(reference.sum())
    box = bounding_box(reference)
    common = float(probability[box][reference[box]].sum(dtype=np.float64))
    total, squares = (
        float(p.sum(dtype=np.float64)),
        float(np.einsum("i,i->", p, p, dtype=np.float64)),
    )
    foreground = (2 * common + SMOOTH) / (squares + drawn + SMOOTH)
    # of 1 - p and 1 - drawn, by the same sums
    common, squares = n - total - drawn + common, n - 2 * total + squares
    background = (2 * common + SMOOTH) / (squares + n - drawn + SMOOTH)
    return (foreground + background) / 2
