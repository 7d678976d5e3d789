"""A prepared folder being filled: planning, shards, and the merge into manifest and table."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pancseg.data.manifest import (
    TABLE,
    Case,
    Group,
    Manifest,
    Row,
    has_manifest,
    read_manifest,
    read_rows,
    rows_to_csv,
)
from pancseg.errors import Incomplete, PancsegError, Refused
from pancseg.files import PARTIAL, unpacked_sha256, write_text
from pancseg.intake.cases import IMAGE_REFUSED
from pancseg.intake.checks import (
    CROSS_CASE_FLAGS,
    FLAGS,
    INFO_FLAGS,
    cross_case_flags,
    duplicates_of,
    sort_flags,
)
from pancseg.intake.contact_sheet import draw_contact_sheet, picture_path
from pancseg.intake.convert import (
    RECORDS,
    ConversionError,
    Job,
    PrepareSettings,
    Result,
    apply_correction,
    case_files,
    convert,
    crashed,
    read_record,
    writing,
)
from pancseg.intake.pseudonyms import Pseudonyms
from pancseg.intake.types import CaseSource, SourceContents
from pancseg.parallel import process_map, progress

LOG = "prepare.log"
MOST_LINES = 20  # refusals on the console; intake.csv holds all
BYTES_OUT_PER_BYTE_IN = 2.5  # cases and groups, packed, against uncompressed DICOM


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count`` of the cases, chosen by a hash of each case.

    >>> Shard.parse("1/4")
    Shard(index=1, count=4)
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """A shard from ``index/count``; ``PancsegError`` if it is something else."""
        index, _, count = str(text).partition("/")
        if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
            raise PancsegError(f"shard={text}: expected i/n with i from 0 to n - 1, such as 0/4")
        return cls(int(index), int(count))

    def has(self, input_hash: str) -> bool:
        """Whether a case belongs to this shard."""
        return int(input_hash[:12], 16) % self.count == self.index


@dataclass
class Outcome:
    """What a preparation did, for the console."""

    lines: list[str]  # summary, refused input, and advice
    problems: list[str]  # a line for each refused image, label or file
    names: list[str]  # a line for each label in which no structure could be chosen


class Preparation:
    """A prepared folder, what it holds so far, and the settings it is filled with.

    ``manifest_settings`` must be equal whenever cases are added; PancsegError if they are not.
    """

    def __init__(
        self, settings: PrepareSettings, manifest_settings: dict[str, Any], pseudonyms: Pseudonyms
    ) -> None:
        root = settings.root
        manifest = read_manifest(root) if has_manifest(root) else Manifest(manifest_settings)
        check_settings(root, manifest.settings, manifest_settings)
        self.settings, self.root, self.pseudonyms = settings, root, pseudonyms
        self.manifest = replace(manifest, structures=settings.structures)
        self.was_complete = manifest.complete
        self.cases = {case.input_hash: case for case in manifest.cases}
        self.groups: dict[str, list[Group]] = {case.name: [] for case in manifest.cases}
        for group in manifest.groups:
            self.groups[group.case].append(group)
        self.rows = {row.key: row for row in read_rows(root)}
        self.removed_files: set[str] = set()
        self.corrections: list[str] = []
        self.problems: list[str] = []

    def run(self, contents: SourceContents, processes: int, shard: Shard | None = None) -> Outcome:
        """Convert what is missing; without a shard, then merge everything into the manifest.

        A shard leaves records that a later merge takes up. Each process holds one scan in memory.
        PancsegError if the same is running on this machine or the disk is too small; Incomplete if
        the folder cannot be written, or a bug was met.
        """
        with lock(self.root, shard):
            corrected = self.corrected_cases()
            jobs = self.plan(contents, {case.input_hash for case in corrected})
            own = [job for job in jobs if shard is None or shard.has(job.input_hash)]
            check_disk(self.root, [job.case_source for job in own if not read_record(job)])
            changed = bool(jobs) or not self.was_complete
            if shard is None:
                table = rows_to_csv(self.rows.values())
                self.update_rows(contents)
                corrected = [case for case in corrected if case.input_hash in self.cases]
                changed |= bool(corrected) or rows_to_csv(self.rows.values()) != table
            results = []
            if changed:
                if self.was_complete or not has_manifest(self.root):
                    with writing(self.root, PancsegError):
                        replace(self.manifest, complete=False).write(self.root)
                results = self.convert_all(own, processes)
            if shard is not None:
                return shard_outcome(shard, results)
            if changed:
                self.take_corrections(corrected)
                self.merge(jobs, results)
            return self.outcome(results)

    def plan(self, contents: SourceContents, corrected: set[str]) -> list[Job]:
        """Jobs for the cases that are not in the manifest as they are now, or corrected by hand.

        Names are given before anything is read, in the order of the source: the patient's name
        for its first case, with a number for each further case. Every shard plans the same.
        """
        taken = {case.name.casefold() for case in self.cases.values()}
        jobs: dict[str, Job] = {}
        for source in contents.cases:
            input_hash = self.pseudonyms.hash(source.input_key or str(source.path))
            if input_hash in jobs:
                continue
            patient, known = self.pseudonyms.name(source.patient), self.cases.get(input_hash)
            name = known.name if known else free_name(patient, taken)
            taken.add(name.casefold())
            ids = {
                "study_hash": source.study_uid,
                "series_hash": source.series_uid,
                "patient_id_hash": source.patient_id,
            }
            hashes = {key: self.pseudonyms.hash(text) if text else "" for key, text in ids.items()}
            state, was_used = self.state_of(source), bool(known and known.prepared_before)
            job = Job(self.settings, source, name, patient, input_hash, state, hashes, was_used)
            if known and self.is_prepared(known, job):
                continue
            is_corrected = known and (known.label_corrected or input_hash in corrected)
            if known and is_corrected and (self.root / str(known.label)).is_file():
                self.corrections.append(
                    f"{known.label}: was corrected by hand, its source has changed since; the "
                    "correction is kept (delete the file to convert the source again)"
                )
                continue
            jobs[input_hash] = job
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

    def is_prepared(self, case: Case, job: Job) -> bool:
        """Whether a case was made from this very input, and all its files are there."""
        is_same = case.input_state == job.input_state != ""
        has_row = (str(job.case_source.path), "image") in self.rows
        files = case_files(case, self.groups[case.name])
        return is_same and has_row and all((self.root / file).is_file() for file in files)

    def update_rows(self, contents: SourceContents) -> None:
        """Enter rows of skipped files, and drop rows of what the source holds no longer.

        A case that is skipped now, as when its label is gone, is removed. A case whose files are
        all gone stays.
        """
        skipped = {}
        for file in contents.skipped:
            row = Row("", "", str(file.path), file.kind, file.status, file.reason)
            row.slices = file.slices or ""
            skipped[row.key] = row
        gone = {row.case for key, row in self.rows.items() if key in skipped and key[1] == "image"}
        self.remove([case for case in self.cases.values() if case.name in gone])
        present = {(str(source.path), "image") for source in contents.cases}
        present |= {(str(source.label_path), "label") for source in contents.cases}
        kept = {case.name for case in self.cases.values()}
        remaining = {k: row for k, row in self.rows.items() if row.case in kept or k in present}
        self.rows = remaining | skipped

    def corrected_cases(self) -> list[Case]:
        """Cases whose label file was changed since pancseg wrote it.

        Files are hashed only where the label is newer than the case's picture, which is written
        after it, or the last preparation was interrupted.
        """
        corrected = []
        for case in self.cases.values():
            path, picture = self.root / str(case.label), self.root / picture_path(case.name)
            if case.label is None or not (path.is_file() and picture.is_file()):
                continue
            if self.was_complete and modified_s(path) < modified_s(picture):
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

    def convert_all(self, jobs: list[Job], processes: int) -> list[Result]:
        """Results of jobs, with progress; a bug's stack goes to ``prepare.log``."""
        try:
            done = process_map(convert, jobs, processes, crashed)
            return list(progress(done, "preparing", "case", len(jobs)))
        except ConversionError as error:
            (self.root / LOG).write_text(f"{error}\n", encoding="utf-8")
            raise Incomplete(
                f"{str(error).splitlines()[0]}: a bug in pancseg stopped the preparation; "
                f"please report it with {self.root / LOG}"
            ) from None

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
        """Flag duplicates, patients of two names and outliers; refuse what ``checks`` refuse.

        Established cases come first, so that a case that is added displaces none.
        """
        rows, cases, checks = self.image_rows(), self.cases.values(), self.settings.checks
        ordered = sorted(cases, key=lambda c: (not c.prepared_before, rows[c.name].path))
        copies = duplicates_of(ordered)
        flags_of = cross_case_flags(ordered, copies, checks.spacing_factor)
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
        """Rows of the images of cases, by case; those of a table that was lost are made."""
        rows = {row.case: row for row in self.rows.values() if row.case and row.kind == "image"}
        for case in self.cases.values():
            if case.name not in rows:
                rows[case.name] = row = Row(case.patient, case.name, "", "image", "kept")
                self.rows[row.key] = row
        return rows

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

    def outcome(self, results: list[Result]) -> Outcome:
        """Lines for the console after a merge."""
        images = [row for row in self.rows.values() if row.kind == "image"]
        refused = [row for row in self.rows.values() if row.status == "refused"]
        reasons = sorted(f"{r.path}: {r.reason}" for r in refused if r.reason != IMAGE_REFUSED)
        problems = [*reasons, *self.problems]
        flags = [{f.partition(":")[0] for f in row.flags.split()} for row in images if row.case]
        kept, added = len(self.cases), sum(r.input_hash in self.cases for r in results)
        unlabelled = sum(case.label is None for case in self.cases.values())
        flagged = sum(bool(names.difference(INFO_FLAGS)) for names in flags)
        cut, groups = self.settings.groups, "no groups"
        if cut.depth is not None:
            count = sum(len(of_case) for of_case in self.groups.values())
            empty = sum(int(row.groups_empty or 0) for row in images)
            tails = sum(int(row.groups_tail or 0) for row in images)
            groups = (
                f"{count} groups of {cut.depth} ({empty} empty groups "
                f"{'kept' if cut.keep_empty else 'dropped'}, {tails} incomplete groups left out)"
            )
        summary = (
            f"{self.root}: kept {kept} of {kept + sum(r.kind == 'image' for r in refused)} cases "
            f"({added} new, {unlabelled} unlabelled, {flagged} flagged), "
            f"{groups}; refused {len(problems)}{':' * bool(problems)}"
        )
        meanings = []
        for flag, meaning in FLAGS.items():
            count = sum(flag in names for names in flags)
            if count and flag not in INFO_FLAGS:
                meanings.append(f"flagged {flag}, {count} case{'s' * (count != 1)}: {meaning}")
        advice = [*meanings, *self.corrections, f"look at {self.root / 'intake.png'}"]
        return make_outcome(summary, problems, results, advice)


