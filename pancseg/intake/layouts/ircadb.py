"""The ``ircadb`` layout: 3D-IRCADb, ``*/PATIENT_DICOM`` beside ``*/MASKS_DICOM/<organ>``.

Every PatientID in it is empty, each mask series has a StudyInstanceUID of its own and no
FrameOfReferenceUID exists: only path and geometry tie them, and the path names the patient.
"""

from pathlib import Path

from pancseg.errors import PancsegError
from pancseg.intake.found import Found, Reading
from pancseg.intake.layouts.dicom import find_dicom


def find_ircadb(folder: Path, organ: str, reading: Reading) -> Found:
    """Scans and masks of one organ.

    Args:
        folder: Holds ``3Dircadb1.1``, ``3Dircadb1.2``, ...
        organ: Folder below MASKS_DICOM.
        reading: How to read.

    Raises:
        PancsegError: If the archives inside are still packed, the folder is another one, or nobody
            has a mask of the organ.
    """
    if not any(folder.glob("*/PATIENT_DICOM")):
        packed = any(folder.glob("*/PATIENT_DICOM.zip"))
        advice = (
            "unpack PATIENT_DICOM.zip and MASKS_DICOM.zip in each folder"
            if packed
            else "give the folder that holds 3Dircadb1.1, 3Dircadb1.2, ..."
        )
        raise PancsegError(f"source.folder={folder}: holds no */PATIENT_DICOM; {advice}")
    if not any(folder.glob(f"*/MASKS_DICOM/{organ}")):
        organs = sorted({path.name for path in folder.glob("*/MASKS_DICOM/*")})
        there = ", ".join(organs) or "none"
        raise PancsegError(
            f"source.organ={organ}: no patient has a mask of it; there are masks of {there}"
        )
    images, labels = folder / "*" / "PATIENT_DICOM", folder / "*" / "MASKS_DICOM" / organ
    return find_dicom(images, labels, "CT", reading)
