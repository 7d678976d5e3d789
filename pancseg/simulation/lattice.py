"""Says where a scan's voxels lie, and where the coarse nodes lie that shapes are drawn on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pancseg.simulation.body import Body
from pancseg.simulation.noise import Field

Axis = NDArray[np.float64]
STEP_MM = 3.0
FAR_MM = 60.0
WARP_MARGIN_MM = 16.0


@dataclass(frozen=True)
class Grid:
    """The voxels of an axial scan; arrays over it are indexed (slice, row, column).

    Attributes:
        shape: Columns, rows, slices.
        spacing_mm: Between columns, rows, slices.
        corner_mm: Centre of the first voxel, RAS; slice 0 is the one nearest the feet.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    corner_mm: tuple[float, float, float]

    @property
    def affine(self) -> NDArray[np.float64]:
        """``(4, 4)`` matrix from (column, row, slice) to RAS mm.

        >>> Grid((4, 4, 4), (1.5, 1.5, 2.0), (90.0, 80.0, -70.0)).affine[0].tolist()
        [-1.5, 0.0, 0.0, 90.0]
        """
        affine = np.diag([-self.spacing_mm[0], -self.spacing_mm[1], self.spacing_mm[2], 1.0])
        affine[:3, 3] = self.corner_mm
        return affine

    @property
    def axes_mm(self) -> tuple[Axis, Axis, Axis]:
        """World coordinates of slices (z), rows (y) and columns (x)."""
        affine = self.affine
        x, y, z = (affine[a, 3] + affine[a, a] * np.arange(self.shape[a]) for a in range(3))
        return z, y, x


class Lattice:
    """Nodes every 3 mm over the part of the patient that a scan covers.

    Shapes are evaluated here and interpolated to the voxels. The nodes are anchored in the
    world, so that a patient's shapes are the same whatever the scan's grid.

    Attributes:
        axes_mm: World coordinates of the nodes: z, y, x, ascending.
        x, y, z: ``(nz, ny, nx)`` position of each node in the standard body, mm.
    """

    def __init__(self, body: Body, grid: Grid) -> None:
        """Lay the nodes over the overlap of grid and patient."""
        self.body = body
        reach = (np.inf, 190.0, 210.0)
        self.axes_mm: tuple[Axis, Axis, Axis] = tuple(  # type: ignore[assignment]
            _nodes(axis, centre, span)
            for axis, centre, span in zip(grid.axes_mm, body.centre_mm[::-1], reach, strict=True)
        )
        self.shape = tuple(len(axis) for axis in self.axes_mm)
        self.x, self.y, self.z = body.to_standard(*self.axes_mm)

    def part(self, low_mm: NDArray[np.float64], high_mm: NDArray[np.float64]) -> tuple[slice, ...]:
        """Find the nodes that may lie in a box (x, y, z) of the standard body."""
        corners = np.stack(np.meshgrid(*zip(low_mm, high_mm, strict=True)), axis=-1).reshape(-1, 3)
        world = self.body.to_world(corners)
        low, high = world.min(0) - WARP_MARGIN_MM, world.max(0) + WARP_MARGIN_MM
        return tuple(
            slice(int(np.searchsorted(axis, low[a])), int(np.searchsorted(axis, high[a])))
            for axis, a in zip(self.axes_mm, (2, 1, 0), strict=True)
        )

    def far(self) -> Field:
        """A field that holds nothing: everywhere far outside."""
        return np.full(self.shape, FAR_MM, np.float32)


def _nodes(axis: Axis, centre_mm: float, reach_mm: float) -> Axis:
    low = max(axis.min(), centre_mm - reach_mm)
    high = max(min(axis.max(), centre_mm + reach_mm), low)
    return np.arange(np.floor(low / STEP_MM) - 1, np.ceil(high / STEP_MM) + 2) * STEP_MM


def interpolation(nodes: Axis, targets: Axis) -> Field:
    """Weights that take values at even nodes to other places on the same axis, linearly.

    Returns:
        ``(len(targets), len(nodes))`` float32.

    >>> interpolation(np.array([0.0, 3.0, 6.0]), np.array([4.0]))[:, 1:].round(2)
    array([[0.67, 0.33]], dtype=float32)
    """
    place = (targets - nodes[0]) / (nodes[1] - nodes[0])
    offset = np.abs(place[:, None] - np.arange(len(nodes)))
    weights: Field = np.maximum(0, 1 - offset).astype(np.float32)
    return weights
