"""Distances between the surfaces of two masks, measured once for all that is made of them.

MONAI's metrics each measure them anew, and give NaN for a missed organ, which then falls out of
the mean: here scipy measures, once and inside the masks' box, and the rules are ours.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

Mask = NDArray[np.bool_]
HAUSDORFF_PERCENT = 95.0


@dataclass(frozen=True)
class SurfaceDistances:
    """How far each surface voxel of one mask lies from the surface of the other, mm.

    A surface voxel has at least one of its six neighbours outside the mask; what lies beyond the
    scan is outside, so that a mask has a surface where it touches the border.

    Attributes:
        from_prediction: One a surface voxel of the prediction.
        from_reference: One a surface voxel of the reference.
    """

    from_prediction: NDArray[np.float64]
    from_reference: NDArray[np.float64]

    def nsd(self, tolerance_mm: float) -> float:
        """Normalised surface Dice: share of both surfaces within the tolerance of each other.

        Nikolov et al. 2018, counted in surface voxels.
        """
        both = np.concatenate([self.from_prediction, self.from_reference])
        return float((both <= tolerance_mm).mean())

    def hd95_mm(self) -> float:
        """95th percentile of the distances, the larger of the two directions."""
        directions = (self.from_prediction, self.from_reference)
        return max(float(np.percentile(one, HAUSDORFF_PERCENT)) for one in directions)

    def assd_mm(self) -> float:
        """Mean over the surface voxels of both masks."""
        return float(np.concatenate([self.from_prediction, self.from_reference]).mean())


def surface_distances(
    prediction: Mask, reference: Mask, spacing_mm: tuple[float, float, float]
) -> SurfaceDistances:
    """Measure two masks, neither of them empty, that were cut to their common box.

    >>> one, other = np.zeros((2, 5, 1, 1), bool)
    >>> one[1], other[3] = True, True
    >>> surface_distances(one, other, (0.8, 1.0, 1.0)).hd95_mm()
    1.6
    """
    predicted, drawn = (mask & ~binary_erosion(mask) for mask in (prediction, reference))
    return SurfaceDistances(
        distances_to(drawn, spacing_mm)[predicted], distances_to(predicted, spacing_mm)[drawn]
    )


def distances_to(surface: Mask, spacing_mm: tuple[float, float, float]) -> NDArray[np.float64]:
    """Distance of every voxel from a surface, mm, rounded so that 1 mm is within 1 mm."""
    distances: NDArray[np.float64] = distance_transform_edt(~surface, sampling=spacing_mm)
    return np.round(distances, 6)
