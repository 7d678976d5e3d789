"""Tissues and the scanner: HU, contrast phase, texture, reconstruction kernel and noise."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pancseg.phantoms.shapes import Grid, SmoothNoise

# frequency of each contrast phase, in the order of Tissue.mean_hu
PHASES = {"native": 0.15, "arterial": 0.25, "portal": 0.45, "late": 0.15}


class Tissue(IntEnum):
    """Tissue of a voxel; the reference label is ``PANCREAS`` and ``LESION``.

    After its value each member has the standard deviation of its texture, and the range that a
    patient's mean is drawn from, HU. Four ranges: native, arterial, portal venous, late phase.
    """

    texture_hu: float
    mean_hu: tuple[tuple[float, float], ...]

    def __new__(cls, value: int, texture_hu: float, *mean_hu: tuple[float, float]) -> Self:
        """Set value and attributes."""
        member = int.__new__(cls, value)
        member._value_, member.texture_hu, member.mean_hu = value, texture_hu, mean_hu
        return member

    AIR = 0, 0, (-1000, -1000)
    TABLE = 1, 3, (-150, 60)
    TABLE_FOAM = 2, 3, (-960, -900)
    SKIN = 3, 3, (0, 40)
    FAT = 4, 7, (-112, -94)
    MUSCLE = 5, 9, (48, 60), (54, 66), (58, 72), (58, 70)
    CORTICAL_BONE = 6, 80, (420, 650)
    MARROW = 7, 45, (120, 230)
    DISC = 8, 3, (75, 105)
    SPINAL_CANAL = 9, 3, (22, 40)
    LUNG = 10, 30, (-870, -800)
    HEART = 11, 3, (38, 48), (130, 200), (120, 150), (85, 105)
    LIVER = 12, 6, (42, 62), (62, 88), (98, 120), (78, 96)
    GALLBLADDER = 13, 3, (4, 18)
    SPLEEN = 14, 7, (42, 52), (105, 140), (108, 128), (82, 98)
    KIDNEY_CORTEX = 15, 3, (30, 38), (160, 220), (165, 200), (120, 150)
    KIDNEY_MEDULLA = 16, 3, (28, 36), (60, 95), (125, 165), (115, 145)
    KIDNEY_SINUS = 17, 3, (0, 12), (0, 15), (0, 20), (150, 350)
    STOMACH_WALL = 18, 9, (34, 46), (78, 115), (75, 105), (60, 80)
    STOMACH_FLUID = 19, 12, (5, 45)
    STOMACH_GAS = 20, 3, (-990, -960)
    DUODENUM_WALL = 21, 10, (34, 48), (85, 125), (80, 110), (62, 84)
    DUODENUM_FLUID = 22, 12, (12, 55)
    BOWEL_WALL = 23, 11, (34, 48), (80, 120), (78, 108), (60, 82)
    BOWEL_FLUID = 24, 14, (12, 50)
    BOWEL_GAS = 25, 3, (-990, -960)
    COLON_STOOL = 26, 70, (-20, 60)
    AORTA = 27, 3, (38, 48), (230, 340), (140, 175), (92, 115)
    ARTERY = 28, 3, (38, 48), (215, 320), (135, 170), (90, 112)
    VENA_CAVA = 29, 3, (38, 48), (60, 105), (115, 155), (90, 112)
    SPLENIC_VEIN = 30, 3, (38, 48), (105, 150), (145, 185), (92, 115)
    PORTAL_VEIN = 31, 3, (38, 48), (95, 140), (148, 188), (92, 115)
    LIVER_VEIN = 32, 3, (36, 46), (60, 95), (130, 165), (88, 108)
    PANCREAS = 33, 13, (35, 50), (90, 130), (80, 110), (60, 82)
    LESION = 34, 9, (-20, -10), (-60, -35), (-45, -25), (-30, -15)  # relative to PANCREAS


@dataclass(frozen=True)
class Scanner:
    """Settings of one patient's scan; arrays hold a value for each ``Tissue``."""

    phase: str
    mean_hu: NDArray[np.float32]
    texture_hu: NDArray[np.float32]  # standard deviation within a tissue
    noise_hu: float  # standard deviation in the image
    blur_mm: float  # standard deviation of the reconstruction kernel within a slice


def draw_scanner(rng: np.random.Generator) -> Scanner:
    """Draw contrast phase, enhancement, dose and kernel."""
    phase = int(rng.choice(len(PHASES), p=list(PHASES.values())))
    mean, texture = np.zeros((2, len(Tissue)), np.float32)
    enhancement = rng.uniform(0, 1)  # shared by the enhanced tissues of a patient
    for tissue in list(Tissue)[: Tissue.LESION]:
        share = rng.uniform(0, 1)
        enhanced = len(tissue.mean_hu) > 1
        low, high = tissue.mean_hu[phase if enhanced else 0]
        mean[tissue] = low + (high - low) * (0.5 * (enhancement + share) if enhanced else share)
    texture[:] = [tissue.texture_hu for tissue in Tissue]
    texture[Tissue.PANCREAS] *= rng.uniform(0.8, 1.5)
    noise_hu, blur_mm = float(rng.uniform(8, 25)), float(rng.uniform(0.75, 1.1))
    mean[Tissue.LESION] = mean[Tissue.PANCREAS] + rng.uniform(*Tissue.LESION.mean_hu[phase])
    return Scanner(list(PHASES)[phase], mean, texture, noise_hu, blur_mm)


def scan(
    tissue: NDArray[np.uint8], grid: Grid, scanner: Scanner, rng: np.random.Generator
) -> NDArray[np.float32]:
    """HU of a tissue volume, ``(slices, rows, columns)``, neither rounded nor clipped.

    Anatomy and quantum noise pass the same kernel: edges have partial volume and noise is
    correlated. The noise is scaled up before by the share that the kernel removes.
    """
    hu = SmoothNoise(rng, 17.0, 10).on_axes(*grid.axes_mm)
    hu += SmoothNoise(rng, 7.5, 14).on_axes(*grid.axes_mm)
    hu *= np.float32(np.sqrt(0.5))
    hu *= np.take(scanner.texture_hu, tissue)
    hu += np.take(scanner.mean_hu, tissue)
    sigma = (0.42, scanner.blur_mm / grid.spacing_mm[1], scanner.blur_mm / grid.spacing_mm[0])
    impulse = np.pad([[[1.0]]], 15)
    gain = np.linalg.norm(gaussian_filter(impulse, sigma, truncate=3.0))
    noise = rng.standard_normal(tissue.shape, dtype=np.float32)
    noise *= np.float32(scanner.noise_hu / gain)
    hu += noise
    gaussian_filter(hu, sigma, output=hu, mode="nearest", truncate=3.0)
    return hu
