"""Scoring of whole cases: masks of a checkpoint, or of other tools, against the references."""

import csv
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from pancseg import __version__
from pancseg.config import BEST
from pancseg.data.datamodule import data_fingerprint
from pancseg.data.manifest import Case, Manifest, read_manifest, read_rows
from pancseg.data.splits import SUBSETS
from pancseg.errors import Incomplete, PancsegError, brief, lacks_room
from pancseg.files import json_hash, read_json, write_json, write_nifti
from pancseg.geometry import bounding_box, oriented_like, same_grid, spacing_of
from pancseg.hardware import device_settings
from pancseg.inference import postprocessing
from pancseg.inference.calibration import calibration_path, fit_calibration, write_calibration
from pancseg.inference.checkpoint import open_checkpoints, run_folder_of
from pancseg.inference.postprocessing import AUTO, DEFAULT, PostprocessOptions
from pancseg.inference.predictor import Prediction, Predictor
from pancseg.inference.trained_model import TrainedModel
from pancseg.intake.checks import INFO_FLAGS
from pancseg.intake.pseudonyms import make_pseudonyms
from pancseg.metrics.case_scores import calibration_counts, no_scores, recipe_metric, score_case
from pancseg.metrics.lesions import LESION_COLUMNS, lesion_counts
from pancseg.metrics.surface import Mask
from pancseg.metrics.tables import FAILED, by_patient
from pancseg.parallel import progress
from pancseg.reports.pictures import draw_case, make_view
from pancseg.reports.run_folder import Run
from pancseg.structures import IGNORED, Structure, region_mask, region_masks

log = logging.getLogger(__name__)
CALIBRATION_MARGIN_MM = 20.0  # around both masks: far away every network is right
CAPTIONS = {True: "held out", False: "NOT HELD OUT", None: "not known whether held out"}
MASK_SUFFIX = ".nii.gz"
LABELS = "labels"  # ending of a file that holds the codes of all structures
ModelNumbers = dict[str, tuple[int, ...]]  # of the models that segment each patient


