"""Shapes the pancreas and the vessels that run behind and through it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pancseg.simulation.lattice import Lattice
from pancseg.simulation.noise import Field, SmoothNoise
from pancseg.simulation.shapes import Curve, Layer, curve_through, joined, tube
from pancseg.simulation.tissue import Tissue

KNOTS_MM = np.array(
    [  # x, y, z, radius: from the head in the curve of the duodenum to the tip of the tail
        [35.0, 10.0, -30.0, 12.5],
        [31.0, 14.0, -17.0, 17.0],
        [20.0, 20.0, -5.0, 13.0],
        [6.0, 27.0, 3.0, 9.5],
        [-18.0, 26.0, 11.0, 11.0],
        [-44.0, 11.0, 18.0, 11.5],
        [-66.0, -7.0, 27.0, 10.5],
        [-84.0, -19.0, 36.0, 7.0],
    ]
)
SPLENIC_HILUM_MM = (-90.0, -28.0, 38.0)


@dataclass(frozen=True)
class PancreasPlan:
    """Where one patient's pancreas runs, before it is given a surface.

    Attributes:
        axis: From head to tail.
        uncinate: The hook of the head behind the mesenteric vein.
        lobule_mm: Depth of the lobules.
    """

    axis: Curve
    uncinate: Curve
    lobule_mm: float


def plan_pancreas(rng: np.random.Generator) -> PancreasPlan:
    """Draw course, length and thickness; the tail varies most, as it does in patients."""
    knots = KNOTS_MM.copy()
    freedom = np.linspace(0.6, 1.6, len(knots))[:, None]
    knots[:, :3] += rng.normal(0, [2.0, 2.0, 2.5], (len(knots), 3)) * freedom
    climb = rng.normal(0, 9)
    knots[:, 2] += climb * np.clip(-knots[:, 0] / 84, 0, 1) ** 1.2
    knots[:, 1] += rng.normal(0, 3)
    knots[:, 3] *= rng.uniform(0.92, 1.1) * rng.normal(1, 0.05, len(knots))
    head = knots[1]
    uncinate = [
        [head[0] - 3, head[1] - 4, head[2] - 10, 10 * rng.uniform(0.85, 1.15)],
        [head[0] - 14, head[1] - 11, head[2] - 15, 8.5],
        [head[0] - 24, head[1] - 15, head[2] - 15, 4.5],
    ]
    return PancreasPlan(curve_through(knots), curve_through(uncinate), float(rng.uniform(1.2, 2.2)))


def draw_pancreas(lattice: Lattice, plan: PancreasPlan, rng: np.random.Generator) -> Field:
    """Give the planned pancreas its lobulated surface; it is flatter from front to back."""
    trunk = tube(lattice, plan.axis, (1.0, 1.2, 0.95))[0]
    field = joined(trunk, tube(lattice, plan.uncinate, (0.9, 1.1, 0.9))[0], 6)
    coarse = SmoothNoise(rng, 26).on_axes(*lattice.axes_mm)
    fine = SmoothNoise(rng, 12, waves=24).on_axes(*lattice.axes_mm)
    lobules = np.clip(0.6 * coarse + 0.8 * fine, -1.3, 2.5)
    return field + np.float32(plan.lobule_mm) * lobules


def draw_vessels(
    lattice: Lattice, plan: PancreasPlan, rng: np.random.Generator
) -> tuple[Field, list[Layer]]:
    """Draw aorta, vena cava, the portal system and the arteries near the pancreas.

    Returns:
        The field of all of them, and their layers.
    """
    wide = rng.uniform(0.88, 1.15)
    veins = _portal_system(plan, wide, rng)
    splenic = tube(lattice, veins[0])[0]
    portal = joined(tube(lattice, veins[1])[0], tube(lattice, veins[2])[0], 2)
    aorta = tube(lattice, curve_through(_large_vessel(-9, -16, 10 * wide, rng)))[0]
    cava = tube(lattice, curve_through(_large_vessel(23, -18, 12.5 * wide, rng)), (1, 1.3, 1))[0]
    artery = lattice.far()
    for knots in _arteries(plan, rng):
        artery = joined(artery, tube(lattice, curve_through(knots))[0], 2)
    layers = [
        Layer(artery, ((0, Tissue.ARTERY),)),
        Layer(aorta, ((0, Tissue.AORTA),)),
        Layer(cava, ((0, Tissue.VENA_CAVA),)),
        Layer(portal, ((0, Tissue.PORTAL_VEIN),)),
        Layer(splenic, ((0, Tissue.SPLENIC_VEIN),)),
    ]
    every = layers[0].field
    for layer in layers[1:]:
        every = joined(every, layer.field)
    return every, layers


def _behind(plan: PancreasPlan, share: float, depth: float) -> NDArray[np.float64]:
    """A point behind the axis, ``depth`` radii deep, at a share of the way to the tail."""
    place = int(share * (len(plan.axis.points_mm) - 1))
    radius = plan.axis.radius_mm[place]
    back_mm = np.array([0.0, depth * radius / 1.2 + 1.5, 0.0])
    point: NDArray[np.float64] = plan.axis.points_mm[place] - back_mm
    return point


def _portal_system(plan: PancreasPlan, wide: float, rng: np.random.Generator) -> list[Curve]:
    """Splenic vein along the back of the pancreas, mesenteric and portal vein."""
    meet = _behind(plan, 0.34, 1.25) + [3, 0, 0]
    splenic = [[*meet, 5.2 * wide]]
    for share in (0.45, 0.56, 0.67, 0.78, 0.9):
        splenic.append([*(_behind(plan, share, 1.05) + rng.normal(0, 1, 3)), 4.2 * wide])
    splenic.append([*SPLENIC_HILUM_MM, 3.4 * wide])
    mesenteric = [
        [meet[0] - 4, meet[1] + 8, -150, 4.5 * wide],
        [meet[0] - 1, meet[1] + 2, -70, 5.2 * wide],
        [*(meet + [0, -1, -25]), 5.5 * wide],
        [*meet, 6.2 * wide],
    ]
    portal = [[*meet, 6.2 * wide], [*(meet + [12, -3, 18]), 6.5 * wide], [34, 6, 44, 6.0 * wide]]
    return [curve_through(splenic), curve_through(mesenteric), curve_through(portal)]


def _large_vessel(x: float, y: float, radius: float, rng: np.random.Generator) -> list[list[float]]:
    heights = np.linspace(-260, 300, 8)
    sway = rng.normal(0, 2.0, 2)
    return [
        [
            x + sway[0] * np.sin(h / 70),
            y
            - 9 * (h / 130) ** 2 * (abs(h) < 131)
            - 9 * (abs(h) >= 131)
            + sway[1] * np.cos(h / 60),
            h,
            radius * (1 + 0.0006 * h),
        ]
        for h in heights
    ]


def _arteries(plan: PancreasPlan, rng: np.random.Generator) -> list[list[list[float]]]:
    """Mesenteric artery, coeliac trunk with the winding splenic artery, hepatic artery."""
    root = np.array([-9.0, -8.0, 26.0])
    neck = _behind(plan, 0.36, 2.1)
    mesenteric = [
        [-9, -8, 8, 4],
        [neck[0] - 12, 2, -8, 3.8],
        [-4, 8, -40, 3.6],
        [-2, 16, -90, 3.2],
        [2, 22, -150, 2.8],
    ]
    splenic = [[*root, 4.0], [-13, 6, 30, 3.4]]
    for share in np.linspace(0.52, 0.92, 5):
        top = plan.axis.points_mm[int(share * (len(plan.axis.points_mm) - 1))] + [0, -5, 11]
        splenic.append([*(top + rng.normal(0, 3, 3)), 2.6])
    hepatic = [[*root, 3.6], [-6, 8, 31, 3.2], [14, 14, 27, 2.7], [30, 12, 42, 2.5]]
    return [mesenteric, splenic, hepatic]
