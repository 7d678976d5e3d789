"""The parts of a training, made of its configuration, and their work together."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm.contrib.logging import logging_redirect_tqdm

from pancseg.data.datamodule import CTDataModule
from pancseg.data.plan import Plan
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


def set_up_data(cfg: DictConfig, prepare: Callable[[], object] | None) -> CTDataModule:
    """The data module, with its volumes preprocessed for training.

    Args:
        cfg: Of the training.
        prepare: Fills the root if it is not prepared; None without a source.

    Raises:
        PancsegError: If there is nothing to train on, or the network does not take its size.
    """
    parts = {name: plain(cfg[name]) for name in ("split", "sampling", "augment")}
    data: CTDataModule = instantiate(
        cfg.data, **parts, seed=cfg.seed, prepare=prepare, _convert_="all"
    )
    if cfg.data.spatial_size and cfg.data.spacing_mm:  # before any work
        check_plan(cfg, data.plan)
    data.prepare_data()
    check_plan(cfg, data.plan)
    data.setup("fit")
    return data


def check_plan(cfg: DictConfig, plan: Plan) -> None:
    """Check that the network takes the planned size.

    Raises:
        PancsegError: If it does not.
    """
    check_spatial_size(model_arguments(cfg, plan), plan.spatial_size, cfg.data.batch_size)


def model_arguments(cfg: DictConfig, plan: Plan) -> dict[str, Any]:
    """``_target_`` and arguments of the network; those taken from ``data`` are the planned ones."""
    planned: Any = OmegaConf.merge(cfg, {"data": asdict(plan)})
    return dict(plain(planned.model))


def make_segmenter(cfg: DictConfig, data: CTDataModule) -> Segmenter:
    """The network with all that trains it, fitted to the data and the machine."""
    parts = {name: plain(cfg[name]) for name in ("loss", "optimizer", "schedule")}
    if cfg.trainer.gradient_clip_val and "mixed" in str(cfg.trainer.precision):
        parts["optimizer"]["fused"] = False  # Lightning clips no gradients that it would scale
    view = {"size": list(data.plan.spatial_size), "overlap": data.sampling.overlap}
    segmenter = Segmenter(model_arguments(cfg, data.plan), **parts, view=view, seed=cfg.seed)
    if cfg.init_from:
        given = open_weights(Path(cfg.init_from))
        log.info(begin_with(segmenter.network, given))
        data.seen_before.update(given.seen or ())
        if given.seen is None:
            log.warning("init_from does not say whom it was trained on: held_out counts without it")
        elif known := given.seen.intersection(data.split.test):
            log.warning("init_from was trained on %s of the test patients here", len(known))
    segmenter.prepare_for(channels_last=cfg.hardware.channels_last, compiled=cfg.hardware.compile)
    return segmenter


def make_trainer(cfg: DictConfig) -> Any:
    """Lightning's trainer; it refuses our bar where none is to be shown."""
    if not cfg.trainer.enable_progress_bar:
        shown = [one for one in cfg.trainer.callbacks if not one["_target_"].endswith("RunBar")]
        cfg.trainer.callbacks = shown
    return instantiate(cfg.trainer, _convert_="all")


def watch_training(cfg: DictConfig, trainer: pl.Trainer, data: CTDataModule) -> EpochReport:
    """Give a trainer its callbacks, and say what it is going to do and what a step costs."""
    validates = bool(data.entries("val"))
    report = fit_callbacks(trainer, validates, cfg.ema_decay, cfg.patience)
    if cfg.trial and validates:
        add_pruning(trainer, plain(cfg.trial))
    report.title = title_of(cfg.name, data)
    log.info(report.title)
    counting = counting_of(plain(cfg.optimizer), str(cfg.trainer.precision))
    batch, accelerator = cfg.data.batch_size, cfg.hardware.accelerator
    cost = tell_cost(
        model_arguments(cfg, data.plan), data.plan.spatial_size, batch, accelerator, **counting
    )
    data.step_bytes = cost or 0
    return report


def fit(trainer: Any, segmenter: Segmenter, data: CTDataModule, checkpoint: Path | None) -> None:
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
            f"data.spatial_size={list(data.plan.spatial_size)}; give less of either, or "
            "hardware.cache=ram"
        ) from error


def plain(node: DictConfig) -> Any:
    """Plain values: what may cross into a checkpoint."""
    return OmegaConf.to_container(node, resolve=True)
