"""Draws how large a patient is and how the patient lies in the scanner."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from pancseg.simulation.noise import Field, SmoothNoise

Axis = NDArray[np.float64]


@dataclass(frozen=True)
class Body:
    """One patient's size and pose.

    Shapes are written in a standard body: mm, x to the patient's right, y to the front,
    z to the head (RAS), origin in the middle of the abdomen at the height of the pancreas.

    Attributes:
        rotation: ``(3, 3)``, standard body to world.
        centre_mm: ``(3,)`` world place of the standard body's origin.
        scale: ``(3,)`` size relative to the standard body.
        warp: One smooth displacement for each standard axis.
        warp_mm: Standard deviation of the displacement.
        subcutaneous_mm: Thickness of the fat under the skin.
        belly: How far the front of the abdominal cavity bulges, 1 is standard.
        curvature: Bend of the spine, mm at 100 mm from the middle.
    """

    rotation: NDArray[np.float64]
    centre_mm: NDArray[np.float64]
    scale: NDArray[np.float64]
    warp: tuple[SmoothNoise, SmoothNoise, SmoothNoise]
    warp_mm: float
    subcutaneous_mm: float
    belly: float
    curvature: float

    def to_world(self, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Take ``(n, 3)`` standard points to the world, without the small warp."""
        world: NDArray[np.float64] = (points_mm * self.scale) @ self.rotation.T + self.centre_mm
        return world

    def to_standard(self, z_mm: Axis, y_mm: Axis, x_mm: Axis) -> tuple[Field, Field, Field]:
        """Give the standard x, y and z of each node of a world grid, ``(nz, ny, nx)`` each."""
        away = [axis - c for axis, c in zip((x_mm, y_mm, z_mm), self.centre_mm, strict=True)]
        found = []
        for axis in range(3):
            x, y, z = (
                (self.rotation[a, axis] / self.scale[axis] * away[a]).astype(np.float32)
                for a in range(3)
            )
            bend = np.float32(self.warp_mm) * self.warp[axis].on_axes(z_mm, y_mm, x_mm)
            bend += z[:, None, None] + y[:, None]
            bend += x
            found.append(bend)
        return found[0], found[1], found[2]


def draw_body(rng: np.random.Generator) -> Body:
    """Draw a patient between slight and heavy, lying supine and not quite straight."""
    size = rng.normal(1.0, 0.04)
    scale = size * np.clip(rng.normal(1.0, [0.045, 0.05, 0.04]), 0.9, 1.1)
    tilt_deg = np.clip(rng.normal(0, [2.0, 2.0, 4.0]), -8, 8)
    weight = rng.uniform(0, 1)
    return Body(
        rotation=Rotation.from_euler("xyz", tilt_deg, degrees=True).as_matrix(),
        centre_mm=np.round(rng.uniform([-25, 80, -1100], [25, 220, -300]), 2),
        scale=np.clip(scale, 0.86, 1.14),
        warp=(SmoothNoise(rng, 130), SmoothNoise(rng, 130), SmoothNoise(rng, 130)),
        warp_mm=float(rng.uniform(2.0, 3.5)),
        subcutaneous_mm=float(6 + 26 * weight**1.5 + rng.uniform(0, 6)),
        belly=float(0.86 + 0.3 * weight + rng.uniform(-0.06, 0.06)),
        curvature=float(rng.uniform(2, 9)),
    )
