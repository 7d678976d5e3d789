"""Shapes stomach, duodenum, small bowel and colon with wall, fluid, gas and stool."""

import numpy as np
from numpy.typing import NDArray

from pancseg.simulation.lattice import Lattice
from pancseg.simulation.noise import Field, SmoothNoise
from pancseg.simulation.shapes import Layer, common, curve_through, kept_off, tube
from pancseg.simulation.tissue import Tissue
from pancseg.simulation.trunk import Trunk

STOMACH_MM = np.array(
    [  # x, y, z, radius: from below the diaphragm to the pylorus
        [-50, -24, 84, 27],
        [-64, -8, 72, 35],
        [-70, 24, 42, 33],
        [-58, 48, 14, 29],
        [-28, 60, -6, 24],
        [6, 57, -8, 19],
        [26, 47, 2, 13],
        [36, 38, 8, 9],
    ],
    dtype=float,
)
DUODENUM_MM = np.array(
    [  # bulb, descending part right of the head, horizontal part below it, to the left
        [36, 37, 9, 11],
        [50, 26, 6, 13],
        [58, 12, -10, 13],
        [58, 7, -32, 13],
        [48, 4, -52, 13],
        [24, 5, -62, 12],
        [-4, 4, -60, 10],
        [-26, 7, -48, 12],
        [-36, 14, -28, 12],
    ],
    dtype=float,
)
COLON_MM = np.array(
    [
        [92, 10, -180, 24],
        [100, -6, -130, 24],
        [100, -8, -80, 22],
        [92, 12, -42, 22],
        [62, 58, -46, 20],
        [10, 70, -62, 18],
        [-45, 68, -50, 18],
        [-88, 40, -8, 19],
        [-103, 8, 14, 18],
        [-108, -22, -30, 15],
        [-106, -26, -90, 14],
        [-96, -12, -150, 15],
        [-60, 10, -190, 16],
    ],
    dtype=float,
)
LOOP_MM = 27.0


def draw_stomach(
    lattice: Lattice, trunk: Trunk, pancreas: Field, rng: np.random.Generator
) -> tuple[Field, list[Layer]]:
    """Draw the stomach in front of the pancreas, from empty and thick-walled to full."""
    full = rng.uniform(0.62, 1.05)
    knots = STOMACH_MM + rng.normal(0, 1, STOMACH_MM.shape) * [4, 3, 5, 0]
    knots[:, 3] *= full
    knots[1:6, 1] += rng.normal(-9, 4)
    knots[-2:] = STOMACH_MM[-2:]
    field, rise = tube(lattice, curve_through(knots))
    folds = SmoothNoise(rng, 30).on_axes(*lattice.axes_mm)
    field = common(field + 1.5 * folds, common(trunk.cavity + 4, trunk.diaphragm + 2, 6), 6)
    field = kept_off(field, pancreas, _gap(lattice, rng, 0.8))
    wall_mm = 3.2 + 5 * (1.05 - full)
    rugae = 1.2 * SmoothNoise(rng, 13).on_axes(*lattice.axes_mm)
    inside = field + np.float32(wall_mm) + rugae
    gas = common(inside, np.float32(rng.uniform(1, 17) * full) - rise)
    return field, [
        Layer(field, ((0, Tissue.STOMACH_WALL),)),
        Layer(inside, ((0, Tissue.STOMACH_FLUID),)),
        Layer(gas, ((0, Tissue.STOMACH_GAS),)),
    ]


