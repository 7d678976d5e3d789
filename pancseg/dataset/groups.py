"""Cutting a case into groups of N consecutive slices."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import nibabel as nib
import numpy as np

from pancseg.errors import PancsegError

Tail = Literal["drop", "shift", "pad"]
AIR_HU = -1024


@dataclass(frozen=True)
class Cutting:
    """How cases become groups.

    Attributes:
        depth: Slices of a group; None makes no groups, but whole cases alone.
        tail: What becomes of the slices after the last whole group.
        keep_empty: Whether groups without label are kept.
    """

    depth: int | None
    tail: str
    keep_empty: bool


@dataclass(frozen=True)
class Cut:
    """Where the groups of a case begin, and how many incomplete ones were left out."""

    starts: list[int]
    left_out: int


def check_cut(depth: int | None, tail: str) -> None:
    """Check the settings of a cut before any data is read; without depth nothing is cut.

    Raises:
        PancsegError: If there is no such cut.
    """
    if depth is not None and depth < 1:
        raise PancsegError(
            f"data.depth={depth}: expected at least 1 slice, or null for whole cases alone"
        )
    if tail not in get_args(Tail):
        raise PancsegError(f"data.tail={tail}: expected one of {', '.join(get_args(Tail))}")


def plan_cut(slices: int, depth: int, tail: str) -> Cut:
    """Plan the groups of a case.

    Args:
        slices: Slices of the case.
        depth: Slices of a group.
        tail: What becomes of the slices after the last whole group: ``drop`` leaves them out,
            ``shift`` moves the last group back until it is whole (which a case shorter than a
            group cannot give), ``pad`` fills the last group with air.

    >>> plan_cut(150, 64, "drop"), plan_cut(150, 64, "shift"), plan_cut(150, 64, "pad")
    (Cut(starts=[0, 64], left_out=1), Cut(starts=[0, 64, 86], left_out=0), \
Cut(starts=[0, 64, 128], left_out=0))
    """
    starts = list(range(0, slices - depth + 1, depth))
    if slices % depth == 0:
        return Cut(starts, 0)
    if tail == "pad":
        return Cut([*starts, len(starts) * depth], 0)
    if tail == "shift" and slices >= depth:
        return Cut([*starts, slices - depth], 0)
    return Cut(starts, 1)


def covering_starts(slices: int, depth: int) -> list[int]:
    """Where groups begin so that every slice is in one; a short case has one group.

    >>> covering_starts(150, 64), covering_starts(20, 64)
    ([0, 64, 86], [0])
    """
    return plan_cut(slices, depth, "shift").starts or [0]


def cut_group(image: nib.Nifti1Image, first_slice: int, depth: int, fill: int) -> nib.Nifti1Image:
    """Cut one group; slices past the end of the case hold ``fill``.

    nibabel's slicer moves the affine with the cut.

    >>> case = nib.Nifti1Image(np.ones((2, 2, 5), np.int16), np.diag([1.0, 1.0, 2.5, 1.0]))
    >>> group = cut_group(case, first_slice=4, depth=2, fill=-1024)
    >>> group.get_fdata()[0, 0].tolist(), group.affine[2, 3].item()
    ([1.0, -1024.0], 10.0)
    """
    group = image.slicer[:, :, first_slice : first_slice + depth]
    missing = depth - group.shape[2]
    if missing <= 0:
        return group
    padded = np.pad(
        np.asanyarray(group.dataobj), ((0, 0), (0, 0), (0, missing)), constant_values=fill
    )
    return nib.Nifti1Image(padded, group.affine)


def pairs_of(
    image: nib.Nifti1Image, label: nib.Nifti1Image | None, starts: list[int], depth: int
) -> Iterator[tuple[int, nib.Nifti1Image, nib.Nifti1Image | None]]:
    """Each group of a case: where it begins, its image and its label."""
    for start in starts:
        cut_label = cut_group(label, start, depth, fill=0) if label is not None else None
        yield start, cut_group(image, start, depth, fill=AIR_HU), cut_label
