"""Conversion of cases: jobs are planned, run in processes, and merged into the prepared folder."""

import hashlib
import json
import shutil
import traceback
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from nibabel import Nifti1Image, as_closest_canonical

from pancseg.data.manifest import (
    TABLE,
    Case,
    Group,
    Manifest,
    Row,
    has_manifest,
    parse_entries,
    read_manifest,
    read_rows,
    rows_to_csv,
)
from pancseg.data.scan_statistics import scan_statistics
from pancseg.dicom.series import Scan
from pancseg.errors import Incomplete, PancsegError, Refused, brief
from pancseg.files import PARTIAL, unpacked_sha256, write_json, write_nifti, write_text
from pancseg.geometry import AIR_HU, cut_group, oriented_like, plan_cut, spacing_of, voxel_ml
from pancseg.intake.checks import (
    CROSS_CASE_FLAGS,
    Checks,
    check_grid,
    check_image,
    cross_case_flags,
    sort_flags,
    voxel_flags,
)
from pancseg.intake.contact_sheet import draw_contact_sheet, picture_path, write_thumbnail
from pancseg.intake.match_labels import IMAGE_REFUSED, CaseSource, SourceContents
from pancseg.intake.pseudonyms import Pseudonyms
from pancseg.parallel import Shard, process_map, progress
from pancseg.structures import IGNORED, LabelMap, Structure, count_labelled, region_mask

RECORDS = ".records"  # folder of results that no manifest holds yet


@dataclass(frozen=True)
class GroupSettings:
    """How cases are cut into groups; PancsegError where a value is not allowed."""

    depth: int | None  # slices of a group; None for no groups
    tail: str  # see plan_cut
    keep_empty: bool  # whether groups without any label voxel are kept

    def __post_init__(self) -> None:
        if self.depth is not None and self.depth < 1:
            raise PancsegError(f"data.depth={self.depth}: expected 1 or more, null for whole cases")
        if self.tail not in ("drop", "shift", "pad"):
            raise PancsegError(f"data.tail={self.tail}: expected drop, shift or pad")


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
    kept: dict[str, Any]  # further fields of the case


@dataclass(frozen=True)
class Result:
    """Result of a job."""

    input_hash: str  # of the job
    rows: list[Row]  # the image's, then the label's
    case: Case | None = None  # None where it was refused
    groups: list[Group] = field(default_factory=list)
    repairs: tuple[str, ...] = ()  # values of ``repair`` that would make the series usable
    structure_names: tuple[str, ...] = ()  # in the label, where none could be chosen; never stored


