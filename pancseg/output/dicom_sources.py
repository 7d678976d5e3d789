"""The images of a series that a DICOM SEG or an RTSTRUCT refers to."""

from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import CTImageStorage, generate_uid

from pancseg.dicom.pixels import read_dataset
from pancseg.dicom.slices import SliceStack
from pancseg.errors import Refused, parsing, quiet
from pancseg.geometry import oriented_like

NEEDED = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
# what DICOM wants to be there, be it empty; anonymisers drop it
MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate",
    "StudyTime", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip


def sources_of(lying: SliceStack, what: str) -> dict[Path, Dataset]:
    """Headers of the files of a series, without their pixels, in the order of the planes.

    Args:
        lying: Where the slices of the series lie.
        what: Is going to refer to them, ``seg`` or ``rtstruct``; codes begin with it.

    Raises:
        Refused: If the series was put on another grid, or one lacks a UID.
    """
    if lying.repairs:
        told = f"the series was interpolated, and no {what.upper()} can refer to it"
        raise Refused(f"{what}_repaired", told)
    files = dict.fromkeys(plane.file for plane in lying.planes)
    with quiet():
        return {file: completed(header_of(file), what) for file in files}


def header_of(file: Path) -> Dataset:
    """What a file says about its image; pixels would be a second copy of the scan in memory.

    Raises:
        Refused: If it cannot be read any more.
    """
    with parsing(file):
        return read_dataset(file, stop_before_pixels=True)


def completed(source: Dataset, what: str) -> Dataset:
    """A header with what DICOM requires and anonymisers emptied or dropped.

    Raises:
        Refused: If nothing could refer to it.
    """
    absent = [name for name in NEEDED if not source.get(name)]
    if absent:
        raise Refused(f"{what}_no_uid", f"the series has no {', '.join(absent)} to refer to")
    for name in MAY_BE_EMPTY:
        if name not in source:
            setattr(source, name, "")
    if not source.get("SpecificCharacterSet", "none is ASCII"):
        del source.SpecificCharacterSet
    if not source.get("SOPClassUID"):
        source.SOPClassUID = CTImageStorage
    if not source.get("FrameOfReferenceUID"):
        told = [str(source.SeriesInstanceUID), "frame of reference"]
        source.FrameOfReferenceUID = generate_uid(entropy_srcs=told)
    return source


def frames_of(mask: nib.Nifti1Image, lying: SliceStack) -> NDArray[np.uint8]:
    """The mask as stored frames ``(slices, rows, columns)``, in the order of the planes."""
    stored = nib.Nifti1Image(np.zeros(lying.shape, np.uint8), lying.affine_at(lying.corner_mm))
    turned = np.asanyarray(oriented_like(mask, stored).dataobj)
    return np.ascontiguousarray(turned.transpose(2, 1, 0).astype(np.uint8))
