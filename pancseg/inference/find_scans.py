"""Scans to segment below a path: DICOM series and volume files, without labels."""

import hashlib
import os
import re
from collections import defaultdict
from dataclasses import replace
from itertools import count
from pathlib import Path

from pancseg.errors import PancsegError
from pancseg.intake.match_labels import CaseSource, SourceContents, add_cases
from pancseg.intake.sources import find_dicom, is_pattern, locate_files
from pancseg.intake.volume_files import ReadOptions, without_suffix

LABEL_NAME = re.compile(r"[_\-.](label|lbl|seg|mask)$", re.IGNORECASE)
LABEL_FOLDERS = {"labelstr", "labelsts", "labels", "segmentations"}
SAFE_STEM = re.compile(r"\w[\w .()+-]{0,79}")  # of output files


def find_scans(path: Path, modality: str, processes: int) -> SourceContents:
    """Everything at a path or pattern that can be segmented, and rows of what is refused.

    ``modality`` is that of DICOM series, or ``any``; ``processes`` read headers. PancsegError if
    there is nothing that could be an image.
    """
    if not (path.exists() or is_pattern(path)):
        raise PancsegError(f"input={path}: there is no such file or folder")
    contents, options = SourceContents(), ReadOptions((), processes=processes)
    files = locate_files(path, "image", contents)
    labels = {file.path for file in files if path.is_dir() and is_label(file.path)}
    add_cases(contents, [file for file in files if file.path not in labels], None, options)
    if labels:
        text = f"{len(labels)} label files are left out, such as {min(labels).name}"
        contents.warnings.append(text)
    if path.is_dir() or not files:
        dicom = find_dicom(path, None, modality, options)
        taken = {file for case in dicom.cases for file in case.files}  # slices may be named .img
        contents.cases += dicom.cases
        contents.skipped = [row for row in contents.skipped if row.path not in taken]
        contents.skipped += dicom.skipped
    contents.skipped = [
        replace(row, reason=row.reason.replace("source.modality=", "modality="))
        for row in dict.fromkeys(contents.skipped)
        if row.status == "refused"
    ]
    if not contents.cases and not contents.skipped:
        raise PancsegError(
            f"input={path}: holds neither a CT series nor a NIfTI or NRRD image; give a folder of "
            "DICOM, such a file or a folder of them"
        )
    return contents


def is_label(path: Path) -> bool:
    """Whether name or folder say that a file is a label: ``a_seg.nii.gz``, ``labelsTr/a.nii``."""
    in_folder = path.parent.name.lower() in LABEL_FOLDERS
    return in_folder or LABEL_NAME.search(without_suffix(path)) is not None


def case_names(cases: list[CaseSource], base: Path) -> list[str]:
    """A different name for each case, also on file systems that ignore capitals."""
    names: dict[str, str] = {}
    numbers: defaultdict[str, count[int]] = defaultdict(lambda: count(2))
    for case in cases:
        name = own = case_name(case, base)
        while name.casefold() in names:
            name = f"{own}-{next(numbers[own.casefold()])}"
        names[name.casefold()] = name
    return list(names.values())


def case_name(case: CaseSource, base: Path) -> str:
    """Name of the output files: of no header and no folder, safe on every file system.

    A series is named by a hash of its UID, or of a file without it; a file by its stem, with a hash
    of its path where it lies in a folder below ``base``, or where the stem is not safe or too long.
    """
    if case.format == "image":
        return f"series-{hash_of(case.uid.encode() or min(case.files).read_bytes())}"
    name = without_suffix(case.path)
    is_safe = SAFE_STEM.fullmatch(name) is not None
    if base in (case.path, case.path.parent) and is_safe:
        return name
    inside = case.path.relative_to(base) if case.path.is_relative_to(base) else case.path
    stem = name if is_safe else re.sub(r"[^\w.-]+", "-", name).strip("-.")[:60] or "scan"
    return f"{stem}-{hash_of(os.fsencode(inside))}"


def hash_of(content: bytes) -> str:
    """Short hash, hexadecimal."""
    return hashlib.sha256(content).hexdigest()[:12]
