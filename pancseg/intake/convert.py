"""Conversion of a case: read, check, cut into groups, write; or rows that say why not."""

import hashlib
import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from nibabel import Nifti1Image, as_closest_canonical

from pancseg.data.groups import GroupSettings, cut_group, plan_cut
from pancseg.data.manifest import Case, Group, Row, parse_entries
from pancseg.data.scan_statistics import scan_statistics
from pancseg.errors import Incomplete, PancsegError, Refused, brief
from pancseg.files import unpacked_sha256, write_json, write_nifti
from pancseg.geometry import AIR_HU, oriented_like, spacing_of, voxel_ml
from pancseg.intake.cases import IMAGE_REFUSED
from pancseg.intake.checks import Checks, check_image, grid_problem, sort_flags, voxel_flags
from pancseg.intake.contact_sheet import picture_path, thumbnail, write_thumbnail
from pancseg.intake.types import CaseSource, Scan
from pancseg.structures import LabelMap, Structure, region_mask

RECORDS = ".records"  # folder of results that no manifest holds yet


@dataclass(frozen=True)
class PrepareSettings:
    """A prepared folder, how its cases are cut and checked, and the structures of its labels."""

    root: Path
    groups: GroupSettings
    checks: Checks
    structures: tuple[Structure, ...]


@dataclass(frozen=True)
class Job:
    """A case to convert in another process; fields named as in ``Case`` have its meaning."""

    settings: PrepareSettings
    case_source: CaseSource
    name: str
    patient: str
    input_hash: str
    input_state: str
    hashes: dict[str, Any]  # further keyed hashes that the case keeps
    prepared_before: bool


@dataclass(frozen=True)
class Result:
    """Result of a job."""

    input_hash: str  # of the job
    rows: list[Row]  # the image's, then the label's
    case: Case | None = None  # None where it was refused
    groups: list[Group] = field(default_factory=list)
    repairs: tuple[str, ...] = ()  # values of ``repair`` that would make the series usable
    structure_names: tuple[str, ...] = ()  # in the label, where none could be chosen; never stored


class ConversionError(Exception):
    """A bug met while a case was converted: exception type and stack, without any value."""


def convert(job: Job) -> Result:
    """Convert a case, or take its record; Incomplete if writing fails, ConversionError on a bug."""
    if recorded := read_record(job):
        return recorded
    try:
        with writing(job.settings.root):
            result = read_and_write(job)
    except Incomplete:
        raise
    except Exception as error:
        stack = "".join(traceback.format_tb(error.__traceback__))
        raise ConversionError(f"{type(error).__name__} in case {job.name}\n{stack}") from None
    return record(job, result)


def crashed(job: Job) -> Result:
    """Result of a case whose process died."""
    reason = "its process ended: a decoder crashed or memory ran out"
    return record(job, refusal(job, Refused("reader_died", reason)))


def read_and_write(job: Job) -> Result:
    """Convert a case."""
    try:
        scan = job.case_source.read_image()
        label = read_label(job, scan)
        flags = case_flags(job, scan, label)
    except Refused as refused:
        return refusal(job, refused)
    except MemoryError:
        return refusal(job, Refused("too_large", "memory ran out while it was read"))
    except OSError as error:
        return refusal(job, Refused("unreadable", brief(error)))
    try:
        return write_case(job, scan, label, flags)
    except MemoryError:
        return refusal(job, Refused("too_large", "memory ran out while it was written"))


def read_label(job: Job, scan: Scan) -> LabelMap | None:
    """The label on the grid of its scan; None without one, where an image of two values is refused.

    A reason to refuse it names the label, because it stands in the image's row.
    """
    if job.case_source.read_label is None:
        check_image(np.asanyarray(scan.image.dataobj))
        return None
    try:
        label = job.case_source.read_label(scan)
    except Refused as error:
        raise Refused(
            error.code, f"label: {error.sentence}", repairs=error.repairs, names=error.names
        ) from error
    image = oriented_like(label.image, scan.image)
    if problem := grid_problem(scan.image, image):
        raise problem
    return replace(label, image=Nifti1Image(np.asanyarray(image.dataobj), scan.image.affine))


