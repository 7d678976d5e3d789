"""Match each label with the image that it was drawn on, and make cases of them."""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path, PurePosixPath

from pancseg.dicom.labels import read_rtstruct, read_segmentation
from pancseg.dicom.series import (
    Extent,
    Scan,
    Series,
    SkippedFile,
    read_mask_series,
    read_series,
    same_extent,
    series_extent,
)
from pancseg.errors import Refused
from pancseg.intake.volume_files import ReadOptions, read_label_file, read_scan_file
from pancseg.structures import LabelMap

REFERRING = ("seg", "rtstruct")  # kinds of labels that may name their series and frame of reference
IMAGE_REFUSED = "image_refused: see the image's row"  # of the label of an image that is refused
MOST_NAMES = 20  # labels in a warning
NO_LABEL = "no_label: no label belongs to this image"
UNMATCHED = ("no_label", "ambiguous_label", "other_patient")  # reasons why an image has no label
OTHER_SERIES = "other_series: the label belongs to another series of this patient"


@dataclass(frozen=True, kw_only=True)
class SourceItem(Series):
    """A series, or a file of the format ``file``, of a source; its folder is absolute."""

    path: Path  # in the table: the folder, or the first file where other series lie in the folder
    key: str  # relative folder and stem of a file, or the text that wildcards of a pattern match
    names_patient: bool  # whether the key does, as under patterns and of files


@dataclass(frozen=True, kw_only=True)
class CaseSource(SourceItem):
    """An image that may become a case, with the files and flags of its label if there is one."""

    patient: str  # identity, before the pseudonym
    read_image: Callable[[], Scan]
    read_label: Callable[[Scan], LabelMap] | None = None
    label_path: Path | None = None
    input_key: str  # recognises the same input in a later run


@dataclass
class SourceContents:
    """Everything that a source holds."""

    cases: list[CaseSource] = field(default_factory=list)
    skipped: list[SkippedFile] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def skip(self, path: Path, kind: str, status: str, reason: str, slices: int = 0) -> None:
        """Add the row of a file or series that belongs to no case."""
        self.skipped.append(SkippedFile(path, kind, status, reason, slices))


@dataclass(frozen=True)
class Match:
    """A label with its image, or with a problem: reason code and sentence."""

    label: SourceItem
    image: SourceItem | None = None
    problem: str = ""


Index = dict[tuple[str, str], list[SourceItem]]  # images by kind and value of an attribute


def match_labels(labels: list[SourceItem], images: list[SourceItem]) -> list[Match]:
    """Find the image of each label.

    The first of these that some image fulfils decides: the SeriesInstanceUID that the label refers
    to, a common FrameOfReferenceUID, a common PatientID, a common path, the nearest folder that
    contains the label's. Of several such images those of the same PatientID, then of the same grid,
    then of the same path are preferred. Labels for which several are left are refused, as are
    several labels of an image unless one has its path.
    """
    index: Index = defaultdict(list)
    for image in images:
        index["uid", image.uid].append(image)
        index["frame", image.frame_of_reference_uid].append(image)
        index["patient", image.patient_id].append(image)
        index["path", image.key].append(image)
        index["only", image.key] += [image] if len(images) == 1 else []
    extent = cache(lambda series: series_extent(series.files))
    matches = [match_label(label, index, extent) for label in labels]
    claims: dict[SourceItem | None, list[Match]] = defaultdict(list)
    for match in matches:
        claims[None if match.problem else match.image].append(match)
    for n, match in enumerate(matches):
        same_image = [] if match.problem else claims[match.image]
        same_path = [m for m in same_image if m.image and m.label.key == m.image.key]
        if len(same_image) < 2 or same_path == [match]:
            continue
        if len(same_path) == 1:
            reason = "no_image: the image has a label of its own path"
            matches[n] = Match(match.label, problem=reason)
        else:
            reason = f"ambiguous_label: {len(same_image)} labels belong to this image, expected 1"
            matches[n] = replace(match, problem=reason)
    return matches


def match_label(label: SourceItem, index: Index, extent: Callable[[Series], Extent]) -> Match:
    """Find the image of a label."""

    def find(kind: str, *values: str) -> list[SourceItem]:
        images = (image for value in values if value for image in index.get((kind, value), ()))
        return [image for image in images if may_belong(label, image)]

    def prefer(condition: Callable[[SourceItem], bool]) -> list[SourceItem]:
        return [image for image in candidates if condition(image)] or candidates

    candidates = (
        find("uid", *dict.fromkeys(label.refers_to))
        or find("frame", label.frame_of_reference_uid)
        or find("patient", label.patient_id)
        or find("path", label.key)
    )
    above = (find("path", str(key)) for key in PurePosixPath(label.key).parents[:-1])
    candidates = candidates or next(filter(None, above), find("only", "."))
    candidates = prefer(lambda image: image.patient_id == label.patient_id)
    if label.format == "image" and len(candidates) > 1:
        candidates = prefer(lambda image: same_extent(extent(label), extent(image)))
    candidates = prefer(lambda image: image.key == label.key)
    if len(candidates) == 1:
        ids = {label.patient_id, candidates[0].patient_id} - {""}
        problem = "other_patient: image and label carry different PatientIDs" * (len(ids) > 1)
        return Match(label, candidates[0], problem)
    problem = f"ambiguous_label: {len(candidates)} images fit this label equally well"
    if not candidates:
        missing = "; the series that it refers to is not here" if label.refers_to else ""
        problem = f"no_image: no image belongs to this label{missing}"
    return Match(label, problem=problem)