def shard_outcome(shard: Shard, results: list[Result]) -> Outcome:
    """Lines for the console after a shard."""
    problems = [f"{r.rows[0].path}: {r.rows[0].reason}" for r in results if r.case is None]
    summary = (
        f"shard {shard.index}/{shard.count}: {len(results)} cases, refused {len(problems)}; when "
        "all shards are done, run the same command without shard"
    )
    return make_outcome(summary, problems, results, [])


def make_outcome(
    summary: str, problems: list[str], results: list[Result], advice: list[str]
) -> Outcome:
    """An outcome that shows the first problems, and the options that make more series usable."""
    lines = [summary] + [f"refused {problem}" for problem in problems[:MOST_LINES]]
    if len(problems) > MOST_LINES:
        lines.append(f"and {len(problems) - MOST_LINES} more, see intake.csv")
    if repairs := sorted({key for result in results for key in result.repairs}):
        options = " ".join(f"repair.{key}=resample" for key in repairs)
        lines.append(f"{options}, with another data.root, resamples such series")
    unknown = [result for result in results if result.structure_names]
    names = [f"{r.rows[-1].path}: {', '.join(r.structure_names)}" for r in unknown]
    return Outcome([*lines, *advice], problems, names)


def free_name(patient: str, taken: set[str]) -> str:
    """The patient's name, with the first number that is free if it is taken.

    Names that differ only in case are equal on some file systems.

    >>> free_name("P7", {"p7"})
    'P7-2'
    """
    names = (patient if n == 1 else f"{patient}-{n}" for n in range(1, len(taken) + 2))
    return next(name for name in names if name.casefold() not in taken)


