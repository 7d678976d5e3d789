"""``python -m pancseg.evaluate``: scores of whole cases on the scan's own grid."""

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from pancseg.cli import command
from pancseg.errors import Incomplete, PancsegError

log = logging.getLogger(__name__)
SUBSETS = ("train", "val", "test")
CAPTIONS = {True: "held out", False: "NOT HELD OUT", None: "not known whether held out"}


@dataclass(frozen=True)
class EvaluationPlan:
    """Plan of an evaluation: cases, how their masks are made, and facts for the JSON."""

    name: str  # of the table: a subset, ``external_<root>`` or ``external``
    folder: Path  # of a run, a sweep or the output
    run_folders: list[Path]
    root: Path  # prepared folder
    cases: list[Any]
    about: dict[str, Any]  # facts in ``scores/<name>.json``
    scorer: dict[str, Any]  # arguments of ``CaseScorer``
    unknown: list[str]  # masks that belong to no case


def evaluate(cfg: DictConfig) -> float | None:
    """Score masks of a checkpoint, a sweep or another tool; return the mean Dice over patients.

    Incomplete if a case failed; the others are scored.
    """
    check_request(cfg)
    from pancseg.files import check_writable
    from pancseg.inference.evaluation import CaseScorer, intake_flags
    from pancseg.metrics.tables import summarise, write_scores
    from pancseg.parallel import progress, throttled
    from pancseg.reports.run_folder import Run
    from pancseg.reports.run_report import write_run_report
    from pancseg.reports.tables import print_scores

    plan = plan_masks(cfg) if cfg.predictions else plan_models(cfg)
    name, folder, cases = plan.name, plan.folder / "scores", plan.cases
    check_writable(folder, "output" if cfg.predictions else "checkpoint")
    about: Any = {"phantoms": any(c.phantom for c in cases)}
    about["flags"] = intake_flags(cases, plan.root)
    about |= plan.about
    caption = ("PHANTOM, " if about["phantoms"] else "") + CAPTIONS[about["held_out"]]
    tolerances = list(cfg.nsd_tolerances_mm)
    scorer = CaseScorer(plan.root, folder / name, tolerances, caption, **plan.scorer)
    records: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    write_now_and_then = throttled(lambda: write_scores(folder, name, rows))
    for case in progress(cases, f"scoring {name}", "case"):
        records.append(scorer.score(case))
        rows.append(records[-1]["row"])
        write_now_and_then()
    calibrations: dict[str, list[Any]] = {}
    for record in records:
        if record["calibration"]:
            calibrations.setdefault(record["row"]["patient"], []).append(record["calibration"])
    about["changed_since_prepared"] = [r["row"]["case"] for r in records if r["changed"]]
    figures = summarise(rows, calibrations, about)
    rows += [{**dict.fromkeys(rows[0]), "case": n, "status": "no_case"} for n in plan.unknown]
    write_scores(folder, name, rows, figures)
    if name == "val" and about["postprocess_origin"] != "given":
        calibrate(Path(cfg.checkpoint), rows)
    print_scores(rows, figures, name)
    table = folder / f"{name}.csv"
    log.info("scores   %s\npictures %s", table, folder / name / "*.png")
    log.info("report   %s", write_run_report(Run(plan.folder, plan.run_folders), name))
    if figures["failed"]:
        raise Incomplete(f"{len(figures['failed'])} of {len(cases)} cases failed; see {table}")
    if plan.unknown:
        raise Incomplete(f"{len(plan.unknown)} masks belong to no case; see {table}")
    return figures["dice"]["mean"]


def check_request(cfg: DictConfig) -> None:
    """Check the options before anything is opened."""
    if (cfg.checkpoint is None) == (cfg.predictions is None):
        raise PancsegError(
            "give checkpoint=RUN/checkpoints/best.ckpt, or predictions=FOLDER of masks to score"
        )
    if not isinstance(cfg.checkpoint, str | None):
        raise PancsegError(f"checkpoint={cfg.checkpoint}: expected one, or the folder of a sweep")
    if cfg.subset not in (None, *SUBSETS):
        raise PancsegError(f"subset={cfg.subset}: expected one of {', '.join(SUBSETS)}")
    if cfg.predictions and (cfg.subset or cfg.data.root is None):
        raise PancsegError("predictions: needs data.root=PREPARED, and scores all of its cases")
    tolerances = list(cfg.nsd_tolerances_mm)
    if not tolerances or not all(mm > 0 for mm in tolerances):
        raise PancsegError(f"nsd_tolerances_mm={tolerances}: expected lengths above 0 mm")


