"""What a scan looks like in a few numbers, and which of them are unlike those trained on.

Plain statistics that a person can check, of a coarse sample of the scan: no network is asked, so
that they also hold where the network errs. Everything is in HU and mm and independent of how a
network is given the scan.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pancseg.geometry import bounding_box, spacing_of

STEP_MM = 4.0  # of the sample
BODY_HU = -300.0  # above is the body, with the table and what lies on it
SOFT_HU = (-150.0, 250.0)  # fat, water, muscle and organs
ORGANS_HU = (0.0, 200.0)
BONE_HU = 250.0
FEWEST = 500  # voxels of the body in the sample: fewer say nothing
NOISE_VOXELS = 2_000_000  # that the noise is measured on
FEWEST_SCANS = 3  # of a profile: with fewer nothing can be unlike

FLOORS = {
    "soft_low_hu": 15.0,
    "soft_middle_hu": 10.0,
    "soft_high_hu": 15.0,
    "bone_share": 0.03,
    "noise_hu": 3.0,
    "length_mm": 20.0,
    "width_mm": 20.0,
    "height_mm": 20.0,
    "organs_right": 0.03,
    "organs_front": 0.03,
    "slice_mm": 0.75,
}
"""The least standard deviation that counts for each number: trained scans may be all alike."""

SIGNS = {
    "hu_unlike": ("soft_low_hu", "soft_middle_hu", "soft_high_hu", "bone_share"),
    "noise_unlike": ("noise_hu",),
    "field_unlike": ("length_mm", "width_mm", "height_mm"),
    "sides_unlike": ("organs_right", "organs_front"),
    "spacing_unlike": ("slice_mm",),
}
"""The flag that each number raises."""


def appearance(image: nib.Nifti1Image) -> dict[str, float]:
    """A scan in a few numbers.

    Args:
        image: HU, three axes in any order.

    Returns:
        ``soft_low_hu``, ``soft_middle_hu``, ``soft_high_hu``: tenth, half and nine tenths of soft
        tissue. ``bone_share`` of the body. ``noise_hu``: standard deviation between neighbours in
        soft tissue. ``length_mm`` of the scan, ``width_mm`` and ``height_mm`` of the body.
        ``organs_right``, ``organs_front``: how far organs and muscles lie to the right and to the
        front of the body's middle, share of its width and height. ``slice_mm``: the largest
        spacing. Empty where there is next to no body.
    """
    hu = nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine)
    few = nib.as_closest_canonical(sampled(hu))
    values, spacing_mm = np.asarray(few.dataobj), spacing_of(few.affine)
    body = values > BODY_HU
    if np.count_nonzero(body) < FEWEST:
        return {}
    soft = values[(values > SOFT_HU[0]) & (values < SOFT_HU[1])]
    if not soft.size:
        return {}
    low, middle, high = np.quantile(soft, [0.1, 0.5, 0.9])
    box = bounding_box(body)
    width_mm, height_mm = ((box[i].stop - box[i].start) * spacing_mm[i] for i in (0, 1))
    organs = (values > ORGANS_HU[0]) & (values < ORGANS_HU[1])
    right, front = centre(organs) - centre(body)
    found = {
        "soft_low_hu": low,
        "soft_middle_hu": middle,
        "soft_high_hu": high,
        "bone_share": np.mean(values[body] > BONE_HU),
        "noise_hu": noise_hu(np.asanyarray(hu.dataobj)),
        "length_mm": values.shape[2] * spacing_mm[2],
        "width_mm": width_mm,
        "height_mm": height_mm,
        "organs_right": right * spacing_mm[0] / width_mm,
        "organs_front": front * spacing_mm[1] / height_mm,
        "slice_mm": max(spacing_of(image.affine)),
    }
    return {name: round(float(value), 4) for name, value in found.items()}


def sampled(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Every n-th voxel, about ``STEP_MM`` apart."""
    x, y, z = (slice(None, None, max(1, round(STEP_MM / mm))) for mm in spacing_of(image.affine))
    few = image.slicer[x, y, z]
    return nib.Nifti1Image(np.array(few.dataobj, np.float32), few.affine)


def centre(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Centre of gravity along the first two axes, voxels; the middle of an empty mask."""
    if not mask.any():
        return np.array([(size - 1) / 2 for size in mask.shape[:2]])
    sums = (mask.sum(axis=(1, 2)), mask.sum(axis=(0, 2)))
    return np.array([np.average(np.arange(len(one)), weights=one) for one in sums])


def noise_hu(hu: NDArray[Any]) -> float:
    """Standard deviation of noise, by differences of neighbours in soft tissue of some slices.

    The median of their absolute values, which edges hardly move, over 0.6745 (of a normal
    distribution) and the square root of two (of a difference).
    """
    slices = max(1, NOISE_VOXELS // (hu.shape[0] * hu.shape[1]))
    some = hu[..., :: max(1, hu.shape[2] // slices)].astype(np.float32)
    one, other = some[1:], some[:-1]
    both = (one > ORGANS_HU[0]) & (one < ORGANS_HU[1]) & (other > ORGANS_HU[0])
    both &= other < ORGANS_HU[1]
    if not both.any():
        return 0.0
    return float(np.median(np.abs(one - other)[both])) / 0.6745 / math.sqrt(2)


@dataclass(frozen=True)
class Profile:
    """What the scans look like that a network was trained on.

    Attributes:
        n: How many there were.
        mean: Of each number of :func:`appearance`.
        sd: Its standard deviation.
    """

    n: int
    mean: dict[str, float]
    sd: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def unlike(self, seen: dict[str, float], limit: float) -> dict[str, str]:
        """The flags of a scan that is unlike these, each with the number that says so.

        A number is unlike where it is more than ``limit`` standard deviations from the mean; a
        longer scan than those trained on is none, for windows slide along it.

        >>> profile = Profile(9, {"noise_hu": 20.0}, {"noise_hu": 4.0})
        >>> profile.unlike({"noise_hu": 60.0}, limit=4.0)
        {'noise_unlike': 'noise_hu 60, trained on 20 +- 4'}
        """
        if self.n < FEWEST_SCANS:
            return {}
        found = {}
        for flag, names in SIGNS.items():
            far = {name: self.distance(name, seen) for name in names if name in seen}
            name = max(far, key=lambda one: far[one], default="")
            if name and far[name] > limit:
                mean, sd = self.mean[name], self.sd[name]
                found[flag] = f"{name} {seen[name]:.3g}, trained on {mean:.3g} +- {sd:.2g}"
        return found

    def distance(self, name: str, seen: dict[str, float]) -> float:
        """Standard deviations between a number and the mean; 0 where that is no harm."""
        if name not in self.mean or (name == "length_mm" and seen[name] > self.mean[name]):
            return 0.0
        spread = max(self.sd[name], FLOORS[name]) * math.sqrt(1 + 1 / self.n)
        return abs(seen[name] - self.mean[name]) / spread


def profile_of(scans: Sequence[dict[str, float]]) -> Profile:
    """Mean and standard deviation over scans; those that say nothing do not count."""
    told = [one for one in scans if one]
    values = {name: [one[name] for one in told] for name in (FLOORS if told else ())}
    return Profile(
        len(told),
        {name: round(float(np.mean(each)), 4) for name, each in values.items()},
        {name: round(float(np.std(each)), 4) for name, each in values.items()},
    )
