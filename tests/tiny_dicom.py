"""DICOM series of a few voxels, written for tests."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def write_series(
    folder: Path,
    *,
    count: int = 5,
    size: tuple[int, int] = (4, 3),
    pixels: Any = None,
    first: Sequence[float] = (-10.0, -20.0, 30.0),
    gap_mm: float = 2.5,
    positions: Any = None,
    orientation: Sequence[float] = AXIAL,
    pixel_spacing: tuple[float, float] = (0.8, 0.5),
    slope: float = 1.0,
    intercept: float | Sequence[float] = 0.0,
    names: Sequence[str] | None = None,
    series_uid: str | None = None,
    patient_id: str = "P-1",
    modality: str = "CT",
    damage: Callable[[list[Dataset]], None] | None = None,
) -> Path:
    """Write a series whose file names and InstanceNumbers both give a wrong order.

    Args:
        folder: Where to; made if missing.
        count: Slices, where neither pixels nor positions say.
        size: Rows, columns.
        pixels: Stored values, ``(slices, rows, columns)``; by default
            ``100 * slice + 10 * row + column``.
        first: Position of the first slice, LPS mm.
        gap_mm: From slice to slice, along the normal.
        positions: ``(slices, 3)``, LPS mm, in place of first and gap.
        orientation: Direction of a row, then of a column, LPS.
        pixel_spacing: From row to row, then from column to column, mm.
        slope: RescaleSlope.
        intercept: RescaleIntercept, of all slices or of each.
        names: File names, in the order of the slices.
        series_uid: A new one if not given.
        patient_id: May be empty.
        modality: As in the header.
        damage: Is given the slices, in order, before they are written.
    """
    if positions is None:
        count = count if pixels is None else len(pixels)
        normal = np.cross(orientation[:3], orientation[3:])
        positions = np.array(first) + gap_mm * np.arange(count)[:, None] * normal
    count = len(positions)
    if pixels is None:
        n, row, column = np.indices((count, *size))
        pixels = 100 * n + 10 * row + column
    intercepts = np.broadcast_to(intercept, count)
    uid, frame = series_uid or generate_uid(), generate_uid()
    slices = []
    for n in range(count):
        one = make_slice(np.asarray(pixels[n]))
        one.SeriesInstanceUID, one.FrameOfReferenceUID = uid, frame
        one.PatientID, one.Modality = patient_id, modality
        one.InstanceNumber = (3 * n) % count + 1
        one.ImagePositionPatient = decimals(positions[n])
        one.ImageOrientationPatient = decimals(orientation)
        one.PixelSpacing = decimals(pixel_spacing)
        one.RescaleSlope, one.RescaleIntercept = decimals((slope, intercepts[n]))
        slices.append(one)
    if damage:
        damage(slices)
    folder.mkdir(parents=True, exist_ok=True)
    for one, name in zip(slices, names or wrong_order(count), strict=True):
        one.save_as(folder / name, enforce_file_format=True)
    return folder


def make_slice(pixels: np.ndarray) -> Dataset:
    """A CT image with pixels, but without a place."""
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, generate_uid()
    one.PatientName = "Secret^Name"
    one.StudyInstanceUID = generate_uid()
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.Rows, one.Columns = pixels.shape
    one.BitsAllocated = one.BitsStored = 16
    one.HighBit, one.PixelRepresentation = 15, 1
    one.PixelData = pixels.astype("<i2").tobytes()
    return one


def decimals(values: Sequence[float]) -> list[str]:
    """Numbers as DICOM writes them: at most 16 characters."""
    return [format_number_as_ds(float(value)) for value in values]


def wrong_order(count: int) -> list[str]:
    """File names that sort neither by position nor by InstanceNumber."""
    return [f"{(2 * n + 1) % (count + 1):03}-{n}.dcm" for n in range(count)]
