"""Pairs of masks small enough to score on paper, and their scores by hand.

A cube of four voxels a side has 64 voxels: 8 inside, 56 on its surface, of which 16 in each end
slab and 12 round each of the two between. Voxels are 0.8 x 0.8 x 2.5 mm.

The surface Dice weighs surface elements by area. They lie at the corners of voxels, 98 on the
cube: marching cubes cuts a triangle off each corner of a box (``CORNER``), a strip as long as a
voxel along each edge (``EDGE``) and a rectangle of a voxel's face elsewhere (``FACE``).
"""

from math import hypot, sqrt
from typing import Any, NamedTuple

import numpy as np

SPACING_MM = (0.8, 0.8, 2.5)
ML = 0.8 * 0.8 * 2.5 / 1000
TOLERANCES_MM = [1.0, 2.0, 3.0]
SIDE = 20
DIAGONAL_MM = 19 * hypot(0.8, 0.8, 2.5)
AFFINE = np.diag([*SPACING_MM, 1.0])
CORNER = hypot(0.8 * 0.8, 0.8 * 2.5, 0.8 * 2.5) / 8
EDGE = {"x": 0.8 * hypot(0.8, 2.5) / 2, "y": 0.8 * hypot(0.8, 2.5) / 2, "z": 2.5 * sqrt(0.32)}
FACE = {"x": 0.8 * 2.5, "y": 0.8 * 2.5, "z": 0.8 * 0.8}  # by the axis it is normal to


class Pair(NamedTuple):
    """A prediction and a reference with their scores by hand; those not named are None."""

    name: str
    prediction: np.ndarray
    reference: np.ndarray
    scores: dict[str, Any]


def box(x: tuple[int, int], y: tuple[int, int], z: tuple[int, int], side: int = SIDE) -> np.ndarray:
    mask = np.zeros((side, side, side), bool)
    mask[slice(*x), slice(*y), slice(*z)] = True
    return mask


def scores(
    dice, nsd, hd95_mm, assd_mm, precision, recall, error_voxels, percent, components, far_mm
):
    return {
        "dice": dice, "nsd_1mm": nsd[0], "nsd_2mm": nsd[1], "nsd_3mm": nsd[2],
        "hd95_mm": hd95_mm, "assd_mm": assd_mm, "precision": precision, "recall": recall,
        "volume_error_ml": error_voxels * ML, "volume_error_percent": percent,
        "components": components, "centroid_mm": far_mm,
    }  # fmt: skip


def side_mm2(axis: str) -> float:
    """Elements on a side of the cube, 5 x 5: corners, edges of three elements, and 3 x 3 within."""
    edges = sum(EDGE[other] for other in "xyz" if other != axis)
    return 4 * CORNER + 6 * edges + 9 * FACE[axis]


def box_mm2(x: int, y: int, z: int) -> float:
    """Surface of a box of so many voxels."""
    edges = 4 * ((x - 1) * EDGE["x"] + (y - 1) * EDGE["y"] + (z - 1) * EDGE["z"])
    faces = (y - 1) * (z - 1) * FACE["x"] + (x - 1) * (z - 1) * FACE["y"]
    return 8 * CORNER + edges + 2 * (faces + (x - 1) * (y - 1) * FACE["z"])


C = (5, 9)
CUBE = box(C, C, C)
EMPTY = np.zeros_like(CUBE)
HALF = box((5, 7), C, C)
VOXEL = box((5, 6), (5, 6), (5, 6))
SOLID = box((5, 8), (5, 8), (5, 8))
HOLLOW = SOLID & ~box((6, 7), (6, 7), (6, 7))
FULL = np.ones((4, 4, 4), bool)
PERFECT = scores(1, (1, 1, 1), 0, 0, 1, 1, 0, 0, 1, 0)
CUBE_MM2, HALF_MM2, VOXEL_MM2 = box_mm2(4, 4, 4), box_mm2(2, 4, 4), box_mm2(1, 1, 1)
SLICES_MM2 = box_mm2(4, 4, 2) + box_mm2(4, 4, 1)
# of the half, three elements in the middle of its new side lie 1.6 mm inside the cube; of the cube,
# the side that was cut off
HALF_NSD = (1 - (3 * FACE["x"] + side_mm2("x")) / (CUBE_MM2 + HALF_MM2), 1, 1)