@dataclass(frozen=True)
class CaseScorer:
    """Scores cases of a prepared folder, each once, and leaves records and pictures in a run."""

    run: Run
    root: Path  # prepared folder
    cases: list[Case]
    about: dict[str, Any]  # facts in ``scores/<subset>.json``; ``subset`` names the table
    structures: tuple[Structure, ...]  # of the masks
    references: tuple[Structure, ...]  # of the labels
    tolerances_mm: list[float]  # of the normalised surface Dice
    segment: Callable[[Case, nib.Nifti1Image], tuple[NDArray[np.uint8], Sequence[Prediction]]]
    identity: Callable[[Case], Any]  # what decides a mask; a case is scored again where it changed
    folds: dict[str, int | None]  # of each patient in split=kfold

    def paths(self, case: Case) -> list[Path]:
        """Record, mask, and of each structure a picture and slices for the report."""
        folder = self.run.folder / "scores" / self.about["subset"]
        paths = [folder / f"{case.name}{ending}" for ending in (".json", "_prediction.nii.gz")]
        for structure in self.structures:
            name = case.name + f"_{structure.name}" * (len(self.structures) > 1)
            paths += [folder / f"{name}.png", folder / "views" / f"{name}.json"]
        return paths

    def score(self, case: Case) -> dict[str, Any]:
        """The record of a case: ``rows`` and ``calibrations``, one a structure, and ``changed``.

        A case that fails has rows, too, and is scored again next time.
        """
        path, mask_path, *_ = self.paths(case)
        try:
            paths = [self.root / name for name in (case.image, case.label) if name]
            files = [[(stat := p.stat()).st_size, stat.st_mtime_ns] for p in paths]
            key = json_hash([__version__, self.identity(case), self.tolerances_mm, files])
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
                    f"{path.parent}: cannot be written ({error.strerror}); make room and run the "
                    "same command again: what is scored stays"
                ) from error
            log.debug("%s", case.name, exc_info=True)
            for file in self.paths(case):
                file.unlink(missing_ok=True)
            reason = brief(error).replace(str(self.root), "...")  # reports name no folder of data
            status = f"{FAILED}: {type(error).__name__}: {reason}"
            scores = no_scores(self.tolerances_mm, status)
            rows = [self.row(case, structure, scores) for structure in self.structures]
            return {"rows": rows, "calibrations": [None] * len(rows), "changed": False}

    def score_anew(self, case: Case) -> dict[str, Any]:
        """Segment, write and score a case."""
        image, image_hash = read_volume(self.root / case.image)
        label, label_hash = read_volume(self.root / str(case.label))
        changed = (image_hash, label_hash) != (case.image_sha256, case.label_sha256)
        if changed:
            text = "%s: is not what pancseg.prepare wrote; it is used as it is"
            log.warning(text, self.root / case.image)
        codes, predictions = self.segment(case, image)
        _, mask_path, *pictures = self.paths(case)
        write_nifti(mask_path, nib.Nifti1Image(codes, image.affine))
        reference = np.asanyarray(label.dataobj)
        ignored = reference == IGNORED if case.ignored_voxels else None
        masks, rows, counts = region_masks(codes, self.structures), [], []
        for n, structure in enumerate(self.structures):
            mask, own = masks[n], region_mask(reference, self.references[n])
            mask = mask if ignored is None else mask & ~ignored
            prediction = without_ignored(predictions[n], ignored) if predictions else None
            row, count = self.score_structure(case, image, structure, mask, own, prediction)
            rows.append(row)
            counts.append(count)
            score = "no reference" if row["dice"] is None else f"Dice {row['dice']:.3f}"
            caption = "PHANTOM, " * self.about["phantoms"] + CAPTIONS[self.about["held_out"]]
            name = f"{case.name} {structure.name}" if len(masks) > 1 else case.name
            try:
                draw_case(pictures[2 * n], image, mask, own, f"{name} ({caption}): {score}")
                write_json(pictures[2 * n + 1], make_view(image, mask, own))
            except Exception as error:  # scores stand without a picture
                if lacks_room(error):
                    raise
                log.warning("%s: no picture (%s)", case.name, brief(error))
        return {"rows": rows, "calibrations": counts, "changed": changed}

    def score_structure(
        self,
        case: Case,
        image: nib.Nifti1Image,
        structure: Structure,
        mask: Mask,
        reference: Mask,
        prediction: Prediction | None,
    ) -> tuple[dict[str, Any], Any]:
        """Row of a structure in a case, and calibration counts where there is a reference."""
        scores, counts = score_case(mask, reference, image.affine, self.tolerances_mm), None
        row = self.row(case, structure, scores)
        if structure.kind == "lesion":
            row |= lesion_counts(mask, reference)
            if prediction is not None:
                row["max_probability"] = float(prediction.probability.max())
        if prediction is not None and reference.any():
            probability = prediction.probability
            (row["dice_plain"],) = postprocessing.dice_of_each([DEFAULT], probability, reference)
            row["recipe_metric"] = recipe_metric(probability, reference)
            row["expected_dice"] = prediction.expected_dice
            box = bounding_box(mask | reference, CALIBRATION_MARGIN_MM, spacing_of(image.affine))
            counts = calibration_counts(probability, reference, box).tolist()
        return row, counts

    def row(self, case: Case, structure: Structure, scores: dict[str, Any]) -> dict[str, Any]:
        """Columns of the table; those of lesions are empty."""
        has_lesions = any(s.kind == "lesion" for s in self.structures)
        return {
            "patient": case.patient,
            "case": case.name,
            **({"structure": structure.name} if len(self.structures) > 1 else {}),
            **{name: value for name, value in scores.items() if name != "status"},
            **dict.fromkeys(("dice_plain", "recipe_metric", "expected_dice")),
            **dict.fromkeys(LESION_COLUMNS if has_lesions else ()),
            "fold": self.folds.get(case.patient),
            **{f"spacing_{x}_mm": mm for x, mm in zip("xyz", case.spacing_mm, strict=True)},
            "manufacturer": case.manufacturer,
            "contrast": case.contrast,
            "status": scores["status"],
        }


def without_ignored(prediction: Prediction, ignored: Mask | None) -> Prediction:
    """A prediction with a probability of 0 where nobody labelled."""
    if ignored is not None:
        prediction.probability[ignored] = 0
    return prediction


def read_volume(path: Path) -> tuple[nib.Nifti1Image, str]:
    """A prepared volume in memory, and the SHA-256 of the unpacked file."""
    from isal import igzip

    with igzip.open(path, "rb") as file:
        content = file.read()
    image = nib.Nifti1Image.from_bytes(content)
    return nib.Nifti1Image(np.asanyarray(image.dataobj), image.affine), sha256(content).hexdigest()


