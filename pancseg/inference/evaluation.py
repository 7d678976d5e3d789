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

from pancseg import __version__
from pancseg.config import BEST
from pancseg.data.datamodule import json_hash
from pancseg.data.manifest import Case, Manifest, read_rows
from pancseg.data.splits import SUBSETS
from pancseg.errors import Incomplete, PancsegError, brief, lacks_room
from pancseg.files import read_json, write_json, write_nifti
from pancseg.geometry import bounding_box, oriented_like, same_grid, spacing_of
from pancseg.inference import postprocessing
from pancseg.inference.checkpoint import TrainedModel
from pancseg.inference.postprocessing import AUTO, DEFAULT, Postprocess, PostprocessOptions
from pancseg.inference.predictor import Prediction, Predictor
from pancseg.intake.checks import INFO_FLAGS
from pancseg.metrics.case_scores import calibration_counts, no_scores, recipe_metric, score_case
from pancseg.metrics.surface import Mask
from pancseg.metrics.tables import FAILED
from pancseg.parallel import progress
from pancseg.reports.pictures import draw_case, make_view

log = logging.getLogger(__name__)
CALIBRATION_MARGIN_MM = 20.0  # around both masks: far away every network is right
MASK_SUFFIX = ".nii.gz"
ModelNumbers = dict[str, tuple[int, ...]]  # of the models that segment each patient


@dataclass(frozen=True)
class CaseScorer:
    """Scores the cases of a prepared folder, each once."""

    root: Path  # prepared folder
    folder: Path  # of masks, pictures and records
    tolerances_mm: Sequence[float]  # of the normalised surface Dice
    caption: str  # in every picture
    segment: Callable[[Case, nib.Nifti1Image], tuple[Mask, Prediction | None]]
    identity: Callable[[Case], Any]  # what decides a mask; a case is scored again where it changed
    folds: Mapping[str, int | None]  # of each patient in split=kfold

    def paths(self, case: Case) -> list[Path]:
        """Record, mask, picture, and slices for the report."""
        endings = (".json", "_prediction.nii.gz", ".png")
        view = self.folder / "views" / f"{case.name}.json"
        return [*(self.folder / f"{case.name}{ending}" for ending in endings), view]

    def score(self, case: Case) -> dict[str, Any]:
        """The record of a case: ``row`` of the table, ``calibration`` counts, ``changed``.

        A case that fails has a row, too, and is scored again next time.
        """
        path, mask_path, *_ = self.paths(case)
        try:
            key = self.key(case)
            if path.is_file() and mask_path.is_file():
                with suppress(PancsegError):  # damaged, or of another mask: it is scored again
                    return read_json(
                        path, "scores", lambda v: isinstance(v, dict) and v.get("key") == key
                    )
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
            for file in self.paths(case):
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
        write_nifti(self.paths(case)[1], nib.Nifti1Image(mask.view(np.uint8), image.affine))
        row = self.row(case, score_case(mask, reference, image.affine, self.tolerances_mm))
        counts = None
        if prediction is not None and reference.any():
            probability = prediction.probability
            (row["dice_plain"],) = postprocessing.dice_of_each([DEFAULT], probability, reference)
            row["recipe_metric"] = recipe_metric(probability, reference)
            row["expected_dice"] = prediction.expected_dice
            box = bounding_box(mask | reference, CALIBRATION_MARGIN_MM, spacing_of(image.affine))
            counts = calibration_counts(probability, reference, box).tolist()
        self.draw(case, image, mask, reference, row["dice"])
        return {"row": row, "calibration": counts, "changed": changed}

    def row(self, case: Case, scores: dict[str, Any]) -> dict[str, Any]:
        """Columns of the table."""
        return {
            "patient": case.patient,
            "case": case.name,
            **{name: value for name, value in scores.items() if name != "status"},
            **dict.fromkeys(("dice_plain", "recipe_metric", "expected_dice")),
            "fold": self.folds.get(case.patient),
            **{f"spacing_{x}_mm": mm for x, mm in zip("xyz", case.spacing_mm, strict=True)},
            "manufacturer": case.manufacturer,
            "contrast": case.contrast,
            "status": scores["status"],
        }

    def draw(
        self, case: Case, image: nib.Nifti1Image, mask: Mask, reference: Mask, dice: float | None
    ) -> None:
        """Draw a case for the folder and the report; scores stand without a picture."""
        score = "no reference" if dice is None else f"Dice {dice:.3f}"
        *_, picture, view = self.paths(case)
        try:
            draw_case(picture, image, mask, reference, f"{case.name} ({self.caption}): {score}")
            write_json(view, make_view(image, mask, reference))
        except Exception as error:
            if lacks_room(error):
                raise
            log.warning("%s: no picture (%s)", case.name, brief(error))


def read_volume(path: Path) -> tuple[nib.Nifti1Image, str]:
    """A prepared volume in memory, and the SHA-256 of the unpacked file."""
    from isal import igzip

    with igzip.open(path, "rb") as file:
        content = file.read()
    image = nib.Nifti1Image.from_bytes(content)
    return nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine), sha256(content).hexdigest()


