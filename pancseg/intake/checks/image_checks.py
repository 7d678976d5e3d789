"""Whether values can be HU and slices lie in order: looked at on a sample of the pixels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

PIXELS_ALONG = 64  # of a sampled slice: enough to judge by, a sixteenth of the work at 512
LARGEST_STEP = 4
FEWEST_PIXELS = 1000  # of a sampled slice or volume: fewer say nothing

# HU. Each limit lies far from what real scans show on either side.
FAT = -30  # below are fat, lung and air, at least some of which every CT has
SOFT_TISSUE = (-150, 250)
BODY = -300  # below are lung and air
AIR = (-1200, -700)
LARGEST_CLIPPED_AT = (-900, 1000)  # clipping beyond, such as to -1024..3071, loses nothing

# Shares of voxels.
LEAST_FAT = 0.01
LEAST_SOFT_TISSUE = 0.02  # real scans from 0.07, all padding counted
LEAST_AIR = 0.05  # of what is darker than the body
MUCH_AIR = 0.05  # enough of it to say where it lies
AT_ENDS = (0.01, 0.001)  # at exactly the lowest and the highest value, where clipped

CONTENTS = (-1000, 1000)  # HU; padding and metal say nothing about order
SWAPPED = 1.07  # ratio; slices in order: at most 0.97, of nothing but noise 1.02; swapped from 1.1
ALTERNATING = 0.8  # share of slices more like the one after next; half, where every pair is swapped


def sampled(hu: NDArray[Any]) -> NDArray[Any]:
    """Pixels of a regular pattern in every slice.

    Args:
        hu: ``(columns, rows, slices)``.

    Returns:
        ``(slices, pixels)``, contiguous.
    """
    step = min(LARGEST_STEP, max(1, min(hu.shape[:2]) // PIXELS_ALONG))
    return np.moveaxis(hu[::step, ::step], 2, 0).reshape(hu.shape[2], -1)


def hu_flag(few: NDArray[Any], low: float, high: float, hu_range: tuple[float, float]) -> str:
    """The flag for values that cannot be HU, or an empty text.

    The first that applies: what was windowed also lacks air, and what lacks both is no CT.

    Args:
        few: Sampled values, any shape.
        low: Lowest of all values.
        high: Highest of all values.
        hu_range: Lowest and highest plausible value.
    """
    if few.size < FEWEST_PIXELS:
        return ""
    if is_windowed(few, low, high):
        return "hu_windowed"
    if np.mean(few < FAT) < LEAST_FAT:
        return "hu_not_applied"
    outside = low < hu_range[0] or high > hu_range[1]
    if outside or not has_soft_tissue(few) or not has_air_in_place(few, low):
        return "hu_implausible"
    return ""


def is_windowed(few: NDArray[Any], low: float, high: float) -> bool:
    """Whether many voxels have exactly the lowest or highest value, and tissue goes beyond it.

    Nothing below 0 and no clipping above is left to the other checks: that may be raw values.

    >>> ct = np.linspace(-1024, 1500, 5000).astype(int)
    >>> is_windowed(ct, -1024, 1500), is_windowed(ct.clip(-200, 200), -200, 200)
    (False, True)
    """
    cut_low = low > LARGEST_CLIPPED_AT[0] and np.mean(few == low) > AT_ENDS[0]
    cut_high = high < LARGEST_CLIPPED_AT[1] and np.mean(few == high) > AT_ENDS[1]
    return bool(cut_high or (cut_low and low < 0))


def has_soft_tissue(few: NDArray[Any]) -> bool:
    """Whether there is soft tissue: with a wrong intercept there is next to none."""
    low, high = SOFT_TISSUE
    return bool(np.mean((few > low) & (few < high)) >= LEAST_SOFT_TISSUE)


def has_air_in_place(few: NDArray[Any], low: float) -> bool:
    """Whether what is darker than the body is air, if there is much of it.

    A wrong slope moves air most. Padding outside the scanner's circle, all of one value, does not
    count.
    """
    dark = few[(few < BODY) & (few > low)]
    if dark.size < MUCH_AIR * few.size:
        return True
    return bool(np.mean((dark > AIR[0]) & (dark < AIR[1])) >= LEAST_AIR)


def slices_look_swapped(few: NDArray[Any]) -> bool:
    """Whether the contents of two neighbouring slices seem to have changed places.

    In order a, b, c, d each slice is more like the next than like the one after. Stored as
    a, c, b, d, both a and d are more like the farther of the two: that is asked for on both
    sides, because a single odd slice gives it on one.

    Args:
        few: ``(slices, pixels)``, HU.
    """
    if few.shape[0] < 4 or few.shape[1] < FEWEST_PIXELS:
        return False
    contents = np.clip(few, *CONTENTS)
    if np.issubdtype(contents.dtype, np.integer):
        contents = contents.astype(np.int16)  # differences of clipped HU fit
    one = differences(contents, 1)
    two = SWAPPED * np.maximum(differences(contents, 2), 1e-3)  # HU; below is rounding
    after, before = one[:-1] > two, one[1:] > two
    if np.mean(after) > ALTERNATING:
        return False  # every other slice is alike, as from a flying focus: order says nothing
    # At either end one side is missing: an odd slice differs from its outer neighbour as well.
    first = before[0] and one[1] > SWAPPED * one[0]
    last = after[-1] and one[-2] > SWAPPED * one[-1]
    return bool((after[:-1] & before[1:]).any() or first or last)


def differences(contents: NDArray[Any], apart: int) -> NDArray[np.float64]:
    """Mean absolute difference of slices so many places apart, ``(slices - apart,)``, HU.

    >>> differences(np.array([[0, 0], [1, 3], [4, 4]]), apart=1).tolist()
    [2.0, 2.0]
    """
    return np.array(
        [
            np.abs(one - other).mean(dtype=np.float64)
            for one, other in zip(contents[:-apart], contents[apart:], strict=True)
        ]
    )
