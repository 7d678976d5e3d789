"""Linear interpolation between grids whose axes are parallel, one axis after the other.

Reorienting, resampling and resizing leave the directions of a scan's axes as they are, so that
each axis can be interpolated by itself: many times faster than MONAI's general resampling, which
also keeps three coordinates a voxel, and with values that do not depend on the block they are
computed in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pancseg.geometry import Affine

PARALLEL = 1e-3  # voxels that an axis may lean over its whole length


@dataclass(frozen=True)
class Along:
    """Where the voxels along an axis of a grid lie on the parallel axis of another one.

    Attributes:
        axis: Of the other grid.
        size: Its length, voxels.
        at: ``(n,)`` positions on it, float64, voxels.
    """

    axis: int
    size: int
    at: Tensor

    def part(self, which: slice) -> "Along":
        """A part of the voxels."""
        return replace(self, at=self.at[which])

    @property
    def inside(self) -> Tensor:
        """How much of each voxel's weights falls on the other grid, 0 to 1."""
        beyond = torch.maximum(-self.at, self.at - (self.size - 1))
        return (1 - beyond.clamp(min=0)).clamp(min=0).float()


def lie_on(
    affine: Affine, shape: Sequence[int], other: Affine, other_shape: Sequence[int]
) -> tuple[Along, Along, Along]:
    """Where a grid lies on another one, axis by axis.

    Args:
        affine: Of the grid, RAS, mm.
        shape: Its size.
        other: Affine of the other grid.
        other_shape: Its size.

    Raises:
        ValueError: If their axes are not parallel.

    >>> x, y, z = lie_on(np.diag([1, 2, 2, 1.0]), (3, 1, 1), np.diag([2, 2, 2, 1.0]), (2, 1, 1))
    >>> x.axis, x.at.tolist()
    (0, [0.0, 0.5, 1.0])
    """
    to_other = np.linalg.inv(other) @ affine
    steps = to_other[:3, :3]
    axes = np.abs(steps).argmax(axis=0)
    straight = np.zeros((3, 3))
    straight[axes, range(3)] = steps[axes, range(3)]
    lean = np.abs(steps - straight) * np.array(shape[:3])
    if sorted(axes) != [0, 1, 2] or lean.max() > PARALLEL:
        raise ValueError("the axes of the two grids are not parallel")
    found = []
    for i, axis in enumerate(axes):
        at = to_other[axis, 3] + steps[axis, i] * np.arange(shape[i], dtype=np.float64)
        found.append(Along(int(axis), int(other_shape[axis]), torch.from_numpy(at)))
    return found[0], found[1], found[2]


def interpolate(values: Tensor, places: Sequence[Along]) -> Tensor:
    """Values at the places of another grid, float32; beyond the border, the border's.

    Args:
        values: ``(X, Y, Z)`` of any type.
        places: One for each axis of the result.

    Returns:
        A tensor whose first axis is the fastest in memory, as in NIfTI.

    >>> middle = Along(0, 2, torch.tensor([0.5])), Along(1, 1, torch.tensor([0.0]))
    >>> interpolate(torch.tensor([[[2]], [[4]]]), (*middle, Along(2, 1, torch.tensor([9.0]))))
    tensor([[[3.]]])
    """
    found = values.permute(*(place.axis for place in places)).permute(2, 1, 0)
    for dim, place in enumerate(reversed(places)):
        at = place.at.clamp(0, place.size - 1)
        low = at.floor().long()
        share = (at - low).float()
        left = found.index_select(dim, low).float()
        if share.any():
            right = found.index_select(dim, (low + 1).clamp(max=place.size - 1)).float()
            left.lerp_(right, share.reshape([-1 if i == dim else 1 for i in range(3)]))
        found = left
    return found.permute(2, 1, 0)


def reached(places: Sequence[Along], box: Sequence[slice]) -> tuple[slice, ...]:
    """The voxels of a grid whose interpolated values depend on a box of the other one.

    Args:
        places: Where the grid lies on the other one.
        box: Of the other grid.
    """
    found = []
    for place in places:
        part = box[place.axis]
        inside = (place.at > part.start - 1) & (place.at < part.stop)
        if part.start == 0:
            inside |= place.at <= 0
        if part.stop == place.size:
            inside |= place.at >= place.size - 1
        which = inside.nonzero().ravel().tolist()
        found.append(slice(which[0], which[-1] + 1) if which else slice(0, 0))
    return tuple(found)
