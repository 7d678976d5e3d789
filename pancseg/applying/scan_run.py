"""One scan becomes a mask in every format that is asked for, or a row that says why not."""

import errno
import hashlib
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from pancseg.affine import Affine, oriented_like, spacing_of, voxel_ml
from pancseg.applying.mask_flags import Doubts, in_order, mask_flags
from pancseg.applying.scan_segmenter import ScanSegmenter, Segmented
from pancseg.bounding_box import bounding_box
from pancseg.errors import Incomplete, Refused
from pancseg.intake.checks.flags import Checks, flags_of
from pancseg.intake.dicom.pixels import brief
from pancseg.intake.found import Candidate, Scan
from pancseg.nifti_file import write_nifti
from pancseg.output.dicom_seg import write_seg
from pancseg.output.prediction_table import DONE, FAILED, REFUSED, Prediction
from pancseg.output.scan_preview import draw_scan

log = logging.getLogger(__name__)
IMAGE_CHECKS = Checks()
ENDINGS = ("_pancreas.nii.gz", "_pancreas.dcm", "_preview.png", "_probability.nii.gz")
LARGE_MB = 300  # of HU: two such scans at a time are not held
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Job:
    """A scan, and the name of its files."""

    candidate: Candidate
    case: str


@dataclass
class Progress:
    """How far a scan has come.

    Attributes:
        job: What it is.
        row: Of the table, as far as it is known.
        scan: Once it was read.
        found: Once it was segmented.
        seconds: Spent on it so far, waiting left out.
    """

    job: Job
    row: Prediction
    scan: Scan | None = None
    found: Segmented | None = None
    seconds: float = 0.0

    @property
    def is_large(self) -> bool:
        """Whether it is alone in memory."""
        return self.scan is not None and np.asanyarray(self.scan.image.dataobj).nbytes > (
            LARGE_MB * 2**20
        )

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count the time, and make a failure a row: one bad scan never stops a batch."""
        began = time.perf_counter()
        try:
            yield
        except Refused as refused:
            self.row = replace(self.row, status=REFUSED, reason=str(refused))
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise
            log.debug("%s", self.job.case, exc_info=True)
            reason = f"{type(error).__name__}: {brief(error)}"
            self.row = replace(self.row, status=FAILED, reason=reason)
        finally:
            self.seconds += time.perf_counter() - began


@dataclass(frozen=True)
class ScanRun:
    """Segments scans one after the other.

    Attributes:
        segmenter: Applied to each.
        folder: Where masks are written.
        doubts: When a mask is flagged.
        probabilities: Whether they are written, too.
    """

    segmenter: ScanSegmenter
    folder: Path
    doubts: Doubts
    probabilities: bool

    def read(self, job: Job) -> Progress:
        """Read a scan."""
        one, told = job.candidate, input_of(job.candidate)
        progress = Progress(job, Prediction(job.case, str(one.path), one.series_uid, input=told))
        with progress.working():
            progress.scan = one.read_image()
        return progress

    def look(self, progress: Progress) -> Progress:
        """Ask the network, if the scan could be read."""
        if progress.scan is not None:
            with progress.working():
                progress.found = self.segmenter.segment(progress.scan.image)
        return progress

    def finish(self, progress: Progress) -> Prediction:
        """Write what belongs to a scan, in place of what an earlier batch wrote of it.

        Raises:
            Incomplete: If the disk is full, or may not be written any more.
        """
        try:
            with progress.working():
                self.remove(progress.job.case)
                if progress.scan is not None and progress.found is not None:
                    progress.row = self.write_all(progress.row, progress.scan, progress.found)
        except OSError as error:
            raise Incomplete(
                f"output={self.folder}: {progress.job.case} cannot be written ({error.strerror}); "
                "make room and run the same command again: what is done stays"
            ) from error
        seconds = round(progress.seconds, 2)
        return replace(progress.row, seconds=seconds, peak_memory_mb=peak_memory_mb())

    def remove(self, case: str) -> None:
        """Remove what an earlier batch wrote of a case: it is of another input, or not whole."""
        for end in ENDINGS:
            (self.folder / f"{case}{end}").unlink(missing_ok=True)

    def write_all(self, row: Prediction, scan: Scan, found: Segmented) -> Prediction:
        """Write masks and picture, and measure what the table says."""
        unlike = self.segmenter.unlike(scan.image, self.doubts.unlike)
        flags = self.flags(scan, found, unlike)
        reason = self.write(row.case, scan, found)
        hu, box = np.asanyarray(scan.image.dataobj), bounding_box(found.mask)
        inside = hu[box][found.mask[box]]
        volume_ml = inside.size * voxel_ml(scan.image.affine)
        title = f"{row.case}: {volume_ml:.1f} ml, confidence {found.confidence:.2f}"
        note = f"   {', '.join(flags)}" if flags else ""
        preview = self.folder / f"{row.case}_preview.png"
        draw_scan(preview, scan.image, found.mask, f"{title}{note}   not for clinical use")
        return replace(
            row,
            status=DONE,
            reason=reason,
            volume_ml=round(volume_ml, 3),
            mean_hu=round(float(inside.mean()), 1) if inside.size else "",
            confidence=round(found.confidence, 4),
            flags=" ".join([*flags, *(["no_seg"] if reason else [])]),
            unlike="; ".join(unlike.values()),
        )

    def flags(self, scan: Scan, found: Segmented, unlike: dict[str, str]) -> list[str]:
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
        return [*of_image, *in_order([*of_mask, *unlike])]

    def write(self, case: str, scan: Scan, found: Segmented) -> str:
        """Write mask, probabilities and SEG.

        Returns:
            Why there is no SEG of a series; mostly empty.
        """
        mask = nib.Nifti1Image(found.mask.view(np.uint8), scan.image.affine)
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
        if self.probabilities:
            suffixes.append("_probability.nii.gz")
        there = all((self.folder / f"{row.case}{end}").is_file() for end in suffixes)
        return row.input == input_of(candidate) != "" and there


def save(path: Path, image: nib.Nifti1Image, affine: Affine) -> None:
    """Write an image with its axes as those of its input."""
    own = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), affine)
    write_nifti(path, oriented_like(image, own))


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
