"""Scans to be segmented: whatever a path holds, DICOM series and NIfTI files, without labels."""

import hashlib
import os
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

from pancseg.errors import PancsegError
from pancseg.intake.found import Candidate, Found, Reading
from pancseg.intake.layouts.dicom import find_dicom
from pancseg.intake.nifti.reading import find_nifti, read_nifti_ct, without_ending

SHORT = 12  # digits of a hash in a case's name
IS_LABEL = re.compile(r"[_\-.](label|lbl|seg|mask)$", re.IGNORECASE)


def find_scans(path: Path, modality: str, reading: Reading) -> Found:
    """Everything below a path that can be segmented.

    Args:
        path: A NIfTI file, or a folder of DICOM, of NIfTI, or of both.
        modality: ``CT``, or ``any`` to take other DICOM images too.
        reading: How to read.

    Raises:
        PancsegError: If there is no such path, or nothing in it that could be an image.
    """
    if not path.exists():
        raise PancsegError(f"input={path}: there is no such file or folder")
    files = find_nifti(path)
    drawn = [file for file in files if IS_LABEL.search(without_ending(file))]
    scans = [file for file in files if not IS_LABEL.search(without_ending(file))]
    found = Found([as_candidate(file) for file in scans])
    if drawn:
        found.warnings.append(
            f"{len(drawn)} files named as labels are left out, such as {drawn[0].name}"
        )
    if path.is_dir() or not files:
        dicom = find_dicom(path, None, modality, reading)
        found.candidates += dicom.candidates
        taken = set(files)
        found.strays += [one for one in dicom.strays if one.path not in taken]
    found.strays = [
        replace(one, reason=one.reason.replace("source.modality=", "modality="))
        for one in found.strays
        if one.status == "refused"
    ]
    if not found.candidates and not found.strays:
        raise PancsegError(
            f"input={path}: holds neither a CT series nor a NIfTI image; give a folder of DICOM, "
            "a NIfTI file or a folder of them"
        )
    return found


def as_candidate(file: Path) -> Candidate:
    """A NIfTI file as a scan."""
    return Candidate(
        path=file,
        patient="",
        files=(file,),
        read_image=partial(read_nifti_ct, file),
        identity=str(file),
    )


def names_of(candidates: list[Candidate], base: Path) -> list[str]:
    """Names of cases, each once: a NIfTI file's own, with a hash where it lies in a folder below.

    A series is named by a hash of its UID. What stands in headers of DICOM, or names folders,
    never gets into a name.
    """
    again: Counter[str] = Counter()
    names: dict[str, str] = {}  # by what a file system that ignores capitals takes for the same
    for one in candidates:
        name = own = name_of(one, base)
        while name.casefold() in names:  # another file may be called as the second of this name
            again[own] += 1
            name = f"{own}-{again[own] + 1}"
        names[name.casefold()] = name
    return list(names.values())


def name_of(candidate: Candidate, base: Path) -> str:
    """The name of one case; where an anonymiser emptied the UID, by what its first file holds."""
    path = candidate.path
    if candidate.is_dicom:
        told = candidate.series_uid.encode() or min(candidate.files).read_bytes()
        return f"series-{short_hash(told)}"
    if path.parent == base or path == base:
        return without_ending(path)
    return f"{without_ending(path)}-{short_hash(os.fsencode(path.relative_to(base)))}"


def short_hash(told: bytes) -> str:
    """A few digits that follow from what is told."""
    return hashlib.sha256(told).hexdigest()[:SHORT]
