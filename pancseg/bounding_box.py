"""The part of an array that holds a mask."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def bounding_box(
    mask: NDArray[np.bool_], margin_mm: float = 0.0, spacing_mm: Sequence[float] = ()
) -> tuple[slice, ...]:
    """Slices that hold a mask and a margin, inside the array; all of it where it is empty.

    Axis by axis, which is many times faster on a large scan than listing its voxels.

    Args:
        mask: Of any number of axes.
        margin_mm: On each side.
        spacing_mm: Of each axis; needed for a margin.

    >>> bounding_box(np.array([False, False, True, False, False]), 2.0, [2.0])
    (slice(1, 4, None),)
    """
    if not mask.any():
        return tuple(slice(0, size) for size in mask.shape)
    slices = []
    for axis, size in enumerate(mask.shape):
        found = np.flatnonzero(mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis)))
        margin = round(margin_mm / spacing_mm[axis]) if margin_mm else 0
        slices.append(slice(max(0, int(found[0]) - margin), min(size, int(found[-1]) + margin + 1)))
    return tuple(slices)
