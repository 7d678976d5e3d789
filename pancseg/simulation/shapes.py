"""Makes solid shapes: fields in mm that are negative inside and positive outside."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline
from scipy.spatial import cKDTree

from pancseg.simulation.lattice import FAR_MM, STEP_MM, Lattice
from pancseg.simulation.noise import Field
from pancseg.simulation.tissue import Tissue

REACH_MM = 7.0
BLOCK = 4


@dataclass(frozen=True)
class Layer:
    """One shape and the tissues it is made of, from the surface inwards.

    Attributes:
        field: On the nodes of the lattice, mm, negative inside.
        tissues: Depth below the surface, mm, from which each tissue begins.
    """

    field: Field
    tissues: tuple[tuple[float, Tissue], ...]


@dataclass(frozen=True)
class Curve:
    """The centre line of a tube: ``(n, 3)`` points and ``(n,)`` radii, mm, standard body."""

    points_mm: NDArray[np.float64]
    radius_mm: NDArray[np.float64]

    @property
    def length_mm(self) -> float:
        """Length along the line."""
        return float(np.linalg.norm(np.diff(self.points_mm, axis=0), axis=1).sum())


def curve_through(knots: ArrayLike, step_mm: float = 1.5) -> Curve:
    """Lay a smooth line through knots.

    Args:
        knots: ``(n, 4)``: x, y, z and radius at each knot, mm.
        step_mm: Distance between the points of the line.

    >>> round(curve_through([[0, 0, 0, 5], [30, 0, 0, 5], [60, 0, 0, 4]]).length_mm)
    60
    """
    values = np.asarray(knots, dtype=float)
    away = np.linalg.norm(np.diff(values[:, :3], axis=0), axis=1)
    along = np.concatenate([[0.0], np.cumsum(away)])
    dense = CubicSpline(along, values)(np.linspace(0, along[-1], int(along[-1] / step_mm) + 2))
    return Curve(dense[:, :3], np.maximum(dense[:, 3], 1.0))


def tube(
    lattice: Lattice, curve: Curve, flatten: ArrayLike = (1.0, 1.0, 1.0)
) -> tuple[Field, Field]:
    """Make a tube around a line.

    Args:
        lattice: Where to evaluate.
        curve: Centre line and radius.
        flatten: Per axis; above 1 the cross-section is thinner along that axis.

    Returns:
        The field, and how far each node near it lies in front of the line, mm.
    """
    field, rise = lattice.far(), lattice.far()
    reach = float(curve.radius_mm.max()) + REACH_MM
    part = lattice.part(curve.points_mm.min(0) - reach, curve.points_mm.max(0) + reach)
    nodes = np.stack([a[part] for a in (lattice.x, lattice.y, lattice.z)], axis=-1)
    if not nodes.size:
        return field, rise
    stretch = np.asarray(flatten, dtype=np.float32)
    tree = cKDTree(curve.points_mm * stretch)
    close = _near(tree, nodes * stretch, reach)
    points = nodes[close]
    distance, nearest = tree.query(points * stretch, distance_upper_bound=reach)
    found = np.isfinite(distance)
    nearest = np.where(found, nearest, 0)
    field[part][close] = np.where(found, distance - curve.radius_mm[nearest], FAR_MM)
    rise[part][close] = np.where(found, points[:, 1] - curve.points_mm[nearest, 1], FAR_MM)
    return field, rise


def _near(tree: cKDTree, nodes: NDArray[np.float32], reach_mm: float) -> NDArray[np.bool_]:
    """Rule out whole blocks of nodes ``(nz, ny, nx, 3)`` that are farther than the reach."""
    size = nodes.shape[:3]
    corners = nodes[::BLOCK, ::BLOCK, ::BLOCK]
    block_mm = 1.35 * (BLOCK - 1) * STEP_MM * np.sqrt(3)
    distance = tree.query(corners, distance_upper_bound=reach_mm + block_mm)[0]
    kept = np.isfinite(distance)
    for axis in range(3):
        kept = np.repeat(kept, BLOCK, axis=axis)
    near: NDArray[np.bool_] = kept[: size[0], : size[1], : size[2]]
    return near


def ellipsoid(lattice: Lattice, centre_mm: ArrayLike, radii_mm: ArrayLike) -> Field:
    """Make an ellipsoid along the axes of the standard body; the field is about the distance."""
    centre, radii = np.asarray(centre_mm, dtype=float), np.asarray(radii_mm, dtype=float)
    field = lattice.far()
    part = lattice.part(centre - radii - REACH_MM, centre + radii + REACH_MM)
    x, y, z = (
        (axis[part] - c) / np.float32(r)
        for axis, c, r in zip(
            (lattice.x, lattice.y, lattice.z), centre.astype(np.float32), radii, strict=True
        )
    )
    field[part] = (np.sqrt(x * x + y * y + z * z) - 1) * np.float32(radii.min())
    return field


def across(first: Field, second: Field) -> Field:
    """Distance from an axis, from the two coordinates across it."""
    return np.sqrt(first * first + second * second)


def joined(first: Field, second: Field, round_mm: float = 0.0) -> Field:
    """Unite two shapes; ``round_mm`` fills the corner between them."""
    found = np.minimum(first, second)
    if round_mm:
        mix = np.subtract(first, second)
        np.abs(mix, out=mix)
        np.subtract(np.float32(round_mm), mix, out=mix)
        np.maximum(mix, 0, out=mix)
        mix *= mix
        mix *= np.float32(0.25 / round_mm)
        found -= mix
    return found


def common(first: Field, second: Field, round_mm: float = 0.0) -> Field:
    """Keep what lies in both shapes; ``round_mm`` rounds the edge between them."""
    found = joined(-first, -second, round_mm)
    return np.negative(found, out=found)


def kept_off(field: Field, other: Field, gap_mm: float | Field) -> Field:
    """Push a shape back until it is ``gap_mm`` away from another one."""
    return np.maximum(field, gap_mm - other)
