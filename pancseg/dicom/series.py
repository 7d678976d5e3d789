"""Series of DICOM images: found by their headers, and read as volumes in space."""

import hashlib
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, uid

from pancseg.dicom.pixels import HUVolume, check_deflated, decode_frames, open_dicom, read_dataset
from pancseg.dicom.slices import Repair, SlicePlane, SliceStack, build_stack, planes_of
from pancseg.errors import Refused, parsing, quiet
from pancseg.geometry import AIR_HU
from pancseg.parallel import process_map, progress
from pancseg.structures import LabelMap, Structure, encode_values

KEYWORDS = [
    "SOPClassUID", "Modality", "ImageType", "QualityControlImage", "Rows", "Columns",
    "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID",
    "ImagePositionPatient", "NumberOfFrames", "Manufacturer", "ContrastBolusAgent",
    "ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence",
]  # fmt: skip
LONGEST_TEXT = 64  # characters that a value of these attributes may have
IMAGE_CLASSES = (
    uid.CTImageStorage, uid.EnhancedCTImageStorage, uid.LegacyConvertedEnhancedCTImageStorage,
    uid.MRImageStorage, uid.PositronEmissionTomographyImageStorage,
)  # fmt: skip
LOCALIZER = re.compile(r"\b(LOCALIZER|SCOUT|SURVIEW|REF_SURVIEW)\b")  # in ImageType
MANUFACTURER = re.compile(r"\b(siemens|ge|philips|canon|toshiba)\b")
EMPTY = "empty_file: 0 bytes"
BATCH = 200  # files that a process reads the headers of
Extent = NDArray[np.float64] | None  # sorted shape, lowest and highest corner of a grid, RAS mm


