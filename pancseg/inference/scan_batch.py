"""A batch of scans: each becomes files and a row of ``predictions.csv``."""

import hashlib
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap
from typing import Any

import nibabel as nib
import numpy as np
from filelock import FileLock, Timeout

from pancseg import geometry
from pancseg.data.scan_statistics import scan_statistics
from pancseg.dicom.series import Scan
from pancseg.dicom.writers import write_rtstruct, write_seg
from pancseg.errors import Incomplete, PancsegError, Refused, brief, lacks_room
from pancseg.files import PARTIAL, read_csv, read_json, write_csv, write_json, write_nifti
from pancseg.inference.predictor import FAINT, Prediction, Predictor
from pancseg.intake.checks import Checks, sort_flags, voxel_flags
from pancseg.intake.contact_sheet import shortened
from pancseg.intake.match_labels import CaseSource
from pancseg.reports.pictures import TITLE_CHARACTERS, draw_scan

log = logging.getLogger(__name__)
TABLE, IDENTITY = "predictions.csv", "predictions.json"
DONE, FAILED, REFUSED, DROPPED = "done", "failed", "refused", "dropped"
READ_AHEAD_MB = 150  # of files: larger scans are read when their turn comes
LARGE_BYTES = 300 * 2**20  # of HU: two such scans are not held at a time
CONFIDENCE_MARGIN = 0.02  # below Calibration.lowest, optimistic: few patients chose the checkpoint
LABEL_MAP = "label_map: holds only whole numbers from 0 to 255, as masks do"
LOCK_TIMEOUT_S = 2.0
MIN_CONFIDENCE = 0.7  # without a calibration
NAME_CHARACTERS = 60  # over a preview


@dataclass(frozen=True)
class PredictionRow:
    """A row of ``predictions.csv``."""

    case: str  # name of the files; empty where a scan was refused before it had a name
    path: str  # of the input
    series_uid: str = ""
    status: str = DONE
    reason: str = ""
    volume_ml: float | str = ""  # of the first structure, as the two after it
    mean_hu: float | str = ""  # inside the mask
    confidence: float | str = ""  # expected Dice, calibrated on validation patients
    flags: str = ""
    seconds: float | str = ""
    peak_memory_mb: float | str = ""  # of the process so far
    unlike: str = ""  # statistics that differ from the training scans
    input: str = ""  # hash of the input files' names, sizes and times
    structures_ml: str = ""  # of several structures ``pancreas=81.2 tumour=4.1``
    structures_confidence: str = ""  # likewise
    structures_probability: str = ""  # likewise, the largest


@dataclass(frozen=True)
class ReviewThresholds:
    """Thresholds of the flags, as ``conf/predict.yaml`` explains them."""

    volume_ml: tuple[float, float] | None = None
    piece_share: float = 0.1
    confidence: float | None = None
    spacing_factor: float = 2.5
    unlike: float = 4.0


