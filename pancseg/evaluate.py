"""``python -m pancseg.evaluate``: scores of whole cases, on the scan's own grid."""

import logging
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from pancseg.cli import command
from pancseg.errors import Incomplete, PancsegError

log = logging.getLogger(__name__)
SUBSETS = ("train", "val", "test")


def evaluate(cfg: DictConfig) -> float | None:
    """Score the patients that a checkpoint, or the checkpoints of a sweep, were dealt.

    Returns:
        Mean Dice over patients.

    Raises:
        PancsegError: If it cannot start.
        Incomplete: If a case failed; the others are scored.
    """
    from pancseg.files import check_writable
    from pancseg.hardware import device_settings
    from pancseg.inference.members import folder_of, judges_of, missing_folds, open_members
    from pancseg.inference.postprocess import Wanted
    from pancseg.judging import scoring_facts as facts
    from pancseg.judging.case_judge import CaseJudge
    from pancseg.judging.choosing import origin_of, postprocess_of
    from pancseg.judging.teaching import teach_trust
    from pancseg.output.run_files import Run
    from pancseg.output.run_report import write_run_report
    from pancseg.output.score_table import print_scores
    from pancseg.parallel import progress
    from pancseg.scoring.score_file import summarise, write_scores

    check_request(cfg)
    wanted = Wanted(**cfg.postprocess)
    path = Path(cfg.checkpoint)
    members = open_members(path, **device_settings(cfg.hardware))
    facts.check_own(members)
    judges = judges_of(members, cfg.subset)
    if absent := missing_folds(members, path):
        log.warning("no run of folds %s is there: their patients are not scored", absent)
    root = Path(cfg.data.root or members[0].trained.data["root"])
    cases = facts.cases_of(root, list(judges), cfg.subset)
    folder = folder_of(path) / "scores"
    check_writable(folder, "checkpoint")
    chosen = {one.checkpoint: postprocess_of(one, wanted, root) for one in members}
    about = {
        **facts.describe_scoring(cfg.subset, judges, cases, chosen, root),
        "postprocess_origin": origin_of(members, wanted),
        "missing_folds": absent,
        "flags": facts.flags_of(cases, root),
    }
    judge = CaseJudge(root, folder / cfg.subset, list(cfg.nsd_tolerances_mm), facts.note_of(about))
    judged = [
        judge.judge(case, who := judges[case.patient], [chosen[one.checkpoint] for one in who])
        for case in progress(cases, f"scoring {cfg.subset}", "case")
    ]
    rows, calibrations = [row for row, _ in judged], [found for _, found in judged if found]
    figures = summarise(rows, calibrations, about)
    write_scores(folder, cfg.subset, rows, figures)
    teach_trust(members[0].checkpoint, about, rows)
    print_scores(rows, figures, cfg.subset)
    table, pictures = folder / f"{cfg.subset}.csv", folder / cfg.subset / "*.png"
    log.info("scores   %s\npictures %s", table, pictures)
    run = Run(folder.parent, [folder_of(one.checkpoint) for one in members])
    log.info("report   %s", write_run_report(run, cfg.subset))
    if figures["failed"]:
        raise Incomplete(f"{len(figures['failed'])} of {len(rows)} cases failed; see {table}")
    return figures["dice"]["mean"]


def check_request(cfg: DictConfig) -> None:
    """Check what is asked for before anything is opened.

    Raises:
        PancsegError: If it makes no sense.
    """
    if cfg.subset not in SUBSETS:
        raise PancsegError(f"subset={cfg.subset}: expected one of {', '.join(SUBSETS)}")
    if OmegaConf.is_missing(cfg, "checkpoint"):
        raise PancsegError("checkpoint is not given; give RUN/checkpoints/best.ckpt")
    tolerances = list(cfg.nsd_tolerances_mm)
    if not tolerances or any(not one > 0 for one in tolerances):
        raise PancsegError(f"nsd_tolerances_mm={tolerances}: expected lengths above 0 mm")


main = command(evaluate)

if __name__ == "__main__":
    main()