class Preparation:
    """A prepared folder and what it holds so far; PancsegError if its settings were others."""

    def __init__(
        self, settings: PrepareSettings, manifest_settings: dict[str, Any], pseudonyms: Pseudonyms
    ) -> None:
        root, new = settings.root, manifest_settings
        manifest = read_manifest(root) if has_manifest(root) else Manifest(new)
        old = manifest.settings
        if differing := [
            f"{key} (there {old.get(key)}, now {new.get(key)})"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]:
            raise PancsegError(
                f"{root} was prepared with other settings: {', '.join(differing)}; give another "
                "data.root, or the settings it was prepared with"
            )
        self.settings, self.root, self.pseudonyms = settings, root, pseudonyms
        self.manifest = replace(manifest, structures=settings.structures)
        self.cases = {case.input_hash: case for case in manifest.cases}
        self.groups: dict[str, list[Group]] = {case.name: [] for case in manifest.cases}
        for group in manifest.groups:
            self.groups[group.case].append(group)
        self.rows = {row.key: row for row in read_rows(root)}
        self.removed_files: set[str] = set()
        self.corrections: list[str] = []  # lines for the console
        self.problems: list[str] = []

    def run(self, contents: SourceContents, processes: int, shard: Shard | None) -> list[Result]:
        """Convert what is missing; without a shard, then merge everything into the manifest.

        PancsegError if the same is running on this machine; Incomplete if the folder cannot be
        written, or on a bug.
        """
        with lock(self.root, shard):
            corrected = self.corrected_cases()
            jobs = self.plan(contents, {case.input_hash for case in corrected})
            own = [job for job in jobs if shard is None or shard.has(job.input_hash)]
            changed = bool(jobs) or not self.manifest.complete
            if shard is None:
                table = rows_to_csv(self.rows.values())
                self.update_rows(contents)
                corrected = [case for case in corrected if case.input_hash in self.cases]
                changed |= bool(corrected) or rows_to_csv(self.rows.values()) != table
            if not changed:
                return []
            if self.manifest.complete or not has_manifest(self.root):
                with writing(self.root, PancsegError):
                    replace(self.manifest, complete=False).write(self.root)
            done = process_map(convert, own, processes, crashed)
            results = list(progress(done, "preparing", "case", len(own)))
            if shard is None:
                self.take_corrections(corrected)
                self.merge(jobs, results)
            return results

    def plan(self, contents: SourceContents, corrected: set[str]) -> list[Job]:
        """Jobs for cases that are not in the manifest as they are now, the same in every shard."""
        taken, tried = {case.name.casefold() for case in self.cases.values()}, Counter[str]()
        jobs: dict[str, Job] = {}
        for source in contents.cases:
            input_hash = self.pseudonyms.hash(source.input_key or str(source.path))
            if input_hash in jobs:
                continue
            patient, known = self.pseudonyms.name(source.patient), self.cases.get(input_hash)
            name = known.name if known else free_name(patient, taken, tried)
            taken.add(name.casefold())
            state, hash_ = self.state_of(source), self.pseudonyms.hash
            has_row = (str(source.path), "image") in self.rows
            if known and known.input_state == state != "" and has_row:
                files = case_files(known, self.groups[known.name])
                if all((self.root / file).is_file() for file in files):
                    continue
            is_corrected = known and (known.label_corrected or input_hash in corrected)
            if known and is_corrected and (self.root / str(known.label)).is_file():
                self.corrections.append(
                    f"{known.label}: was corrected by hand, its source has changed since; the "
                    "correction is kept (delete the file to convert the source again)"
                )
                continue
            ids = {"study": source.study_uid, "series": source.uid, "patient_id": source.patient_id}
            kept: dict[str, Any] = {f"{k}_hash": hash_(ids[k]) if ids[k] else "" for k in ids}
            kept["prepared_before"] = bool(known and known.prepared_before)
            jobs[input_hash] = Job(self.settings, source, name, patient, input_hash, state, kept)
        return list(jobs.values())

    def state_of(self, source: CaseSource) -> str:
        """Hash of file names, sizes, times, flags and settings; empty where a file is gone."""
        settings = replace(self.settings, root=Path())
        parts = [str(source.label_path), *source.flags, f"{settings} {self.manifest.settings}"]
        try:
            for file in source.files:
                status = file.stat()
                parts.append(f"{file.name} {status.st_size} {status.st_mtime_ns}")
        except OSError:
            return ""
        return self.pseudonyms.hash("\n".join(sorted(parts)))

    def update_rows(self, contents: SourceContents) -> None:
        """Enter rows of skipped files, drop rows of what is gone, and remove cases skipped now."""
        rows = [
            Row("", "", str(s.path), s.kind, s.status, s.reason, slices=s.slices or "")
            for s in contents.skipped
        ]
        skipped = {row.key: row for row in rows}
        gone = {row.case for key, row in self.rows.items() if key in skipped and key[1] == "image"}
        self.remove([case for case in self.cases.values() if case.name in gone])
        present = {(str(source.path), "image") for source in contents.cases}
        present |= {(str(source.label_path), "label") for source in contents.cases}
        kept = {case.name for case in self.cases.values()}
        remaining = {k: row for k, row in self.rows.items() if row.case in kept or k in present}
        self.rows = remaining | skipped

    def corrected_cases(self) -> list[Case]:
        """Cases whose label file was changed since pancseg wrote it, and then their picture."""
        corrected = []
        for case in self.cases.values():
            path, picture = self.root / str(case.label), self.root / picture_path(case.name)
            if case.label is None or not (path.is_file() and picture.is_file()):
                continue
            # the picture is written last; an interrupted preparation may not have come so far
            times_s = [max(s.st_mtime, s.st_ctime) for s in (path.stat(), picture.stat())]
            if self.manifest.complete and times_s[0] < times_s[1]:
                continue
            with suppress(OSError, EOFError):  # a damaged file was changed as well
                if unpacked_sha256(path) == case.label_sha256:
                    continue
            corrected.append(case)
        return corrected

    def take_corrections(self, cases: list[Case]) -> None:
        """Take over corrected labels: groups, counts and flags of their cases."""
        rows = self.image_rows()
        for case in cases:
            try:
                with writing(self.root):
                    changed, groups = apply_correction(self.settings, case, rows[case.name])
            except Refused as refused:
                self.problems.append(f"{self.root / str(case.label)}: was changed; {refused}")
                continue
            self.removed_files.update(case_files(case, self.groups[case.name]))
            self.cases[case.input_hash], self.groups[case.name] = changed, groups
            self.corrections.append(f"{case.label}: corrected by hand, taken over")

    def merge(self, jobs: list[Job], results: list[Result]) -> None:
        """Enter results in the order of the jobs, compare all cases, and write everything."""
        by_hash = {result.input_hash: result for result in results}
        self.remove([self.cases[job.input_hash] for job in jobs if job.input_hash in self.cases])
        for job in jobs:
            result = by_hash[job.input_hash]
            if result.case:
                self.cases[result.input_hash] = result.case
                self.groups[result.case.name] = result.groups
            self.rows |= {row.key: row for row in result.rows}
        self.compare_cases()
        cases = list(self.cases.values())
        for case in cases:
            self.removed_files.difference_update(case_files(case, self.groups[case.name]))
        with writing(self.root):
            for file in self.removed_files:
                (self.root / file).unlink(missing_ok=True)
            draw_contact_sheet(self.root, self.image_rows().values())
            write_text(self.root / TABLE, rows_to_csv(self.rows.values()))
        all_groups = [group for groups in self.groups.values() for group in groups]
        manifest = replace(self.manifest, complete=True, cases=cases, groups=all_groups)
        with writing(self.root, PancsegError):
            manifest.write(self.root)
        shutil.rmtree(self.root / RECORDS, ignore_errors=True)

    def compare_cases(self) -> None:
        """Flag duplicates, patients of two names and outliers; refuse what ``checks`` refuse."""
        rows, cases, checks = self.image_rows(), self.cases.values(), self.settings.checks
        # cases of earlier runs first, so that a case that is added displaces none
        ordered = sorted(cases, key=lambda c: (not c.prepared_before, rows[c.name].path))
        copies, flags_of = cross_case_flags(ordered, checks.spacing_factor)
        self.rows |= {row.key: row for row in rows.values()}
        refused: dict[str, str] = {}
        for case in ordered:
            row, original = rows[case.name], copies.get(case.name)
            flags = flags_of.get(case.name, [])
            own = [flag for flag in row.flags.split() if flag not in CROSS_CASE_FLAGS]
            row.flags = " ".join(sort_flags([*own, *flags]))
            compared = replace(case, prepared_before=original is None, duplicate_of=original)
            self.cases[case.input_hash] = compared
            refusing = [flag for flag in flags if flag in checks.refuse]
            if refusing and not (refusing == ["duplicate_pixels"] and original is None):
                detail = f"its voxels are those of case {original}" if original else "see flags"
                refused[case.name] = f"{refusing[0]}: {detail}, and checks.refuse names it"
        for row in self.remove([case for case in ordered if case.name in refused]):
            reason = refused[row.case] if row.kind == "image" else IMAGE_REFUSED
            row = Row(row.patient, "", row.path, row.kind, "refused", reason, row.flags, row.slices)
            self.rows[row.key] = row

    def image_rows(self) -> dict[str, Row]:
        """Rows of the images of cases, by case; those of a lost table have no path."""
        made = {c.name: Row(c.patient, c.name, "", "image", "kept") for c in self.cases.values()}
        rows = self.rows.values()
        return made | {row.case: row for row in rows if row.case and row.kind == "image"}

    def remove(self, cases: list[Case]) -> list[Row]:
        """Remove cases and return their rows; files are deleted at the end of the merge."""
        names = {case.name for case in cases}
        for case in cases:
            self.removed_files.update(case_files(case, self.groups.pop(case.name)))
            del self.cases[case.input_hash]
        rows = [row for row in self.rows.values() if row.case in names]
        for row in rows:
            del self.rows[row.key]
        return rows


