"""One scan becomes a mask in every format that is asked for, or a row that says why not."""

import hashlib
import logging
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from pancseg.affine import Affine, oriented_like, spacing_of, voxel_ml
from pancseg.applying.mask_flags import Doubts, mask_flags
from pancseg.applying.scan_contours import write_contours
from pancseg.applying.scan_segmenter import ScanSegmenter, Segmented
from pancseg.atomic import replaced
from pancseg.errors import Refused
from pancseg.intake.checks.flags import Checks, flags_of
from pancseg.intake.dicom.pixels import brief
from pancseg.intake.found import Candidate, Scan
from pancseg.output.dicom_seg import write_seg
from pancseg.output.prediction_table import FAILED, REFUSED, Prediction
from pancseg.output.scan_preview import draw_scan

log = logging.getLogger(__name__)
IMAGE_CHECKS = Checks()
RTSTRUCT = "_pancreas_rtstruct.dcm"
ENDINGS = ("_pancreas.nii.gz", "_pancreas.dcm", RTSTRUCT, "_preview.png", "_probability.nii.gz")


@dataclass(frozen=True)
class ScanRun:
    """Segments scans one after the other.

    Attributes:
        segmenter: Applied to each.
        folder: Where masks are written.
        doubts: When a mask is flagged.
        probabilities: Whether they are written, too.
        rtstruct: Whether one is written of DICOM series, too.
    """

    segmenter: ScanSegmenter
    folder: Path
    doubts: Doubts
    probabilities: bool
    rtstruct: bool

    def run(self, candidate: Candidate, case: str) -> Prediction:
        """Segment a scan and write what belongs to it; nothing in it stops a batch."""
        began = time.perf_counter()
        row = Prediction(case, str(candidate.path), candidate.series_uid, input=input_of(candidate))
        try:
            self.remove(case)
            row = self.segment(candidate, row)
        except Refused as refused:
            row = replace(row, status=REFUSED, reason=str(refused))
        except Exception as error:  # one bad scan never stops a batch
            log.debug("%s", case, exc_info=True)
            row = replace(row, status=FAILED, reason=f"{type(error).__name__}: {brief(error)}")
        seconds = round(time.perf_counter() - began, 2)
        return replace(row, seconds=seconds, peak_memory_mb=peak_memory_mb())

    def remove(self, case: str) -> None:
        """Remove what an earlier batch wrote of a case: it is of another input, or not whole."""
        for end in ENDINGS:
            (self.folder / f"{case}{end}").unlink(missing_ok=True)

    def segment(self, candidate: Candidate, row: Prediction) -> Prediction:
        """Read, segment, write.

        Raises:
            Refused: If the scan cannot be read.
        """
        scan = candidate.read_image()
        found = self.segmenter.segment(scan.image)
        flags = self.flags(scan, found)
        contours = self.folder / f"{row.case}{RTSTRUCT}"
        lacking = {
            "no_seg": self.write(row.case, scan, found),
            "no_rtstruct": write_contours(contours, scan, found.mask) if self.rtstruct else "",
        }
        hu = np.asanyarray(scan.image.dataobj)
        volume_ml = int(found.mask.sum()) * voxel_ml(scan.image.affine)
        title = f"{row.case}: {volume_ml:.1f} ml, confidence {found.confidence:.2f}"
        note = f"   {', '.join(flags)}" if flags else ""
        preview = self.folder / f"{row.case}_preview.png"
        draw_scan(preview, scan.image, found.mask, f"{title}{note}   not for clinical use")
        return replace(
            row,
            reason="; ".join(filter(None, lacking.values())),
            volume_ml=round(volume_ml, 3),
            mean_hu=round(float(hu[found.mask].mean()), 1) if found.mask.any() else "",
            confidence=round(found.confidence, 4),
            flags=" ".join([*flags, *(flag for flag, reason in lacking.items() if reason)]),
        )

    def flags(self, scan: Scan, found: Segmented) -> list[str]:
        """What a person should look at, in image and mask."""
        image = scan.image
        spacing_mm = spacing_of(image.affine)
        trained_mm = self.segmenter.members[0].trained.preprocessing.spacing_mm
        of_image = flags_of(np.asanyarray(image.dataobj), None, spacing_mm, IMAGE_CHECKS)
        of_mask = mask_flags(
            found.mask,
            voxel_ml=voxel_ml(image.affine),
            confidence=found.confidence,
            spacing_mm=spacing_mm,
            network_spacing_mm=trained_mm,
            doubts=self.doubts,
        )
        return [*of_image, *of_mask]

    def write(self, case: str, scan: Scan, found: Segmented) -> str:
        """Write mask, probabilities and SEG.

        Returns:
            Why there is no SEG of a series; mostly empty.
        """
        mask = nib.Nifti1Image(found.mask.astype(np.uint8), scan.image.affine)
        own = scan.image.affine if scan.own_affine is None else scan.own_affine
        save(self.folder / f"{case}_pancreas.nii.gz", mask, own)
        if self.probabilities:
            p = nib.Nifti1Image(found.probability, scan.image.affine)
            save(self.folder / f"{case}_probability.nii.gz", p, own)
        if scan.stack is None:
            return ""
        try:
            write_seg(self.folder / f"{case}_pancreas.dcm", mask, scan.stack)
        except Refused as refused:
            return str(refused)
        except Exception as error:  # highdicom knows more ways to be unhappy with a header
            log.debug("%s", case, exc_info=True)
            return f"seg_failed: {type(error).__name__}: {brief(error)}"
        return ""

    def is_done(self, candidate: Candidate, row: Prediction) -> bool:
        """Whether an earlier batch segmented this very input, and what it wrote is there."""
        suffixes = ["_pancreas.nii.gz", "_preview.png"]
        if candidate.is_dicom and "no_seg" not in row.flags.split():
            suffixes.append("_pancreas.dcm")
        if self.rtstruct and candidate.is_dicom and "no_rtstruct" not in row.flags.split():
            suffixes.append(RTSTRUCT)
        if self.probabilities:
            suffixes.append("_probability.nii.gz")
        there = all((self.folder / f"{row.case}{end}").is_file() for end in suffixes)
        return row.input == input_of(candidate) != "" and there


def save(path: Path, image: nib.Nifti1Image, affine: Affine) -> None:
    """Write an image with its axes as those of its input."""
    own = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), affine)
    turned = oriented_like(image, own)
    stored = nib.Nifti1Image(np.asanyarray(turned.dataobj), turned.affine)
    stored.header.set_xyzt_units("mm")
    for place in (stored.set_sform, stored.set_qform):
        place(turned.affine, code="scanner")
    with replaced(path) as temporary:
        nib.save(stored, temporary)


def input_of(candidate: Candidate) -> str:
    """Hash of names, sizes and times of the files of an input; empty if they are gone."""
    try:
        told = sorted(
            f"{file.name} {(status := file.stat()).st_size} {status.st_mtime_ns}"
            for file in candidate.files
        )
    except OSError:
        return ""
    return hashlib.sha256("\n".join(told).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def peak_memory_mb() -> float | str:
    """The most memory that this process has held so far, MB; empty where nothing tells it."""
    if sys.platform == "win32":
        return ""
    import resource

    unit = 1024**2 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
