"""The source ``dicom``, CT series with labels of any form; and cases of all sources."""

from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

from pancseg.dicom.rtstruct import read_rtstruct
from pancseg.dicom.segmentation import read_segmentation
from pancseg.dicom.series import read_mask_series, read_series
from pancseg.errors import PancsegError, Refused
from pancseg.intake.match_labels import REFERRING, Match, match_labels
from pancseg.intake.paths import LocatedSeries, locate_files, locate_series
from pancseg.intake.source import (
    IMAGE_REFUSED,
    CaseSource,
    ReadOptions,
    Scan,
    SkippedFile,
    SourceContents,
)
from pancseg.intake.volume_files import read_label_file, read_scan_file, stem_of
from pancseg.structures import LabelMap

NOT_CT = "not_ct: Modality is not CT"
EXPECTED_CT = "expected CT; source.modality=any takes it"
OTHER_SERIES = "other_series: the label belongs to another series of this patient"
NO_LABEL = "no_label: no label belongs to this image"

SAME_IN_CASE = ("study_uid", "patient_id", "manufacturer", "contrast", "is_phantom")
MOST_NAMES = 20  # labels in a warning


def find_dicom(
    images: Path, labels: Path | None, modality: str, options: ReadOptions
) -> SourceContents:
    """CT series, and mask series, DICOM SEG, RTSTRUCT, NIfTI or NRRD as their labels.

    Paths may be patterns. Labels may be None, or the same path for SEG and RTSTRUCT among the
    images; the modality may be ``any``.

    Raises:
        PancsegError: If images and labels are one folder that holds neither SEG nor RTSTRUCT.
    """
    contents = SourceContents()
    located = locate_both(images, labels, options, contents)
    scans, drawn = sort_out_scans(contents, *located, modality)
    if labels is not None and labels.is_file() and len(drawn) == len(scans) == 1:
        matches = [Match(drawn[0], scans[0])]  # whatever the file is named
    else:
        matches = match_labels(drawn, scans)
    add_cases(contents, scans, None if labels is None else matches, options)
    if len(contents.cases) > 2 and len({case.patient for case in contents.cases}) == 1:
        contents.warnings.append(
            f"all {len(contents.cases)} scans have the same PatientID and count as one patient, so "
            "that no split can hold any of them out; if they are several, name them by patterns, "
            "such as source.images=DIR/*/CT source.labels=DIR/*/MASK"
        )
    return contents


def locate_both(
    images: Path, labels: Path | None, options: ReadOptions, contents: SourceContents
) -> tuple[list[LocatedSeries], list[LocatedSeries]]:
    """Series of images; and files and series of labels.

    Raises:
        PancsegError: If both are one folder that holds neither SEG nor RTSTRUCT.
    """
    if labels is None or images.resolve() != labels.resolve():
        drawn = locate_files(labels, "", contents) if labels else []
        label_files = {label.path for label in drawn}
        found = locate_series(images, options, contents, label_files)
        drawn += locate_series(labels, options, contents, label_files) if labels else []
        return found, drawn
    found = locate_series(images, options, contents)
    if drawn := [each for each in found if each.kind in REFERRING]:
        return found, drawn
    raise PancsegError(
        f"source.images={images}: is also source.labels, and holds no DICOM SEG or RTSTRUCT; give "
        "the folder of the labels"
    )


def sort_out_scans(
    contents: SourceContents, found: list[LocatedSeries], labels: list[LocatedSeries], modality: str
) -> tuple[list[LocatedSeries], list[LocatedSeries]]:
    """Scans of a modality, or of ``any``, among series; and labels. Rows of others are added.

    Where the folder of images contains that of labels or the other way round, files of both belong
    to the inner one. Alone in its folder, a series that is no scan is refused, because somebody
    expects it to be read; beside a scan it is dropped, because archives put it there.
    """
    image_files = {file for image in found for file in image.files}
    label_files = {file for label in labels for file in label.files}
    if len(image_files) < len(label_files):
        labels = [label for label in labels if image_files.isdisjoint(label.files)]
    else:
        found = [image for image in found if label_files.isdisjoint(image.files)]
    is_scan = {each: each.kind == "image" and modality in ("any", each.modality) for each in found}
    scans = [each for each in found if is_scan[each]]
    folders = {scan.folder for scan in scans}
    for each in (each for each in found if not is_scan[each]):
        if each.kind != "image":
            skip(contents, each, "label", "dropped", f"label_among_images: {each.kind.upper()}")
        elif each.folder in folders:
            skip(contents, each, "other", "dropped", NOT_CT)
        else:
            skip(contents, each, "image", "refused", f"{NOT_CT}, {EXPECTED_CT}")
    return scans, labels


