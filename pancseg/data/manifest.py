"""The manifest of a prepared folder: its cases, their groups, and the settings they were made with.

``manifest.json`` is read back with checks, because folders are copied and edited by hand.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pancseg.errors import PancsegError
from pancseg.files import read_json, write_text
from pancseg.structures import Structure, structures_from_manifest

MANIFEST = "manifest.json"
SCHEMA = 2
SPACING_RANGE_MM = (1e-3, 1e4)
LONGEST_AXIS = 2**20  # voxels
LONGEST_NAME = 200  # characters: files add suffixes to it
MANUFACTURERS = ("siemens", "ge", "philips", "canon", "other", "unknown")
CONTRASTS = ("yes", "no", "unknown")
Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Case:
    """A whole CT and its label map on one grid.

    Attributes:
        case: Name, unique in the folder.
        patient: Pseudonym.
        image: File, relative to the folder.
        label: File, or None where the case is unlabelled.
        shape: Columns, rows, slices.
        spacing_mm: Along the same axes.
        label_voxels: Voxels of any structure, or None.
        structure_voxels: Voxels of each structure, by name.
        identity: Keyed hash by which the same input is recognised.
        source: Keyed hash of the input files' names, sizes and times, by which a change is noticed.
        image_sha256: Of the unpacked image file.
        label_sha256: Of the unpacked label file; empty where there is none.
        phantom: Whether it is synthetic.
        pixels: Hash of the voxels, by which one scan under two names is recognised.
        study: Keyed hash of StudyInstanceUID, or empty.
        person: Keyed hash of PatientID, or empty; differs from ``patient`` where paths name
            patients.
        series: Keyed hash of SeriesInstanceUID, or empty.
        manufacturer: One of ``MANUFACTURERS``.
        contrast: Whether contrast agent was given, one of ``CONTRASTS``.
        repairs: Repairs of the geometry, with numbers.
        established: Whether it was there at the end of an earlier preparation, as nobody's
            duplicate: cases that are added later give way to it.
        duplicate_of: An earlier case with the same voxels, which is used instead.
        label_corrected: Whether the label file was changed by hand after preparation.
        statistics: Of the image, :func:`pancseg.data.scan_statistics.scan_statistics`.
    """

    case: str
    patient: str
    image: str
    label: str | None
    shape: list[int]
    spacing_mm: list[float]
    label_voxels: int | None
    structure_voxels: dict[str, int]
    identity: str
    source: str
    image_sha256: str
    label_sha256: str
    phantom: bool
    pixels: str
    study: str = ""
    person: str = ""
    series: str = ""
    manufacturer: str = "unknown"
    contrast: str = "unknown"
    repairs: list[str] = field(default_factory=list)
    established: bool = False
    duplicate_of: str | None = None
    label_corrected: bool = False
    statistics: dict[str, float] = field(default_factory=dict)

    @property
    def is_used(self) -> bool:
        """Whether it can be trained on or scored: labelled, and not a duplicate."""
        return self.label is not None and self.duplicate_of is None


@dataclass(frozen=True)
class Group:
    """Consecutive slices of a case, as files of their own.

    Attributes:
        group: ``<case>_<first slice, 4 digits>``.
        case: The case it was cut from.
        patient: Pseudonym.
        first_slice: In the case; slice 0 is nearest the feet.
        image: File, relative to the folder.
        label: File, or None where the case is unlabelled.
        label_voxels: Voxels of any structure, or None.
        image_sha256: Of the unpacked image file.
        label_sha256: Of the unpacked label file; empty where there is none.
    """

    group: str
    case: str
    patient: str
    first_slice: int
    image: str
    label: str | None
    label_voxels: int | None
    image_sha256: str
    label_sha256: str


@dataclass
class Manifest:
    """Settings, structures, cases and groups of a prepared folder.

    ``complete`` is false while a preparation is under way, and where it was interrupted.
    """

    settings: dict[str, Any]
    structures: tuple[Structure, ...] = ()
    complete: bool = False
    cases: list[Case] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)

    def labelled_patients(self) -> list[str]:
        """Patients with a labelled case, sorted."""
        return sorted({case.patient for case in self.cases if case.is_used})

    def cases_of(self, patients: Iterable[str]) -> list[Case]:
        """Labelled cases of some patients, by name."""
        wanted = set(patients)
        chosen = (case for case in self.cases if case.patient in wanted and case.is_used)
        return sorted(chosen, key=lambda case: case.case)

    def groups_of(self, patients: Iterable[str]) -> list[Group]:
        """Labelled groups of some patients, by name."""
        used = {case.case for case in self.cases_of(patients)}
        chosen = (group for group in self.groups if group.case in used)
        return sorted(chosen, key=lambda group: group.group)

    def write(self, root: Path) -> None:
        """Write ``manifest.json``, one entry a line.

        Indented throughout, that of 20,000 groups takes ten times as long.
        """
        head = {
            "schema": SCHEMA,
            "settings": self.settings,
            "structures": [structure.to_dict() for structure in self.structures],
            "complete": self.complete,
        }
        parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        cases = sorted(self.cases, key=lambda case: case.case)
        groups = sorted(self.groups, key=lambda group: group.group)
        entries: tuple[tuple[str, list[Any]], ...] = (("cases", cases), ("groups", groups))
        for key, values in entries:
            lines = ",\n".join(json.dumps(vars(value), allow_nan=False) for value in values)
            parts.append(f'"{key}": [\n{lines}\n]' if lines else f'"{key}": []')
        write_text(root / MANIFEST, "{\n" + ",\n".join(parts) + "\n}\n")


def has_manifest(root: Path) -> bool:
    """Whether a folder is a prepared one."""
    return (root / MANIFEST).is_file()


def read_manifest(root: Path) -> Manifest:
    """Read the manifest of a prepared folder.

    Raises:
        PancsegError: If there is none, or it is not one that this version reads.
    """
    path = root / MANIFEST
    if not has_manifest(root):
        raise PancsegError(
            f"{root} holds no {MANIFEST}; prepare it first: python -m pancseg.prepare "
            f"data.root={root} source=dicom source.images=FOLDER source.labels=FOLDER"
        )
    value = read_json(path, "a manifest", lambda v: isinstance(v, dict) and "schema" in v)
    if value["schema"] != SCHEMA:
        raise PancsegError(
            f"{path}: schema {str(value['schema'])[:20]}, this version reads {SCHEMA}; prepare "
            "into another data.root"
        )
    try:
        return parse_manifest(value)
    except (TypeError, ValueError, KeyError) as error:
        raise PancsegError(
            f"{path}: not a manifest as this version writes it ({str(error)[:120]}); was it edited "
            "by hand? put a copy back, or prepare into another data.root"
        ) from error


def parse_manifest(value: dict[str, Any]) -> Manifest:
    """A manifest from JSON.

    Raises:
        TypeError, ValueError, KeyError: Naming the first field that cannot be.
    """
    for name, kind in (("settings", dict), ("complete", bool), ("structures", list)):
        if not isinstance(value.get(name), kind):
            raise TypeError(f"{name} is {str(value.get(name))[:60]}")
    cases = parse_entries(Case, value.get("cases"), "cases")
    groups = parse_entries(Group, value.get("groups"), "groups")
    patients = {case.case: case.patient for case in cases}
    if len(patients) < len(cases):
        raise ValueError("two cases have one name")
    for n, group in enumerate(groups):
        if patients.get(group.case) != group.patient:
            raise ValueError(f"groups[{n}] belongs to no case of its patient")
    structures = structures_from_manifest(value["structures"])
    return Manifest(value["settings"], structures, value["complete"], cases, groups)


def parse_entries(kind: type[Entry], values: Any, name: str) -> list[Entry]:
    """Cases or groups from JSON; file names must stay inside the folder.

    Raises:
        TypeError, ValueError: Naming the first entry and field that cannot be.
    """
    if not isinstance(values, list):
        raise TypeError(f"{name} is not a list")
    hints = get_type_hints(kind)
    required = {
        f.name
        for f in fields(kind)  # type: ignore[arg-type]
        if f.default is MISSING and f.default_factory is MISSING
    }
    for n, value in enumerate(values):
        if not isinstance(value, dict) or not required <= value.keys() <= hints.keys():
            raise TypeError(f"{name}[{n}] has other fields than {', '.join(hints)}")
        for key, item in value.items():
            is_path = key in ("image", "label") and item is not None
            is_name = key in ("case", "group", "patient")
            if (
                not matches(item, hints[key])
                or (is_path and not is_inside(item))
                or (is_name and not is_file_name(item))
            ):
                raise ValueError(f"{name}[{n}].{key} is {str(item)[:60]!r}")
        for key, low, high in (("shape", 1, LONGEST_AXIS), ("spacing_mm", *SPACING_RANGE_MM)):
            if key in value and not all(low <= v <= high for v in value[key]):
                raise ValueError(f"{name}[{n}].{key} is {str(value[key])[:60]}")
            if key in value and len(value[key]) != 3:
                raise ValueError(f"{name}[{n}].{key} has {len(value[key])} numbers, expected 3")
    return [kind(**value) for value in values]


def matches(value: Any, hint: Any) -> bool:
    """Whether a JSON value has a type; numbers are finite and whole numbers not negative.

    >>> matches([1, 2], list[int]), matches([1, "2"], list[int]), matches(None, str | None)
    (True, False, True)
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is list:
        return isinstance(value, list) and all(matches(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(matches(v, inner[1]) for v in value.values())
    if inner:
        return any(matches(value, kind) for kind in inner)
    if hint is float:
        return type(value) in (int, float) and abs(value) < 2**62
    if hint is int:
        return type(value) is int and 0 <= value < 2**62
    return isinstance(value, hint)


def is_file_name(value: str) -> bool:
    r"""Whether a text can be part of a file name on every system, and leads nowhere else.

    >>> [is_file_name(text) for text in ("p1-a.b", "..", "a/b", "a\\b", "", "a\n")]
    [True, False, False, False, False, False]
    """
    return (
        0 < len(value) <= LONGEST_NAME
        and value.isprintable()
        and not set(value) & set('/\\:*?"<>|')
        and value.strip(".") != ""
    )


def is_inside(value: str) -> bool:
    """Whether a path names a file below the folder it is relative to.

    >>> [is_inside(path) for path in ("cases/p_image.nii.gz", "/etc/passwd", "cases/../../x")]
    [True, False, False]
    """
    return value == str(PurePosixPath(value)) and all(map(is_file_name, value.split("/")))


def same_person(cases: Iterable[Case]) -> dict[str, str]:
    """For each patient the name that stands for its person: they share a study or a PatientID.

    A value that all of three patients or more share is an anonymiser's, and says nothing. Names of
    established cases are preferred, so that adding cases renames nobody.
    """
    cases = list(cases)
    established = {case.patient for case in cases if case.established}
    patients = sorted({case.patient for case in cases})
    groups: dict[tuple[str, str], set[str]] = defaultdict(set)
    for case in cases:
        groups["study", case.study].add(case.patient)
        groups["person", case.person].add(case.patient)
    cluster = {patient: {patient} for patient in patients}
    for (_, value), members in groups.items():
        if not value or len(members) == len(patients) > 2:
            continue
        merged = set().union(*(cluster[patient] for patient in members))
        cluster |= dict.fromkeys(merged, merged)
    return {
        patient: min(names, key=lambda name: (name not in established, name))
        for patient, names in cluster.items()
    }