def model_scorer(cfg: DictConfig) -> CaseScorer:
    """Score a checkpoint, or the checkpoints of a sweep, on a subset or another prepared folder."""
    path, options = Path(cfg.checkpoint), PostprocessOptions(**cfg.postprocess)
    device, models = device_settings(cfg.hardware), open_checkpoints(path)
    check_run_folder(models)
    first, trained_root = models[0], Path(models[0].data["root"])
    root = prepared_folder(cfg, models)
    manifest = read_manifest(root)
    references = matching_structures(models, manifest, root)
    is_own = root.resolve() == trained_root or (
        first.fingerprint == data_fingerprint(manifest, first.preprocessing)
    )
    if is_own:
        name = cfg.subset or "test"
        patients = models_by_patient(models, name)
        pairs = [(patient, models[n]) for patient, numbers in patients.items() for n in numbers]
        held_out = name == "test" and all(m.split.held_out and p not in m.seen for p, m in pairs)
    elif cfg.subset:
        raise PancsegError(
            f"data.root={root}: is not the folder that was trained on, and all of its patients are "
            "scored; leave subset out"
        )
    else:
        name, patients = f"external_{root.resolve().name}", external_patients(models, manifest)
        held_out = True if manifest.settings.get("names") == first.names else None
        if held_out is None:
            reason = (
                "data.root has another privacy key" if first.names else "nnU-Net keeps no names"
            )
            log.warning("%s: patients may have been trained on", reason)
    cases = manifest.cases_of(patients)
    if missing := sorted(set(patients) - {case.patient for case in cases}):
        raise PancsegError(
            f"data.root={root}: has no label of {len(missing)} {name} patients, such as "
            f"{missing[0]}; give the folder the checkpoint was trained on"
        )
    if absent := missing_folds(models, path):
        log.warning("folds %s have no run: their patients are not scored", absent)
    for model in models if options.is_auto else ():
        val = manifest.cases_of(model.split.val)
        choose_postprocess(model, options, val, root, **device)
    predictors = {
        numbers: Predictor([models[n] for n in numbers], options=options, **device)
        for numbers in set(patients.values())
    }
    identities = {numbers: predictor.identity() for numbers, predictor in predictors.items()}
    names = keys_of(first.structures)
    read = postprocessing.read_postprocess
    is_chosen = any(read(model.path, key) for model in models for key in names)
    origin = "given" if options.is_given else "validation" if is_chosen else "plain"
    used_settings = [
        [asdict(p) for p in dict.fromkeys(each.postprocess[n] for each in predictors.values())]
        for n in range(len(names))
    ]
    used = [models[n] for n in sorted(set().union(*patients.values()))]
    alone = {patient: models[ns[0]] for patient, ns in patients.items() if len(ns) == 1}
    about = {
        "subset": name,
        "held_out": held_out,
        "split": {"rule": first.split.rule, "seed": first.split.seed},
        "geometry": "whole cases on their own grid, "
        f"{'groups' if first.depth else 'windows'} put together by mean probability",
        "checkpoints": len(used),
        "checkpoint": sorted({model.path.name for model in used}),
        "models_per_patient": max(map(len, patients.values())),
        "checkpoint_epoch": [model.epoch for model in used],
        "data_fingerprint": first.fingerprint,
        "arithmetic": device["precision"],
        "postprocess": used_settings[0] if len(names) == 1 else used_settings,
        "postprocess_origin": origin,
        "missing_folds": absent,
        **facts_of(cases, root),
    }

    def segment(case: Case, image: nib.Nifti1Image) -> tuple[Any, list[Prediction]]:
        # the box of all probabilities above 0: recipe_metric sums over the whole scan
        predictor = predictors[patients[case.patient]]
        predictions = predictor.predict_structures(image, min_probability=0.0)
        return predictions[0].codes, predictions

    def identity(case: Case) -> Any:
        return identities[patients[case.patient]]

    run = Run(run_folder_of(path), [run_folder_of(model.path) for model in models])
    folds = {patient: model.data["split"].get("fold") for patient, model in alone.items()}
    scored = first.structures, references, list(cfg.nsd_tolerances_mm)
    return CaseScorer(run, root, cases, about, *scored, segment, identity, folds)


