"""Scans to segment: DICOM series and volume files below a path, without labels."""

import hashlib
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from pancseg.errors import PancsegError
from pancseg.intake.cases import add_cases
from pancseg.intake.locate import locate_files
from pancseg.intake.sources import find_dicom
from pancseg.intake.types import CaseSource, ReadOptions, SourceContents
from pancseg.intake.volume_files import without_suffix

IS_LABEL = re.compile(r"[_\-.](label|lbl|seg|mask)$", re.IGNORECASE)
HASH_DIGITS = 12


def find_scans(path: Path, modality: str, options: ReadOptions) -> SourceContents:
    """Everything below a path that can be segmented, and rows of what is refused.

    The path is a NIfTI or NRRD file, or a folder of DICOM, of such files, or of both; the modality
    of DICOM images may be ``any``.

    Raises:
        PancsegError: If there is no such path, or nothing in it that could be an image.
    """
    if not path.exists():
        raise PancsegError(f"input={path}: there is no such file or folder")
    contents = SourceContents()
    files = locate_files(path, "image", contents)
    labels = {file.path for file in files if IS_LABEL.search(without_suffix(file.path))}
    add_cases(contents, [file for file in files if file.path not in labels], None, options)
    if labels:
        left_out = f"{len(labels)} files named as labels are left out, such as {min(labels).name}"
        contents.warnings.append(left_out)
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


def case_names(cases: list[CaseSource], base: Path) -> list[str]:
    """A different name for each case, also on file systems that ignore capitals."""
    repeated: Counter[str] = Counter()
    names: dict[str, str] = {}
    for case in cases:
        name = own = case_name(case, base)
        while name.casefold() in names:
            repeated[own] += 1
            name = f"{own}-{repeated[own] + 1}"
        names[name.casefold()] = name
    return list(names.values())


def case_name(case: CaseSource, base: Path) -> str:
    """Name of a file, with a hash of its path where it lies in a folder below; of a series, a hash.

    The hash of a series is that of its UID or, where that is empty, of a file. No header and no
    folder is part of a name.
    """
    if case.is_dicom:
        name, hashed = "series", case.series_uid.encode() or min(case.files).read_bytes()
    elif base in (case.path, case.path.parent):
        return without_suffix(case.path)
    else:
        name, hashed = without_suffix(case.path), os.fsencode(case.path.relative_to(base))
    return f"{name}-{hashlib.sha256(hashed).hexdigest()[:HASH_DIGITS]}"
