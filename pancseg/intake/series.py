"""DICOM series: found in folders, ordered by position in space, read as one volume."""

import struct
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from highdicom.spatial import create_affine_matrix_from_attributes
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError

from pancseg.affine import slices_from_feet
from pancseg.errors import Refused

FLIP_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
READ_FIRST = ["SeriesInstanceUID", "PatientID", "Modality", "QualityControlImage"]
GAP_TOLERANCE = 0.02  # of the spacing; positions are rounded in headers
TILT_TOLERANCE_DEGREES = 0.5
CT_RANGE = (np.iinfo(np.int16).min, np.iinfo(np.int16).max)


@dataclass(frozen=True)
class Series:
    """The files of one series in one folder.

    Attributes:
        folder: Where they lie, relative to the folder searched.
        uid: SeriesInstanceUID, empty where an anonymiser emptied it.
        patient_id: PatientID, empty likewise.
        modality: Modality, such as ``CT``.
        is_phantom: Whether the header says that this is no patient (QualityControlImage).
        files: Paths, in no order that means anything.
    """

    folder: Path
    uid: str
    patient_id: str
    modality: str
    is_phantom: bool
    files: tuple[Path, ...]


def find_series(root: Path) -> tuple[list[Series], list[Path]]:
    """Search a folder at any depth.

    Returns:
        The series, ordered by folder and UID, and the files that are not DICOM.
    """
    groups: dict[tuple[Path, str, str, str, bool], list[Path]] = defaultdict(list)
    foreign: list[Path] = []
    for path in sorted(file for file in root.rglob("*") if file.is_file()):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(READ_FIRST))
        except (InvalidDicomError, EOFError, OSError, ValueError, struct.error):
            foreign.append(path)
            continue
        uid, patient, modality, control = (str(header.get(key) or "") for key in READ_FIRST)
        folder = path.parent.relative_to(root)
        groups[folder, uid, patient.strip(), modality, control == "YES"].append(path)
    series = [Series(*key, files=tuple(files)) for key, files in groups.items()]
    return sorted(series, key=lambda one: (one.folder, one.uid)), foreign


def read_ct(series: Series) -> nib.Nifti1Image:
    """Read a CT series as HU.

    Raises:
        Refused: If it is not CT, or not a regular stack of slices.
    """
    if series.modality != "CT":
        raise Refused("not_ct", f"modality is {series.modality or 'empty'}, expected CT")
    return read_stack(series.files)


def read_mask(series: Series) -> nib.Nifti1Image:
    """Read a series of mask slices: any value but 0 is foreground, as 1.

    Raises:
        Refused: If it is not a regular stack, or has no background, as where a mask was saved
            with the intercept of its CT.
    """
    stack = read_stack(series.files)
    values = np.asanyarray(stack.dataobj)
    if values.all():
        span = f"{values.min()} to {values.max()}"
        raise Refused("no_background", f"no voxel is 0, values go from {span}")
    mask = (values != 0).astype(np.uint8)
    return nib.Nifti1Image(mask, stack.affine)


def read_stack(files: tuple[Path, ...]) -> nib.Nifti1Image:
    """Read slices, order them by position along their normal, apply slope and intercept.

    Returns:
        ``(columns, rows, slices)`` in RAS mm, slice 0 nearest the feet; int16 where all values
        are whole numbers, else float32.

    Raises:
        Refused: If the slices do not form one regular stack.
    """
    slices: list[pydicom.Dataset] = [pydicom.dcmread(file) for file in files]
    for file, one in zip(files, slices, strict=True):
        check_slice(one, file.name)
    check_alike(slices)
    first = slices[0]
    orientation = [float(value) for value in first.ImageOrientationPatient]
    normal = np.cross(orientation[:3], orientation[3:])
    normal /= np.linalg.norm(normal)  # headers hold few decimals
    positions = np.array([one.ImagePositionPatient for one in slices], dtype=float)
    order = np.argsort(positions @ normal, kind="stable")
    spacing_mm = regular_spacing(positions[order], normal)
    affine = create_affine_matrix_from_attributes(
        image_position=positions[order[0]],
        image_orientation=orientation,
        pixel_spacing=[float(value) for value in first.PixelSpacing],
        spacing_between_slices=spacing_mm,
        index_convention="RD",
    )
    volume = stack_pixels([slices[i] for i in order])
    return slices_from_feet(nib.Nifti1Image(volume, FLIP_LPS_TO_RAS @ affine))


def check_slice(one: pydicom.Dataset, name: str) -> None:
    """Check that a file has what places a slice in space and gives its values.

    Raises:
        Refused: Naming the file and what it lacks.
    """
    needed = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
    for keyword, length in needed.items():
        values = np.atleast_1d(np.array(one.get(keyword), dtype=float))  # None becomes NaN
        if len(values) != length or not np.isfinite(values).all():
            raise Refused("no_geometry", f"{name} has no usable {keyword}")
    if min(one.PixelSpacing) <= 0:
        raise Refused("no_geometry", f"{name} has PixelSpacing {list(one.PixelSpacing)}")
    if "PixelData" not in one:
        raise Refused("no_pixels", f"{name} has no pixel data")
    if rescale(one)[0] == 0:
        raise Refused("no_rescale", f"{name} has RescaleSlope 0")