def skip(
    contents: SourceContents, located: LocatedSeries, kind: str, status: str, reason: str
) -> None:
    """Add the row of a series that makes no case."""
    row = SkippedFile(located.path, kind, status, reason, len(located.files))
    contents.skipped.append(row)


def add_cases(
    contents: SourceContents,
    scans: list[LocatedSeries],
    matches: list[Match] | None,
    options: ReadOptions,
) -> None:
    """Add cases, rows of scans and labels that make none, and warnings.

    Without matches every scan is a case.
    """
    by_image: dict[LocatedSeries, Match] = {}
    for each in matches or ():
        if each.image and (each.image not in by_image or not each.problem):
            by_image[each.image] = each
    patients, identities = patients_of(scans), identities_of(scans)
    labelled = {patients[image] for image in by_image}
    for scan in scans:
        match = by_image.get(scan)
        label = match.label if match else None
        label_problem = (match.problem or match.label.problem) if match else ""
        if problem := scan.problem or label_problem:
            skip(contents, scan, "image", "refused", problem)
        elif label or matches is None:
            case = make_case(scan, label, patients[scan], identities[scan], options)
            contents.cases.append(case)
        elif patients[scan] in labelled:
            skip(contents, scan, "image", "dropped", OTHER_SERIES)
        else:
            skip(contents, scan, "image", "refused", NO_LABEL)
    for each in matches or ():
        image_reason = IMAGE_REFUSED if each.image and each.image.problem else ""
        if problem := each.problem or each.label.problem or image_reason:
            skip(contents, each.label, "label", "refused", problem)
    contents.skipped = list(dict.fromkeys(contents.skipped))
    contents.warnings += warn_of_structures(matches or [])


def make_case(
    scan: LocatedSeries,
    label: LocatedSeries | None,
    patient: str,
    identity: str,
    options: ReadOptions,
) -> CaseSource:
    """The case of a scan and its label, if it has one."""
    label_files, label_flags = (label.files, label.flags) if label else ((), ())
    return CaseSource(
        path=scan.path,
        patient=patient,
        files=scan.files + label_files,
        read_image=partial(read_scan, scan.kind, scan.files, options),
        read_label=partial(read_label, label.kind, label_files, options) if label else None,
        label_path=label.path if label else None,
        identity=identity,
        series_uid=scan.uid,
        is_dicom=scan.kind == "image",
        flags=tuple(dict.fromkeys(scan.flags + label_flags)),
        **{name: getattr(scan, name) for name in SAME_IN_CASE},
    )


def read_scan(kind: str, files: tuple[Path, ...], options: ReadOptions) -> Scan:
    """Read a series, or a file of the kind ``file``, as HU; raise ``Refused`` if it cannot be."""
    if kind == "file":
        return read_scan_file(files[0])
    volume = read_series(files, options.repair)
    return Scan(volume.image, volume.stack, flags=volume.flags)


def read_label(kind: str, files: tuple[Path, ...], options: ReadOptions, scan: Scan) -> LabelMap:
    """Read the label of a scan; raise ``Refused`` if it cannot be."""
    if kind == "file":
        return read_label_file(files[0], options.structures, scan)
    if kind == "image":
        return read_mask_series(files, options.repair, options.structures)
    if scan.stack is None:
        raise Refused("label_needs_dicom", "SEG and RTSTRUCT are read for DICOM images alone")
    read = read_segmentation if kind == "seg" else read_rtstruct
    return read(files[0], scan.stack, options.structures)


def patients_of(scans: list[LocatedSeries]) -> dict[LocatedSeries, str]:
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


def identities_of(scans: list[LocatedSeries]) -> dict[LocatedSeries, str]:
    """Text by which each scan is recognised in a later run: of a file, its path.

    Of a series it is made of header values, so that it stays where files move or more appear.
    Series without UID, or whose UID an anonymiser gave to several, are told apart by their folders.
    """
    texts = {s: "\n".join((s.uid, s.study_uid, s.patient_id, s.modality)) for s in scans}
    count = Counter(texts.values())
    places = {scan: scan.path if scan.kind == "file" else scan.folder for scan in scans}
    return {
        scan: text if scan.uid and count[text] == 1 else f"{places[scan]}\n{text}"
        for scan, text in texts.items()
    }


def warn_of_structures(matches: list[Match]) -> list[str]:
    """A warning where labels of different names belong to the same image."""
    names = defaultdict(set)
    for match in matches:
        if match.image:
            label = match.label
            name = label.folder.name if label.kind == "image" else stem_of(label.path)
            names[match.image].add(name)
    several = [shared for shared in names.values() if len(shared) > 1]
    shown = ", ".join(sorted(set().union(*several))[:MOST_NAMES])
    warning = (
        f"images with several labels: {len(several)}; give the folder, or the files by a pattern, "
        f"of one structure as source.labels: {shown}"
    )
    return [warning] if several else []
