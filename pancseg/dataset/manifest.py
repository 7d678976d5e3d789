"""The manifest of a prepared folder: what is there, and how it was made."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pancseg.dataset.manifest_checks import entries_of
from pancseg.errors import PancsegError
from pancseg.files import read_json, write_text

NAME = "manifest.json"
SCHEMA = 1


@dataclass(frozen=True)
class Case:
    """A whole CT and its mask on one grid.

    Attributes:
        case: Name, unique in the folder.
        patient: Pseudonym.
        image: File, relative to the folder.
        label: File, or None where the case is unlabelled.
        shape: Columns, rows, slices.
        spacing_mm: Along the same axes.
        label_voxels: Foreground voxels, or None.
        origin: Keyed hash of the input image's path: the same input is known again by it.
        source: Hash of the input files' names, sizes and times: changed input is noticed by it.
        sha256: Hash of image and label as stored, unpacked.
        phantom: Whether this is no patient.
        pixels: Hash of the decoded volume: one scan under two names is noticed by it.
        study: Keyed hash of StudyInstanceUID, or empty.
        person: Keyed hash of PatientID, or empty: it differs from ``patient`` where paths name
            patients.
        repairs: What was put on a regular grid, in words with numbers.
        settled: Whether it was there, as nobody's copy, when a preparation last came to its end:
            later ones give way to it.
        duplicate_of: A case with the same pixels, which is used instead of this one.
        appearance: What the image looks like in numbers; empty in folders of earlier versions.
    """

    case: str
    patient: str
    image: str
    label: str | None
    shape: list[int]
    spacing_mm: list[float]
    label_voxels: int | None
    origin: str
    source: str
    sha256: str
    phantom: bool
    pixels: str = ""
    study: str = ""
    person: str = ""
    repairs: list[str] = field(default_factory=list)
    settled: bool = False
    duplicate_of: str | None = None
    appearance: dict[str, float] = field(default_factory=dict)

    @property
    def is_used(self) -> bool:
        """Whether it can be trained on or scored: it has a label and is nobody's copy."""
        return self.label is not None and self.duplicate_of is None


@dataclass(frozen=True)
class Group:
    """N consecutive slices of a case, as a file of their own.

    Attributes:
        group: ``<case>_<first slice, 4 digits>``.
        case: The case it was cut from.
        patient: Pseudonym.
        first_slice: Where it begins in the case; slice 0 is nearest the feet.
        image: File, relative to the folder.
        label: File, or None where the case is unlabelled.
        label_voxels: Foreground voxels, or None.
        sha256: Hash of image and label as stored, unpacked; empty in folders of earlier versions.
    """

    group: str
    case: str
    patient: str
    first_slice: int
    image: str
    label: str | None
    label_voxels: int | None
    sha256: str = ""


@dataclass
class Manifest:
    """Settings, cases and groups of a prepared folder.

    ``complete`` is false while a preparation is under way and where one was interrupted.
    """

    settings: dict[str, Any]
    complete: bool = False
    cases: list[Case] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)

    def labelled_patients(self) -> list[str]:
        """Patients with at least one label, sorted."""
        return sorted({case.patient for case in self.cases if case.is_used})

    def groups_of(self, patients: list[str]) -> list[Group]:
        """Labelled groups of some patients, in order of their names."""
        used = {case.case for case in self.cases_of(patients)}
        chosen = (group for group in self.groups if group.case in used)
        return sorted(chosen, key=lambda group: group.group)

    def cases_of(self, patients: list[str]) -> list[Case]:
        """Labelled cases of some patients, in order of their names."""
        wanted = set(patients)
        chosen = (case for case in self.cases if case.patient in wanted and case.is_used)
        return sorted(chosen, key=lambda case: case.case)

    def write(self, root: Path) -> None:
        """Write ``manifest.json``: an entry a line, and a line an entry."""
        self.cases.sort(key=lambda case: case.case)
        self.groups.sort(key=lambda group: group.group)
        write_text(root / NAME, self.as_text())

    def as_text(self) -> str:
        """JSON; indented throughout, that of 20,000 groups takes ten times as long to make."""
        head = {"schema": SCHEMA, "settings": self.settings, "complete": self.complete}
        parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        for key, entries in (("cases", self.cases), ("groups", self.groups)):
            lines = ",\n".join(json.dumps(vars(entry), allow_nan=False) for entry in entries)
            parts.append(f'"{key}": [\n{lines}\n]' if lines else f'"{key}": []')
        return "{\n" + ",\n".join(parts) + "\n}\n"


def has_manifest(root: Path) -> bool:
    """Whether a folder was prepared."""
    return (root / NAME).is_file()


def read_manifest(root: Path) -> Manifest:
    """Read the manifest of a prepared folder.

    Raises:
        PancsegError: If there is none, or it is not one that this version reads.
    """
    if not has_manifest(root):
        raise PancsegError(
            f"{root} holds no {NAME}; prepare it first: python -m pancseg.prepare data.root={root} "
            "source=dicom source.images=FOLDER source.labels=FOLDER"
        )
    value = read_json(root / NAME, "a manifest", lambda v: isinstance(v, dict) and "schema" in v)
    if value["schema"] != SCHEMA:
        raise PancsegError(
            f"{root / NAME}: schema {value['schema']}, this version reads {SCHEMA}; prepare anew"
        )
    try:
        return checked(value)
    except PancsegError as error:
        raise PancsegError(
            f"{root / NAME}: not a manifest as this version writes it ({error}); was it edited by "
            "hand? put a copy back, or prepare anew into another data.root"
        ) from error


def checked(value: dict[str, Any]) -> Manifest:
    """A manifest out of what was read.

    Raises:
        PancsegError: Naming what cannot be.
    """
    for name, kind in (("settings", dict), ("complete", bool)):
        if not isinstance(value.get(name), kind):
            raise PancsegError(f"{name} is {str(value.get(name))[:60]}")
    cases = entries_of(Case, value.get("cases"), "cases")
    groups = entries_of(Group, value.get("groups"), "groups")
    known = {case.case: case for case in cases}
    if len(known) < len(cases):
        raise PancsegError("two cases have one name")
    for n, group in enumerate(groups):
        case = known.get(group.case)
        if case is None or case.patient != group.patient:
            raise PancsegError(f"groups[{n}] belongs to no case of its patient")
    return Manifest(value["settings"], value["complete"], cases, groups)