def models_by_patient(models: Sequence[TrainedModel], subset: str) -> ModelNumbers:
    """Models whose split has a patient in the subset.

    In a k-fold sweep that is one model a test patient; on a common test set all form an ensemble.
    """
    if len(models) > 1 and subset != "test":
        raise PancsegError(
            f"subset={subset}: with several checkpoints, each patient is segmented by those that "
            "held it out: give subset=test, or one checkpoint"
        )
    numbers: ModelNumbers = {}
    for number, model in enumerate(models):
        for patient in getattr(model.split, subset):
            numbers[patient] = (*numbers.get(patient, ()), number)
    if not numbers:
        raise PancsegError(f"subset={subset}: the split has no such patient (split.{subset}=0)")
    return dict(sorted(numbers.items()))


def external_patients(models: Sequence[TrainedModel], manifest: Manifest) -> ModelNumbers:
    """All models, for each labelled patient whom none of them has seen."""
    seen = frozenset().union(*(model.seen for model in models))
    labelled = manifest.labelled_patients()
    if left_out := sorted(seen.intersection(labelled)):
        text = "%d patients are left out, on whom the checkpoint was trained or chosen: %s"
        log.warning(text, len(left_out), ", ".join(left_out))
    patients = [patient for patient in labelled if patient not in seen]
    if not patients:
        raise PancsegError("data.root: holds no labelled patient whom the checkpoint has not seen")
    return dict.fromkeys(patients, tuple(range(len(models))))


def are_held_out(models: Sequence[TrainedModel], by_patient: ModelNumbers) -> bool:
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
    """Check that checkpoints lie in the folder of the run that wrote them."""
    for model in models:
        path = model.path.parent.parent / "splits.json"
        if model.path.parent.name == "checkpoints" and path.is_file():
            split = read_json(path, "a split")
            if any(split.get(subset) != getattr(model.split, subset) for subset in SUBSETS):
                raise PancsegError(
                    f"checkpoint={model.path}: was trained on other patients than {path} has, so "
                    "it is of another run; put the run's own checkpoint back, or score this one "
                    "from another folder"
                )


def choose_postprocess(
    model: TrainedModel, options: PostprocessOptions, cases: list[Case], root: Path, **device: Any
) -> None:
    """Choose what is ``auto`` by the mean Dice over validation cases; write it for the model."""
    if not any(case.label_voxels for case in cases):
        raise PancsegError(
            "postprocess: auto chooses on validation patients, and the split has none with a "
            "labelled voxel (split.val=0); give numbers"
        )
    recorded = postprocessing.read_postprocess(model.path) or DEFAULT
    predictor = Predictor([model], **device)

    def volumes() -> Any:
        for case in progress(cases, "choosing on val", "case"):
            reference = np.asanyarray(read_volume(root / str(case.label))[0].dataobj) > 0
            if reference.any():
                image, _ = read_volume(root / case.image)
                yield case.patient, predictor.predict(image).probability, reference

    chosen, n = postprocessing.choose(options.candidates(recorded), volumes())
    log.info("chosen on %d validation patients: %s", n, chosen.describe())
    values = {
        key: value if getattr(options, key) == AUTO else getattr(recorded, key)
        for key, value in asdict(chosen).items()
    }
    postprocessing.write_postprocess(model.path, Postprocess(**values), chosen_on="val", n=n)
    log.info("         %s", postprocessing.postprocess_path(model.path))


def intake_flags(cases: Sequence[Case], root: Path) -> dict[str, list[str]]:
    """Flags of ``intake.csv`` that call for attention, by case."""
    rows = [row for row in read_rows(root) if row.kind == "image"]
    flags = {row.case: [f for f in row.flags.split() if f not in INFO_FLAGS] for row in rows}
    return {case.name: flags[case.name] for case in cases if flags.get(case.name)}


def find_masks(
    folder: Path, cases: Sequence[Case], structure: str, series_hash: Callable[[str], str]
) -> tuple[dict[str, Path], list[str]]:
    """Masks of a folder by case, and the names of those that belong to no case.

    A mask belongs to a case by the series UID in ``predictions.csv``, whose keyed hash the manifest
    keeps, or by its name: ``<case>.nii.gz``, ``<case>_<structure>.nii.gz`` or
    ``<case>/<structure>.nii.gz``.
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
    masks, unknown = {}, []
    files = [*folder.glob(f"*{MASK_SUFFIX}"), *folder.glob(f"*/{structure}{MASK_SUFFIX}")]
    for file in sorted(files):
        stem = file.name.removesuffix(MASK_SUFFIX)
        key = file.parent.name if file.parent != folder else stem.removesuffix(f"_{structure}")
        if name := names.get(stem) or names.get(key):
            masks[name] = file
        elif not stem.endswith("_probability"):
            unknown.append(stem if file.parent == folder else key)
    if not masks:
        raise PancsegError(
            f"predictions={folder}: no mask belongs to a case of data.root; expected names such as "
            f"{cases[0].name}{MASK_SUFFIX}, see docs/scores.md"
        )
    return masks, unknown


def read_mask(path: Path | None, image: nib.Nifti1Image) -> Mask:
    """A mask of another tool on the grid of its scan; empty without a file."""
    if path is None:
        return np.zeros(image.shape, bool)
    mask = nib.Nifti1Image.from_filename(path)
    mask = oriented_like(mask, image) if mask.ndim == 3 else mask
    if not same_grid(mask.shape, mask.affine, image.shape, image.affine):
        raise PancsegError(
            f"{path.name}: shape {mask.shape} on another grid than the scan's {image.shape}; "
            "expected equal shape and affine"
        )
    values = np.asanyarray(mask.dataobj)
    if others := [v for v in np.unique(values) if v not in (0, 1)]:
        raise PancsegError(f"{path.name}: holds the value {others[0]:g}; expected 0 and 1")
    return values > 0
