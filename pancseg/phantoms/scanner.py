"""CT scanner: contrast phase, texture, reconstruction kernel and noise, in HU."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pancseg.phantoms.shapes import Grid, SmoothNoise
from pancseg.phantoms.tissue import Tissue

# frequency of each contrast phase, in the order of Tissue.mean_hu
PHASES = {"native": 0.15, "arterial": 0.25, "portal": 0.45, "late": 0.15}


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
    for tissue in Tissue:
        share = rng.uniform(0, 1)
        enhanced = len(tissue.mean_hu) > 1
        low, high = tissue.mean_hu[phase if enhanced else 0]
        mean[tissue] = low + (high - low) * (0.5 * (enhancement + share) if enhanced else share)
        texture[tissue] = tissue.texture_hu
    texture[Tissue.PANCREAS] *= rng.uniform(0.8, 1.5)
    noise_hu, blur_mm = float(rng.uniform(8, 25)), float(rng.uniform(0.75, 1.1))
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
