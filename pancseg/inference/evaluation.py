"""Scoring of whole cases: masks of a checkpoint, or of other tools, against the references."""

import csv
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pancseg import __version__
from pancseg.config import BEST
from pancseg.data.datamodule import json_hash
from pancseg.data.manifest import Case, Manifest, read_rows
from pancseg.data.splits import SUBSETS
from pancseg.errors import Incomplete, PancsegError, brief, lacks_room
from pancseg.files import read_json, write_json, write_nifti
from pancseg.geometry import bounding_box, oriented_like, same_grid, spacing_of
from pancseg.inference.checkpoint import TrainedModel
from pancseg.inference.postprocessing import (
    AUTO,
    DEFAULT,
    PostprocessOptions,
    choose,
    postprocess_path,
    read_postprocess,
    write_postprocess,
)
from pancseg.inference.predictor import Prediction, Predictor
from pancseg.intake.checks import INFO_FLAGS
from pancseg.metrics.case_scores import no_scores, score_case
from pancseg.metrics.probability_scores import calibration_counts, recipe_metric
from pancseg.metrics.tables import FAILED
from pancseg.parallel import progress
from pancseg.reports.pictures import draw_case, make_view

log = logging.getLogger(__name__)
CALIBRATION_MARGIN_MM = 20.0  # around both masks: far away every network is right
MASK_SUFFIX = ".nii.gz"
NO_CASE = "no_case"  # status of a mask that belongs to no case
Segment = Callable[[Case, nib.Nifti1Image], tuple[NDArray[np.bool_], Prediction | None]]


