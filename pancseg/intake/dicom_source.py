"""The source ``dicom``: CT series with labels of any form."""

from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

from pancseg.dicom.rtstruct import read_rtstruct
from pancseg.dicom.segmentation import read_segmentation
from pancseg.dicom.series import find_series, read_mask_series, read_series
from pancseg.errors import PancsegError, Refused
from pancseg.intake.match_labels import (
    REFERRING,
    LocatedSeries,
    Match,
    locate_file,
    match_labels,
)
from pancseg.intake.paths import search
from pancseg.intake.source import CaseSource, ReadOptions, Scan, SkippedFile, SourceContents
from pancseg.intake.volume_files import is_volume_file, read_label_file, read_scan_file, stem_of
from pancseg.structures import LabelMap

NOT_CT = "not_ct: Modality is not CT"
OTHER_SERIES = "other_series: the label belongs to another series of this patient"
NO_LABEL = "no_label: no label belongs to this image"
IMAGE_REFUSED = "image_refused: see the image's row"
SAME_IN_CASE = ("study_uid", "patient_id", "manufacturer", "contrast", "is_phantom")
MOST_NAMES = 20  # folders in a warning


def find_dicom(
    images: Path, labels: Path | None, modality: str, options: ReadOptions
) -> SourceContents:
    """CT series, and mask series, DICOM SEG, RTSTRUCT, NIfTI or NRRD as their labels.

    Args:
        images: Folder, file or pattern.
        labels: Likewise, or None. The same as ``images`` for SEG and RTSTRUCT among the images.
        modality: ``CT``, or ``any`` for other images too.
        options: How to read.

    Raises:
        PancsegError: If images and labels are one folder that holds neither SEG nor RTSTRUCT.
    """
    contents = SourceContents()
    found, drawn = locate_series(images, options, contents), []
    if labels is not None and images.resolve() != labels.resolve():
        drawn = locate_series(labels, options, contents, with_files=True)
    elif labels is not None:
        drawn = [each for each in found if each.kind in REFERRING]
        if not drawn:
            raise PancsegError(
                f"source.images={images}: is also source.labels, and holds no DICOM SEG or "
                "RTSTRUCT; give the folder of the labels"
            )
    found, drawn = separate(found, drawn)
    scans = sort_out_scans(contents, found, drawn, modality)
    if labels is not None and labels.is_file() and len(drawn) == len(scans) == 1:
        matches = [Match(drawn[0], scans[0])]  # whatever the file is named
    else:
        matches = match_labels(drawn, scans)
    add_cases(contents, scans, None if labels is None else matches, options)
    warn_of_shared_patient_id(contents)
    return contents


def locate_series(
    path: Path, options: ReadOptions, contents: SourceContents, *, with_files: bool = False
) -> list[LocatedSeries]:
    """Series, and NIfTI and NRRD files if wanted, that a path or pattern names.

    Rows of other files are added to the contents. A label file ``p7.nii.gz``, or the only file in
    a folder ``p7``, has the key ``p7``.
    """
    located: list[LocatedSeries] = []
    searched, rows = search(path)
    contents.skipped += rows

    for pattern_key, root, files, _ in searched:
        volumes = [file for file in files if with_files and is_volume_file(file)]
        others = [file for file in files if not (with_files and is_volume_file(file))]
        series, skipped = find_series(root, others, options.processes)
        contents.skipped += [
            SkippedFile(row.path, "other", row.status, row.reason, row.count) for row in skipped
        ]
        in_folder = Counter(each.folder for each in series if each.kind == "image")
        for each in series:
            folder, is_alone = root / each.folder, in_folder[each.folder] == 1
            path = folder if each.kind == "image" and is_alone else each.files[0]
            where = {"folder": folder, "path": path, "key": pattern_key or each.folder.as_posix()}
            is_named = bool(pattern_key)
            located.append(LocatedSeries(**vars(each) | where, names_patient=is_named))
        in_folder = Counter(file.parent for file in volumes)
        for file in volumes:
            folder = file.parent.relative_to(root)
            is_alone = folder != Path() and in_folder[file.parent] == 1
            key = (folder if is_alone else folder / stem_of(file)).as_posix()
            located.append(locate_file(file, pattern_key or key))
    return located


