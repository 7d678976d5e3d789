"""Values that pass between the sources, the readers and the conversion."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib

from pancseg.dicom.series import Series
from pancseg.dicom.slices import Repair, SliceStack
from pancseg.geometry import Affine
from pancseg.structures import LabelMap, Structure

IMAGE_REFUSED = "image_refused: see the image's row"
"""Reason of a label whose image was refused."""


@dataclass(frozen=True)
class ReadOptions:
    """How a root is read: the same for every case in it.

    Attributes:
        structures: What of a label is segmented.
        repair: Irregular series that are resampled instead of refused.
        processes: That read headers.
    """

    structures: tuple[Structure, ...]
    repair: Repair = field(default_factory=Repair)
    processes: int = 1


@dataclass(frozen=True)
class Scan:
    """An image as read.

    Attributes:
        image: HU, slice 0 nearest the feet, int16 where that is lossless, else float32.
        stack: Positions of the stored slices; None for NIfTI and NRRD.
        file_affine: Of the array as stored in a NIfTI or NRRD file, RAS, mm; None for DICOM.
        qform: Of a NIfTI file, where it differs from its sform.
        flags: Flags of ``intake.csv``.
    """

    image: nib.Nifti1Image
    stack: SliceStack | None = None
    file_affine: Affine | None = None
    qform: Affine | None = None
    flags: tuple[str, ...] = ()


ImageReader = Callable[[], Scan]
LabelReader = Callable[[Scan], LabelMap]


@dataclass(frozen=True)
class CaseSource:
    """An image, with its label if there is one, that may become a case.

    Readers are module functions bound by ``functools.partial``, because they are pickled.

    Attributes:
        path: Folder or file of the image, for the table.
        patient: Identity of the patient, before the pseudonym.
        files: Everything that is read, to notice changes and to count bytes.
        read_image: Returns the scan.
        read_label: Returns the label map of a scan; None for images without label.
        label_path: Folder or file of the label.
        input_key: Text by which the same input is recognised in a later run.
        study_uid: StudyInstanceUID, or empty.
        series_uid: SeriesInstanceUID, or empty.
        patient_id: PatientID, or empty.
        manufacturer: One of ``pancseg.data.manifest.MANUFACTURERS``.
        contrast: ``yes``, ``no`` or ``unknown``.
        is_phantom: Whether it is synthetic.
        is_dicom: Whether the image is a DICOM series.
        flags: Flags found before reading.
    """

    path: Path
    patient: str
    files: tuple[Path, ...]
    read_image: ImageReader
    read_label: LabelReader | None = None
    label_path: Path | None = None
    input_key: str = ""
    study_uid: str = ""
    series_uid: str = ""
    patient_id: str = ""
    manufacturer: str = "unknown"
    contrast: str = "unknown"
    is_phantom: bool = False
    is_dicom: bool = False
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class SkippedFile:
    """A file or series that belongs to no case: its row in ``intake.csv``."""

    path: Path
    kind: str  # image, label or other
    status: str  # dropped or refused
    reason: str
    slices: int | None = None


@dataclass
class SourceContents:
    """Everything that a source holds."""

    cases: list[CaseSource] = field(default_factory=list)
    skipped: list[SkippedFile] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class SourceItem(Series):
    """A series, or a file of the format ``file``, of a source; its folder is absolute.

    Attributes:
        path: In the table: the folder, or the first file where other series lie in the folder.
        key: Text that the path rule compares: what a pattern's wildcards match, relative folder,
            for files also their stem.
        names_patient: Whether the key names the patient, as under patterns and of files.
    """

    path: Path
    key: str
    names_patient: bool
