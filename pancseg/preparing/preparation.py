"""The contents of a prepared folder: cases, groups, and the table of what was looked at."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pancseg.dataset.case_files import picture_of
from pancseg.dataset.groups import Cutting
from pancseg.dataset.intake_table import TABLE, Row, Rows, read_rows, rows_to_csv
from pancseg.dataset.manifest import Case, Group, Manifest, has_manifest, read_manifest
from pancseg.dataset.whole_root import ROOT_FLAGS, copies_of, root_flags
from pancseg.errors import Refused
from pancseg.files import PARTIAL, write_text
from pancseg.intake.checks.flags import Checks, in_order
from pancseg.intake.found import Candidate, Found, Stray
from pancseg.intake.pseudonyms import Names
from pancseg.preparing.conversion import Outcome
from pancseg.preparing.preparation_checks import check_settings
from pancseg.sharing import FOLDER


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
        self.entered: set[str] = set()

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

    def look_at(self, found: Found) -> None:
        """Enter what belongs to no case.

        Rows of what the source holds no longer are dropped; so is a case that is refused now, as
        when its label is gone. A case whose files were all moved away stays.
        """
        seen = {(str(one.path), "image") for one in found.candidates}
        seen |= {(str(one.label_path), "label") for one in found.candidates}
        strays = {row.key: row for row in map(row_of, found.strays)}
        gone = {row.case for key, row in self.rows.items() if key in strays and row.kind == "image"}
        for case in [case for case in self.cases.values() if case.case in gone]:
            self.forget(case)
        kept = {case.case for case in self.cases.values()}
        still = {key for key, row in self.rows.items() if row.case in kept or key in seen}
        kept_rows = [row for key, row in self.rows.items() if key in still]
        self.rows = Rows([*kept_rows, *strays.values()])

    def origin_of(self, candidate: Candidate) -> str:
        """What a candidate is known again by."""
        return self.names.hash(candidate.identity or str(candidate.path))

    def files_of(self, case: Case) -> list[Path]:
        """Every file of a case and of its groups."""
        files = [case.image, case.label, picture_of(case.case)]
        for group in self.groups[case.case]:
            files += [group.image, group.label]
        return [self.root / file for file in files if file]

    @property
    def added(self) -> int:
        """How many cases were entered and stayed."""
        return len(self.entered & self.cases.keys())

    def forget(self, case: Case) -> None:
        """Take out a case with its rows; its files stay until :meth:`sweep`, when all is done."""
        del self.groups[case.case], self.cases[case.origin]
        self.rows.take_out(case.case)

    def enter(self, outcome: Outcome) -> None:
        """Enter what became of a candidate, in place of an earlier outcome."""
        case = outcome.case
        if case:
            self.rows.take_out(case.case)
            self.cases[outcome.origin] = case
            self.groups[case.case] = outcome.groups
            self.entered.add(outcome.origin)
        for row in outcome.rows:
            self.rows.enter(row)

    def look_across(self) -> None:
        """Flag what only all cases together tell, and take out what is to be refused for it.

        Cases that were there before come first, so that nobody who is added moves anybody.
        """
        rows = {row.case: row for row in self.rows.values() if row.case and row.kind == "image"}
        for case in self.cases.values():
            if case.case not in rows:  # its row was lost
                rows[case.case] = Row(case.patient, case.case, "", "image", "kept")
                self.rows.enter(rows[case.case])
        ordered = sorted(
            self.cases.values(), key=lambda case: (not case.settled, rows[case.case].path)
        )
        copies = copies_of(ordered)
        flags = root_flags(ordered, copies, self.checks.spacing_factor)
        for case in ordered:
            row, told = rows[case.case], flags.get(case.case, [])
            own = [flag for flag in str(row.flags).split() if flag not in ROOT_FLAGS]
            row.flags = " ".join(in_order([*own, *told]))
            original = copies.get(case.case)
            self.cases[case.origin] = replace(case, settled=original is None, duplicate_of=original)
            refusing = [flag for flag in told if flag in self.checks.refuse]
            if refusing and not (refusing == ["duplicate_pixels"] and original is None):
                reason = Refused(refusing[0], reason_of(refusing[0], original))
                self.refuse_late(case, str(reason))

    def refuse_late(self, case: Case, reason: str) -> None:
        """Take out a case that was converted before the others told on it."""
        rows = self.rows.take_out(case.case)
        self.forget(case)
        for row in rows:
            why = reason if row.kind == "image" else "image_refused: see the image's row"
            late = Row(row.patient, "", row.path, row.kind, "refused", why, row.flags, row.slices)
            self.rows.enter(late)

    def sweep(self) -> None:
        """Remove files of what is no case now: taken out, or begun by a run that was killed."""
        named = {path for case in self.cases.values() for path in self.files_of(case)}
        for pattern in ("cases/*.nii.gz", "groups/*.nii.gz", "pictures/*.png"):
            for path in set(self.root.glob(pattern)) - named:
                path.unlink()

    def save_state(self, complete: bool) -> None:
        """Write table and manifest, in this order: a case of the manifest has its row."""
        write_text(self.root / TABLE, self.table())
        manifest = self.manifest
        manifest.complete = complete
        manifest.write(self.root)

    def table(self) -> str:
        """The table as text."""
        return rows_to_csv(sorted(self.rows.values(), key=lambda row: row.key))


def reason_of(flag: str, original: str | None) -> str:
    """Why a flag across cases refuses, in words."""
    copied = f"the pixels are those of case {original}" if original else "see flags"
    return f"{copied}, and checks.refuse names it"


def row_of(stray: Stray) -> Row:
    """The row of what belongs to no case."""
    slices = "" if stray.slices is None else stray.slices
    return Row("", "", str(stray.path), stray.kind, stray.status, stray.reason, slices=slices)


def remove_partial(root: Path) -> None:
    """Remove what killed workers had begun to write; only where no other one is alive."""
    for folder in (root, *(root / name for name in ("cases", "groups", "pictures", FOLDER))):
        for path in folder.glob(f"{PARTIAL}*"):
            path.unlink()
