"""``python -m pancseg.predict``: masks of scans that nobody has drawn on."""

import logging
import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from pancseg.cli import command
from pancseg.errors import Incomplete, PancsegError

log = logging.getLogger(__name__)


def predict(cfg: DictConfig) -> None:
    """Segment every scan of a path.

    Raises:
        PancsegError: If it cannot start.
        Incomplete: If a scan was refused or failed; the others are done.
    """
    from pancseg.applying.find_scans import find_scans
    from pancseg.applying.mask_flags import Doubts
    from pancseg.applying.output_folder import output_folder
    from pancseg.applying.scan_files import ScanFiles
    from pancseg.applying.scan_run import ScanRun
    from pancseg.applying.scan_segmenter import is_auto, open_segmenter
    from pancseg.applying.shared_batch import batch_of
    from pancseg.applying.telling import tell_each
    from pancseg.hardware import device_settings
    from pancseg.inference.postprocess import Wanted
    from pancseg.intake.types import ReadOptions
    from pancseg.parallel import cores, follow

    for key in ("checkpoint", "input", "output"):
        if OmegaConf.is_missing(cfg, key):
            raise PancsegError(f"{key} is not given; give a path")
    applied = device_settings(cfg.hardware)
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
    found = find_scans(scans, cfg.modality, ReadOptions((), processes=cores()))
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
    run = ScanRun(segmenter, ScanFiles(folder, cfg.probabilities, cfg.rtstruct), doubts)
    batch = batch_of(run, found, scans)
    with output_folder(folder, segmenter, batch) as crew:
        follow(batch.segment(crew), "segmenting", "scan")
    failed = tell_each(batch.table)
    log.info("%s", folder / "predictions.csv")
    if failed:
        raise Incomplete(f"{failed} scans were refused or failed; see {folder / 'predictions.csv'}")


main = command(predict)

if __name__ == "__main__":
    main()
