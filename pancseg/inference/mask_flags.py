"""Flags of a predicted mask that call for review."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pancseg.geometry import second_component_voxels

MIN_CONFIDENCE = 0.7  # without a calibration
EMPTY = "no_"  # followed by the structure
MASK_FLAGS = {
    EMPTY: "The mask is empty; see whether the scan holds the organ.",
    "volume_range": "The mask is smaller or larger than the organ can be (review.volume_ml).",
    "several_pieces": "The mask has several large components; one may be another organ.",
    "touches_end": "The mask touches the first or last slice; the organ may be cut off.",
    "not_confident": "The probabilities are low or spread out (review.confidence).",
    "spacing_unlike": "Voxels or slices are much larger than in training.",
    "hu_unlike": "Soft tissue or bone has other values than in training: another window, contrast "
    "phase or modality.",
    "noise_unlike": "The scan is much noisier or smoother than in training.",
    "field_unlike": "The scan is shorter, or the body wider or narrower, than in training.",
    "sides_unlike": "Organs do not lie where they did in training: the scan may be mirrored.",
    "no_seg": "No DICOM SEG was written; see the reason.",
    "no_rtstruct": "No RTSTRUCT was written; see the reason.",
}
"""Meaning of each flag, in the order in which flags are written."""


@dataclass(frozen=True)
class ReviewThresholds:
    """Thresholds of the flags.

    Attributes:
        volume_ml: Smallest and largest plausible volume; None takes the structure's.
        piece_share: Of the mask's voxels that a second component may have, 0 to 1.
        confidence: Below which a mask is flagged, 0 to 1; None takes a little less than the lowest
            of validation, or 0.7 without calibration.
        spacing_factor: Ratio of the scan's spacing to the network's.
        unlike: Standard deviations from the training scans.
    """

    volume_ml: tuple[float, float] | None = None
    piece_share: float = 0.1
    confidence: float | None = None
    spacing_factor: float = 2.5
    unlike: float = 4.0


def mask_flags(
    mask: NDArray[np.bool_],
    *,
    structure: str,
    voxel_ml: float,
    confidence: float,
    spacing_mm: tuple[float, ...],
    network_spacing_mm: tuple[float, ...],
    thresholds: ReviewThresholds,
) -> list[str]:
    """Flags of a mask ``(X, Y, Z)`` whose last axis runs from feet to head.

    >>> mask = np.zeros((9, 9, 9), bool); mask[2:7, 2:7, :4] = True
    >>> mask_flags(mask, structure="pancreas", voxel_ml=0.5, confidence=0.9, spacing_mm=(3, 3, 3),
    ...            network_spacing_mm=(1.5, 1.5, 1.0), thresholds=ReviewThresholds((15, 300)))
    ['touches_end', 'spacing_unlike']
    """
    flags = set()
    voxels = int(mask.sum())
    low, high = thresholds.volume_ml or (0.0, np.inf)
    least = MIN_CONFIDENCE if thresholds.confidence is None else thresholds.confidence
    if not voxels:
        flags.add(EMPTY + structure)
    else:
        if not low <= voxels * voxel_ml <= high:
            flags.add("volume_range")
        if second_component_voxels(mask) > thresholds.piece_share * voxels:
            flags.add("several_pieces")
        if mask[..., 0].any() or mask[..., -1].any():
            flags.add("touches_end")
        if confidence < least:
            flags.add("not_confident")
    ratios = [own / trained for own, trained in zip(spacing_mm, network_spacing_mm, strict=True)]
    if max(ratios) > thresholds.spacing_factor:
        flags.add("spacing_unlike")
    return sort_mask_flags(flags)


def sort_mask_flags(flags: Iterable[str]) -> list[str]:
    """Flags without repetition, in the order of ``MASK_FLAGS``."""
    order = list(MASK_FLAGS)

    def rank(flag: str) -> int:
        return order.index(flag if flag in MASK_FLAGS else EMPTY)

    return sorted(set(flags), key=rank)
