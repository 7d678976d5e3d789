"""The grid of a label that does not lie on its image: what is wrong, or how it was cropped."""

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pancseg.errors import Refused
from pancseg.geometry import Affine, describe_grid, oriented_like, same_grid, spacing_of

AXES = ("left-right", "back-front", "feet-head")
FEWEST_TO_FLIP = 4  # voxels; along fewer, a whole extent is also a small shift
ADVICE = "its affine has wrong signs, as where LPS is written as RAS; export it again"
Floats = NDArray[np.float64]


def grid_problem(image: nib.Nifti1Image, label: nib.Nifti1Image) -> Refused | None:
    """Why a label does not lie on its image's grid, or None if it does.

    The first that applies of ``label_size``, ``label_spacing``, ``label_direction``,
    ``label_flipped`` and ``label_shifted``.

    Args:
        image: The image.
        label: With its array axes turned to the order and direction of the image's.
    """
    grid, other = image.affine, label.affine
    if image.shape != label.shape:
        return Refused(
            "label_size",
            f"label has {describe_grid(label.shape, other)}; "
            f"image has {describe_grid(image.shape, grid)}",
        )
    if same_grid(image.shape, grid, label.shape, other):
        return None
    return (
        spacing_problem(image.shape, grid, other)
        or direction_problem(image.shape, grid, other)
        or flip_problem(image.shape, grid, other)
        or shift_problem(image.shape, grid, other)
    )


def uncropped(label: nib.Nifti1Image, image: nib.Nifti1Image) -> nib.Nifti1Image:
    """A label that was cropped to its structure, as 3D Slicer does, on its image's whole grid.

    Returned as it is where its voxels do not coincide with some of the image's.

    >>> image = nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.diag([2.0, 2, 2, 1]))
    >>> part = nib.Nifti1Image(np.ones((1, 2, 1), np.uint8), image.affine)
    >>> part.affine[:3, 3] = [2, 0, 6]
    >>> np.argwhere(uncropped(part, image).dataobj).tolist()
    [[1, 0, 3], [1, 1, 3]]
    """
    turned = oriented_like(label, image)
    shape = turned.shape
    first = np.rint((np.linalg.inv(image.affine) @ turned.affine)[:3, 3]).astype(int)
    if shape == image.shape or (first < 0).any() or (first + shape > image.shape).any():
        return label
    part = tuple(slice(a, a + n) for a, n in zip(first, shape, strict=True))
    if not same_grid(shape, turned.affine, shape, image.slicer[part].affine):
        return label
    whole = np.zeros(image.shape, np.uint8)
    whole[part] = np.asanyarray(turned.dataobj)
    return nib.Nifti1Image(whole, image.affine)


def spacing_problem(shape: tuple[int, ...], grid: Affine, other: Affine) -> Refused | None:
    """Other voxel sizes, if they add up to more than two grids may differ."""
    ours, theirs = np.array(spacing_of(grid)), np.array(spacing_of(other))
    if (np.abs(theirs - ours) * (np.array(shape) - 1) <= tolerance_mm(grid)).all():
        return None
    names = (" x ".join(f"{value:.4g}" for value in spacing) for spacing in (theirs, ours))
    return Refused("label_spacing", "label has voxels of {} mm, image of {} mm".format(*names))


def direction_problem(shape: tuple[int, ...], grid: Affine, other: Affine) -> Refused | None:
    """Axes at an angle, if it moves their far ends by more than two grids may differ."""
    ours, theirs = directions_of(grid), directions_of(other)
    length_mm = np.array(spacing_of(grid)) * (np.array(shape) - 1)
    if (np.linalg.norm(theirs - ours, axis=0) * length_mm <= tolerance_mm(grid)).all():
        return None
    cosines = np.clip((ours * theirs).sum(axis=0), -1, 1)
    degrees = float(np.degrees(np.arccos(cosines)).max())
    return Refused("label_direction", f"label's axes lie {degrees:.2f} degrees off the image's")


def flip_problem(shape: tuple[int, ...], grid: Affine, other: Affine) -> Refused | None:
    """A label beside its image by a whole extent, or at the other side of the scanner's zero.

    Once its axes are turned to the image's, a label whose affine has a wrong sign begins where
    the image ends. Where its origin has the wrong sign as well (LPS written as RAS), its centre
    is the image's with that sign.
    """
    centre, other_centre = centre_mm(shape, grid), centre_mm(shape, other)
    shift_mm, size = other_centre - centre, np.array(shape)
    voxels = np.abs(np.linalg.inv(grid[:3, :3]) @ shift_mm)
    whole = (np.abs(voxels - (size - 1)) <= 1) & (size >= FEWEST_TO_FLIP)
    aside = np.abs(shift_mm) > tolerance_mm(grid)
    mirrored = np.abs(other_centre + centre) <= tolerance_mm(grid)
    if whole.any() and (voxels[~whole] <= 0.1).all():
        axes = [int(np.abs(grid[:3, axis]).argmax()) for axis in np.flatnonzero(whole)]
        how = "begins where the image ends"
    elif aside.any() and mirrored[aside].all():
        axes = np.flatnonzero(aside).tolist()
        how = "lies mirrored at the scanner's zero"
    else:
        return None
    names = " and ".join(AXES[axis] for axis in axes)
    return Refused("label_flipped", f"label {how}, {names}: {ADVICE}")


def shift_problem(shape: tuple[int, ...], grid: Affine, other: Affine) -> Refused:
    """Another place, as mm to the right, front and head and as voxels of the image."""
    shift_mm = centre_mm(shape, other) - centre_mm(shape, grid)
    voxels = np.linalg.inv(grid[:3, :3]) @ shift_mm
    in_mm, in_voxels = (", ".join(f"{v + 0.0:.2f}" for v in move) for move in (shift_mm, voxels))
    return Refused(
        "label_shifted",
        f"label lies ({in_mm}) mm to the right, front and head of the image: "
        f"({in_voxels}) of its voxels",
    )


def tolerance_mm(grid: Affine) -> float:
    """How far two grids may lie apart, as ``same_grid`` has it."""
    return min(spacing_of(grid)) / 10


def directions_of(affine: Affine) -> Floats:
    """Unit vectors of the array axes, one a column."""
    return affine[:3, :3] / np.array(spacing_of(affine))


def centre_mm(shape: tuple[int, ...], affine: Affine) -> Floats:
    """Centre of a grid, RAS."""
    return affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
