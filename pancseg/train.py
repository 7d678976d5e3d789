"""``python -m pancseg.train``: a prepared folder becomes a trained network."""

import logging
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from pancseg.command import command
from pancseg.configuration import LAST, run_path
from pancseg.errors import PancsegError

if TYPE_CHECKING:
    from pancseg.dataset.datamodule import GroupData
    from pancseg.learning.segmenter import Segmenter

log = logging.getLogger(__name__)
SPLITS = "splits.json"
STATES = {"Adam": 3, "SGD": 1}  # numbers an optimiser keeps for a weight; ours is with amsgrad


def train(cfg: DictConfig) -> float | None:
    """Train what the configuration describes.

    Returns:
        ``val/dice`` of the best checkpoint, for a sweeper; None without validation.

    Raises:
        PancsegError: If it cannot start.
        KeyboardInterrupt: After Ctrl-C, with the last checkpoint saved.
    """
    from hydra.utils import instantiate

    from pancseg.atomic import write_json
    from pancseg.hardware import check_accelerator
    from pancseg.inference.checkpoint import check_resumable, open_checkpoint
    from pancseg.tracking.summary import describe_run, log_hyperparameters, title_of

    check_accelerator(cfg.hardware.accelerator)
    set_up_process(cfg.seed)
    checkpoint = checkpoint_of(cfg)
    earlier = open_checkpoint(checkpoint, "ckpt_path") if checkpoint else None
    data = set_up_data(cfg)
    segmenter = make_segmenter(cfg, data)
    if cfg.preview:
        draw_preview(cfg, data, segmenter)
        return None
    if not cfg.trainer.enable_progress_bar:
        shown = [one for one in cfg.trainer.callbacks if not one["_target_"].endswith("RunBar")]
        cfg.trainer.callbacks = shown
    trainer = instantiate(cfg.trainer, _convert_="all")
    folder, title = Path(run_path()), title_of(cfg.name, data)
    if earlier:
        parts = (plain(cfg.model), plain(cfg.optimizer))
        check_resumable(earlier, *parts, data.preprocessing, data.dealt)
        if earlier.fingerprint != data.fingerprint():
            log.warning("the prepared data are not those that ckpt_path was trained on")
    known = earlier and (folder / SPLITS).exists()
    if not (known or trainer.fast_dev_run) and trainer.is_global_zero:
        write_json(folder / SPLITS, data.dealt.as_dict())
    report = set_up_callbacks(cfg, trainer, data, title)
    log.info(title)
    tell_cost(cfg, data)
    fit(trainer, segmenter, data, checkpoint)
    if trainer.fast_dev_run:
        return None
    summary = describe_run(cfg, trainer, segmenter, data, report.rows)
    if trainer.is_global_zero:
        give_a_best(folder / LAST)
        write_json(folder / "summary.json", summary)
        log_hyperparameters(trainer, cfg, summary)
        log.info("%s", folder)
    return summary["best_dice"]


def set_up_process(seed: int) -> None:
    """Seeds, arithmetic and what is said on the console."""
    import pytorch_lightning as pl
    import torch
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    from pancseg.hardware import detect

    # Lightning 2.6 uses a name that torch 2.13 renames; nothing a user can do about it
    warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
    # a resumed run goes on in its own folder
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # ours does: a batch is a function of its number alone
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable")
    # a first layer of one channel lies the same way in both orders of memory
    warnings.filterwarnings("ignore", message="(?s)Grad strides do not match bucket view strides")
    for name in ("pytorch_lightning", "lightning_fabric"):  # what they say, we say
        logging.getLogger(name).setLevel(logging.WARNING)
    if rank_zero_only.rank:  # type: ignore[attr-defined] # one process of several speaks
        logging.getLogger("pancseg").setLevel(logging.WARNING)
    if detect().advice:
        log.warning(detect().advice)
    torch.set_float32_matmul_precision("high")
    pl.seed_everything(seed, workers=True, verbose=False)


def checkpoint_of(cfg: DictConfig) -> Path | None:
    """What is to be gone on with, if anything."""
    if cfg.ckpt_path != "last":
        return Path(cfg.ckpt_path) if cfg.ckpt_path else None
    path = Path(run_path(LAST))
    if not path.is_file():
        log.info("ckpt_path=last: there is none yet, a new training begins")
        return None
    return path


def set_up_data(cfg: DictConfig) -> "GroupData":
    """The data, dealt; what was planned for them stands in the configuration from here on."""
    from hydra.utils import instantiate

    from pancseg.learning.network_sizes import check_spatial_size
    from pancseg.prepare import prepare_root

    if cfg.data.spatial_size and cfg.data.spacing_mm:  # a wrong size is told before any work
        check_spatial_size(plain(cfg.model), cfg.data.spatial_size, cfg.data.batch_size)
    fill = partial(prepare_root, cfg) if cfg.get("source") else None
    parts = {name: plain(cfg[name]) for name in ("split", "sampling")}
    data = instantiate(cfg.data, **parts, seed=cfg.seed, prepare=fill, _convert_="all")
    data.prepare_data()
    data.setup()
    planned = not (cfg.data.spatial_size and cfg.data.spacing_mm)
    cfg.data.spacing_mm, cfg.data.spatial_size = data.preprocessing.spacing_mm, data.patch
    if planned:
        check_spatial_size(plain(cfg.model), cfg.data.spatial_size, cfg.data.batch_size)
    return data


