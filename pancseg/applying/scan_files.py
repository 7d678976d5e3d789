"""The files of a segmented scan, in the formats that are asked for."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from pancseg.applying.scan_segmenter import Segmented
from pancseg.dicom.slices import SliceStack
from pancseg.errors import Refused, brief, lacks_room
from pancseg.files import write_nifti
from pancseg.geometry import Affine, oriented_like
from pancseg.intake.types import CaseSource, Scan
from pancseg.output.dicom_rtstruct import write_rtstruct
from pancseg.output.dicom_seg import write_seg
from pancseg.output.prediction_table import Prediction
from pancseg.output.scan_preview import draw_scan

log = logging.getLogger(__name__)
MASK, PREVIEW, PROBABILITY = "_pancreas.nii.gz", "_preview.png", "_probability.nii.gz"
SEG, RTSTRUCT = "_pancreas.dcm", "_pancreas_rtstruct.dcm"
DicomWriter = Callable[[Path, nib.Nifti1Image, SliceStack], None]


@dataclass(frozen=True)
class ScanFiles:
    """Writes what belongs to scans.

    Attributes:
        folder: Where.
        probabilities: Whether they are written, too.
        rtstruct: Whether DICOM series get an RTSTRUCT beside the SEG.
    """

    folder: Path
    probabilities: bool = False
    rtstruct: bool = False

    def remove(self, case: str) -> None:
        """Remove what an earlier batch wrote of a case: it is of another input, or not whole."""
        for end in (MASK, SEG, RTSTRUCT, PREVIEW, PROBABILITY):
            (self.folder / f"{case}{end}").unlink(missing_ok=True)

    def write(self, case: str, scan: Scan, found: Segmented) -> dict[str, str]:
        """Write mask and probabilities, of a DICOM series SEG and RTSTRUCT, too.

        Returns:
            Why there is no SEG or RTSTRUCT of a series, by the flag that says so.
        """
        mask = nib.Nifti1Image(found.mask.view(np.uint8), scan.image.affine)
        own = scan.image.affine if scan.file_affine is None else scan.file_affine
        save(self.folder / f"{case}{MASK}", mask, own, scan.qform)
        if self.probabilities:
            p = nib.Nifti1Image(found.probability, scan.image.affine)
            save(self.folder / f"{case}{PROBABILITY}", p, own, scan.qform)
        wanted: dict[str, tuple[str, DicomWriter]] = {"seg": (SEG, write_seg)}
        if self.rtstruct:
            wanted["rtstruct"] = (RTSTRUCT, write_rtstruct)
        lacking = {}
        for name, (end, writer) in wanted.items() if scan.stack else ():
            reason = attempt(writer, self.folder / f"{case}{end}", mask, scan.stack, name)
            if reason:
                lacking[f"no_{name}"] = reason
        return lacking

    def draw(self, case: str, scan: Scan, found: Segmented, title: str) -> None:
        """Write the picture."""
        draw_scan(self.folder / f"{case}{PREVIEW}", scan.image, found.mask, title)

    def are_there(self, candidate: CaseSource, row: Prediction) -> bool:
        """Whether all that a row promises is there."""
        flags = row.flags.split()
        ends = [MASK, PREVIEW]
        if candidate.is_dicom and "no_seg" not in flags:
            ends.append(SEG)
        if self.rtstruct and candidate.is_dicom and "no_rtstruct" not in flags:
            ends.append(RTSTRUCT)
        if self.probabilities:
            ends.append(PROBABILITY)
        return all((self.folder / f"{row.case}{end}").is_file() for end in ends)


def attempt(
    writer: DicomWriter, path: Path, mask: nib.Nifti1Image, lying: SliceStack | None, name: str
) -> str:
    """Write a mask as DICOM.

    Returns:
        Why it cannot be; mostly empty.

    Raises:
        OSError: If there is no room to write.
    """
    try:
        writer(path, mask, lying)  # type: ignore[arg-type]
    except Refused as refused:
        return str(refused)
    except Exception as error:  # headers go wrong in more ways than anybody knows
        if lacks_room(error):
            raise
        log.debug("%s", path.name, exc_info=True)
        return f"{name}_failed: {type(error).__name__}: {brief(error)}"
    return ""


def save(path: Path, image: nib.Nifti1Image, affine: Affine, qform: Affine | None) -> None:
    """Write an image with the axes and the affines of its input."""
    own = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), affine)
    write_nifti(path, oriented_like(image, own), qform)
