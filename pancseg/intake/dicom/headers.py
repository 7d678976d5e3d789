"""One look at the header of a DICOM file: what it is, whose, and of which series."""

from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom import Dataset, uid
from pydicom.uid import MediaStorageDirectoryStorage

from pancseg.intake.dicom.deflated import LARGEST_INFLATED, inflates_too_far
from pancseg.intake.dicom.pixels import RAW_STARTS, quiet
from pancseg.intake.walk import FORK, is_fork

READ_FIRST = [
    *("SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "QualityControlImage", "Rows"),
    *("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    *("ImagePositionPatient", "NumberOfFrames", "ReferencedSeriesSequence"),
    "ReferencedFrameOfReferenceSequence",
]
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
EMPTY = "empty_file: 0 bytes"
IMAGE_CLASSES = (
    *(uid.CTImageStorage, uid.EnhancedCTImageStorage, uid.LegacyConvertedEnhancedCTImageStorage),
    *(uid.MRImageStorage, uid.PositronEmissionTomographyImageStorage),
)
LABELS = {"SEG": "seg", "RTSTRUCT": "rtstruct"}
NO_IMAGE = {
    "localizer": "localizer: a scout view, no volume",
    "secondary_capture": "secondary_capture: a screen shot without a place in space",
    "dicomdir": "dicomdir: a table of contents; the files themselves are looked at",
    "object": "not_an_image: a DICOM object without pixels",
}


@dataclass(frozen=True)
class Series:
    """The files of one series in one folder.

    Attributes:
        folder: Where they lie, relative to the folder searched.
        uid: SeriesInstanceUID, empty where an anonymiser emptied it.
        patient_id: PatientID, empty likewise.
        modality: Modality, such as ``CT``.
        study_uid: StudyInstanceUID, empty likewise.
        frame_of_reference_uid: Empty likewise.
        kind: ``image``, ``seg`` or ``rtstruct``.
        is_phantom: Whether the header says that this is no patient (QualityControlImage).
        files: Paths, in no order that means anything.
        refers_to: SeriesInstanceUIDs of the images that a label was drawn on.
        problem: Why it is refused before it is read, reason code and sentence; mostly empty.
    """

    folder: Path
    uid: str
    patient_id: str
    modality: str
    study_uid: str
    frame_of_reference_uid: str
    kind: str
    is_phantom: bool
    files: tuple[Path, ...]
    refers_to: tuple[str, ...] = ()
    problem: str = ""


NO_SERIES = Series(Path(), "", "", "", "", "", "", False, ())


@dataclass(frozen=True)
class Header:
    """What one file says of itself and its series; ``problem`` where it is of no use."""

    path: Path
    series: Series = NO_SERIES
    instance_uid: str = ""
    problem: str = ""
    status: str = "dropped"


def read_header(path: Path) -> Header:
    """Look at one file."""
    if is_fork(path):
        return Header(path, problem=FORK)
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError as error:
        return Header(path, problem=f"unreadable: {error.strerror}", status="refused")
    is_dicom = start[128:] == b"DICM"
    looks_dicom = is_dicom or path.suffix.lower() == ".dcm"
    if not start:
        status = "refused" if path.suffix.lower() == ".dcm" else "dropped"
        return Header(path, problem=EMPTY, status=status)
    if is_dicom and inflates_too_far(path):
        told = f"inflates to more than {LARGEST_INFLATED / 1e9:.1f} GB"
        return Header(path, problem=f"too_large: {told}", status="refused")
    try:
        with quiet():
            one = pydicom.dcmread(
                path,
                stop_before_pixels=True,
                specific_tags=list(READ_FIRST),
                force=start[:2] in RAW_STARTS,
            )
            return describe(path, one)
    except Exception:  # a damaged header raises nearly anything
        if not looks_dicom:
            return Header(path, problem="not_dicom: not a DICOM file")
        what = (
            "unreadable: its header is damaged"
            if is_dicom
            else "not_dicom: named .dcm, but no DICOM file"
        )
        return Header(path, problem=what, status="refused")


def describe(path: Path, one: Dataset) -> Header:
    """What a header says."""
    modality = text(one, "Modality")
    kind = LABELS.get(modality, "image")
    frame = text(one, "FrameOfReferenceUID")
    if kind == "rtstruct" and not frame:
        frames = one.get("ReferencedFrameOfReferenceSequence") or []
        uids = {text(item, "FrameOfReferenceUID") for item in frames}
        frame = uids.pop() if len(uids) == 1 else ""
    series = Series(
        *(path.parent, text(one, "SeriesInstanceUID"), text(one, "PatientID"), modality),
        *(text(one, "StudyInstanceUID"), frame, kind, text(one, "QualityControlImage") == "YES"),
        files=(path,),
        refers_to=references(one),
    )
    problem = why_no_image(one) if kind == "image" else ""
    if problem == "object" and text(one, "SOPClassUID") in ("", *IMAGE_CLASSES):
        problem = f"unreadable: {modality or 'DICOM'} without Rows, its header is damaged"
        return Header(path, series, problem=problem, status="refused")
    return Header(path, series, text(one, "SOPInstanceUID"), problem)


def why_no_image(one: Dataset) -> str:
    """Which kind of object without a volume this is, or nothing."""
    meta = getattr(one, "file_meta", None)
    if meta is not None and meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        return "dicomdir"
    if not one.get("Rows"):
        return "object"
    if "LOCALIZER" in [str(word) for word in one.get("ImageType") or []]:
        return "localizer"
    has_place = one.get("ImagePositionPatient") is not None or one.get("NumberOfFrames")
    if text(one, "SOPClassUID").startswith(SECONDARY_CAPTURE) and not has_place:
        return "secondary_capture"
    return ""


def references(one: Dataset) -> tuple[str, ...]:
    """SeriesInstanceUIDs that a SEG or an RTSTRUCT was drawn on, sorted."""
    found = list(one.get("ReferencedSeriesSequence") or [])
    for frame in one.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            found += study.get("RTReferencedSeriesSequence") or []
    return tuple(sorted({text(item, "SeriesInstanceUID") for item in found} - {""}))


def text(one: Dataset, keyword: str) -> str:
    """A header's value as stripped text, empty where there is none."""
    value = one.get(keyword)
    return "" if value is None else str(value).strip()
