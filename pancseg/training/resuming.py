"""What a training goes on from, and whether it may."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from pancseg.configuration import LAST, run_path
from pancseg.data.datamodule import CTDataModule
from pancseg.inference.checkpoint import Trained, check_resumable
from pancseg.learning.segmenter import Segmenter
from pancseg.requeue import is_run_again

log = logging.getLogger(__name__)


def checkpoint_to_go_on_with(cfg: DictConfig) -> Path | None:
    """What is to be gone on with, if anything; a job that Slurm runs again goes on by itself."""
    if is_run_again() and Path(run_path(LAST)).is_file():
        log.info("started again by Slurm: going on with %s", run_path(LAST))
        return Path(run_path(LAST))
    if cfg.ckpt_path != "last":
        return Path(cfg.ckpt_path) if cfg.ckpt_path else None
    path = Path(run_path(LAST))
    if not path.is_file():
        log.info("ckpt_path=last: there is none yet, a new training begins")
        return None
    log.info("ckpt_path=last: going on with %s", path)
    return path


def check_earlier(
    earlier: Trained, segmenter: Segmenter, data: CTDataModule, ema_decay: float
) -> None:
    """Check that this is the training that is to be gone on with, on the same data.

    Raises:
        PancsegError: If it cannot be gone on with.
    """
    numbers = dict(data.hparams)
    data.seen_before.update(earlier.seen_before)
    check_resumable(earlier, segmenter, numbers, data.preprocessing, data.split, ema_decay)
    if earlier.data["batch_size"] != numbers["batch_size"]:
        log.warning(
            "data.batch_size=%s, ckpt_path was trained with %s: it goes on with other batches than "
            "it would have had",
            numbers["batch_size"],
            earlier.data["batch_size"],
        )
    if earlier.fingerprint != data.fingerprint:
        log.warning("the prepared data are not those that ckpt_path was trained on")