def mask_scorer(cfg: DictConfig) -> CaseScorer:
    """Score masks of other tools on the labelled cases of a prepared folder.

    With ``checkpoint`` on the patients of a subset of its split alone.
    """
    models = open_checkpoints(Path(cfg.checkpoint)) if cfg.checkpoint else []
    root = prepared_folder(cfg, models)
    folder, manifest = Path(cfg.predictions), read_manifest(root)
    patients = manifest.labelled_patients()
    labelled = manifest.cases_of(patients)
    chosen = models_by_patient(models, cfg.subset or "test") if models else patients
    cases = manifest.cases_of(chosen)
    if not cases:
        raise PancsegError(f"data.root={root}: holds no labelled case to score against")
    key_file = Path(cfg.privacy.key_file or root.parent / "privacy.key")
    names = "none" if manifest.settings.get("names") == "none" else "pseudonym"
    has_key = names == "none" or key_file.is_file()
    series_hash = make_pseudonyms(names, key_file).hash if has_key else (lambda uid: "unknown")
    structures = manifest.structures
    masks, unknown = find_masks(folder, labelled, structures, series_hash)
    if without := [case.name for case in cases if case.name not in masks]:
        text = "%d cases have no mask and count as missed: %s"
        log.warning(text, len(without), ", ".join(without))

    def segment(case: Case, image: nib.Nifti1Image) -> tuple[Any, tuple[()]]:
        return read_masks(masks.get(case.name, {}), image, structures), ()

    def identity(case: Case) -> Any:
        paths = masks.get(case.name, {}).values()
        return [[str(p), (stat := p.stat()).st_size, stat.st_mtime_ns] for p in paths]

    about = {
        "subset": "external",
        "held_out": None,
        "geometry": "whole cases on their own grid",
        "predictions": folder.name,
        "without_mask": without,
        "without_case": unknown,
        **facts_of(cases, root),
    }
    scored = structures, structures, list(cfg.nsd_tolerances_mm)
    run = Run(Path(cfg.output), [])
    return CaseScorer(run, root, cases, about, *scored, segment, identity, folds={})


def prepared_folder(cfg: DictConfig, models: Sequence[TrainedModel]) -> Path:
    """``data.root``, else the folder that the first model was trained on."""
    if root := cfg.data.root or models[0].data["root"]:
        return Path(root)
    raise PancsegError(f"checkpoint={cfg.checkpoint}: is of nnU-Net; give data.root=PREPARED")


def matching_structures(
    models: Sequence[TrainedModel], manifest: Manifest, root: Path
) -> tuple[Structure, ...]:
    """Structures of a folder with the names of those of the networks, in their order."""
    names = [[structure.name for structure in model.structures] for model in models]
    own = {structure.name: structure for structure in manifest.structures}
    if other := next((each for each in names if each != names[0]), None):
        raise PancsegError(f"checkpoint: networks of {names[0]} and of {other}; score them apart")
    if missing := [name for name in names[0] if name not in own]:
        raise PancsegError(
            f"data.root={root}: has labels of {', '.join(own)}, none of {missing[0]}, which the "
            "checkpoint segments; prepare a folder with structures of these names"
        )
    return tuple(own[name] for name in names[0])


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
    labelled = [case for case in cases if case.label_voxels]
    if not labelled:
        raise PancsegError(
            "postprocess: auto chooses on validation patients, and the split has none with a "
            "labelled voxel (split.val=0); give numbers"
        )
    predictor, keys = Predictor([model], **device), keys_of(model.structures)
    read = postprocessing.read_postprocess
    recorded = [read(model.path, key) or DEFAULT for key in keys]
    pairs = zip(recorded, model.structures, strict=True)
    candidates = [options.candidates(values, structure.kind) for values, structure in pairs]
    dice: list[list[Any]] = [[] for _ in keys]
    for case in progress(labelled, "choosing on val", "case"):
        image, label = (read_volume(root / str(n))[0] for n in (case.image, case.label))
        codes = np.asanyarray(label.dataobj)
        ignored = codes == IGNORED if case.ignored_voxels else None
        for n, prediction in enumerate(predictor.predict_structures(image)):
            without_ignored(prediction, ignored)
            if (reference := region_mask(codes, prediction.structure)).any():
                tried = postprocessing.dice_of_each(
                    candidates[n], prediction.probability, reference
                )
                dice[n].append((case.patient, *tried))
    for n, key in enumerate(keys):
        chosen, count = postprocessing.choose(candidates[n], dice[n])
        of = f" for {key}" * bool(key)
        log.info("chosen on %d validation patients%s: %s", count, of, chosen.describe())
        auto = {name: v for name, v in asdict(chosen).items() if getattr(options, name) == AUTO}
        values, details = replace(recorded[n], **auto), {"chosen_on": "val", "n": count}
        postprocessing.write_postprocess(model.path, values, key, **details)
        log.info("         %s", postprocessing.postprocess_path(model.path, key))