@dataclass
class ScanState:
    """A scan in work."""

    row: PredictionRow
    scan: Scan | None = None
    predictions: Sequence[Prediction] = ()  # a structure each
    seconds: float = 0.0  # spent on it

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time a step; its error becomes the status of the row, but a full disk raises."""
        start = time.perf_counter()
        try:
            yield
        except Refused as refused:
            self.row = replace(self.row, status=REFUSED, reason=str(refused))
        except Exception as error:
            if lacks_room(error):
                raise
            log.debug("%s", self.row.case, exc_info=True)
            reason = f"{type(error).__name__}: {brief(error)}"
            self.row = replace(self.row, status=FAILED, reason=reason)
        finally:
            self.seconds += time.perf_counter() - start


@dataclass(frozen=True)
class ScanBatch:
    """Segments scans and writes their files to a folder."""

    predictor: Predictor
    folder: Path
    thresholds: ReviewThresholds
    probabilities: bool = False  # whether to write them
    rtstruct: bool = False  # whether to write one beside the SEG

    def run(
        self, scans: Mapping[str, CaseSource], rows: dict[str, PredictionRow]
    ) -> Iterator[PredictionRow]:
        """Segment scans by case; the next one is read and the last one written meanwhile.

        ``rows`` takes the row of each scan once its files are written, also after a signal.
        """
        items = list(scans.items())
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            ahead: Future[ScanState] | None = None
            writing: Future[PredictionRow] | None = None
            for item, following in zip_longest(items, items[1:]):
                state = ahead.result() if ahead else self.read(*item)
                is_small = following is not None and files_mb(following[1]) <= READ_AHEAD_MB
                ahead = reader.submit(self.read, *following) if is_small else None
                large = state.scan and np.asanyarray(state.scan.image.dataobj).nbytes > LARGE_BYTES
                if writing and large:
                    yield writing.result()
                    writing = None
                self.segment(state)
                if writing:
                    yield writing.result()
                writing = writer.submit(self.write, state, rows)
                del state
            if writing:
                yield writing.result()

    def read(self, case: str, source: CaseSource) -> ScanState:
        """Read a scan; a mask is dropped."""
        row = PredictionRow(case, str(source.path), source.uid, input=input_hash(source))
        state = ScanState(row)
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
                state.predictions = self.predictor.predict_structures(state.scan.image, least)

    def write(self, state: ScanState, rows: dict[str, PredictionRow]) -> PredictionRow:
        """Write the files of a scan in place of earlier ones, and add its row."""
        case = state.row.case
        try:
            with state.step():
                for path in self.paths(case).values():
                    path.unlink(missing_ok=True)
                if state.scan is not None and state.predictions:
                    state.row = self.write_files(state.row, state.scan, state.predictions)
            for path in self.paths(case).values() if state.row.status == FAILED else ():
                path.unlink(missing_ok=True)  # of a scan that failed half-way
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
        names = [structure.name for structure in self.predictor.structures]
        name = f"{case}_{names[0] if len(names) == 1 else 'labels'}"
        probabilities = [f"_{own}" for own in names] if len(names) > 1 else [""]
        files = {f"probability{own}": f"{case}{own}_probability.nii.gz" for own in probabilities}
        files |= {"mask": f"{name}.nii.gz", "preview": f"{case}_preview.png"}
        files |= {"seg": f"{name}.dcm", "rtstruct": f"{name}_rtstruct.dcm"}
        return {key: self.folder / file for key, file in files.items()}

    def write_files(
        self, row: PredictionRow, scan: Scan, predictions: Sequence[Prediction]
    ) -> PredictionRow:
        """Write mask, probability, SEG, RTSTRUCT and preview."""
        image, paths, unlike = scan.image, self.paths(row.case), self.unlike(scan.image)
        flags, reasons = self.flags(scan, predictions, unlike), []
        mask = nib.Nifti1Image(predictions[0].codes, image.affine)
        write_like_input(paths["mask"], mask, scan)
        for prediction in predictions if self.probabilities else ():
            own = f"_{prediction.structure.name}" if len(predictions) > 1 else ""
            probability = nib.Nifti1Image(prediction.probability, image.affine)
            write_like_input(paths[f"probability{own}"], probability, scan)
        writers: Any = [("seg", write_seg)] + [("rtstruct", write_rtstruct)] * self.rtstruct
        for name, write in writers if scan.stack else ():
            try:
                if emptied := write(paths[name], mask, self.predictor.structures, scan.stack):
                    reasons.append(f"{name}: invalid and left empty: {', '.join(emptied)}")
            except Exception as error:  # headers go wrong in many ways, and no value is quoted
                if lacks_room(error):
                    raise
                log.debug("%s", name, exc_info=True)
                failure = f"{name}_failed: {type(error).__name__}"
                reasons.append(str(error) if isinstance(error, Refused) else failure)
                flags.append(f"no_{name}")
        first, voxel_ml = predictions[0], geometry.voxel_ml(image.affine)
        hu, box = np.asanyarray(image.dataobj), geometry.bounding_box(first.mask)
        inside = hu[box][first.mask[box]]
        volumes_ml = [np.count_nonzero(each.mask) * voxel_ml for each in predictions]
        parts = [
            f"{each.structure.name} {ml:.1f} ml, "
            for each, ml in zip(predictions[1:], volumes_ml[1:], strict=True)
        ]
        result = f"{volumes_ml[0]:.1f} ml, {''.join(parts)}confidence {first.confidence:.2f}"
        title = preview_title(row.case, result, flags)
        try:
            draw_scan(paths["preview"], image, [each.mask for each in predictions], title)
        except Exception as error:  # the mask stands
            if lacks_room(error):
                raise
            log.warning("%s: no preview (%s)", row.case, brief(error))
        return replace(
            row,
            reason="; ".join(reasons),
            volume_ml=round(volumes_ml[0], 3),
            mean_hu=round(float(inside.mean()), 1) if inside.size else "",
            confidence=round(first.confidence, 4),
            structures_ml=by_structure(predictions, [f"{ml:.3f}" for ml in volumes_ml]),
            structures_confidence=by_structure(
                predictions, [f"{each.confidence:.4f}" for each in predictions]
            ),
            structures_probability=by_structure(
                predictions, [f"{each.inside.max(initial=0):.4f}" for each in predictions]
            ),
            flags=" ".join(flags),
            unlike="; ".join(unlike.values()),
        )

    def unlike(self, image: nib.Nifti1Image) -> dict[str, str]:
        """Flags of a scan unlike those that a network was trained on, with the numbers."""
        statistics, flags = scan_statistics(image), dict[str, str]()
        for model in self.predictor.models:
            if model.profile:
                flags |= model.profile.unlike(statistics, self.thresholds.unlike)
        return flags

    def flags(
        self, scan: Scan, predictions: Sequence[Prediction], unlike: dict[str, str]
    ) -> list[str]:
        """Flags of the image and of the masks, as ``volume_range:tumour`` of several structures."""
        limits, flags = self.thresholds, dict[str, bool]()
        spacing_mm = geometry.spacing_of(scan.image.affine)
        for n, prediction in enumerate(predictions):
            own = self.mask_flags(prediction, n, geometry.voxel_ml(scan.image.affine))
            ending = f":{prediction.structure.name}" if len(predictions) > 1 else ""
            flags |= {
                flag if flag.startswith("no_") else flag + ending: v for flag, v in own.items()
            }
        ratio = np.divide(spacing_mm, self.predictor.models[0].preprocessing.spacing_mm).max()
        flags |= {"spacing_unlike": ratio > limits.spacing_factor, **dict.fromkeys(unlike, True)}
        hu = np.asanyarray(scan.image.dataobj)
        of_image = [*voxel_flags(hu, None, spacing_mm, Checks(), ()), *scan.flags]
        return [*sort_flags(of_image), *(flag for flag, is_set in flags.items() if is_set)]

    def mask_flags(self, prediction: Prediction, n: int, voxel_ml: float) -> dict[str, bool]:
        """Flags of the mask of structure ``n``, whose last axis runs from feet to head."""
        mask, structure, limits = prediction.mask, prediction.structure, self.thresholds
        calibration, voxels = self.predictor.calibration[n], int(np.count_nonzero(mask))
        low, high = (limits.volume_ml if n == 0 else None) or structure.volume_ml
        least, is_organ = limits.confidence, structure.kind == "organ"
        if least is None:
            least = calibration.lowest - CONFIDENCE_MARGIN if calibration.n else MIN_CONFIDENCE
        if not voxels:  # most scans have no lesion
            return {f"no_{structure.name}": is_organ}
        second = geometry.second_component_voxels(mask) if is_organ else 0
        return {
            "volume_range": not low <= voxels * voxel_ml <= high,
            "several_pieces": second > limits.piece_share * voxels,
            "touches_end": is_organ and bool(mask[..., 0].any() or mask[..., -1].any()),
            "not_confident": prediction.confidence < least,
        }

    def is_done(self, source: CaseSource, row: PredictionRow) -> bool:
        """Whether a row is of this input, and all files that it promises are there."""
        if not row.input or row.input != input_hash(source):
            return False
        if row.status == DROPPED:
            return True
        paths = self.paths(row.case)
        wanted = ["mask"] + [n for n in paths if self.probabilities and n.startswith("prob")]
        if source.format == "image":
            names = ["seg"] + ["rtstruct"] * self.rtstruct
            wanted += [name for name in names if f"no_{name}" not in row.flags.split()]
        return row.status == DONE and all(paths[name].is_file() for name in wanted)


def by_structure(predictions: Sequence[Prediction], values: Sequence[str]) -> str:
    """``pancreas=81.2 tumour=4.1`` of several structures; empty for the only one."""
    pairs = zip(predictions, values, strict=True)
    return " ".join(f"{each.structure.name}={v}" for each, v in pairs if len(predictions) > 1)


def preview_title(case: str, result: str, flags: Sequence[str]) -> str:
    """Lines over a preview: name and result, then flags; only the name is shortened."""
    first = f"{shortened(case, NAME_CHARACTERS)}: {result}   not for clinical use"
    texts = first, ", ".join(flags)
    wrapped = ("\n".join(wrap(t, TITLE_CHARACTERS, break_on_hyphens=False)) for t in texts)
    return "\n".join(filter(None, wrapped))


def files_mb(source: CaseSource) -> float:
    """Size of a scan's files; 0 where they are gone."""
    try:
        return sum(file.stat().st_size for file in source.files) / 1e6
    except OSError:
        return 0.0


