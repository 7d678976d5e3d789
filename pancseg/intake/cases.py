"""Cases of a source: scans with their matched labels, their patients, and the rows of the rest."""

from collections import Counter, defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path

from pancseg.dicom.rtstruct import read_rtstruct
from pancseg.dicom.segmentation import read_segmentation
from pancseg.dicom.series import read_mask_series, read_series
from pancseg.errors import Refused
from pancseg.intake.match_labels import Match
from pancseg.intake.types import (
    IMAGE_REFUSED,
    CaseSource,
    ReadOptions,
    Scan,
    SkippedFile,
    SourceContents,
    SourceItem,
)
from pancseg.intake.volume_files import read_label_file, read_scan_file, stem_of
from pancseg.structures import LabelMap

NO_LABEL = "no_label: no label belongs to this image"


OTHER_SERIES = "other_series: the label belongs to another series of this patient"


SAME_IN_CASE = ("study_uid", "patient_id", "manufacturer", "contrast", "is_phantom")


MOST_NAMES = 20  # labels in a warning


def add_cases(
    contents: SourceContents,
    images: list[SourceItem],
    matches: list[Match] | None,
    options: ReadOptions,
) -> None:
    """Add cases, rows of images and labels that make none, and warnings.

    Without matches every image is a case.
    """
    by_image: dict[SourceItem, Match] = {}
    for each in matches or ():
        if each.image and (each.image not in by_image or not each.problem):
            by_image[each.image] = each
    patients, input_keys = patients_of(images), input_keys_of(images)
    labelled = {patients[image] for image in by_image}
    for image in images:
        match = by_image.get(image)
        label_problem = (match.problem or match.label.problem) if match else ""
        if problem := image.problem or label_problem:
            skip(contents, image, "image", "refused", problem)
        elif match or matches is None:
            case = make_case(image, match.label if match else None, options)
            contents.cases.append(
                replace(case, patient=patients[image], input_key=input_keys[image])
            )
        elif patients[image] in labelled:
            skip(contents, image, "image", "dropped", OTHER_SERIES)
        else:
            skip(contents, image, "image", "refused", NO_LABEL)
    for each in matches or ():
        image_reason = IMAGE_REFUSED if each.image and each.image.problem else ""
        if problem := each.problem or each.label.problem or image_reason:
            skip(contents, each.label, "label", "refused", problem)
    contents.skipped = list(dict.fromkeys(contents.skipped))
    contents.warnings += warn_of_structures(matches or [])


def make_case(image: SourceItem, label: SourceItem | None, options: ReadOptions) -> CaseSource:
    """The case of an image and its label, if it has one; its patient is not set."""
    label_files, label_flags = (label.files, label.flags) if label else ((), ())
    return CaseSource(
        path=image.path,
        patient="",
        files=image.files + label_files,
        read_image=partial(read_scan, image.format, image.files, options),
        read_label=partial(read_label, label.format, label_files, options) if label else None,
        label_path=label.path if label else None,
        series_uid=image.uid,
        is_dicom=image.format == "image",
        flags=tuple(dict.fromkeys(image.flags + label_flags)),
        **{name: getattr(image, name) for name in SAME_IN_CASE},
    )


def read_scan(format_: str, files: tuple[Path, ...], options: ReadOptions) -> Scan:
    """Read a series, or a file of the format ``file``, as HU; raise ``Refused`` if it cannot be."""
    if format_ == "file":
        return read_scan_file(files[0])
    volume = read_series(files, options.repair)
    return Scan(volume.image, volume.stack, flags=volume.flags)


def read_label(format_: str, files: tuple[Path, ...], options: ReadOptions, scan: Scan) -> LabelMap:
    """Read the label of a scan; raise ``Refused`` if it cannot be."""
    if format_ == "file":
        return read_label_file(files[0], options.structures, scan)
    if format_ == "image":
        return read_mask_series(files, options.repair, options.structures)
    if scan.stack is None:
        raise Refused("label_needs_dicom", "SEG and RTSTRUCT are read for DICOM images alone")
    read = read_segmentation if format_ == "seg" else read_rtstruct
    return read(files[0], scan.stack, options.structures)


def patients_of(scans: list[SourceItem]) -> dict[SourceItem, str]:
    """The patient of each series: a pattern's key, PatientID, or a folder where that is empty.

    Series of a study are of one patient, also where some or all of them have no PatientID.
    """
    named = {scan.study_uid: scan.patient_id for scan in scans if scan.patient_id}
    folders: dict[str, str] = {}
    patients = {}
    for scan in scans:
        patient = scan.folder.resolve().name if scan.key == "." else scan.key
        if scan.study_uid:
            patient = folders.setdefault(scan.study_uid, patient)
            patient = named.get(scan.study_uid, patient)
        patients[scan] = scan.key if scan.names_patient else scan.patient_id or patient
    return patients


def input_keys_of(scans: list[SourceItem]) -> dict[SourceItem, str]:
    """Text by which each scan is recognised in a later run: of a file, its path.

    Of a series it is made of header values, so that it stays where files move or more appear.
    Series without UID, or whose UID an anonymiser gave to several, are told apart by their folders.
    """
    texts = {s: "\n".join((s.uid, s.study_uid, s.patient_id, s.modality)) for s in scans}
    count = Counter(texts.values())
    locations = {scan: scan.path if scan.format == "file" else scan.folder for scan in scans}
    return {
        scan: text if scan.uid and count[text] == 1 else f"{locations[scan]}\n{text}"
        for scan, text in texts.items()
    }


def warn_of_structures(matches: list[Match]) -> list[str]:
    """A warning where labels of different names belong to the same image."""
    names = defaultdict(set)
    for match in matches:
        if match.image:
            label = match.label
            name = label.folder.name if label.format == "image" else stem_of(label.path)
            names[match.image].add(name)
    several = [shared for shared in names.values() if len(shared) > 1]
    shown = ", ".join(sorted(set().union(*several))[:MOST_NAMES])
    warning = (
        f"images with several labels: {len(several)}; give the folder, or the files by a pattern, "
        f"of one structure as source.labels: {shown}"
    )
    return [warning] if several else []


def skip(
    contents: SourceContents, located: SourceItem, kind: str, status: str, reason: str
) -> None:
    """Add the row of a series that makes no case."""
    row = SkippedFile(located.path, kind, status, reason, len(located.files))
    contents.skipped.append(row)