def keys_of(structures: Sequence[Structure]) -> list[str]:
    """Keys of structures in file names; empty for the only structure."""
    return [s.name for s in structures] if len(structures) > 1 else [""]


def facts_of(cases: Sequence[Case], root: Path) -> dict[str, Any]:
    """Whether cases are phantoms, and their flags in ``intake.csv`` that call for attention."""
    rows = [row for row in read_rows(root) if row.kind == "image"]
    flags = {row.case: [f for f in row.flags.split() if f not in INFO_FLAGS] for row in rows}
    return {
        "phantoms": any(case.phantom for case in cases),
        "flags": {case.name: flags[case.name] for case in cases if flags.get(case.name)},
    }


def find_masks(
    folder: Path,
    cases: Sequence[Case],
    structures: Sequence[Structure],
    series_hash: Callable[[str], str],
) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """Masks of a folder by case and structure, and the names of those that belong to no case.

    A mask belongs to a case by the series UID in ``predictions.csv``, whose keyed hash the manifest
    keeps, or by its name: ``<case>_<structure>.nii.gz`` or ``<case>/<structure>.nii.gz``; and under
    the structure ``labels``, with the codes of all, ``<case>.nii.gz`` or ``<case>_labels.nii.gz``.
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
    masks: dict[str, dict[str, Path]] = {}
    unknown, endings = [], [s.name for s in structures] + [LABELS]
    files = [*folder.glob(f"*{MASK_SUFFIX}")]
    files += [f for end in endings for f in folder.glob(f"*/{end}{MASK_SUFFIX}")]
    for file in sorted(files):
        stem = file.name.removesuffix(MASK_SUFFIX)
        if file.parent != folder:
            key, ending = file.parent.name, stem
        else:
            ending = next((end for end in endings if stem.endswith(f"_{end}")), LABELS)
            key = stem.removesuffix(f"_{ending}")
        if stem in names and file.parent == folder:
            masks.setdefault(names[stem], {})[LABELS] = file
        elif key in names:
            masks.setdefault(names[key], {})[ending] = file
        elif not stem.endswith("_probability"):
            unknown.append(stem if file.parent == folder else key)
    if not masks:
        raise PancsegError(
            f"predictions={folder}: no mask belongs to a case of data.root; expected names such as "
            f"{cases[0].name}{MASK_SUFFIX}, see docs/howto/external_validation.md"
        )
    return masks, unknown


def read_masks(
    paths: dict[str, Path], image: nib.Nifti1Image, structures: Sequence[Structure]
) -> NDArray[np.uint8]:
    """Structure codes of masks of another tool on the grid of a scan; 0 without a file."""
    if LABELS in paths:
        return read_mask(paths[LABELS], image, len(structures))
    codes = np.zeros(image.shape, np.uint8)
    for code, structure in enumerate(structures, start=1):
        if structure.name in paths:
            codes[read_mask(paths[structure.name], image, 1) > 0] = code
    return codes


def read_mask(path: Path, image: nib.Nifti1Image, highest: int) -> NDArray[np.uint8]:
    """A file with values from 0 to ``highest`` on the grid of its scan."""
    mask = nib.Nifti1Image.from_filename(path)
    mask = oriented_like(mask, image) if mask.ndim == 3 else mask
    if not same_grid(mask.shape, mask.affine, image.shape, image.affine):
        raise PancsegError(
            f"{path.name}: shape {mask.shape} on another grid than the scan's {image.shape}; "
            "expected equal shape and affine"
        )
    values = np.asanyarray(mask.dataobj)
    if others := [v for v in np.unique(values) if v not in range(highest + 1)]:
        expected = " and ".join(map(str, range(2))) if highest == 1 else f"0 to {highest}"
        raise PancsegError(f"{path.name}: holds the value {others[0]:g}; expected {expected}")
    return values.astype(np.uint8)


def calibrate(checkpoint: Path, rows: list[dict[str, Any]], structure: str = "") -> None:
    """Fit the confidence of ``predict`` to the Dice of validation patients."""
    expected, dice = (list(by_patient(rows, name).values()) for name in ("expected_dice", "dice"))
    calibration = fit_calibration(expected, dice)
    if calibration.n:
        write_calibration(checkpoint, calibration, structure)
        text = "confidence of predict: expected Dice times %s  %s"
        log.info(text, calibration.scale, calibration_path(checkpoint, structure))
