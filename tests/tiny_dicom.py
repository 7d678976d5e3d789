"""DICOM series of a few voxels, written for tests, and read back."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

from pancseg.dicom.series import Repair, Scan, Series, SkippedFile, find_series, read_series

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def find(folder: Path) -> tuple[list[Series], list[SkippedFile]]:
    """Search a folder at any depth."""
    return find_series(folder, [path for path in folder.rglob("*") if not path.is_dir()])


def read(folder: Path, **repair: bool) -> Scan:
    """Read the only series of a folder."""
    (series,), _ = find(folder)
    assert series.problem == ""
    return read_series(series.files, Repair(**repair))


def put(**values: Any) -> Callable[[list[Dataset]], None]:
    """Set attributes of every slice; None removes them."""

    def damage(slices: list[Dataset]) -> None:
        for dataset in slices:
            for keyword, value in values.items():
                if value is None:
                    delattr(dataset, keyword)
                else:
                    setattr(dataset, keyword, value)

    return damage


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
    """Write a series in which neither file names nor InstanceNumbers are in order.

    Args:
        folder: Made if missing.
        count: Slices, if neither pixels nor positions are given.
        size: Rows, columns.
        pixels: Stored values, ``(slices, rows, columns)``; by default
            ``100 * slice + 10 * row + column``.
        first: Position of the first slice, LPS mm.
        gap_mm: From slice to slice, along the normal.
        positions: ``(slices, 3)``, LPS mm, instead of first and gap.
        orientation: Direction of a row, then of a column, LPS.
        pixel_spacing: From row to row, then from column to column, mm.
        slope: RescaleSlope.
        intercept: RescaleIntercept, of all slices or of each.
        names: File names, in the order of the slices.
        series_uid: By default a new one.
        patient_id: May be empty.
        modality: As in the header.
        damage: Changes the slices, in order, before they are written.
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
        dataset = make_slice(np.asarray(pixels[n]))
        dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = uid, frame
        dataset.PatientID, dataset.Modality = patient_id, modality
        dataset.InstanceNumber = (3 * n) % count + 1
        dataset.ImagePositionPatient = decimals(positions[n])
        dataset.ImageOrientationPatient = decimals(orientation)
        dataset.PixelSpacing = decimals(pixel_spacing)
        dataset.RescaleSlope, dataset.RescaleIntercept = decimals((slope, intercepts[n]))
        slices.append(dataset)
    if damage:
        damage(slices)
    folder.mkdir(parents=True, exist_ok=True)
    for dataset, name in zip(slices, names or wrong_order(count), strict=True):
        dataset.save_as(folder / name, enforce_file_format=True)
    return folder


def make_slice(pixels: np.ndarray) -> Dataset:
    """A CT image with pixels, but without position."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
    dataset.PatientName = "Secret^Name"
    dataset.StudyInstanceUID = generate_uid()
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.PixelData = pixels.astype("<i2").tobytes()
    return dataset


def decimals(values: Sequence[float]) -> list[str]:
    """Numbers as DICOM writes them: at most 16 characters."""
    return [format_number_as_ds(float(value)) for value in values]


def wrong_order(count: int) -> list[str]:
    """File names in neither the order of position nor of InstanceNumber."""
    return [f"{(2 * n + 1) % (count + 1):03}-{n}.dcm" for n in range(count)]
