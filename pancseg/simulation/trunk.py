"""Shapes the trunk: skin, fat, muscle, bones, lungs, and the cavity that holds the organs."""

from dataclasses import dataclass

import numpy as np

from pancseg.simulation.lattice import Lattice
from pancseg.simulation.noise import Field, SmoothNoise
from pancseg.simulation.shapes import Layer, across, common, joined
from pancseg.simulation.tissue import Tissue

CAVITY_RADII_MM = (128.0, 88.0)
SPINE_Y_MM = -46.0
VERTEBRA_MM = 35.0
RIB_MM = 27.0


@dataclass(frozen=True)
class Trunk:
    """The fields of the trunk that organs lean on, mm.

    Attributes:
        cavity: Inner side of the abdominal wall.
        diaphragm: Negative below it.
        spine_y: Where the middle of the spine lies, ``(nz, ny, nx)``.
        layers: What to paint, in order.
    """

    cavity: Field
    diaphragm: Field
    spine_y: Field
    layers: list[Layer]


def draw_trunk(lattice: Lattice, rng: np.random.Generator) -> Trunk:
    """Draw the trunk of one patient."""
    body = lattice.body
    x, z = lattice.x, lattice.z
    cavity, front = _cavity(lattice)
    side = np.sqrt(np.maximum(1 - front * front, 0))
    wall = (8 + 4 * side + 16 * np.maximum(-front - 0.3, 0) - 3 * np.exp(-((x / 8) ** 2))).astype(
        np.float32
    )
    uneven = 1 + 0.12 * SmoothNoise(rng, 160).on_axes(*lattice.axes_mm)
    fat = body.subcutaneous_mm * uneven * (1 + 0.35 * np.maximum(-front, 0) - 0.1 * side)
    fat *= 1 + 0.25 * np.tanh((-z - 30) / 60)
    spine_y = SPINE_Y_MM + np.float32(body.curvature) * (1 - (z / 100) ** 2).clip(-3, 1)
    diaphragm = _diaphragm(lattice, rng)
    beside_spine = 36 - across(x, lattice.y - spine_y + 20)
    lungs = common(common(cavity, 1.5 - diaphragm, 5), beside_spine, 5)
    layers = [
        *_table(lattice),
        Layer(cavity - wall - fat, ((0, Tissue.SKIN), (1.8, Tissue.FAT))),
        Layer(cavity - wall, ((0, Tissue.MUSCLE),)),
        Layer(cavity, ((0, Tissue.FAT),)),
        Layer(_muscles(lattice, spine_y, rng), ((0, Tissue.MUSCLE),)),
        Layer(lungs, ((0, Tissue.MUSCLE), (1.5, Tissue.LUNG))),
        *_spine(lattice, spine_y, rng),
        Layer(
            _ribs(lattice, cavity, front, rng), ((0, Tissue.CORTICAL_BONE), (2.2, Tissue.MARROW))
        ),
        Layer(_pelvis(lattice, cavity, front), ((0, Tissue.CORTICAL_BONE), (2.5, Tissue.MARROW))),
    ]
    return Trunk(cavity, diaphragm, spine_y, layers)


def _cavity(lattice: Lattice) -> tuple[Field, Field]:
    """Radial distance to the wall, and the cosine of the angle to the front."""
    x, y, z = lattice.x, lattice.y, lattice.z
    taper = 1 - 0.05 * np.clip(z / 150, -1, 1.5) ** 2
    width = np.float32(CAVITY_RADII_MM[0]) * taper
    chest = np.clip((z - 20) / 120, 0, 1)
    bulge = lattice.body.belly * (1 - chest) + chest
    depth = np.float32(CAVITY_RADII_MM[1]) * np.where(y > 0, bulge, np.float32(1))
    radius = np.sqrt(x * x + y * y) + np.float32(1e-3)
    relative = ((np.abs(x) / width) ** 2.4 + (np.abs(y) / depth) ** 2.4) ** (1 / 2.4)
    return radius - radius / (relative + np.float32(1e-4)), y / radius


def _diaphragm(lattice: Lattice, rng: np.random.Generator) -> Field:
    breath = rng.normal(0, 6)
    x, y, z = lattice.x, lattice.y, lattice.z
    depth = np.where(y > -4, np.float32(0.5), np.float32(0.95)) * (y + 4) ** 2
    right = (x - 55) ** 2 + depth - 118 / 0.0105
    left = (x + 60) ** 2 + depth - 106 / 0.0105
    dome = np.float32(0.0105) * np.minimum(right, left) + z - np.float32(breath)
    return dome / np.float32(1.3)


