"""Anatomy of a patient: trunk, organs, bowel and vessels, the same on every grid.

Coordinates are those of the standard body: mm, x to the right, y to the front, z to the head.
"""

from itertools import product
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from pancseg.phantoms import shapes
from pancseg.phantoms.scanner import Tissue
from pancseg.phantoms.shapes import Field, Layer, Rng, across, common, joined, outline

Knots = NDArray[np.float64]  # (n, 4): x, y, z, radius
Layers = list[Layer]
Lengths = tuple[float, ...]
Tissues = tuple[Tissue, Tissue, Tissue]
MARGIN_MM, SHIFT_MM = 8.0, 40.0  # of a scan: around the pancreas, up or down
CAVITY_WIDTH_MM, CAVITY_DEPTH_MM = 128.0, 88.0  # half axes
SPINE_Y_MM, VERTEBRA_MM, RIB_MM, LOOP_MM = -46.0, 35.0, 27.0, 27.0

PANCREAS_MM = np.transpose([  # from the head in the curve of the duodenum to the tip of the tail
    [35, 31, 20, 6, -18, -44, -66, -84], [10, 14, 20, 27, 26, 11, -7, -19],
    [-30, -17, -5, 3, 11, 18, 27, 36], [12.5, 17, 13, 9.5, 11, 11.5, 10.5, 7],
])  # fmt: skip
STOMACH_MM = np.transpose([  # from below the diaphragm to the pylorus
    [-50, -64, -70, -58, -28, 6, 26, 36], [-24, -8, 24, 48, 60, 57, 47, 38],
    [84, 72, 42, 14, -6, -8, 2, 8], [27, 35, 33, 29, 24, 19, 13, 9],
])  # fmt: skip
DUODENUM_MM = np.transpose([  # bulb, descending part, horizontal part, ascending part
    [36, 50, 58, 58, 48, 24, -4, -26, -36], [37, 26, 12, 7, 4, 5, 4, 7, 14],
    [9, 6, -10, -32, -52, -62, -60, -48, -28], [11, 13, 13, 13, 13, 12, 10, 12, 12],
])  # fmt: skip
COLON_MM = np.transpose([  # from the caecum to the sigmoid colon
    [92, 100, 100, 92, 62, 10, -45, -88, -103, -108, -106, -96, -60],
    [10, -6, -8, 12, 58, 70, 68, 40, 8, -22, -26, -12, 10],
    [-180, -130, -80, -42, -46, -62, -50, -8, 14, -30, -90, -150, -190],
    [24, 24, 22, 22, 20, 18, 18, 19, 18, 15, 14, 15, 16],
])  # fmt: skip


class Anatomy:
    """Body and pancreas of patient ``index`` of the group ``seed``, before a scan."""

    def __init__(self, seed: int, index: int, lesions: bool = False) -> None:
        self.seed, self.index = seed, index
        self.has_lesion = lesions and (seed + index) % 3 < 2
        self.body = shapes.Body(self.stream("body"))
        self.plan = PancreasPlan(self.stream("pancreas"))

    def stream(self, purpose: str) -> Rng:
        """Random numbers for one purpose, independent of all other purposes."""
        return np.random.default_rng([self.seed, self.index, crc32(purpose.encode())])

    def place_scan(self, shape: shapes.Size, spacing_mm: shapes.Spacing) -> shapes.Grid:
        """Grid around the body and the pancreas, shifted up or down where the scan is long."""
        points, radius = map(np.concatenate, zip(self.plan.axis, self.plan.uncinate, strict=True))
        z = (points * self.body.scale) @ self.body.rotation[2] + self.body.centre_mm[2]
        radius = radius * self.body.scale[2] + self.plan.lobule_mm + self.body.warp_mm
        low, high = (z - radius).min(), (z + radius).max()
        spare = max(0.0, ((shape[2] - 1) * spacing_mm[2] - (high - low)) / 2 - MARGIN_MM)
        shift = self.stream("scan place").uniform(-1, 1, 3) * [10, 10, min(SHIFT_MM, spare)]
        centre = np.array([*self.body.centre_mm[:2], (low + high) / 2]) + shift
        half = (np.array(shape) - 1) * spacing_mm / 2 * [1, 1, -1]
        x, y, z = np.round(centre + half, 3).tolist()
        return shapes.Grid(shape, spacing_mm, (x, y, z))


