"""The files of a case: image and label, its groups, where its picture lies."""

import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np

from pancseg.dataset.groups import Cutting, pairs_of, plan_cut
from pancseg.dataset.manifest import Group
from pancseg.files import unpacked_sha256, write_nifti


def write_groups(
    root: Path,
    case: str,
    patient: str,
    cutting: Cutting,
    image: nib.Nifti1Image,
    label: nib.Nifti1Image | None,
) -> tuple[list[Group], int, int]:
    """Write the groups of a case, without the empty ones unless they are to be kept.

    Returns:
        The groups written, how many were empty, and how many were incomplete and left out; no
        group at all where whole cases are prepared.
    """
    if cutting.depth is None:
        return [], 0, 0
    plan = plan_cut(image.shape[2], cutting.depth, cutting.tail)
    groups, empty = [], 0
    for start, cut_image, cut_label in pairs_of(image, label, plan.starts, cutting.depth):
        voxels = None if cut_label is None else int(np.count_nonzero(cut_label.dataobj))
        if voxels == 0:
            empty += 1
            if not cutting.keep_empty:
                continue
        name = f"{case}_{start:04d}"
        files, sha256 = write_pair(root, f"groups/{name}", cut_image, cut_label)
        groups.append(Group(name, case, patient, start, *files, voxels, sha256))
    return groups, empty, plan.left_out


def write_pair(
    root: Path, name: str, image: nib.Nifti1Image, label: nib.Nifti1Image | None
) -> tuple[tuple[str, str | None], str]:
    """Write an image and its label.

    Returns:
        Their paths relative to the root, and a hash of both.
    """
    image_file, label_file = f"{name}_image.nii.gz", f"{name}_label.nii.gz"
    hashes = [write_nifti(root / image_file, image)]
    if label is not None:
        hashes.append(write_nifti(root / label_file, label))
    return (image_file, label_file if label is not None else None), hash_of_both(hashes)


def hash_of_both(hashes: list[str]) -> str:
    """One hash for those of an image and its label, as the manifest keeps it."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def is_as_prepared(image: Path, label: Path, sha256: str) -> bool:
    """Whether an image and its label hold what preparation wrote.

    Args:
        image: File.
        label: File.
        sha256: Of both, by the manifest; empty in folders of earlier versions, which tells nothing.

    Raises:
        OSError: If one cannot be read.
        EOFError: If one is cut short.
    """
    return not sha256 or hash_of_both([unpacked_sha256(image), unpacked_sha256(label)]) == sha256


def told_change(image: Path, label: Path) -> str:
    """One line on files that were changed."""
    return (
        f"{image.name} or {label.name} in {image.parent} is not what pancseg.prepare wrote; it is "
        "used as it is. If nobody corrected it by hand, delete both and run the same "
        "pancseg.prepare again, which makes them anew"
    )


def picture_of(case: str) -> str:
    """Where the picture of a case lies, relative to the root."""
    return f"pictures/{case}.png"


def hash_of(image: nib.Nifti1Image) -> str:
    """Hash of a volume's values, wherever it lies and whichever way its axes run.

    The same scan is known again by it, as DICOM and as NIfTI in any orientation.
    """
    values = np.asanyarray(nib.as_closest_canonical(image).dataobj)
    digest = hashlib.sha256(str(values.shape).encode())
    for k in range(values.shape[2]):  # turned slice by slice: a whole scan would be copied
        digest.update(np.ascontiguousarray(values[..., k].T).data)
    return digest.hexdigest()
