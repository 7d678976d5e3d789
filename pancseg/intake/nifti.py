"""NIfTI files: read with checks, slices turned to run from feet to head."""

import re
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from pancseg.affine import slices_from_feet
from pancseg.errors import Refused
from pancseg.intake.series import smallest_type

ENDINGS = (".nii.gz", ".nii")
ROLE = re.compile(r"[_\-.](image|img|ct|label|lbl|seg|mask)$", re.IGNORECASE)


def find_nifti(root: Path) -> list[Path]:
    """NIfTI files at any depth of a folder, or the file itself."""
    files = [root] if root.is_file() else sorted(root.rglob("*"))
    return [file for file in files if file.is_file() and file.name.endswith(ENDINGS)]


def stem_of(path: Path) -> str:
    """The name without its ending and without the word for its role.

    >>> stem_of(Path("p7_image.nii.gz")), stem_of(Path("p7-seg.nii")), stem_of(Path("p7.nii"))
    ('p7', 'p7', 'p7')
    """
    name = path.name
    for ending in ENDINGS:
        name = name.removesuffix(ending)
    return ROLE.sub("", name)


def read_nifti_ct(path: Path) -> nib.Nifti1Image:
    """Read a CT stored as NIfTI, HU.

    Raises:
        Refused: If it cannot be read, has no place in space, or is not one volume.
    """
    image = load(path)
    values = np.asarray(image.dataobj, dtype=np.float32)
    if not np.isfinite(values).all():
        raise Refused("not_finite", f"{path.name} holds NaN or infinite values")
    return slices_from_feet(nib.Nifti1Image(smallest_type(values), image.affine))


def read_nifti_mask(path: Path) -> nib.Nifti1Image:
    """Read a mask: any value but 0 is foreground, as 1."""
    image = load(path)
    mask = (np.asanyarray(image.dataobj) != 0).astype(np.uint8)
    return slices_from_feet(nib.Nifti1Image(mask, image.affine))


def load(path: Path) -> nib.Nifti1Image:
    """Open a NIfTI file as one volume with a place in space.

    Raises:
        Refused: If any of that fails.
    """
    try:
        image = nib.Nifti1Image.from_filename(path)
        values = np.asanyarray(image.dataobj)
    except (ImageFileError, OSError, ValueError, EOFError) as error:
        raise Refused("unreadable", f"{path.name}: {error}") from error
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 3 or 0 in values.shape:
        raise Refused("not_a_volume", f"{path.name} has shape {image.shape}, expected three axes")
    if image.header["sform_code"] == 0 and image.header["qform_code"] == 0:
        raise Refused("no_affine", f"{path.name} has neither sform nor qform: its place is unknown")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine)) < 1e-9:
        raise Refused("bad_affine", f"{path.name} has an affine that cannot be inverted")
    return nib.Nifti1Image(values, image.affine)
