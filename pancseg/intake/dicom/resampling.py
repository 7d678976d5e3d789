"""Repairs: uneven or tilted slices put on a regular orthogonal grid."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float64]


def between_planes(
    stored: NDArray[Any], offsets: NDArray[np.float64], *, linear: bool
) -> NDArray[Any]:
    """Interpolate along the last axis onto whole steps.

    Args:
        stored: ``(columns, rows, slices)``.
        offsets: Where each slice lies, in steps of the regular grid from the first slice.
        linear: Weight the two neighbours by distance, or take the nearest.

    Returns:
        As many slices as whole steps fit, of the same type.

    >>> between_planes(np.array([[[0, 10, 30]]]), np.array([0.0, 1.0, 3.0]), linear=True)
    array([[[ 0, 10, 20, 30]]])
    """
    steps = np.arange(int(np.floor(offsets[-1] + 0.01)) + 1)
    above = np.clip(np.searchsorted(offsets, steps - 1e-6), 1, len(offsets) - 1)
    gaps = offsets[above] - offsets[above - 1]
    weights = np.clip((steps - offsets[above - 1]) / gaps, 0, 1)
    regular = np.empty((*stored.shape[:2], len(steps)), stored.dtype, order="F")
    for k, (upper, weight) in enumerate(zip(above, weights, strict=True)):
        low, high = stored[..., upper - 1], stored[..., upper]
        if not linear:
            regular[..., k] = high if weight > 0.5 else low
            continue
        mixed = (1 - weight) * low + weight * high
        regular[..., k] = np.rint(mixed) if stored.dtype.kind in "iu" else mixed
    return regular


def straightened(
    stored: NDArray[Any],
    shifts_mm: Floats,
    spacing_mm: tuple[float, ...],
    *,
    linear: bool,
    fill: float,
) -> tuple[NDArray[Any], tuple[float, float]]:
    """Move each slice of a tilted scan to where it lies beside the others.

    Args:
        stored: ``(columns, rows, slices)``.
        shifts_mm: ``(slices, 2)``, of each slice along a row and along a column.
        spacing_mm: From row to row, then from column to column.
        linear: Interpolate linearly, or take the nearest.
        fill: Value outside a slice.

    Returns:
        The volume, enlarged to hold every slice whole, and how far its corner moved along a row
        and along a column, mm.
    """
    pixels = shifts_mm / np.array([spacing_mm[1], spacing_mm[0]])
    low, high = np.floor(pixels.min(axis=0)), np.ceil(pixels.max(axis=0))
    columns, rows = (np.array(stored.shape[:2]) + high - low).astype(int)
    straight = np.empty((columns, rows, stored.shape[2]), stored.dtype, order="F")
    for k in range(stored.shape[2]):
        moved = ndimage.affine_transform(
            stored[..., k].astype(np.float32),
            np.ones(2),
            offset=low - pixels[k],
            output_shape=(columns, rows),
            order=1 if linear else 0,
            cval=fill,
        )
        straight[..., k] = np.rint(moved) if stored.dtype.kind in "iu" else moved
    moved_mm = (float(low[0] * spacing_mm[1]), float(low[1] * spacing_mm[0]))
    return straight, moved_mm
