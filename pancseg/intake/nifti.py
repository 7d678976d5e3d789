"""NIfTI files: read with checks, slices turned to run from feet to head."""

import gzip
import re
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from pancseg.affine import Affine, slices_from_feet
from pancseg.errors import Refused
from pancseg.intake.series import smallest_type

ENDINGS = (".nii.gz", ".nii")
UNREADABLE = (
    *(ImageFileError, HeaderDataError, WrapStructError),
    *(OSError, ValueError, EOFError, zlib.error),
)
LARGEST_COSINE = 0.01  # between two axes: half a degree
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
    values, affine = load(path)
    return slices_from_feet(nib.Nifti1Image(smallest_type(values), affine))


def read_nifti_mask(path: Path) -> nib.Nifti1Image:
    """Read a mask: any value but 0 is foreground, as 1."""
    values, affine = load(path)
    return slices_from_feet(nib.Nifti1Image((values != 0).astype(np.uint8), affine))


def load(path: Path) -> tuple[NDArray[Any], Affine]:
    """Values and affine of a NIfTI file that holds one volume with a place in space.

    Raises:
        Refused: If any of that fails.
    """
    try:
        content = path.read_bytes()
        if path.name.endswith(".gz"):
            content = gzip.decompress(content)  # to the end: nibabel stops before the checksum
        is_2 = nib.Nifti2Header.may_contain_header(content)
        image = (nib.Nifti2Image if is_2 else nib.Nifti1Image).from_bytes(content)
        values = np.asanyarray(image.dataobj)
    except UNREADABLE as error:
        raise Refused("unreadable", f"{path.name}: {error}") from error
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 3 or 0 in values.shape:
        raise Refused("not_a_volume", f"{path.name} has shape {image.shape}, expected three axes")
    if image.header["sform_code"] == 0 and image.header["qform_code"] == 0:
        raise Refused("no_affine", f"{path.name} has neither sform nor qform: its place is unknown")
    check_affine(image.affine, path.name)
    if not np.isfinite(values).all():
        raise Refused("not_finite", f"{path.name} holds NaN or infinite values")
    return values, image.affine


def check_affine(affine: Affine, name: str) -> None:
    """Check that an affine can be inverted and that its axes are at right angles.

    Raises:
        Refused: With what is wrong.
    """
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9:
        raise Refused("bad_affine", f"{name} has an affine that cannot be inverted")
    axes = affine[:3, :3] / nib.affines.voxel_sizes(affine)
    between = np.abs(axes.T @ axes - np.eye(3)).max()
    if between > LARGEST_COSINE:
        lean = 90 - np.degrees(np.arccos(between))
        raise Refused("bad_affine", f"{name} has axes {lean:.1f} degrees off right angles")
