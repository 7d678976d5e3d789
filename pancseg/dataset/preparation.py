"""Filling a prepared folder: cases, groups, manifest and the table of what was looked at."""

import hashlib
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from filelock import FileLock

from pancseg.affine import oriented_like, spacing_of, voxel_ml
from pancseg.atomic import PARTIAL, replaced, write_text
from pancseg.dataset.groups import pairs_of, plan_cut
from pancseg.dataset.intake_table import TABLE, Row, read_rows, rows_to_csv
from pancseg.dataset.manifest import Case, Group, Manifest, has_manifest, read_manifest
from pancseg.dataset.preparation_checks import check_disk, check_grid, check_settings
from pancseg.errors import Refused
from pancseg.intake.pseudonyms import Names
from pancseg.intake.sources import Candidate, Found

log = logging.getLogger(__name__)
SECONDS_BETWEEN_SAVES = 30.0  # what a power cut costs at most


@dataclass(frozen=True)
class Cutting:
    """How cases become groups: slices of a group, what becomes of the tail and of empty groups."""

    depth: int
    tail: str
    keep_empty: bool


class Preparation:
    """Takes candidates one by one into a prepared folder.

    Args:
        root: The folder.
        cutting: How to cut.
        settings: Everything that must be equal whenever something is added to the folder.
        names: How patients are named.

    Raises:
        PancsegError: If the folder was prepared with other settings.
    """

    def __init__(
        self, root: Path, cutting: Cutting, settings: dict[str, Any], names: Names
    ) -> None:
        found = read_manifest(root) if has_manifest(root) else Manifest(settings)
        check_settings(root, found.settings, settings)
        self.root = root
        self.cutting = cutting
        self.settings = settings
        self.names = names
        self.cases = {case.origin: case for case in found.cases}
        self.groups: dict[str, list[Group]] = {case.case: [] for case in found.cases}
        for group in found.groups:
            self.groups[group.case].append(group)
        self.rows = read_rows(root / TABLE)
        self.problems: list[str] = []
        self.added = 0
        remove_partial(root)

    @property
    def manifest(self) -> Manifest:
        """What is in the folder."""
        groups = [group for groups in self.groups.values() for group in groups]
        return Manifest(self.settings, cases=list(self.cases.values()), groups=groups)

    def take(self, candidate: Candidate) -> None:
        """Convert a candidate, or say in its row why not; do nothing if it was done before."""
        patient = self.names.of(candidate.patient)
        try:
            if self.is_done(candidate):
                return
            case = self.choose_case_name(candidate, patient)
            self.forget(candidate)
            row = self.convert(candidate, case, patient)
        except Refused as refused:
            self.refuse(candidate, patient, refused)
            return
        except Exception as error:  # one bad scan never stops a batch
            told = f"{type(error).__name__}: {' '.join(str(error).split())}"
            log.debug("%s", candidate.path, exc_info=True)
            self.refuse(candidate, patient, Refused("unreadable", told))
            return
        self.put(row)
        if candidate.label_path:
            label = Row(patient, case, str(candidate.label_path), "label", "kept")
            label.slices = row.slices
            self.put(label)
        self.added += 1

    def origin(self, candidate: Candidate) -> str:
        """What a candidate is known again by."""
        return self.names.hash(str(candidate.path))

    def is_done(self, candidate: Candidate) -> bool:
        """Whether this very input was converted and all its files are there."""
        case = self.cases.get(self.origin(candidate))
        if case is None or (str(candidate.path), "image") not in self.rows:
            return False
        return case.source == fingerprint_of(candidate) and all(
            path.is_file() for path in self.files_of(case)
        )

    def files_of(self, case: Case) -> list[Path]:
        """Every file of a case and of its groups."""
        files = [case.image, case.label]
        for group in self.groups[case.case]:
            files += [group.image, group.label]
        return [self.root / file for file in files if file]

    def choose_case_name(self, candidate: Candidate, patient: str) -> str:
        """The patient's name for the first case, with a number for each further one.

        Names that differ only in case are one on some file systems.
        """
        if known := self.cases.get(self.origin(candidate)):
            return known.case
        taken = {case.case.casefold() for case in self.cases.values()}
        names = (patient if n == 1 else f"{patient}-{n}" for n in range(1, len(taken) + 2))
        return next(name for name in names if name.casefold() not in taken)

    def forget(self, candidate: Candidate) -> None:
        """Take out a case whose input changed, with its files, so that none is left over."""
        case = self.cases.pop(self.origin(candidate), None)
        if case:
            for path in self.files_of(case):
                path.unlink(missing_ok=True)
            del self.groups[case.case]

    def convert(self, candidate: Candidate, case: str, patient: str) -> Row:
        """Read, check, cut and write one case, and enter it in the manifest.

        Raises:
            Refused: If it cannot be used.
        """
        image = candidate.read_image()
        label = candidate.read_label() if candidate.read_label else None
        if label is not None:
            label = oriented_like(label, image)
            check_grid(image, label)
            label = nib.Nifti1Image(np.asanyarray(label.dataobj), image.affine)
        voxels = None if label is None else int(np.count_nonzero(np.asanyarray(label.dataobj)))
        groups, row = self.cut(image, label, case, patient)
        names = self.save(f"cases/{case}", image, label)
        spacing = [round(value, 6) for value in spacing_of(image.affine)]
        stored = hashlib.sha256()
        for name in filter(None, names):
            stored.update((self.root / name).read_bytes())
        origin = self.origin(candidate)
        self.cases[origin] = Case(
            case,
            patient,
            *names,
            shape=list(image.shape),
            spacing_mm=spacing,
            label_voxels=voxels,
            origin=origin,
            source=fingerprint_of(candidate),
            sha256=stored.hexdigest(),
            phantom=candidate.is_phantom,
        )
        self.groups[case] = groups
        row.path = str(candidate.path)
        row.spacing_x_mm, row.spacing_y_mm, row.spacing_z_mm = spacing
        if voxels is not None:
            row.label_voxels = voxels
            row.label_ml = round(voxels * voxel_ml(image.affine), 3)
        found = {
            "unlabelled": voxels is None,
            "label_empty": voxels == 0,
            "phantom": candidate.is_phantom,
        }
        row.flags = " ".join(flag for flag, is_so in found.items() if is_so)
        return row

    def cut(
        self, image: nib.Nifti1Image, label: nib.Nifti1Image | None, case: str, patient: str
    ) -> tuple[list[Group], Row]:
        """Write the groups of a case, without the empty ones unless they are to be kept."""
        plan = plan_cut(image.shape[2], self.cutting.depth, self.cutting.tail)
        row = Row(patient, case, "", "image", "kept", slices=image.shape[2])
        groups, empty = [], 0
        for start, cut_image, cut_label in pairs_of(image, label, plan.starts, self.cutting.depth):
            voxels = None if cut_label is None else int(np.count_nonzero(cut_label.dataobj))
            if voxels == 0:
                empty += 1
                if not self.cutting.keep_empty:
                    continue
            name = f"{case}_{start:04d}"
            files = self.save(f"groups/{name}", cut_image, cut_label)
            groups.append(Group(name, case, patient, start, *files, label_voxels=voxels))
        row.groups_kept, row.groups_empty, row.groups_tail = len(groups), empty, plan.left_out
        return groups, row

    def save(
        self, name: str, image: nib.Nifti1Image, label: nib.Nifti1Image | None
    ) -> tuple[str, str | None]:
        """Write an image and its label, and return their paths relative to the root."""
        files = []
        for role, one in (("image", image), ("label", label)):
            if one is None:
                continue
            files.append(f"{name}_{role}.nii.gz")
            with replaced(self.root / files[-1]) as temporary:
                nib.save(in_scanner_space(one), temporary)
        return files[0], files[1] if len(files) > 1 else None

    def refuse(self, candidate: Candidate, patient: str, refused: Refused) -> None:
        """Enter a refused candidate in the table."""
        self.put(Row(patient, "", str(candidate.path), "image", "refused", str(refused)))
        if candidate.label_path:
            reason = "image_refused: see the image's row"
            self.put(Row(patient, "", str(candidate.label_path), "label", "refused", reason))

    def put(self, row: Row) -> None:
        """Enter a row, in place of an earlier one of the same path."""
        self.rows[row.path, row.kind] = row
        if row.status == "refused" and row.kind == "image":
            self.problems.append(f"{row.path}: {row.reason}")

    def save_state(self, complete: bool) -> None:
        """Write table and manifest, in this order: a case of the manifest has its row."""
        ordered = sorted(self.rows.values(), key=lambda row: (row.path, row.kind))
        write_text(self.root / TABLE, rows_to_csv(ordered))
        manifest = self.manifest
        manifest.complete = complete
        manifest.write(self.root)


