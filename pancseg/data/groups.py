"""Cutting a case into groups of consecutive slices."""

from dataclasses import dataclass

import nibabel as nib
import numpy as np

from pancseg.errors import PancsegError

TAILS = ("drop", "shift", "pad")


@dataclass(frozen=True)
class GroupSettings:
    """How cases are cut into groups; PancsegError where a value is not allowed."""

    depth: int | None  # slices of a group; None for no groups
    tail: str  # see plan_cut
    keep_empty: bool  # whether groups without any label voxel are kept

    def __post_init__(self) -> None:
        if self.depth is not None and self.depth < 1:
            raise PancsegError(f"data.depth={self.depth}: expected 1 or more, null for whole cases")
        if self.tail not in TAILS:
            raise PancsegError(f"data.tail={self.tail}: expected one of {', '.join(TAILS)}")


def plan_cut(slices: int, depth: int, tail: str) -> tuple[list[int], int]:
    """First slices of the groups of a case, and the number of incomplete groups left out.

    The slices after the last whole group are left out (``drop``), become a group that ends with
    the last slice if the case has at least ``depth`` (``shift``), or are filled with air (``pad``).
    """
    starts = list(range(0, slices - depth + 1, depth))
    if slices % depth == 0:
        return starts, 0
    if tail == "pad":
        return [*starts, len(starts) * depth], 0
    if tail == "shift" and slices >= depth:
        return [*starts, slices - depth], 0
    return starts, 1


def covering_starts(slices: int, depth: int) -> list[int]:
    """First slices of groups that cover all slices; a case shorter than ``depth`` has one group."""
    return plan_cut(slices, depth, "shift")[0] or [0]


def cut_group(image: nib.Nifti1Image, first_slice: int, depth: int, fill: int) -> nib.Nifti1Image:
    """Cut a group, with its affine; slices past the end of the case hold ``fill``."""
    group = image.slicer[:, :, first_slice : first_slice + depth]
    missing = depth - group.shape[2]
    if missing <= 0:
        return group
    values = np.asanyarray(group.dataobj)
    padded = np.pad(values, ((0, 0), (0, 0), (0, missing)), constant_values=fill)
    return nib.Nifti1Image(padded, group.affine)
