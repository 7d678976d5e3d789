"""Planes: where each stored slice lies and how its values become HU, single- or multi-frame."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset

from pancseg.errors import Refused

# where an enhanced multi-frame file keeps what others have at their top (DICOM PS3.3 C.7.6.16)
MACRO_OF = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "ReferencedSegmentNumber": "SegmentIdentificationSequence",
}
LARGEST_SIDE = 8192  # pixels; a header that claims more is damaged
MOST_FRAMES = 100_000  # a SEG of many structures that stores empty frames has tens of thousands
FARTHEST_MM = 1e6  # from the scanner's centre
LARGEST_RESCALE = 1e6  # of slope and intercept; larger ones only overflow


@dataclass(frozen=True)
class Plane:
    """One stored slice.

    Attributes:
        file: The file that holds it.
        frame: Which of the file's frames it is, from 0.
        rows: Pixels from top to bottom.
        columns: Pixels from left to right.
        position_mm: Centre of the first pixel, LPS.
        orientation: Unit vector along a row, then along a column, LPS.
        spacing_mm: From row to row, then from column to column.
        slope: Of stored value to HU.
        intercept: HU of stored value 0.
        frame_of_reference_uid: Empty where an anonymiser dropped it.
    """

    file: Path
    frame: int
    rows: int
    columns: int
    position_mm: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing_mm: tuple[float, ...]
    slope: float
    intercept: float
    frame_of_reference_uid: str


def planes_of(one: Dataset, file: Path) -> list[Plane]:
    """The planes of a file, in stored order.

    Raises:
        Refused: Naming the file and what it lacks.
    """
    rows, columns = size_of(one, file)
    frame_uid = str(one.get("FrameOfReferenceUID") or "")
    planes = []
    for n, levels in enumerate(levels_of(one, file)):
        slope, intercept = rescale(levels)
        if not 0 < abs(slope) < LARGEST_RESCALE or not abs(intercept) < LARGEST_RESCALE:
            told = f"RescaleSlope {slope:g} and RescaleIntercept {intercept:g}"
            raise Refused("no_rescale", f"{file.name} has {told}")
        spacing_mm = numbers(levels, "PixelSpacing", 2, file)
        if min(spacing_mm) <= 0:
            raise Refused("no_geometry", f"{file.name} has PixelSpacing {list(spacing_mm)}")
        orientation = numbers(levels, "ImageOrientationPatient", 6, file)
        check_orientation(orientation, file)
        position_mm = numbers(levels, "ImagePositionPatient", 3, file)
        planes.append(
            Plane(
                file, n, rows, columns, position_mm, orientation, spacing_mm,
                slope, intercept, frame_uid,
            )
        )  # fmt: skip
    return planes


def levels_of(one: Dataset, file: Path) -> list[list[Dataset]]:
    """For each frame, the data sets to look into: the frame's own, the shared one, the file's.

    Raises:
        Refused: If frames have no descriptions of their own.
    """
    count = one.get("NumberOfFrames")
    frames = one.get("PerFrameFunctionalGroupsSequence") or []
    if not frames and (count is None or int(count) == 1):
        return [[one]]
    if len(frames) != int(count or 0) or len(frames) > MOST_FRAMES:
        raise Refused(
            "bad_frames", f"{file.name} claims {count} frames and describes {len(frames)} of them"
        )
    shared = list(one.get("SharedFunctionalGroupsSequence") or [])[:1]
    return [[frame, *shared, one] for frame in frames]


def look_up(levels: list[Dataset], keyword: str) -> Any:
    """A value from the innermost level that has it, or None.

    >>> one = Dataset(); one.PixelSpacing = [2, 3]
    >>> [float(value) for value in look_up([Dataset(), one], "PixelSpacing")]
    [2.0, 3.0]
    """
    for level in levels:
        macro = level.get(MACRO_OF[keyword])
        if macro and macro[0].get(keyword) is not None:
            return macro[0].get(keyword)
    return levels[-1].get(keyword)


def numbers(levels: list[Dataset], keyword: str, length: int, file: Path) -> tuple[float, ...]:
    """Finite numbers of a header.

    Raises:
        Refused: If there are others or none.
    """
    values = np.atleast_1d(np.array(look_up(levels, keyword), dtype=float))  # None becomes NaN
    if len(values) != length or not (np.abs(values) < FARTHEST_MM).all():
        raise Refused("no_geometry", f"{file.name} has no usable {keyword}")
    return tuple(values.tolist())


def check_orientation(orientation: tuple[float, ...], file: Path) -> None:
    """Check that rows and columns are unit vectors at right angles.

    Raises:
        Refused: With what is there.
    """
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.linalg.norm([row, column], axis=1)
    if np.abs(lengths - 1).max() > 0.01 or abs(row @ column) > 0.01:
        raise Refused(
            "no_geometry",
            f"{file.name} has ImageOrientationPatient {list(orientation)}, expected two unit "
            "vectors at right angles",
        )


def size_of(one: Dataset, file: Path) -> tuple[int, int]:
    """Rows and columns.

    Raises:
        Refused: If there are none, or no scanner makes that many.
    """
    rows, columns = one.get("Rows"), one.get("Columns")
    if not rows or not columns:
        raise Refused("no_geometry", f"{file.name} has {rows} Rows and {columns} Columns")
    if max(rows, columns) > LARGEST_SIDE:
        raise Refused(
            "too_large", f"{file.name} claims {rows} x {columns} pixels, at most {LARGEST_SIDE}"
        )
    return int(rows), int(columns)


def rescale(levels: list[Dataset]) -> tuple[float, float]:
    """Slope and intercept; 1 and 0 where they are absent or empty.

    >>> one = Dataset(); one.RescaleIntercept = -1024
    >>> rescale([one])
    (1.0, -1024.0)
    """
    slope, intercept = look_up(levels, "RescaleSlope"), look_up(levels, "RescaleIntercept")
    return 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)