def is_label_map(image: nib.Nifti1Image) -> bool:
    """Whether an image holds whole numbers from 0 to 255 only, as masks do and CT never does."""
    values = np.asanyarray(image.dataobj)
    in_range = values.min() >= 0 and values.max() <= 255
    return bool(in_range and (values.dtype.kind in "iub" or (values == np.rint(values)).all()))


def write_like_input(path: Path, image: nib.Nifti1Image, scan: Scan) -> None:
    """Write an image with the order of axes and the affines of the input."""
    affine = image.affine if scan.file_affine is None else scan.file_affine
    stored = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), affine)
    write_nifti(path, geometry.oriented_like(image, stored), scan.qform)


def input_hash(source: CaseSource) -> str:
    """Hash of names, sizes and times of the files of an input; empty if they are gone."""
    try:
        stats = ((file.name, file.stat()) for file in source.files)
        states = sorted(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)
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
    """Lock the output folder: for one shard, or exclusively."""
    identity = predictor.identity()
    if (folder / IDENTITY).is_file() and read_json(folder / IDENTITY, "a note") != identity:
        raise PancsegError(
            f"output={folder}: holds masks of another checkpoint or of other options; give another"
        )
    merge, own = folder / ".predicting.lock", folder / f".predicting{shard}.lock"
    paths = {merge, own} if shard else {merge, *folder.glob(".predicting*.lock")}
    with ExitStack() as stack:
        try:
            for path in sorted(paths):
                lock = stack.enter_context(FileLock(path, timeout=LOCK_TIMEOUT_S))
                if shard and path == merge:
                    lock.release()  # shards may run together, a merge waits for none
                elif sys.platform != "win32":  # Windows removes no file that is open
                    stack.callback(path.unlink, missing_ok=True)
        except Timeout:
            raise PancsegError(
                f"output={folder}: another pancseg.predict is writing to it; wait for its end, or "
                "give another folder"
            ) from None
        for half in () if shard else folder.glob(f"{PARTIAL}*"):  # nobody else writes here
            half.unlink(missing_ok=True)
        write_json(folder / IDENTITY, identity)
        yield


def read_tables(folder: Path) -> dict[str, PredictionRow]:
    """Rows of all tables of a folder by case; a table of another version has none."""
    paths = [*sorted(folder.glob("predictions.*.csv")), folder / TABLE]
    return {row.case: row for path in paths for row in read_csv(path, PredictionRow) if row.case}


def write_table(path: Path, rows: Sequence[PredictionRow]) -> None:
    """Write a table; a path that a spreadsheet would compute gets an apostrophe."""
    columns = [field.name for field in fields(PredictionRow)]
    cells = (asdict(row) | {"path": re.sub("^(?=[=+@-])", "'", row.path)} for row in rows)
    write_csv(path, columns, (row.values() for row in cells))
