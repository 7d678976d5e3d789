"""Folders of DICOM: one look at each header, files gathered into series."""

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pydicom
from pydicom import Dataset
from pydicom.uid import MediaStorageDirectoryStorage

from pancseg.intake.extent import extent_of
from pancseg.intake.found import Stray
from pancseg.intake.pixels import RAW_STARTS, quiet
from pancseg.intake.walk import FORK, files_under, is_fork
from pancseg.processes import in_processes
from pancseg.progress import passing

READ_FIRST = [
    *("SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "QualityControlImage", "Rows"),
    *("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    *("ImagePositionPatient", "NumberOfFrames", "ReferencedSeriesSequence"),
    "ReferencedFrameOfReferenceSequence",
]
A_PART = 200  # files that are looked at in one go
FEWEST_PARTS = 10  # that are worth starting processes for
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
IMAGES = ("CT", "MR", "PT")
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


def find_series(root: Path, processes: int = 1) -> tuple[list[Series], list[Stray]]:
    """Search a folder at any depth.

    Args:
        root: The folder, or one file.
        processes: How many look at headers at a time, where there are many.

    Returns:
        The series, ordered by folder and UID, and what can be none.
    """
    base = root.parent if root.is_file() else root
    members: dict[Hashable, list[Header]] = defaultdict(list)
    others: dict[Hashable, list[Header]] = defaultdict(list)
    for header in read_headers(files_under(root), processes):
        one = header.series
        if header.problem:
            alone = None if header.problem in NO_IMAGE else header.path
            others[header.path.parent, header.problem, header.status, one.uid, alone].append(header)
            continue
        alone = None if one.kind == "image" else header.path
        patient = None if one.uid else one.patient_id  # one series has one, or is refused
        key = (header.path.parent, one.uid, patient, one.modality, one.is_phantom, alone)
        members[key].append(header)
    damaged = [headers[0] for headers in others.values() if headers[0].status == "refused"]
    series = [gathered(headers, base) for headers in join_folders(list(members.values()))]
    strays = [
        Stray(one.path, "other", one.status, NO_IMAGE.get(one.problem, one.problem), len(headers))
        for headers in others.values()
        for one in headers[:1]
    ]
    series = [doubted(one, series, damaged, base) for one in series]
    return sorted(series, key=lambda one: (one.folder, one.uid, one.files)), strays


def join_folders(groups: list[list[Header]]) -> list[list[Header]]:
    """Put a series together that lies in several folders, as archives cut them.

    Copies of a series stay apart, and so does what makes no regular stack together, as where an
    anonymiser gave all series one UID.
    """
    by_uid: dict[Hashable, list[list[Header]]] = defaultdict(list)
    for headers in groups:
        one = headers[0].series
        alone = None if one.uid and one.kind == "image" else headers[0].path
        by_uid[one.uid, one.patient_id, one.modality, one.is_phantom, alone].append(headers)
    joined = []
    for parts in by_uid.values():
        together = [header for headers in parts for header in headers]
        instances = {header.instance_uid for header in together}
        are_new = len(instances) == len(together) and "" not in instances
        if len(parts) > 1 and are_new and extent_of([one.path for one in together]) is not None:
            joined.append(together)
        else:
            joined += parts
    return joined


def gathered(headers: list[Header], base: Path) -> Series:
    """One series of the files that belong to it."""
    folder = headers[0].path.parent.relative_to(base)
    patients = {header.series.patient_id for header in headers}
    several = f"mixed_patient: slices carry {len(patients)} PatientIDs, expected one"
    return replace(
        headers[0].series,
        folder=folder,
        files=tuple(header.path for header in headers),
        problem=several if len(patients) > 1 else "",
    )


def doubted(one: Series, series: list[Series], damaged: list[Header], base: Path) -> Series:
    """Refuse a series that a damaged file beside it may belong to: it may lack that slice.

    Where several series share the folder, nobody knows whose it is, and its own row has to do.
    """
    folder = base / one.folder
    beside = [header for header in damaged if header.path.parent == folder]
    alone = sum(other.folder == one.folder and other.kind == "image" for other in series) == 1
    if not beside or not alone or one.problem or one.kind != "image":
        return one
    more = f" and {len(beside) - 1} more" if len(beside) > 1 else ""
    reason = f"{beside[0].path.name}{more} beside it cannot be read and may be a slice of it"
    return replace(one, problem=f"damaged_slice: {reason}")


def read_headers(files: list[Path], processes: int) -> Iterable[Header]:
    """Look at each file, in order; thousands of them in several processes."""
    parts = [files[start : start + A_PART] for start in range(0, len(files), A_PART)]
    if len(parts) < FEWEST_PARTS:
        processes = 0
    steps = in_processes(read_some, parts, processes, died)
    looked = passing(steps, len(parts), "looking", f"{A_PART} files")
    return sorted((header for part in looked for header in part), key=lambda one: one.path)


def read_some(files: list[Path]) -> list[Header]:
    """Look at some files."""
    return [read_header(file) for file in files]


def died(files: list[Path]) -> list[Header]:
    """What is told of files that ended the process that looked at them."""
    return [
        Header(file, problem="reader_died: looking at it crashed", status="refused")
        for file in files
    ]


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
        return Header(path, problem="empty_file: 0 bytes", status="refused")
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
    if problem == "object" and (modality in IMAGES or not (modality or one.get("SOPClassUID"))):
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
    return tuple(sorted({uid for item in found if (uid := text(item, "SeriesInstanceUID"))}))


def text(one: Dataset, keyword: str) -> str:
    """A header's value as stripped text, empty where there is none."""
    value = one.get(keyword)
    return "" if value is None else str(value).strip()