@dataclass(frozen=True)
class CaseScorer:
    """Scores the cases of a prepared folder, each once.

    Attributes:
        root: Prepared folder.
        folder: Of masks, pictures and records.
        tolerances_mm: Of the normalised surface Dice.
        caption: In every picture.
        segment: The mask of a case, and the prediction that it was made of.
        identity: What decides the masks of a patient; a case is scored again where it changed.
        folds: Fold of each patient in ``split=kfold``.
    """

    root: Path
    folder: Path
    tolerances_mm: Sequence[float]
    caption: str
    segment: Segment
    identity: Callable[[Case], Any]
    folds: Mapping[str, int | None]

    def score(self, case: Case) -> dict[str, Any]:
        """The record of a case: ``row`` of the table, ``calibration`` counts, ``changed``.

        A case that fails has a row, too, and is scored again next time.

        Raises:
            Incomplete: If the disk is full.
        """
        path = self.folder / f"{case.name}.json"
        try:
            key = self.key(case)
            if (record := self.read_record(path, case)) and record["key"] == key:
                return record
            record = {"key": key, **self.score_anew(case)}
            write_json(path, record)
            return record
        except Exception as error:  # one bad case never stops a batch
            if lacks_room(error):
                raise Incomplete(
                    f"{self.folder}: cannot be written ({error.strerror}); make room and run the "
                    "same command again: what is scored stays"
                ) from error
            log.debug("%s", case.name, exc_info=True)
            for file in (path, self.mask_path(case), self.picture_path(case), self.view_path(case)):
                file.unlink(missing_ok=True)
            reason = brief(error).replace(str(self.root), "...")  # reports name no folder of data
            status = f"{FAILED}: {type(error).__name__}: {reason}"
            row = self.row(case, no_scores(self.tolerances_mm, status))
            return {"row": row, "calibration": None, "changed": False}

    def key(self, case: Case) -> str:
        """Hash of all that decides the scores of a case."""
        paths = [self.root / name for name in (case.image, case.label) if name]
        files = [[(status := path.stat()).st_size, status.st_mtime_ns] for path in paths]
        return json_hash([__version__, self.identity(case), list(self.tolerances_mm), files])

    def read_record(self, path: Path, case: Case) -> dict[str, Any] | None:
        """The record of an earlier call; None without it or its mask."""
        if not (path.is_file() and self.mask_path(case).is_file()):
            return None
        keys = {"key", "row", "calibration", "changed"}
        with suppress(PancsegError):  # a damaged record: the case is scored again
            return read_json(path, "scores", lambda v: isinstance(v, dict) and keys <= v.keys())
        return None

    def score_anew(self, case: Case) -> dict[str, Any]:
        """Segment, write and score a case."""
        image, image_hash = read_volume(self.root / case.image)
        label, label_hash = read_volume(self.root / str(case.label))
        changed = (image_hash, label_hash) != (case.image_sha256, case.label_sha256)
        if changed:
            log.warning(
                "%s: is not what pancseg.prepare wrote; it is used as it is", self.root / case.image
            )
        reference = np.asanyarray(label.dataobj) > 0
        mask, prediction = self.segment(case, image)
        write_nifti(self.mask_path(case), nib.Nifti1Image(mask.view(np.uint8), image.affine))
        scores = score_case(mask, reference, image.affine, self.tolerances_mm)
        row = self.row(case, scores)
        counts = None
        if prediction is not None and reference.any():
            plain = prediction.probability > DEFAULT.threshold
            row["dice_plain"] = hard_dice(plain, reference)
            row["recipe_metric"] = recipe_metric(prediction.probability, reference)
            row["expected_dice"] = prediction.expected_dice
            box = bounding_box(mask | reference, CALIBRATION_MARGIN_MM, spacing_of(image.affine))
            counts = calibration_counts(prediction.probability, reference, box).tolist()
        self.draw(case, image, mask, reference, scores["dice"])
        return {"row": row, "calibration": counts, "changed": changed}

    def row(self, case: Case, scores: dict[str, Any]) -> dict[str, Any]:
        """Columns of the table."""
        x, y, z = case.spacing_mm
        values = {key: value for key, value in scores.items() if key != "status"}
        return {
            "patient": case.patient,
            "case": case.name,
            **values,
            "dice_plain": None,
            "recipe_metric": None,
            "expected_dice": None,
            "fold": self.folds.get(case.patient),
            "spacing_x_mm": x,
            "spacing_y_mm": y,
            "spacing_z_mm": z,
            "manufacturer": case.manufacturer,
            "contrast": case.contrast,
            "status": scores["status"],
        }

    def draw(
        self,
        case: Case,
        image: nib.Nifti1Image,
        mask: NDArray[np.bool_],
        reference: NDArray[np.bool_],
        dice: float | None,
    ) -> None:
        """Draw a case for the folder and the report; scores stand without a picture."""
        title = "no reference" if dice is None else f"Dice {dice:.3f}"
        try:
            path = self.picture_path(case)
            draw_case(path, image, mask, reference, f"{case.name} ({self.caption}): {title}")
            write_json(self.view_path(case), make_view(image, mask, reference))
        except Exception as error:
            if lacks_room(error):
                raise
            log.warning("%s: no picture (%s)", case.name, brief(error))

    def mask_path(self, case: Case) -> Path:
        """Mask of a case."""
        return self.folder / f"{case.name}_prediction.nii.gz"

    def picture_path(self, case: Case) -> Path:
        """Picture of a case."""
        return self.folder / f"{case.name}.png"

    def view_path(self, case: Case) -> Path:
        """Slices of a case for the report."""
        return self.folder / "views" / f"{case.name}.json"


def read_volume(path: Path) -> tuple[nib.Nifti1Image, str]:
    """A prepared volume in memory, and the SHA-256 of the unpacked file."""
    from isal import igzip

    with igzip.open(path, "rb") as file:
        content = file.read()
    image = nib.Nifti1Image.from_bytes(content)
    return nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine), sha256(content).hexdigest()


