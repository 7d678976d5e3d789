"""Series of DICOM images: found by their headers, and read as volumes in space."""

import hashlib
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, uid
from scipy import ndimage

from pancseg.dicom.pixels import (
    Floats,
    HUVolume,
    SlicePlane,
    check_deflated,
    decode_frames,
    open_dicom,
    planes_of,
    read_dataset,
)
from pancseg.errors import Refused, parsing, quiet
from pancseg.geometry import AIR_HU, Affine, slices_from_feet
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
EQUAL = 1e-3  # mm, or direction cosines
GRID_TOLERANCE = 0.1  # between a slice and a grid: of a pixel, and of the distance of slices
WIDEST_REPAIR = 4.5  # spacings: up to three slices in a row are interpolated
Extent = Floats | None  # sorted shape, lowest and highest corner of a grid, RAS mm


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
            return describe(
                path, read_dataset(path, stop_before_pixels=True, specific_tags=KEYWORDS)
            )
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
    has_position = dataset.get("ImagePositionPatient") is not None or dataset.get("NumberOfFrames")
    if dataset.file_meta.get("MediaStorageSOPClassUID") == uid.MediaStorageDirectoryStorage:
        return "dicomdir: a table of contents; the files themselves are read"
    if not dataset.get("Rows") and sop_class in ("", *IMAGE_CLASSES):
        return "unreadable: an image without Rows, its header is damaged"
    if not dataset.get("Rows"):
        return "not_an_image: a DICOM object without pixels"
    if LOCALIZER.search(str(dataset.get("ImageType"))):
        return "localizer: a scout view, not a volume"
    if sop_class.startswith(uid.SecondaryCaptureImageStorage) and not has_position:
        return "secondary_capture: a screen shot without position in space"
    return ""


@dataclass(frozen=True, kw_only=True)
class Series(Header):
    """The files of a series; ``folder`` is relative to the folder searched."""

    folder: Path
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class SkippedFile:
    """A file or series that belongs to no case: its row in ``intake.csv``."""

    path: Path  # the first of several files
    kind: str  # image, label or other
    status: str  # dropped or refused
    reason: str
    slices: int = 0  # or files; 0 where they were not counted


