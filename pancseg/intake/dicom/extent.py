"""Where the slices of some files lie together, from their headers alone."""

from collections.abc import Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from numpy.typing import NDArray

from pancseg.intake.dicom.pixels import quiet
from pancseg.intake.dicom.planes import planes_of
from pancseg.intake.dicom.stack import Repair, stack

Extent = NDArray[np.float64] | None
"""Sizes of the axes, sorted, then the lowest and the highest corner, RAS mm."""


def extent_of(files: Iterable[Path], repair: Repair | None = None) -> Extent:
    """Extent of what files hold together, or None where it is no regular stack.

    What is wrong with a file is told when it is read.
    """
    try:
        with quiet():
            headers = [(pydicom.dcmread(f, stop_before_pixels=True, force=True), f) for f in files]
            planes = [plane for one, file in headers for plane in planes_of(one, file)]
            lying = stack(planes, repair or Repair())
    except Exception:  # a damaged header raises nearly anything
        return None
    ends = np.array(list(np.ndindex(2, 2, 2))) * (np.array(lying.shape) - 1)
    corners = nib.affines.apply_affine(lying.affine_at(lying.corner_mm), ends)
    return np.array([*sorted(lying.shape), *corners.min(axis=0), *corners.max(axis=0)])


def equal(one: Extent, other: Extent) -> bool:
    """Whether two grids are known and equal, whichever way their axes run."""
    return one is not None and other is not None and bool(np.allclose(one, other, atol=0.05))
