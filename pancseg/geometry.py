"""Grids of arrays ``(columns, rows, slices)`` and affines, RAS in mm; boxes and components."""

from collections.abc import Sequence

import nibabel as nib
import numpy as np
from nibabel import orientations
from numpy.typing import NDArray
from scipy import ndimage

AIR_HU = -1024  # of voxels outside of a scan
Affine = NDArray[np.float64]
CONNECTIVITY_26 = np.ones((3, 3, 3), bool)  # by a face, an edge or a corner


def spacing_of(affine: Affine) -> tuple[float, float, float]:
    """Voxel size along each array axis, mm."""
    x, y, z = nib.affines.voxel_sizes(affine)
    return float(x), float(y), float(z)


def voxel_ml(affine: Affine) -> float:
    """Volume of a voxel, ml."""
    return abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0


def diagonal_mm(shape: tuple[int, ...], affine: Affine) -> float:
    """Distance between the centres of two opposite corner voxels, mm."""
    return float(np.linalg.norm(affine[:3, :3] @ (np.array(shape[:3]) - 1.0)))


def slices_from_feet(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Reorient the array so that its last axis runs from feet to head; voxels stay in place.

    The other two axes keep their order and direction: an axial CT keeps its columns and rows.
    """
    ornt = orientations.io_orientation(image.affine)
    to_last = int(np.flatnonzero(ornt[:, 0] == 2)[0])
    order = [axis for axis in range(3) if axis != to_last] + [to_last]
    turn = np.array([[order.index(axis), 1.0] for axis in range(3)])
    turn[to_last, 1] = ornt[to_last, 1]
    return image.as_reoriented(turn)


def oriented_like(image: nib.Nifti1Image, other: nib.Nifti1Image) -> nib.Nifti1Image:
    """Reorient the array to the axes of another image; voxels stay in place."""
    own, wanted = (orientations.io_orientation(i.affine) for i in (image, other))
    return image.as_reoriented(orientations.ornt_transform(own, wanted))


def with_right_angles(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The same voxels on the nearest affine with orthogonal axes, since headers hold few digits."""
    sizes = nib.affines.voxel_sizes(image.affine)
    u, _, v = np.linalg.svd(image.affine[:3, :3] / sizes)  # for the polar factor
    affine = image.affine.copy()
    affine[:3, :3] = u @ v * sizes
    return nib.Nifti1Image(np.asanyarray(image.dataobj), affine)


def same_grid(
    shape_a: tuple[int, ...], affine_a: Affine, shape_b: tuple[int, ...], affine_b: Affine
) -> bool:
    """Whether two grids have equal shapes and corners less than a tenth of a voxel apart."""
    if shape_a != shape_b:
        return False
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape_a[:3]) - 1.0)
    moved_a, moved_b = (nib.affines.apply_affine(a, corners) for a in (affine_a, affine_b))
    distance_mm = np.linalg.norm(moved_a - moved_b, axis=1).max()
    return bool(distance_mm <= min(spacing_of(affine_a)) / 10)


def describe_grid(shape: tuple[int, ...], affine: Affine) -> str:
    """Size and spacing of a grid, for messages, such as ``64 x 64 x 20 voxels of ... mm, LPS``."""
    sizes, spacing = (" x ".join(map(str, v)) for v in (shape, np.round(spacing_of(affine), 3)))
    return f"{sizes} voxels of {spacing} mm, {''.join(nib.aff2axcodes(affine))}"


def bounding_box(
    mask: NDArray[np.bool_], margin_mm: float = 0.0, spacing_mm: Sequence[float] = ()
) -> tuple[slice, ...]:
    """Slices of the bounding box of a mask, with a margin, clipped to the array.

    The whole array where the mask is empty. Much faster on a large scan than listing the voxels.
    """
    if not mask.any():
        return tuple(slice(0, size) for size in mask.shape)
    box = []
    for axis, size in enumerate(mask.shape):
        filled = np.flatnonzero(mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis)))
        margin = round(margin_mm / spacing_mm[axis]) if margin_mm else 0
        box.append(slice(max(0, int(filled[0]) - margin), min(size, int(filled[-1]) + margin + 1)))
    return tuple(box)


def second_component_voxels(mask: NDArray[np.bool_]) -> int:
    """Voxels of the second largest 26-connected component of a mask ``(X, Y, Z)``, else 0."""
    inside = mask[bounding_box(mask)]
    labels, count = ndimage.label(inside, CONNECTIVITY_26)
    # bincount copies to int64: of all voxels, that would be 2 GB for a long scan
    return int(np.sort(np.bincount(labels[inside])[1:])[-2]) if count > 1 else 0


def plan_cut(slices: int, depth: int, tail: str) -> tuple[list[int], int]:
    """First slices of the groups of a case, and the number of incomplete groups left out.

    The slices after the last whole group are left out (``drop``), become a group that ends with
    the last slice if the case has at least ``depth`` (``shift``), or are filled with air (``pad``).
    """
    starts = list(range(0, slices - depth + 1, depth))
    if slices % depth == 0:
        return starts, 0
    if tail == "pad":
        return [*starts, len(starts) * depth], 0
    if tail == "shift" and slices >= depth:
        return [*starts, slices - depth], 0
    return starts, 1


def cut_group(image: nib.Nifti1Image, first_slice: int, depth: int, fill: int) -> nib.Nifti1Image:
    """Cut a group, with its affine; slices past the end of the case hold ``fill``."""
    group = image.slicer[:, :, first_slice : first_slice + depth]
    missing = depth - group.shape[2]
    if missing <= 0:
        return group
    values = np.pad(group.dataobj, ((0, 0), (0, 0), (0, missing)), constant_values=fill)
    return nib.Nifti1Image(values, group.affine)
