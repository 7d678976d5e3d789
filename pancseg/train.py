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
    from pancseg.inference.checkpoint import Trained
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
    from pancseg.atomic import write_json
    from pancseg.hardware import check_accelerator
    from pancseg.inference.checkpoint import open_checkpoint
    from pancseg.learning.memory_advice import tell_cost
    from pancseg.tracking.callbacks import fit_callbacks
    from pancseg.tracking.going_on import give_a_best
    from pancseg.tracking.preview import draw_preview
    from pancseg.tracking.start_checks import check_duration, check_one_folder
    from pancseg.tracking.summary import describe_run, log_hyperparameters, title_of

    check_accelerator(cfg.hardware.accelerator)
    check_duration(cfg.trainer.max_time)
    check_one_folder(cfg)
    set_up_process(cfg.seed)
    checkpoint = checkpoint_of(cfg)
    earlier = open_checkpoint(checkpoint, "ckpt_path") if checkpoint else None
    data = set_up_data(cfg)
    segmenter = make_segmenter(cfg, data)
    folder = Path(run_path())
    if cfg.preview:
        title = f"{cfg.name}: samples as the network sees them"
        draw_preview(folder / "preview.png", data, segmenter, title)
        log.info("%s", folder / "preview.png")
        return None
    trainer = make_trainer(cfg)
    if earlier:
        check_earlier(earlier, segmenter, data, cfg.ema_decay)
    known = earlier and (folder / SPLITS).exists()
    if not (known or trainer.fast_dev_run) and trainer.is_global_zero:
        write_json(folder / SPLITS, data.chosen.split.as_dict())
    validates = bool(data.chosen.sources("val"))
    report = fit_callbacks(trainer, validates, cfg.ema_decay, cfg.patience)
    report.title = title_of(cfg.name, data)
    log.info(report.title)
    counting = counting_of(cfg)
    cost = tell_cost(plain(cfg.model), data.chosen.patch, cfg.data.batch_size, **counting)
    data.step_bytes = cost or 0
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
    log.info("ckpt_path=last: going on with %s", path)
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
    chosen = data.chosen
    cfg.data.spacing_mm, cfg.data.spatial_size = chosen.preprocessing.spacing_mm, chosen.patch
    if planned:
        check_spatial_size(plain(cfg.model), cfg.data.spatial_size, cfg.data.batch_size)
    return data


def make_segmenter(cfg: DictConfig, data: "GroupData") -> "Segmenter":
    """The network with all that trains it, fitted to the data and the machine."""
    from pancseg.inference.initial_weights import begin_with, patients_behind
    from pancseg.learning.segmenter import Segmenter

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
        log.info(begin_with(segmenter.network, Path(cfg.init_from)))
        seen = patients_behind(Path(cfg.init_from))
        data.seen_before.update(seen or ())
        if seen is None:
            log.warning("init_from does not say whom it was trained on: held_out counts without it")
        elif known := seen.intersection(data.chosen.split.test):
            log.warning("init_from was trained on %s of the test patients here", len(known))
    segmenter.prepare_for(channels_last=cfg.hardware.channels_last, compiled=cfg.hardware.compile)
    return segmenter


def make_trainer(cfg: DictConfig) -> Any:
    """Lightning's trainer; it refuses our bar where none is to be shown."""
    from hydra.utils import instantiate

    if not cfg.trainer.enable_progress_bar:
        shown = [one for one in cfg.trainer.callbacks if not one["_target_"].endswith("RunBar")]
        cfg.trainer.callbacks = shown
    return instantiate(cfg.trainer, _convert_="all")


def check_earlier(
    earlier: "Trained", segmenter: "Segmenter", data: "GroupData", ema_decay: float
) -> None:
    """Check that this is the training that is to be gone on with, on the same data.

    Raises:
        PancsegError: If it cannot be gone on with.
    """
    from pancseg.inference.checkpoint import check_resumable

    chosen, numbers = data.chosen, dict(data.hparams)
    data.seen_before.update(earlier.seen_before)
    check_resumable(earlier, segmenter, numbers, chosen.preprocessing, chosen.split, ema_decay)
    if earlier.data["batch_size"] != numbers["batch_size"]:
        log.warning(
            "data.batch_size=%s, ckpt_path was trained with %s: it goes on with other batches than "
            "it would have had",
            numbers["batch_size"],
            earlier.data["batch_size"],
        )
    if earlier.fingerprint != data.chosen.fingerprint():
        log.warning("the prepared data are not those that ckpt_path was trained on")


def counting_of(cfg: DictConfig) -> dict[str, Any]:
    """How the memory of a step is counted."""
    optimizer = cfg.optimizer["_target_"].rpartition(".")[2]
    return {
        "accelerator": cfg.hardware.accelerator,
        "optimizer_states": STATES.get(optimizer, 2),
        "bytes_per_value": 2 if "16" in str(cfg.hardware.precision) else 4,
    }


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
            f"data.spatial_size={list(data.chosen.patch)}; give less of either, or "
            "hardware.cache=ram"
        ) from error


def plain(node: DictConfig) -> Any:
    """Plain values: what may cross into a checkpoint."""
    return OmegaConf.to_container(node, resolve=True)


main = command(train)

if __name__ == "__main__":
    main()
