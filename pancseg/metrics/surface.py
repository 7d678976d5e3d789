"""Distances between the surfaces of two masks, and the normalised surface Dice.

Equal to MONAI's ``compute_surface_dice``, which measures once a tolerance and convolves the box of
both masks: the whole scan as soon as a predicted voxel lies far off.
"""

from collections.abc import Sequence

import numpy as np
from monai.metrics.utils import get_code_to_measure_table
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt
from scipy.spatial import KDTree

Mask = NDArray[np.bool_]
Points = NDArray[np.int64]
Floats = NDArray[np.float64]
Spacing = tuple[float, float, float]
MAX_VOXELS_A_POINT = 50  # in a larger box the tree is faster than the distance transform


def surface_distances(prediction: Mask, reference: Mask, spacing_mm: Spacing) -> list[Floats]:
    """Distance of each surface voxel to the other mask's surface, mm: prediction's, reference's.

    A surface voxel has at least one of its six neighbours outside the mask; outside the array is
    outside the mask. The masks ``(X, Y, Z)`` are not empty.
    """
    p, r = (np.argwhere(mask & ~binary_erosion(mask)) for mask in (prediction, reference))
    return [nearest_mm(p, r, spacing_mm), nearest_mm(r, p, spacing_mm)]


def surface_dice(
    prediction: Mask, reference: Mask, spacing_mm: Spacing, tolerances_mm: Sequence[float]
) -> list[float]:
    """Normalised surface Dice: share of both surfaces' area within each tolerance of the other.

    Nikolov et al. 2018 (arXiv:1809.04430), as DeepMind's ``surface-distance`` computes it. The
    masks ``(X, Y, Z)`` are not empty.

    >>> masks = np.zeros((2, 5, 1, 1), bool)
    >>> masks[0, 1] = masks[1, 3] = True
    >>> surface_dice(*masks, (1.0, 1.0, 2.5), tolerances_mm=[0.9, 1.0, 2.0])
    [0.0, 0.5, 1.0]
    """
    (p, p_mm2), (r, r_mm2) = (surface_elements(m, spacing_mm) for m in (prediction, reference))
    distances = np.concatenate([nearest_mm(p, r, spacing_mm), nearest_mm(r, p, spacing_mm)])
    areas = np.concatenate([p_mm2, r_mm2])
    return [float(areas[distances <= mm].sum() / areas.sum()) for mm in tolerances_mm]


def surface_elements(mask: Mask, spacing_mm: Spacing) -> tuple[Points, Floats]:
    """Surface elements ``(n, 3)`` and their areas, mm2.

    An element lies at each corner of voxels whose eight voxels are not alike; its area is that of
    the marching-cubes triangles between them.
    """
    areas, kernel = get_code_to_measure_table(spacing_mm)
    padded = np.pad(mask, 1).view(np.uint8)
    codes = np.zeros([size + 1 for size in mask.shape], np.uint8)
    for (x, y, z), bit in np.ndenumerate(kernel[0, 0].numpy().astype(np.uint8)):
        nx, ny, nz = codes.shape
        codes += bit * padded[x : x + nx, y : y + ny, z : z + nz]
    points = np.argwhere((codes > 0) & (codes < len(areas) - 1))
    return points, areas.numpy().astype(np.float64)[codes[tuple(points.T)]]


def nearest_mm(points: Points, others: Points, spacing_mm: Spacing) -> Floats:
    """Distance of each point to the nearest of the others, mm.

    Rounded to 1e-6 mm, so that 1.0000000001 counts as 1. Both are indices ``(n, 3)``, not empty.
    """
    low = np.minimum(points.min(axis=0), others.min(axis=0))
    size = np.maximum(points.max(axis=0), others.max(axis=0)) - low + 1
    if np.prod(size) > MAX_VOXELS_A_POINT * (len(points) + len(others)):
        distances = KDTree(others * spacing_mm).query(points * spacing_mm, workers=-1)[0]
    else:
        is_far = np.ones(size, bool)
        is_far[tuple((others - low).T)] = False
        distances = distance_transform_edt(is_far, sampling=spacing_mm)[tuple((points - low).T)]
    return np.round(distances, 6)
