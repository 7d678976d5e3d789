"""Tables of a prepared folder: ``intake.csv``, and ``manifest.json`` of its cases and settings."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pancseg.errors import PancsegError
from pancseg.files import read_csv, read_json, to_csv, write_text
from pancseg.structures import Structure, structures_from_manifest

MANIFEST = "manifest.json"
TABLE = "intake.csv"
SCHEMA = 2
LIMITS = {"shape": (1, 2**20), "spacing_mm": (1e-3, 1e4)}
FILE_NAME = re.compile(r'(?!\.+$)[^/\\:*?"<>|]{1,200}')  # files add suffixes
Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Case:
    """A whole CT and its label map on one grid; file names are relative to the folder."""

    name: str  # unique in the folder
    patient: str  # pseudonym
    image: str
    label: str | None  # None where it is unlabelled
    shape: list[int]  # columns, rows, slices
    spacing_mm: list[float]
    label_voxels: int | None  # of any structure
    structure_voxels: dict[str, int]
    input_hash: str  # keyed, recognises the same scan in a later run
    input_state: str  # keyed hash of the input files' names, sizes and times, shows a change
    image_sha256: str  # of the unpacked file
    label_sha256: str  # of the unpacked file; empty without label
    phantom: bool  # synthetic
    voxel_hash: str  # recognises a scan under two names
    study_hash: str = ""  # keyed, of StudyInstanceUID
    series_hash: str = ""  # keyed, of SeriesInstanceUID
    patient_id_hash: str = ""  # keyed, of PatientID; ``patient`` may be the name of a folder
    manufacturer: str = "unknown"  # siemens, ge, philips, canon, other or unknown
    contrast: str = "unknown"  # contrast agent: yes, no or unknown
    repairs: list[str] = field(default_factory=list)  # of the geometry, with numbers
    prepared_before: bool = False  # in an earlier run; duplicates added later give way to it
    duplicate_of: str | None = None  # a case with the same voxels, which is used instead
    label_corrected: bool = False  # by hand after preparation
    ignored_voxels: int = 0  # that nobody labelled
    statistics: dict[str, float] = field(default_factory=dict)  # by scan_statistics

    @property
    def is_used(self) -> bool:
        """Whether it can be trained on or scored: labelled, and not a duplicate."""
        return self.label is not None and self.duplicate_of is None


@dataclass(frozen=True)
class Group:
    """Consecutive slices of a case, as files of their own; fields as of :class:`Case`."""

    name: str  # <case>_<first slice, 4 digits>
    case: str
    patient: str
    first_slice: int  # slice 0 is nearest the feet
    image: str
    label: str | None
    label_voxels: int | None
    image_sha256: str
    label_sha256: str


@dataclass
class Manifest:
    """Settings, structures, cases and groups of a prepared folder."""

    settings: dict[str, Any]
    structures: tuple[Structure, ...] = ()
    complete: bool = False  # false while a preparation is under way or was interrupted
    cases: list[Case] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)

    def labelled_patients(self) -> list[str]:
        """Patients with a labelled case, duplicates left out, sorted."""
        return sorted({case.patient for case in self.cases if case.is_used})

    def cases_of(self, patients: Iterable[str]) -> list[Case]:
        """Labelled cases of some patients, duplicates left out, by name."""
        patients = set(patients)
        chosen = (case for case in self.cases if case.patient in patients and case.is_used)
        return sorted(chosen, key=lambda case: case.name)

    def groups_of(self, patients: Iterable[str]) -> list[Group]:
        """Labelled groups of some patients, duplicates left out, by name."""
        used = {case.name for case in self.cases_of(patients)}
        chosen = (group for group in self.groups if group.case in used)
        return sorted(chosen, key=lambda group: group.name)

    def write(self, root: Path) -> None:
        """Write ``manifest.json``, one entry a line: ten times as fast as with indentation."""
        structures = [structure.to_dict() for structure in self.structures]
        head = {"schema": SCHEMA, "settings": self.settings, "structures": structures}
        parts = [json.dumps(head | {"complete": self.complete})[1:-1]]
        lists: dict[str, list[Any]] = {"cases": self.cases, "groups": self.groups}
        for key, entries in lists.items():
            ordered = sorted(entries, key=lambda entry: entry.name)
            lines = ",\n".join(json.dumps(vars(entry), allow_nan=False) for entry in ordered)
            parts.append(f'"{key}": [\n{lines}\n]')
        write_text(root / MANIFEST, "{\n" + ",\n".join(parts) + "\n}\n")


def has_manifest(root: Path) -> bool:
    """Whether a folder is a prepared one."""
    return (root / MANIFEST).is_file()


def read_manifest(root: Path) -> Manifest:
    """Read the manifest of a prepared folder; PancsegError if this version cannot."""
    path = root / MANIFEST
    if not has_manifest(root):
        raise PancsegError(
            f"{root} holds no {MANIFEST}; prepare it first: python -m pancseg.prepare "
            f"data.root={root} source=dicom source.images=FOLDER source.labels=FOLDER, or give "
            "data.root=PREPARED of a folder that is prepared"
        )
    value = read_json(path, "a manifest", lambda v: isinstance(v, dict) and "schema" in v)
    if value["schema"] != SCHEMA:
        schema = f"{path}: schema {str(value['schema'])[:20]}, this version reads {SCHEMA}"
        raise PancsegError(f"{schema}; prepare into another data.root")
    try:
        cases = parse_entries(Case, value["cases"], "cases")
        groups = parse_entries(Group, value["groups"], "groups")
        patients = {case.name: case.patient for case in cases}
        alone = [f"groups[{n}]" for n, g in enumerate(groups) if patients.get(g.case) != g.patient]
        if alone or len(patients) < len(cases):
            raise ValueError(f"{alone[0]} belongs to no case" if alone else "two cases of one name")
        structures = structures_from_manifest(value["structures"])
        return Manifest(dict(value["settings"]), structures, value["complete"], cases, groups)
    except (TypeError, ValueError, KeyError) as error:
        raise PancsegError(
            f"{path}: not a manifest as this version writes it ({str(error)[:120]}); was it edited "
            "by hand? put a copy back, or prepare into another data.root"
        ) from error


def parse_entries(kind: type[Entry], values: Any, name: str) -> list[Entry]:
    """Cases or groups from JSON; TypeError or ValueError name the first wrong entry."""
    hints, entries = get_type_hints(kind), []
    for n, value in enumerate(values):
        try:
            entries.append(kind(**value))
        except TypeError as error:
            raise TypeError(f"{name}[{n}]: {error}") from error
        for key, item in value.items():
            if not (matches(item, hints[key]) and is_allowed(key, item)):
                raise ValueError(f"{name}[{n}].{key} is {str(item)[:60]!r}")
    return entries


def matches(value: Any, hint: Any) -> bool:
    """Whether a JSON value has a type; numbers are finite and whole numbers not negative."""
    if get_origin(hint) in (list, dict):
        items = value.values() if isinstance(value, dict) else value
        inner = get_args(hint)[-1]
        return isinstance(value, get_origin(hint)) and all(matches(item, inner) for item in items)
    if get_args(hint):
        return any(matches(value, option) for option in get_args(hint))
    if hint in (int, float):
        return type(value) in (int, hint) and (0 if hint is int else -(2**62)) <= value < 2**62
    return isinstance(value, hint)


def is_allowed(key: str, value: Any) -> bool:
    """Whether sizes are in range, and names are file names on every system, inside the folder."""
    if key in LIMITS:
        low, high = LIMITS[key]
        return len(value) == 3 and low <= min(value) <= max(value) <= high
    if key not in ("name", "case", "patient", "image", "label") or value is None:
        return True
    parts = value.split("/") if key in ("image", "label") else [value]
    return value.isprintable() and all(map(FILE_NAME.fullmatch, parts))


def same_person(cases: Iterable[Case], *, by_scan: bool = False) -> dict[str, str]:
    """Map each patient name to one name per person.

    Names that share a study or PatientID are one person, with ``by_scan`` also those that share a
    scan. An identifier that all names share, three or more, is an anonymiser's and ignored. Names
    prepared before are preferred: adding cases renames nobody.
    """
    prepared_before: dict[str, bool] = defaultdict(bool)
    sharing: dict[tuple[str, str], set[str]] = defaultdict(set)
    for case in cases:
        prepared_before[case.patient] |= case.prepared_before
        sharing["study", case.study_hash].add(case.patient)
        sharing["patient", case.patient_id_hash].add(case.patient)
        if by_scan:
            sharing["scan", case.voxel_hash].add(case.patient)
    names_of = {patient: {patient} for patient in prepared_before}  # of its person
    for (kind, value), patients in sharing.items():
        is_of_anonymiser = kind != "scan" and len(patients) == len(names_of) > 2
        if value and not is_of_anonymiser:
            names = set().union(*(names_of[patient] for patient in patients))
            names_of |= dict.fromkeys(names, names)
    ranked = sorted(names_of, key=lambda name: (not prepared_before[name], name))
    rank = {name: n for n, name in enumerate(ranked)}
    return {patient: min(names, key=rank.__getitem__) for patient, names in names_of.items()}


@dataclass
class Row:
    """A row of ``intake.csv``; its three numbers of groups add up to all groups of a case."""

    patient: str
    case: str
    path: str
    kind: str
    status: str
    reason: str = ""
    flags: str = ""
    slices: int | str = ""
    groups_kept: int | str = ""  # those shifted or padded count as kept or empty
    groups_empty: int | str = ""
    groups_tail: int | str = ""  # incomplete and left out
    spacing_x_mm: float | str = ""
    spacing_y_mm: float | str = ""
    spacing_z_mm: float | str = ""
    label_voxels: int | str = ""
    label_ml: float | str = ""
    structures_ml: str = ""  # where there are several structures

    @property
    def key(self) -> tuple[str, str]:
        """A row replaces an earlier one of the same key."""
        return self.path or self.case, self.kind


def read_rows(root: Path) -> list[Row]:
    """Rows of a prepared folder's table; none where there is no table of this version."""
    return read_csv(root / TABLE, Row)


def rows_to_csv(rows: Iterable[Row]) -> str:
    """The table as text, ordered by path."""
    columns = [column.name for column in fields(Row)]
    return to_csv(columns, map(astuple, sorted(rows, key=lambda row: row.key)))
