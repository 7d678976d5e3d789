"""The ``nih`` layout: TCIA Pancreas-CT, DICOM scans with NIfTI labels of the same number."""

import re
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from pancseg.geometry import oriented_like, same_grid, spacing_of
from pancseg.intake.dicom.finding import find_series
from pancseg.intake.dicom.headers import Series
from pancseg.intake.dicom.series import read_ct
from pancseg.intake.found import Candidate, Found, Mask, Reading, Scan, Stray
from pancseg.intake.layouts.nifti import listed, why_no_pair
from pancseg.intake.nifti.reading import IS_NIFTI, read_nifti_mask, without_ending

SCAN = re.compile(r"PANCREAS_(\d+)", re.IGNORECASE)
LABEL = re.compile(r"label(\d+)", re.IGNORECASE)
SAME_AXES = 0.01  # of the spacing


def find_nih(images: Path, labels: Path | None, reading: Reading) -> Found:
    """Scans ``PANCREAS_0001`` with labels ``label0001.nii.gz``.

    Args:
        images: Holds ``PANCREAS_0001/<study>/<series>``, at any depth.
        labels: Holds ``label0001.nii.gz``, ...; None to take images alone.
        reading: How to read.
    """
    found = Found()
    everything, found.strays = find_series(images, reading.processes)
    scans: dict[int, list[Series]] = {}
    for series in everything:
        number = number_of(series)
        if series.kind != "image" or series.modality != "CT":
            reason = f"not_ct: modality is {series.modality or 'empty'}"
            place = place_of(series, everything, images)
            found.strays.append(Stray(place, "other", "dropped", reason, len(series.files)))
        elif number is None:
            reason = "no_label: neither PatientID nor folder is such as PANCREAS_0001"
            place = place_of(series, everything, images)
            found.strays.append(Stray(place, "image", "refused", reason, len(series.files)))
        else:
            scans.setdefault(number, []).append(series)
    masks, more = numbered(labels) if labels else ({}, [])
    found.strays += more
    for number in sorted(scans.keys() | masks.keys()):
        own, drawn = scans.get(number, []), masks.get(number, [])
        files = [series.files[0] for series in own]
        problem = (own[0].problem if own else "") or why_no_pair(
            f"{number:04}", files, drawn, wants_label=labels is not None
        )
        if problem:
            found.strays += [
                Stray(
                    place_of(one, everything, images), "image", "refused", problem, len(one.files)
                )
                for one in own
            ]
            found.strays += [Stray(file, "label", "refused", problem) for file in drawn]
        else:
            path = place_of(own[0], everything, images)
            found.candidates.append(candidate(own[0], number, drawn, path, reading))
    return found


def candidate(
    series: Series, number: int, labels: list[Path], path: Path, reading: Reading
) -> Candidate:
    """A scan with its label, if it has one."""
    label = labels[0] if labels else None
    return Candidate(
        path=path,
        patient=series.patient_id or f"PANCREAS_{number:04}",
        files=(*series.files, *labels),
        read_image=partial(read_ct, series.files, reading),
        read_label=partial(read_nih_mask, label, reading) if label else None,
        label_path=label,
        identity=f"{series.files[0].parent}\n{series.uid}",
        study_uid=series.study_uid,
        patient_id=series.patient_id,
        is_phantom=series.is_phantom,
    )


def read_nih_mask(path: Path, reading: Reading, scan: Scan) -> Mask:
    """Read a label, put where its scan lies if only its origin says otherwise.

    The affine of these files has the directions of the axes right, which run against the rows of
    the DICOM, but often not the origin. So the directions decide how the array is turned, and the
    scan says where it lies.

    Raises:
        Refused: If the label cannot be read.
    """
    mask = read_nifti_mask(path, reading, scan)
    label = oriented_like(mask.image, scan.image)
    if same_grid(label.shape, label.affine, scan.image.shape, scan.image.affine):
        return Mask(label, mask.undeclared, mask.flags)
    if not same_axes(label, scan.image):
        return mask
    placed = nib.Nifti1Image(np.asanyarray(label.dataobj), scan.image.affine)
    return Mask(placed, mask.undeclared, (*mask.flags, "label_placed_by_axes"))


def same_axes(label: nib.Nifti1Image, image: nib.Nifti1Image) -> bool:
    """Whether two images differ in nothing but where they begin."""
    apart_mm = np.linalg.norm(label.affine[:3, :3] - image.affine[:3, :3], axis=0)
    near_mm = SAME_AXES * np.array(spacing_of(image.affine))
    return label.shape == image.shape and bool((apart_mm <= near_mm).all())


def number_of(series: Series) -> int | None:
    """The number of a scan, from its PatientID or else its folder."""
    for text in (series.patient_id, series.files[0].parent.as_posix()):
        if numbers := SCAN.findall(text):
            return int(numbers[-1])
    return None


def numbered(labels: Path) -> tuple[dict[int, list[Path]], list[Stray]]:
    """Label files by number, and files that have none."""
    files, strays = listed(labels)
    masks: dict[int, list[Path]] = {}
    for file in files:
        match = LABEL.fullmatch(without_ending(file))
        if match and IS_NIFTI.search(file.name):
            masks.setdefault(int(match[1]), []).append(file)
        else:
            reason = "no_image: is named by no number, expected such as label0001.nii.gz"
            strays.append(Stray(file, "other", "dropped", reason))
    return masks, strays


def place_of(series: Series, everything: list[Series], images: Path) -> Path:
    """What names a series in the table: its folder, or its first file where it shares that."""
    shares = sum(other.folder == series.folder for other in everything) > 1
    return series.files[0] if shares else images / series.folder
