"""Affines and voxel axes: RAS, millimetres, column-row-slice order.

The little geometry that nibabel leaves to its user.
"""

import nibabel as nib
import numpy as np
from nibabel import orientations
from numpy.typing import NDArray

Affine = NDArray[np.float64]


def spacing_of(affine: Affine) -> tuple[float, float, float]:
    """Voxel size along each array axis, mm.

    >>> spacing_of(np.diag([-0.8, -0.8, 2.5, 1.0]))
    (0.8, 0.8, 2.5)
    """
    x, y, z = nib.affines.voxel_sizes(affine)
    return float(x), float(y), float(z)


def voxel_ml(affine: Affine) -> float:
    """Volume of a voxel, ml.

    >>> voxel_ml(np.diag([1.0, 1.0, 2.0, 1.0]))
    0.002
    """
    return abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0


def diagonal_mm(shape: tuple[int, ...], affine: Affine) -> float:
    """Length of a scan's diagonal, mm: the largest distance two of its voxels can have.

    >>> diagonal_mm((5, 4, 1), np.diag([1.0, 1.0, 3.0, 1.0]))
    5.0
    """
    return float(np.linalg.norm(affine[:3, :3] @ (np.array(shape[:3]) - 1.0)))


def slices_from_feet(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Turn the array so that its last axis runs from feet to head; the voxels stay in place.

    The other two axes keep their order and direction, so an axial CT keeps its columns and rows.

    >>> turned = slices_from_feet(nib.Nifti1Image(np.zeros((2, 3, 4)), np.diag([-1, 1, -1, 1.0])))
    >>> nib.aff2axcodes(turned.affine), turned.shape
    (('L', 'A', 'S'), (2, 3, 4))
    """
    ornt = orientations.io_orientation(image.affine)
    to_last = int(np.flatnonzero(ornt[:, 0] == 2)[0])
    order = [axis for axis in range(3) if axis != to_last] + [to_last]
    turn = np.array([[order.index(axis), 1.0] for axis in range(3)])
    turn[to_last, 1] = ornt[to_last, 1]
    return image.as_reoriented(turn)


def oriented_like(image: nib.Nifti1Image, other: nib.Nifti1Image) -> nib.Nifti1Image:
    """Turn an array's axes to the order and direction of another's; the voxels stay in place.

    >>> label = nib.Nifti1Image(np.zeros((2, 3, 4)), np.eye(4))
    >>> image = nib.Nifti1Image(np.zeros((2, 3, 4)), np.diag([-1, -1, 1, 1.0]))
    >>> nib.aff2axcodes(oriented_like(label, image).affine)
    ('L', 'P', 'S')
    """
    ornts = (orientations.io_orientation(one.affine) for one in (image, other))
    return image.as_reoriented(orientations.ornt_transform(*ornts))


def with_right_angles(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The same voxels, their axes turned until they are at right angles, if they lean.

    Headers hold few digits, and intake takes half a degree. By polar decomposition, which turns
    them least.

    >>> leaning = np.array([[1, 0.01, 0, 0], [0, 1, 0, 0], [0, 0, 2, 5], [0, 0, 0, 1.0]])
    >>> image = with_right_angles(nib.Nifti1Image(np.zeros((2, 2, 2)), leaning))
    >>> bool(abs(image.affine[:, 0] @ image.affine[:, 1]) < 1e-12), image.affine[2, 3].item()
    (True, 5.0)
    """
    sizes = nib.affines.voxel_sizes(image.affine)
    u, _, v = np.linalg.svd(image.affine[:3, :3] / sizes)
    affine = image.affine.copy()
    affine[:3, :3] = u @ v * sizes
    return nib.Nifti1Image(np.asanyarray(image.dataobj), affine)


def same_grid(
    shape_a: tuple[int, ...], affine_a: Affine, shape_b: tuple[int, ...], affine_b: Affine
) -> bool:
    """Whether two grids have equal sizes and no corner further apart than a tenth of a voxel.

    >>> same_grid((2, 2, 2), np.eye(4), (2, 2, 2), np.diag([1, 1, 1.01, 1]))
    True
    >>> same_grid((2, 2, 2), np.eye(4), (2, 2, 2), np.diag([1, 1, 1.5, 1]))
    False
    """
    return (
        shape_a == shape_b
        and farthest_corner_mm(shape_a, affine_a, affine_b) <= min(spacing_of(affine_a)) / 10
    )


def farthest_corner_mm(shape: tuple[int, ...], affine_a: Affine, affine_b: Affine) -> float:
    """Largest distance between corresponding corners of two grids of one size, mm."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape[:3]) - 1.0)
    moved = nib.affines.apply_affine(affine_a, corners) - nib.affines.apply_affine(
        affine_b, corners
    )
    return float(np.linalg.norm(moved, axis=1).max())


def describe_grid(shape: tuple[int, ...], affine: Affine) -> str:
    """One phrase for messages: size, spacing and orientation of a grid.

    >>> describe_grid((64, 64, 20), np.diag([-0.8, -0.8, 2.5, 1.0]))
    '64 x 64 x 20 voxels of 0.800 x 0.800 x 2.500 mm, LPS'
    """
    spacing = " x ".join(f"{value:.3f}" for value in spacing_of(affine))
    axes = "".join(nib.aff2axcodes(affine))
    return f"{' x '.join(map(str, shape))} voxels of {spacing} mm, {axes}"
