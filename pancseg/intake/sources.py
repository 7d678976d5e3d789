"""Sources of scans and labels: ``dicom``, ``nifti``, ``ircadb`` and ``nih``."""

import re
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from pancseg.errors import PancsegError
from pancseg.geometry import oriented_like, same_grid, spacing_of
from pancseg.intake.cases import add_cases
from pancseg.intake.locate import is_pattern, locate_files, locate_series
from pancseg.intake.match_labels import REFERRING, Match, match_labels
from pancseg.intake.types import LabelReader, ReadOptions, Scan, SourceContents, SourceItem
from pancseg.structures import LabelMap

NOT_CT = "not_ct: Modality is not CT"
NO_SCAN = f"{NOT_CT}, expected CT; source.modality=any takes it"
OTHER_CHANNEL = "other_channel: only channel 0000 is read"
CHANNEL = re.compile(r"(.+)_(\d{4})")  # of nnU-Net's image files
NIH_NUMBER = re.compile(r"(?:PANCREAS_|label)(\d+)", re.IGNORECASE)
NO_NUMBER = "no_number: expected a name such as PANCREAS_0001 or label0001.nii.gz"
NIH_SPACING_TOLERANCE = 0.01  # of the spacing


def find_dicom(
    images: Path, labels: Path | None, modality: str, options: ReadOptions
) -> SourceContents:
    """CT series, and mask series, DICOM SEG, RTSTRUCT, NIfTI or NRRD as their labels.

    Paths may be patterns. Labels may be None, or the same path for SEG and RTSTRUCT among the
    images; the modality may be ``any``. PancsegError if one folder of both holds no such label.
    """
    contents = SourceContents()
    image_items, label_items = locate_both(images, labels, modality, options, contents)
    matches = match_labels(label_items, image_items) if labels else None
    if labels and labels.is_file() and len(label_items) == len(image_items) == 1:
        matches = [Match(label_items[0], image_items[0])]  # whatever the file is named
    add_cases(contents, image_items, matches, options)
    if len(contents.cases) > 2 and len({case.patient for case in contents.cases}) == 1:
        contents.warnings.append(
            f"all {len(contents.cases)} scans have the same PatientID and count as one patient, so "
            "that no split can hold any of them out; if they are several, name them by patterns, "
            "such as source.images=DIR/*/CT source.labels=DIR/*/MASK"
        )
    return contents


def locate_both(
    images: Path, labels: Path | None, modality: str, options: ReadOptions, contents: SourceContents
) -> tuple[list[SourceItem], list[SourceItem]]:
    """Series of a modality, or of ``any``; and files and series of labels. Rows are added.

    Where the folder of images contains that of labels or the other way round, files of both belong
    to the inner one. Alone in its folder, a series that is no scan is refused, because somebody
    expects it to be read; beside a scan it is dropped, because archives put it there.
    """
    if labels is None or images.resolve() != labels.resolve():
        label_items = locate_files(labels, "", contents) if labels else []
        label_paths = {label.path for label in label_items}
        series = locate_series(images, options, contents, label_paths)
        label_items += locate_series(labels, options, contents, label_paths) if labels else []
    else:
        series = locate_series(images, options, contents)
        label_items = [item for item in series if item.format in REFERRING]
        if not label_items:
            raise PancsegError(
                f"source.images={images}: is also source.labels, and holds no DICOM SEG or "
                "RTSTRUCT; give the folder of the labels"
            )
    image_files = {file for item in series for file in item.files}
    label_files = {file for label in label_items for file in label.files}
    if len(image_files) < len(label_files):
        label_items = [label for label in label_items if image_files.isdisjoint(label.files)]
    else:
        series = [item for item in series if label_files.isdisjoint(item.files)]
    scans = [s for s in series if s.format == "image" and modality in ("any", s.modality)]
    scan_folders = {scan.folder for scan in scans}
    for item in series:
        is_other = modality not in ("any", item.modality)
        if item.format != "image":
            reason = f"label_among_images: {item.format.upper()}"
            contents.skip(item.path, "label", "dropped", reason, len(item.files))
        elif is_other and item.folder in scan_folders:
            contents.skip(item.path, "other", "dropped", NOT_CT, len(item.files))
        elif is_other:
            contents.skip(item.path, "image", "refused", NO_SCAN, len(item.files))
    return scans, label_items


def find_nifti_pairs(
    images: Path, labels: Path | None, patient: str | None, options: ReadOptions
) -> SourceContents:
    """Images with labels of the same key, which also names the patient.

    The key is the relative path and stem, or the text that the wildcards of a pattern match. A
    regular expression with a group named ``patient`` finds the patient in it. Labels may be None.
    PancsegError if the paths do not fit together, or the expression finds no patient.
    """
    if labels and images.resolve() == labels.resolve():
        raise PancsegError(f"source.images={images}: is also source.labels; give their own folder")
    if labels and is_pattern(images) != is_pattern(labels):
        name, path = ("labels", labels) if is_pattern(images) else ("images", images)
        raise PancsegError(
            f"source.{name}={path}: is no pattern, but the other path is; give two patterns, such "
            "as DIR/*/ct.nii.gz and DIR/*/pancreas.nii.gz, or two folders"
        )
    contents = SourceContents()
    label_items = locate_files(labels, "label", contents) if labels else []
    label_paths = {label.path for label in label_items}
    image_items = locate_files(images, "image", contents)
    image_items = [image for image in image_items if image.path not in label_paths]
    if labels and labels.is_file() and images.is_file():
        matches = [Match(label, image) for label in label_items for image in image_items]
    else:
        image_items, matches = match_files(image_items, label_items, contents)
    add_cases(contents, image_items, matches if labels else None, options)
    if patient is None:
        warn_of_parts(contents)
    else:
        contents.cases = [
            replace(case, patient=search_patient(case.patient, patient)) for case in contents.cases
        ]
    return contents


