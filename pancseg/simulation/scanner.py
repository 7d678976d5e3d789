"""Scans a tissue volume: contrast phase, texture, reconstruction blur and noise, in HU."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pancseg.simulation.lattice import Grid
from pancseg.simulation.noise import SmoothNoise
from pancseg.simulation.tissue import Tissue

PHASES = ("native", "arterial", "portal", "late")
HU_LOW, HU_HIGH = -1024, 3071

# Range that each patient's mean is drawn from, HU, one pair a phase in the order of PHASES.
ENHANCED_HU: dict[Tissue, tuple[tuple[float, float], ...]] = {
    Tissue.PANCREAS: ((35, 50), (90, 130), (80, 110), (60, 82)),
    Tissue.LIVER: ((42, 62), (62, 88), (98, 120), (78, 96)),
    Tissue.SPLEEN: ((42, 52), (105, 140), (108, 128), (82, 98)),
    Tissue.KIDNEY_CORTEX: ((30, 38), (160, 220), (165, 200), (120, 150)),
    Tissue.KIDNEY_MEDULLA: ((28, 36), (60, 95), (125, 165), (115, 145)),
    Tissue.KIDNEY_SINUS: ((0, 12), (0, 15), (0, 20), (150, 350)),
    Tissue.STOMACH_WALL: ((34, 46), (78, 115), (75, 105), (60, 80)),
    Tissue.DUODENUM_WALL: ((34, 48), (85, 125), (80, 110), (62, 84)),
    Tissue.BOWEL_WALL: ((34, 48), (80, 120), (78, 108), (60, 82)),
    Tissue.MUSCLE: ((48, 60), (54, 66), (58, 72), (58, 70)),
    Tissue.HEART: ((38, 48), (130, 200), (120, 150), (85, 105)),
    Tissue.AORTA: ((38, 48), (230, 340), (140, 175), (92, 115)),
    Tissue.ARTERY: ((38, 48), (215, 320), (135, 170), (90, 112)),
    Tissue.VENA_CAVA: ((38, 48), (60, 105), (115, 155), (90, 112)),
    Tissue.SPLENIC_VEIN: ((38, 48), (105, 150), (145, 185), (92, 115)),
    Tissue.PORTAL_VEIN: ((38, 48), (95, 140), (148, 188), (92, 115)),
    Tissue.LIVER_VEIN: ((36, 46), (60, 95), (130, 165), (88, 108)),
}
PLAIN_HU: dict[Tissue, tuple[float, float]] = {
    Tissue.AIR: (-1000, -1000),
    Tissue.TABLE: (-150, 60),
    Tissue.TABLE_FOAM: (-960, -900),
    Tissue.SKIN: (0, 40),
    Tissue.FAT: (-112, -94),
    Tissue.CORTICAL_BONE: (420, 650),
    Tissue.MARROW: (120, 230),
    Tissue.DISC: (75, 105),
    Tissue.SPINAL_CANAL: (22, 40),
    Tissue.LUNG: (-870, -800),
    Tissue.GALLBLADDER: (4, 18),
    Tissue.STOMACH_FLUID: (5, 45),
    Tissue.STOMACH_GAS: (-990, -960),
    Tissue.DUODENUM_FLUID: (12, 55),
    Tissue.BOWEL_FLUID: (12, 50),
    Tissue.BOWEL_GAS: (-990, -960),
    Tissue.COLON_STOOL: (-20, 60),
}
# Standard deviation of the uneven inside, HU; tissues that are not named have 3.
TEXTURE_HU: dict[Tissue, float] = {
    Tissue.AIR: 0,
    Tissue.FAT: 7,
    Tissue.MUSCLE: 9,
    Tissue.MARROW: 45,
    Tissue.CORTICAL_BONE: 80,
    Tissue.LUNG: 30,
    Tissue.LIVER: 6,
    Tissue.SPLEEN: 7,
    Tissue.STOMACH_WALL: 9,
    Tissue.STOMACH_FLUID: 12,
    Tissue.DUODENUM_WALL: 10,
    Tissue.DUODENUM_FLUID: 12,
    Tissue.BOWEL_WALL: 11,
    Tissue.BOWEL_FLUID: 14,
    Tissue.COLON_STOOL: 70,
    Tissue.PANCREAS: 13,
}


@dataclass(frozen=True)
class Scanner:
    """How one patient is scanned.

    Attributes:
        phase: One of ``PHASES``.
        mean_hu: ``(len(Tissue),)`` mean of each tissue.
        texture_hu: ``(len(Tissue),)`` standard deviation inside each tissue.
        noise_hu: Standard deviation of the noise in the picture.
        blur_mm: Standard deviation of the reconstruction kernel in the slice.
    """

    phase: str
    mean_hu: NDArray[np.float32]
    texture_hu: NDArray[np.float32]
    noise_hu: float
    blur_mm: float


def draw_scanner(rng: np.random.Generator) -> Scanner:
    """Draw contrast phase, enhancement, dose and kernel; portal venous is the most frequent."""
    phase = int(rng.choice(len(PHASES), p=[0.15, 0.25, 0.45, 0.15]))
    mean = np.zeros(len(Tissue), np.float32)
    texture = np.full(len(Tissue), 3, np.float32)
    strong = rng.uniform(0, 1)
    for tissue in Tissue:
        own = rng.uniform(0, 1)
        if tissue in ENHANCED_HU:
            low, high = ENHANCED_HU[tissue][phase]
            own = 0.5 * (strong + own)
        else:
            low, high = PLAIN_HU[tissue]
        mean[tissue] = low + (high - low) * own
        texture[tissue] = TEXTURE_HU.get(tissue, 3)
    texture[Tissue.PANCREAS] *= rng.uniform(0.8, 1.5)
    return Scanner(
        phase=PHASES[phase],
        mean_hu=mean,
        texture_hu=texture,
        noise_hu=float(rng.uniform(8, 25)),
        blur_mm=float(rng.uniform(0.75, 1.1)),
    )


def scan(
    tissue: NDArray[np.uint8], grid: Grid, scanner: Scanner, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Turn tissues into HU.

    Anatomy and quantum noise pass the same kernel, as in a reconstruction: edges get
    partial volume and the noise becomes correlated. The noise before it is made stronger
    by what the kernel takes away.

    Args:
        tissue: ``(slices, rows, columns)`` of ``Tissue`` values.
        grid: Where the voxels lie.
        scanner: How to scan.
        rng: For texture and noise.

    Returns:
        ``(slices, rows, columns)`` HU, neither rounded nor clipped.
    """
    texture = SmoothNoise(rng, 17.0, 10).on_axes(*grid.axes_mm)
    texture += SmoothNoise(rng, 7.5, 14).on_axes(*grid.axes_mm)
    texture *= np.float32(np.sqrt(0.5))
    texture *= np.take(scanner.texture_hu, tissue)
    texture += np.take(scanner.mean_hu, tissue)
    sigma = (0.42, scanner.blur_mm / grid.spacing_mm[1], scanner.blur_mm / grid.spacing_mm[0])
    noise = rng.standard_normal(tissue.shape, dtype=np.float32)
    noise *= np.float32(scanner.noise_hu / np.prod([noise_gain(s) for s in sigma]))
    texture += noise
    gaussian_filter(texture, sigma, output=texture, mode="nearest", truncate=3.0)
    return texture


def noise_gain(sigma: float) -> float:
    """Share of white noise's standard deviation that a Gaussian kernel lets through on one axis.

    >>> round(noise_gain(0.1), 3), round(noise_gain(1.0), 2)
    (1.0, 0.53)
    """
    offsets = np.arange(-int(3 * sigma + 0.5), int(3 * sigma + 0.5) + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    return float(np.sqrt((weights**2).sum()) / weights.sum())


def quantised(hu: NDArray[np.float32], step_hu: int) -> NDArray[np.int16]:
    """Round HU to a step counted from -1024, clipped to what 12 bits of a scanner hold.

    >>> quantised(np.array([-5000.0, 3.2, 4.9], np.float32), 2).tolist()
    [-1024, 4, 4]
    """
    whole = np.clip(hu, HU_LOW, HU_HIGH)
    if step_hu == 1:
        return np.rint(whole).astype(np.int16)
    return (np.rint((whole - HU_LOW) / step_hu) * step_hu + HU_LOW).astype(np.int16)
