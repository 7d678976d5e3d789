"""Whether a mask can be a whole pancreas of this image."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

IN_AIR = -300  # HU; fat and partial volume lie above
ALL_NEIGHBOURS = np.ones((3, 3, 3), bool)
Box = tuple[slice, slice, slice]


def label_flags(
    hu: NDArray[Any],
    mask: NDArray[Any],
    spacing_mm: tuple[float, float, float],
    *,
    volume_ml: tuple[float, float],
    outside_share: float,
    piece_share: float,
) -> set[str]:
    """Flags of a label, which all look only at the box around it.

    Args:
        hu: ``(columns, rows, slices)``, HU.
        mask: On the same grid, 0 and 1.
        spacing_mm: Voxel size along each axis.
        volume_ml: Smallest and largest plausible label.
        outside_share: Of its voxels that may lie in air.
        piece_share: Of its voxels that a second piece may have.
    """
    box = box_around(mask)
    if box is None:
        return {"label_empty"}
    organ = mask[box] != 0
    ml = int(organ.sum()) * float(np.prod(spacing_mm)) / 1000
    found = {
        "label_outside_body": float(np.mean(hu[box][organ] < IN_AIR)) > outside_share,
        "label_volume": not volume_ml[0] <= ml <= volume_ml[1],
        "label_pieces": share_of_second_piece(organ) > piece_share,
        "label_cut": box[2].start == 0 or box[2].stop == mask.shape[2],
        "label_gaps": not organ.any(axis=(0, 1)).all(),
    }
    return {flag for flag, is_so in found.items() if is_so}


def box_around(mask: NDArray[Any]) -> Box | None:
    """The smallest box that holds a mask, or None where it is empty.

    >>> mask = np.zeros((4, 4, 4), np.uint8)
    >>> mask[1:3, 2, 0] = 1
    >>> box_around(mask)
    (slice(1, 3, None), slice(2, 3, None), slice(0, 1, None))
    """
    slices = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(mask.any(axis=others))
        if not len(found):
            return None
        slices.append(slice(int(found[0]), int(found[-1]) + 1))
    return slices[0], slices[1], slices[2]


def share_of_second_piece(organ: NDArray[np.bool_]) -> float:
    """Share of a mask's voxels in its second largest piece; voxels that touch are one piece.

    >>> organ = np.zeros((5, 1, 1), bool)
    >>> organ[[0, 1, 2, 4]] = True
    >>> share_of_second_piece(organ)
    0.25
    """
    pieces, count = ndimage.label(organ, structure=ALL_NEIGHBOURS)
    if count < 2:
        return 0.0
    sizes = np.sort(np.bincount(pieces.ravel())[1:])
    return float(sizes[-2] / sizes.sum())