class PancreasPlan:
    """Course, length and thickness of a pancreas; the tail varies most, as in patients."""

    def __init__(self, rng: Rng) -> None:
        knots = PANCREAS_MM.copy()
        freedom = np.linspace(0.6, 1.6, len(knots))[:, None]
        knots[:, :3] += rng.normal(0, [2.0, 2.0, 2.5], (len(knots), 3)) * freedom
        knots[:, 2] += rng.normal(0, 9) * np.clip(-knots[:, 0] / 84, 0, 1) ** 1.2
        knots[:, 1] += rng.normal(0, 3)
        knots[:, 3] *= rng.uniform(0.92, 1.1) * rng.normal(1, 0.05, len(knots))
        thick = 10 * rng.uniform(0.85, 1.15)
        uncinate = np.array([[-3, -4, -10, thick], [-14, -11, -15, 8.5], [-24, -15, -15, 4.5]])
        uncinate[:, :3] += knots[1, :3]
        self.axis = shapes.curve_through(knots)  # from head to tail
        self.uncinate = shapes.curve_through(
            uncinate
        )  # part of the head behind the mesenteric vein
        self.lobule_mm = float(rng.uniform(1.2, 2.2))  # depth of the lobules


class Abdomen(shapes.Lattice):
    """Shapes of a patient at the nodes of a lattice."""

    def __init__(self, anatomy: Anatomy, grid: shapes.Grid) -> None:
        super().__init__(anatomy.body, grid)
        self.plan, self.stream = anatomy.plan, anatomy.stream
        self.has_lesion = anatomy.has_lesion
        rng, body, x, y, z = self.stream("trunk"), self.body, self.x, self.y, self.z
        chest = np.clip((z - 20) / 120, 0, 1)
        width = CAVITY_WIDTH_MM * (1 - 0.05 * np.clip(z / 150, -1, 1.5) ** 2)
        depth = CAVITY_DEPTH_MM * np.where(y > 0, body.belly * (1 - chest) + chest, 1)
        radius = across(x, y) + 1e-3
        relative = ((np.abs(x) / width) ** 2.4 + (np.abs(y) / depth) ** 2.4) ** (1 / 2.4)
        self.cavity = radius - radius / (relative + 1e-4)  # negative within the abdominal wall
        self.front = front = y / radius  # cosine of the angle to the front
        side = np.sqrt(np.maximum(1 - front * front, 0))
        wall = 8 + 4 * side + 16 * np.maximum(-front - 0.3, 0) - 3 * np.exp(-((x / 8) ** 2))
        self.spine_y = SPINE_Y_MM + body.curvature * (1 - (z / 100) ** 2).clip(-3, 1)
        fat = body.subcutaneous_mm * (1 + 0.12 * self.noise(rng, 160))
        fat *= (1 + 0.35 * np.maximum(-front, 0) - 0.1 * side) * (1 - 0.25 * np.tanh(z / 60 + 0.5))
        depth = np.where(y > -4, np.float32(0.5), np.float32(0.95)) * (y + 4) ** 2
        domes = np.minimum((x - 55) ** 2 - 11238, (x + 60) ** 2 - 10095) + depth
        self.diaphragm = (0.0105 * domes + z - float(rng.normal(0, 6))) / 1.3  # negative below it
        self.inside = common(self.cavity + 4, self.diaphragm + 2, 6)  # space of organs
        lungs = common(self.cavity, 1.5 - self.diaphragm, 5)
        lungs = common(lungs, 36 - across(x, y - self.spine_y + 20), 5)
        back = CAVITY_DEPTH_MM + 40 + 1.35 * body.subcutaneous_mm
        table = np.maximum(np.abs(y + back) - 14, np.abs(x) - 210)
        self.trunk = [
            Layer(table, Tissue.TABLE, 2.5, Tissue.TABLE_FOAM),
            Layer(self.cavity - wall - fat, Tissue.SKIN, 1.8, Tissue.FAT),
            Layer(self.cavity - wall, Tissue.MUSCLE),
            Layer(self.cavity, Tissue.FAT),
            self._muscles(rng),
            Layer(lungs, Tissue.MUSCLE, 1.5, Tissue.LUNG),
            *self._bones(rng),
        ]

    def layers(self) -> Layers:
        """All shapes in the order of painting."""
        kidneys = self._kidneys(self.stream("kidneys"))
        vessels = self._vessels(self.stream("vessels"))
        pancreas = self._pancreas(outline(kidneys), self.stream("lobules"))
        if self.has_lesion:  # around small vessels, beside aorta and vena cava
            vessels.append(self._lesion(outline(kidneys + vessels[1:3]), self.stream("lesion")))
        duodenum = self._duodenum(outline(pancreas + vessels), self.stream("duodenum"))
        near = outline(pancreas + vessels + kidneys)
        stomach = self._stomach(near, self.stream("stomach"))
        near = np.minimum(near, outline(duodenum + stomach))
        liver = self._liver(near, self.stream("liver"))
        spleen = self._spleen(near, self.stream("spleen"))
        near = np.minimum(near, outline(liver + spleen))
        colon = self._colon(near, self.stream("colon"))
        bowel = self._small_bowel(np.minimum(near, outline(colon)), self.stream("bowel"))
        organs = [*bowel, *colon, *liver, *spleen, *kidneys, *stomach, *duodenum]
        return [*self.trunk, *self._heart(self.stream("heart")), *organs, *pancreas, *vessels]

    def _muscles(self, rng: Rng) -> Layer:
        """Back muscles, psoas and the crura of the diaphragm, both sides."""
        bulk = float(rng.uniform(0.85, 1.15))
        side, y, z = np.abs(self.x), self.y - self.spine_y, self.z
        back = across((side - 32) / (27 * bulk), (y + 36) / 19) - 1
        flank = across((side - 62) / (17 * bulk), (y + 26) / 10) - 1
        thick = np.clip((30 - z) / 110, 0.15, 1) * bulk
        psoas = across((side - 29 - 8 * thick) / (8 + 15 * thick), (y + 6) / (7 + 17 * thick)) - 1
        psoas = np.maximum(psoas * 12, z - 25)
        crus = np.maximum(across((side - 15) / 5, (y - 19) / 8) * 5 - 5, -20 - z)
        muscles = np.minimum(np.minimum(back * 18, flank * 10), np.minimum(psoas, crus))
        return Layer(muscles + 1.2 * self.noise(rng, 35), Tissue.MUSCLE)

    def _bones(self, rng: Rng) -> Layers:
        """Discs, vertebrae with their processes, spinal canal, ribs and iliac wings."""
        x, y, z, cavity, front = self.x, self.y - self.spine_y, self.z, self.cavity, self.front
        level = (z - float(rng.uniform(0, VERTEBRA_MM))) % VERTEBRA_MM - VERTEBRA_MM / 2
        waist = 2 * np.cos(level * 2 * np.pi / VERTEBRA_MM)
        column = np.maximum(across(x / 1.3, y) - 17.5 + waist, -y - 15)
        vertebra = common(column, np.abs(level) - (VERTEBRA_MM / 2 - 4), 3)
        arch = np.maximum(across(x / 1.25, y + 25) - 15, np.abs(level + 3) - 11)
        spinous = np.maximum(np.maximum(np.abs(x) - 4, np.abs(y + 48) - 15), np.abs(level + 5) - 9)
        transverse = across(across(y + 26, level + 1), np.maximum(np.abs(x) - 34, 0)) - 6
        vertebra = joined(vertebra, np.minimum(np.minimum(arch, spinous), transverse), 3)
        height = z + 38 * (front + 1) - float(rng.uniform(0, RIB_MM))  # ribs sink to the front
        bars = np.abs(height % RIB_MM - RIB_MM / 2) * 0.8 - 4.5
        ends = 40 * (front - np.clip((height - 20) / 90, -0.9, 0.75))
        ends = np.maximum(np.maximum(ends, -30 - height), 24 - np.abs(x))
        ribs = np.maximum(np.maximum(bars, np.abs(cavity - 5) - 3.5), ends)
        sheet = np.abs(cavity + 2 - 0.06 * (z + 105)) - 5.5
        ilium = np.maximum(sheet, np.maximum(front - 0.35, -front - 0.8) * 60)
        ilium = common(ilium, z + 105 + 55 * (front + 0.35) ** 2, 4)
        bones = np.minimum(np.minimum(vertebra, ribs), ilium)
        return [
            Layer(column + 1, Tissue.DISC),
            Layer(bones, Tissue.CORTICAL_BONE, 2.2, Tissue.MARROW),
            Layer(across(x / 1.2, y + 25) - 8, Tissue.SPINAL_CANAL),
        ]

    def _pancreas(self, kidneys: Field, rng: Rng) -> Layers:
        """Lobulated surface around the planned course; flatter from front to back."""
        field = self.tube(self.plan.axis, (1.0, 1.2, 0.95))[0]
        field = joined(field, self.tube(self.plan.uncinate, (0.9, 1.1, 0.9))[0], 6)
        lobules = 0.6 * self.noise(rng, 26) + 0.8 * self.noise(rng, 12, waves=24)
        field += self.plan.lobule_mm * np.clip(lobules, -1.3, 2.5)
        return [Layer(np.maximum(field, 1.5 - kidneys), Tissue.PANCREAS)]

    def _lesion(self, near: Field, rng: Rng) -> Layer:
        """Ellipsoid of 8 to 40 mm in the world; it may bulge out of the pancreas."""
        points = self.plan.axis.points_mm
        place = int(rng.uniform(0.08, 0.85) * len(points))
        centre = self.body.to_world(points[place] + rng.normal(0, 2, 3))
        radii = np.maximum(rng.uniform(4.8, 19.8) * np.array([1, *rng.uniform(0.6, 1, 2)]), 4.8)
        turns = Rotation.random(random_state=rng).as_matrix() / radii
        z, y, x = np.ix_(*map(np.subtract, self.axes_mm, centre[::-1]))
        squares = sum((t[2] * z + t[1] * y + t[0] * x) ** 2 for t in turns.T)
        field = ((np.sqrt(squares) - 1) * radii.min()).astype(np.float32)
        return Layer(np.maximum(field, 1 - near), Tissue.LESION)

    def _behind(self, share: float, radii: float) -> NDArray[np.float64]:
        """Point behind the axis of the pancreas, at a share of the way from head to tail."""
        place = int(share * (len(self.plan.axis.points_mm) - 1))
        back_mm = radii * self.plan.axis.radius_mm[place] / 1.2 + 1.5
        return self.plan.axis.points_mm[place] - [0, back_mm, 0]

    def _vessels(self, rng: Rng) -> Layers:
        """Arteries near the pancreas, aorta, vena cava and the portal system."""

        def vessel(points: Any, radius: ArrayLike, flat: float = 1) -> Field:
            knots = np.column_stack([points, wide * np.asarray(radius)])
            return self.tube(shapes.curve_through(knots), (1, flat, 1))[0]

        wide = rng.uniform(0.88, 1.15)
        x, y, z = meet = self._behind(0.34, 1.25) + [3, 0, 0]
        back = [self._behind(s, 1.05) + rng.normal(0, 1, 3) for s in (0.45, 0.56, 0.67, 0.78, 0.9)]
        splenic_vein = vessel([meet, *back, [-90, -28, 38]], [5.2, *[4.2] * 5, 3.4])
        portal = vessel([meet, meet + [12, -3, 18], [34, 6, 44]], [6.2, 6.5, 6])
        low = [[x - 4, y + 8, -150], [x - 1, y + 2, -70], [x, y - 1, z - 25]]
        portal = joined(portal, vessel([*low, meet], [4.5, 5.2, 5.5, 6.2]), 2)
        large = []
        z = np.linspace(-260, 300, 8)
        bend = 9 * np.minimum(np.abs(z) / 130, 1) ** 2
        for x, y, radius, flat in ((-9, -16, 10, 1), (23, -18, 12.5, 1.3)):
            sway = rng.normal(0, 2.0, 2)
            line = [x + sway[0] * np.sin(z / 70), y - bend + sway[1] * np.cos(z / 60), z]
            large.append(vessel(np.transpose(line), radius * (1 + 0.0006 * z), flat))
        neck = [self._behind(0.36, 2.1)[0] - 12, 2, -8]
        low = [[-9, -8, 8], neck, [-4, 8, -40], [-2, 16, -90], [2, 22, -150]]
        arteries = vessel(low, [4, 3.8, 3.6, 3.2, 2.8])
        above = [self._behind(s, 0) + [0, -3.5, 11] for s in np.linspace(0.52, 0.92, 5)]
        splenic = [[-9, -8, 26], [-13, 6, 30], *(above + rng.normal(0, 3, (5, 3)))]
        arteries = joined(arteries, vessel(splenic, [4, 3.4, *[2.6] * 5]), 2)
        hepatic = [[-9, -8, 26], [-6, 8, 31], [14, 14, 27], [30, 12, 42]]
        arteries = joined(arteries, vessel(hepatic, [3.6, 3.2, 2.7, 2.5]), 2)
        fields = arteries, *large, portal, splenic_vein
        tissues = Tissue.ARTERY, Tissue.AORTA, Tissue.VENA_CAVA, Tissue.PORTAL_VEIN
        return list(map(Layer, fields, (*tissues, Tissue.SPLENIC_VEIN)))

    def _kidneys(self, rng: Rng) -> Layers:
        """Two beans with cortex, medulla and a sinus of fat and urine."""
        radius = rng.uniform(0.98, 1.14) * np.array([20, 26, 26, 20])
        beans, hila, sinuses = [], [], []
        for side, height in ((1, -22), (-1, -4)):
            centre = [62 * side, -42, height] + rng.normal(0, [3, 3, 7])
            x, y, z = [-9 * side, 5 * side, 7 * side, 11 * side], [-5, 1, 3, 5], [34, 8, -10, -32]
            line = np.transpose([x, y, z, radius]) + [*centre, 0]
            beans.append(self.tube(shapes.curve_through(line), (1.0, 1.12, 1.0))[0])
            hila.append(self.ellipsoid(centre + [-25 * side, 7, 0], [16, 9, 16]))
            sinuses.append(self.ellipsoid(centre + [-6 * side, 4, 0], [12, 9, 22]))
        bean = np.minimum(*beans)
        field = np.maximum(bean, -np.minimum(*hila)) + 0.8 * self.noise(rng, 22)
        sinus = np.maximum(np.minimum(*sinuses) + 2 * self.noise(rng, 14), bean + 7)
        return [
            Layer(field, Tissue.KIDNEY_CORTEX, 6.5, Tissue.KIDNEY_MEDULLA),
            Layer(sinus, Tissue.FAT, 3, Tissue.KIDNEY_SINUS),
        ]

    def _liver(self, near: Field, rng: Rng) -> Layers:
        """Liver, its veins and the gallbladder: the space on the right below the diaphragm."""
        x, y, z = self.x, self.y, self.z
        low, slant = float(rng.normal(24, 7)), float(rng.uniform(0.54, 0.7))
        underside = low - slant * x - 0.2 * y * np.clip((70 - x) / 70, 0, 1.2)
        field = common(self.cavity + 3, self.diaphragm + 1.5, 12)
        field = common(field, (underside - z + 4 * self.noise(rng, 60)) * 0.8, 12)
        field = common(field, float(-50 + rng.normal(0, 10)) - x - 0.2 * y, 14)
        spine = across(x / 1.1, y - self.spine_y + 5) - 36
        field = np.maximum(field, np.maximum(-spine, 2 - near))
        centre, size = [56, 48, -6] + rng.normal(0, 4, 3), rng.uniform(0.7, 1.2)
        bile = np.maximum(self.ellipsoid(centre, size * np.array([16, 16, 27])), 1 - near)
        veins = 14 * across(self.noise(rng, 80), self.noise(rng, 80)) - 3  # where both are near 0
        return [
            Layer(field, Tissue.LIVER),
            Layer(np.maximum(veins, field + 3), Tissue.LIVER_VEIN),
            Layer(bile, Tissue.LIVER, 1.5, Tissue.GALLBLADDER),
        ]

    def _spleen(self, near: Field, rng: Rng) -> Layers:
        """Cap on the left wall, hollowed by stomach, kidney and tail."""
        centre = [-104, -34, 46] + rng.normal(0, [2, 4, 6])
        field = self.ellipsoid(centre, np.array([33, 46, 48]) * rng.uniform(0.85, 1.15))
        field = common(field + 1.5 * self.noise(rng, 40), self.inside, 6)
        return [Layer(np.maximum(field, 2 - near), Tissue.SPLEEN)]

    def _heart(self, rng: Rng) -> Layers:
        """Fat between the lungs, and the lower side of the heart on the diaphragm."""
        between = across((self.x + 6) / 34, (self.y + 2) / 84) * 34 - 34
        between = common(between, self.spine_y + 20 - self.y, 3)
        between = np.maximum(common(between, 2 - self.diaphragm, 3), self.cavity + 2)
        heart = self.ellipsoid([-26, 34, 128] + rng.normal(0, 4, 3), [64, 48, 44])
        heart = common(np.maximum(heart, self.cavity + 10), 1 - self.diaphragm, 8)
        return [Layer(between, Tissue.FAT), Layer(heart, Tissue.FAT, 5, Tissue.HEART)]

    def _stomach(self, near: Field, rng: Rng) -> Layers:
        """In front of the pancreas, from empty and thick-walled to full."""
        full = float(rng.uniform(0.62, 1.05))
        knots = STOMACH_MM + rng.normal(0, 1, STOMACH_MM.shape) * [4, 3, 5, 0]
        knots[:, 3] *= full
        knots[1:6, 1] += rng.normal(-9, 4)
        knots[-2:] = STOMACH_MM[-2:]
        tissues = Tissue.STOMACH_WALL, Tissue.STOMACH_FLUID, Tissue.STOMACH_GAS
        wall, level = (3.2 + 5 * (1.05 - full), 1.2, 13), (full * float(rng.uniform(1, 17)), 1, 70)
        return self._hollow(knots, near, rng, tissues, 0.8, (1.5, 30), wall, level)

    def _duodenum(self, near: Field, rng: Rng) -> Layers:
        """Around the head of the pancreas, in contact with it in places."""
        knots = DUODENUM_MM + rng.normal(0, 1, DUODENUM_MM.shape) * [2.5, 2, 3, 0]
        knots[:, 3] *= rng.uniform(0.8, 1.1) * rng.uniform(0.85, 1.15, len(knots))
        tissues = Tissue.DUODENUM_WALL, Tissue.DUODENUM_FLUID, Tissue.BOWEL_GAS
        return self._hollow(knots, near, rng, tissues, 0.3, (0.8, 16), (2.5, 4, 50), (5, 7, 70))

    def _colon(self, near: Field, rng: Rng) -> Layers:
        """Around the small bowel, with stool and gas."""
        knots = COLON_MM + rng.normal(0, 1, COLON_MM.shape) * [5, 4, 8, 1.5]
        knots[4:7, 1] += 88 * (self.body.belly - 1)
        tissues = Tissue.BOWEL_WALL, Tissue.COLON_STOOL, Tissue.BOWEL_GAS
        return self._hollow(knots, near, rng, tissues, 2.5, (2, 30), (2.2, 1, 50), (2, 14, 110))

    def _small_bowel(self, near: Field, rng: Rng) -> Layers:
        """Loops below and left of the pancreas, up and down in columns; many are collapsed."""
        line: list[list[float]] = []
        places = product(np.arange(6, 72, LOOP_MM), np.arange(-84, 86, LOOP_MM))
        for column, (y, x) in enumerate(places):
            top = (-20 if y < 20 else 22) if x < -25 and y < 45 else -60
            heights = np.arange(-185, top, LOOP_MM)[:: -1 if column % 2 else 1]
            line += [[x, y, z, rng.uniform(7, 14)] for z in heights]
        knots = np.array(line) + rng.normal(0, 1, (len(line), 4)) * [7, 6, 6, 0]
        tissues = Tissue.BOWEL_WALL, Tissue.BOWEL_FLUID, Tissue.BOWEL_GAS
        return self._hollow(knots, near, rng, tissues, 0.5, (1, 15), (2.4, 4, 55), (9, 6, 70))

    def _hollow(
        self, knots: Knots, near: Field, rng: Rng, tissues: Tissues, gap_mm: float, *mm: Lengths
    ) -> Layers:
        """Hollow organ: wall, content, and gas that rises to the front.

        ``mm`` holds (height, wavelength) of bumps on the surface, then (value, variation,
        wavelength) of the thickness of the wall and of the level of gas above the centre line.
        """
        bumps_mm, (wall, thicker, wall_wavelength), (level, sd, level_wavelength) = mm
        field, rise = self.tube(shapes.curve_through(knots))
        field = common(field + bumps_mm[0] * self.noise(rng, bumps_mm[1]), self.inside, 4)
        field = np.maximum(field, np.clip(gap_mm + 1.6 * self.noise(rng, 45), -1, 6) - near)
        lumen = field + wall + thicker * np.maximum(self.noise(rng, wall_wavelength), 0)
        gas = np.maximum(lumen, level + sd * self.noise(rng, level_wavelength) - rise)
        return list(map(Layer, (field, lumen, gas), tissues))
