"""Ties: which image a label was drawn on, by the strongest evidence there is, never by a guess."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset

from pancseg.intake.headers import Series
from pancseg.intake.planes import planes_of
from pancseg.intake.stack import Repair, stack

Extent = NDArray[np.float64] | None
"""Sizes of the axes, sorted, then the lowest and the highest corner, RAS mm."""


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
    FrameOfReferenceUID, a common PatientID, a common path. Where one leaves several images, equal
    grids and then equal paths narrow it down; what is still several is refused.
    """
    grids: dict[Series, Extent] = {}

    def grid(entry: Entry) -> Extent:
        if entry.series not in grids:
            grids[entry.series] = grid_of(entry.series)
        return grids[entry.series]

    ties = [tie_one(label, images, grid) for label in labels]
    return settle(ties)


def tie_one(label: Entry, images: list[Entry], grid: Callable[[Entry], Extent]) -> Tie:
    """The image of one label."""
    own = label.series
    evidence: tuple[Callable[[Series], bool], ...] = (
        lambda one: one.uid in own.refers_to,
        lambda one: one.frame_of_reference_uid == own.frame_of_reference_uid != "",
        lambda one: one.patient_id == own.patient_id != "",
    )
    found: list[Entry] = []
    for holds in evidence:
        found = found or [image for image in images if holds(image.series)]
    found = found or [image for image in images if image.key == label.key]
    if len(found) > 1 and own.kind == "image":
        found = narrowed(found, lambda image: equal(grid(label), grid(image)))
    found = narrowed(found, lambda image: image.key == label.key)
    if not found:
        return Tie(label, problem="no_image: no image series belongs to this label")
    if len(found) > 1:
        reason = f"ambiguous_label: {len(found)} image series fit this label equally well"
        return Tie(label, problem=reason)
    theirs = found[0].series.patient_id
    if own.patient_id and theirs and own.patient_id != theirs:
        reason = "other_patient: image and mask carry different PatientIDs"
        return Tie(label, found[0], problem=reason)
    return Tie(label, found[0])


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


def grid_of(series: Series) -> Extent:
    """Extent of a series as stored, or None where it is no regular stack.

    Files that cannot be opened are told of when they are read.
    """
    try:
        planes = [plane for file in series.files for plane in planes_of(header(file), file)]
        lying = stack(planes, Repair(gaps=True, tilt=True))
    except Exception:  # a damaged header raises nearly anything
        return None
    ends = np.array(list(np.ndindex(2, 2, 2))) * (np.array(lying.shape) - 1)
    corners = nib.affines.apply_affine(lying.affine_at(lying.corner_mm), ends)
    return np.array([*sorted(lying.shape), *corners.min(axis=0), *corners.max(axis=0)])


def equal(one: Extent, other: Extent) -> bool:
    """Whether two grids are known and equal, whichever way their axes run."""
    return one is not None and other is not None and bool(np.allclose(one, other, atol=0.05))


def header(file: Path) -> Dataset:
    """A header without its pixels."""
    return pydicom.dcmread(file, stop_before_pixels=True, force=True)