def may_belong(label: SourceItem, image: SourceItem) -> bool:
    """Whether neither a pattern nor the label itself names another image."""
    is_below = f"{label.key}/".startswith(f"{image.key}/")
    if label.names_patient and image.names_patient and not is_below:
        return False
    if label.format not in REFERRING or image.uid in label.refers_to:
        return True
    # only of these: many tools write a new frame of reference into mask slices
    frames = label.frame_of_reference_uid, image.frame_of_reference_uid
    return frames[0] == frames[1] != "" or not (label.refers_to or all(frames))


def add_cases(
    contents: SourceContents,
    images: list[SourceItem],
    matches: list[Match] | None,
    options: ReadOptions,
) -> None:
    """Add cases, of every image where matches are None, and rows of what makes none."""
    by_image: dict[SourceItem, Match] = {}
    for match in matches or ():
        if match.image and (match.image not in by_image or not match.problem):
            by_image[match.image] = match
    patients, input_keys = patients_of(images), input_keys_of(images)
    labelled = {patients[image] for image in by_image}
    for image in images:
        own = by_image.get(image)
        label_problem = (own.problem or own.label.problem) if own else ""
        status, reason = "refused", image.problem or label_problem or NO_LABEL
        if reason == NO_LABEL and (own or matches is None):
            label = own.label if own else None
            files, flags = (label.files, label.flags) if label else ((), ())
            both = {
                "files": image.files + files,
                "flags": tuple(dict.fromkeys(image.flags + flags)),
            }
            case = CaseSource(
                **vars(image) | both,
                patient=patients[image],
                read_image=partial(read_scan, image.format, image.files, options),
                read_label=partial(read_label, label.format, files, options) if label else None,
                label_path=label.path if label else None,
                input_key=input_keys[image],
            )
            contents.cases.append(case)
            continue
        if reason == NO_LABEL and patients[image] in labelled:
            status, reason = "dropped", OTHER_SERIES
        contents.skip(image.path, "image", status, reason, len(image.files))
    for match in matches or ():
        image_reason = IMAGE_REFUSED if match.image and match.image.problem else ""
        if reason := match.problem or match.label.problem or image_reason:
            label = match.label
            contents.skip(label.path, "label", "refused", reason, len(label.files))
    contents.skipped = list(dict.fromkeys(contents.skipped))
    ambiguous = [m.label for m in matches or () if m.image and m.problem.startswith("ambiguous")]
    names = {item.folder.name if item.format == "image" else item.path.name for item in ambiguous}
    if len(names) > 1:
        advice = "give the folder, or the files by a pattern, of one structure as source.labels"
        shown = ", ".join(sorted(names)[:MOST_NAMES])
        contents.warnings.append(f"images with several labels; {advice}: {shown}")


def read_scan(format_: str, files: tuple[Path, ...], options: ReadOptions) -> Scan:
    """Read a series, or a file of the format ``file``, as HU; raise ``Refused`` if it cannot be."""
    return read_scan_file(files[0]) if format_ == "file" else read_series(files, options.repair)


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
    """The patient of each series: a pattern's key, PatientID, or a folder where that is empty."""
    named = {scan.study_uid: scan.patient_id for scan in scans if scan.patient_id}
    patients = {}
    for scan in scans:
        patient = scan.folder.resolve().name if scan.key == "." else scan.key
        if scan.study_uid:  # its series are of one patient, also those without PatientID
            patient = named.setdefault(scan.study_uid, patient)
        patients[scan] = scan.key if scan.names_patient else scan.patient_id or patient
    return patients


def input_keys_of(scans: list[SourceItem]) -> dict[SourceItem, str]:
    """Text by which each scan is recognised in a later run: of a file, its path."""
    texts = {s: "\n".join((s.uid, s.study_uid, s.patient_id, s.modality)) for s in scans}
    count = Counter(texts.values())
    locations = {scan: scan.path if scan.format == "file" else scan.folder for scan in scans}
    return {
        scan: text if scan.uid and count[text] == 1 else f"{locations[scan]}\n{text}"
        for scan, text in texts.items()
    }
