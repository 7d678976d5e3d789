"""Compare the grid of a label with that of its image, and place cropped labels on it."""

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pancseg.errors import Refused
from pancseg.geometry import Affine, describe_grid, oriented_like, same_grid, spacing_of

MIN_FLIPPED_VOXELS = 4  # along a shorter axis, a flip is also a small shift


def grid_problem(image: nib.Nifti1Image, label: nib.Nifti1Image) -> Refused | None:
    """The first difference of a label, oriented like its image, of a tenth of a voxel or more."""
    affine, other = image.affine, label.affine
    if image.shape != label.shape:
        own, expected = describe_grid(label.shape, other), describe_grid(image.shape, affine)
        return Refused("label_size", f"label has {own}; image has {expected}")
    if same_grid(image.shape, affine, label.shape, other):
        return None
    spacing_mm, other_mm = np.array(spacing_of(affine)), np.array(spacing_of(other))
    tolerance_mm = spacing_mm.min() / 10
    steps = np.array(image.shape) - 1
    if (np.abs(other_mm - spacing_mm) * steps > tolerance_mm).any():
        own, expected = (
            " x ".join(f"{mm:.4g}" for mm in sizes) for sizes in (other_mm, spacing_mm)
        )
        return Refused("label_spacing", f"label has voxels of {own} mm, image of {expected} mm")
    axes, other_axes = affine[:3, :3] / spacing_mm, other[:3, :3] / other_mm
    if (np.linalg.norm(other_axes - axes, axis=0) * spacing_mm * steps > tolerance_mm).any():
        cosines = np.clip((axes * other_axes).sum(axis=0), -1, 1)
        degrees = np.degrees(np.arccos(cosines)).max()
        return Refused("label_direction", f"label's axes are {degrees:.2f} degrees off the image's")
    if flip := describe_flip(image.shape, affine, other):
        reason = "its affine has wrong signs, as where LPS is written as RAS; export it again"
        return Refused("label_flipped", f"label {flip}: {reason}")
    shift_mm = other[:3, 3] - affine[:3, 3] + (other - affine)[:3, :3] @ (steps / 2)
    shift_voxels = np.linalg.solve(affine[:3, :3], shift_mm)
    mm, voxels = (", ".join(f"{v + 0.0:.2f}" for v in shift) for shift in (shift_mm, shift_voxels))
    where = f"({mm}) mm to the right, front and head of the image, ({voxels}) voxels"
    return Refused("label_shifted", f"label lies {where}")


def describe_flip(shape: tuple[int, ...], affine: Affine, other: Affine) -> str:
    """Describe a grid of equal axes that is displaced by a wrong sign in its affine, else "".

    Oriented like the image, a label with a wrong sign in an axis begins where the image ends. With
    a wrong sign in its origin too (LPS written as RAS), its centre is the image's, negated.
    """
    size = np.array(shape)
    centre, other_centre = (nib.affines.apply_affine(a, (size - 1) / 2) for a in (affine, other))
    tolerance_mm = min(spacing_of(affine)) / 10
    voxels = np.abs(np.linalg.solve(affine[:3, :3], other_centre - centre))
    by_extent = (np.abs(voxels - (size - 1)) <= 1) & (size >= MIN_FLIPPED_VOXELS)
    displaced = np.abs(other_centre - centre) > tolerance_mm
    negated = np.abs(other_centre + centre) <= tolerance_mm
    if by_extent.any() and (voxels[~by_extent] <= 0.1).all():
        flipped = np.abs(affine[:3, np.flatnonzero(by_extent)]).argmax(axis=0)
        how = "begins where the image ends"
    elif displaced.any() and negated[displaced].all():
        flipped, how = np.flatnonzero(displaced), "is mirrored at the scanner's origin"
    else:
        return ""
    names = ("left-right", "back-front", "feet-head")
    return f"{how}, {' and '.join(names[axis] for axis in flipped)}"


def uncropped(label: nib.Nifti1Image, image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Pad a label that was cropped to its structure, as by 3D Slicer, to the grid of its image.

    Returned unchanged unless its voxels coincide with voxels of the image.
    """
    turned = oriented_like(label, image)
    shape = turned.shape
    first = np.rint(np.linalg.solve(image.affine, turned.affine)[:3, 3]).astype(int)
    if shape == image.shape or (first < 0).any() or (first + shape > image.shape).any():
        return label
    box = tuple(slice(start, start + size) for start, size in zip(first, shape, strict=True))
    if not same_grid(shape, turned.affine, shape, image.slicer[box].affine):
        return label
    codes: NDArray[np.uint8] = np.zeros(image.shape, np.uint8)
    codes[box] = np.asanyarray(turned.dataobj)
    return nib.Nifti1Image(codes, image.affine)
