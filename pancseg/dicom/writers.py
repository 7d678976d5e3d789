"""Write label maps as DICOM SEG with highdicom, and as RTSTRUCT with borders traced by pixel."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
from highdicom.valuerep import check_person_name
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import empty_value_for_VR
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage, ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from pydicom.valuerep import DA, TM
from scipy import ndimage

from pancseg import __version__
from pancseg.dicom.pixels import Floats, SlicePlane, read_dataset
from pancseg.dicom.series import SliceStack
from pancseg.errors import Refused, parsing, quiet
from pancseg.files import replaced
from pancseg.geometry import oriented_like
from pancseg.structures import Structure, region_mask

# attributes that must be present and may be empty; anonymisers remove them
MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate",
    "StudyTime", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
# parsers of the attributes that highdicom parses; they raise for a value that it would refuse
PARSERS: dict[str, Callable[[Any], Any]] = {
    "SpecificCharacterSet": lambda names: [python_encoding[str(n)] for n in np.atleast_1d(names)],
    "PatientName": check_person_name,
    "PatientBirthDate": DA,
    "PatientSex": hd.PatientSexValues,
    "StudyDate": DA,
    "StudyTime": TM,
    "SliceThickness": float,
}
DIGITS = 4  # of a mm: far below half a pixel, and no number is longer than DICOM's 16 characters
COLOURS = ([255, 90, 79], [79, 157, 255], [255, 200, 60], [110, 210, 120])
STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # retired, but still required in an RTSTRUCT
# headings of an edge: east, south, west, north; each is a right turn from the one before
EAST, WEST, STEPS = 0, 2, ((1, 0), (0, 1), (-1, 0), (0, -1))  # steps in columns and rows


def write_seg(
    path: Path, labels: nib.Nifti1Image, structures: Sequence[Structure], stack: SliceStack
) -> list[str]:
    """Write a label map as a binary DICOM SEG with a segment for each structure.

    ``labels`` are uint8 structure codes on the grid of the series, slice 0 nearest the feet.
    Returned are the keywords of attributes whose value in the series is invalid; they are empty in
    the SEG. Refused if the series is resampled, lacks a UID, or has several multi-frame files.
    """
    headers, invalid = read_headers(stack, "seg")
    first, frames = next(iter(headers.values())), frames_of(labels, stack)
    if len(headers) == 1:  # multi-frame, in any order
        pixels = np.zeros((int(first.NumberOfFrames), *frames.shape[1:]), np.uint8)
        pixels[[plane.frame for plane in stack.planes]] = frames
        frames = pixels
    elif len(headers) < len(frames):
        raise Refused("seg_frames", "the series has several multi-frame files; a SEG refers to one")
    lesion, organ = codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.AnatomicalStructure
    ai, algorithm = codes.DCM.ArtificialIntelligence, hd.AlgorithmIdentificationSequence
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=title_of([structure]),
            segmented_property_category=lesion if structure.kind == "lesion" else organ,
            segmented_property_type=code_of(structure),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm("pancseg", family=ai, version=__version__),
        )
        for number, structure in enumerate(structures, start=1)
    ]
    with quiet():
        seg = hd.seg.Segmentation(
            source_images=list(headers.values()),
            pixel_array=np.stack([region_mask(frames, s) for s in structures], axis=-1),
            segmentation_type="BINARY",
            segment_descriptions=segments,
            content_label="_".join(s.name for s in structures).upper()[:16],
            content_description=f"{title_of(structures)}, not for clinical use",
            specific_character_set=None,  # highdicom refuses an empty value among several
            **new_instance(900),
        )
        seg.ContentCreatorName = ""  # required; highdicom omits an empty one
        return save(path, seg, first, invalid)


def code_of(structure: Structure) -> Code:
    """SNOMED CT code of a structure, with its meaning where pydicom knows it, else its name."""
    known = (code for code in codes.SCT.concepts.values() if code.value == structure.code)
    return next(known, Code(structure.code, "SCT", title_of([structure])))


def title_of(structures: Sequence[Structure]) -> str:
    """Names as a title of at most 40 characters, such as ``Left kidney``."""
    return ", ".join(s.name.replace("_", " ").capitalize() for s in structures)[:40]


def new_instance(series_number: int) -> dict[str, Any]:
    """Arguments of highdicom for the only instance of a new series."""
    uids = {f"{level}_instance_uid": generate_uid() for level in ("series", "sop")}
    numbers = {"series_number": series_number, "instance_number": 1, "device_serial_number": "0"}
    names = dict.fromkeys(("manufacturer", "manufacturer_model_name"), "pancseg")
    return {**uids, **numbers, **names, "software_versions": __version__}


def read_headers(stack: SliceStack, kind: str) -> tuple[dict[Path, Dataset], list[str]]:
    """Read the header of each file of a series, in the order of its slices, without pixels.

    Attributes that DICOM requires and anonymisers remove are added, invalid ones of the first file
    emptied and returned. Refusals, of series without UID or resampled, begin with ``kind``.
    """
    if stack.repairs:
        raise Refused(f"{kind}_repaired", "the series was interpolated; nothing can refer to it")
    headers: dict[Path, Dataset] = {}
    invalid: list[str] = []
    for file in dict.fromkeys(plane.file for plane in stack.planes):
        with parsing(file):
            header = headers[file] = read_dataset(file, stop_before_pixels=True)
            if len(headers) == 1:
                first, invalid = header, empty_invalid(header)
            needed = [f"{level}InstanceUID" for level in ("SOP", "Series", "Study")]
            if missing := [name for name in needed if not header.get(name)]:
                sentence = f"the series has no {', '.join(missing)} to refer to"
                raise Refused(f"{kind}_no_uid", sentence)
            for keyword in MAY_BE_EMPTY:
                header.setdefault(keyword, "")
            if not header.get("SOPClassUID"):
                header.SOPClassUID = CTImageStorage
            if not header.get("FrameOfReferenceUID"):
                sources = [str(header.SeriesInstanceUID), "frame of reference"]
                header.FrameOfReferenceUID = generate_uid(entropy_srcs=sources)
            if "ImageOrientationPatient" in header:  # highdicom wants equal digits
                header["ImageOrientationPatient"] = first["ImageOrientationPatient"]
    if len(headers) > 1 and not first.get("SliceThickness"):  # highdicom wants it
        first.SliceThickness = round(stack.step_mm, 4)
    return headers, invalid


def empty_invalid(header: Dataset) -> list[str]:
    """Empty attributes that pydicom or highdicom cannot parse; return their keywords."""
    invalid = []
    for keyword in header.dir():
        try:
            if value := header[keyword].value:
                PARSERS.get(keyword, bool)(value)
        except Exception:  # damaged values raise nearly any
            vr = dictionary_VR(keyword)
            header.add_new(keyword, vr, empty_value_for_VR(vr))
            invalid.append(keyword)
    return invalid


def frames_of(labels: nib.Nifti1Image, stack: SliceStack) -> NDArray[np.uint8]:
    """Codes as frames ``(slices, rows, columns)``, in the order of the slices of a series."""
    stored = nib.Nifti1Image(np.zeros(stack.shape, np.uint8), stack.affine_at(stack.corner_mm))
    turned = np.asanyarray(oriented_like(labels, stored).dataobj)
    return np.ascontiguousarray(turned.transpose(2, 1, 0).astype(np.uint8))


def save(path: Path, dataset: Dataset, header: Dataset, invalid: list[str]) -> list[str]:
    """Save in the character set of a header; return which of its invalid attributes were copied."""
    names = header.get("SpecificCharacterSet")
    if "SpecificCharacterSet" in invalid:
        names = "ISO_IR 192"  # UTF-8, which holds all that pydicom decoded
    if names:
        dataset.SpecificCharacterSet = names
    with replaced(path) as temporary:
        dataset.save_as(temporary)
    return [keyword for keyword in invalid if keyword in dataset]


def write_rtstruct(
    path: Path, labels: nib.Nifti1Image, structures: Sequence[Structure], stack: SliceStack
) -> list[str]:
    """Write a label map as an RT Structure Set with an ROI for each structure, as ``write_seg``.

    Contours run along the borders of pixels, so that filling them by pixel centres gives the mask
    again. An empty mask is an ROI without contours.
    """
    headers, invalid = read_headers(stack, "rtstruct")
    frames = frames_of(labels, stack)
    with quiet():
        dataset = structure_set(headers, title_of(structures))
        dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
        dataset.RTROIObservationsSequence = []
        for number, structure in enumerate(structures, start=1):
            roi = item(
                ROINumber=number,
                ReferencedFrameOfReferenceUID=dataset.FrameOfReferenceUID,
                ROIName=title_of([structure]),
                ROIGenerationAlgorithm="AUTOMATIC",
                ROIGenerationDescription=f"pancseg {__version__}",
            )
            observation = item(
                ObservationNumber=number,
                ReferencedROINumber=number,
                RTROIIdentificationCodeSequence=[hd.sr.CodedConcept.from_code(code_of(structure))],
                RTROIInterpretedType="ORGAN" if structure.kind == "organ" else "",
                ROIInterpreter="",
            )
            colour = COLOURS[(number - 1) % len(COLOURS)]
            outlines = item(ReferencedROINumber=number, ROIDisplayColor=colour)
            if contours := [
                contour(outline, plane, headers[plane.file])
                for frame, plane in zip(frames, stack.planes, strict=True)
                if (mask := region_mask(frame, structure)).any()
                for outline in trace_borders(mask.T)
            ]:
                outlines.ContourSequence = contours
            dataset.StructureSetROISequence.append(roi)
            dataset.ROIContourSequence.append(outlines)
            dataset.RTROIObservationsSequence.append(observation)
        return save(path, dataset, next(iter(headers.values())), invalid)


def structure_set(headers: Mapping[Path, Dataset], title: str) -> hd.SOPClass:
    """A structure set that refers to images, without ROIs."""
    first, now = next(iter(headers.values())), datetime.now()
    dataset = hd.SOPClass(
        study_instance_uid=first.StudyInstanceUID,
        sop_class_uid=RTStructureSetStorage,
        modality="RTSTRUCT",
        transfer_syntax_uid=ImplicitVRLittleEndian,  # explicit lengths end at 64 kB
        series_description=f"{title}, not for clinical use",
        **new_instance(901),
    )
    dataset.copy_patient_and_study_information(first)
    dataset.OperatorsName = dataset.PositionReferenceIndicator = ""
    dataset.FrameOfReferenceUID = first.FrameOfReferenceUID
    dataset.StructureSetLabel, dataset.StructureSetName = title.upper()[:16], title
    dataset.StructureSetDate, dataset.StructureSetTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
    dataset.ApprovalStatus = "UNAPPROVED"
    images = [reference(header.SOPClassUID, header.SOPInstanceUID) for header in headers.values()]
    series = item(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=images)
    study = reference(STUDY_CLASS, first.StudyInstanceUID, RTReferencedSeriesSequence=[series])
    frame = item(FrameOfReferenceUID=first.FrameOfReferenceUID, RTReferencedStudySequence=[study])
    dataset.ReferencedFrameOfReferenceSequence = [frame]
    return dataset


def contour(outline: Floats, plane: SlicePlane, header: Dataset) -> Dataset:
    """A contour in space, on its image, of an outline ``(points, 2)`` in columns and rows."""
    axes, spacing_mm = np.reshape(plane.orientation, (2, 3)), plane.spacing_mm[::-1]
    points = plane.position_mm + outline * spacing_mm @ axes
    frame = {"ReferencedFrameNumber": plane.frame + 1} if "NumberOfFrames" in header else {}
    return item(
        ContourImageSequence=[reference(header.SOPClassUID, header.SOPInstanceUID, **frame)],
        ContourGeometricType="CLOSED_PLANAR",
        NumberOfContourPoints=len(points),
        ContourData=[f"{value:.{DIGITS}f}" for value in points.ravel().tolist()],
    )


def reference(class_uid: str, instance_uid: str, **values: Any) -> Dataset:
    """A reference to an image or study."""
    uids = {"ReferencedSOPClassUID": class_uid, "ReferencedSOPInstanceUID": instance_uid}
    return item(**uids, **values)


def item(**values: Any) -> Dataset:
    """An item of a sequence."""
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def trace_borders(mask: NDArray[np.bool_]) -> list[Floats]:
    """Trace each component of a mask ``(columns, rows)`` once along the borders of its pixels.

    Returned are the corners of each, ``(points, 2)``, column and row, pixels from the centre of the
    first one; the component is to the right of each edge. Pixels that touch at a corner only are
    separate components. A hole is entered and left along the same row of borders (keyhole, DICOM
    PS3.3 C.8.8.6.3): pixel centres lie half a pixel beside every edge, so any filling rule gives
    the mask again. OpenCV traces pixel centres, and contourpy cuts corners instead.
    """
    inside = np.pad(mask, 1)
    # pixels around each corner of pixels: south-east, south-west, north-west, north-east
    around = inside[1:, 1:], inside[:-1, 1:], inside[:-1, :-1], inside[1:, :-1]
    # [heading, column, row]: an edge leaves the corner, with the mask on its right only
    edges = np.stack([around[heading] & ~around[heading - 1] for heading in range(4)])
    join_holes(edges, inside)
    outlines, is_left = [], edges.copy()
    for heading, column, row in np.argwhere(edges).tolist():
        corners = []
        while is_left[heading, column, row]:
            is_left[heading, column, row] = False
            column, row = column + STEPS[heading][0], row + STEPS[heading][1]
            right_straight_left = ((heading + turn) % 4 for turn in (1, 0, 3))
            following = next(side for side in right_straight_left if edges[side, column, row])
            if following != heading:
                corners.append((column, row))
            heading = following
        if corners:
            outlines.append(np.array(corners) - 0.5)
    return outlines


def join_holes(edges: NDArray[np.bool_], inside: NDArray[np.bool_]) -> None:
    """Add edges from the first corner of each hole westwards to the next border, and back.

    Everything north of a hole and west of its first pixel belongs to the component around it, so
    that border is of the same component, or of a hole that is joined likewise.
    """
    labels, _ = ndimage.label(~inside, np.ones((3, 3)))
    is_border = ~(inside[:-1, :-1] & inside[:-1, 1:])  # seen from the east
    _, firsts = np.unique(labels.T, return_index=True)  # by rows
    for first in firsts[2:]:  # 0 is the mask, 1 the outside
        row, column = divmod(int(first), len(labels))
        end = int(np.flatnonzero(is_border[: column - 1, row - 1])[-1])
        edges[WEST, end + 1 : column, row - 1] = True
        edges[EAST, end : column - 1, row - 1] = True
