"""The parts of a training, made of its configuration, and their work together."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm.contrib.logging import logging_redirect_tqdm

from pancseg.dataset.datamodule import GroupData
from pancseg.errors import PancsegError
from pancseg.inference.initial_weights import begin_with, open_weights
from pancseg.learning.memory_advice import counting_of, tell_cost
from pancseg.learning.network_sizes import check_spatial_size
from pancseg.learning.segmenter import Segmenter
from pancseg.tracking.callbacks import fit_callbacks
from pancseg.tracking.epoch_report import EpochReport
from pancseg.tracking.pruning import add_pruning
from pancseg.tracking.summary import title_of

log = logging.getLogger(__name__)


def set_up_data(cfg: DictConfig, fill: Callable[[], object] | None) -> GroupData:
    """The data, dealt; what was planned for them stands in the configuration from here on.

    Args:
        cfg: Of the training.
        fill: Prepares the root where it holds no manifest; None where there is no source.

    Raises:
        PancsegError: If there is nothing to train on, or the network cannot take it.
    """
    if cfg.data.spatial_size and cfg.data.spacing_mm:  # a wrong size is told before any work
        check_spatial_size(plain(cfg.model), cfg.data.spatial_size, cfg.data.batch_size)
    parts = {name: plain(cfg[name]) for name in ("split", "sampling")}
    data = instantiate(cfg.data, **parts, seed=cfg.seed, prepare=fill, _convert_="all")
    data.prepare_data()
    data.setup()
    planned = not (cfg.data.spatial_size and cfg.data.spacing_mm)
    chosen = data.chosen
    cfg.data.spacing_mm, cfg.data.spatial_size = chosen.preprocessing.spacing_mm, chosen.patch
    if planned:
        check_spatial_size(plain(cfg.model), cfg.data.spatial_size, cfg.data.batch_size)
    return data


def make_segmenter(cfg: DictConfig, data: GroupData) -> Segmenter:
    """The network with all that trains it, fitted to the data and the machine."""
    names = ("model", "loss", "optimizer", "schedule", "augment")
    parts = {name: plain(cfg[name]) for name in names}
    if cfg.trainer.gradient_clip_val and "mixed" in str(cfg.trainer.precision):
        parts["optimizer"]["fused"] = False  # Lightning clips no gradients that it would scale
    if not data.sampling.of_patches:
        parts["augment"]["margin_share"] = 0.0  # there is nothing around a whole group
    numbers = data.chosen.preprocessing
    view = {
        "size": list(data.chosen.patch),
        "spacing_mm": list(numbers.spacing_mm),
        "window_hu": list(numbers.window_hu),
        "overlap": data.sampling.overlap,
    }
    segmenter = Segmenter(**parts, view=view, seed=cfg.seed)
    data.margin = segmenter.margin
    if cfg.init_from:
        given = open_weights(Path(cfg.init_from))
        log.info(begin_with(segmenter.network, given))
        data.seen_before.update(given.seen or ())
        if given.seen is None:
            log.warning("init_from does not say whom it was trained on: held_out counts without it")
        elif known := given.seen.intersection(data.chosen.split.test):
            log.warning("init_from was trained on %s of the test patients here", len(known))
    segmenter.prepare_for(channels_last=cfg.hardware.channels_last, compiled=cfg.hardware.compile)
    return segmenter


def make_trainer(cfg: DictConfig) -> Any:
    """Lightning's trainer; it refuses our bar where none is to be shown."""
    if not cfg.trainer.enable_progress_bar:
        shown = [one for one in cfg.trainer.callbacks if not one["_target_"].endswith("RunBar")]
        cfg.trainer.callbacks = shown
    return instantiate(cfg.trainer, _convert_="all")


def watch_training(cfg: DictConfig, trainer: pl.Trainer, data: GroupData) -> EpochReport:
    """Give a trainer its callbacks, and say what it is going to do and what a step costs."""
    validates = bool(data.chosen.sources("val"))
    report = fit_callbacks(trainer, validates, cfg.ema_decay, cfg.patience)
    if cfg.trial and validates:
        add_pruning(trainer, plain(cfg.trial))
    report.title = title_of(cfg.name, data)
    log.info(report.title)
    counting = counting_of(plain(cfg.optimizer), str(cfg.trainer.precision))
    batch, accelerator = cfg.data.batch_size, cfg.hardware.accelerator
    cost = tell_cost(plain(cfg.model), data.chosen.patch, batch, accelerator, **counting)
    data.step_bytes = cost or 0
    return report


def fit(trainer: Any, segmenter: Segmenter, data: GroupData, checkpoint: Path | None) -> None:
    """Train.

    Raises:
        PancsegError: If memory runs out.
        KeyboardInterrupt: After Ctrl-C.
    """
    try:
        with logging_redirect_tqdm():
            trainer.fit(segmenter, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as ended:  # Lightning's way to end after Ctrl-C
        raise (ended.__context__ or KeyboardInterrupt()) from None
    except torch.OutOfMemoryError as error:
        raise PancsegError(
            f"the GPU's memory ran out with data.batch_size={data.hparams['batch_size']} and "
            f"data.spatial_size={list(data.chosen.patch)}; give less of either, or "
            "hardware.cache=ram"
        ) from error


def plain(node: DictConfig) -> Any:
    """Plain values: what may cross into a checkpoint."""
    return OmegaConf.to_container(node, resolve=True)
