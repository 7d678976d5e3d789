"""Scans to be segmented: whatever a path holds, DICOM series and NIfTI files, without labels."""

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

from pancseg.errors import PancsegError
from pancseg.intake.found import Candidate, Found, Reading
from pancseg.intake.layouts.dicom import find_dicom
from pancseg.intake.layouts.nifti import find_nifti_pairs
from pancseg.intake.nifti.reading import find_nifti, without_ending

SHORT = 12  # digits of a hash in a case's name


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
    found = Found()
    if files:
        found = find_nifti_pairs(path, None, None, reading)
        found.warnings.clear()  # of patients, who do not matter here
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


def names_of(candidates: list[Candidate], base: Path) -> list[str]:
    """Names of cases: a NIfTI file's own, a hash of a series's UID; each once.

    What stands in headers of DICOM never gets into a name.
    """
    plain = [name_of(one) for one in candidates]
    times = Counter(plain)
    names = [
        name if times[name] == 1 else "_".join((*place(one.path, base), name))
        for name, one in zip(plain, candidates, strict=True)
    ]
    return [
        f"{name}-{names[:i].count(name) + 1}" if name in names[:i] else name
        for i, name in enumerate(names)
    ]


def name_of(candidate: Candidate) -> str:
    """The name of one case; where an anonymiser emptied the UID, by what its first file holds."""
    if not candidate.is_dicom:
        return without_ending(candidate.path)
    told = candidate.series_uid.encode() or min(candidate.files).read_bytes()
    return f"series-{hashlib.sha256(told).hexdigest()[:SHORT]}"


def place(path: Path, base: Path) -> tuple[str, ...]:
    """Folders between a file and the folder that was searched."""
    return path.parent.relative_to(base).parts if path.is_relative_to(base) else ()
