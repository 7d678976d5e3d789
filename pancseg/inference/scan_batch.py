"""A batch of scans: each becomes files and a row of ``predictions.csv``."""

import hashlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from filelock import FileLock, Timeout

from pancseg.data.scan_statistics import scan_statistics
from pancseg.dicom.series import Scan
from pancseg.dicom.write_rtstruct import write_rtstruct
from pancseg.dicom.write_seg import write_seg
from pancseg.errors import Incomplete, PancsegError, Refused, brief, lacks_room
from pancseg.files import (
    PARTIAL,
    check_writable,
    read_csv,
    read_json,
    write_csv,
    write_json,
    write_nifti,
)
from pancseg.geometry import Affine, bounding_box, oriented_like, spacing_of, voxel_ml
from pancseg.inference.mask_flags import ReviewThresholds, mask_flags, sort_mask_flags
from pancseg.inference.predictor import FAINT, Prediction, Predictor
from pancseg.intake.checks import Checks, sort_flags, voxel_flags
from pancseg.intake.match_labels import CaseSource
from pancseg.reports.pictures import draw_scan
from pancseg.structures import Structure

log = logging.getLogger(__name__)
TABLE, IDENTITY = "predictions.csv", "predictions.json"
DONE, FAILED, REFUSED, DROPPED = "done", "failed", "refused", "dropped"
READ_AHEAD_MB = 150  # of files: larger scans are read when their turn comes
LARGE_MB = 300  # of HU: two such scans are not held at a time
CONFIDENCE_MARGIN = 0.02  # below the lowest of validation: few patients, who chose the checkpoint
MAX_LABEL = 255
LABEL_MAP = "label_map: holds only whole numbers from 0 to 255, as masks do"
LOCK_TIMEOUT_S = 2.0
IMAGE_CHECKS = Checks()


@dataclass(frozen=True)
class Row:
    """A row of ``predictions.csv``."""

    case: str  # name of the files; empty where a scan was refused before it had a name
    path: str  # of the input
    series_uid: str = ""
    status: str = DONE
    reason: str = ""
    volume_ml: float | str = ""
    mean_hu: float | str = ""  # inside the mask
    confidence: float | str = ""  # expected Dice, calibrated on validation patients
    flags: str = ""
    seconds: float | str = ""
    peak_memory_mb: float | str = ""  # of the process so far
    unlike: str = ""  # statistics that differ from the training scans
    input: str = ""  # hash of the input files' names, sizes and times


COLUMNS = [field.name for field in fields(Row)]


@dataclass(frozen=True)
class ScanJob:
    """A scan, and the name of its files."""

    source: CaseSource
    case: str


