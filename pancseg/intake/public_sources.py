"""Sources of two public data sets: 3D-IRCADb and TCIA Pancreas-CT."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from pancseg.errors import PancsegError
from pancseg.geometry import oriented_like, same_grid, spacing_of
from pancseg.intake.dicom_source import add_cases, find_dicom, locate_both, skip, sort_out_scans
from pancseg.intake.match_labels import match_labels
from pancseg.intake.paths import LocatedSeries
from pancseg.intake.source import LabelReader, ReadOptions, Scan, SourceContents
from pancseg.structures import LabelMap

NIH_NUMBER = re.compile(r"(?:PANCREAS_|label)(\d+)", re.IGNORECASE)
NIH_SPACING_TOLERANCE = 0.01  # of the spacing


def find_ircadb(folder: Path, organ: str, options: ReadOptions) -> SourceContents:
    """3D-IRCADb: ``*/PATIENT_DICOM`` with masks of one organ, ``*/MASKS_DICOM/<organ>``.

    Its PatientIDs are empty, each mask series has another StudyInstanceUID and there is no
    FrameOfReferenceUID: the path matches labels and names the patient.

    Raises:
        PancsegError: If there is no such folder, it is still packed, or lacks the organ.
    """
    if not any(folder.glob("*/PATIENT_DICOM")):
        advice = "give the folder that holds 3Dircadb1.1, 3Dircadb1.2, ..."
        if any(folder.glob("*/PATIENT_DICOM.zip")):
            advice = "unpack PATIENT_DICOM.zip and MASKS_DICOM.zip in each folder"
        raise PancsegError(f"source.folder={folder}: holds no */PATIENT_DICOM; {advice}")
    organs = {path.name for path in folder.glob("*/MASKS_DICOM/*")}
    if organ not in organs:
        there = ", ".join(sorted(organs)) or "nothing"
        raise PancsegError(f"source.organ={organ}: nobody has a mask of it; there are {there}")
    images, labels = folder / "*" / "PATIENT_DICOM", folder / "*" / "MASKS_DICOM" / organ
    return find_dicom(images, labels, "CT", options)


def find_nih(images: Path, labels: Path | None, options: ReadOptions) -> SourceContents:
    """TCIA Pancreas-CT: ``PANCREAS_0001/<study>/<series>`` with ``label0001.nii.gz``, or alone."""
    contents = SourceContents()
    located = locate_both(images, labels, options, contents)
    scans, drawn = sort_out_scans(contents, *located, "CT")
    scans, drawn = numbered(scans, "image", contents), numbered(drawn, "label", contents)
    add_cases(contents, scans, match_labels(drawn, scans) if labels else None, options)
    contents.cases = [
        replace(case, read_label=case.read_label and partial(read_nih_label, case.read_label))
        for case in contents.cases
    ]
    return contents


def numbered(
    located: list[LocatedSeries], kind: str, contents: SourceContents
) -> list[LocatedSeries]:
    """Series and files with their number as key, which names the patient; others become rows."""
    kept = []
    for each in located:
        found = NIH_NUMBER.findall(f"{each.path} {each.patient_id}")
        if found:
            key = f"PANCREAS_{int(found[-1]):04}"
            kept.append(replace(each, key=key, names_patient=True))
        else:
            reason = "no_number: expected a name such as PANCREAS_0001 or label0001.nii.gz"
            skip(contents, each, kind, "refused", reason)
    return kept


def read_nih_label(read_label: LabelReader, scan: Scan) -> LabelMap:
    """Read a label; where only its origin differs from that of the scan, use the scan's.

    The affines of these files have the right directions, and often a wrong origin.
    """
    label, image = read_label(scan), scan.image
    turned = oriented_like(label.image, image)
    if same_grid(turned.shape, turned.affine, image.shape, image.affine):
        return replace(label, image=turned)
    apart_mm = np.linalg.norm(turned.affine[:3, :3] - image.affine[:3, :3], axis=0)
    near_mm = NIH_SPACING_TOLERANCE * np.array(spacing_of(image.affine))
    if turned.shape != image.shape or (apart_mm > near_mm).any():
        return label
    placed = nib.Nifti1Image(np.asanyarray(turned.dataobj), image.affine)
    return replace(label, image=placed, flags=(*label.flags, "label_placed_by_axes"))