def free_name(patient: str, taken: Collection[str], tried: Counter[str]) -> str:
    """The patient's name, with the first free number if it is taken, in any case."""
    while True:
        tried[patient] += 1
        name = f"{patient}-{tried[patient]}" if tried[patient] > 1 else patient
        if name.casefold() not in taken:
            return name


@contextmanager
def lock(root: Path, shard: Shard | None) -> Iterator[None]:
    """Keep a second merge, or the same shard, from running; a merge removes half-written files."""
    name, what = ".lock", "a preparation"
    if shard:
        name = f"{RECORDS}/.lock-{shard.index}-of-{shard.count}"
        what = f"shard {shard.index}/{shard.count}"
    with writing(root, PancsegError):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(root / name, blocking=False):
                partial = [*root.glob(f"{PARTIAL}*"), *root.glob(f"*/{PARTIAL}*")]
                for path in () if shard else partial:
                    path.unlink(missing_ok=True)
                yield
        except Timeout:
            message = f"{root}: {what} is already running here; wait for its end"
            raise PancsegError(message) from None


def convert(job: Job) -> Result:
    """Convert a case, or take its record; Incomplete if writing fails, or on a bug."""
    if recorded := read_record(job):
        return recorded
    log = job.settings.root / "prepare.log"
    try:
        with writing(job.settings.root):
            try:
                scan = job.case_source.read_image()
                label = read_label(job, scan)
                flags = case_flags(job, scan, label)
            except OSError as error:
                raise Refused("unreadable", brief(error)) from error
            result = write_case(job, scan, label, flags)
    except Refused as refused:
        result = refusal(job, refused)
    except MemoryError:
        result = refusal(job, Refused("too_large", "memory ran out"))
    except Incomplete:
        raise
    except Exception as error:  # the type and the stack alone: values may name patients
        bug = f"{type(error).__name__} in case {job.name}"
        stack = "".join(traceback.format_tb(error.__traceback__))
        log.write_text(f"{bug}\n{stack}\n", encoding="utf-8")
        raise Incomplete(f"{bug}: a bug in pancseg; please report it with {log}") from None
    return record(job, result)