@dataclass
class ScanState:
    """A scan in work: what is known of it, and the seconds spent on it."""

    job: ScanJob
    row: Row
    scan: Scan | None = None
    prediction: Prediction | None = None
    seconds: float = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Measure a step, and turn its error into the row: one bad scan never stops a batch.

        Raises:
            OSError: If the disk is full.
        """
        start = time.perf_counter()
        try:
            yield
        except Refused as refused:
            self.row = replace(self.row, status=REFUSED, reason=str(refused))
        except Exception as error:
            if lacks_room(error):
                raise
            log.debug("%s", self.job.case, exc_info=True)
            reason = f"{type(error).__name__}: {brief(error)}"
            self.row = replace(self.row, status=FAILED, reason=reason)
        finally:
            self.seconds += time.perf_counter() - start


@dataclass(frozen=True)
class ScanBatch:
    """Segments scans and writes their files.

    Attributes:
        predictor: Applied to each scan.
        structure: That it segments.
        folder: Of the files.
        thresholds: Of the flags.
        probabilities: Whether to write them.
        rtstruct: Whether DICOM series get an RTSTRUCT beside the SEG.
    """

    predictor: Predictor
    structure: Structure
    folder: Path
    thresholds: ReviewThresholds
    probabilities: bool = False
    rtstruct: bool = False

    def run(self, jobs: Sequence[ScanJob], rows: dict[str, Row]) -> Iterator[Row]:
        """Segment scans in order; the next one is read and the last one written meanwhile.

        Args:
            jobs: Scans.
            rows: Takes the row of each scan once its files are written, also after a signal.

        Raises:
            Incomplete: If the disk is full.
        """
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            ahead: Future[ScanState] | None = None
            writing: Future[Row] | None = None
            for number, job in enumerate(jobs):
                state = ahead.result() if ahead else self.read(job)
                following = jobs[number + 1] if number + 1 < len(jobs) else None
                is_small = following and files_mb(following) <= READ_AHEAD_MB
                ahead = reader.submit(self.read, following) if following and is_small else None
                if writing and is_large(state):
                    yield writing.result()
                    writing = None
                self.segment(state)
                if writing:
                    yield writing.result()
                writing = writer.submit(self.write, state, rows)
                del state
            if writing:
                yield writing.result()

    def read(self, job: ScanJob) -> ScanState:
        """Read a scan."""
        source = job.source
        row = Row(job.case, str(source.path), source.series_uid, input=input_hash(source))
        state = ScanState(job, row)
        with state.step():
            state.scan = source.read_image()
            if is_label_map(state.scan.image):
                state.row = replace(state.row, status=DROPPED, reason=LABEL_MAP)
                state.scan = None
        return state

    def segment(self, state: ScanState) -> None:
        """Predict the mask of a scan that could be read."""
        if state.scan is not None:
            with state.step():
                least = 0.0 if self.probabilities else FAINT
                state.prediction = self.predictor.predict(state.scan.image, least)

    def write(self, state: ScanState, rows: dict[str, Row]) -> Row:
        """Write the files of a scan in place of earlier ones, and add its row.

        Raises:
            Incomplete: If the disk is full.
        """
        case = state.job.case
        try:
            with state.step():
                for path in self.paths(case).values():
                    path.unlink(missing_ok=True)
                if state.scan is not None and state.prediction is not None:
                    state.row = self.write_files(state.row, state.scan, state.prediction)
        except OSError as error:
            raise Incomplete(
                f"output={self.folder}: {case} cannot be written ({error.strerror}); make room and "
                "run the same command again: what is done stays"
            ) from error
        seconds = round(state.seconds, 2)
        rows[case] = replace(state.row, seconds=seconds, peak_memory_mb=peak_memory_mb())
        return rows[case]

    def paths(self, case: str) -> dict[str, Path]:
        """Files of a case."""
        name = self.structure.name
        endings = {
            "mask": f"_{name}.nii.gz",
            "preview": "_preview.png",
            "probability": "_probability.nii.gz",
            "seg": f"_{name}.dcm",
            "rtstruct": f"_{name}_rtstruct.dcm",
        }
        return {kind: self.folder / f"{case}{ending}" for kind, ending in endings.items()}

    def write_files(self, row: Row, scan: Scan, prediction: Prediction) -> Row:
        """Write mask, probability, SEG, RTSTRUCT and preview."""
        image, paths = scan.image, self.paths(row.case)
        unlike = self.unlike(image)
        flags = self.flags(scan, prediction, unlike)
        mask = nib.Nifti1Image(prediction.mask.view(np.uint8), image.affine)
        affine = image.affine if scan.file_affine is None else scan.file_affine
        write_like_input(paths["mask"], mask, affine, scan.qform)
        if self.probabilities:
            probability = nib.Nifti1Image(prediction.probability, image.affine)
            write_like_input(paths["probability"], probability, affine, scan.qform)
        reasons = []
        for kind, writer in (("seg", write_seg), ("rtstruct", write_rtstruct)):
            if scan.stack and (kind == "seg" or self.rtstruct):
                reason, is_written = attempt(
                    lambda writer=writer, kind=kind: writer(  # type: ignore[misc]
                        paths[kind], mask, [self.structure], scan.stack
                    ),
                    kind,
                )
                reasons += [reason] if reason else []
                flags += [] if is_written else [f"no_{kind}"]
        hu, box = np.asanyarray(image.dataobj), bounding_box(prediction.mask)
        inside = hu[box][prediction.mask[box]]
        volume_ml = inside.size * voxel_ml(image.affine)
        title = f"{row.case}: {volume_ml:.1f} ml, confidence {prediction.confidence:.2f}"
        title += f"   {', '.join(flags)}" if flags else ""
        try:
            text = f"{title}   not for clinical use"
            draw_scan(paths["preview"], image, prediction.mask, text)
        except Exception as error:  # the mask stands
            if lacks_room(error):
                raise
            log.warning("%s: no preview (%s)", row.case, brief(error))
        return replace(
            row,
            reason="; ".join(reasons),
            volume_ml=round(volume_ml, 3),
            mean_hu=round(float(inside.mean()), 1) if inside.size else "",
            confidence=round(prediction.confidence, 4),
            flags=" ".join(flags),
            unlike="; ".join(unlike.values()),
        )

    def unlike(self, image: nib.Nifti1Image) -> dict[str, str]:
        """Flags of a scan unlike those that a network was trained on, with the numbers."""
        statistics = scan_statistics(image)
        found: dict[str, str] = {}
        for model in self.predictor.models:
            if model.profile:
                found |= model.profile.unlike(statistics, self.thresholds.unlike)
        return found

    def flags(self, scan: Scan, prediction: Prediction, unlike: dict[str, str]) -> list[str]:
        """Flags of image and mask."""
        image, thresholds = scan.image, self.thresholds
        spacing_mm = spacing_of(image.affine)
        calibration = self.predictor.calibration
        if thresholds.confidence is None and calibration.n:
            least = calibration.lowest - CONFIDENCE_MARGIN
            thresholds = replace(thresholds, confidence=least)
        if thresholds.volume_ml is None:
            thresholds = replace(thresholds, volume_ml=self.structure.volume_ml)
        hu = np.asanyarray(image.dataobj)
        of_image = [*voxel_flags(hu, None, spacing_mm, IMAGE_CHECKS, ()), *scan.flags]
        of_mask = mask_flags(
            prediction.mask,
            structure=self.structure.name,
            voxel_ml=voxel_ml(image.affine),
            confidence=prediction.confidence,
            spacing_mm=spacing_mm,
            network_spacing_mm=self.predictor.models[0].preprocessing.spacing_mm,
            thresholds=thresholds,
        )
        return [*sort_flags(of_image), *sort_mask_flags([*of_mask, *unlike])]

    def is_done(self, job: ScanJob, row: Row) -> bool:
        """Whether a row is of this input, and all files that it promises are there."""
        if (
            row.status not in (DONE, DROPPED)
            or row.input != input_hash(job.source)
            or not row.input
        ):
            return False
        flags, paths = row.flags.split(), self.paths(row.case)
        kinds = ["mask"] if row.status == DONE else []
        if kinds and job.source.is_dicom and "no_seg" not in flags:
            kinds.append("seg")
        if kinds and job.source.is_dicom and self.rtstruct and "no_rtstruct" not in flags:
            kinds.append("rtstruct")
        if kinds and self.probabilities:
            kinds.append("probability")
        return all(paths[kind].is_file() for kind in kinds)


def is_large(state: ScanState) -> bool:
    """Whether a scan is to be alone in memory."""
    return (
        state.scan is not None and np.asanyarray(state.scan.image.dataobj).nbytes > LARGE_MB * 2**20
    )


def files_mb(job: ScanJob) -> float:
    """Size of a scan's files; 0 where they are gone."""
    try:
        return sum(file.stat().st_size for file in job.source.files) / 1e6
    except OSError:
        return 0.0