def plan_models(cfg: DictConfig) -> EvaluationPlan:
    """Score a checkpoint, or the checkpoints of a sweep, on a subset or another prepared folder."""
    from pancseg.data.datamodule import data_fingerprint
    from pancseg.data.manifest import read_manifest
    from pancseg.hardware import device_settings
    from pancseg.inference import evaluation as ev
    from pancseg.inference.checkpoint import open_checkpoints, run_folder_of
    from pancseg.inference.postprocessing import PostprocessOptions, read_postprocess
    from pancseg.inference.predictor import Predictor

    path, options = Path(cfg.checkpoint), PostprocessOptions(**cfg.postprocess)
    device, models = device_settings(cfg.hardware), open_checkpoints([path])
    ev.check_run_folder(models)
    first, trained_root = models[0], Path(models[0].data["root"])
    root = Path(cfg.data.root or trained_root)
    manifest = read_manifest(root)
    is_own = root.resolve() == trained_root or (
        first.fingerprint == data_fingerprint(manifest, first.preprocessing)
    )
    if is_own:
        name = cfg.subset or "test"
        patients = ev.models_by_patient(models, name)
        held_out = name == "test" and ev.are_held_out(models, patients)
    elif cfg.subset:
        raise PancsegError(
            f"data.root={root}: is not the folder that was trained on, and all of its patients are "
            "scored; leave subset out"
        )
    else:
        name, patients = f"external_{root.resolve().name}", ev.external_patients(models, manifest)
        held_out = True if manifest.settings.get("names") == first.names else None
        if held_out is None:
            log.warning("data.root has another privacy key: patients may have been trained on")
    cases = manifest.cases_of(patients)
    if missing := sorted(set(patients) - {case.patient for case in cases}):
        raise PancsegError(
            f"data.root={root}: has no label of {len(missing)} {name} patients, such as "
            f"{missing[0]}; give the folder the checkpoint was trained on"
        )
    if absent := ev.missing_folds(models, path):
        log.warning("folds %s have no run: their patients are not scored", absent)
    for model in models if options.is_auto else ():
        val = manifest.cases_of(model.split.val)
        ev.choose_postprocess(model, options, val, root, **device)
    predictors = {
        numbers: Predictor([models[n] for n in numbers], options=options, **device)
        for numbers in set(patients.values())
    }
    identities = {numbers: predictor.identity() for numbers, predictor in predictors.items()}
    is_chosen = any(read_postprocess(model.path) for model in models)
    origin = "given" if options.is_given else "validation" if is_chosen else "plain"
    postprocess = dict.fromkeys(predictor.postprocess for predictor in predictors.values())
    used = [models[n] for n in sorted({n for numbers in patients.values() for n in numbers})]
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
        "postprocess": [asdict(values) for values in postprocess],
        "postprocess_origin": origin,
        "missing_folds": absent,
    }

    def segment(case: Any, image: Any) -> Any:
        # the box of all probabilities above 0: recipe_metric sums over the whole scan
        prediction = predictors[patients[case.patient]].predict(image, min_probability=0.0)
        return prediction.mask, prediction

    scorer = {
        "segment": segment,
        "identity": lambda case: identities[patients[case.patient]],
        "folds": {
            p: models[ns[0]].data["split"].get("fold") for p, ns in patients.items() if len(ns) == 1
        },
    }
    run_folders = [run_folder_of(model.path) for model in models]
    return EvaluationPlan(name, run_folder_of(path), run_folders, root, cases, about, scorer, [])


def plan_masks(cfg: DictConfig) -> EvaluationPlan:
    """Score masks of other tools on all labelled cases of a prepared folder."""
    from pancseg.data.manifest import read_manifest
    from pancseg.inference import evaluation as ev
    from pancseg.intake.pseudonyms import make_pseudonyms

    root, folder = Path(cfg.data.root), Path(cfg.predictions)
    manifest = read_manifest(root)
    cases = manifest.cases_of(manifest.labelled_patients())
    if not cases:
        raise PancsegError(f"data.root={root}: holds no labelled case to score against")
    key_file = Path(cfg.privacy.key_file or root.parent / "privacy.key")
    names = "none" if manifest.settings.get("names") == "none" else "pseudonym"
    has_key = names == "none" or key_file.is_file()
    series_hash = make_pseudonyms(names, key_file).hash if has_key else (lambda uid: "unknown")
    masks, unknown = ev.find_masks(folder, cases, manifest.structures[0].name, series_hash)
    if without := [case.name for case in cases if case.name not in masks]:
        text = "%d cases have no mask and count as missed: %s"
        log.warning(text, len(without), ", ".join(without))

    def identity(case: Any) -> Any:
        path = masks.get(case.name)
        return path and [str(path), path.stat().st_size, path.stat().st_mtime_ns]

    about = {
        "subset": "external",
        "held_out": None,
        "geometry": "whole cases on their own grid",
        "predictions": folder.name,
        "without_mask": without,
        "without_case": unknown,
    }
    scorer = {
        "segment": lambda case, image: (ev.read_mask(masks.get(case.name), image), None),
        "identity": identity,
        "folds": {},
    }
    return EvaluationPlan("external", Path(cfg.output), [], root, cases, about, scorer, unknown)


def calibrate(path: Path, rows: list[dict[str, Any]]) -> None:
    """Fit the confidence of ``predict`` to the Dice of validation patients."""
    from pancseg.inference.calibration import calibration_path, fit_calibration, write_calibration
    from pancseg.inference.checkpoint import checkpoint_paths
    from pancseg.metrics.tables import by_patient

    (checkpoint,) = checkpoint_paths(path)
    expected, dice = (list(by_patient(rows, name).values()) for name in ("expected_dice", "dice"))
    calibration = fit_calibration(expected, dice)
    if calibration.n:
        write_calibration(checkpoint, calibration)
        text = "confidence of predict: expected Dice times %s  %s"
        log.info(text, calibration.scale, calibration_path(checkpoint))


main = command(evaluate)

if __name__ == "__main__":
    main()