def slice_off(both_mm2: float, times: int) -> tuple[float, float, float]:
    """NSD where a side is 2.5 mm off, and an element 1.6 mm inside the other end."""
    at_2mm = 1 - times * side_mm2("z") / both_mm2
    return at_2mm - times * FACE["z"] / both_mm2, at_2mm, 1


# the slab that sticks out lies 0.8 mm off, and four voxels inside the other end 0.8 mm from a side
SHIFTED_X = scores(0.75, (1, 1, 1), 0.8, 20 * 0.8 / 56, 0.75, 0.75, 0, 0, 1, 0.8)
FAR_MM = hypot(7 * 0.8, 7 * 0.8, 7 * 2.5)  # from a corner of the cube to a voxel at 15, 15, 15

PAIRS = [
    Pair("identical", CUBE, CUBE, PERFECT),
    Pair("missed: prediction empty", EMPTY, CUBE,
         scores(0, (0, 0, 0), DIAGONAL_MM, DIAGONAL_MM, 0, 0, -64, -100, 0, DIAGONAL_MM)),
    Pair("reference empty", CUBE, EMPTY, {"volume_error_ml": 64 * ML, "components": 1}),
    Pair("both empty", EMPTY, EMPTY, {"volume_error_ml": 0.0, "components": 0}),
    Pair("shifted by a voxel across, 0.8 mm", box((6, 10), C, C), CUBE, SHIFTED_X),
    Pair("shifted by a slice, 2.5 mm", box(C, C, (6, 10)), CUBE,
         scores(0.75, slice_off(2 * CUBE_MM2, 2), 2.5, (4 * 0.8 + 16 * 2.5) / 56,
                0.75, 0.75, 0, 0, 1, 2.5)),
    Pair("half of it", HALF, CUBE,
         scores(2 / 3, HALF_NSD, 1.6, (16 * 0.8 + 16 * 1.6) / 88, 1, 0.5, -32, -50, 1, 0.8)),
    Pair("twice as much", CUBE, HALF,
         scores(2 / 3, HALF_NSD, 1.6, (16 * 0.8 + 16 * 1.6) / 88, 0.5, 1, 32, 100, 1, 0.8)),
    Pair("a voxel too many, far off", CUBE | box((15, 16), (15, 16), (15, 16)), CUBE,
         scores(128 / 129, (1 - VOXEL_MM2 / (2 * CUBE_MM2 + VOXEL_MM2),) * 3, 0, FAR_MM / 113,
                64 / 65, 1, 1, 100 / 64, 2, 8.5 * hypot(0.8, 0.8, 2.5) / 65)),
    Pair("shifted across, touching the border", box((1, 5), (0, 4), (0, 4)),
         box((0, 4), (0, 4), (0, 4)), SHIFTED_X),
    Pair("one voxel, found", VOXEL, VOXEL, PERFECT),
    Pair("one voxel, a slice off", np.roll(VOXEL, 1, axis=2), VOXEL,
         scores(0, (0.5, 0.5, 1), 2.5, 2.5, 0, 0, 0, 0, 1, 2.5)),
    Pair("the whole scan", FULL, FULL, PERFECT),
    Pair("a hole inside", HOLLOW, SOLID,
         scores(52 / 53, (1, 1, 1), 0, 0, 1, 26 / 27, -1, -100 / 27, 1, 0)),
    Pair("beside it, nothing in common", box((12, 16), C, C), CUBE,
         scores(0, (0, 0, side_mm2("x") / CUBE_MM2), 5.6,
                (16 * 3.2 + 12 * 4 + 12 * 4.8 + 16 * 5.6) / 56, 0, 0, 0, 0, 1, 5.6)),
    Pair("a slice too many", box(C, C, (5, 7)), box(C, C, (5, 6)),
         scores(2 / 3, slice_off(SLICES_MM2, 1), 2.5, 16 * 2.5 / 48, 0.5, 1, 16, 100, 1, 1.25)),
]  # fmt: skip
