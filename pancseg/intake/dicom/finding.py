"""Folders of DICOM: files gathered into series, and what can be none."""

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from pancseg.intake.dicom.extent import extent_of
from pancseg.intake.dicom.headers import EMPTY, NO_IMAGE, Header, Series, read_header
from pancseg.intake.found import Stray
from pancseg.intake.walk import files_under
from pancseg.parallel import process_map, progress

A_PART = 200  # files that are looked at in one go
FEWEST_PARTS = 10  # that are worth starting processes for


def find_series(root: Path, processes: int = 1) -> tuple[list[Series], list[Stray]]:
    """Search a folder at any depth.

    Args:
        root: The folder, or one file.
        processes: How many look at headers at a time, where there are many.

    Returns:
        The series, ordered by folder and UID, and what can be none.
    """
    base = root.parent if root.is_file() else root
    members: dict[Hashable, list[Header]] = defaultdict(list)
    others: dict[Hashable, list[Header]] = defaultdict(list)
    for header in read_headers(files_under(root), processes):
        one = header.series
        if header.problem:
            alone = None if header.problem in NO_IMAGE else header.path
            others[header.path.parent, header.problem, header.status, one.uid, alone].append(header)
            continue
        alone = None if one.kind == "image" else header.path
        patient = None if one.uid else one.patient_id  # one series has one, or is refused
        key = (header.path.parent, one.uid, patient, one.modality, one.is_phantom, alone)
        members[key].append(header)
    damaged = [
        header
        for headers in others.values()
        for header in headers
        if header.status == "refused" or header.problem == EMPTY
    ]
    series = [gathered(headers, base) for headers in join_folders(list(members.values()))]
    strays = [
        Stray(one.path, "other", one.status, NO_IMAGE.get(one.problem, one.problem), len(headers))
        for headers in others.values()
        for one in headers[:1]
    ]
    series = doubted(series, damaged)
    return sorted(series, key=lambda one: (one.folder, one.uid, one.files)), strays


def join_folders(groups: list[list[Header]]) -> list[list[Header]]:
    """Put a series together that lies in several folders, as archives cut them.

    Copies of a series stay apart, and so does what makes no regular stack together, as where an
    anonymiser gave all series one UID.
    """
    by_uid: dict[Hashable, list[list[Header]]] = defaultdict(list)
    for headers in groups:
        one = headers[0].series
        alone = None if one.uid and one.kind == "image" else headers[0].path
        by_uid[one.uid, one.patient_id, one.modality, one.is_phantom, alone].append(headers)
    joined = []
    for parts in by_uid.values():
        together = [header for headers in parts for header in headers]
        instances = {header.instance_uid for header in together}
        are_new = len(instances) == len(together) and "" not in instances
        if len(parts) > 1 and are_new and extent_of([one.path for one in together]) is not None:
            joined.append(together)
        else:
            joined += parts
    return joined


def gathered(headers: list[Header], base: Path) -> Series:
    """One series of the files that belong to it."""
    folder = headers[0].path.parent.relative_to(base)
    patients = {header.series.patient_id for header in headers}
    several = f"mixed_patient: slices carry {len(patients)} PatientIDs, expected one"
    return replace(
        headers[0].series,
        folder=folder,
        files=tuple(header.path for header in headers),
        problem=several if len(patients) > 1 else "",
    )


def doubted(series: list[Series], damaged: list[Header]) -> list[Series]:
    """Refuse each series that a damaged file may belong to: it may lack that slice.

    A damaged file that still names its series belongs to that one. Of others, one that is named
    like a slice belongs to the only series of its folder; among several nobody knows whose it is,
    and its own row has to do.
    """
    if not damaged:
        return series
    images = [one for one in series if one.kind == "image"]
    images_in = Counter(folder for one in images for folder in folders_of(one))
    damaged_in: dict[Path, list[Header]] = defaultdict(list)
    for header in damaged:
        damaged_in[header.path.parent].append(header)
    return [
        one if one.problem or one.kind != "image" else without(one, images_in, damaged_in)
        for one in series
    ]


def folders_of(one: Series) -> set[Path]:
    """Folders that hold files of a series."""
    return {file.parent for file in one.files}


def without(
    one: Series, images_in: Mapping[Path, int], damaged_in: Mapping[Path, list[Header]]
) -> Series:
    """A series of images, refused where a damaged file may belong to it.

    Args:
        one: The series.
        images_in: How many of them each folder holds.
        damaged_in: Damaged files of each folder.
    """
    beside = [header for folder in folders_of(one) for header in damaged_in.get(folder, ())]
    shapes = {shape_of(file) for file in one.files} | {"#.dcm"} if beside else set()
    lost = sorted(
        header.path
        for header in beside
        if (
            header.series.uid == one.uid
            if header.series.uid
            else images_in[header.path.parent] == 1 and shape_of(header.path) in shapes
        )
    )
    if not lost:
        return one
    more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
    reason = f"{lost[0].name}{more} beside it cannot be read and may be a slice of it"
    return replace(one, problem=f"damaged_slice: {reason}")


def shape_of(path: Path) -> str:
    """What names of slices have in common; of all that end in ``.dcm``, the ending.

    >>> shape_of(Path("CT.1.2.33")), shape_of(Path("a7.dcm")), shape_of(Path("READY"))
    ('CT.#.#.#', '#.dcm', 'READY')
    """
    if path.suffix.lower() == ".dcm":
        return "#.dcm"
    return re.sub(r"\d+", "#", path.name)


def read_headers(files: list[Path], processes: int) -> Iterable[Header]:
    """Look at each file, in order; thousands of them in several processes."""
    parts = [files[start : start + A_PART] for start in range(0, len(files), A_PART)]
    if len(parts) < FEWEST_PARTS:
        processes = 0
    steps = process_map(read_some, parts, processes, died)
    looked = progress(steps, "looking", f"{A_PART} files", len(parts), delay_s=2)
    return sorted((header for part in looked for header in part), key=lambda one: one.path)


def read_some(files: list[Path]) -> list[Header]:
    """Look at some files."""
    return [read_header(file) for file in files]


def died(files: list[Path]) -> list[Header]:
    """What is told of files that ended the process that looked at them."""
    return [
        Header(file, problem="reader_died: looking at it crashed", status="refused")
        for file in files
    ]
