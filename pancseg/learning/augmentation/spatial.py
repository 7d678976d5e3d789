"""Moving a sample: turn, scale, shear and deformation in mm, in one resampling.

MONAI's ``RandAffined`` and ``Rand3DElasticd`` resample once each, work in voxels, so that unequal
spacing shears what they turn, and draw one item at a time.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from pancseg.learning.augmentation.draws import Change

PLANES = ((1, 2), (2, 0), (0, 1))  # that turn about axis 0, 1 and 2, right-handed


def moved(
    image: Tensor, label: Tensor, change: Change, spacing_mm: Sequence[float], size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Move one sample about the centre of its box and cut the patch from its middle.

    Args:
        image: ``(1, 1, *box)`` float, 0 is air; beyond the box there is air.
        label: ``(1, 1, *box)`` integer values below 2**24.
        change: What happens.
        spacing_mm: Voxel size.
        size: Voxels of the patch.

    Returns:
        Image by linear interpolation and label by nearest voxel, ``(1, 1, *size)``. Without a
        turn, scale, shear or deformation they are the box's middle, bit for bit.
    """
    if change.bends:
        grid = sampling_grid(change, spacing_mm, size, image.shape[2:], image.device)
        image = sampled(image, grid, "bilinear")
        label = sampled(label.to(image.dtype), grid, "nearest").to(label.dtype)
    else:
        image, label = middle(image, size), middle(label, size)
    axes = [2 + axis for axis, flip in enumerate(change.flips) if flip]
    return (image.flip(axes), label.flip(axes)) if axes else (image, label)


def middle(volume: Tensor, size: Sequence[int]) -> Tensor:
    """The middle of ``(..., H, W, D)``."""
    for axis, want in enumerate(size, start=-3):
        volume = volume.narrow(axis, (volume.shape[axis] - want) // 2, want)
    return volume


def matrix_of(change: Change) -> NDArray[np.float64]:
    """Where the anatomy goes, mm about the centre ``(3, 3)``: scaled, sheared, turned.

    >>> matrix_of(Change(angles=(0, 0, math.pi / 2))).round().astype(int).tolist()
    [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    """
    matrix = np.eye(3) * change.scale
    shear = np.eye(3)
    shear[0, 1], shear[0, 2], shear[1, 2] = change.shears
    matrix = shear @ matrix
    for (first, second), angle in zip(PLANES, change.angles, strict=True):
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = math.cos(angle)
        turn[second, first] = math.sin(angle)
        turn[first, second] = -math.sin(angle)
        matrix = turn @ matrix
    return matrix


def sampling_grid(
    change: Change,
    spacing_mm: Sequence[float],
    size: Sequence[int],
    box: Sequence[int],
    device: torch.device,
) -> Tensor:
    """Where in the box each voxel of the patch comes from, ``(*size, 3)`` for ``grid_sample``.

    A place ``p``, mm from the centre, comes from ``M^-1 (p + d(p))``. Both steps map tissue one to
    one, so that together they do. The sums are written out: a matrix product of all voxels may be
    rounded to TF32 on CUDA.
    """
    # without align_corners -1 and 1 are the outer faces of the box: 0 is its centre
    to_box = 2 / (np.asarray(spacing_mm) * np.asarray(box))
    matrix = to_box[:, None] * np.linalg.inv(matrix_of(change))
    places = []
    for axis, (count, step) in enumerate(zip(size, spacing_mm, strict=True)):
        shape = [count if other == axis else 1 for other in range(3)]
        places.append(centred_mm(count, step, device).view(shape))
    grid = torch.empty(*size, 3, dtype=torch.float32, device=device)
    for axis, row in enumerate(matrix.tolist()):
        first, second, third = (place * share for place, share in zip(places, row, strict=True))
        grid[..., 2 - axis] = first + second + third  # grid_sample counts axes from the last
    if change.elastic_mm > 0:
        field = displacement(change, matrix, spacing_mm, size, device)
        for axis in range(3):
            grid[..., 2 - axis] += field[axis]
    return grid


def centred_mm(count: int, step: float, device: torch.device) -> Tensor:
    """Centres of voxels along an axis, mm from its middle.

    >>> centred_mm(3, 2.0, torch.device("cpu")).tolist()
    [-2.0, 0.0, 2.0]
    """
    return (torch.arange(count, dtype=torch.float32, device=device) - (count - 1) / 2) * step


def displacement(
    change: Change,
    matrix: NDArray[np.float64],
    spacing_mm: Sequence[float],
    size: Sequence[int],
    device: torch.device,
) -> Tensor:
    """A smooth random field ``(3, *size)``: cubic B-splines of a coarse lattice.

    As in Rueckert and others 1999. The lattice is drawn on the CPU, so that every device gets
    the same.

    Args:
        change: What happens.
        matrix: ``(3, 3)``, makes of mm the unit of the result.
        spacing_mm: Voxel size.
        size: Voxels of the patch.
        device: Of the result.
    """
    weights = []
    for count, step in zip(size, spacing_mm, strict=True):
        places = centred_mm(count, step / change.elastic_spacing_mm, device)
        reach = math.ceil((count - 1) / 2 * step / change.elastic_spacing_mm) + 1
        knots = torch.arange(-reach, reach + 1, dtype=torch.float32, device=device)
        weights.append(cubic_bspline(places[:, None] - knots))
    generator = torch.Generator().manual_seed(change.elastic_seed)
    shape = (3, *(weight.shape[1] for weight in weights))
    lattice = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    turned = torch.tensordot(torch.from_numpy(matrix), lattice * change.elastic_mm, dims=1)
    field = turned.to(device, torch.float32)
    for weight in weights:
        field = torch.tensordot(field, weight, dims=([1], [1]))  # axis 1 goes, the voxels come last
    return field


def cubic_bspline(distance: Tensor) -> Tensor:
    """The uniform cubic B-spline; those of all integers sum to 1 everywhere.

    >>> cubic_bspline(torch.tensor([0.0, 1.0, -1.0, 2.0])).mul(6).tolist()
    [4.0, 1.0, 1.0, 0.0]
    """
    near, far = 1 - distance.abs(), 2 - distance.abs()
    return (far.clamp(min=0) ** 3 - 4 * near.clamp(min=0) ** 3) / 6


def sampled(volume: Tensor, grid: Tensor, mode: str) -> Tensor:
    """Values of ``(1, 1, *box)`` at the places of a grid ``(*size, 3)``, 0 beyond the box."""
    # on a CPU grid_sample shares out the batch alone: there the batch is slabs of one patch
    slabs = math.gcd(len(grid), torch.get_num_threads()) if grid.device.type == "cpu" else 1
    parts = grid.view(slabs, len(grid) // slabs, *grid.shape[1:])
    whole = volume.expand(slabs, *volume.shape[1:])
    values = F.grid_sample(whole, parts, mode=mode, padding_mode="zeros", align_corners=False)
    return values.view(1, 1, *grid.shape[:3])
