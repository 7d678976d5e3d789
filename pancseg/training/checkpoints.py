"""Checkpoints: ``best.ckpt`` and ``last.ckpt``, of whole epochs, written atomically."""

import shutil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from lightning_fabric.utilities.types import _PATH
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from pancseg.errors import Incomplete
from pancseg.files import replaced

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
            advice = "make room, and go on from the last whole epoch with ckpt_path=last"
            raise Incomplete(f"{path}: cannot be written; is the disk full? {advice}") from error


class EpochCheckpoint(ModelCheckpoint):
    """A checkpoint at the end of each whole epoch: the best by ``monitor``, else the latest."""

    def __init__(self, folder: str, name: str, monitor: str | None = None) -> None:
        options: Any = dict.fromkeys(("enable_version_counter", "auto_insert_metric_name"), False)
        options["save_on_train_epoch_end"] = True  # after all other callbacks
        mode = "max" if monitor == "val/dice" else "min"
        super().__init__(folder, name, monitor=monitor, mode=mode, **options)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the step of a resumed training: Lightning may end its last epoch again."""
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved = trainer.global_step

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, unless the epoch was cut short or lacks the monitored metric."""
        has_metric = self.monitor is None or self.monitor in trainer.callback_metrics
        if has_metric and not is_discarded(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score, also where the run was moved: Lightning drops it there."""
        path = str(Path(str(self.dirpath)) / f"{self.filename}{self.FILE_EXTENSION}")
        if Path(path).is_file():  # else the next epoch is the best that there is here
            # a file may name any path, and Lightning deletes it later: only this run's own is kept
            paths = ("best_model_path", "last_model_path", "kth_best_model_path")
            state = {**state_dict, **{key: path if state_dict[key] else "" for key in paths}}
            scores = [*state["best_k_models"].values()]
            models = {path: scores[0]} if scores else {}
            super().load_state_dict({**state, "dirpath": self.dirpath, "best_k_models": models})


class BestCheckpoint(EpochCheckpoint):
    """``best.ckpt``: the highest ``val/dice``, of equal ones the lowest ``val/loss``."""

    def __init__(self, folder: str, monitor: str | None = "val/dice") -> None:
        super().__init__(folder, "best", monitor)
        self.best_loss = float("inf")

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Skip the validation of an epoch that is cut short: nothing of it is kept."""
        if trainer.should_stop and is_discarded(trainer):
            trainer.limit_val_batches = 0

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Whether this epoch is the best."""
        loss = float(trainer.callback_metrics.get("val/loss", torch.inf))
        is_tied = current is not None and current in (*self.best_k_models.values(),)
        is_best = super().check_monitor_top_k(trainer, current)
        is_best = is_best or (is_tied and loss < self.best_loss)
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


def is_discarded(trainer: pl.Trainer) -> bool:
    """Whether this epoch is partial and not the first: not kept, as a resumed run repeats it."""
    return trainer.current_epoch > 0 and is_partial(trainer)


def is_at_last_step(trainer: pl.Trainer) -> bool:
    """Whether ``trainer.max_steps`` is reached."""
    return 0 < trainer.max_steps <= trainer.global_step


def copy_checkpoint(source: Path, target: Path) -> bool:
    """Copy a checkpoint to where there is none; whether it was copied."""
    if not source.is_file() or target.is_file():
        return False
    with replaced(target) as temporary:
        shutil.copyfile(source, temporary)
    return True
