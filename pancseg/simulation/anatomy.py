"""Puts a patient's shapes together and samples them on the grid of a scan."""

import numpy as np
from numpy.typing import NDArray

from pancseg.simulation.body import Body, draw_body
from pancseg.simulation.bowel import draw_colon, draw_duodenum, draw_small_bowel, draw_stomach
from pancseg.simulation.lattice import Grid, Lattice, interpolation
from pancseg.simulation.noise import stream
from pancseg.simulation.organs import draw_heart, draw_kidneys, draw_liver, draw_spleen
from pancseg.simulation.pancreas import PancreasPlan, draw_pancreas, draw_vessels, plan_pancreas
from pancseg.simulation.shapes import Layer, joined, kept_off
from pancseg.simulation.tissue import Tissue
from pancseg.simulation.trunk import draw_trunk


class Anatomy:
    """The shapes of one patient, the same for every grid they are sampled on."""

    def __init__(self, seed: int, index: int) -> None:
        """Draw what does not need a grid: the body, and where the pancreas runs."""
        self.seed = seed
        self.index = index
        self.body: Body = draw_body(self._stream("body"))
        self.plan: PancreasPlan = plan_pancreas(self._stream("pancreas"))

    def _stream(self, purpose: str) -> np.random.Generator:
        return stream(self.seed, self.index, purpose)

    def pancreas_reach_mm(self) -> tuple[float, float]:
        """Lowest and highest world z that the pancreas can have."""
        ends = []
        for line in (self.plan.axis, self.plan.uncinate):
            z = self.body.to_world(line.points_mm)[:, 2]
            radius = line.radius_mm * self.body.scale[2] + self.plan.lobule_mm
            ends += [(z - radius).min(), (z + radius).max()]
        return float(min(ends)) - self.body.warp_mm, float(max(ends)) + self.body.warp_mm

    def sample(self, grid: Grid) -> NDArray[np.uint8]:
        """Give the tissue of each voxel.

        Returns:
            ``(slices, rows, columns)`` of ``Tissue`` values.
        """
        lattice = Lattice(self.body, grid)
        volume = np.full(grid.shape[::-1], Tissue.AIR, np.uint8)
        for layer in self._layers(lattice):
            paint(volume, grid, lattice, layer)
        return volume

    def _layers(self, lattice: Lattice) -> list[Layer]:
        """All shapes; a later one covers an earlier one."""
        trunk = draw_trunk(lattice, self._stream("trunk"))
        pancreas = draw_pancreas(lattice, self.plan, self._stream("lobules"))
        vessels, vessel_layers = draw_vessels(lattice, self.plan, self._stream("vessels"))
        solid = joined(pancreas, vessels)
        kidneys, kidney_layers = draw_kidneys(lattice, self._stream("kidneys"))
        pancreas = kept_off(pancreas, kidneys, 1.5)
        duodenum, duodenum_layers = draw_duodenum(lattice, solid, self._stream("duodenum"))
        stomach, stomach_layers = draw_stomach(
            lattice, trunk, joined(solid, kidneys), self._stream("stomach")
        )
        near = joined(joined(duodenum, stomach), joined(solid, kidneys))
        liver, liver_layers = draw_liver(
            lattice, trunk, [joined(duodenum, solid), stomach, kidneys], self._stream("liver")
        )
        spleen, spleen_layers = draw_spleen(lattice, trunk, [near], self._stream("spleen"))
        near = joined(near, joined(liver, spleen))
        colon, colon_layers = draw_colon(lattice, trunk, near, self._stream("colon"))
        near = joined(near, colon)
        loops = draw_small_bowel(lattice, trunk, near, self._stream("bowel"))
        return [
            *trunk.layers,
            *draw_heart(lattice, trunk, self._stream("heart")),
            *loops,
            *colon_layers,
            *liver_layers,
            *spleen_layers,
            *kidney_layers,
            *stomach_layers,
            *duodenum_layers,
            Layer(pancreas, ((0, Tissue.PANCREAS),)),
            *vessel_layers,
        ]


def paint(volume: NDArray[np.uint8], grid: Grid, lattice: Lattice, layer: Layer) -> None:
    """Write a shape's tissues into a volume, between the nodes by linear interpolation.

    Args:
        volume: ``(slices, rows, columns)``, changed in place.
        grid: Where its voxels lie.
        lattice: Where the field's nodes lie.
        layer: The shape.
    """
    inside = layer.field < 0
    nodes, voxels, weights = [], [], []
    for axis in range(3):
        found = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
        if not len(found):
            return
        first, last = max(found[0] - 1, 0), min(found[-1] + 2, inside.shape[axis])
        ends = lattice.axes_mm[axis][[first, last - 1]]
        places = grid.axes_mm[axis]
        covered = np.flatnonzero((places >= ends[0]) & (places <= ends[1]))
        if not len(covered):
            return
        nodes.append(slice(first, last))
        voxels.append(slice(covered[0], covered[-1] + 1))
        weights.append(interpolation(lattice.axes_mm[axis][nodes[-1]], places[voxels[-1]]))
    along_z = np.tensordot(weights[0], layer.field[tuple(nodes)], 1)
    field = np.matmul(weights[1], along_z) @ weights[2].T
    target = volume[tuple(voxels)]
    for depth_mm, tissue in layer.tissues:
        target[field < -depth_mm] = tissue