def make_segmenter(cfg: DictConfig, data: "GroupData") -> "Segmenter":
    """The network with all that trains it, fitted to the data and the machine."""
    from pancseg.inference.initial_weights import begin_with
    from pancseg.learning.segmenter import Segmenter

    names = ("model", "loss", "optimizer", "schedule", "augment")
    parts = {name: plain(cfg[name]) for name in names}
    if cfg.trainer.gradient_clip_val and "mixed" in str(cfg.trainer.precision):
        parts["optimizer"]["fused"] = False  # Lightning clips no gradients that it would scale
    if not data.sampling.of_patches:
        parts["augment"]["margin_share"] = 0.0  # there is nothing around a whole group
    view = {
        "size": list(data.patch),
        "spacing_mm": list(data.preprocessing.spacing_mm),
        "window_hu": list(data.preprocessing.window_hu),
        "overlap": data.sampling.overlap,
    }
    segmenter = Segmenter(**parts, view=view, seed=cfg.seed)
    data.margin = segmenter.margin
    if cfg.init_from:
        log.info(begin_with(segmenter.network, Path(cfg.init_from)))
    segmenter.prepare_for(channels_last=cfg.hardware.channels_last, compiled=cfg.hardware.compile)
    return segmenter


def tell_cost(cfg: DictConfig, data: "GroupData") -> None:
    """Say what a step costs, and warn where it may not fit: an estimate refuses nothing."""
    from pancseg.learning.network_cost import available_memory, check_memory, cost_of, describe
    from pancseg.learning.network_sizes import needs_values

    model, size, batch_size = plain(cfg.model), data.patch, cfg.data.batch_size
    optimizer = cfg.optimizer["_target_"].rpartition(".")[2]
    counting = {
        "optimizer_states": STATES.get(optimizer, 2),
        "bytes_per_value": 2 if "16" in str(cfg.hardware.precision) else 4,
    }
    try:
        log.info("a step   %s", describe(cost_of(model, size, batch_size, **counting)))
    except Exception as error:  # a network of another library raises what it likes
        if not needs_values(error):
            raise
        return
    accelerator: str = cfg.hardware.accelerator
    available = available_memory(accelerator)
    advice = check_memory(model, size, batch_size, available, accelerator, **counting)
    if advice:
        log.warning(advice)


def set_up_callbacks(cfg: DictConfig, trainer: Any, data: "GroupData", title: str) -> Any:
    """Fit the callbacks to the data, and return the epoch report among them."""
    from pytorch_lightning.callbacks import ModelCheckpoint

    from pancseg.learning.averaging import MovingAverage
    from pancseg.tracking.epoch_report import EpochReport
    from pancseg.tracking.going_on import Patience

    report = next(one for one in trainer.callbacks if isinstance(one, EpochReport))
    report.title = title
    validates = bool(data.sources("val")) and trainer.limit_val_batches != 0
    # before those that save: what they save is then up to date
    if cfg.ema_decay:
        trainer.callbacks.insert(0, MovingAverage(cfg.ema_decay))
    if cfg.patience is not None:
        if not validates:
            raise PancsegError("patience: there is no validation to wait for; give split.val=0.2")
        trainer.callbacks.insert(0, Patience(cfg.patience))
    savers = [one for one in trainer.callbacks if isinstance(one, ModelCheckpoint)]
    if trainer.fast_dev_run:  # Lightning's own last checkpoint slips through
        trainer.callbacks = [one for one in trainer.callbacks if one not in savers]
    if not validates:
        trainer.limit_val_batches = 0
        for saver in savers:
            saver.monitor = None  # the best is then the last
    return report


def fit(trainer: Any, segmenter: "Segmenter", data: "GroupData", checkpoint: Path | None) -> None:
    """Train.

    Raises:
        PancsegError: If memory runs out.
        KeyboardInterrupt: After Ctrl-C.
    """
    import torch
    from tqdm.contrib.logging import logging_redirect_tqdm

    try:
        with logging_redirect_tqdm():
            trainer.fit(segmenter, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:  # Lightning's way to end after Ctrl-C
        raise KeyboardInterrupt from None
    except torch.OutOfMemoryError as error:
        raise PancsegError(
            f"the GPU's memory ran out with data.batch_size={data.hparams['batch_size']} and "
            f"data.spatial_size={list(data.patch)}; give less of either, or hardware.cache=ram"
        ) from error


def give_a_best(last: Path) -> None:
    """Where a run ended before its first validation the best checkpoint is the last."""
    import shutil

    from pancseg.atomic import replaced

    best = last.with_name("best.ckpt")
    if last.is_file() and not best.is_file():
        log.info("nothing was validated: best.ckpt is the last")
        with replaced(best) as temporary:
            shutil.copyfile(last, temporary)


def draw_preview(cfg: DictConfig, data: "GroupData", segmenter: "Segmenter") -> None:
    """Draw the first samples of a training as the network sees them."""
    from pancseg.output.sample_sheet import COLUMNS, ROWS, draw_samples

    most = COLUMNS * ROWS
    samples: list[Any] = []
    for batch in data.train_dataloader():
        seen = segmenter.seen(batch, training=True)
        samples += zip(seen["image"], seen["label"], batch["name"], strict=True)
        if len(samples) >= most:
            break
    images, labels, names = zip(*samples[:most], strict=True)
    path = Path(run_path("preview.png"))
    draw_samples(
        path,
        [image[0].cpu().numpy() for image in images],
        [label[0].cpu().numpy() for label in labels],
        names,
        f"{cfg.name}: samples as the network sees them",
        spacing_mm=data.preprocessing.spacing_mm,
    )
    log.info("%s", path)


def plain(node: DictConfig) -> Any:
    """Plain values: what may cross into a checkpoint."""
    return OmegaConf.to_container(node, resolve=True)


main = command(train)

if __name__ == "__main__":
    main()