def is_label_map(image: nib.Nifti1Image) -> bool:
    """Whether an image holds whole numbers from 0 to 255 only, as masks do and CT never does."""
    values = np.asanyarray(image.dataobj)
    if values.min() < 0 or values.max() > MAX_LABEL:
        return False
    return values.dtype.kind in "iub" or bool((values == np.rint(values)).all())


def attempt(write: Callable[[], list[str]], kind: str) -> tuple[str, bool]:
    """Write a DICOM file; return the reason of a failure or what is empty in it, and success.

    Raises:
        OSError: If the disk is full.
    """
    try:
        emptied = write()
    except Refused as refused:
        return str(refused), False
    except Exception as error:  # headers go wrong in many ways, and their values are not quoted
        if lacks_room(error):
            raise
        log.debug("%s", kind, exc_info=True)
        return f"{kind}_failed: {type(error).__name__}", False
    return (f"{kind}: invalid and left empty: {', '.join(emptied)}" if emptied else ""), True


def write_like_input(
    path: Path, image: nib.Nifti1Image, affine: Affine, qform: Affine | None
) -> None:
    """Write an image with the order of axes and the affines of its input."""
    stored = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), affine)
    write_nifti(path, oriented_like(image, stored), qform)


def input_hash(source: CaseSource) -> str:
    """Hash of names, sizes and times of the files of an input; empty if they are gone."""
    try:
        states = sorted(
            f"{file.name} {(status := file.stat()).st_size} {status.st_mtime_ns}"
            for file in source.files
        )
    except OSError:
        return ""
    return hashlib.sha256("\n".join(states).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def peak_memory_mb() -> float | str:
    """The most memory that this process has held, MB; empty on Windows."""
    if sys.platform == "win32":
        return ""
    import resource

    unit = 1024**2 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


@contextmanager
def locked_output(folder: Path, predictor: Predictor, shard: str) -> Iterator[None]:
    """Hold the output folder of a shard, or of all of them without a shard.

    Raises:
        PancsegError: If it holds masks that were made in another way, cannot be written, or
            another process writes to it.
    """
    identity = predictor.identity()
    if (folder / IDENTITY).is_file() and read_json(folder / IDENTITY, "a note") != identity:
        raise PancsegError(
            f"output={folder}: holds masks of another checkpoint or of other options; give another "
            "folder"
        )
    check_writable(folder, "output")
    merge = folder / ".predicting.lock"
    paths = {merge, folder / f".predicting{shard}.lock"}
    if not shard:
        paths.update(folder.glob(".predicting*.lock"))
    with ExitStack() as stack:
        try:
            for path in sorted(paths):
                lock = stack.enter_context(FileLock(path, timeout=LOCK_TIMEOUT_S))
                if shard and path == merge:
                    lock.release()  # shards may run together, a merge waits for none
                else:
                    stack.callback(path.unlink, missing_ok=True)
        except Timeout:
            raise PancsegError(
                f"output={folder}: another pancseg.predict is writing to it; wait for its end, or "
                "give another folder"
            ) from None
        if not shard:  # nobody else writes here
            for half in folder.glob(f"{PARTIAL}*"):
                half.unlink(missing_ok=True)
        write_json(folder / IDENTITY, identity)
        yield


def table_path(folder: Path, shard: str) -> Path:
    """``predictions.csv``, or ``predictions.<i>.csv`` of a shard."""
    return folder / (f"predictions.{shard}.csv" if shard else TABLE)


def read_tables(folder: Path) -> dict[str, Row]:
    """Rows of all tables of a folder by case; a table of another version has none."""
    paths = [*sorted(folder.glob("predictions.*.csv")), folder / TABLE]
    return {row.case: row for path in paths for row in read_csv(path, Row) if row.case}


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write a table; a path that a spreadsheet would compute gets an apostrophe."""
    safe = (
        replace(row, path=f"'{row.path}" if row.path[:1] in "=+-@" else row.path) for row in rows
    )
    write_csv(path, COLUMNS, map(astuple, safe))
