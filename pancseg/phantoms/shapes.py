"""Solid shapes: fields in mm at nodes in space, negative inside."""

from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

Axis = NDArray[np.float64]
Field = NDArray[np.floating[Any]]  # float32, which numpy's types lose at Python numbers
Rng = np.random.Generator
Size = tuple[int, int, int]  # columns, rows, slices
Spacing = tuple[float, float, float]  # between columns, rows, slices, mm
STEP_MM = 3.0  # between nodes
FAR_MM = 60.0  # value of a tube's field farther than REACH_MM from its surface
REACH_MM = 7.0
BLOCK = 5  # nodes along an edge of the blocks that ``tube`` tests first
BLOCK_MM = 1.35 * (BLOCK // 2) * STEP_MM * np.sqrt(3)  # from the centre to a corner, at most


class SmoothNoise:
    """Sum of plane waves in random directions: mean 0, variance 1, defined everywhere."""

    def __init__(self, rng: Rng, wavelength_mm: float, waves: int = 12) -> None:
        direction = rng.standard_normal((waves, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        self.wave_xyz = direction * (2 * np.pi / wavelength_mm * rng.uniform(0.7, 1.4, (waves, 1)))
        self.phase = rng.uniform(0, 2 * np.pi, waves)

    def on_axes(self, z_mm: Axis, y_mm: Axis, x_mm: Axis) -> Field:
        """Evaluate on the grid that three axes span; ``(slices, rows, columns)``.

        ``exp(i(x + y + z)) = exp(ix) exp(iy) exp(iz)`` separates the axes, so that a matrix
        product gives the volume.
        """
        x, y, z = self.wave_xyz.T
        zy = np.exp(1j * (np.outer(z_mm, z) + self.phase))[:, None] * np.exp(1j * np.outer(y_mm, y))
        left = np.concatenate([zy.real, -zy.imag], axis=-1) * np.sqrt(2 / len(x))
        right = np.exp(1j * np.outer(x_mm, x))
        right = np.concatenate([right.real, right.imag], axis=-1)
        return left.astype(np.float32) @ right.T.astype(np.float32)


@dataclass(frozen=True)
class Grid:
    """Voxels of an axial scan; arrays are ``(slices, rows, columns)``, slice 0 nearest the feet."""

    shape: Size
    spacing_mm: Spacing
    corner_mm: tuple[float, float, float]  # centre of the first voxel, RAS

    @property
    def affine(self) -> NDArray[np.float64]:
        """``(4, 4)`` matrix from (column, row, slice) to RAS mm."""
        affine = np.diag([-self.spacing_mm[0], -self.spacing_mm[1], self.spacing_mm[2], 1.0])
        affine[:3, 3] = self.corner_mm
        return affine

    @property
    def axes_mm(self) -> tuple[Axis, Axis, Axis]:
        """World coordinates of slices (z), rows (y) and columns (x)."""
        a = self.affine
        x, y, z = (a[i, 3] + a[i, i] * np.arange(self.shape[i]) for i in range(3))
        return z, y, x


class Body:
    """Size and pose of a patient.

    Shapes are defined in the standard body: mm, RAS, with the origin in the middle of the abdomen
    at the height of the pancreas.
    """

    def __init__(self, rng: Rng) -> None:
        size = rng.normal(1.0, 0.04)
        shape = np.clip(rng.normal(1.0, [0.045, 0.05, 0.04]), 0.9, 1.1)
        self.scale = np.clip(size * shape, 0.86, 1.14)  # (3,)
        tilt_deg = np.clip(rng.normal(0, [2.0, 2.0, 4.0]), -8, 8)
        self.rotation = Rotation.from_euler("xyz", tilt_deg, degrees=True).as_matrix()
        weight = rng.uniform(0, 1)
        self.centre_mm = np.round(rng.uniform([-25, 80, -1100], [25, 220, -300]), 2)
        self.warp = [SmoothNoise(rng, 130) for _ in range(3)]  # along the standard axes
        self.warp_mm = float(rng.uniform(2.0, 3.5))  # standard deviation of the warp
        self.subcutaneous_mm = float(6 + 26 * weight**1.5 + rng.uniform(0, 6))  # fat
        self.belly = float(0.86 + 0.3 * weight + rng.uniform(-0.06, 0.06))  # relative depth
        self.curvature = float(rng.uniform(2, 9))  # of the spine, mm at 100 mm from the middle

    def to_world(self, point_mm: ArrayLike) -> NDArray[np.float64]:
        """World coordinates of a point of the standard body."""
        world = self.centre_mm
        for _ in range(10):  # the warp is weak: each time the error falls to less than half
            warp = [w.on_axes(*world[::-1, None]).item() for w in self.warp]
            standard = np.asarray(point_mm) - self.warp_mm * np.array(warp)
            world = self.centre_mm + self.rotation @ (self.scale * standard)
        return world


class Curve(NamedTuple):
    """Centre line of a tube in the standard body, mm: ``(n, 3)`` points, ``(n,)`` radii."""

    points_mm: NDArray[np.float64]
    radius_mm: NDArray[np.float64]

    @property
    def length_mm(self) -> float:
        """Length along the line."""
        return float(np.linalg.norm(np.diff(self.points_mm, axis=0), axis=1).sum())


def curve_through(knots: ArrayLike) -> Curve:
    """Cubic spline with a point every 1.5 mm through ``(n, 4)`` knots: x, y, z, radius, mm."""
    values = np.asarray(knots, dtype=float)
    steps = np.linalg.norm(np.diff(values[:, :3], axis=0), axis=1)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    dense = CubicSpline(along, values)(np.linspace(0, along[-1], int(along[-1] / 1.5) + 2))
    return Curve(dense[:, :3], np.maximum(dense[:, 3], 1.0))


class Layer(NamedTuple):
    """A shape of one tissue, or of a shell of ``shell_mm`` around a core of another tissue."""

    field: Field
    tissue: int
    shell_mm: float = 0.0
    core: int | None = None


class Lattice:
    """Nodes every 3 mm over the part of the patient that a scan covers.

    Shapes are evaluated at the nodes and interpolated to the voxels. Nodes are multiples of 3 mm
    in the world: the shapes of a patient do not depend on the grid of the scan.
    """

    def __init__(self, body: Body, grid: Grid) -> None:
        self.body, self.grid = body, grid
        axes, centre_mm, reach_mm = [], body.centre_mm[::-1], (np.inf, 190.0, 210.0)
        for axis, centre, reach in zip(grid.axes_mm, centre_mm, reach_mm, strict=True):
            low = max(axis.min(), centre - reach)
            high = max(min(axis.max(), centre + reach), low)
            axes.append(np.arange(low // STEP_MM - 1, np.ceil(high / STEP_MM) + 2) * STEP_MM)
        self.axes_mm = axes[0], axes[1], axes[2]  # world coordinates: z, y, x, ascending
        z, y, x = np.ix_(*axes)
        away = x - body.centre_mm[0], y - body.centre_mm[1], z - body.centre_mm[2]
        self.xyz = np.zeros((3, *map(len, axes)), np.float32)  # standard coordinates of the nodes
        turns = (body.rotation / body.scale).T
        for nodes, turn, warp in zip(self.xyz, turns, body.warp, strict=True):
            x, y, z = ((t * a).astype(np.float32) for t, a in zip(turn, away, strict=True))
            nodes += body.warp_mm * warp.on_axes(*self.axes_mm)
            nodes += z + y
            nodes += x
        self.x, self.y, self.z = self.xyz
        middle = [np.minimum(np.arange(BLOCK // 2, len(a) + 2, BLOCK), len(a) - 1) for a in axes]
        self.block_centres = np.moveaxis(self.xyz[np.ix_(np.arange(3), *middle)], 0, -1)

    def noise(self, rng: Rng, wavelength_mm: float, waves: int = 12) -> Field:
        """Draw smooth noise and evaluate it at the nodes."""
        return SmoothNoise(rng, wavelength_mm, waves).on_axes(*self.axes_mm)

    def tube(self, curve: Curve, flatten: ArrayLike = (1, 1, 1)) -> tuple[Field, Field]:
        """Tube around a curve, thinner along axes whose ``flatten`` is above 1.

        Return the field, and how far nodes near the tube lie in front of the centre line, mm.
        """
        field, rise = np.full((2, *self.x.shape), FAR_MM, np.float32)
        reach = float(curve.radius_mm.max()) + REACH_MM
        stretch = np.asarray(flatten, dtype=np.float32)
        tree = cKDTree(curve.points_mm * stretch)
        centres = self.block_centres * stretch
        near = tree.query(centres, distance_upper_bound=reach + BLOCK_MM)[0] < np.inf
        close = near.repeat(BLOCK, 0).repeat(BLOCK, 1).repeat(BLOCK, 2)
        close = close[tuple(map(slice, field.shape))]
        points = self.xyz[:, close].T
        distance, nearest = tree.query(points * stretch, distance_upper_bound=reach)
        is_near = np.isfinite(distance)
        nearest[~is_near] = 0
        field[close] = np.where(is_near, distance - curve.radius_mm[nearest], FAR_MM)
        rise[close] = np.where(is_near, points[:, 1] - curve.points_mm[nearest, 1], FAR_MM)
        return field, rise

    def ellipsoid(self, centre_mm: ArrayLike, radii_mm: ArrayLike) -> Field:
        """Ellipsoid along the axes of the standard body; the field approximates the distance."""
        centre, radii = np.asarray(centre_mm, np.float32), np.asarray(radii_mm, np.float32)
        axes = zip(self.xyz, centre, radii, strict=True)
        squares = sum(((axis - c) / r) ** 2 for axis, c, r in axes)
        return (np.sqrt(squares) - 1) * radii.min()

    def paint(self, layers: list[Layer]) -> NDArray[np.uint8]:
        """Tissue of each voxel, ``(slices, rows, columns)``; later layers cover earlier ones."""
        volume = np.zeros(self.grid.shape[::-1], np.uint8)  # air
        for layer in layers:
            inside = layer.field < 0
            if not inside.any():
                continue
            nodes, voxels, weights = [], [], []
            for axis in range(3):
                node_mm, voxel_mm = self.axes_mm[axis], self.grid.axes_mm[axis]
                hit = np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis})))
                nodes.append(slice(max(hit[0] - 1, 0), hit[-1] + 2))
                near_mm = node_mm[nodes[-1]]
                covered = (voxel_mm >= near_mm[0]) & (voxel_mm <= near_mm[-1])
                voxels.append(slice(first := covered.argmax(), first + covered.sum()))
                distance = np.abs(voxel_mm[voxels[-1], None] - near_mm) / STEP_MM
                weights.append(np.maximum(1 - distance, 0).astype(np.float32))
            along_z = np.tensordot(weights[0], layer.field[tuple(nodes)], 1)
            field = np.matmul(weights[1], along_z) @ weights[2].T
            target = volume[tuple(voxels)]
            target[field < 0] = layer.tissue
            if layer.core is not None:
                target[field < -layer.shell_mm] = layer.core
        return volume


def joined(first: Field, second: Field, round_mm: float) -> Field:
    """Union of two shapes; the corner between them is filled."""
    return np.minimum(first, second) - _corner(first, second, round_mm)


def common(first: Field, second: Field, round_mm: float) -> Field:
    """Intersection of two shapes; the edge between them is rounded."""
    return np.maximum(first, second) + _corner(first, second, round_mm)


def _corner(first: Field, second: Field, round_mm: float) -> Field:
    """Parabola where two fields differ by less than ``round_mm``, else 0."""
    corner = np.minimum(np.abs(first - second), round_mm)
    corner -= round_mm
    corner *= corner
    return corner * (0.25 / round_mm)


def outline(layers: list[Layer]) -> Field:
    """Union of the shapes."""
    return reduce(np.minimum, (layer.field for layer in layers))


def across(first: Field, second: Field) -> Field:
    """Distance from an axis, from the two coordinates perpendicular to it."""
    return np.sqrt(first * first + second * second)
