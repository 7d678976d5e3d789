"""Checkpoints: ``best.ckpt`` and ``last.ckpt``, of whole epochs, written atomically."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from lightning_fabric.utilities.types import _PATH
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from pancseg.config import BEST, LAST, run_path
from pancseg.data.datamodule import CTDataModule, is_first_process
from pancseg.errors import Incomplete, PancsegError
from pancseg.files import replaced
from pancseg.inference.checkpoint import TrainedModel
from pancseg.models.segmenter import Segmenter
from pancseg.requeue import has_own_folder, is_run_again
from pancseg.training.resume import check_resumable

log = logging.getLogger(__name__)
WRITE_ERRORS = ("inline_container", "PytorchStreamWriter")  # in torch's errors of a full disk


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its target and rename it.

    Lightning writes to the system's temporary folder and moves, which copies across file systems.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; Incomplete if the disk is full, for which torch has no OSError."""
        try:
            with replaced(Path(path)) as temporary:
                torch.save(checkpoint, temporary)
        except RuntimeError as error:
            if not any(text in str(error) for text in WRITE_ERRORS):
                raise
            raise Incomplete(
                f"{path}: cannot be written; is the disk full? make room, and go on from the last "
                "whole epoch with ckpt_path=last"
            ) from error


class EpochCheckpoint(ModelCheckpoint):
    """A checkpoint at the end of each whole epoch, after all other callbacks.

    Args:
        folder: Where it is written.
        name: Without suffix.
        monitor: ``val/dice`` or ``val/loss``, of which the best is kept; None keeps the latest.
    """

    def __init__(self, folder: str, name: str, monitor: str | None = None) -> None:
        super().__init__(
            folder,
            name,
            monitor=monitor,
            mode="max" if monitor == "val/dice" else "min",
            save_on_train_epoch_end=True,
            enable_version_counter=False,
            auto_insert_metric_name=False,
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the step of a resumed training: Lightning may end its last epoch again."""
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved = trainer.global_step

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, unless the epoch was cut short or lacks the monitored metric."""
        has_metric = self.monitor is None or self.monitor in trainer.callback_metrics
        if has_metric and not is_cut_short(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score, also where the run was moved: Lightning drops it there."""
        path = str(Path(str(self.dirpath)) / f"{self.filename}{self.FILE_EXTENSION}")
        if not Path(path).is_file():
            return  # the next epoch is the best that there is here
        state = {**state_dict, "dirpath": self.dirpath}
        # the file would name paths that are removed later; only the own file can be meant
        for key in ("best_model_path", "last_model_path", "kth_best_model_path"):
            state[key] = path if state[key] else ""
        scores = [*state["best_k_models"].values()]
        state["best_k_models"] = {path: scores[0]} if scores else {}
        super().load_state_dict(state)


class BestCheckpoint(EpochCheckpoint):
    """``best.ckpt``: the highest ``val/dice``, of equal ones the lowest ``val/loss``.

    Args:
        folder: Where it is written.
        monitor: ``val/dice``; ``val/loss`` where no validation patient has a reference; None,
            which keeps the latest, without validation.
    """

    def __init__(self, folder: str, monitor: str | None = "val/dice") -> None:
        super().__init__(folder, "best", monitor)
        self.best_loss = float("inf")

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Skip the validation of an epoch that is cut short: nothing of it is kept."""
        if trainer.should_stop and is_cut_short(trainer):
            trainer.limit_val_batches = 0

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Whether this epoch is the best."""
        loss = float(trainer.callback_metrics.get("val/loss", torch.inf))
        is_tied = current is not None and current in (*self.best_k_models.values(),)
        is_best = super().check_monitor_top_k(trainer, current) or (
            is_tied and loss < self.best_loss
        )
        self.best_loss = loss if is_best else self.best_loss
        return is_best

    def state_dict(self) -> dict[str, Any]:
        """State in checkpoints."""
        return {**super().state_dict(), "best_loss": self.best_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score and its loss."""
        super().load_state_dict(state_dict)
        if self.best_k_models:
            self.best_loss = float(state_dict["best_loss"])


def is_partial(trainer: pl.Trainer) -> bool:
    """Whether this epoch ended before its last batch, as by ``trainer.max_time``."""
    done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return done < trainer.num_training_batches and not is_at_last_step(trainer)


def is_cut_short(trainer: pl.Trainer) -> bool:
    """Whether this epoch is partial and not the first.

    Such an epoch leaves no row and no checkpoint: a training goes on from whole epochs. Of a
    training without a whole epoch the part is kept.
    """
    return trainer.current_epoch > 0 and is_partial(trainer)


def is_at_last_step(trainer: pl.Trainer) -> bool:
    """Whether ``trainer.max_steps`` is reached."""
    return 0 < trainer.max_steps <= trainer.global_step


def ensure_best_checkpoint(last: Path) -> None:
    """Copy ``last.ckpt`` to ``best.ckpt`` where the run ended before its first validation."""
    best = last.with_name(Path(BEST).name)
    if last.is_file() and not best.is_file():
        log.info("nothing was validated: best.ckpt is the last")
        with replaced(best) as temporary:
            shutil.copyfile(last, temporary)


def copy_best_checkpoint(checkpoint: Path) -> None:
    """Copy ``best.ckpt`` from beside a checkpoint of another run folder to this one."""
    source, target = checkpoint.with_name(Path(BEST).name), Path(run_path(BEST))
    if is_first_process() and source.is_file() and not target.is_file():
        with replaced(target) as temporary:
            shutil.copyfile(source, temporary)


def resume_checkpoint(cfg: DictConfig) -> Path | None:
    """The checkpoint to resume from; a job that Slurm runs again resumes by itself.

    Raises:
        PancsegError: If Slurm runs the job again in another run folder, or the run folder holds
            another training.
    """
    last = Path(run_path(LAST))
    if is_run_again():
        if not has_own_folder():
            raise PancsegError(
                "Slurm runs this job again, and the run's folder is named by the clock; give "
                "hydra.run.dir=FOLDER, so that it goes on from its last.ckpt"
            )
        if last.is_file():
            log.info("started again by Slurm: going on with %s", last)
            return last
    if last.is_file() and not cfg.ckpt_path:
        raise PancsegError(
            f"{last.parent.parent}: holds a training; give ckpt_path=last to go on with it, or "
            "another hydra.run.dir"
        )
    if cfg.ckpt_path != "last":
        return Path(cfg.ckpt_path) if cfg.ckpt_path else None
    if not last.is_file():
        log.info("ckpt_path=last: there is none yet, a new training begins")
        return None
    log.info("ckpt_path=last: going on with %s", last)
    return last


def check_resumed(
    cfg: DictConfig, earlier: TrainedModel, segmenter: Segmenter, data: CTDataModule
) -> None:
    """Check that the configured training continues the one of a checkpoint.

    Raises:
        PancsegError: If it cannot.
    """
    settings, trainer = dict(data.hparams), cfg.trainer
    data.seen_before.update(earlier.seen_before)
    check_resumable(earlier, segmenter, settings, data.preprocessing, data.split, cfg.ema_decay)
    check_optimizer_states(earlier.optimizer_states, segmenter)
    spent = [
        f"trainer.{key}={trainer[key]}, ckpt_path has {done}"
        for key, done in (("max_epochs", earlier.epoch), ("max_steps", earlier.step))
        if 0 < (trainer[key] or 0) <= done
    ]
    if trainer.max_time and earlier.trained_s >= seconds_of(trainer.max_time):
        spent.append(
            f"trainer.max_time={trainer.max_time}, ckpt_path has {earlier.trained_s:.0f} s"
        )
    if spent:
        log.warning("nothing is left to train: %s; give more to go on", ", ".join(spent))
    if earlier.data["batch_size"] != settings["batch_size"]:
        log.warning(
            "data.batch_size=%s, ckpt_path was trained with %s: the batches are other ones from "
            "here on",
            settings["batch_size"],
            earlier.data["batch_size"],
        )
    if earlier.fingerprint != data.fingerprint:
        log.warning("the prepared data are not those that ckpt_path was trained on")


def check_optimizer_states(states: Any, segmenter: Segmenter) -> None:
    """Check that the states of an optimizer fit its parameters.

    Raises:
        PancsegError: If they do not: a fused optimizer would write beyond their memory.
    """
    parameters = [p for p in segmenter.parameters() if p.requires_grad]

    def fits(name: str, value: Any, parameter: Tensor) -> bool:
        if name == "step":
            return isinstance(value, Tensor) and value.ndim == 0
        is_none = value is None  # momentum before the first step
        same = isinstance(value, Tensor) and value.shape == parameter.shape
        return is_none or (same and value.dtype == parameter.dtype)

    try:
        (state,) = states
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        is_right = numbers == list(range(len(parameters))) and all(
            fits(name, value, parameters[number])
            for number, values in state["state"].items()
            for name, value in values.items()
        )
    except (TypeError, ValueError, LookupError, AttributeError):
        is_right = False
    if not is_right:
        raise PancsegError(
            "ckpt_path holds the state of another optimizer or network; begin with its weights by "
            "init_from"
        )


def seconds_of(max_time: str) -> int:
    """Seconds of ``days:hours:minutes:seconds``.

    >>> seconds_of("00:00:10:00")
    600
    """
    days, hours, minutes, seconds = map(int, str(max_time).split(":"))
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
