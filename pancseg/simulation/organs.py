"""Shapes the solid organs: liver, gallbladder, spleen, kidneys and heart."""

import numpy as np

from pancseg.simulation.lattice import Lattice
from pancseg.simulation.noise import Field, SmoothNoise
from pancseg.simulation.shapes import (
    Layer,
    across,
    common,
    curve_through,
    ellipsoid,
    joined,
    kept_off,
    tube,
)
from pancseg.simulation.tissue import Tissue
from pancseg.simulation.trunk import Trunk


def draw_kidneys(lattice: Lattice, rng: np.random.Generator) -> tuple[Field, list[Layer]]:
    """Draw two beans with cortex, medulla and a sinus of fat and urine.

    Returns:
        The field of both kidneys, and their layers.
    """
    field, sinus, whole = lattice.far(), lattice.far(), lattice.far()
    size = rng.uniform(0.98, 1.14)
    for side, height in ((1, -22), (-1, -4)):
        shift = rng.normal(0, [3, 3, 7])
        centre = np.array([62.0 * side, -42.0, height]) + shift
        top = np.array([-9.0 * side, -5.0, 34.0])
        line = curve_through(
            [
                [*(centre + top), 20 * size],
                [*(centre + [5 * side, 1, 8]), 26 * size],
                [*(centre + [7 * side, 3, -10]), 26 * size],
                [*(centre - top + [2 * side, 0, 2]), 20 * size],
            ]
        )
        bean = tube(lattice, line, (1.0, 1.12, 1.0))[0]
        hilum = ellipsoid(lattice, centre + [-25 * side, 7, 0], [16, 9, 16])
        field = joined(field, kept_off(bean, hilum, 0))
        whole = joined(whole, bean)
        sinus = joined(sinus, ellipsoid(lattice, centre + [-6 * side, 4, 0], [12, 9, 22]))
    field = field + 0.8 * SmoothNoise(rng, 22).on_axes(*lattice.axes_mm)
    sinus = common(sinus + 2 * SmoothNoise(rng, 14).on_axes(*lattice.axes_mm), whole + 7)
    return field, [
        Layer(field, ((0, Tissue.KIDNEY_CORTEX), (6.5, Tissue.KIDNEY_MEDULLA))),
        Layer(sinus, ((0, Tissue.FAT), (3, Tissue.KIDNEY_SINUS))),
    ]


def draw_liver(
    lattice: Lattice, trunk: Trunk, neighbours: list[Field], rng: np.random.Generator
) -> tuple[Field, list[Layer]]:
    """Draw the liver: it fills what wall, diaphragm and its neighbours leave on the right.

    Returns:
        The field of the liver, and the layers of liver, its veins and the gallbladder.
    """
    x, y, z = lattice.x, lattice.y, lattice.z
    low = rng.normal(24, 7)
    slant = rng.uniform(0.54, 0.7)
    left = np.clip((70 - x) / 70, 0, 1.2)
    underside = np.float32(low) - np.float32(slant) * x - np.float32(0.2) * y * left
    uneven = SmoothNoise(rng, 60).on_axes(*lattice.axes_mm)
    field = common(trunk.cavity + 3, trunk.diaphragm + 1.5, 12)
    field = common(field, (underside - z + 4 * uneven) * np.float32(0.8), 12)
    field = common(field, np.float32(-50 + rng.normal(0, 10)) - x - 0.2 * y, 14)
    spine = across(x / 1.1, y - trunk.spine_y + 5) - 36
    field = kept_off(field.astype(np.float32), spine.astype(np.float32), 0)
    for other in neighbours:
        field = kept_off(field, other, 2.0)
    bile = ellipsoid(
        lattice, [56, 48, -6] + rng.normal(0, 4, 3), rng.uniform(0.7, 1.2) * np.array([16, 16, 27])
    )
    bile = kept_off(bile, neighbours[0], 1.0)
    return joined(field, bile), [
        Layer(field, ((0, Tissue.LIVER),)),
        Layer(common(_liver_veins(lattice, rng), field + 3), ((0, Tissue.LIVER_VEIN),)),
        Layer(bile, ((0, Tissue.LIVER), (1.5, Tissue.GALLBLADDER))),
    ]


def _liver_veins(lattice: Lattice, rng: np.random.Generator) -> Field:
    field = lattice.far()
    for end in ([100, 20, 20], [45, 60, 30], [85, -40, 35], [0, 50, 50]):
        for start, radius in (([26, -10, 92], 5.0), ([34, 6, 42], 5.5)):
            last = np.array(end) + rng.normal(0, 10, 3)
            middle = (np.array(start) + last) / 2 + rng.normal(0, 7, 3)
            line = curve_through([[*start, radius], [*middle, radius * 0.7], [*last, 1.8]])
            field = joined(field, tube(lattice, line)[0])
    return field


def draw_spleen(
    lattice: Lattice, trunk: Trunk, neighbours: list[Field], rng: np.random.Generator
) -> tuple[Field, list[Layer]]:
    """Draw the spleen: a cap on the left wall, hollowed by stomach, kidney and tail."""
    centre = np.array([-104.0, -34.0, 46.0]) + rng.normal(0, [2, 4, 6])
    radii = np.array([33.0, 46.0, 48.0]) * rng.uniform(0.85, 1.15)
    field = ellipsoid(lattice, centre, radii)
    field = field + 1.5 * SmoothNoise(rng, 40).on_axes(*lattice.axes_mm)
    field = common(field, common(trunk.cavity + 4, trunk.diaphragm + 2, 8), 6)
    for other in neighbours:
        field = kept_off(field, other, 2.0)
    return field, [Layer(field, ((0, Tissue.SPLEEN),))]


def draw_heart(lattice: Lattice, trunk: Trunk, rng: np.random.Generator) -> list[Layer]:
    """Draw the fat between the lungs and the lower side of the heart that rests on the dome."""
    between = across((lattice.x + 6) / 34, (lattice.y + 2) / 84) * 34 - 34
    between = common(between, 2 - trunk.diaphragm, 3)
    between = common(between, trunk.spine_y + 20 - lattice.y, 3)
    heart = ellipsoid(lattice, [-26, 34, 128] + rng.normal(0, 4, 3), [64, 48, 44])
    heart = common(common(heart, trunk.cavity + 10), 1 - trunk.diaphragm, 8)
    return [
        Layer(common(between, trunk.cavity + 2), ((0, Tissue.FAT),)),
        Layer(heart, ((0, Tissue.FAT), (5, Tissue.HEART))),
    ]
