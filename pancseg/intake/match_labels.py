"""Match each label with the image that it was drawn on."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath

from pancseg.dicom.series import Extent, Series, same_extent, series_extent

REFERRING = ("seg", "rtstruct")  # kinds of labels that may name their series and frame of reference


@dataclass(frozen=True, kw_only=True)
class LocatedSeries(Series):
    """A series or a label file of a source.

    The kind of NIfTI and NRRD is ``file``; the folder is absolute.

    Attributes:
        path: In the table: the folder, or the first file where other series lie in the folder.
        key: Compared as path: text of a pattern's wildcards, else the relative folder.
        names_patient: Whether the key is of a pattern, which then names the patient.
    """

    path: Path
    key: str
    names_patient: bool


def locate_file(file: Path, key: str) -> LocatedSeries:
    """An image or label file."""
    folder = file.parent
    return LocatedSeries(
        folder=folder, path=file, files=(file,), kind="file", key=key, names_patient=True
    )


@dataclass(frozen=True)
class Match:
    """A label with its image, or with a problem: reason code and sentence."""

    label: LocatedSeries
    image: LocatedSeries | None = None
    problem: str = ""


Index = dict[tuple[str, str], list[LocatedSeries]]
"""Images by kind and value of the evidence that may match them."""


def match_labels(labels: list[LocatedSeries], images: list[LocatedSeries]) -> list[Match]:
    """Find the image of each label.

    The first of these that some image fulfils decides: the SeriesInstanceUID that the label refers
    to, a common FrameOfReferenceUID, a common PatientID, a common path. Of several such images
    those of the same PatientID, then of the same grid, then of the same path are preferred. Labels
    for which several are left are refused, as are several labels of an image unless one has its
    path. Under patterns, only images of the same key are considered.
    """
    index: Index = defaultdict(list)
    for image in images:
        index["uid", image.uid].append(image)
        index["frame", image.frame_of_reference_uid].append(image)
        index["patient", image.patient_id].append(image)
        index["path", image.key].append(image)
    extent = cache(lambda series: series_extent(series.files))
    matches = [match_label(label, index, extent) for label in labels]
    claims: dict[LocatedSeries, list[Match]] = defaultdict(list)
    for match in matches:
        if match.image and not match.problem.startswith("other_patient"):
            claims[match.image].append(match)
    return [
        resolve(match, claims[match.image]) if match.image in claims else match for match in matches
    ]


def match_label(label: LocatedSeries, index: Index, extent: Callable[[Series], Extent]) -> Match:
    """Find the image of a label.

    A label whose key lies below that of one image, as ``MASKS_DICOM/liver`` beside
    ``PATIENT_DICOM``, gets that image together with the problem ``no_image``.
    """

    def find(kind: str, *values: str) -> list[LocatedSeries]:
        images = (image for value in values if value for image in index.get((kind, value), ()))
        return [image for image in images if may_belong(label, image)]

    def prefer(condition: Callable[[LocatedSeries], bool]) -> list[LocatedSeries]:
        return [image for image in found if condition(image)] or found

    found = (
        find("uid", *dict.fromkeys(label.refers_to))
        or find("frame", label.frame_of_reference_uid)
        or find("patient", label.patient_id)
        or find("path", label.key)
    )
    found = prefer(lambda image: image.patient_id == label.patient_id)
    if label.kind == "image" and len(found) > 1:
        found = prefer(lambda image: same_extent(extent(label), extent(image)))
    found = prefer(lambda image: image.key == label.key)
    if len(found) > 1:
        reason = f"ambiguous_label: {len(found)} images fit this label equally well"
        return Match(label, problem=reason)
    if found:
        reason = "other_patient: image and label carry different PatientIDs"
        same = not differ(label.patient_id, found[0].patient_id)
        return Match(label, found[0], "" if same else reason)
    missing = "; the series that it refers to is not here" if label.refers_to else ""
    reason = f"no_image: no image belongs to this label{missing}"
    above = (index.get(("path", key.as_posix())) for key in PurePosixPath(label.key).parents)
    nearest = next(filter(None, above), []) if label.kind not in REFERRING else []
    same = len(nearest) == 1 and not differ(label.patient_id, nearest[0].patient_id)
    return Match(label, nearest[0] if same else None, reason)


def may_belong(label: LocatedSeries, image: LocatedSeries) -> bool:
    """Whether neither a pattern nor the label itself names another image.

    The frame of reference of mask slices proves nothing: many tools write a new one.
    """
    if label.names_patient and image.names_patient and label.key != image.key:
        return False
    if label.kind not in REFERRING or image.uid in label.refers_to:
        return True
    frames = label.frame_of_reference_uid, image.frame_of_reference_uid
    return frames[0] == frames[1] != "" or not (label.refers_to or differ(*frames))


def differ(first: str, second: str) -> bool:
    """Whether two values are both known and different."""
    return "" != first != second != ""


def resolve(match: Match, claims: list[Match]) -> Match:
    """Decide about a label whose image other labels claim, too.

    Claims with the problem ``no_image`` count where no label belongs to the image for certain.
    """
    certain = [claim for claim in claims if not claim.problem]
    same_path = [claim for claim in certain if claim.image and claim.label.key == claim.image.key]
    winner = next((choice[0] for choice in (same_path, certain) if len(choice) == 1), None)
    if match is winner:
        return match
    if winner or len(claims) == 1:
        reason = match.problem or "no_image: the image has a label of its own path"
        return Match(match.label, problem=reason)
    reason = f"ambiguous_label: {len(claims)} labels belong to this image, expected one"
    return replace(match, problem=reason)
