"""``python -m pancseg.train``: a prepared folder becomes a trained network."""

import logging
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pancseg.command import command
from pancseg.configuration import run_path

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> float | None:
    """Train what the configuration describes.

    Returns:
        ``val/dice`` of the best checkpoint, for a sweeper; None without validation.

    Raises:
        PancsegError: If it cannot start.
        KeyboardInterrupt: After Ctrl-C, with the last checkpoint saved.
    """
    from hydra.utils import instantiate
    from tqdm.contrib.logging import logging_redirect_tqdm

    from pancseg.atomic import write_json
    from pancseg.hardware import check_accelerator
    from pancseg.inference.checkpoint import check_resumable, open_checkpoint
    from pancseg.learning.building import check_spatial_size
    from pancseg.learning.segmenter import Segmenter
    from pancseg.prepare import prepare_root
    from pancseg.tracking.summary import describe_run, log_hyperparameters, title_of

    check_spatial_size(plain(cfg.model), cfg.data.spatial_size)
    check_accelerator(cfg.hardware.accelerator)
    earlier = open_checkpoint(Path(cfg.ckpt_path), "ckpt_path") if cfg.ckpt_path else None
    set_up_process(cfg.seed)
    fill = partial(prepare_root, cfg) if cfg.get("source") else None
    data = instantiate(cfg.data, split=plain(cfg.split), prepare=fill, _convert_="all")
    data.prepare_data()
    data.setup()
    parts = (plain(cfg[name]) for name in ("model", "loss", "optimizer", "schedule"))
    segmenter = Segmenter(*parts)
    trainer = instantiate(cfg.trainer, _convert_="all")
    folder = Path(run_path())
    if earlier:
        check_resumable(earlier, plain(cfg.model), data.preprocessing, data.dealt)
        if earlier.fingerprint != data.fingerprint():
            log.warning("the prepared data are not those that ckpt_path was trained on")
    elif not trainer.fast_dev_run:
        write_json(folder / "splits.json", data.dealt.as_dict())
    report = set_up_callbacks(trainer, data, title_of(cfg.name, data))
    log.info(title_of(cfg.name, data))
    try:
        with logging_redirect_tqdm():
            trainer.fit(segmenter, datamodule=data, ckpt_path=cfg.ckpt_path, weights_only=True)
    except SystemExit:  # Lightning's way to end after Ctrl-C
        raise KeyboardInterrupt from None
    if trainer.fast_dev_run:
        return None
    summary = describe_run(cfg, trainer, segmenter, data, report.rows)
    write_json(folder / "summary.json", summary)
    log_hyperparameters(trainer, cfg, summary)
    log.info("%s", folder)
    return summary["best_dice"]


def set_up_process(seed: int) -> None:
    """Seeds, arithmetic and what is said on the console."""
    import pytorch_lightning as pl
    import torch

    from pancseg.hardware import detect

    # Lightning 2.6 uses a name that torch 2.13 renames; nothing a user can do about it
    warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
    # a resumed run goes on in its own folder
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # what it says, we say
    if detect().advice:
        log.warning(detect().advice)
    torch.set_float32_matmul_precision("high")
    pl.seed_everything(seed, workers=True, verbose=False)


def set_up_callbacks(trainer: Any, data: Any, title: str) -> Any:
    """Fit the callbacks to the data, and return the epoch report among them."""
    from pytorch_lightning.callbacks import ModelCheckpoint

    from pancseg.tracking.epoch_report import EpochReport

    report = next(one for one in trainer.callbacks if isinstance(one, EpochReport))
    report.title = title
    savers = [one for one in trainer.callbacks if isinstance(one, ModelCheckpoint)]
    if trainer.fast_dev_run:  # Lightning's own last checkpoint slips through
        trainer.callbacks = [one for one in trainer.callbacks if one not in savers]
    if not data.groups("val") or trainer.limit_val_batches == 0:
        trainer.limit_val_batches = 0
        for saver in savers:
            saver.monitor = None  # the best is then the last
    return report


def plain(node: DictConfig) -> Any:
    """Plain values: what may cross into a checkpoint."""
    return OmegaConf.to_container(node, resolve=True)


main = command(train)

if __name__ == "__main__":
    main()
