"""DICOM SEG, RTSTRUCT and NRRD of a few voxels, and the scan they are drawn on, for tests."""

import gzip
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    RTStructureSetStorage,
    SegmentationStorage,
    generate_uid,
)

from pancseg.dicom.series import Repair, Scan, read_series
from pancseg.structures import Label, Structure, parse_structures
from tests.tiny_dicom import AXIAL, decimals, write_series

LABEL_MAP = UID("1.2.840.10008.5.1.4.1.1.66.7")  # pydicom 3.0 has no name for it
FIRST, SPACING, GAP_MM = (-10.0, -20.0, 30.0), (0.8, 0.5), 2.5  # as write_series has by default
PANCREAS = ("Pancreas", "15776009", "Pancreas")
LIVER = ("Liver", "10200004", "Liver structure")


class Frame(NamedTuple):
    pixels: Any  # (rows, columns)
    position: Sequence[float]  # LPS mm
    segment: int = 1


def scan_of(folder: Path, repair: Repair = Repair(), **options: Any) -> Scan:  # noqa: B008
    """A series as ``write_series`` makes it, as read."""
    return read_series(tuple(sorted(write_series(folder, **options).iterdir())), repair)


def structures(*labels: Sequence[Label] | None) -> tuple[Structure, ...]:
    """A structure for each list of labels, by default one of every label."""
    entry = {"code": "15776009", "kind": "organ", "volume_ml": [15, 300]}
    chosen = enumerate(labels or (None,), start=1)
    return parse_structures({f"structure_{n}": {**entry, "labels": each} for n, each in chosen})


def voxels(image: Any) -> list[list[int]]:
    return np.argwhere(np.asarray(image.dataobj)).tolist()


def at(k: float, column: float = 0, row: float = 0) -> tuple[float, float, float]:
    """Position of a pixel of an axial series as ``write_series`` makes it, LPS mm."""
    return FIRST[0] + column * SPACING[1], FIRST[1] + row * SPACING[0], FIRST[2] + k * GAP_MM


