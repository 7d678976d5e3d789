"""One scan becomes a mask in every format that is asked for, or a row that says why not."""

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from pancseg.applying.mask_flags import Doubts, mask_flags, sort_flags
from pancseg.applying.scan_files import ScanFiles
from pancseg.applying.scan_progress import Job, Progress
from pancseg.applying.scan_segmenter import ScanSegmenter, Segmented
from pancseg.errors import Incomplete
from pancseg.geometry import bounding_box, spacing_of, voxel_ml
from pancseg.intake.checks import Checks, voxel_flags
from pancseg.intake.checks import sort_flags as in_image_order
from pancseg.intake.types import CaseSource, Scan
from pancseg.output.prediction_table import DONE, Prediction

IMAGE_CHECKS = Checks()
UNDER = 0.02  # the least of validation: few patients bound nothing, and they chose the checkpoint


def nowhere(row: Prediction) -> None:
    """Keep no record."""


@dataclass(frozen=True)
class ScanRun:
    """Segments scans one after the other.

    Attributes:
        segmenter: Applied to each.
        files: Written of each.
        doubts: When a mask is flagged.
        keep: Takes the row of a scan once all its files are there.
    """

    segmenter: ScanSegmenter
    files: ScanFiles
    doubts: Doubts
    keep: Callable[[Prediction], None] = nowhere

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
                self.files.remove(progress.job.case)
                if progress.scan is not None and progress.found is not None:
                    progress.row = self.write(progress.row, progress.scan, progress.found)
            seconds = round(progress.seconds, 2)
            row = replace(progress.row, seconds=seconds, peak_memory_mb=peak_memory_mb())
            self.keep(row)
            return row
        except OSError as error:
            raise Incomplete(
                f"output={self.files.folder}: {progress.job.case} cannot be written "
                f"({error.strerror}); make room and run the same command again: what is done stays"
            ) from error

    def write(self, row: Prediction, scan: Scan, found: Segmented) -> Prediction:
        """Write masks and picture, and measure what the table says."""
        unlike = self.segmenter.unlike(scan.image, self.doubts.unlike)
        flags = self.flags(scan, found, unlike)
        lacking = self.files.write(row.case, scan, found)
        hu, box = np.asanyarray(scan.image.dataobj), bounding_box(found.mask)
        inside = hu[box][found.mask[box]]
        volume_ml = inside.size * voxel_ml(scan.image.affine)
        title = f"{row.case}: {volume_ml:.1f} ml, confidence {found.confidence:.2f}"
        note = f"   {', '.join(flags)}" if flags else ""
        self.files.draw(row.case, scan, found, f"{title}{note}   not for clinical use")
        return replace(
            row,
            status=DONE,
            reason="; ".join(lacking.values()),
            volume_ml=round(volume_ml, 3),
            mean_hu=round(float(inside.mean()), 1) if inside.size else "",
            confidence=round(found.confidence, 4),
            flags=" ".join([*flags, *lacking]),
            unlike="; ".join(unlike.values()),
        )

    def flags(self, scan: Scan, found: Segmented, unlike: dict[str, str]) -> list[str]:
        """What a person should look at, in image and mask."""
        image = scan.image
        spacing_mm = spacing_of(image.affine)
        trained_mm = self.segmenter.members[0].trained.preprocessing.spacing_mm
        hu = np.asanyarray(image.dataobj)
        of_image = [*voxel_flags(hu, None, spacing_mm, IMAGE_CHECKS, ()), *scan.flags]
        of_mask = mask_flags(
            found.mask,
            voxel_ml=voxel_ml(image.affine),
            confidence=found.confidence,
            spacing_mm=spacing_mm,
            network_spacing_mm=trained_mm,
            doubts=self.learnt_doubts,
        )
        return [*in_image_order(of_image), *sort_flags([*of_mask, *unlike])]

    @property
    def learnt_doubts(self) -> Doubts:
        """With a little less than the least confidence of validation, where none is given."""
        trust = self.segmenter.trust
        if self.doubts.confidence is not None or not trust.n:
            return self.doubts
        return replace(self.doubts, confidence=trust.least - UNDER)

    def is_done(self, candidate: CaseSource, row: Prediction) -> bool:
        """Whether an earlier batch segmented this very input, and what it wrote is there."""
        return row.input == input_of(candidate) != "" and self.files.are_there(candidate, row)


def input_of(candidate: CaseSource) -> str:
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
