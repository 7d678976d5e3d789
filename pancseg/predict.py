"""``python -m pancseg.predict``: masks of scans that nobody has drawn on."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from pancseg.command import command
from pancseg.errors import Incomplete, PancsegError

if TYPE_CHECKING:
    from pancseg.applying.scan_run import ScanRun
    from pancseg.intake.found import Found

log = logging.getLogger(__name__)


def predict(cfg: DictConfig) -> None:
    """Segment every scan of a path.

    Raises:
        PancsegError: If it cannot start.
        Incomplete: If a scan was refused or failed; the others are done.
    """
    from pancseg.applying.mask_flags import Doubts
    from pancseg.applying.output_folder import output_folder
    from pancseg.applying.scan_files import ScanFiles
    from pancseg.applying.scan_run import ScanRun
    from pancseg.applying.scan_segmenter import is_auto, open_segmenter
    from pancseg.hardware import how_to_apply
    from pancseg.inference.postprocess import Wanted
    from pancseg.intake.found import Reading
    from pancseg.intake.layouts.unlabelled import find_scans
    from pancseg.processes import cores

    for key in ("checkpoint", "input", "output"):
        if OmegaConf.is_missing(cfg, key):
            raise PancsegError(f"{key} is not given; give a path")
    applied = how_to_apply(cfg.hardware)
    wanted = Wanted(**cfg.postprocess)
    if wanted.asks_validation:
        raise PancsegError(
            "postprocess: auto is chosen by pancseg.evaluate, on validation patients; leave it "
            "out here: what was chosen is taken up by itself"
        )
    scans, folder = Path(cfg.input), Path(cfg.output)
    if scans.is_dir() and folder.resolve().is_relative_to(scans.resolve()):
        raise PancsegError(
            f"output={folder}: lies in the input, where its masks would be taken for scans; give "
            "another folder"
        )
    found = find_scans(scans, cfg.modality, Reading(processes=cores()))
    named = [cfg.checkpoint] if isinstance(cfg.checkpoint, str) else cfg.checkpoint
    segmenter = open_segmenter(
        [Path(one) for one in named],
        wanted,
        **applied,
        mirrored=cfg.tta,
        coarse_to_fine=is_auto(cfg.roi),
    )
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)  # to the console alone: it names files
    doubts = Doubts(**{**cfg.doubts, "volume_ml": tuple(cfg.doubts.volume_ml)})
    with output_folder(folder, segmenter):
        run = ScanRun(segmenter, ScanFiles(folder, cfg.probabilities, cfg.rtstruct), doubts)
        failed = segment_all(run, found, scans)
    if failed:
        raise Incomplete(f"{failed} scans were refused or failed; see {folder / 'predictions.csv'}")


def segment_all(run: "ScanRun", found: "Found", base: Path) -> int:
    """Segment what an earlier batch has not, keep the table up to date, and tell what was found.

    Returns:
        How many scans were refused or failed.
    """
    from pancseg.applying.batch import segment_each
    from pancseg.applying.scan_progress import Job
    from pancseg.intake.layouts.unlabelled import names_of
    from pancseg.output.prediction_table import (
        DONE,
        REFUSED,
        Prediction,
        read_predictions,
        write_predictions,
    )
    from pancseg.progress import track

    names = names_of(found.candidates, base)
    earlier = {row.case: row for row in read_predictions(run.files.folder) if row.status == DONE}
    rows = {name: earlier[name] for name in names if name in earlier}
    strays = [Prediction("", str(s.path), status=REFUSED, reason=s.reason) for s in found.strays]
    jobs = [
        Job(candidate, name)
        for candidate, name in zip(found.candidates, names, strict=True)
        if name not in rows or not run.is_done(candidate, rows[name])
    ]
    for row in track(segment_each(run, jobs), "segmenting", "scan", len(jobs)):
        rows[row.case] = row
        write_predictions(run.files.folder, [*(rows[n] for n in names if n in rows), *strays])
    done = [rows[name] for name in names]
    write_predictions(run.files.folder, [*done, *strays])
    for row in done:
        measured = f"{row.volume_ml} ml, confidence {row.confidence}"
        flags = f"  [{row.flags}]" if row.flags else ""
        print(f"{row.case}  {row.status}: {measured if row.status == DONE else row.reason}{flags}")
    for row in strays:  # to the console alone: paths of input files stand in no log
        print(f"refused {row.path}: {row.reason}")
    log.info("%s", run.files.folder / "predictions.csv")
    return sum(row.status != DONE for row in [*done, *strays])


main = command(predict)

if __name__ == "__main__":
    main()
