"""Cases of a source: scans with their matched labels, their patients, and the rows of the rest."""

from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

from pancseg.dicom.rtstruct import read_rtstruct
from pancseg.dicom.segmentation import read_segmentation
from pancseg.dicom.series import read_mask_series, read_series
from pancseg.errors import Refused
from pancseg.intake.match_labels import Match
from pancseg.intake.types import CaseSource, ReadOptions, Scan, SourceContents, SourceItem
from pancseg.intake.volume_files import read_label_file, read_scan_file, stem_of
from pancseg.structures import LabelMap

IMAGE_REFUSED = "image_refused: see the image's row"  # of the label of an image that is refused
NO_LABEL = "no_label: no label belongs to this image"
OTHER_SERIES = "other_series: the label belongs to another series of this patient"
MOST_NAMES = 20  # labels in a warning


def add_cases(
    contents: SourceContents,
    images: list[SourceItem],
    matches: list[Match] | None,
    options: ReadOptions,
) -> None:
    """Add cases, of every image where matches are None, rows of what makes none, and warnings."""
    by_image: dict[SourceItem, Match] = {}
    for match in matches or ():
        if match.image and (match.image not in by_image or not match.problem):
            by_image[match.image] = match
    patients, input_keys = patients_of(images), input_keys_of(images)
    labelled = {patients[image] for image in by_image}
    for image in images:
        own = by_image.get(image)
        label_problem = (own.problem or own.label.problem) if own else ""
        if problem := image.problem or label_problem:
            contents.skip(image.path, "image", "refused", problem, len(image.files))
        elif own or matches is None:
            label = own.label if own else None
            case = make_case(image, label, patients[image], input_keys[image], options)
            contents.cases.append(case)
        elif patients[image] in labelled:
            contents.skip(image.path, "image", "dropped", OTHER_SERIES, len(image.files))
        else:
            contents.skip(image.path, "image", "refused", NO_LABEL, len(image.files))
    for match in matches or ():
        image_reason = IMAGE_REFUSED if match.image and match.image.problem else ""
        if problem := match.problem or match.label.problem or image_reason:
            files = match.label.files
            contents.skip(match.label.path, "label", "refused", problem, len(files))
    contents.skipped = list(dict.fromkeys(contents.skipped))
    warn_of_structures(contents, matches or [])


def make_case(
    image: SourceItem, label: SourceItem | None, patient: str, input_key: str, options: ReadOptions
) -> CaseSource:
    """The case of an image and its label, if it has one."""
    label_files, label_flags = (label.files, label.flags) if label else ((), ())
    return CaseSource(
        path=image.path,
        patient=patient,
        files=image.files + label_files,
        read_image=partial(read_scan, image.format, image.files, options),
        read_label=partial(read_label, label.format, label_files, options) if label else None,
        label_path=label.path if label else None,
        input_key=input_key,
        study_uid=image.study_uid,
        series_uid=image.uid,
        patient_id=image.patient_id,
        manufacturer=image.manufacturer,
        contrast=image.contrast,
        is_phantom=image.is_phantom,
        is_dicom=image.format == "image",
        flags=tuple(dict.fromkeys(image.flags + label_flags)),
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
        return read_label_file(files[0], options, scan)
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


def warn_of_structures(contents: SourceContents, matches: list[Match]) -> None:
    """Warn where labels of different names belong to the same image."""
    names = defaultdict(set)
    for match in matches:
        if match.image:
            label = match.label
            name = label.folder.name if label.format == "image" else stem_of(label.path)
            names[match.image].add(name)
    if several := [shared for shared in names.values() if len(shared) > 1]:
        shown = ", ".join(sorted(set().union(*several))[:MOST_NAMES])
        contents.warnings.append(
            f"images with several labels: {len(several)}; give the folder, or the files by a "
            f"pattern, of one structure as source.labels: {shown}"
        )
