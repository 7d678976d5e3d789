"""``python -m pancseg.predict``: masks of scans that nobody has drawn on."""

import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from pancseg.command import command
from pancseg.errors import Incomplete, PancsegError

if TYPE_CHECKING:
    from pancseg.applying.scan_run import ScanRun
    from pancseg.applying.scan_segmenter import ScanSegmenter
    from pancseg.intake.found import Found

log = logging.getLogger(__name__)
ABOUT = "predictions.json"


def predict(cfg: DictConfig) -> None:
    """Segment every scan of a path.

    Raises:
        PancsegError: If it cannot start.
        Incomplete: If a scan was refused or failed; the others are done.
    """
    from pancseg.applying.mask_flags import Doubts
    from pancseg.applying.scan_run import ScanRun
    from pancseg.applying.scan_segmenter import open_segmenter
    from pancseg.hardware import check_accelerator
    from pancseg.inference.postprocess import Wanted
    from pancseg.intake.found import Reading
    from pancseg.intake.layouts.unlabelled import find_scans
    from pancseg.processes import cores

    for key in ("checkpoint", "input", "output"):
        if OmegaConf.is_missing(cfg, key):
            raise PancsegError(f"{key} is not given; give a path")
    check_accelerator(cfg.hardware.accelerator)
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
    device = "cpu" if cfg.hardware.accelerator == "cpu" else "cuda"
    segmenter = open_segmenter(
        Path(cfg.checkpoint), wanted, device=device, channels_last=cfg.hardware.channels_last
    )
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)  # to the console alone: it names files
    check_output(folder, segmenter)
    doubts = Doubts(**{**cfg.doubts, "volume_ml": tuple(cfg.doubts.volume_ml)})
    run = ScanRun(segmenter, folder, doubts, cfg.probabilities, cfg.rtstruct)
    failed = segment_all(run, found, scans)
    if failed:
        raise Incomplete(f"{failed} scans were refused or failed; see {folder / 'predictions.csv'}")


def check_output(folder: Path, segmenter: "ScanSegmenter") -> None:
    """Check that a folder holds masks of no other checkpoint, and note whose it will hold.

    Raises:
        PancsegError: If it does, or cannot be written.
    """
    from pancseg.atomic import check_writable, read_json, write_json
    from pancseg.inference.postprocess import sha256_of

    about = {
        "checkpoints_sha256": [sha256_of(member.checkpoint) for member in segmenter.members],
        "postprocess": asdict(segmenter.how),
    }
    path = folder / ABOUT
    if path.is_file() and about != read_json(path, lambda v: isinstance(v, dict), "a note"):
        raise PancsegError(
            f"output={folder}: holds masks of another checkpoint or another way to make them; "
            "give another folder"
        )
    check_writable(folder, "output")
    write_json(path, about)


def segment_all(run: "ScanRun", found: "Found", base: Path) -> int:
    """Segment what an earlier batch has not, keep the table up to date, and tell what was found.

    Returns:
        How many scans were refused or failed.
    """
    from pancseg.intake.layouts.unlabelled import names_of
    from pancseg.output.prediction_table import (
        DONE,
        REFUSED,
        Prediction,
        read_predictions,
        write_predictions,
    )
    from pancseg.progress import track

    earlier = {row.case: row for row in read_predictions(run.folder) if row.status == DONE}
    names = names_of(found.candidates, base)
    strays = [Prediction("", str(s.path), status=REFUSED, reason=s.reason) for s in found.strays]
    rows: list[Prediction] = []
    pairs = list(zip(found.candidates, names, strict=True))
    for candidate, case in track(pairs, "segmenting", "scan"):
        before = earlier.get(case)
        done = before is not None and run.is_done(candidate, before)
        rows.append(before if done and before else run.run(candidate, case))
        waiting = [earlier[name] for name in names[len(rows) :] if name in earlier]
        write_predictions(run.folder, [*rows, *waiting, *strays])
    write_predictions(run.folder, [*rows, *strays])
    for row in rows:
        measured = f"{row.volume_ml} ml, confidence {row.confidence}"
        flags = f"  [{row.flags}]" if row.flags else ""
        print(f"{row.case}  {row.status}: {measured if row.status == DONE else row.reason}{flags}")
    for row in strays:  # to the console alone: paths of input files stand in no log
        print(f"refused {row.path}: {row.reason}")
    log.info("%s", run.folder / "predictions.csv")
    return sum(row.status != DONE for row in [*rows, *strays])


main = command(predict)

if __name__ == "__main__":
    main()
