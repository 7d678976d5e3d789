"""Match each label with the image that it was drawn on."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import PurePosixPath

from pancseg.dicom.series import Extent, Series, same_extent, series_extent
from pancseg.intake.types import SourceItem

Index = dict[tuple[str, str], list[SourceItem]]  # images by kind and value of an attribute
REFERRING = ("seg", "rtstruct")  # kinds of labels that may name their series and frame of reference


@dataclass(frozen=True)
class Match:
    """A label with its image, or with a problem: reason code and sentence."""

    label: SourceItem
    image: SourceItem | None = None
    problem: str = ""


def match_labels(labels: list[SourceItem], images: list[SourceItem]) -> list[Match]:
    """Find the image of each label.

    The first of these that some image fulfils decides: the SeriesInstanceUID that the label refers
    to, a common FrameOfReferenceUID, a common PatientID, a common path, the nearest folder that
    contains the label's (the root alone only where there is a single image). Of several such
    images those of the same PatientID, then of the same grid, then of the same path are preferred.
    Labels for which several are left are refused, as are several labels of an image unless one has
    its path.
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
    return [match if match.problem else resolve(match, claims[match.image]) for match in matches]


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
    if not candidates:
        missing = "; the series that it refers to is not here" if label.refers_to else ""
        return Match(label, problem=f"no_image: no image belongs to this label{missing}")
    if len(candidates) > 1:
        reason = f"ambiguous_label: {len(candidates)} images fit this label equally well"
        return Match(label, problem=reason)
    is_other = differ(label.patient_id, candidates[0].patient_id)
    reason = "other_patient: image and label carry different PatientIDs" if is_other else ""
    return Match(label, candidates[0], reason)


def may_belong(label: SourceItem, image: SourceItem) -> bool:
    """Whether neither a pattern nor the label itself names another image.

    The frame of reference of mask slices proves nothing: many tools write a new one.
    """
    is_below = f"{label.key}/".startswith(f"{image.key}/")
    if label.names_patient and image.names_patient and not is_below:
        return False
    if label.format not in REFERRING or image.uid in label.refers_to:
        return True
    frames = label.frame_of_reference_uid, image.frame_of_reference_uid
    return frames[0] == frames[1] != "" or not (label.refers_to or differ(*frames))


def differ(first: str, second: str) -> bool:
    """Whether two values are both known and different."""
    return "" != first != second != ""


def resolve(match: Match, claims: list[Match]) -> Match:
    """Decide about a label among all labels that belong to its image."""
    same_path = [claim for claim in claims if claim.image and claim.label.key == claim.image.key]
    if len(claims) == 1 or same_path == [match]:
        return match
    if len(same_path) == 1:
        return Match(match.label, problem="no_image: the image has a label of its own path")
    reason = f"ambiguous_label: {len(claims)} labels belong to this image, expected one"
    return replace(match, problem=reason)