def check_alike(slices: list[pydicom.Dataset]) -> None:
    """Check that slices have one size, one pixel spacing and one orientation.

    Raises:
        Refused: With the values found.
    """
    if len(slices) < 2:
        raise Refused("too_few_slices", f"{len(slices)} slice, expected at least 2")
    sizes = sorted({(one.Rows, one.Columns) for one in slices})
    if len(sizes) > 1:
        raise Refused("mixed_size", f"rows and columns are {sizes}, expected one size")
    for keyword, code in (
        ("PixelSpacing", "mixed_spacing"),
        ("ImageOrientationPatient", "mixed_orientation"),
    ):
        values = np.array([one.get(keyword) for one in slices], dtype=float)
        if np.ptp(values, axis=0).max() > 1e-3:
            low, high = values.min(axis=0).tolist(), values.max(axis=0).tolist()
            raise Refused(code, f"{keyword} goes from {low} to {high}")


def regular_spacing(positions: NDArray[np.float64], normal: NDArray[np.float64]) -> float:
    """Distance between neighbouring slices, if there is one.

    Args:
        positions: ``(slices, 3)`` in order along the normal, mm.
        normal: Unit vector.

    Raises:
        Refused: If slices share a position, one is missing, gaps are uneven or the stack leans.
    """
    gaps_mm = np.diff(positions @ normal)
    spacing_mm = float(np.median(gaps_mm))
    shared = int((gaps_mm < 1e-3).sum())
    if shared:
        raise Refused("same_position", f"{shared + 1} slices or more share a position")
    wide = np.flatnonzero(gaps_mm > 1.5 * spacing_mm)
    if len(wide):
        gaps = "1 gap" if len(wide) == 1 else f"{len(wide)} gaps, the first"
        raise Refused(
            "missing_slice",
            f"{gaps} of {gaps_mm[wide[0]]:.1f} mm at slice {wide[0] + 1}, "
            f"spacing is {spacing_mm:.1f} mm",
        )
    uneven_mm = np.abs(gaps_mm - spacing_mm).max()
    if uneven_mm > max(GAP_TOLERANCE * spacing_mm, 0.01):
        raise Refused("uneven_gaps", f"gaps go from {gaps_mm.min():.2f} to {gaps_mm.max():.2f} mm")
    check_straight(positions, normal, max(GAP_TOLERANCE * spacing_mm, 0.1))
    return float(gaps_mm.mean())


def check_straight(
    positions: NDArray[np.float64], normal: NDArray[np.float64], tolerance_mm: float
) -> None:
    """Check that slices are stacked along their normal, none of them beside the stack.

    Raises:
        Refused: With the angle or the distance.
    """
    lean = positions[-1] - positions[0]
    degrees = np.degrees(np.arccos(np.clip(lean @ normal / np.linalg.norm(lean), -1, 1)))
    if degrees > TILT_TOLERANCE_DEGREES:
        raise Refused("gantry_tilt", f"slices are stacked at {degrees:.1f} degrees to their normal")
    steps = np.arange(len(positions))[:, None] * lean / (len(positions) - 1)
    beside_mm = np.linalg.norm(np.cross(positions - positions[0] - steps, normal), axis=1).max()
    if beside_mm > tolerance_mm:
        raise Refused("shifted_slice", f"a slice lies {beside_mm:.1f} mm beside the stack")


def rescale(one: pydicom.Dataset) -> tuple[float, float]:
    """Slope and intercept; 1 and 0 where they are absent or empty.

    >>> one = pydicom.Dataset(); one.RescaleIntercept = -1024
    >>> rescale(one)
    (1.0, -1024.0)
    """
    slope, intercept = one.get("RescaleSlope"), one.get("RescaleIntercept")
    return 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)


def stack_pixels(slices: list[pydicom.Dataset]) -> NDArray[Any]:
    """Stack pixel values times slope plus intercept, ``(columns, rows, slices)``.

    Takes the pixels out of the slices as it goes: one copy of a scan in memory is enough.
    """
    planes: list[NDArray[Any]] = []
    for one in slices:
        slope, intercept = rescale(one)
        plane = one.pixel_array.T * np.float32(slope) + np.float32(intercept)
        planes.append(smallest_type(plane))
        del one.PixelData
        one._pixel_array = None
    return np.stack(planes, axis=-1)


def smallest_type(values: NDArray[np.float32]) -> NDArray[np.int16] | NDArray[np.float32]:
    """int16 where that loses nothing, else float32.

    >>> smallest_type(np.float32([-1024, 40])).dtype, smallest_type(np.float32([0.5])).dtype
    (dtype('int16'), dtype('float32'))
    """
    low, high = CT_RANGE
    inside = values.min() >= low and values.max() <= high
    if inside and np.array_equal(whole := np.rint(values).astype(np.int16), values):
        return whole
    return values.astype(np.float32)