def _table(lattice: Lattice) -> list[Layer]:
    _, y_mm, x_mm = lattice.axes_mm
    body = lattice.body
    back_mm = (CAVITY_RADII_MM[1] + 20 + 1.35 * body.subcutaneous_mm) * body.scale[1] + 6
    x, y = x_mm - body.centre_mm[0], y_mm[:, None] - body.centre_mm[1] + back_mm
    top = y - (x / 40) ** 2
    slab = np.maximum(np.maximum(top, -y - 28), np.abs(x) - 210)
    field = np.broadcast_to(slab.astype(np.float32), lattice.shape)
    return [Layer(field, ((0, Tissue.TABLE), (2.5, Tissue.TABLE_FOAM)))]


def _muscles(lattice: Lattice, spine_y: Field, rng: np.random.Generator) -> Field:
    """Back muscles, psoas and the crura of the diaphragm, both sides."""
    bulk = np.float32(rng.uniform(0.85, 1.15))
    side, y, z = np.abs(lattice.x), lattice.y - spine_y, lattice.z
    back = across((side - 32) / (27 * bulk), (y + 36) / 19) - 1
    flank = across((side - 62) / (17 * bulk), (y + 26) / 10) - 1
    thick = np.clip((30 - z) / 110, 0.15, 1) * bulk
    psoas = across((side - 29 - 8 * thick) / (8 + 15 * thick), (y + 6) / (7 + 17 * thick)) - 1
    psoas = np.maximum(psoas * 12, z - 25)
    crus = np.maximum(across((side - 15) / 5, (y - 19) / 8) * 5 - 5, -20 - z)
    found: Field = np.minimum(np.minimum(back * 18, flank * 10), np.minimum(psoas, crus))
    found += np.float32(1.2) * SmoothNoise(rng, 35).on_axes(*lattice.axes_mm)
    return found


def _spine(lattice: Lattice, spine_y: Field, rng: np.random.Generator) -> list[Layer]:
    x, y, z = lattice.x, lattice.y - spine_y, lattice.z
    level = (z - np.float32(rng.uniform(0, VERTEBRA_MM))) % VERTEBRA_MM - VERTEBRA_MM / 2
    waist = 2 * np.cos(level * np.float32(2 * np.pi / VERTEBRA_MM))
    column = (across(x / 1.3, y) - 17.5 + waist).astype(np.float32)
    column = np.maximum(column, -y - 15)
    body = common(column, np.abs(level) - np.float32(VERTEBRA_MM / 2 - 4), 3)
    canal = across(x / 1.2, y + 25) - 8
    arch = np.maximum(across(x / 1.25, y + 25) - 15, np.abs(level + 3) - 11)
    spinous = np.maximum(np.maximum(np.abs(x) - 4, np.abs(y + 48) - 15), np.abs(level + 5) - 9)
    transverse = across(across((y + 26), level + 1), np.maximum(np.abs(x) - 34, 0)) - 6
    bone = np.minimum(np.minimum(arch, spinous), transverse).astype(np.float32)
    return [
        Layer(column + 1, ((0, Tissue.DISC),)),
        Layer(joined(body, bone, 3), ((0, Tissue.CORTICAL_BONE), (2.2, Tissue.MARROW))),
        Layer(canal, ((0, Tissue.SPINAL_CANAL),)),
    ]


def _ribs(lattice: Lattice, cavity: Field, front: Field, rng: np.random.Generator) -> Field:
    """Ribs sink from back to front; the lowest ones end at the flank."""
    height = lattice.z + 38 * (front + 1) - np.float32(rng.uniform(0, RIB_MM))
    bars = np.abs(height % RIB_MM - RIB_MM / 2) * np.float32(0.8) - 4.5
    ends = 40 * (front - np.clip((height - 20) / 90, -0.9, 0.75))
    sheet = np.abs(cavity - 5) - 3.5
    ends = np.maximum(np.maximum(ends, -30 - height), 24 - np.abs(lattice.x))
    ribs: Field = np.maximum(np.maximum(bars, sheet), ends).astype(np.float32)
    return ribs


def _pelvis(lattice: Lattice, cavity: Field, front: Field) -> Field:
    """The wings of the hip bone, behind and beside the lowest part of the abdomen."""
    crest = lattice.z + 105 + 55 * (front + 0.35) ** 2
    sheet = np.abs(cavity + 2 - 0.06 * (lattice.z + 105)) - 5.5
    ends = np.maximum(front - 0.35, -front - 0.8) * 60
    return common(np.maximum(sheet, ends), crest, 4).astype(np.float32)
