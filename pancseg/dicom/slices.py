"""Slices in space: read from headers, fitted to a regular grid, resampled where repaired."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from scipy import ndimage

from pancseg.errors import Refused
from pancseg.geometry import Affine, slices_from_feet

# sequences of an enhanced multi-frame file that hold an attribute (DICOM PS3.3 C.7.6.16)
MACRO_OF = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "RescaleType": "PixelValueTransformationSequence",
    "ReferencedSegmentNumber": "SegmentIdentificationSequence",
    "FrameAcquisitionNumber": "FrameContentSequence",
}
Floats = NDArray[np.float64]
LARGEST_SIDE = 8192  # pixels; a header that claims more is damaged
MOST_FRAMES = 100_000  # a SEG of many structures with empty frames has tens of thousands
FARTHEST_MM = 1e6  # from the scanner's isocentre
LARGEST_RESCALE = 1e6  # of slope and intercept


def are_unit_vectors(orientation: Floats) -> bool:
    """Whether two vectors have length 1 and are at right angles, as far as headers hold digits."""
    axes = orientation.reshape(2, 3)
    return bool(np.abs(axes @ axes.T - np.eye(2)).max() < 0.02)


# numbers of a slice: their count, a default, what is expected of them, and whether they fulfil it
NUMBERS: dict[str, tuple[int, float | None, str, Callable[[Floats], Any]]] = {
    "ImagePositionPatient": (3, None, "three coordinates", lambda _: True),
    "ImageOrientationPatient": (6, None, "two unit vectors at right angles", are_unit_vectors),
    "PixelSpacing": (2, None, "two distances above 0", lambda spacing_mm: min(spacing_mm) > 0),
    "RescaleSlope": (1, 1.0, "a number other than 0", lambda slope: slope[0] != 0),
    "RescaleIntercept": (1, 0.0, "a number", lambda _: True),
}
EQUAL = 1e-3  # mm, or direction cosines
GRID_TOLERANCE = 0.1  # between a slice and a grid: of a pixel, and of the distance of slices
WIDEST_REPAIR = 4.5  # spacings: up to three slices in a row are interpolated


@dataclass(frozen=True)
class SlicePlane:
    """A stored slice."""

    file: Path
    frame: int  # number in the file, from 0
    rows: int
    columns: int
    position_mm: tuple[float, ...]  # centre of the first pixel, LPS
    orientation: tuple[float, ...]  # unit vector along a row, then along a column, LPS
    spacing_mm: tuple[float, ...]  # from row to row, then from column to column
    slope: float  # HU per stored value
    intercept: float  # HU of stored value 0
    frame_of_reference_uid: str
    acquisition_number: str = ""  # text that slices of an acquisition share, empty if unknown
    acquisition_time: str = ""
    is_hu: bool = True  # False where RescaleType of a CT names another unit
    segment_number: int = -1  # of a frame of a SEG that holds one segment


@dataclass(frozen=True)
class Repair:
    """Irregularities that are resampled instead of refused."""

    gaps: bool = False
    tilt: bool = False


@dataclass(frozen=True)
class SliceStack:
    """Slices of a series in order along their normal, and their regular grid."""

    planes: tuple[SlicePlane, ...]  # slice k of a stored volume is planes[k]
    normal: Floats  # unit vector, LPS
    offsets_mm: Floats  # (slices,), along the normal, from the first slice of the grid
    shifts_mm: Floats  # (slices, 2), along rows and columns, where a tilt is repaired; else 0
    grid_index: Floats  # (slices,), position of each slice on the grid
    step_mm: float  # between slices of the grid
    repairs: tuple[str, ...] = ()  # what is repaired, with numbers

    @property
    def shape(self) -> tuple[int, int, int]:
        """Stored columns, rows and slices."""
        return self.planes[0].columns, self.planes[0].rows, len(self.planes)

    @property
    def corner_mm(self) -> Floats:
        """Centre of the first voxel of the grid, LPS, before a tilt is repaired."""
        return np.array(self.planes[0].position_mm) - self.offsets_mm[0] * self.normal

    def to_image(self, stored: NDArray[Any], *, linear: bool, fill: float) -> nib.Nifti1Image:
        """Resample a stored volume ``(columns, rows, slices)`` to the grid, from the feet upwards.

        Where it is repaired, values are interpolated linearly (HU) or by the nearest voxel (masks);
        ``fill`` stands outside of the scanned volume.
        """
        corner_mm = self.corner_mm
        if self.shifts_mm.any():
            pixel_mm = np.array(self.planes[0].spacing_mm[::-1])
            stored, moved = straighten(stored, self.shifts_mm / pixel_mm, linear=linear, fill=fill)
            axes = np.reshape(self.planes[0].orientation, (2, 3))
            corner_mm = corner_mm + moved * pixel_mm @ axes
        if (np.diff(self.grid_index) != 1).any():
            stored = fill_gaps(stored, self.grid_index, linear=linear)
        return slices_from_feet(nib.Nifti1Image(stored, self.affine_at(corner_mm)))

    def affine_at(self, corner_mm: Floats) -> Affine:
        """Affine of the grid, RAS, with its first voxel at an LPS position."""
        row, column = np.reshape(self.planes[0].orientation, (2, 3))
        row_mm, column_mm = self.planes[0].spacing_mm
        axes = np.column_stack([row * column_mm, column * row_mm, self.normal * self.step_mm])
        return np.diag([-1, -1, 1, 1]) @ nib.affines.from_matvec(axes, corner_mm)


def planes_of(dataset: Dataset, file: Path) -> list[SlicePlane]:
    """The slices of a file, in stored order; refused if an attribute is missing or out of range.

    Call it within ``parsing``: values of damaged headers raise any error.
    """
    rows, columns = size_of(dataset, file)
    frame_uid, modality = str(dataset.get("FrameOfReferenceUID") or ""), dataset.get("Modality")
    number, date, time = (
        # not converted: it is only compared, and text that is no number must not refuse a series
        str(getattr(dataset.get_item(f"Acquisition{name}"), "value", None) or "")
        for name in ("Number", "Date", "Time")
    )
    time = date + time if time and modality != "MR" else ""  # MR acquires every other slice first
    planes = []
    for n, levels in enumerate(functional_groups(dataset, file)):
        position_mm, axes, spacing_mm, (slope,), (intercept,) = (
            read_numbers(levels, keyword, file) for keyword in NUMBERS
        )
        grid = rows, columns, position_mm, axes, spacing_mm
        acquisition = str(find_value(levels, "FrameAcquisitionNumber", number)), time
        unit = str(find_value(levels, "RescaleType", "")).strip().upper()
        is_hu = modality != "CT" or unit in ("", "HU", "US")  # US: unspecified
        segment = int(find_value(levels, "ReferencedSegmentNumber", -1))
        values = *grid, slope, intercept, frame_uid, *acquisition, is_hu, segment
        planes.append(SlicePlane(file, n, *values))
    return planes


def functional_groups(dataset: Dataset, file: Path) -> list[list[Dataset]]:
    """For each frame the data sets that describe it: per-frame and shared groups, and the file."""
    count = dataset.get("NumberOfFrames")
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if not frames and (count is None or int(count) == 1):
        return [[dataset]]
    if len(frames) != int(count or 0) or len(frames) > MOST_FRAMES:
        sentence = f"{file.name} describes {len(frames)} frames, not NumberOfFrames"
        raise Refused("bad_frames", sentence)
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]
    return [[frame, *shared, dataset] for frame in frames]


def find_value(levels: list[Dataset], keyword: str, default: Any = None) -> Any:
    """A value from the innermost level where it is not empty."""
    for level in levels[:-1]:
        macro = level.get(MACRO_OF[keyword])
        if macro and macro[0].get(keyword) is not None:
            return macro[0].get(keyword)
    value = levels[-1].get(keyword)
    return default if value is None else value


def read_numbers(levels: list[Dataset], keyword: str, file: Path) -> tuple[float, ...]:
    """Numbers of a slice; refused if they are not as expected."""
    count, default, expected, is_usable = NUMBERS[keyword]
    try:
        values = np.atleast_1d(np.array(find_value(levels, keyword, default), dtype=float))
    except (TypeError, ValueError):
        values = np.array([])
    if len(values) == count and (np.abs(values) < FARTHEST_MM).all() and is_usable(values):
        return tuple(values.tolist())
    code = "no_rescale" if keyword.startswith("Rescale") else "no_geometry"
    raise Refused(code, f"{file.name} has no usable {keyword}, expected {expected}")


def size_of(dataset: Dataset, file: Path) -> tuple[int, int]:
    """Rows and columns; refused if they are missing or too large."""
    rows, columns = dataset.get("Rows"), dataset.get("Columns")
    if not rows or not columns:
        raise Refused("no_geometry", f"{file.name} has no Rows or no Columns")
    if max(rows, columns) > LARGEST_SIDE:
        raise Refused("too_large", f"{file.name} has a side above {LARGEST_SIDE} pixels")
    return int(rows), int(columns)


def build_stack(planes: list[SlicePlane], repair: Repair) -> SliceStack:
    """Fit a regular grid to planes, or refuse with all problems and the repairs that would help."""
    check_alike(planes)
    axes = np.reshape(planes[0].orientation, (2, 3))
    normal = np.cross(*axes)
    normal /= np.linalg.norm(normal)  # headers hold few decimals
    planes = sorted(planes, key=lambda plane: normal @ plane.position_mm)
    relative_mm = np.array([plane.position_mm for plane in planes]) - planes[0].position_mm
    offsets_mm, lateral_mm = relative_mm @ normal, relative_mm @ axes.T
    gaps_mm = np.diff(offsets_mm)
    problems = overlapping_acquisitions(planes, offsets_mm)
    if shared := int((gaps_mm < EQUAL).sum()):
        sentence = f"{shared + 1} slices or more share a position and differ in content"
        refuse_if([*problems, Refused("same_position", sentence)])
    start_mm, step_mm, grid_index, gap_problem = fit_grid(offsets_mm)
    along, across = offsets_mm - offsets_mm.mean(), lateral_mm - lateral_mm.mean(axis=0)
    slopes = along @ across / (along @ along)  # of the axis through the slices
    beside_mm = np.linalg.norm(across - np.outer(along, slopes), axis=1).max()
    if beside_mm > max(0.02 * step_mm, 0.1):
        sentence = f"slices lie up to {beside_mm:.1f} mm beside the axis of the stack"
        problems.append(Refused("shifted_slice", sentence))
    repairs, shifts_mm = [], np.zeros_like(lateral_mm)
    slope = float(np.linalg.norm(slopes))
    degrees = f"{np.degrees(np.arctan(slope)):.1f} degrees"
    is_tilted = slope * offsets_mm[-1] > max(1.0, *planes[0].spacing_mm)
    if is_tilted and repair.tilt:
        shifts_mm = lateral_mm
        repairs.append(f"tilt of {degrees}")
    elif is_tilted:
        sentence = f"slices are stacked at {degrees} to their normal"
        problems.append(Refused("gantry_tilt", sentence, repairs=["tilt"]))
    if gap_problem and repair.gaps and gap_problem.repairs:
        span = f"{gaps_mm.min():.2f} to {gaps_mm.max():.2f} mm"
        repairs.append(f"gaps of {span}, now {step_mm:.2f} mm")
    elif gap_problem:
        problems.append(gap_problem)
    refuse_if(problems)
    offsets_mm -= start_mm
    stacked, repaired = tuple(planes), tuple(repairs)
    return SliceStack(stacked, normal, offsets_mm, shifts_mm, grid_index, step_mm, repaired)


def refuse_if(problems: list[Refused]) -> None:
    """Refuse for all problems at once, with repairs if they mend all of them."""
    if problems:
        are_mended = all(problem.repairs for problem in problems)
        repairs = [key for problem in problems for key in problem.repairs] if are_mended else []
        sentences = [problems[0].sentence, *map(str, problems[1:])]
        raise Refused(problems[0].code, "; ".join(sentences), repairs=repairs)


def check_alike(planes: list[SlicePlane]) -> None:
    """Refuse fewer than three planes, or several sizes, spacings, orientations or references."""
    if len(planes) < 3:  # the only gap of two is confirmed by no other
        raise Refused("too_few_slices", f"{len(planes)} slices, expected at least 3")
    problems = []
    for code, name, values in (
        ("mixed_size", "Rows and Columns", [(plane.rows, plane.columns) for plane in planes]),
        ("mixed_spacing", "PixelSpacing", [plane.spacing_mm for plane in planes]),
        ("mixed_orientation", "ImageOrientationPatient", [plane.orientation for plane in planes]),
    ):
        spread = np.ptp(values, axis=0).max()
        if spread > EQUAL:
            problems.append(Refused(code, f"{name} differ by up to {spread:g} between slices"))
    if (count := len({plane.frame_of_reference_uid for plane in planes})) > 1:
        problems.append(Refused("mixed_frame_of_reference", f"{count} FrameOfReferenceUIDs, not 1"))
    refuse_if(problems)


def overlapping_acquisitions(planes: list[SlicePlane], offsets_mm: Floats) -> list[Refused]:
    """A problem if slices of several acquisitions overlap in space.

    Acquisitions of a slice each, and of blocks that follow each other, make one scan.
    """
    for name in ("number", "time"):
        groups = defaultdict(list)
        for plane, offset_mm in zip(planes, offsets_mm.tolist(), strict=True):
            groups[getattr(plane, f"acquisition_{name}")].append(offset_mm)
        groups.pop("", None)
        spans = sorted((group[0], group[-1]) for group in groups.values() if len(group) > 1)
        if any(after[0] < before[1] - EQUAL for before, after in pairwise(spans)):
            sentence = f"{len(groups)} acquisitions overlap in space; split the series by"
            return [Refused("mixed_acquisitions", f"{sentence} Acquisition{name.title()}")]
    return []


def fit_grid(offsets_mm: Floats) -> tuple[float, float, Floats, Refused | None]:
    """Fit a regular grid by least squares to slices, ascending along the normal.

    Returns its start and step, mm; positions of the slices on it, whole numbers unless uneven; and
    the problem if slices are missing or uneven.

    >>> start_mm, step_mm, grid_index, problem = fit_grid(np.array([0.0, 1.2, 2.5, 3.8, 5.0]))
    >>> round(step_mm, 2), grid_index.tolist(), problem
    (1.26, [0.0, 1.0, 2.0, 3.0, 4.0], None)
    """
    gaps_mm = np.diff(offsets_mm)
    median_mm = float(np.median(gaps_mm))
    jumps = np.rint(gaps_mm / median_mm)
    grid_index = np.concatenate([[0.0], np.cumsum(jumps)])
    centred = grid_index - grid_index.mean()
    step_mm = float(centred @ (offsets_mm - offsets_mm.mean()) / (centred @ centred))
    start_mm = float(offsets_mm.mean() - step_mm * grid_index.mean())
    away_mm = np.abs(offsets_mm - start_mm - step_mm * grid_index).max()
    is_regular = jumps.min() >= 1 and away_mm <= GRID_TOLERANCE * step_mm
    if is_regular and jumps.max() == 1:
        return start_mm, step_mm, grid_index, None
    repairs, limit = ["gaps"], ""
    if gaps_mm.max() > WIDEST_REPAIR * median_mm:
        repairs, limit = [], f"; above {WIDEST_REPAIR} spacings nothing is interpolated"
    if not is_regular:
        sentence = f"gaps go from {gaps_mm.min():.2f} to {gaps_mm.max():.2f} mm{limit}"
        problem = Refused("uneven_gaps", sentence, repairs=repairs)
        return 0.0, median_mm, offsets_mm / median_mm, problem
    wide = np.flatnonzero(jumps > 1)
    gaps = "1 gap" if len(wide) == 1 else f"{len(wide)} gaps, the first"
    sentence = f"{gaps} of {gaps_mm[wide[0]]:.1f} mm at slice {wide[0] + 1}, spacing is"
    problem = Refused("missing_slice", f"{sentence} {step_mm:.1f} mm{limit}", repairs=repairs)
    return start_mm, step_mm, grid_index, problem


def fill_gaps(stored: NDArray[Any], grid_index: Floats, *, linear: bool) -> NDArray[Any]:
    """Interpolate slices ``(columns, rows, slices)`` at positions ``grid_index`` from 0 up."""
    whole = np.arange(int(np.floor(grid_index[-1] + 0.01)) + 1)
    places = np.interp(whole, grid_index, np.arange(len(grid_index)))  # among the stored slices
    regular = np.empty((*stored.shape[:2], len(whole)), stored.dtype, order="F")
    for k, place in enumerate(places if linear else np.ceil(places - 0.5)):
        lower, upper = int(np.floor(place)), int(np.ceil(place))
        mixed = (upper - place) * stored[..., lower] + (1 - upper + place) * stored[..., upper]
        regular[..., k] = np.rint(mixed) if stored.dtype.kind in "iu" else mixed
    return regular


def straighten(
    stored: NDArray[Any], shifts: Floats, *, linear: bool, fill: float
) -> tuple[NDArray[Any], Floats]:
    """Shift each slice ``(columns, rows, slices)`` by columns and rows ``(slices, 2)``.

    The volume is enlarged to hold every slice whole; returned too is the shift of its first voxel.
    """
    low, high = np.floor(shifts.min(axis=0)), np.ceil(shifts.max(axis=0))
    size = tuple((np.array(stored.shape[:2]) + high - low).astype(int).tolist())
    straight = np.empty((*size, stored.shape[2]), stored.dtype, order="F")
    for k, shift in enumerate(shifts):
        values, options = stored[..., k].astype(np.float32), {"order": int(linear), "cval": fill}
        moved = ndimage.affine_transform(values, np.ones(2), low - shift, size, **options)
        straight[..., k] = np.rint(moved) if stored.dtype.kind in "iu" else moved
    return straight, low