def crashed(job: Job) -> Result:
    """Result of a case whose process died."""
    reason = "its process ended: a decoder crashed or memory ran out"
    return record(job, refusal(job, Refused("reader_died", reason)))


def read_label(job: Job, scan: Scan) -> LabelMap | None:
    """The label on its scan's grid; None without one, where an image of two values is refused."""
    if job.case_source.read_label is None:
        check_image(np.asanyarray(scan.image.dataobj))
        return None
    try:
        label = job.case_source.read_label(scan)
    except Refused as error:
        sentence = f"label: {error.sentence}"  # it stands in the image's row
        raise Refused(error.code, sentence, repairs=error.repairs, names=error.names) from error
    image = oriented_like(label.image, scan.image)
    check_grid(scan.image, image)
    return replace(label, image=Nifti1Image(np.asanyarray(image.dataobj), scan.image.affine))


def case_flags(job: Job, scan: Scan, label: LabelMap | None) -> list[str]:
    """All flags of a case that follow from itself; refused if ``checks.refuse`` names one."""
    settings, hu = job.settings, np.asanyarray(scan.image.dataobj)
    codes = None if label is None else np.asanyarray(label.image.dataobj)
    values = label.unknown_values if label else ()
    spacing_mm = spacing_of(scan.image.affine)
    flags = voxel_flags(hu, codes, spacing_mm, settings.checks, settings.structures)
    flags += [*job.case_source.flags, *scan.flags, *(label.flags if label else ["unlabelled"])]
    flags += ["label_values"] * bool(values) + ["phantom"] * job.case_source.is_phantom
    flags = sort_flags(flags + ["repaired"] * bool(scan.stack and scan.stack.repairs))
    shown = f" ({', '.join(values)})" * bool(values)
    settings.checks.refuse_flagged(flags, f"flagged {' '.join(flags)}{shown}")
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
        **job.kept,
        shape=list(image.shape),
        spacing_mm=[round(mm, 6) for mm in spacing_of(image.affine)],
        label_voxels=None,
        structure_voxels={},
        input_hash=job.input_hash,
        input_state=job.input_state,
        phantom=source.is_phantom,
        voxel_hash=hash_voxels(image),
        manufacturer=source.manufacturer,
        contrast=source.contrast,
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
    """Write groups, then the picture; return the case with counts, and groups; complete its row."""
    cut, groups, empty = settings.groups, [], 0
    depth = cut.depth or 0
    starts, left_out = plan_cut(image.shape[2], depth, cut.tail) if depth else ([], 0)
    for start in starts:
        part = None if label is None else cut_group(label, start, depth, fill=0)
        voxels = None if part is None else count_labelled(np.asanyarray(part.dataobj))
        empty += voxels == 0
        if voxels == 0 and not cut.keep_empty:
            continue
        name, slices = f"{case.name}_{start:04d}", cut_group(image, start, depth, fill=AIR_HU)
        files = write_pair(settings.root, f"groups/{name}", slices, part)
        groups.append(Group(name, case.name, case.patient, start, label_voxels=voxels, **files))
    codes = None if label is None else np.asanyarray(label.dataobj)
    write_thumbnail(settings.root / picture_path(case.name), image, codes)
    row.slices = image.shape[2]
    row.spacing_x_mm, row.spacing_y_mm, row.spacing_z_mm = case.spacing_mm
    row.groups_kept, row.groups_empty, row.groups_tail = len(groups), empty, left_out
    if codes is None:
        return case, groups
    ml, voxels = voxel_ml(image.affine), count_labelled(codes)
    counts = {s.name: int(np.count_nonzero(region_mask(codes, s))) for s in settings.structures}
    row.label_voxels, row.label_ml = voxels, round(voxels * ml, 3)
    if len(counts) > 1:
        row.structures_ml = " ".join(f"{name}={n * ml:.3f}" for name, n in counts.items())
    ignored = int(np.count_nonzero(codes == IGNORED))
    case = replace(case, label_voxels=voxels, structure_voxels=counts, ignored_voxels=ignored)
    return case, groups


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
    """Take over a label file that was corrected by hand; the image's row is changed in place."""
    path = settings.root / str(case.label)
    try:
        image = Nifti1Image.from_filename(settings.root / case.image)
        label = Nifti1Image.from_filename(path)
        codes, digest = np.asanyarray(label.dataobj), unpacked_sha256(path)
    except Exception as error:  # a damaged file raises nearly anything
        raise Refused("unreadable", brief(error)) from error
    label = oriented_like(Nifti1Image(codes, label.affine), image)
    check_grid(image, label)
    codes, last = np.asanyarray(label.dataobj), len(settings.structures)
    if not np.isin(np.unique(codes), [*range(last + 1), IGNORED]).all():
        raise Refused("label_values", f"holds other values than whole numbers from 0 to {last}")
    codes = codes.astype(np.uint8)
    hu, spacing_mm = np.asanyarray(image.dataobj), spacing_of(image.affine)
    flags = voxel_flags(hu, codes, spacing_mm, settings.checks, settings.structures)
    settings.checks.refuse_flagged(flags, f"flagged {' '.join(flags)}")
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
