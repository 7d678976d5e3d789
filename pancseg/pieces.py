"""Pieces of a mask: voxels that touch, be it with a corner, are of one."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pancseg.bounding_box import bounding_box

TOUCHING = np.ones((3, 3, 3), bool)


def second_piece(mask: NDArray[np.bool_]) -> int:
    """Voxels of the second largest piece of a mask ``(X, Y, Z)``; 0 where there is no second.

    >>> mask = np.zeros((5, 1, 1), bool)
    >>> mask[[0, 1, 2, 4]] = True
    >>> second_piece(mask)
    1
    """
    labels, pieces = ndimage.label(mask[bounding_box(mask)], TOUCHING)
    return int(np.sort(np.bincount(labels.ravel())[1:])[-2]) if pieces > 1 else 0
