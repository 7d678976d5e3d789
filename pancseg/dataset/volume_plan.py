"""Planning the spacing and the patch for whole scans, from what the scans are and the machine.

As nnU-Net does (Isensee and others 2021): the data's median spacing, and the largest patch that
the machine takes. Where that patch would see too little of the abdomen, the spacing is coarser:
nnU-Net trains a second, low-resolution network for it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SMALLEST = 32  # voxels of a side: less is nothing at the bottom of a network
COARSER = 1.02  # a step


@dataclass(frozen=True)
class VolumePlan:
    """What a network is given.

    Attributes:
        spacing_mm: Voxel size after resampling.
        patch: Voxels of a patch.
    """

    spacing_mm: tuple[float, ...]
    patch: tuple[int, ...]

    def describe(self) -> str:
        """One line for the console.

        >>> VolumePlan((3.0, 3.0, 3.0), (96, 80, 64)).describe()
        'patches of 96 x 80 x 64 voxels of 3 x 3 x 3 mm: 288 x 240 x 192 mm'
        """
        field_mm = [round(n * mm) for n, mm in zip(self.patch, self.spacing_mm, strict=True)]
        voxels, sizes, field = (
            " x ".join(f"{value:g}" for value in values)
            for values in (self.patch, self.spacing_mm, field_mm)
        )
        return f"patches of {voxels} voxels of {sizes} mm: {field} mm"


def plan_volume(
    shapes: Sequence[Sequence[int]],
    spacings_mm: Sequence[Sequence[float]],
    *,
    patch_voxels: int,
    field_mm: Sequence[float],
    spacing_mm: Sequence[float] | None = None,
    patch: Sequence[int] | None = None,
) -> VolumePlan:
    """Plan what is not given.

    Args:
        shapes: Of the training cases, voxels.
        spacings_mm: Of the same.
        patch_voxels: That the machine takes in one sample.
        field_mm: What a patch is to see at least.
        spacing_mm: If it is chosen already.
        patch: If it is chosen already.

    >>> plan_volume([(128, 128, 96)], [(3, 3, 3)], patch_voxels=500_000, field_mm=(220, 180, 160))
    VolumePlan(spacing_mm=(3.0, 3.0, 3.0), patch=(96, 80, 64))
    >>> plan_volume([(512, 512, 200)], [(0.75, 0.75, 2)], patch_voxels=500_000,
    ...             field_mm=(220, 180, 160)).describe()
    'patches of 96 x 80 x 64 voxels of 2.32 x 2.32 x 2.32 mm: 223 x 186 x 148 mm'
    """
    extent_mm = np.median(np.array(shapes) * np.array(spacings_mm), axis=0)
    if patch is not None:
        patch_voxels = math.prod(patch)
    if spacing_mm is None:
        median = np.median(np.array(spacings_mm, dtype=float), axis=0)
        spacing_mm = coarse_enough(median, np.minimum(field_mm, extent_mm), patch_voxels)
    spacing = np.array(spacing_mm, dtype=float)
    if patch is None:
        patch = fitted_patch(extent_mm / spacing, np.array(field_mm) / spacing, patch_voxels)
    return VolumePlan(tuple(float(mm) for mm in spacing_mm), tuple(int(n) for n in patch))


def coarse_enough(
    spacing_mm: Sequence[float], field_mm: Sequence[float], patch_voxels: int
) -> list[float]:
    """The spacing, its finest axes made coarser until a patch of that many voxels sees the field.

    >>> coarse_enough([1.0, 1.0, 4.0], [100.0, 100.0, 100.0], 62_500)
    [2.0, 2.0, 4.0]
    """
    spacing = np.array(spacing_mm, dtype=float)
    while math.prod(np.array(field_mm) / spacing) > patch_voxels * COARSER:
        finest = spacing.min()
        spacing[spacing < finest * COARSER] = finest * COARSER
    return [round(float(mm), 2) for mm in spacing]


def fitted_patch(
    volume: Sequence[float], field: Sequence[float], patch_voxels: int
) -> tuple[int, int, int]:
    """The largest patch, in the proportions of the field where it cannot be the whole volume.

    Args:
        volume: Size of a typical case, voxels.
        field: Size of what is to be seen, voxels.
        patch_voxels: At most.
    """
    patch = [max(SMALLEST, math.ceil(side / step_of(side)) * step_of(side)) for side in volume]
    while math.prod(patch) > patch_voxels and max(patch) > SMALLEST:
        shares = [
            side / wanted if side > SMALLEST else 0.0
            for side, wanted in zip(patch, field, strict=True)
        ]
        axis = int(np.argmax(shares))
        patch[axis] -= step_of(patch[axis])
    return patch[0], patch[1], patch[2]


def step_of(side: float) -> int:
    """Voxels by which a side may differ: networks halve a long one five times, a short one four.

    >>> step_of(160), step_of(128)
    (32, 16)
    """
    return 32 if side > 128 else 16