def match_files(
    images: list[SourceItem], labels: list[SourceItem], contents: SourceContents
) -> tuple[list[SourceItem], list[Match]]:
    """Match labels with images of the same key, refuse several images of one key.

    ``p7_0000`` is the first channel of the image of a label ``p7``, unless a label has exactly its
    name; rows of its other channels are added.
    """
    label_keys, image_keys = {label.key for label in labels}, {image.key for image in images}
    kept = []
    for image in images:
        match = CHANNEL.fullmatch(image.key)
        if match and image.key not in label_keys and match[1] in label_keys - image_keys:
            if match[2] != "0000":
                contents.skip(image.path, "other", "dropped", OTHER_CHANNEL)
                continue
            image = replace(image, key=match[1])
        kept.append(image)
    count = Counter(image.key for image in kept)
    for n, image in enumerate(kept):
        if count[image.key] > 1:
            problem = f"ambiguous_image: {count[image.key]} images are named {image.key}; keep one"
            kept[n] = replace(image, problem=problem)
    return kept, match_labels(labels, kept)


def search_patient(key: str, pattern: str) -> str:
    r"""The patient of a key.

    >>> search_patient("a/liver_3_07", r"liver_(?P<patient>\d+)")
    '3'
    """
    try:
        match = re.search(pattern, key)
        if match and match["patient"]:
            return match["patient"]
        problem = f"does not match {key}"
    except (re.error, IndexError) as error:
        problem = str(error)
    raise PancsegError(
        f"source.patient={pattern}: {problem}; expected a regular expression with a group named "
        "patient that matches every image, such as (?P<patient>[^_]+)"
    )


def warn_of_parts(contents: SourceContents) -> None:
    """Warn where names of patients differ in nothing but the last of two numbers or more."""
    first: dict[str, str] = {}
    for key in (case.patient for case in contents.cases):
        base = re.sub(r"\d+(?=\D*$)", "#", key) if re.search(r"\d\D+\d", key) else key
        if first.setdefault(base, key) != key:
            contents.warnings.append(
                f"{first[base]} and {key} look like parts of one patient, but count as two, so "
                "that one may be trained on and the other tested on; if they are one, give "
                "source.patient, such as '(?P<patient>.+)_\\d+$'"
            )
            return


def find_ircadb(folder: Path, organ: str, options: ReadOptions) -> SourceContents:
    """3D-IRCADb: ``*/PATIENT_DICOM`` with masks of one organ, ``*/MASKS_DICOM/<organ>``.

    Its PatientIDs are empty, each mask series has another StudyInstanceUID and there is no
    FrameOfReferenceUID: the path matches labels and names the patient. PancsegError if there is no
    such folder, it is still packed, or lacks the organ.
    """
    if not any(folder.glob("*/PATIENT_DICOM")):
        advice = "give the folder that holds 3Dircadb1.1, 3Dircadb1.2, ..."
        if any(folder.glob("*/PATIENT_DICOM.zip")):
            advice = "unpack PATIENT_DICOM.zip and MASKS_DICOM.zip in each folder"
        raise PancsegError(f"source.folder={folder}: holds no */PATIENT_DICOM; {advice}")
    organs = {path.name for path in folder.glob("*/MASKS_DICOM/*")}
    if organ not in organs:
        available = ", ".join(sorted(organs)) or "nothing"
        raise PancsegError(f"source.organ={organ}: nobody has a mask of it; there are {available}")
    images, labels = folder / "*" / "PATIENT_DICOM", folder / "*" / "MASKS_DICOM" / organ
    return find_dicom(images, labels, "CT", options)


def find_nih(images: Path, labels: Path | None, options: ReadOptions) -> SourceContents:
    """TCIA Pancreas-CT: ``PANCREAS_0001/<study>/<series>`` with ``label0001.nii.gz``, or alone."""
    contents = SourceContents()
    image_items, label_items = locate_both(images, labels, "CT", options, contents)
    image_items = numbered(image_items, "image", contents)
    label_items = numbered(label_items, "label", contents)
    matches = match_labels(label_items, image_items) if labels else None
    add_cases(contents, image_items, matches, options)
    contents.cases = [
        replace(case, read_label=case.read_label and partial(read_nih_label, case.read_label))
        for case in contents.cases
    ]
    return contents


def numbered(items: list[SourceItem], kind: str, contents: SourceContents) -> list[SourceItem]:
    """Series and files with their number as key, which names the patient; others become rows."""
    kept = []
    for item in items:
        if numbers := NIH_NUMBER.findall(f"{item.path} {item.patient_id}"):
            key = f"PANCREAS_{int(numbers[-1]):04}"
            kept.append(replace(item, key=key, names_patient=True))
        else:
            contents.skip(item.path, kind, "refused", NO_NUMBER, len(item.files))
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
