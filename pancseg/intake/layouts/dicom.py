"""The ``dicom`` layout: CT series at any depth, tied to labels of any form."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from pancseg.errors import PancsegError
from pancseg.intake.dicom.finding import find_series
from pancseg.intake.dicom.headers import Series
from pancseg.intake.dicom.series import read_ct, read_mask_series
from pancseg.intake.found import Candidate, Found, LabelReader, Mask, Reading, Scan, Stray
from pancseg.intake.labels.contours import read_contours
from pancseg.intake.labels.nrrd import read_nrrd_mask
from pancseg.intake.labels.segmentation import read_segmentation
from pancseg.intake.layouts.patients import one_for_all, stand_ins, study_of
from pancseg.intake.layouts.places import places_of
from pancseg.intake.layouts.ties import Entry, Tie, tie
from pancseg.intake.nifti.reading import IS_NIFTI, find_nifti, read_nifti_mask, stem_of
from pancseg.intake.walk import files_under, is_fork

SeriesIn = Mapping[Path, int]
FileReader = Callable[[Path, Reading, Scan], Mask]
READERS: dict[str, FileReader] = {"seg": read_segmentation, "rtstruct": read_contours}
FILE_READERS: dict[str, FileReader] = {"nifti": read_nifti_mask, "nrrd": read_nrrd_mask}


def find_dicom(images: Path, labels: Path | None, modality: str, reading: Reading) -> Found:
    """CT series, and mask series, DICOM SEG, RTSTRUCT, NIfTI or NRRD drawn on them.

    The patient is the PatientID; where an anonymiser emptied it, the folder of the study's first
    series; under a pattern, what its wildcards stand for. SEG and RTSTRUCT may lie among the
    images: give the same folder for both.

    Args:
        images: Folder, file or pattern.
        labels: Likewise, or None.
        modality: ``CT``, or ``any`` to take other images too.
        reading: How to read.
    """
    together = labels is not None and images.resolve() == labels.resolve()
    entries, strays = look(images, reading.processes)
    label_entries, label_strays = (
        ([], []) if labels is None or together else look(labels, reading.processes)
    )
    if together:
        label_entries = [entry for entry in entries if entry.series.kind in READERS]
        check_apart(images, label_entries)
    elif labels is not None:
        label_entries += file_entries(labels)
    found = Found(strays=[*strays, *label_strays])
    entries, label_entries = apart(entries, label_entries)
    held = {file for entry in label_entries for file in entry.series.files}
    found.strays = [one for one in found.strays if one.path not in held]
    scans = [entry for entry in entries if is_scan(entry.series, modality)]
    others = [entry for entry in entries if not is_scan(entry.series, modality)]
    found.strays += no_scans(others, scans, series_in(entries))
    if labels is not None and labels.is_file() and len(label_entries) == len(scans) == 1:
        ties = [Tie(label_entries[0], scans[0])]  # one file for one series, whatever their names
    else:
        ties = tie(label_entries, scans)
    take(found, scans, ties, labels is not None, reading)
    if warning := one_for_all(found.candidates):
        found.warnings.append(warning)
    return found


def apart(images: list[Entry], labels: list[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Give what was found among both, where one folder lies in the other, to the narrower one."""
    ours, theirs = ({f for one in side for f in one.series.files} for side in (images, labels))
    if len(ours) < len(theirs):
        return images, [one for one in labels if ours.isdisjoint(one.series.files)]
    return [one for one in images if theirs.isdisjoint(one.series.files)], labels


def look(path: Path, processes: int) -> tuple[list[Entry], list[Stray]]:
    """Series and strays of every place that a path or pattern names."""
    entries: list[Entry] = []
    strays: list[Stray] = []
    seen: set[Path] = set()
    for place in places_of(path):
        series, left = find_series(place.path, processes)
        base = place.path if place.path.is_dir() else place.path.parent
        for one in series:
            if seen.isdisjoint(one.files):  # folders that a ** names lie in each other
                key = place.key or one.folder.as_posix()
                entries.append(Entry(one, base, key, bool(place.key)))
                seen.update(one.files)
        strays += left
    return entries, list(dict.fromkeys(strays))


def file_entries(labels: Path) -> list[Entry]:
    """NIfTI and NRRD labels: ``p7.nii.gz``, or alone in a folder ``p7``, go with folder ``p7``."""
    entries = []
    for place in places_of(labels):
        base = place.path if place.path.is_dir() else place.path.parent
        files = find_nifti(place.path) + find_nrrd(place.path)
        files_in = Counter(file.parent for file in files)
        for file in files:
            kind = "nifti" if IS_NIFTI.search(file.name) else "nrrd"
            folder = file.parent.relative_to(base)
            alone = folder != Path() and files_in[file.parent] == 1
            key = place.key or (folder if alone else folder / stem_of(file)).as_posix()
            series = Series(folder, "", "", "", "", "", kind, False, (file,))
            entries.append(Entry(series, base, key, bool(place.key)))
    return entries


