"""What a source holds: candidates to become cases, and what belongs to none."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib

from pancseg.geometry import Affine
from pancseg.intake.dicom.stack import Repair, Stack

Choice = tuple[int | str, ...] | None
"""What of a label is the organ: values, segment numbers, names or codes; None means all of it."""


@dataclass(frozen=True)
class Reading:
    """How a root is read: the same for every case in it.

    Attributes:
        choice: What of a label is the organ.
        repair: What is put on a regular grid instead of being refused.
        processes: How many look at headers at a time.
    """

    choice: Choice = None
    repair: Repair = field(default_factory=Repair)
    processes: int = 1


@dataclass(frozen=True)
class Scan:
    """An image as read.

    Attributes:
        image: HU, slice 0 nearest the feet, int16 where that loses nothing, else float32.
        stack: Where its stored slices lie; None for files that are no DICOM.
        own_affine: Of a file as it is stored, RAS, mm; None for DICOM, whose volume this is.
    """

    image: nib.Nifti1Image
    stack: Stack | None = None
    own_affine: Affine | None = None


@dataclass(frozen=True)
class Mask:
    """A label as read.

    Attributes:
        image: uint8, 0 and 1, on a grid of its own, slice 0 nearest the feet.
        undeclared: Values or structures that were found but are not part of the choice.
        flags: What a person should look at.
    """

    image: nib.Nifti1Image
    undeclared: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


ImageReader = Callable[[], Scan]
LabelReader = Callable[[Scan], Mask]


@dataclass(frozen=True)
class Candidate:
    """An image that may become a case.

    Readers are module functions bound by ``functools.partial``: they cross to other processes.

    Attributes:
        path: The image's folder or file.
        patient: Who it is, before the pseudonym.
        files: Everything that is read for it, to notice changes and to count bytes.
        read_image: Gives the image, HU.
        read_label: Gives the mask of an image, or None where there is none.
        label_path: The label's folder or file.
        identity: What it is known again by, whatever lies beside it.
        study_uid: StudyInstanceUID, to notice one study under two patients.
        patient_id: PatientID, to notice one patient under two names.
        is_phantom: Whether this is no patient, so that every table can say so.
        series_uid: SeriesInstanceUID, or empty.
        is_dicom: Whether it is a series, rather than a file.
    """

    path: Path
    patient: str
    files: tuple[Path, ...]
    read_image: ImageReader
    read_label: LabelReader | None = None
    label_path: Path | None = None
    identity: str = ""
    study_uid: str = ""
    patient_id: str = ""
    is_phantom: bool = False
    series_uid: str = ""
    is_dicom: bool = False


@dataclass(frozen=True)
class Stray:
    """A file or series that belongs to no case: its row in the table."""

    path: Path
    kind: str
    status: str
    reason: str
    slices: int | None = None


@dataclass
class Found:
    """What a source holds."""

    candidates: list[Candidate] = field(default_factory=list)
    strays: list[Stray] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
