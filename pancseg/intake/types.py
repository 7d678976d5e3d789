"""Values that pass between the sources, the readers and the conversion."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib

from pancseg.dicom.series import Series
from pancseg.dicom.slices import Repair, SliceStack
from pancseg.geometry import Affine
from pancseg.structures import LabelMap, Structure


@dataclass(frozen=True)
class ReadOptions:
    """How the scans and labels of a source are read."""

    structures: tuple[Structure, ...]
    repair: Repair = field(default_factory=Repair)
    processes: int = 1  # that read headers
    declared: tuple[int, ...] = ()  # values of label files that are known, chosen or not
    ignore: int | None = None  # value of voxels in label files that nobody labelled


@dataclass(frozen=True)
class Scan:
    """An image as read."""

    image: nib.Nifti1Image  # HU, slice 0 nearest the feet, int16 where lossless, else float32
    stack: SliceStack | None = None  # positions of DICOM slices
    file_affine: Affine | None = None  # RAS, mm, of the array as stored in a NIfTI or NRRD file
    qform: Affine | None = None  # of a NIfTI file, where it differs from its sform
    flags: tuple[str, ...] = ()


LabelReader = Callable[[Scan], LabelMap]


@dataclass(frozen=True)
class CaseSource:
    """An image, with its label if there is one, that may become a case.

    Readers are module functions bound by ``functools.partial``, because they are pickled.
    """

    path: Path  # folder or file of the image, for the table
    patient: str  # identity, before the pseudonym
    files: tuple[Path, ...]  # everything that is read, to notice changes and to count bytes
    read_image: Callable[[], Scan]
    read_label: LabelReader | None = None
    label_path: Path | None = None
    input_key: str = ""  # recognises the same input in a later run
    study_uid: str = ""
    series_uid: str = ""
    patient_id: str = ""
    manufacturer: str = "unknown"  # one of MANUFACTURERS of pancseg.data.manifest
    contrast: str = "unknown"  # yes, no or unknown
    is_phantom: bool = False
    is_dicom: bool = False
    flags: tuple[str, ...] = ()  # found before reading


@dataclass(frozen=True)
class SkippedFile:
    """A file or series that belongs to no case: its row in ``intake.csv``."""

    path: Path
    kind: str  # image, label or other
    status: str  # dropped or refused
    reason: str
    slices: int = 0  # 0 where they were not counted


@dataclass
class SourceContents:
    """Everything that a source holds."""

    cases: list[CaseSource] = field(default_factory=list)
    skipped: list[SkippedFile] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def skip(self, path: Path, kind: str, status: str, reason: str, slices: int = 0) -> None:
        """Add the row of a file or series that belongs to no case."""
        self.skipped.append(SkippedFile(path, kind, status, reason, slices))


@dataclass(frozen=True, kw_only=True)
class SourceItem(Series):
    """A series, or a file of the format ``file``, of a source; its folder is absolute."""

    path: Path  # in the table: the folder, or the first file where other series lie in the folder
    key: str  # relative folder and stem of a file, or the text that wildcards of a pattern match
    names_patient: bool  # whether the key does, as under patterns and of files
