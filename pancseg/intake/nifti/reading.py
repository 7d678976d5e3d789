"""NIfTI files: found, named and read, slices turned to run from feet to head."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pancseg.geometry import slices_from_feet
from pancseg.intake.dicom.pixels import Volume, smallest_type
from pancseg.intake.found import Mask, Reading, Scan
from pancseg.intake.labels.foreground import chosen_values
from pancseg.intake.nifti.content import Claim, load
from pancseg.intake.walk import files_under, is_fork

IS_NIFTI = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
ENDING = re.compile(r"\.(nii\.gz|nii|seg\.nrrd|nrrd)$", re.IGNORECASE)
ROLE = re.compile(r"[_\-.](image|img|ct|label|lbl|seg|mask)$", re.IGNORECASE)


def find_nifti(root: Path) -> list[Path]:
    """NIfTI files at any depth of a folder, or the file itself; no resource forks of macOS."""
    files = [file for file in files_under(root) if IS_NIFTI.search(file.name)]
    return [file for file in files if not is_fork(file)]


def without_ending(path: Path) -> str:
    """The name without what says its format.

    >>> without_ending(Path("p7_ct.nii.gz")), without_ending(Path("p7.seg.nrrd"))
    ('p7_ct', 'p7')
    """
    return ENDING.sub("", path.name)


def stem_of(path: Path) -> str:
    """The name without its ending and without the word for its role.

    >>> stem_of(Path("p7_image.nii.gz")), stem_of(Path("p7-seg.nii")), stem_of(Path("p7.nii"))
    ('p7', 'p7', 'p7')
    """
    return ROLE.sub("", without_ending(path))


def read_nifti_ct(path: Path) -> Scan:
    """Read a CT stored as NIfTI, HU.

    Raises:
        Refused: If it cannot be read, has no place in space, or is not one volume.
    """
    values, claim = load(path)
    image = slices_from_feet(nib.Nifti1Image(hu_of(values, claim), claim.affine))
    return Scan(image, own_affine=claim.affine)


def read_nifti_mask(path: Path, reading: Reading, scan: Scan, declared: Iterable[int] = ()) -> Mask:
    """Read a mask.

    Args:
        path: The file.
        reading: Which of its values are the organ.
        scan: The image it belongs to; its own affine says where the mask lies.
        declared: Values that are known, whether or not they are chosen.

    Raises:
        Refused: As a CT is, or if nothing in it is background.
    """
    values, claim = load(path)
    if not claim.is_plain:
        values = values * claim.slope + claim.intercept
    mask, undeclared = chosen_values(values, reading.choice, declared)
    return Mask(slices_from_feet(nib.Nifti1Image(mask, claim.affine)), undeclared)


def hu_of(values: NDArray[Any], claim: Claim) -> NDArray[np.int16] | NDArray[np.float32]:
    """Stored values as HU, int16 where that loses nothing, else float32."""
    if values.dtype.kind == "f":
        return smallest_type(values)
    if values.dtype == np.int16 and claim.is_plain:
        return values
    columns, rows, slices = values.shape
    volume = Volume((columns, rows, slices))
    for k in range(slices):  # slice by slice: a whole scan as float takes gigabytes
        volume.put(k, values[..., k].T, claim.slope, claim.intercept)
    return volume.values