def case_flags(job: Job, scan: Scan, label: LabelMap | None) -> list[str]:
    """All flags of a case that follow from itself; refused if ``checks.refuse`` names one."""
    checks, structures = job.settings.checks, job.settings.structures
    codes = None if label is None else np.asanyarray(label.image.dataobj)
    unknown_values = () if label is None else label.unknown_values
    hu, spacing_mm = np.asanyarray(scan.image.dataobj), spacing_of(scan.image.affine)
    flags = voxel_flags(hu, codes, spacing_mm, checks, structures)
    flags += [*job.case_source.flags, *scan.flags]
    flags += ["unlabelled"] if label is None else label.flags
    if unknown_values:
        flags.append("label_values")
    if scan.stack and scan.stack.repairs:
        flags.append("repaired")
    if job.case_source.is_phantom:
        flags.append("phantom")
    flags = sort_flags(flags)
    for code in (flag.partition(":")[0] for flag in flags):
        if code in checks.refuse:
            values = f" ({', '.join(unknown_values)})" if unknown_values else ""
            raise Refused(code, f"flagged {' '.join(flags)}{values}, and checks.refuse names it")
    return flags


def refusal(job: Job, refused: Refused) -> Result:
    """Rows of a refused case."""
    source = job.case_source
    rows = [Row(job.patient, "", str(source.path), "image", "refused", str(refused))]
    if source.label_path:
        rows.append(Row(job.patient, "", str(source.label_path), "label", "refused", IMAGE_REFUSED))
    return Result(job.input_hash, rows, repairs=refused.repairs, structure_names=refused.names)


def write_case(job: Job, scan: Scan, label: LabelMap | None, flags: list[str]) -> Result:
    """Write a case, its groups and its picture."""
    image, source = scan.image, job.case_source
    label_image = None if label is None else label.image
    case = Case(
        job.name,
        job.patient,
        **write_pair(job.settings.root, f"cases/{job.name}", image, label_image),
        shape=list(image.shape),
        spacing_mm=[round(mm, 6) for mm in spacing_of(image.affine)],
        label_voxels=None,
        structure_voxels={},
        input_hash=job.input_hash,
        input_state=job.input_state,
        phantom=source.is_phantom,
        voxel_hash=hash_voxels(image),
        **job.hashes,
        manufacturer=source.manufacturer,
        contrast=source.contrast,
        prepared_before=job.prepared_before,
        repairs=list(scan.stack.repairs) if scan.stack else [],
        statistics=scan_statistics(image),
    )
    row = Row(job.patient, job.name, str(source.path), "image", "kept", flags=" ".join(flags))
    case, groups = write_label_parts(job.settings, case, row, image, label_image)
    rows = [row]
    if source.label_path:
        path = str(source.label_path)
        rows.append(Row(job.patient, job.name, path, "label", "kept", slices=image.shape[2]))
    return Result(job.input_hash, rows, case, groups)


def write_label_parts(
    settings: PrepareSettings, case: Case, row: Row, image: Nifti1Image, label: Nifti1Image | None
) -> tuple[Case, list[Group]]:
    """Write everything that depends on the label: groups, counts, and the picture last.

    Returns the case with its counts, and its groups; the image's row is completed in place.
    """
    codes = None if label is None else np.asanyarray(label.dataobj)
    groups, empty, tail = write_groups(settings, case, image, label)
    write_thumbnail(settings.root / picture_path(case.name), thumbnail(image, codes))
    row.slices = image.shape[2]
    row.spacing_x_mm, row.spacing_y_mm, row.spacing_z_mm = case.spacing_mm
    row.groups_kept, row.groups_empty, row.groups_tail = len(groups), empty, tail
    if codes is None:
        return case, groups
    ml, voxels = voxel_ml(image.affine), int(np.count_nonzero(codes))
    counts = {s.name: int(np.count_nonzero(region_mask(codes, s))) for s in settings.structures}
    row.label_voxels, row.label_ml = voxels, round(voxels * ml, 3)
    if len(counts) > 1:
        row.structures_ml = " ".join(f"{name}={n * ml:.3f}" for name, n in counts.items())
    return replace(case, label_voxels=voxels, structure_voxels=counts), groups


def write_groups(
    settings: PrepareSettings, case: Case, image: Nifti1Image, label: Nifti1Image | None
) -> tuple[list[Group], int, int]:
    """Write the groups of a case, without the empty ones unless they are kept.

    Returns the groups, how many were empty, and how many were incomplete and left out.
    """
    depth = settings.groups.depth
    if depth is None:
        return [], 0, 0
    starts, left_out = plan_cut(image.shape[2], depth, settings.groups.tail)
    groups, empty = [], 0
    for start in starts:
        part = None if label is None else cut_group(label, start, depth, fill=0)
        voxels = None if part is None else int(np.count_nonzero(part.dataobj))
        empty += voxels == 0
        if voxels == 0 and not settings.groups.keep_empty:
            continue
        name = f"{case.name}_{start:04d}"
        cut_image = cut_group(image, start, depth, fill=AIR_HU)
        files = write_pair(settings.root, f"groups/{name}", cut_image, part)
        groups.append(Group(name, case.name, case.patient, start, label_voxels=voxels, **files))
    return groups, empty, left_out


