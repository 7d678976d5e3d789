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
    return find_series(folder, [path for path in folder.rglob("*") if not path.is_dir()])


def read(folder: Path, **repair: bool) -> Scan:
    (series,), _ = find(folder)
    assert series.problem == ""
    return read_series(series.files, Repair(**repair))


def put(*which: int, **values: Any) -> Callable[[list[Dataset]], None]:
    """Set attributes of some slices, by default of all; None removes them."""

    def damage(slices: list[Dataset]) -> None:
        for dataset in [slices[n] for n in which] or slices:
            for keyword, value in values.items():
                delattr(dataset, keyword) if value is None else setattr(dataset, keyword, value)

    return damage


def write_series(
    folder: Path, *,
    count: int = 5,
    size: tuple[int, int] = (4, 3),  # rows, columns
    pixels: Any = None,  # stored values, (slices, rows, columns), else 100 slice + 10 row + column
    first: Sequence[float] = (-10.0, -20.0, 30.0),  # LPS mm
    gap_mm: float = 2.5,  # along the normal
    positions: Any = None,  # (slices, 3), LPS mm, instead of first and gap
    orientation: Sequence[float] = AXIAL,
    pixel_spacing: tuple[float, float] = (0.8, 0.5),
    slope: float = 1.0,
    intercept: float | Sequence[float] = 0.0,  # of all slices or of each
    names: Sequence[str] | None = None,
    series_uid: str | None = None,  # by default a new one
    patient_id: str = "P-1",
    modality: str = "CT",
    damage: Callable[[list[Dataset]], None] | None = None,  # changes the slices before writing
) -> Path:  # fmt: skip
    """Write a series in which neither file names nor InstanceNumbers are in order."""
    if positions is None:
        count = count if pixels is None else len(pixels)
        normal = np.cross(orientation[:3], orientation[3:])
        positions = np.array(first) + gap_mm * np.arange(count)[:, None] * normal
    count = len(positions)
    if pixels is None:
        pixels = np.tensordot([100, 10, 1], np.indices((count, *size)), axes=1)
    intercepts = np.broadcast_to(intercept, count)
    uid, frame = series_uid or generate_uid(), generate_uid()
    slices = [make_slice(np.asarray(values)) for values in pixels]
    for n, dataset in enumerate(slices):
        dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = uid, frame
        dataset.PatientID, dataset.Modality = patient_id, modality
        dataset.InstanceNumber = (3 * n) % count + 1
        dataset.ImagePositionPatient = decimals(positions[n])
        dataset.ImageOrientationPatient = decimals(orientation)
        dataset.PixelSpacing = decimals(pixel_spacing)
        dataset.RescaleSlope, dataset.RescaleIntercept = decimals((slope, intercepts[n]))
    if damage:
        damage(slices)
    folder.mkdir(parents=True, exist_ok=True)
    wrong_order = [f"{(2 * n + 1) % (count + 1):03}-{n}.dcm" for n in range(count)]
    for dataset, name in zip(slices, names or wrong_order, strict=True):
        dataset.save_as(folder / name, enforce_file_format=True)
    return folder


def make_slice(pixels: np.ndarray) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
    dataset.PatientName, dataset.StudyInstanceUID = "Secret^Name", generate_uid()
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.PixelData = pixels.astype("<i2").tobytes()
    return dataset


def decimals(values: Sequence[float]) -> list[str]:
    """Numbers as DICOM writes them: at most 16 characters."""
    return [format_number_as_ds(float(value)) for value in values]
