"""Filling a prepared folder: cases, groups, manifest and the table of what was looked at."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from pancseg.atomic import PARTIAL, write_text
from pancseg.dataset.contact_sheet import Tile, draw_contact_sheet
from pancseg.dataset.conversion import (
    Cutting,
    Job,
    Outcome,
    convert,
    fingerprint_of,
    killed,
    picture_of,
)
from pancseg.dataset.intake_table import TABLE, Row, read_rows, rows_to_csv
from pancseg.dataset.manifest import Case, Group, Manifest, has_manifest, read_manifest
from pancseg.dataset.preparation_checks import check_disk, check_settings
from pancseg.dataset.unfinished import FOLDER, forget_records, keep_record, read_records
from pancseg.dataset.whole_root import ROOT_FLAGS, copies_of, root_flags
from pancseg.errors import Refused
from pancseg.intake.checks import Checks, in_order
from pancseg.intake.found import Candidate, Found, Stray
from pancseg.intake.pseudonyms import Names
from pancseg.processes import in_processes


class Preparation:
    """A prepared folder that is being filled.

    Args:
        root: The folder.
        cutting: How to cut.
        checks: What to flag and what to refuse.
        settings: Everything that must be equal whenever something is added to the folder.
        names: How patients are named.

    Raises:
        PancsegError: If the folder was prepared with other settings.
    """

    def __init__(
        self, root: Path, cutting: Cutting, checks: Checks, settings: dict[str, Any], names: Names
    ) -> None:
        found = read_manifest(root) if has_manifest(root) else Manifest(settings)
        check_settings(root, found.settings, settings)
        self.root = root
        self.cutting = cutting
        self.checks = checks
        self.settings = settings
        self.names = names
        self.cases = {case.origin: case for case in found.cases}
        self.groups: dict[str, list[Group]] = {case.case: [] for case in found.cases}
        for group in found.groups:
            self.groups[group.case].append(group)
        self.rows = read_rows(root / TABLE)
        self.was_complete = found.complete
        self.refused_before: dict[str, str] = {}
        self.added = 0
        remove_partial(root)
        for outcome in read_records(root):
            self.enter(outcome)

    @property
    def manifest(self) -> Manifest:
        """What is in the folder."""
        groups = [group for groups in self.groups.values() for group in groups]
        return Manifest(self.settings, cases=list(self.cases.values()), groups=groups)

    @property
    def problems(self) -> list[str]:
        """Each refused image, series or file with its reason."""
        return [
            f"{row.path}: {row.reason}"
            for row in sorted(self.rows.values(), key=lambda row: row.path)
            if row.status == "refused" and not row.reason.startswith("image_refused")
        ]

    def plan(self, candidates: list[Candidate]) -> list[Job]:
        """Jobs for what is not done yet.

        Names are dealt before anything is read, in the order of the source, so that they depend
        neither on which process is faster nor on where an earlier run was killed: the patient's
        name for the first case, with a number for each further one. Names that differ only in
        case are one on some file systems.
        """
        taken = {case.case.casefold() for case in self.cases.values()}
        jobs = []
        for candidate in candidates:
            origin, patient = self.names.hash(str(candidate.path)), self.names.of(candidate.patient)
            known = self.cases.get(origin)
            case = known.case if known else free_name(patient, taken)
            taken.add(case.casefold())
            if self.is_done(candidate, origin):
                continue
            if known:
                self.forget(known)
            study = self.names.hash(candidate.study_uid) if candidate.study_uid else ""
            jobs.append(
                Job(
                    *(candidate, case, patient, origin, study, self.root),
                    *(self.cutting, self.checks),
                )
            )
        return jobs

    def look_at(self, found: Found) -> None:
        """Enter what belongs to no case, and drop rows of what the source holds no longer."""
        seen = {(str(one.path), "image") for one in found.candidates}
        seen |= {(str(one.label_path), "label") for one in found.candidates}
        self.rows = {key: row for key, row in self.rows.items() if row.case or key in seen}
        for stray in found.strays:
            row = row_of(stray)
            self.rows[row.path, row.kind] = row

    def is_done(self, candidate: Candidate, origin: str) -> bool:
        """Whether this very input was converted and all its files are there.

        What an interrupted run refused is done too, until all is done once.
        """
        case = self.cases.get(origin)
        source = case.source if case else self.refused_before.get(origin)
        if source is None or (str(candidate.path), "image") not in self.rows:
            return False
        there = case is None or all(path.is_file() for path in self.files_of(case))
        return there and source == fingerprint_of(candidate)

    def files_of(self, case: Case) -> list[Path]:
        """Every file of a case and of its groups."""
        files = [case.image, case.label, picture_of(case.case)]
        for group in self.groups[case.case]:
            files += [group.image, group.label]
        return [self.root / file for file in files if file]

    def forget(self, case: Case) -> None:
        """Take out a case, with its files, so that none is left over."""
        for path in self.files_of(case):
            path.unlink(missing_ok=True)
        del self.groups[case.case], self.cases[case.origin]

    def enter(self, outcome: Outcome) -> None:
        """Enter what became of a candidate, in place of an earlier outcome."""
        for row in outcome.rows:
            self.rows[row.path, row.kind] = row
        if outcome.case is None:
            self.refused_before[outcome.origin] = outcome.source
            return
        self.cases[outcome.origin] = outcome.case
        self.groups[outcome.case.case] = outcome.groups
        self.added += 1

    def look_across(self) -> None:
        """Flag what only all cases together tell, and take out what is to be refused for it."""
        rows = {row.case: row for row in self.rows.values() if row.case and row.kind == "image"}
        ordered = sorted(self.cases.values(), key=lambda case: rows[case.case].path)
        copies = copies_of(ordered)
        flags = root_flags(ordered, copies, self.checks.spacing_factor)
        for case in ordered:
            row, told = rows[case.case], flags.get(case.case, [])
            own = [flag for flag in str(row.flags).split() if flag not in ROOT_FLAGS]
            row.flags = " ".join(in_order([*own, *told]))
            original = copies.get(case.case)
            self.cases[case.origin] = replace(case, duplicate_of=original)
            refusing = [flag for flag in told if flag in self.checks.refuse]
            if refusing and not (refusing == ["duplicate_pixels"] and original is None):
                self.refuse_late(case, row, Refused(refusing[0], reason_of(refusing[0], original)))

    def refuse_late(self, case: Case, row: Row, refused: Refused) -> None:
        """Take out a case that was converted before the others told on it."""
        self.forget(case)
        for one in [one for one in self.rows.values() if one.case == case.case]:
            reason = str(refused) if one is row else "image_refused: see the image's row"
            self.rows[one.path, one.kind] = Row(
                one.patient, "", one.path, one.kind, "refused", reason, one.flags, one.slices
            )

    def save_state(self, complete: bool) -> None:
        """Write table and manifest, in this order: a case of the manifest has its row."""
        ordered = sorted(self.rows.values(), key=lambda row: (row.path, row.kind))
        write_text(self.root / TABLE, rows_to_csv(ordered))
        manifest = self.manifest
        manifest.complete = complete
        manifest.write(self.root)

    def draw(self) -> None:
        """Draw the contact sheet."""
        rows = sorted((r for r in self.rows.values() if r.case and r.kind == "image"), key=by_case)
        tiles = [
            Tile(
                row.case,
                row.patient,
                self.root / picture_of(row.case),
                str(row.flags),
                f"{row.label_ml} ml" if row.label_ml != "" else "",
            )
            for row in rows
        ]
        draw_contact_sheet(self.root, tiles)


def fill(preparation: Preparation, found: Found, processes: int) -> Iterator[tuple[int, Outcome]]:
    """Take everything that a source holds; what was reached is kept on any way out.

    Args:
        preparation: Where to.
        found: The source.
        processes: How many work at a time, each with one scan in memory.

    Yields:
        How many candidates there are to convert, and what became of the next one.

    Raises:
        PancsegError: If the disk would not hold it.
    """
    preparation.look_at(found)
    jobs = preparation.plan(found.candidates)
    check_disk(preparation.root, [job.candidate for job in jobs])
    complete = False
    try:
        if jobs:
            preparation.save_state(complete=False)
        for outcome in in_processes(convert, jobs, processes, killed):
            keep_record(preparation.root, outcome)
            preparation.enter(outcome)
            yield len(jobs), outcome
        preparation.look_across()
        if jobs or not preparation.was_complete:
            preparation.draw()
        complete = True
    finally:
        preparation.save_state(complete)
    forget_records(preparation.root)


def reason_of(flag: str, original: str | None) -> str:
    """Why a flag across cases refuses, in words."""
    copied = f"the pixels are those of case {original}" if original else "see flags"
    return f"{copied}, and checks.refuse names it"


def row_of(stray: Stray) -> Row:
    """The row of what belongs to no case."""
    slices = "" if stray.slices is None else stray.slices
    return Row("", "", str(stray.path), stray.kind, stray.status, stray.reason, slices=slices)


def by_case(row: Row) -> str:
    """Order of the contact sheet."""
    return row.case


def free_name(patient: str, taken: set[str]) -> str:
    """The patient's name, with the first number that is free if it is taken.

    >>> free_name("P7", {"p7"})
    'P7-2'
    """
    names = (patient if n == 1 else f"{patient}-{n}" for n in range(1, len(taken) + 2))
    return next(name for name in names if name.casefold() not in taken)


def remove_partial(root: Path) -> None:
    """Remove what a killed preparation had begun to write; the lock keeps others out."""
    for folder in (root, *(root / name for name in ("cases", "groups", "pictures", FOLDER))):
        for path in folder.glob(f"{PARTIAL}*"):
            path.unlink()


def lock(root: Path) -> FileLock:
    """A lock that makes several preparations of one folder wait for each other."""
    root.mkdir(parents=True, exist_ok=True)
    return FileLock(root / ".lock")
