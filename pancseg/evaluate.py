"""``python -m pancseg.evaluate``: scores of whole cases on the scan's own grid."""

import logging
from collections import defaultdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from pancseg.cli import command
from pancseg.errors import Incomplete, PancsegError

log = logging.getLogger(__name__)
SUBSETS = ("train", "val", "test")


def evaluate(cfg: DictConfig) -> float | None:
    """Score masks of a checkpoint, a sweep or another tool; return the mean Dice over patients.

    Incomplete if a case failed; the others are scored.
    """
    check_request(cfg)
    from pancseg.files import check_writable
    from pancseg.inference import evaluation
    from pancseg.inference.checkpoint import checkpoint_paths
    from pancseg.metrics.tables import summarise, write_scores
    from pancseg.parallel import progress, throttled
    from pancseg.reports.run_report import write_run_report
    from pancseg.reports.tables import print_scores

    scorer = evaluation.mask_scorer(cfg) if cfg.predictions else evaluation.model_scorer(cfg)
    about, folder = scorer.about, scorer.run.folder / "scores"
    name, unknown = about["subset"], about.get("without_case", [])
    check_writable(folder, "output" if cfg.predictions else "checkpoint")
    rows: list[dict[str, Any]] = []
    structures = [structure.name for structure in scorer.structures]
    calibrations = [defaultdict[str, list[Any]](list) for _ in structures]
    about["changed_since_prepared"] = changed = []
    write_now_and_then = throttled(lambda: write_scores(folder, name, rows))
    for case in progress(scorer.cases, f"scoring {name}", "case"):
        record = scorer.score(case)
        rows += record["rows"]
        for n, counts in enumerate(record["calibrations"]):
            if counts:
                calibrations[n][case.patient].append(counts)
        if record["changed"]:
            changed.append(case.name)
        write_now_and_then()
    parts = [rows[n :: len(structures)] for n in range(len(structures))]
    facts = [about] * len(structures)
    if len(structures) > 1 and "postprocess" in about:
        facts = [{**about, "postprocess": own} for own in about["postprocess"]]
    summaries = [summarise(*each) for each in zip(parts, calibrations, facts, strict=True)]
    figures = summaries[0]
    if len(structures) > 1:
        figures = {**figures, "structures": dict(zip(structures, summaries, strict=True))}
    rows += [{**dict.fromkeys(rows[0]), "case": n, "status": "no_case"} for n in unknown]
    write_scores(folder, name, rows, figures)
    keys = evaluation.keys_of(scorer.structures)
    for key, part in zip(keys, parts, strict=True):
        if name == "val" and about["postprocess_origin"] != "given":
            evaluation.calibrate(checkpoint_paths(Path(cfg.checkpoint))[0], part, key)
    print_scores(rows, figures, name)
    table = folder / f"{name}.csv"
    log.info("scores   %s\npictures %s", table, folder / name / "*.png")
    log.info("report   %s", write_run_report(scorer.run, name))
    if failed := figures["failed"]:
        raise Incomplete(f"{len(failed)} of {figures['cases']} cases failed; see {table}")
    if unknown:
        raise Incomplete(f"{len(unknown)} masks belong to no case; see {table}")
    return figures["dice"]["mean"]


def check_request(cfg: DictConfig) -> None:
    """Check the options before anything is opened."""
    if cfg.checkpoint is None and cfg.predictions is None:
        raise PancsegError(
            "give checkpoint=RUN/checkpoints/best.ckpt, or predictions=FOLDER of masks to score"
        )
    if not isinstance(cfg.checkpoint, str | None):
        raise PancsegError(f"checkpoint={cfg.checkpoint}: expected one, or the folder of a sweep")
    if cfg.subset not in (None, *SUBSETS):
        raise PancsegError(f"subset={cfg.subset}: expected one of {', '.join(SUBSETS)}")
    if cfg.predictions and cfg.checkpoint is None and (cfg.subset or cfg.data.root is None):
        raise PancsegError(
            "predictions: give data.root=PREPARED for all of its cases, or checkpoint=RUN for the "
            "patients of a subset of its split"
        )
    tolerances = list(cfg.nsd_tolerances_mm)
    if not tolerances or not all(mm > 0 for mm in tolerances):
        raise PancsegError(f"nsd_tolerances_mm={tolerances}: expected lengths above 0 mm")


main = command(evaluate)

if __name__ == "__main__":
    main()