def find_nrrd(root: Path) -> list[Path]:
    """NRRD files at any depth of a folder, or the file itself."""
    is_nrrd = [file for file in files_under(root) if file.suffix.lower() in (".nrrd", ".nhdr")]
    return [file for file in is_nrrd if not is_fork(file)]


def is_scan(series: Series, modality: str) -> bool:
    """Whether a series is an image of the kind that is wanted."""
    return series.kind == "image" and modality in ("any", series.modality)


def no_scans(others: list[Entry], scans: list[Entry], neighbours: SeriesIn) -> list[Stray]:
    """Rows of series that are no images of the kind that is wanted."""
    beside = {scan.folder for scan in scans}
    return [no_scan(entry, entry.folder in beside, neighbours) for entry in others]


def no_scan(entry: Entry, beside: bool, neighbours: SeriesIn) -> Stray:
    """The row of a series that is no image of the kind that is wanted.

    Alone in its folder it is refused, for somebody meant it to be read; beside a scan it is what
    archives put there.
    """
    series = entry.series
    if series.kind != "image":
        return stray(entry, "label", "dropped", f"label_among_images: {series.kind.upper()}")
    reason = f"not_ct: modality is {series.modality or 'empty'}"
    if beside:
        return stray(entry, "other", "dropped", reason, neighbours)
    advice = ", expected CT; source.modality=any takes it"
    return stray(entry, "image", "refused", reason + advice, neighbours)


def take(
    found: Found, scans: list[Entry], ties: list[Tie], wants_labels: bool, reading: Reading
) -> None:
    """Enter scans as candidates or as strays, and labels that have no image as strays."""
    partners = {one.image.series: one for one in ties if one.image}
    tied_studies = {study_of(one.image) for one in ties if one.image}
    patients, beside = stand_ins(scans), series_in(scans)
    labels = series_in([one.label for one in ties])
    for scan in scans:
        one = partners.get(scan.series)
        problem = scan.series.problem or (one.problem or one.label.series.problem if one else "")
        if problem:
            found.strays.append(stray(scan, "image", "refused", problem, beside))
            if one and not one.problem:
                reason = one.label.series.problem or "image_refused: see the image's row"
                found.strays.append(stray(one.label, "label", "refused", reason, labels))
        elif one or not wants_labels:
            label = (one.label, place_of(one.label, labels)) if one else None
            places = (place_of(scan, beside), label)
            found.candidates.append(candidate(scan, patients[scan.series], *places, reading))
        elif study_of(scan) in tied_studies:
            reason = "other_series: the label belongs to another series of this patient"
            found.strays.append(stray(scan, "image", "dropped", reason, beside))
        else:
            reason = "no_label: no label belongs to this series"
            found.strays.append(stray(scan, "image", "refused", reason, beside))
    found.strays += [
        stray(one.label, "label", "refused", one.problem, labels) for one in ties if one.problem
    ]


def candidate(
    scan: Entry, patient: str, path: Path, label: tuple[Entry, Path] | None, reading: Reading
) -> Candidate:
    """A scan and, where there is one, its label with its place."""
    series, (drawn, label_path) = scan.series, label or (None, None)
    return Candidate(
        path=path,
        patient=patient,
        files=series.files + (drawn.series.files if drawn else ()),
        read_image=partial(read_ct, series.files, reading),
        read_label=reader_of(drawn.series, reading) if drawn else None,
        label_path=label_path,
        identity="\n".join((str(scan.folder), series.uid, series.patient_id, series.modality)),
        study_uid=series.study_uid,
        patient_id=series.patient_id,
        is_phantom=series.is_phantom,
        series_uid=series.uid,
        is_dicom=True,
    )


def reader_of(series: Series, reading: Reading) -> LabelReader:
    """What reads a label of this form."""
    if series.kind == "image":
        return partial(read_mask_series, series.files, reading)
    read = (READERS | FILE_READERS)[series.kind]
    return partial(read, series.files[0], reading)


def stray(
    entry: Entry, kind: str, status: str, reason: str, neighbours: SeriesIn | None = None
) -> Stray:
    """The row of a series that makes no case."""
    files = entry.series.files
    return Stray(place_of(entry, neighbours or {}), kind, status, reason, len(files))


def series_in(entries: Iterable[Entry]) -> SeriesIn:
    """How many of some series each folder holds."""
    return Counter(entry.folder for entry in entries)


def place_of(entry: Entry, neighbours: SeriesIn) -> Path:
    """What names a series in the table: its folder, or its first file where it shares that."""
    shared = neighbours.get(entry.folder, 0) != 1
    is_file = entry.series.kind not in ("image",)
    return entry.series.files[0] if shared or is_file else entry.folder


def check_apart(images: Path, labels: list[Entry]) -> None:
    """Check that one folder for both holds labels that cannot be mistaken for images.

    Raises:
        PancsegError: If a CT would be its own mask.
    """
    if not labels:
        raise PancsegError(
            f"source.images={images}: is given for source.labels too, and holds no DICOM SEG or "
            "RTSTRUCT; give the labels' own folder"
        )
