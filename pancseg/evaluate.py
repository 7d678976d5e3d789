"""``python -m pancseg.evaluate``: one Dice a whole case, on the scan's own grid."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from pancseg.command import command
from pancseg.errors import Incomplete, PancsegError

if TYPE_CHECKING:
    from pancseg.dataset.manifest import Case
    from pancseg.inference.checkpoint import Trained
    from pancseg.inference.whole_case import WholeCase

log = logging.getLogger(__name__)
SUBSETS = ("train", "val", "test")
GEOMETRY = "whole cases on their own grid, {} put together by mean probability"


def evaluate(cfg: DictConfig) -> float | None:
    """Score a subset of the patients that a checkpoint was dealt.

    Returns:
        Mean Dice over patients.

    Raises:
        PancsegError: If it cannot start.
        Incomplete: If a case failed; the others are scored.
    """
    from pancseg.hardware import check_accelerator
    from pancseg.inference.checkpoint import open_checkpoint
    from pancseg.inference.whole_case import WholeCase
    from pancseg.output.score_table import print_scores
    from pancseg.progress import track
    from pancseg.scoring.score_file import summarise, write_scores

    if cfg.subset not in SUBSETS:
        raise PancsegError(f"subset={cfg.subset}: expected one of {', '.join(SUBSETS)}")
    if OmegaConf.is_missing(cfg, "checkpoint"):
        raise PancsegError("checkpoint is not given; give RUN/checkpoints/best.ckpt")
    check_accelerator(cfg.hardware.accelerator)
    checkpoint = Path(cfg.checkpoint)
    trained = open_checkpoint(checkpoint)
    trained.segmenter.prepare_for(channels_last=cfg.hardware.channels_last, compiled=False)
    root = Path(cfg.data.root or trained.data["root"])
    cases = cases_of(trained, root, cfg.subset)
    folder = run_of(checkpoint) / "scores"
    device = "cpu" if cfg.hardware.accelerator == "cpu" else "cuda"
    network = WholeCase(trained.segmenter.to(device), trained.preprocessing, trained.depth)
    held_out = trained.split.held_out and cfg.subset == "test"
    phantoms = any(case.phantom for case in cases)
    note = f"{'PHANTOM, ' if phantoms else ''}{'held out' if held_out else 'NOT HELD OUT'}"
    rows = [
        score(case, root, network, folder / cfg.subset, cfg.nsd_tolerance_mm, note)
        for case in track(cases, f"scoring {cfg.subset}", "case")
    ]
    about = {
        "subset": cfg.subset,
        "split": {"rule": trained.split.rule, "seed": trained.split.seed},
        "geometry": GEOMETRY.format("groups" if trained.depth else "windows"),
        "phantoms": phantoms,
        "checkpoint_epoch": trained.epoch,
        "data_fingerprint": trained.fingerprint,
    }
    figures = summarise(rows, held_out, about)
    write_scores(folder, cfg.subset, rows, figures)
    print_scores(rows, figures, cfg.subset)
    log.info("scores   %s", folder / f"{cfg.subset}.csv")
    log.info("pictures %s", folder / cfg.subset / "*.png")
    if figures["failed"]:
        raise Incomplete(
            f"{len(figures['failed'])} of {len(rows)} cases failed; see {folder / cfg.subset}.csv"
        )
    return figures["dice"]["mean"]


def cases_of(trained: "Trained", root: Path, subset: str) -> "list[Case]":
    """The cases to score.

    Raises:
        PancsegError: If the subset is empty, or its patients are not in the folder.
    """
    from pancseg.dataset.manifest import read_manifest

    patients = getattr(trained.split, subset)
    if not patients:
        raise PancsegError(f"subset={subset}: the split dealt no patient to it (split.{subset}=0)")
    cases = read_manifest(root).cases_of(patients)
    missing = sorted(set(patients) - {case.patient for case in cases})
    if missing:
        raise PancsegError(
            f"data.root={root}: holds no label of {len(missing)} {subset} patients, such as "
            f"{missing[0]}; give the folder the checkpoint was trained on, or one prepared with "
            "the same key"
        )
    return cases


def run_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint belongs to."""
    folder = checkpoint.resolve().parent
    return folder.parent if folder.name == "checkpoints" else folder


def score(
    case: "Case", root: Path, network: "WholeCase", folder: Path, tolerance_mm: float, note: str
) -> dict[str, Any]:
    """Predict, write and score one case; a case that fails has a row that says so."""
    import nibabel as nib
    import numpy as np

    from pancseg.atomic import replaced
    from pancseg.output.outlines import draw_case
    from pancseg.scoring.case_scores import Scores, score_case
    from pancseg.scoring.score_file import FAILED

    named = {"patient": case.patient, "case": case.case}
    try:
        image = nib.Nifti1Image.from_filename(root / case.image)
        reference = np.asanyarray(nib.Nifti1Image.from_filename(root / str(case.label)).dataobj) > 0
        prediction = network.probability(image) > 0.5
        mask = nib.Nifti1Image(
            prediction.astype(np.uint8), image.affine, image.header, dtype=np.uint8
        )
        with replaced(folder / f"{case.case}_prediction.nii.gz") as temporary:
            nib.save(mask, temporary)
        scores = score_case(prediction, reference, image.affine, tolerance_mm)
        dice = "no reference" if scores.dice is None else f"Dice {scores.dice:.3f}"
        title = f"{case.case} ({note}): {dice}"
        draw_case(folder / f"{case.case}.png", image, prediction, reference, title)
    except Exception as error:  # one bad case never stops a batch
        log.debug("%s", case.case, exc_info=True)
        reason = f"{FAILED}: {type(error).__name__}: {' '.join(str(error).split())}"
        nothing = Scores(None, None, None, None, None, None, reason)
        return {**named, **nothing.as_row(tolerance_mm)}
    return {**named, **scores.as_row(tolerance_mm)}


main = command(evaluate)

if __name__ == "__main__":
    main()
