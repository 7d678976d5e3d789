"""Headers of DICOM files: what each file is, and of which series."""

import re
import stat
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset, uid

from pancseg.dicom.pixels import check_inflated_size, quiet, read_dataset
from pancseg.errors import Refused

KEYWORDS = [
    *("SOPClassUID", "Modality", "ImageType", "QualityControlImage", "Rows", "Columns"),
    *("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    *("ImagePositionPatient", "NumberOfFrames", "Manufacturer", "ContrastBolusAgent"),
    *("ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence"),
]
LONGEST_TEXT = 64  # characters that a value of these attributes may have
IMAGE_CLASSES = (
    *(uid.CTImageStorage, uid.EnhancedCTImageStorage, uid.LegacyConvertedEnhancedCTImageStorage),
    *(uid.MRImageStorage, uid.PositronEmissionTomographyImageStorage),
)
LOCALIZER = re.compile(r"\b(LOCALIZER|SCOUT|SURVIEW|REF_SURVIEW)\b")  # in ImageType
MANUFACTURER = re.compile(r"\b(siemens|ge|philips|canon|toshiba)\b")
EMPTY = "empty_file: 0 bytes"


@dataclass(frozen=True, kw_only=True)
class Header:
    """Attributes of a file, or of a series that shares them; empty where they were removed."""

    files: tuple[Path, ...]
    uid: str = ""  # SeriesInstanceUID
    patient_id: str = ""
    modality: str = ""
    study_uid: str = ""
    frame_of_reference_uid: str = ""
    kind: str = ""  # image, seg or rtstruct
    is_phantom: bool = False  # QualityControlImage says that it shows no patient
    refers_to: tuple[str, ...] = ()  # SeriesInstanceUIDs of the images that a label was drawn on
    manufacturer: str = "unknown"  # siemens, ge, philips, canon, other or unknown
    contrast: str = "unknown"  # yes, no or unknown
    problem: str = ""  # reason code and sentence if it cannot be used
    is_damaged: bool = False


def read_header(path: Path) -> Header:
    """Read the header of any file."""
    is_damaged = True
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return Header(files=(path,), problem="not_a_file: a pipe, socket or device")
        with path.open("rb") as file:
            start = file.read(132)
        with quiet():
            check_inflated_size(path)
            dataset = read_dataset(path, stop_before_pixels=True, specific_tags=KEYWORDS)
            return describe(path, dataset)
    except OSError as error:
        problem = f"unreadable: {error.strerror}"
    except Refused as refused:
        problem = str(refused)
    except Exception:  # damaged headers raise nearly any
        if start[128:] == b"DICM":
            problem = "unreadable: its header is damaged"
        else:
            problem = "not_dicom: not a DICOM file" if start else EMPTY
            is_damaged = path.suffix.lower() == ".dcm"
    return Header(files=(path,), problem=problem, is_damaged=is_damaged)


def describe(path: Path, dataset: Dataset) -> Header:
    """Header of a file that is DICOM."""

    def text(keyword: str, item: Dataset = dataset) -> str:
        value = item.get(keyword)
        return "" if value is None else str(value).strip()[:LONGEST_TEXT]

    modality, frame_uid = text("Modality"), text("FrameOfReferenceUID")
    kind = {"SEG": "seg", "RTSTRUCT": "rtstruct"}.get(modality, "image")
    frames = dataset.get("ReferencedFrameOfReferenceSequence") or []
    if kind == "rtstruct" and not frame_uid and len(frames) == 1:
        frame_uid = text("FrameOfReferenceUID", frames[0])
    references = list(dataset.get("ReferencedSeriesSequence") or [])
    for frame in frames:
        for study in frame.get("RTReferencedStudySequence") or []:
            references += study.get("RTReferencedSeriesSequence") or []
    problem = why_not_an_image(dataset, text("SOPClassUID")) if kind == "image" else ""
    name = text("Manufacturer").casefold().replace("_", " ")
    found = MANUFACTURER.search(name)
    known = found[1].replace("toshiba", "canon") if found else "other"
    contrast = "yes" if text("ContrastBolusAgent") else "no"
    return Header(
        files=(path,),
        uid=text("SeriesInstanceUID"),
        patient_id=text("PatientID"),
        modality=modality,
        study_uid=text("StudyInstanceUID"),
        frame_of_reference_uid=frame_uid,
        kind=kind,
        is_phantom=text("QualityControlImage") == "YES",
        refers_to=tuple(sorted({text("SeriesInstanceUID", item) for item in references} - {""})),
        manufacturer=known if name else "unknown",
        contrast=contrast if "ContrastBolusAgent" in dataset else "unknown",
        problem=problem,
        is_damaged=problem.startswith("unreadable"),
    )


def why_not_an_image(dataset: Dataset, sop_class: str) -> str:
    """Reason code and sentence where a file holds no slice of a volume, else empty."""
    if dataset.file_meta.get("MediaStorageSOPClassUID") == uid.MediaStorageDirectoryStorage:
        return "dicomdir: a table of contents; the files themselves are read"
    if not dataset.get("Rows"):
        if sop_class in ("", *IMAGE_CLASSES):
            return "unreadable: an image without Rows, its header is damaged"
        return "not_an_image: a DICOM object without pixels"
    if LOCALIZER.search(str(dataset.get("ImageType"))):
        return "localizer: a scout view, not a volume"
    has_position = dataset.get("ImagePositionPatient") is not None or dataset.get("NumberOfFrames")
    if sop_class.startswith(uid.SecondaryCaptureImageStorage) and not has_position:
        return "secondary_capture: a screen shot without position in space"
    return ""