@dataclass(frozen=True, kw_only=True)
class Header:
    """Attributes of a file, or of a series that shares them; empty where they were removed."""

    files: tuple[Path, ...]
    uid: str = ""  # SeriesInstanceUID
    patient_id: str = ""
    modality: str = ""
    study_uid: str = ""
    frame_of_reference_uid: str = ""
    format: str = ""  # image, seg or rtstruct
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
            check_deflated(path)
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
    format_ = {"SEG": "seg", "RTSTRUCT": "rtstruct"}.get(modality, "image")
    frames = dataset.get("ReferencedFrameOfReferenceSequence") or []
    if format_ == "rtstruct" and not frame_uid and len(frames) == 1:
        frame_uid = text("FrameOfReferenceUID", frames[0])
    references = list(dataset.get("ReferencedSeriesSequence") or [])
    for frame in frames:
        for study in frame.get("RTReferencedStudySequence") or []:
            references += study.get("RTReferencedSeriesSequence") or []
    problem = why_not_an_image(dataset, text("SOPClassUID")) if format_ == "image" else ""
    name = text("Manufacturer").casefold().replace("_", " ")
    known = MANUFACTURER.search(name)
    manufacturer = known[1].replace("toshiba", "canon") if known else "other"
    contrast = "yes" if text("ContrastBolusAgent") else "no"
    return Header(
        files=(path,),
        uid=text("SeriesInstanceUID"),
        patient_id=text("PatientID"),
        modality=modality,
        study_uid=text("StudyInstanceUID"),
        frame_of_reference_uid=frame_uid,
        format=format_,
        is_phantom=text("QualityControlImage") == "YES",
        refers_to=tuple(sorted({text("SeriesInstanceUID", item) for item in references} - {""})),
        manufacturer=manufacturer if name else "unknown",
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


@dataclass(frozen=True, kw_only=True)
class Series(Header):
    """The files of a series; ``folder`` is relative to the folder searched."""

    folder: Path
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class SkippedSeries:
    """Files of a folder that belong to no series; the path is of the first."""

    path: Path
    status: str
    reason: str
    count: int


class SeriesVolume(NamedTuple):
    """A series as read: HU, slice 0 nearest the feet, and flags of ``intake.csv``."""

    image: nib.Nifti1Image
    stack: SliceStack
    flags: tuple[str, ...]


def find_series(
    root: Path, files: Iterable[Path], processes: int = 0
) -> tuple[list[Series], list[SkippedSeries]]:
    """Group files under a folder into series, and those that belong to none."""
    files = list(files)
    batches = [files[start : start + BATCH] for start in range(0, len(files), BATCH)]
    processes = processes if len(batches) >= 10 else 0  # starting them takes seconds
    results = process_map(read_batch, batches, processes, died)
    shown = progress(results, "reading headers", f"x {BATCH} files", len(batches), delay_s=2.0)
    parts: dict[Hashable, list[Header]] = defaultdict(list)
    for header in sorted(chain.from_iterable(shown), key=lambda header: header.files):
        is_alone = header.is_damaged or header.format != "image"
        patient_id = "" if header.uid else header.patient_id
        key = header.uid, header.modality, header.is_phantom, patient_id, header.problem
        parts[header.files[0].parent, *key, header.files if is_alone else ()].append(header)
    series, skipped, damaged = [], [], []
    for headers in join_folders(list(parts.values())):
        first, slices = headers[0], tuple(header.files[0] for header in headers)
        if first.problem:
            status = "refused" if first.is_damaged else "dropped"
            skipped.append(SkippedSeries(slices[0], status, first.problem, len(slices)))
            damaged += [first] if first.is_damaged or first.problem == EMPTY else []
            continue
        patients = len({header.patient_id for header in headers})
        problem = f"mixed_patient: slices carry {patients} PatientIDs, expected one"
        attributes = vars(first) | {"files": slices, "problem": problem if patients > 1 else ""}
        series.append(Series(**attributes, folder=slices[0].parent.relative_to(root)))
    series = mark_damaged(series, damaged)
    return sorted(series, key=lambda item: (item.folder, item.uid, item.files)), skipped


def read_batch(files: list[Path]) -> list[Header]:
    """Headers of a batch of files."""
    return [read_header(file) for file in files]


def died(files: list[Path]) -> list[Header]:
    """Headers of a batch whose process died."""
    problem = "reader_died: reading its header, or that of a file beside it, crashed"
    return [Header(files=(file,), problem=problem, is_damaged=True) for file in files]


def join_folders(parts: list[list[Header]]) -> Iterator[list[Header]]:
    """Join the parts of series that lie in several folders, except where they cannot be one."""
    by_uid: dict[Hashable, list[list[Header]]] = defaultdict(list)
    for headers in parts:
        first = headers[0]
        key: Hashable = first.uid, first.modality, first.is_phantom, first.patient_id
        is_joined = first.uid and first.format == "image" and not first.problem
        by_uid[key if is_joined else first].append(headers)
    for same_uid in by_uid.values():
        if len(same_uid) > 1 and are_one_scan(same_uid):
            yield list(chain.from_iterable(same_uid))
        else:
            yield from same_uid


def are_one_scan(parts: list[list[Header]]) -> bool:
    """Whether parts of a series in several folders can be of one scan.

    They can where all slices lie on one line and no two at a position differ. A gap is no reason
    against it; overlapping acquisitions and uneven gaps are, where each part is regular alone.
    """
    planes = [read_planes(header.files[0] for header in headers) for headers in parts]
    whole = problem_of(list(chain.from_iterable(planes)))
    if whole in ("uneven_gaps", "mixed_acquisitions"):
        return not all(problem_of(part) in ("", "missing_slice") for part in planes)
    return whole in ("", "missing_slice", "too_few_slices")


def problem_of(planes: list[SlicePlane]) -> str:
    """Reason code of slices that form no stack, tilted or not."""
    try:
        unique = without_copies(planes, lambda file: open_dicom(file).PixelData)
        build_stack(unique, Repair(tilt=True))
    except Refused as refused:
        return refused.code
    return ""


def mark_damaged(series: list[Series], damaged: list[Header]) -> list[Series]:
    """Refuse series that damaged files name as theirs; flag those beside other damaged files."""
    slices: dict[str, list[Path]] = defaultdict(list)  # damaged, by SeriesInstanceUID
    suffixes: dict[Path, set[str | None]] = defaultdict(set)  # of other damaged files, by folder
    for header in damaged:
        (file,) = header.files
        if header.uid:
            slices[header.uid].append(file)
        else:  # an empty file of another suffix, such as READY, is no slice
            suffixes[file.parent].add(None if header.is_damaged else file.suffix)
    count = Counter(item.uid for item in series)
    marked = []
    for item in series:
        folders = {file.parent for file in item.files} if item.format == "image" else set()
        is_alone = count[item.uid] == 1
        files = [file for file in slices[item.uid] if is_alone or file.parent in folders]
        if any(suffixes[folder] & {None, item.files[0].suffix} for folder in folders):
            item = replace(item, flags=("damaged_file",))
        if files and not item.problem:
            names = ", ".join(file.name for file in files[:3])
            item = replace(item, problem=f"damaged_slice: {names} of the series cannot be read")
        marked.append(item)
    return marked


def read_series(files: tuple[Path, ...], repair: Repair) -> SeriesVolume:
    """Read a series as HU; refused if its slices do not form a regular stack."""
    stack, values, flags = read_stack(files, repair)
    return SeriesVolume(stack.to_image(values, linear=True, fill=AIR_HU), stack, flags)


def read_mask_series(
    files: tuple[Path, ...], repair: Repair, structures: tuple[Structure, ...]
) -> LabelMap:
    """Read a series of mask slices; refused like a series, or without background."""
    stack, values, flags = read_stack(files, repair)
    codes, unknown_values = encode_values(values, structures)
    flags = tuple(flag for flag in flags if flag != "rescale_type")
    return LabelMap(stack.to_image(codes, linear=False, fill=0), unknown_values, flags)


def read_stack(
    files: tuple[Path, ...], repair: Repair
) -> tuple[SliceStack, NDArray[Any], tuple[str, ...]]:
    """Slices in order, their HU ``(columns, rows, slices)``, and flags; each file is read once."""
    opened = {file: open_dicom(file) for file in files}
    planes = []
    for file, dataset in opened.items():
        with parsing(file):
            planes += planes_of(dataset, file)
    unique = without_copies(planes, lambda file: opened[file].PixelData)
    stack = build_stack(unique, repair)
    volume = HUVolume(stack.shape)
    slices_of: dict[Path, dict[int, SlicePlane]] = defaultdict(dict)
    for k, plane in enumerate(stack.planes):
        slices_of[plane.file][k] = plane
    for file, slices in slices_of.items():
        frames = decode_frames(opened.pop(file), list(slices.values()))  # freed once decoded
        for (k, plane), values in zip(slices.items(), frames, strict=True):
            volume.put(k, values, plane.slope, plane.intercept)
    flags = ["duplicate_files"] * (len(unique) < len(planes))
    flags += ["rescale_type"] * (not all(plane.is_hu for plane in unique))
    return stack, volume.values, tuple(flags)


def without_copies(planes: list[SlicePlane], pixels: Callable[[Path], bytes]) -> list[SlicePlane]:
    """Slices without those that equal another in position, rescaling and pixels of the file."""
    positions = [tuple(round(value, 2) for value in plane.position_mm) for plane in planes]
    count = Counter(positions)
    digests: dict[Path, bytes] = {}
    unique: dict[Hashable, SlicePlane] = {}
    for plane, position in zip(planes, positions, strict=True):
        file = plane.file
        if count[position] > 1 and file not in digests:
            digests[file] = hashlib.sha256(pixels(file)).digest()
        content = digests.get(file, file), plane.frame, plane.slope, plane.intercept
        unique.setdefault((position, content), plane)
    return list(unique.values())


def series_extent(files: Iterable[Path]) -> Extent:
    """Extent of the grid of a series from headers alone; None where it is not regular."""
    planes = {plane.position_mm: plane for plane in read_planes(files)}
    try:
        stack = build_stack(list(planes.values()), Repair(gaps=True, tilt=True))
    except Refused:
        return None
    ends = np.array(list(np.ndindex(2, 2, 2))) * (np.array(stack.shape) - 1)
    corners = nib.affines.apply_affine(stack.affine_at(stack.corner_mm), ends)
    return np.array([*sorted(stack.shape), *corners.min(axis=0), *corners.max(axis=0)])


def read_planes(files: Iterable[Path]) -> list[SlicePlane]:
    """Slices of files from headers alone; damaged files are left out."""
    planes = []
    for file in files:
        with suppress(Refused), parsing(file):
            planes += planes_of(read_dataset(file, stop_before_pixels=True), file)
    return planes


def same_extent(first: Extent, second: Extent) -> bool:
    """Whether two grids are known and equal, whichever way their axes run."""
    return first is not None and second is not None and bool(np.allclose(first, second, atol=0.05))