def item(**values: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def bare(sop_class: UID, modality: str, **values: Any) -> Dataset:
    dataset = item(
        SOPClassUID=sop_class, SOPInstanceUID=generate_uid(), Modality=modality, PatientID="P-1",
        StudyInstanceUID=generate_uid(), SeriesInstanceUID=generate_uid(), **values,
    )  # fmt: skip
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def save(file: Path, dataset: Dataset, damage: Callable[[Dataset], None] | None) -> Path:
    if damage:
        damage(dataset)
    dataset.save_as(file, enforce_file_format=True)
    return file


def write_segmentation(
    file: Path, frames: Sequence[Frame], *,
    segments: Mapping[int, tuple[str, str, str]] | None = None,  # label, code and meaning of each
    kind: str = "BINARY",
    orientation: Sequence[float] = AXIAL,
    pixel_spacing: tuple[float, float] = SPACING,  # mm from row to row, from column to column
    damage: Callable[[Dataset], None] | None = None,
) -> Path:  # fmt: skip
    """Write a SEG by hand, of frames in the order they are stored."""
    pixels = np.array([frame.pixels for frame in frames], np.uint8)
    bits = 1 if kind == "BINARY" else 8
    content = np.packbits(pixels.ravel(), bitorder="little") if kind == "BINARY" else pixels
    grid = {
        "PlaneOrientationSequence": [item(ImageOrientationPatient=decimals(orientation))],
        "PixelMeasuresSequence": [item(PixelSpacing=decimals(pixel_spacing))],
    }
    groups = []
    for frame in frames:
        place = [item(ImagePositionPatient=decimals(frame.position))]
        group = item(PlanePositionSequence=place)
        if kind != "LABELMAP":
            group.SegmentIdentificationSequence = [item(ReferencedSegmentNumber=frame.segment)]
        groups.append(group)
    dataset = bare(
        LABEL_MAP if kind == "LABELMAP" else SegmentationStorage, "SEG",
        NumberOfFrames=len(frames), Rows=pixels.shape[1], Columns=pixels.shape[2],
        SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", PixelRepresentation=0,
        BitsAllocated=bits, BitsStored=bits, HighBit=bits - 1, SegmentationType=kind,
        SegmentSequence=[segment(n, *words) for n, words in (segments or {1: PANCREAS}).items()],
        PerFrameFunctionalGroupsSequence=groups,
        SharedFunctionalGroupsSequence=[item(**grid)],
        PixelData=content.tobytes() + b"\0" * (content.size % 2),
    )  # fmt: skip
    if kind == "FRACTIONAL":
        dataset.SegmentationFractionalType, dataset.MaximumFractionalValue = "PROBABILITY", 100
    return save(file, dataset, damage)


def segment(number: int, label: str, code: str, meaning: str) -> Dataset:
    kind = item(CodeValue=code, CodingSchemeDesignator="SCT", CodeMeaning=meaning)
    named = {"SegmentNumber": number, "SegmentLabel": label, "SegmentAlgorithmType": "MANUAL"}
    return item(**named, SegmentedPropertyTypeCodeSequence=[kind])


def write_contours(
    file: Path, rois: Mapping[str, Sequence[Any]], *,
    geometry: str = "CLOSED_PLANAR",
    codes: Mapping[str, tuple[str, str]] | None = None,  # code and meaning of some ROIs
    damage: Callable[[Dataset], None] | None = None,
) -> Path:  # fmt: skip
    """Write an RTSTRUCT by hand: for each ROI, from 1, its contours ``(points, 3)``, LPS mm."""
    dataset = bare(RTStructureSetStorage, "RTSTRUCT", RTROIObservationsSequence=[])
    dataset.StructureSetROISequence = [
        item(ROINumber=number, ROIName=name) for number, name in enumerate(rois, start=1)
    ]
    dataset.ROIContourSequence = [
        item(ReferencedROINumber=number, ContourSequence=[contour(geometry, p) for p in outlines])
        for number, outlines in enumerate(rois.values(), start=1)
    ]
    for number, name in enumerate(rois, start=1):
        if name in (codes or {}):
            code = dict(zip(("CodeValue", "CodeMeaning"), codes[name], strict=True))
            own = {"RTROIIdentificationCodeSequence": [item(**code)]}
            dataset.RTROIObservationsSequence.append(item(ReferencedROINumber=number, **own))
    return save(file, dataset, damage)


def contour(geometry: str, points: Any) -> Dataset:
    numbers = {"NumberOfContourPoints": len(points), "ContourData": decimals(np.ravel(points))}
    return item(ContourGeometricType=geometry, **numbers)


def write_nrrd(file: Path, values: Any, *, content: bytes | None = None, **fields: Any) -> Path:
    """Write an NRRD by hand; ``content`` is written in place of the packed voxels.

    Fields of the header have ``_`` for a space, None leaves one out; ``Segment*`` are 3D Slicer's.
    """
    values = np.asarray(values)
    header: dict[str, Any] = {
        "type": {"u": "uchar", "i": "short", "f": "float"}[values.dtype.kind],
        "dimension": values.ndim, "space": "left-posterior-superior",
        "sizes": " ".join(map(str, values.shape)),
        "space directions": "none " * (values.ndim - 3) + "(0.5,0,0) (0,0.8,0) (0,0,2.5)",
        "endian": "little", "encoding": "gzip", "space origin": "(-10,-20,30)",
    }  # fmt: skip
    slicer = {key: value for key, value in fields.items() if key.startswith("Segment")}
    header |= {key.replace("_", " "): fields[key] for key in fields if key not in slicer}
    lines = ["NRRD0004", *(f"{key}: {value}" for key, value in header.items() if value is not None)]
    lines += [f"{key}:={value}" for key, value in slicer.items()]
    packed = gzip.compress(values.tobytes(order="F")) if content is None else content
    file.write_bytes("\n".join([*lines, "", ""]).encode() + packed)
    return file