def separate(
    images: list[LocatedSeries], labels: list[LocatedSeries]
) -> tuple[list[LocatedSeries], list[LocatedSeries]]:
    """Where one folder contains the other, remove what both hold from the outer one."""
    image_files = {file for image in images for file in image.files}
    label_files = {file for label in labels for file in label.files}
    if len(image_files) < len(label_files):
        return images, [label for label in labels if image_files.isdisjoint(label.files)]
    return [image for image in images if label_files.isdisjoint(image.files)], labels


def sort_out_scans(
    contents: SourceContents, found: list[LocatedSeries], labels: list[LocatedSeries], modality: str
) -> list[LocatedSeries]:
    """Scans of a modality, or of ``any``, among series; rows of the others are added.

    Alone in its folder another series is refused, because somebody expects it to be read; beside a
    scan it is dropped, because archives put it there.
    """
    label_files = {file for label in labels for file in label.files}
    rows = dict.fromkeys(contents.skipped)
    contents.skipped = [row for row in rows if row.path not in label_files]
    images = [each for each in found if each.kind == "image"]
    scans = [image for image in images if modality in ("any", image.modality)]
    folders, are_scans = {scan.folder for scan in scans}, set(scans)
    for each in found:
        if each in are_scans:
            continue
        if each.kind != "image":
            skip(contents, each, "label", "dropped", f"label_among_images: {each.kind.upper()}")
        elif each.folder in folders:
            skip(contents, each, "other", "dropped", NOT_CT)
        else:
            advice = "expected CT; source.modality=any takes it"
            skip(contents, each, "image", "refused", f"{NOT_CT}, {advice}")
    return scans


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
    by_image = {match.image: match for match in matches or () if match.image}
    patients, identities = patients_of(scans), identities_of(scans)
    labelled = {patients[image] for image in by_image}
    for scan in scans:
        match = by_image.get(scan)
        label_problem = (match.problem or match.label.problem) if match else ""
        if problem := scan.problem or label_problem:
            skip(contents, scan, "image", "refused", problem)
        elif match or matches is None:
            label = match.label if match else None
            case = make_case(scan, label, patients[scan], identities[scan], options)
            contents.cases.append(case)
        elif patients[scan] in labelled:
            skip(contents, scan, "image", "dropped", OTHER_SERIES)
        else:
            skip(contents, scan, "image", "refused", NO_LABEL)
    for match in matches or ():
        is_refused = match.image and match.image.problem
        if problem := match.problem or match.label.problem or (IMAGE_REFUSED if is_refused else ""):
            skip(contents, match.label, "label", "refused", problem)
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
    """Read a series, or a file of the kind ``file``, as HU.

    Raises:
        Refused: If it cannot be read, or its slices do not form a regular stack.
    """
    if kind == "file":
        return read_scan_file(files[0])
    volume = read_series(files, options.repair)
    return Scan(volume.image, volume.stack, flags=volume.flags)


def read_label(kind: str, files: tuple[Path, ...], options: ReadOptions, scan: Scan) -> LabelMap:
    """Read the label of a scan.

    Raises:
        Refused: If it cannot be read.
    """
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
    warning = f"{len(several)} images have several labels each; name one as source.labels: {shown}"
    return [warning] * bool(several)


def warn_of_shared_patient_id(contents: SourceContents) -> None:
    """Warn where many scans have the same PatientID, as some anonymisers leave them."""
    if len(contents.cases) > 2 and len({case.patient for case in contents.cases}) == 1:
        contents.warnings.append(
            f"all {len(contents.cases)} scans have the same PatientID and count as one patient, so "
            "that no split can hold any of them out; if they are several, name them by patterns, "
            "such as source.images=DIR/*/CT source.labels=DIR/*/MASK"
        )
