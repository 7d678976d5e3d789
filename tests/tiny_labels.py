"""DICOM SEG, RTSTRUCT and NRRD of a few voxels, and the scan they are drawn on, for tests."""

import gzip
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
FIRST = (-10.0, -20.0, 30.0)  # what write_series has by default
SPACING = (0.8, 0.5)
GAP_MM = 2.5
PANCREAS = ("Pancreas", "15776009", "Pancreas")
LIVER = ("Liver", "10200004", "Liver structure")


@dataclass(frozen=True)
class Frame:
    """One frame of a SEG: pixels ``(rows, columns)``, position LPS mm, segment number."""

    pixels: Any
    position: Sequence[float]
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
    """Where an image is not 0."""
    return np.argwhere(np.asarray(image.dataobj)).tolist()


def at(k: float, column: float = 0, row: float = 0) -> tuple[float, float, float]:
    """Position of a pixel of an axial series as ``write_series`` makes it, LPS mm."""
    return FIRST[0] + column * SPACING[1], FIRST[1] + row * SPACING[0], FIRST[2] + k * GAP_MM


def write_segmentation(
    file: Path,
    frames: Sequence[Frame],
    *,
    segments: Mapping[int, tuple[str, str, str]] | None = None,
    kind: str = "BINARY",
    orientation: Sequence[float] = AXIAL,
    pixel_spacing: tuple[float, float] = SPACING,
    shared: bool = True,
    damage: Callable[[Dataset], None] | None = None,
) -> Path:
    """Write a SEG by hand, of frames in the order they are stored.

    ``segments`` has for each number its label, code and meaning; orientation and spacing, mm, of
    rows and columns stand once, or in every frame; ``damage`` changes the data set.
    """
    uid = LABEL_MAP if kind == "LABELMAP" else SegmentationStorage
    one = bare(uid, "SEG")
    pixels = np.array([frame.pixels for frame in frames], np.uint8)
    one.NumberOfFrames, one.Rows, one.Columns = pixels.shape
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated = one.BitsStored = 1 if kind == "BINARY" else 8
    one.HighBit, one.PixelRepresentation = one.BitsStored - 1, 0
    one.SegmentationType = kind
    if kind == "FRACTIONAL":
        one.SegmentationFractionalType, one.MaximumFractionalValue = "PROBABILITY", 100
    one.SegmentSequence = [
        segment(number, *words) for number, words in (segments or {1: PANCREAS}).items()
    ]
    everywhere = Dataset()
    everywhere.PlaneOrientationSequence = [item(ImageOrientationPatient=decimals(orientation))]
    everywhere.PixelMeasuresSequence = [item(PixelSpacing=decimals(pixel_spacing))]
    one.PerFrameFunctionalGroupsSequence = [Dataset() for _ in frames]
    for group, frame in zip(one.PerFrameFunctionalGroupsSequence, frames, strict=True):
        group.PlanePositionSequence = [item(ImagePositionPatient=decimals(frame.position))]
        if kind != "LABELMAP":
            group.SegmentIdentificationSequence = [item(ReferencedSegmentNumber=frame.segment)]
        if not shared:
            group.update(everywhere)
    one.SharedFunctionalGroupsSequence = [everywhere if shared else Dataset()]
    content = np.packbits(pixels.ravel(), bitorder="little") if kind == "BINARY" else pixels
    one.PixelData = content.tobytes() + b"\0" * (content.size % 2)
    if damage:
        damage(one)
    one.save_as(file, enforce_file_format=True)
    return file


def write_contours(
    file: Path,
    rois: Mapping[str, Sequence[Any]],
    *,
    geometry: str = "CLOSED_PLANAR",
    codes: Mapping[str, tuple[str, str]] | None = None,
    damage: Callable[[Dataset], None] | None = None,
) -> Path:
    """Write an RTSTRUCT by hand: for each ROI, from 1, its contours ``(points, 3)``, LPS mm.

    ``codes`` has a code and its meaning for some ROIs; ``damage`` changes the data set.
    """
    one = bare(RTStructureSetStorage, "RTSTRUCT")
    one.StructureSetROISequence, one.ROIContourSequence = [], []
    one.RTROIObservationsSequence = []
    for number, (name, all_points) in enumerate(rois.items(), start=1):
        one.StructureSetROISequence.append(item(ROINumber=number, ROIName=name))
        contours = [
            item(
                ContourGeometricType=geometry,
                NumberOfContourPoints=len(points),
                ContourData=decimals(np.ravel(points)),
            )
            for points in all_points
        ]
        roi = item(ReferencedROINumber=number, ContourSequence=contours)
        one.ROIContourSequence.append(roi)
        if codes and name in codes:
            code = item(CodeValue=codes[name][0], CodeMeaning=codes[name][1])
            observed = item(ReferencedROINumber=number, RTROIIdentificationCodeSequence=[code])
            one.RTROIObservationsSequence.append(observed)
    if damage:
        damage(one)
    one.save_as(file, enforce_file_format=True)
    return file


def write_nrrd(file: Path, values: Any, *, content: bytes | None = None, **fields: Any) -> Path:
    """Write an NRRD by hand; ``content`` is written in place of the packed voxels.

    Fields of the header have ``_`` for a space, None leaves one out; ``Segment*`` are 3D Slicer's.
    """
    values = np.asarray(values)
    header: dict[str, Any] = {
        "type": {"u": "uchar", "i": "short", "f": "float"}[values.dtype.kind],
        "dimension": values.ndim,
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, values.shape)),
        "space directions": "none " * (values.ndim - 3) + "(0.5,0,0) (0,0.8,0) (0,0,2.5)",
        "endian": "little",
        "encoding": "gzip",
        "space origin": "(-10,-20,30)",
    }
    slicer = {key: value for key, value in fields.items() if key.startswith("Segment")}
    header |= {key.replace("_", " "): fields[key] for key in fields if key not in slicer}
    lines = ["NRRD0004", *(f"{key}: {value}" for key, value in header.items() if value is not None)]
    lines += [f"{key}:={value}" for key, value in slicer.items()]
    packed = gzip.compress(values.tobytes(order="F")) if content is None else content
    file.write_bytes("\n".join([*lines, "", ""]).encode() + packed)
    return file


def damaged(
    content: bytes, *, every: int, changes: int, places: int, behind: int = 0
) -> Iterator[bytes]:
    """A file cut short at ``every`` so many bytes, then copies with bytes changed behind some."""
    for length in range(0, len(content), every):
        yield content[:length]
    random = np.random.default_rng(0)
    for _ in range(changes):
        changed = bytearray(content)
        for place in random.integers(behind, len(content), places):
            changed[place] = random.integers(256)
        yield bytes(changed)


def bare(sop_class: UID, modality: str) -> Dataset:
    """A data set that says what it is."""
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.SOPClassUID, one.SOPInstanceUID = sop_class, generate_uid()
    one.Modality, one.PatientID = modality, "P-1"
    one.StudyInstanceUID, one.SeriesInstanceUID = generate_uid(), generate_uid()
    return one


def item(**values: Any) -> Dataset:
    """An item of a sequence."""
    one = Dataset()
    for keyword, value in values.items():
        setattr(one, keyword, value)
    return one


def segment(number: int, label: str, code: str, meaning: str) -> Dataset:
    """An item of SegmentSequence."""
    kind = item(CodeValue=code, CodingSchemeDesignator="SCT", CodeMeaning=meaning)
    return item(
        SegmentNumber=number,
        SegmentLabel=label,
        SegmentAlgorithmType="MANUAL",
        SegmentedPropertyTypeCodeSequence=[kind],
    )