def modified_s(path: Path) -> float:
    """Time at which a file was last written, renamed or replaced, s."""
    status = path.stat()
    return max(status.st_mtime, status.st_ctime)


@contextmanager
def lock(root: Path, shard: Shard | None) -> Iterator[None]:
    """Keep a second merge, or the same shard, from running; a merge removes half-written files."""
    name = ".lock" if shard is None else f"{RECORDS}/.lock-{shard.index}-of-{shard.count}"
    what = "a preparation" if shard is None else f"shard {shard.index}/{shard.count}"
    with writing(root, PancsegError):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(root / name, blocking=False):
                if shard is None:
                    for path in [*root.glob(f"{PARTIAL}*"), *root.glob(f"*/{PARTIAL}*")]:
                        path.unlink(missing_ok=True)
                yield
        except Timeout:
            raise PancsegError(
                f"{root}: {what} is already running here; wait for its end"
            ) from None


def check_settings(root: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Check that a folder is extended with the settings it was made with."""
    differing = [
        f"{key} (there {old.get(key)}, now {new.get(key)})"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if differing:
        raise PancsegError(
            f"{root} was prepared with other settings: {', '.join(differing)}; give another "
            "data.root, or the settings it was prepared with"
        )


def check_disk(root: Path, sources: list[CaseSource]) -> None:
    """Check that the disk holds what will be written."""
    files = [file for source in sources for file in source.files]
    bytes_in = sum(file.stat().st_size for file in files if file.exists())
    needed_gb, free_gb = bytes_in * BYTES_OUT_PER_BYTE_IN / 1e9, shutil.disk_usage(root).free / 1e9
    if needed_gb > free_gb:
        raise PancsegError(
            f"{root}: needs about {needed_gb:.1f} GB, {free_gb:.1f} GB are free; free some or give "
            "another data.root"
        )