def find_series(
    root: Path, files: Iterable[Path], processes: int = 0
) -> tuple[list[Series], list[SkippedFile]]:
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
            skipped.append(SkippedFile(slices[0], "other", status, first.problem, len(slices)))
            damaged += [first] if first.is_damaged or first.problem == EMPTY else []
            continue
        patients = len({header.patient_id for header in headers})
        problem = f"mixed_patient: slices carry {patients} PatientIDs, expected one"
        attributes = vars(first) | {"files": slices, "problem": problem if patients > 1 else ""}
        series.append(Series(**attributes, folder=slices[0].parent.relative_to(root)))
    marked = mark_damaged(series, damaged)
    return sorted(marked, key=lambda item: (item.folder, item.uid, item.files)), skipped


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

    They can, even with a gap, where slices lie on one line and none at a position differ; but not
    where acquisitions overlap or gaps are uneven together, and each part is regular alone.
    """

    def problem_of(planes: list[SlicePlane]) -> str:
        try:
            unique = without_copies(planes, lambda file: open_dicom(file).PixelData)
            build_stack(unique, Repair(tilt=True))
        except Refused as refused:
            return refused.code
        return ""

    planes = [read_planes(header.files[0] for header in headers) for headers in parts]
    whole = problem_of(list(chain.from_iterable(planes)))
    if whole in ("uneven_gaps", "mixed_acquisitions"):
        return not all(problem_of(part) in ("", "missing_slice") for part in planes)
    return whole in ("", "missing_slice", "too_few_slices")


def mark_damaged(series: list[Series], damaged: list[Header]) -> Iterator[Series]:
    """Refuse series that damaged files name as theirs; flag those beside other damaged files."""
    slices: dict[str, list[Path]] = defaultdict(list)  # damaged, by SeriesInstanceUID
    suffixes: dict[Path, set[str | None]] = defaultdict(set)  # of other damaged files, by folder
    for header in damaged:
        (file,) = header.files
        if header.uid:
            slices[header.uid].append(file)
        else:  # an empty file of another suffix, such as READY, is no slice
            suffixes[file.parent].add(None if header.is_damaged else file.suffix)
    for item in series:
        folders = {file.parent for file in item.files} if item.format == "image" else set()
        if any(suffixes[folder] & {None, item.files[0].suffix} for folder in folders):
            item = replace(item, flags=("damaged_file",))
        if slices[item.uid] and not item.problem:
            names = ", ".join(file.name for file in slices[item.uid][:3])
            item = replace(item, problem=f"damaged_slice: {names} of the series cannot be read")
        yield item


@dataclass(frozen=True)
class Repair:
    """Irregularities that are resampled instead of refused."""

    gaps: bool = False
    tilt: bool = False


@dataclass(frozen=True)
class SliceStack:
    """Slices of a series in order along their normal, and their regular grid."""

    planes: tuple[SlicePlane, ...]  # slice k of a stored volume is planes[k]
    normal: Floats  # unit vector, LPS
    offsets_mm: Floats  # (slices,), along the normal, from the first slice of the grid
    shifts_mm: Floats  # (slices, 2), along rows and columns, where a tilt is repaired; else 0
    grid_index: Floats  # (slices,), position of each slice on the grid
    step_mm: float  # between slices of the grid
    repairs: tuple[str, ...] = ()  # what is repaired, with numbers

    @property
    def shape(self) -> tuple[int, int, int]:
        """Stored columns, rows and slices."""
        return self.planes[0].columns, self.planes[0].rows, len(self.planes)

    @property
    def corner_mm(self) -> Floats:
        """Centre of the first voxel of the grid, LPS, before a tilt is repaired."""
        return np.array(self.planes[0].position_mm) - self.offsets_mm[0] * self.normal

    def to_image(self, stored: NDArray[Any], *, linear: bool, fill: float) -> nib.Nifti1Image:
        """Resample a stored volume ``(columns, rows, slices)`` to the grid, from the feet upwards.

        Where it is repaired, values are interpolated linearly (HU) or by the nearest voxel (masks);
        ``fill`` stands outside of the scanned volume.
        """
        corner_mm = self.corner_mm
        if self.shifts_mm.any():
            pixel_mm = np.array(self.planes[0].spacing_mm[::-1])
            stored, moved = straighten(stored, self.shifts_mm / pixel_mm, linear=linear, fill=fill)
            axes = np.reshape(self.planes[0].orientation, (2, 3))
            corner_mm = corner_mm + moved * pixel_mm @ axes
        if (np.diff(self.grid_index) != 1).any():
            stored = fill_gaps(stored, self.grid_index, linear=linear)
        return slices_from_feet(nib.Nifti1Image(stored, self.affine_at(corner_mm)))

    def affine_at(self, corner_mm: Floats) -> Affine:
        """Affine of the grid, RAS, with its first voxel at an LPS position."""
        row, column = np.reshape(self.planes[0].orientation, (2, 3))
        row_mm, column_mm = self.planes[0].spacing_mm
        axes = np.column_stack([row * column_mm, column * row_mm, self.normal * self.step_mm])
        return np.diag([-1, -1, 1, 1]) @ nib.affines.from_matvec(axes, corner_mm)


def build_stack(planes: list[SlicePlane], repair: Repair) -> SliceStack:
    """Fit a regular grid to planes, or refuse with all problems and the repairs that would help."""
    if len(planes) < 3:  # the only gap of two is confirmed by no other
        raise Refused("too_few_slices", f"{len(planes)} slices, expected at least 3")
    refuse_if(list(differences(planes)))
    axes = np.reshape(planes[0].orientation, (2, 3))
    normal = np.cross(*axes)
    normal /= np.linalg.norm(normal)  # headers hold few decimals
    planes = sorted(planes, key=lambda plane: normal @ plane.position_mm)
    relative_mm = np.array([plane.position_mm for plane in planes]) - planes[0].position_mm
    offsets_mm, lateral_mm = relative_mm @ normal, relative_mm @ axes.T
    gaps_mm = np.diff(offsets_mm)
    problems = overlapping_acquisitions(planes, offsets_mm)
    if shared := int((gaps_mm < EQUAL).sum()):
        sentence = f"{shared + 1} slices or more share a position and differ in content"
        refuse_if([*problems, Refused("same_position", sentence)])
    start_mm, step_mm, grid_index, gap_problem = fit_grid(offsets_mm)
    along, across = offsets_mm - offsets_mm.mean(), lateral_mm - lateral_mm.mean(axis=0)
    slopes = along @ across / (along @ along)  # of the axis through the slices
    beside_mm = np.linalg.norm(across - np.outer(along, slopes), axis=1).max()
    if beside_mm > max(0.02 * step_mm, 0.1):
        sentence = f"slices lie up to {beside_mm:.1f} mm beside the axis of the stack"
        problems.append(Refused("shifted_slice", sentence))
    slope = float(np.linalg.norm(slopes))
    degrees = f"{np.degrees(np.arctan(slope)):.1f} degrees"
    is_tilted = bool(slope * offsets_mm[-1] > max(1.0, *planes[0].spacing_mm))
    if is_tilted and not repair.tilt:
        sentence = f"slices are stacked at {degrees} to their normal"
        problems.append(Refused("gantry_tilt", sentence, repairs=["tilt"]))
    if gap_problem and not (repair.gaps and gap_problem.repairs):
        problems.append(gap_problem)
    refuse_if(problems)
    gaps = f"gaps of {gaps_mm.min():.2f} to {gaps_mm.max():.2f} mm, now {step_mm:.2f} mm"
    repairs = (f"tilt of {degrees}",) * is_tilted + (gaps,) * (gap_problem is not None)
    shifts_mm, offsets_mm = lateral_mm * is_tilted, offsets_mm - start_mm
    return SliceStack(tuple(planes), normal, offsets_mm, shifts_mm, grid_index, step_mm, repairs)


def refuse_if(problems: list[Refused]) -> None:
    """Refuse for all problems at once, with repairs if they mend all of them."""
    if problems:
        are_mended = all(problem.repairs for problem in problems)
        repairs = [key for problem in problems for key in problem.repairs] if are_mended else []
        sentences = [problems[0].sentence, *map(str, problems[1:])]
        raise Refused(problems[0].code, "; ".join(sentences), repairs=repairs)


def differences(planes: list[SlicePlane]) -> Iterator[Refused]:
    """Problems of planes of several sizes, spacings, orientations or frames of reference."""
    for code, name, values in (
        ("mixed_size", "Rows and Columns", [(plane.rows, plane.columns) for plane in planes]),
        ("mixed_spacing", "PixelSpacing", [plane.spacing_mm for plane in planes]),
        ("mixed_orientation", "ImageOrientationPatient", [plane.orientation for plane in planes]),
    ):
        if (spread := np.ptp(values, axis=0).max()) > EQUAL:
            yield Refused(code, f"{name} differ by up to {spread:g} between slices")
    if (count := len({plane.frame_of_reference_uid for plane in planes})) > 1:
        yield Refused("mixed_frame_of_reference", f"{count} FrameOfReferenceUIDs, not 1")


def overlapping_acquisitions(planes: list[SlicePlane], offsets_mm: Floats) -> list[Refused]:
    """A problem if acquisitions overlap in space; single slices and blocks make one scan."""
    for n, keyword in enumerate(("AcquisitionNumber", "AcquisitionTime")):
        groups = defaultdict(list)
        for plane, offset_mm in zip(planes, offsets_mm.tolist(), strict=True):
            groups[plane.acquisitions[n]].append(offset_mm)
        groups.pop("", None)
        spans = sorted((group[0], group[-1]) for group in groups.values() if len(group) > 1)
        if any(after[0] < before[1] - EQUAL for before, after in pairwise(spans)):
            sentence = f"{len(groups)} acquisitions overlap in space; split the series by {keyword}"
            return [Refused("mixed_acquisitions", sentence)]
    return []


def fit_grid(offsets_mm: Floats) -> tuple[float, float, Floats, Refused | None]:
    """Fit a regular grid by least squares to slices, ascending along the normal.

    Returns its start and step, mm; positions of the slices on it, whole numbers unless uneven; and
    the problem if slices are missing or uneven.
    """
    gaps_mm = np.diff(offsets_mm)
    median_mm = float(np.median(gaps_mm))
    jumps = np.rint(gaps_mm / median_mm)
    grid_index = np.concatenate([[0.0], np.cumsum(jumps)])
    centred = grid_index - grid_index.mean()
    step_mm = float(centred @ (offsets_mm - offsets_mm.mean()) / (centred @ centred))
    start_mm = float(offsets_mm.mean() - step_mm * grid_index.mean())
    away_mm = np.abs(offsets_mm - start_mm - step_mm * grid_index).max()
    is_regular = jumps.min() >= 1 and away_mm <= GRID_TOLERANCE * step_mm
    if is_regular and jumps.max() == 1:
        return start_mm, step_mm, grid_index, None
    repairs, limit = ["gaps"], ""
    if gaps_mm.max() > WIDEST_REPAIR * median_mm:
        repairs, limit = [], f"; above {WIDEST_REPAIR} spacings nothing is interpolated"
    if not is_regular:
        sentence = f"gaps go from {gaps_mm.min():.2f} to {gaps_mm.max():.2f} mm{limit}"
        problem = Refused("uneven_gaps", sentence, repairs=repairs)
        return 0.0, median_mm, offsets_mm / median_mm, problem
    wide = np.flatnonzero(jumps > 1)
    gaps = "1 gap" if len(wide) == 1 else f"{len(wide)} gaps, the first"
    sentence = f"{gaps} of {gaps_mm[wide[0]]:.1f} mm at slice {wide[0] + 1}, spacing is"
    problem = Refused("missing_slice", f"{sentence} {step_mm:.1f} mm{limit}", repairs=repairs)
    return start_mm, step_mm, grid_index, problem


def fill_gaps(stored: NDArray[Any], grid_index: Floats, *, linear: bool) -> NDArray[Any]:
    """Interpolate slices ``(columns, rows, slices)`` at ``grid_index``, from 0 up."""
    whole = np.arange(int(np.floor(grid_index[-1] + 0.01)) + 1)
    positions = np.interp(whole, grid_index, np.arange(len(grid_index)))  # among the stored slices
    regular = np.empty((*stored.shape[:2], len(whole)), stored.dtype, order="F")
    for k, position in enumerate(positions if linear else np.ceil(positions - 0.5)):
        lower, upper = int(np.floor(position)), int(np.ceil(position))
        share = 1 - upper + position
        mixed = (upper - position) * stored[..., lower] + share * stored[..., upper]
        regular[..., k] = np.rint(mixed) if stored.dtype.kind in "iu" else mixed
    return regular


def straighten(
    stored: NDArray[Any], shifts: Floats, *, linear: bool, fill: float
) -> tuple[NDArray[Any], Floats]:
    """Shift each slice ``(columns, rows, slices)`` by columns and rows ``(slices, 2)``.

    The volume is enlarged to hold every slice whole; returned too is the shift of its first voxel.
    """
    low, high = np.floor(shifts.min(axis=0)), np.ceil(shifts.max(axis=0))
    size = tuple((np.array(stored.shape[:2]) + high - low).astype(int).tolist())
    straight = np.empty((*size, stored.shape[2]), stored.dtype, order="F")
    for k, shift in enumerate(shifts):
        values, options = stored[..., k].astype(np.float32), {"order": int(linear), "cval": fill}
        moved = ndimage.affine_transform(values, np.ones(2), low - shift, size, **options)
        straight[..., k] = np.rint(moved) if stored.dtype.kind in "iu" else moved
    return straight, low


@dataclass(frozen=True)
class Scan:
    """An image as read."""

    image: nib.Nifti1Image  # HU, slice 0 nearest the feet, int16 where lossless, else float32
    stack: SliceStack | None = None  # positions of DICOM slices
    file_affine: Affine | None = None  # RAS, mm, of the array as stored in a NIfTI or NRRD file
    qform: Affine | None = None  # of a NIfTI file, where it differs from its sform
    flags: tuple[str, ...] = ()


def read_series(files: tuple[Path, ...], repair: Repair) -> Scan:
    """Read a series as HU; refused if its slices do not form a regular stack."""
    stack, values, flags = read_stack(files, repair)
    return Scan(stack.to_image(values, linear=True, fill=AIR_HU), stack, flags=flags)


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