def fill(preparation: Preparation, found: Found, candidates: Iterable[Candidate]) -> None:
    """Take everything that a source holds; what was reached is kept on any way out.

    Args:
        preparation: Where to.
        found: The source, for what belongs to no case.
        candidates: The source's candidates, perhaps behind a progress bar.

    Raises:
        PancsegError: If the disk would not hold it.
    """
    check_disk(preparation.root, [one for one in found.candidates if not preparation.is_done(one)])
    for stray in found.strays:
        slices = "" if stray.slices is None else stray.slices
        row = Row("", "", str(stray.path), stray.kind, stray.status, stray.reason, slices=slices)
        preparation.put(row)
    saved, complete = time.monotonic(), False
    try:
        for candidate in candidates:
            preparation.take(candidate)
            if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                preparation.save_state(complete=False)
                saved = time.monotonic()
        complete = True
    finally:
        preparation.save_state(complete)


def remove_partial(root: Path) -> None:
    """Remove what a killed preparation had begun to write; the lock keeps others out."""
    for folder in (root, root / "cases", root / "groups"):
        for path in folder.glob(f"{PARTIAL}*"):
            path.unlink()


def lock(root: Path) -> FileLock:
    """A lock that makes several preparations of one folder wait for each other."""
    root.mkdir(parents=True, exist_ok=True)
    return FileLock(root / ".lock")


def in_scanner_space(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The same volume with a fresh header: no text fields, affine as scanner coordinates."""
    clean = nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine)
    clean.header.set_xyzt_units("mm")
    clean.set_qform(image.affine, code=1)
    clean.set_sform(image.affine, code=1)
    return clean


def fingerprint_of(candidate: Candidate) -> str:
    """Hash of the names, sizes and times of a candidate's files."""
    parts = []
    for file in candidate.files:
        status = file.stat()
        parts.append(f"{file.name} {status.st_size} {status.st_mtime_ns}")
    text = "\n".join(sorted(parts))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
