"""Ties: which image a label was drawn on, by the strongest evidence there is, never by a guess."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pancseg.intake.dicom.extent import Extent, equal, extent_of
from pancseg.intake.dicom.headers import Series
from pancseg.intake.dicom.stack import Repair

WAYS = ("uid", "frame", "patient", "key")


@dataclass(frozen=True)
class Entry:
    """A series and where it was found.

    Attributes:
        series: The series.
        root: The folder that was searched.
        key: What the path rule compares: wildcards of a pattern, else the relative folder.
        names_patient: Whether the key came from a pattern, which then names the patient.
    """

    series: Series
    root: Path
    key: str
    names_patient: bool = False

    @property
    def folder(self) -> Path:
        """The folder that the files lie in."""
        return self.root / self.series.folder


@dataclass(frozen=True)
class Tie:
    """A label with its image, or why there is none.

    Attributes:
        label: The label.
        image: Its image.
        problem: Reason code and sentence, empty where there is an image.
    """

    label: Entry
    image: Entry | None = None
    problem: str = ""


def tie(labels: list[Entry], images: list[Entry]) -> list[Tie]:
    """Find the image of each label.

    Evidence, strongest first: the SeriesInstanceUID that a label refers to, a common
    FrameOfReferenceUID, a common PatientID, a common path. Where one leaves several images, the
    PatientID, equal grids and then equal paths narrow it down; what is still several is refused.
    Under patterns only images of the same key come into question.
    """
    extents: dict[Series, Extent] = {}

    def extent(entry: Entry) -> Extent:
        if entry.series not in extents:
            extents[entry.series] = extent_of(entry.series.files, Repair(gaps=True, tilt=True))
        return extents[entry.series]

    index = Index(images)
    return settle([tie_one(label, index, extent) for label in labels])


class Index:
    """Images by what may tie a label to them: each label is held against few of thousands.

    Args:
        images: In order.
    """

    def __init__(self, images: list[Entry]) -> None:
        self.by: dict[tuple[str, str], list[Entry]] = {}
        for image in images:
            one = image.series
            ways = (one.uid, one.frame_of_reference_uid, one.patient_id, image.key)
            for way, value in zip(WAYS, ways, strict=True):
                self.by.setdefault((way, value), []).append(image)

    def of(self, way: str, value: str) -> list[Entry]:
        """Images with this value."""
        return self.by.get((way, value), [])

    def choices(self, label: Entry) -> Iterator[list[Entry]]:
        """Images that a label may belong to, by the strongest evidence first."""
        own, frame = label.series, label.series.frame_of_reference_uid
        yield [image for uid in dict.fromkeys(own.refers_to) for image in self.of("uid", uid)]
        yield self.of("frame", frame) if frame else []
        yield self.of("patient", own.patient_id) if own.patient_id else []
        yield self.of("key", label.key)


def tie_one(label: Entry, images: Index, extent: Callable[[Entry], Extent]) -> Tie:
    """The image of one label."""
    own = label.series

    def may_be(image: Entry) -> bool:
        # a pattern says whose it is, whatever the headers say
        other = label.names_patient and image.names_patient and image.key != label.key
        return not (other or contradicts(own, image.series))

    choices = (list(filter(may_be, choice)) for choice in images.choices(label))
    found = next((choice for choice in choices if choice), [])
    found = narrowed(found, lambda image: image.series.patient_id == own.patient_id)
    if len(found) > 1 and own.kind == "image":
        found = narrowed(found, lambda image: equal(extent(label), extent(image)))
    found = narrowed(found, lambda image: image.key == label.key)
    if not found:
        elsewhere = "; the series that it refers to is not here" if own.refers_to else ""
        return Tie(label, problem=f"no_image: no image series belongs to this label{elsewhere}")
    if len(found) > 1:
        reason = f"ambiguous_label: {len(found)} image series fit this label equally well"
        return Tie(label, problem=reason)
    theirs = found[0].series.patient_id
    if own.patient_id and theirs and own.patient_id != theirs:
        reason = "other_patient: image and mask carry different PatientIDs"
        return Tie(label, found[0], problem=reason)
    return Tie(label, found[0])


def contradicts(label: Series, image: Series) -> bool:
    """Whether a label says itself that it was drawn on something else.

    A series of mask slices says nothing of the kind: tools give it a frame of its own.
    """
    if label.kind not in ("seg", "rtstruct") or image.uid in label.refers_to:
        return False
    frames = (label.frame_of_reference_uid, image.frame_of_reference_uid)
    return not same_frame(label, image) and (bool(label.refers_to) or all(frames))


def same_frame(label: Series, image: Series) -> bool:
    """Whether two series share a frame of reference that is known."""
    return label.frame_of_reference_uid == image.frame_of_reference_uid != ""


def settle(ties: list[Tie]) -> list[Tie]:
    """Where several labels claim one image, let the one of the same path have it, or refuse all."""
    claims: dict[Series, list[Tie]] = {}
    for one in ties:
        if one.image and not one.problem:
            claims.setdefault(one.image.series, []).append(one)
    settled = []
    for one in ties:
        rivals = claims.get(one.image.series, []) if one.image and not one.problem else []
        if len(rivals) < 2:
            settled.append(one)
            continue
        at_home = [rival for rival in rivals if rival.label.key == rival.image.key]  # type: ignore[union-attr]
        if len(at_home) != 1:
            reason = f"ambiguous_label: {len(rivals)} labels belong to this image, expected one"
            settled.append(Tie(one.label, one.image, reason))
        elif one is at_home[0]:
            settled.append(one)
        else:
            reason = "no_image: the image it fits has a label of its own path"
            settled.append(Tie(one.label, problem=reason))
    return settled


def narrowed(found: list[Entry], holds: Callable[[Entry], bool]) -> list[Entry]:
    """Those of several for which a further evidence holds; all where it holds for none."""
    if len(found) < 2:
        return found
    return [one for one in found if holds(one)] or found
