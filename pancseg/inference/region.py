"""Coarse to fine: where the pancreas is, found on a coarse grid, so that only there it is outlined.

The same network looks at both, the first time at voxels larger than it was trained on. What it
loses by that is measured in ``benchmarks/RESULTS.md``.
"""

import math
from dataclasses import replace

import nibabel as nib
import numpy as np
from scipy import ndimage

from pancseg.geometry import bounding_box, spacing_of
from pancseg.inference.own_grid import Box, Piece
from pancseg.inference.parallel_grids import lie_on, reached
from pancseg.inference.whole_case import WholeCase

COARSE_MM = 4.0  # voxels of the first look
PRESENT = 0.3  # probability that is worth a second look
MARGIN_MM = 25.0  # around what was found
ROUNDS = 3  # a region that cuts something off is made larger, so often at most
SIDE_MM = 6.0  # what is found this near to a side may go on beyond it


def look_coarse_to_fine(case: WholeCase, image: nib.Nifti1Image) -> list[Piece]:
    """What a network says of the part of a scan that holds a pancreas.

    Where the first look finds nothing, the second is of the whole scan: an organ that is missed
    costs more than time.

    Args:
        case: Of a network that was trained on patches.
        image: HU, slice 0 nearest the feet, axes at right angles.
    """
    box = first_look(case, image)
    if box is None:
        return case.look(image)
    for _ in range(ROUNDS):
        pieces = look_inside(case, image, box)
        larger = grown(box, pieces[0], image)
        if larger == box:
            break
        box = larger
    return pieces


def first_look(case: WholeCase, image: nib.Nifti1Image) -> Box | None:
    """The box of a scan that is worth a second look; None if nothing is."""
    spacing_mm = tuple(max(COARSE_MM, mm) for mm in case.preprocessing.spacing_mm)
    coarse = WholeCase(case.windows, replace(case.preprocessing, spacing_mm=spacing_mm), None)
    piece = coarse.look(image)[0]
    labels, pieces = ndimage.label(piece.probability.numpy() > PRESENT)
    if not pieces:
        return None
    sums = ndimage.sum_labels(piece.probability.numpy(), labels, range(1, pieces + 1))
    organ = bounding_box(labels == int(np.argmax(sums)) + 1)
    places = lie_on(image.affine, image.shape, piece.affine, piece.probability.shape)
    return at_least(widened(reached(places, organ), image, MARGIN_MM), image, case)


def widened(box: Box, image: nib.Nifti1Image, margin_mm: float) -> Box:
    """A box with a margin on each side, inside the scan."""
    margins = [round(margin_mm / mm) for mm in spacing_of(image.affine)]
    return tuple(
        slice(max(0, part.start - margin), min(size, part.stop + margin))
        for part, margin, size in zip(box, margins, image.shape, strict=True)
    )


def at_least(box: Box, image: nib.Nifti1Image, case: WholeCase) -> Box:
    """A box that is no smaller than a window, so that the network sees as much as in training."""
    view = case.windows.segmenter.hparams["view"]
    window_mm = np.array(view["size"]) * np.array(case.preprocessing.spacing_mm)
    # the longest side along each axis: windows lie along the network's axes, boxes along the scan's
    along = np.abs(image.affine[:3, :3] / spacing_of(image.affine)).argmax(axis=0)
    found = []
    for part, axis, mm, size in zip(box, along, spacing_of(image.affine), image.shape, strict=True):
        wanted = min(size, math.ceil(window_mm[axis] / mm))
        start = max(0, part.start - max(0, wanted - (part.stop - part.start)) // 2)
        start = min(start, max(0, size - wanted))
        found.append(slice(start, max(part.stop, start + wanted)))
    return tuple(found)


def look_inside(case: WholeCase, image: nib.Nifti1Image, box: Box) -> list[Piece]:
    """What a network says of a box of a scan."""
    inside = image.slicer[box]
    return [replace(piece, start=box[2].start, stop=box[2].stop) for piece in case.look(inside)]


def grown(box: Box, piece: Piece, image: nib.Nifti1Image) -> Box:
    """A larger box where what was found reaches one of its sides, else the same."""
    above = (piece.probability > PRESENT).numpy()
    if not above.any():
        return box
    places = lie_on(image.affine, image.shape, piece.affine, piece.probability.shape)
    found, wider = reached(places, bounding_box(above)), widened(box, image, MARGIN_MM)
    near = [math.ceil(SIDE_MM / mm) for mm in spacing_of(image.affine)]
    return tuple(
        slice(
            wide.start if organ.start - part.start < voxels else part.start,
            wide.stop if part.stop - organ.stop < voxels else part.stop,
        )
        for part, wide, organ, voxels in zip(box, wider, found, near, strict=True)
    )
