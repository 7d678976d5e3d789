"""Statistics of a scan that need no network, and a check against those of the training scans."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pancseg.geometry import bounding_box, spacing_of

SAMPLE_SPACING_MM = 4.0
BODY_ABOVE_HU = -300.0  # body, table and everything on it
SOFT_TISSUE_HU = (-150.0, 250.0)  # fat, water, muscle, organs
ORGANS_HU = (0.0, 200.0)
BONE_ABOVE_HU = 250.0
MIN_BODY_VOXELS = 500  # of the sample
MAX_NOISE_VOXELS = 2_000_000
MIN_SCANS = 3  # of a profile

# flag of each statistic, and its least standard deviation: training scans may be very similar
STATISTICS = {
    "soft_low_hu": ("hu_unlike", 15.0),  # 10th percentile of soft tissue
    "soft_middle_hu": ("hu_unlike", 10.0),  # median
    "soft_high_hu": ("hu_unlike", 15.0),  # 90th percentile
    "bone_share": ("hu_unlike", 0.03),  # of the body
    "noise_hu": ("noise_unlike", 3.0),  # standard deviation
    "length_mm": ("field_unlike", 20.0),  # of the scan
    "width_mm": ("field_unlike", 20.0),  # of the body
    "height_mm": ("field_unlike", 20.0),  # of the body, back to front
    "organs_right": ("sides_unlike", 0.03),  # their centre from the body's, share of the width
    "organs_front": ("sides_unlike", 0.03),  # share of the height
    "max_spacing_mm": ("spacing_unlike", 0.75),  # largest spacing
}


def scan_statistics(image: nib.Nifti1Image) -> dict[str, float]:
    """Statistics of a scan in HU, with axes in any order; empty without a body."""
    scan = nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine)
    i, j, k = (max(1, round(SAMPLE_SPACING_MM / mm)) for mm in spacing_of(image.affine))
    sample = nib.as_closest_canonical(scan.slicer[::i, ::j, ::k])
    hu, spacing_mm = np.array(sample.dataobj, np.float32), spacing_of(sample.affine)
    body, organs = hu > BODY_ABOVE_HU, (hu > ORGANS_HU[0]) & (hu < ORGANS_HU[1])
    soft = hu[(hu > SOFT_TISSUE_HU[0]) & (hu < SOFT_TISSUE_HU[1])]
    if np.count_nonzero(body) < MIN_BODY_VOXELS or not soft.size:
        return {}
    box = bounding_box(body)
    width_mm, height_mm = ((box[i].stop - box[i].start) * spacing_mm[i] for i in (0, 1))
    right, front = centroid(organs if organs.any() else body) - centroid(body)
    values = (  # in the order of STATISTICS
        *np.quantile(soft, [0.1, 0.5, 0.9]),
        np.mean(hu[body] > BONE_ABOVE_HU),
        noise_hu(np.asanyarray(scan.dataobj)),
        hu.shape[2] * spacing_mm[2],
        *(width_mm, height_mm),
        *(right * spacing_mm[0] / width_mm, front * spacing_mm[1] / height_mm),
        max(spacing_of(image.affine)),
    )
    return {name: round(float(v), 4) for name, v in zip(STATISTICS, values, strict=True)}


def centroid(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Centre of mass along the first two axes, voxels."""
    counts = mask.sum(axis=(1, 2)), mask.sum(axis=(0, 2))
    return np.array([np.average(np.arange(len(count)), weights=count) for count in counts])


def noise_hu(hu: NDArray[Any]) -> float:
    """Standard deviation of noise, from differences of neighbours in organs of some slices."""
    slices = max(1, MAX_NOISE_VOXELS // (hu.shape[0] * hu.shape[1]))
    sample = hu[..., :: max(1, hu.shape[2] // slices)].astype(np.float32)
    organs = (sample > ORGANS_HU[0]) & (sample < ORGANS_HU[1])
    differences = np.abs(np.diff(sample, axis=0))[organs[1:] & organs[:-1]]
    # the median is robust to edges, and 0.6745 of the standard deviation; two voxels have noise
    return float(np.median(differences)) / 0.6745 / math.sqrt(2) if differences.size else 0.0


@dataclass(frozen=True)
class TrainingProfile:
    """Number of training scans, and mean and standard deviation of each of their statistics."""

    n: int
    mean: dict[str, float]
    sd: dict[str, float]

    def unlike(self, statistics: dict[str, float], limit: float) -> dict[str, str]:
        """Flags of statistics more than ``limit`` standard deviations from the mean."""
        flags: dict[str, str] = {}
        largest: dict[str, float] = {}
        for name, (flag, min_sd) in STATISTICS.items():
            if self.n < MIN_SCANS or not (name in self.mean and name in statistics):
                continue
            value, mean, sd = statistics[name], self.mean[name], max(self.sd[name], min_sd)
            distance = abs(value - mean) / sd / math.sqrt(1 + 1 / self.n)
            is_longer = name == "length_mm" and value > mean  # windows slide along it
            if distance > largest.get(flag, limit) and not is_longer:
                largest[flag] = distance
                flags[flag] = f"{name} {value:.3g}, trained on {mean:.3g} +- {sd:.2g}"
        return flags


def training_profile(scans: Sequence[dict[str, float]]) -> TrainingProfile:
    """Profile of scans; those without statistics do not count."""
    scans = [statistics for statistics in scans if STATISTICS.keys() <= statistics.keys()]
    values = {name: [scan[name] for scan in scans] for name in (STATISTICS if scans else ())}
    mean = {name: round(float(np.mean(column)), 4) for name, column in values.items()}
    sd = {name: round(float(np.std(column)), 4) for name, column in values.items()}
    return TrainingProfile(len(scans), mean, sd)
