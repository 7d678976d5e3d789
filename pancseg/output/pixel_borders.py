"""Outlines along the borders of a mask's pixels, holes joined to them by channels.

By hand: contourpy's lines cut corners halfway between centres, so that a voxel would be half as
large as it is, and nothing joins holes.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

EAST, SOUTH, WEST, NORTH = range(4)  # each a right turn from the one before; rows count southwards
STEPS = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])  # columns, rows
Floats = NDArray[np.float64]


def pixel_borders(mask: NDArray[np.bool_]) -> list[Floats]:
    """Trace each piece of a mask once around, a closed outline with the piece on its right.

    Pixels that touch at a corner alone are pieces of their own. A hole is entered and left by one
    channel of no width along a row of borders (DICOM PS3.3 C.8.8.6.3 calls that a keyhole): centres
    of pixels lie half a pixel beside every edge, so any rule of filling gives the mask back.

    Args:
        mask: ``(columns, rows)``.

    Returns:
        For each piece its corners ``(points, 2)``, column and row, pixels from the centre of the
        first one; the first is not repeated.

    >>> [outline.tolist() for outline in pixel_borders(np.array([[False, True]]))]
    [[[0.5, 0.5], [0.5, 1.5], [-0.5, 1.5], [-0.5, 0.5]]]
    """
    inside = np.pad(mask, 1)
    leaves = borders(inside)
    join_holes(leaves, inside)
    heading, column, row = np.nonzero(leaves)
    ends = np.stack([column, row], axis=1) + STEPS[heading]
    turned = turns(leaves, heading, ends)
    number = np.zeros(leaves.shape, np.intp)
    number[leaves] = np.arange(len(heading))
    after = number[turned, ends[:, 0], ends[:, 1]]
    is_corner = turned != heading
    return [ends[around][is_corner[around]] - 0.5 for around in cycles(after)]


def borders(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where a border leaves a corner of pixels, the inside on its right.

    Args:
        inside: Mask with a margin of a pixel, ``(columns + 2, rows + 2)``.

    Returns:
        ``(4, columns + 1, rows + 1)``: heading, and the pixel whose first corner it is.
    """
    north_west, north_east = inside[:-1, :-1], inside[1:, :-1]
    south_west, south_east = inside[:-1, 1:], inside[1:, 1:]
    return np.stack(
        [
            south_east & ~north_east,
            south_west & ~south_east,
            north_west & ~south_west,
            north_east & ~north_west,
        ]
    )


def join_holes(leaves: NDArray[np.bool_], inside: NDArray[np.bool_]) -> None:
    """Add a channel from the first corner of each hole westwards to the next border, and back.

    All that lies north of a hole and west of its first pixel there belongs to the piece around it,
    so the channel meets a border of that piece: its outline, or a hole that is joined likewise.
    """
    labels, count = ndimage.label(~inside, np.ones((3, 3)))
    if count == 1:
        return
    is_border = ~(inside[:-1, :-1] & inside[:-1, 1:])  # seen from the east
    _, firsts = np.unique(labels.T, return_index=True)  # by rows
    for first in firsts[2:]:  # 0 is the mask, 1 the outside
        row, column = divmod(int(first), len(labels))
        end = int(np.flatnonzero(is_border[: column - 1, row - 1])[-1])
        leaves[WEST, end + 1 : column, row - 1] = True
        leaves[EAST, end : column - 1, row - 1] = True


def turns(
    leaves: NDArray[np.bool_], heading: NDArray[np.intp], ends: NDArray[np.intp]
) -> NDArray[np.intp]:
    """How it goes on where each edge ends: to the right if it can, else straight on, else left."""
    right, left = (heading + 1) % 4, (heading + 3) % 4
    column, row = ends.T
    can_right, can_straight = leaves[right, column, row], leaves[heading, column, row]
    return np.where(can_right, right, np.where(can_straight, heading, left))


def cycles(after: NDArray[np.intp]) -> list[list[int]]:
    """Cycles of a permutation, each from its smallest number.

    >>> cycles(np.array([2, 1, 0]))
    [[0, 2], [1]]
    """
    follower, found = after.tolist(), []
    is_new = [True] * len(follower)
    for start in range(len(follower)):
        around, one = [], start
        while is_new[one]:
            is_new[one] = False
            around.append(one)
            one = follower[one]
        if around:
            found.append(around)
    return found
