"""What a person should look at in a predicted mask."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pancseg.geometry import second_component_voxels

UNKNOWN = 0.7  # confidence below which a mask is doubted where nothing was learnt
MASK_FLAGS = {
    "no_pancreas": "Nothing was found; see whether the scan holds the upper abdomen.",
    "volume_range": "The mask is smaller or larger than a pancreas (doubts.volume_ml).",
    "several_pieces": "The mask has several large pieces; see whether one is another organ.",
    "touches_end": "The mask touches the first or last slice; the organ may be cut off.",
    "not_confident": "The probabilities are low or spread out (doubts.confidence).",
    "spacing_unlike": "Voxels or slices are much larger than those the network was trained on.",
    "hu_unlike": "Soft tissue or bone has other values than in the training scans: another window, "
    "contrast phase or modality.",
    "noise_unlike": "The scan is much noisier or smoother than the training scans.",
    "field_unlike": "The scan is shorter, or the body wider or narrower, than in training: see "
    "whether the upper abdomen is there.",
    "sides_unlike": "Organs do not lie where they did in training: see whether the scan is "
    "mirrored, or the patient lies another way.",
    "no_seg": "No DICOM SEG could be written; the reason stands beside it.",
    "no_rtstruct": "No RTSTRUCT could be written; the reason stands beside it.",
}
"""What each flag means, in the order in which flags are written."""


@dataclass(frozen=True)
class Doubts:
    """When a mask is flagged.

    Attributes:
        volume_ml: Smallest and largest plausible pancreas, ml.
        piece_share: Of the mask's voxels that a second piece may have, 0 to 1.
        confidence: The least that is not flagged, 0 to 1; None goes by validation patients, and is
            0.7 where nothing was learnt of them.
        spacing_factor: Voxels may be this many times as long as those given to the network.
        unlike: Standard deviations from the training scans that are still alike.
    """

    volume_ml: tuple[float, float] = (15, 300)
    piece_share: float = 0.1
    confidence: float | None = None
    spacing_factor: float = 2.5
    unlike: float = 4.0


def mask_flags(
    mask: NDArray[np.bool_],
    *,
    voxel_ml: float,
    confidence: float,
    spacing_mm: tuple[float, float, float],
    network_spacing_mm: tuple[float, ...],
    doubts: Doubts,
) -> list[str]:
    """Flags of a mask ``(X, Y, Z)`` whose last axis runs from feet to head.

    >>> found = np.zeros((9, 9, 9), bool); found[2:7, 2:7, :4] = True
    >>> mask_flags(found, voxel_ml=0.5, confidence=0.9, spacing_mm=(3, 3, 3),
    ...            network_spacing_mm=(1.5, 1.5, 1.0), doubts=Doubts())
    ['touches_end', 'spacing_unlike']
    """
    flags = set()
    voxels = int(mask.sum())
    low, high = doubts.volume_ml
    if not voxels:
        flags.add("no_pancreas")
    else:
        if not low <= voxels * voxel_ml <= high:
            flags.add("volume_range")
        if second_component_voxels(mask) > doubts.piece_share * voxels:
            flags.add("several_pieces")
        if mask[..., 0].any() or mask[..., -1].any():
            flags.add("touches_end")
        if confidence < (UNKNOWN if doubts.confidence is None else doubts.confidence):
            flags.add("not_confident")
    longest = [own / seen for own, seen in zip(spacing_mm, network_spacing_mm, strict=True)]
    if max(longest) > doubts.spacing_factor:
        flags.add("spacing_unlike")
    return sort_flags(flags)


def sort_flags(flags: Iterable[str]) -> list[str]:
    """Flags of a mask, each once, in the order of their list."""
    return sorted(set(flags), key=list(MASK_FLAGS).index)
