"""Whether a mask can be a whole pancreas of this image."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pancseg.geometry import bounding_box, second_component_voxels

IN_AIR = -300  # HU; fat and partial volume lie above


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
    box = bounding_box(mask)
    organ = mask[box] != 0
    if not organ.any():
        return {"label_empty"}
    ml = int(organ.sum()) * float(np.prod(spacing_mm)) / 1000
    found = {
        "label_outside_body": float(np.mean(hu[box][organ] < IN_AIR)) > outside_share,
        "label_volume": not volume_ml[0] <= ml <= volume_ml[1],
        "label_pieces": second_component_voxels(organ) / organ.sum() > piece_share,
        "label_cut": box[2].start == 0 or box[2].stop == mask.shape[2],
        "label_gaps": not organ.any(axis=(0, 1)).all(),
    }
    return {flag for flag, is_so in found.items() if is_so}