def hard_dice(mask: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float:
    """Dice of two masks, not both empty."""
    return 2 * int((mask & reference).sum()) / (int(mask.sum()) + int(reference.sum()))


def models_by_patient(models: Sequence[TrainedModel], subset: str) -> dict[str, tuple[int, ...]]:
    """Numbers of the models that segment each patient: those whose split has it in the subset.

    In a k-fold sweep that is one model a test patient; on a common test set all form an ensemble.

    Raises:
        PancsegError: If the subset is empty, or not ``test`` for several models.
    """
    if len(models) > 1 and subset != "test":
        raise PancsegError(
            f"subset={subset}: of {len(models)} checkpoints, those that held a patient out segment "
            "it: give subset=test, or one checkpoint"
        )
    found: dict[str, tuple[int, ...]] = {}
    for number, model in enumerate(models):
        for patient in getattr(model.split, subset):
            found[patient] = (*found.get(patient, ()), number)
    if not found:
        raise PancsegError(f"subset={subset}: the split has no such patient (split.{subset}=0)")
    return dict(sorted(found.items()))


def external_patients(
    models: Sequence[TrainedModel], manifest: Manifest
) -> dict[str, tuple[int, ...]]:
    """Numbers of all models for each labelled patient that none of them has seen.

    Raises:
        PancsegError: If there is no such patient.
    """
    seen = frozenset().union(*(model.seen for model in models))
    labelled = manifest.labelled_patients()
    if left_out := sorted(seen.intersection(labelled)):
        log.warning(
            "%d patients are left out, on whom the checkpoint was trained or chosen: %s",
            len(left_out),
            ", ".join(left_out),
        )
    numbers = tuple(range(len(models)))
    found = {patient: numbers for patient in labelled if patient not in seen}
    if not found:
        raise PancsegError("data.root: holds no labelled patient whom the checkpoint has not seen")
    return found


def are_held_out(models: Sequence[TrainedModel], by_patient: Mapping[str, Sequence[int]]) -> bool:
    """Whether no model that segments a patient was trained on or chosen by the patient."""
    return all(
        models[n].split.held_out and patient not in models[n].seen
        for patient, numbers in by_patient.items()
        for n in numbers
    )


def missing_folds(models: Sequence[TrainedModel], path: Path) -> list[int]:
    """Folds of a k-fold sweep without a run."""
    rules = [model.data["split"] for model in models if model.split.rule == "kfold"]
    if not path.is_dir() or (path / BEST).is_file() or not rules:
        return []
    return sorted(set(range(int(rules[0]["folds"]))) - {int(rule["fold"]) for rule in rules})


def check_run_folder(models: Sequence[TrainedModel]) -> None:
    """Check that checkpoints lie in the folder of the run that wrote them.

    Raises:
        PancsegError: If the split of the folder is another.
    """
    for model in models:
        path = model.path.parent.parent / "splits.json"
        if model.path.parent.name != "checkpoints" or not path.is_file():
            continue
        split = read_json(path, "a split", lambda v: isinstance(v, dict) and {*SUBSETS} <= v.keys())
        if any(split[subset] != getattr(model.split, subset) for subset in SUBSETS):
            raise PancsegError(
                f"checkpoint={model.path}: was trained on other patients than {path} has, so it "
                "is of another run; put the run's own checkpoint back, or score this one from "
                "another folder"
            )


def choose_postprocess(
    model: TrainedModel,
    options: PostprocessOptions,
    cases: Sequence[Case],
    root: Path,
    **device: Any,
) -> None:
    """Choose what is ``auto`` by the mean Dice over validation patients; write it for the model.

    Raises:
        PancsegError: If no validation patient has a reference.
    """
    recorded = read_postprocess(model.path) or DEFAULT
    predictor = Predictor([model], **device)

    def validation_cases() -> Any:
        for case in progress(cases, "choosing on val", "case"):
            reference = np.asanyarray(read_volume(root / str(case.label))[0].dataobj) > 0
            if reference.any():
                image, _ = read_volume(root / case.image)
                yield case.patient, predictor.predict(image).probability, reference

    if not any(case.label_voxels for case in cases):
        raise PancsegError(
            "postprocess: auto chooses on validation patients, and the split has none with a "
            "labelled voxel (split.val=0); give numbers"
        )
    chosen, n = choose(options.candidates(recorded), validation_cases())
    log.info("chosen on %d validation patients: %s", n, chosen.describe())
    values = {
        key: value if getattr(options, key) == AUTO else getattr(recorded, key)
        for key, value in asdict(chosen).items()
    }
    write_postprocess(model.path, type(chosen)(**values), chosen_on="val", n=n)
    log.info("         %s", postprocess_path(model.path))


def intake_flags(cases: Sequence[Case], root: Path) -> dict[str, list[str]]:
    """Flags of ``intake.csv`` that call for attention, by case."""
    rows = [row for row in read_rows(root) if row.kind == "image"]
    flags = {row.case: [f for f in row.flags.split() if f not in INFO_FLAGS] for row in rows}
    return {case.name: flags[case.name] for case in cases if flags.get(case.name)}


def find_masks(
    folder: Path, cases: Sequence[Case], structure: str, series_hash: Callable[[str], str]
) -> tuple[dict[str, Path], list[str]]:
    """Masks of a folder by case, and the names of those that belong to no case.

    A mask belongs to a case by the series UID in ``predictions.csv``, or by its name:
    ``<case>.nii.gz``, ``<case>_<structure>.nii.gz`` or ``<case>/<structure>.nii.gz``.

    Args:
        folder: The masks.
        cases: Of the prepared folder.
        structure: Name of the structure.
        series_hash: Keyed hash of a series UID, as the manifest keeps it.

    Raises:
        PancsegError: If the folder holds no mask.
    """
    if not folder.is_dir():
        raise PancsegError(f"predictions={folder}: there is no such folder")
    names = {case.name: case.name for case in cases}
    table = folder / "predictions.csv"
    if table.is_file():
        by_series = {case.series_hash: case.name for case in cases if case.series_hash}
        with table.open(newline="", encoding="utf-8", errors="surrogateescape") as lines:
            for row in csv.DictReader(lines):
                name = by_series.get(series_hash(row.get("series_uid") or "-"))
                if name and row.get("case"):
                    names[row["case"]] = name
    found, unknown = {}, []
    files = sorted([*folder.glob(f"*{MASK_SUFFIX}"), *folder.glob(f"*/{structure}{MASK_SUFFIX}")])
    for file in files:
        stem = file.name.removesuffix(MASK_SUFFIX)
        key = file.parent.name if file.parent != folder else stem.removesuffix(f"_{structure}")
        if name := names.get(stem) or names.get(key):
            found[name] = file
        elif not stem.endswith("_probability"):
            unknown.append(stem if file.parent == folder else key)
    if not found:
        raise PancsegError(
            f"predictions={folder}: no mask belongs to a case of data.root; expected "
            f"<case>{MASK_SUFFIX}, <case>_{structure}{MASK_SUFFIX} or "
            f"<case>/{structure}{MASK_SUFFIX}, such as {cases[0].name}{MASK_SUFFIX}"
        )
    return found, unknown


def unknown_row(name: str, columns: Mapping[str, Any]) -> dict[str, Any]:
    """Row of a mask that belongs to no case."""
    return {**dict.fromkeys(columns), "case": name, "status": NO_CASE}


def read_mask(path: Path | None, image: nib.Nifti1Image) -> NDArray[np.bool_]:
    """A mask of another tool on the grid of its scan; empty without a file.

    Raises:
        PancsegError: If it lies on another grid, or holds other values than 0 and 1.
    """
    if path is None:
        return np.zeros(image.shape, bool)
    mask = nib.Nifti1Image.from_filename(path)
    if mask.ndim != 3:
        raise PancsegError(f"{path.name}: has {mask.ndim} axes; expected 3")
    mask = oriented_like(mask, image)
    if not same_grid(mask.shape, mask.affine, image.shape, image.affine):
        raise PancsegError(
            f"{path.name}: shape {mask.shape} on another grid than the scan's {image.shape}; "
            "expected equal shape and affine"
        )
    values = np.asanyarray(mask.dataobj)
    if others := [v for v in np.unique(values) if v not in (0, 1)]:
        raise PancsegError(f"{path.name}: holds the value {others[0]:g}; expected 0 and 1")
    return values > 0