def write_pair(
    root: Path, name: str, image: Nifti1Image, label: Nifti1Image | None
) -> dict[str, Any]:
    """Write an image and its label; return their paths and hashes as ``Case`` and ``Group`` do."""
    image_file, label_file = f"{name}_image.nii.gz", f"{name}_label.nii.gz"
    return {
        "image": image_file,
        "image_sha256": write_nifti(root / image_file, image),
        "label": None if label is None else label_file,
        "label_sha256": "" if label is None else write_nifti(root / label_file, label),
    }


def apply_correction(settings: PrepareSettings, case: Case, row: Row) -> tuple[Case, list[Group]]:
    """Take over a label file that was corrected by hand: groups, picture, counts and flags.

    The image's row is changed in place; the file is refused if it is no label map of this case.
    """
    path = settings.root / str(case.label)
    try:
        image = Nifti1Image.from_filename(settings.root / case.image)
        label = Nifti1Image.from_filename(path)
        codes, digest = np.asanyarray(label.dataobj), unpacked_sha256(path)
    except Exception as error:  # a damaged file raises nearly anything
        raise Refused("unreadable", brief(error)) from error
    label = oriented_like(Nifti1Image(codes, label.affine), image)
    if problem := grid_problem(image, label):
        raise problem
    codes = np.asanyarray(label.dataobj)
    last = len(settings.structures)
    if codes.min() < 0 or codes.max() > last or (codes != np.rint(codes)).any():
        raise Refused("label_values", f"holds other values than whole numbers from 0 to {last}")
    codes = codes.astype(np.uint8)
    hu, spacing_mm = np.asanyarray(image.dataobj), spacing_of(image.affine)
    flags = voxel_flags(hu, codes, spacing_mm, settings.checks, settings.structures)
    if refusing := [f for f in flags if f.partition(":")[0] in settings.checks.refuse]:
        raise Refused(refusing[0].partition(":")[0], "checks.refuse names it")
    kept = [flag for flag in row.flags.split() if not flag.startswith("label_")]
    row.flags = " ".join(sort_flags({*kept, *flags}))
    case = replace(case, label_sha256=digest, label_corrected=True)
    return write_label_parts(settings, case, row, image, Nifti1Image(codes, image.affine))


def record(job: Job, result: Result) -> Result:
    """Store a result until the manifest holds it; without paths, which may name patients."""
    rows = [replace(row, path="") for row in result.rows]
    value = asdict(replace(result, rows=rows, structure_names=()))
    value |= {"name": job.name, "input_state": job.input_state}
    with writing(job.settings.root):
        write_json(job.settings.root / RECORDS / f"{job.input_hash}.json", value)
    return result


def read_record(job: Job) -> Result | None:
    """The stored result of this very job, if all its files are there."""
    root, source = job.settings.root, job.case_source
    paths = {"image": str(source.path), "label": str(source.label_path)}
    try:
        value = json.loads((root / RECORDS / f"{job.input_hash}.json").read_text("utf-8"))
        rows = [Row(**{**row, "path": paths[row["kind"]]}) for row in value["rows"]]
        cases = parse_entries(Case, [value["case"]] if value["case"] else [], "case")
        groups = parse_entries(Group, value["groups"], "groups")
        is_same = (value["name"], value["input_state"]) == (job.name, job.input_state)
        repairs = tuple(value["repairs"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    files = [root / file for case in cases for file in case_files(case, groups)]
    if not is_same or not all(file.is_file() for file in files):
        return None
    case = cases[0] if cases else None
    return Result(job.input_hash, rows, case, groups, repairs)


def case_files(case: Case, groups: list[Group]) -> list[str]:
    """All files of a case and its groups, relative to the root."""
    files = [case.image, case.label, picture_path(case.name)]
    for group in groups:
        files += [group.image, group.label]
    return [file for file in files if file]


@contextmanager
def writing(root: Path, error_type: type[PancsegError] = Incomplete) -> Iterator[None]:
    """Explain the error of a folder that is full or read-only; ``PancsegError`` before any work."""
    try:
        yield
    except OSError as error:
        raise error_type(
            f"{root}: cannot be written ({brief(error)}); make room or change its permissions, "
            "then run the same command again: it continues where it was"
        ) from error


def hash_voxels(image: Nifti1Image) -> str:
    """Hash of the voxels in canonical orientation, the same for a scan as DICOM and as NIfTI."""
    values = np.asanyarray(as_closest_canonical(image).dataobj)
    digest = hashlib.sha256(str(values.shape).encode())
    for k in range(values.shape[2]):  # slice by slice, so that no whole scan is copied
        digest.update(np.ascontiguousarray(values[..., k].T).data)
    return digest.hexdigest()