def draw_duodenum(
    lattice: Lattice, solid: Field, rng: np.random.Generator
) -> tuple[Field, list[Layer]]:
    """Draw the duodenum around the head of the pancreas, touching it here and there."""
    knots = DUODENUM_MM + rng.normal(0, 1, DUODENUM_MM.shape) * [2.5, 2, 3, 0]
    knots[:, 3] *= rng.uniform(0.8, 1.1) * rng.uniform(0.85, 1.15, len(knots))
    field, rise = tube(lattice, curve_through(knots))
    field = field + 0.8 * SmoothNoise(rng, 16).on_axes(*lattice.axes_mm)
    field = kept_off(field, solid, _gap(lattice, rng, 0.3))
    open_mm = 2.5 + 4 * np.maximum(SmoothNoise(rng, 50).on_axes(*lattice.axes_mm), 0)
    level = 5 + 7 * SmoothNoise(rng, 70).on_axes(*lattice.axes_mm)
    return field, [
        Layer(field, ((0, Tissue.DUODENUM_WALL),)),
        Layer(field + open_mm, ((0, Tissue.DUODENUM_FLUID),)),
        Layer(common(field + open_mm, level - rise), ((0, Tissue.BOWEL_GAS),)),
    ]


def draw_colon(
    lattice: Lattice, trunk: Trunk, solid: Field, rng: np.random.Generator
) -> tuple[Field, list[Layer]]:
    """Draw the colon as a frame around the small bowel, with haustra, stool and gas."""
    knots = COLON_MM + rng.normal(0, 1, COLON_MM.shape) * [5, 4, 8, 1.5]
    knots[4:7, 1] += 88 * (lattice.body.belly - 1)
    line = curve_through(knots)
    along = 1.5 * np.arange(len(line.radius_mm))
    line.radius_mm[:] *= 0.93 + 0.09 * np.sin(along / 5.5) + 0.06 * np.sin(along / 23 + 1)
    field, rise = tube(lattice, line)
    field = kept_off(common(field, trunk.cavity + 3, 4), solid, _gap(lattice, rng, 2.5))
    level = 2 + 14 * SmoothNoise(rng, 110).on_axes(*lattice.axes_mm)
    return field, [
        Layer(field, ((0, Tissue.BOWEL_WALL), (2.2, Tissue.COLON_STOOL))),
        Layer(common(field + 2.2, level - rise), ((0, Tissue.BOWEL_GAS),)),
    ]


def draw_small_bowel(
    lattice: Lattice, trunk: Trunk, solid: Field, rng: np.random.Generator
) -> list[Layer]:
    """Pack loops below and left of the pancreas; many are collapsed and look like it."""
    field, rise = tube(lattice, curve_through(_loops(rng)))
    field = field + 1.0 * SmoothNoise(rng, 15).on_axes(*lattice.axes_mm)
    field = kept_off(common(field, trunk.cavity + 3, 4), solid, _gap(lattice, rng, 0.5))
    collapse = np.maximum(SmoothNoise(rng, 55).on_axes(*lattice.axes_mm), 0)
    lumen = field + 2.4 + 4 * collapse
    level = 9 + 6 * SmoothNoise(rng, 70).on_axes(*lattice.axes_mm)
    return [
        Layer(field, ((0, Tissue.BOWEL_WALL),)),
        Layer(lumen, ((0, Tissue.BOWEL_FLUID),)),
        Layer(common(lumen, level - rise), ((0, Tissue.BOWEL_GAS),)),
    ]


def _loops(rng: np.random.Generator) -> NDArray[np.float64]:
    """Walk up and down through the abdomen, a column of loops after the other."""
    knots = []
    upward = True
    for y in np.arange(6, 72, LOOP_MM):
        for x in np.arange(-84, 86, LOOP_MM):
            top = (-20 if y < 20 else 22) if x < -25 and y < 45 else -60
            heights = np.arange(-185, top, LOOP_MM)
            for z in heights if upward else heights[::-1]:
                knots.append([x, y, z, rng.uniform(7, 14)])
            upward = not upward
    return np.array(knots) + rng.normal(0, 1, (len(knots), 4)) * [7, 6, 6, 0]


def _gap(lattice: Lattice, rng: np.random.Generator, mean_mm: float) -> Field:
    """Thickness of the fat between two organs: wide here, none there."""
    uneven = SmoothNoise(rng, 45).on_axes(*lattice.axes_mm)
    gap_mm: Field = np.clip(np.float32(mean_mm) + np.float32(1.6) * uneven, -1, 6)
    return gap_mm
