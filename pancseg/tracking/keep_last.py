"""``last.ckpt``: there from the start, written often, whole or not at all, never spoilt."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io import TorchCheckpointIO
from lightning_fabric.utilities.types import _PATH
from pytorch_lightning.callbacks import Checkpoint

from pancseg.errors import Incomplete
from pancseg.files import replaced
from pancseg.stopping import Stopped
from pancseg.tracking.epoch_report import is_trial

WRITING = ("inline_container", "PytorchStreamWriter")  # in what torch says of a file it writes


class KeepLast(Checkpoint):
    """Saves where the training is: after some time, at its end, and where it is interrupted.

    Lightning's ModelCheckpoint saves by time too, but also at the last step of an epoch, from
    where Lightning goes on without that epoch's validation.

    Args:
        path: Of the checkpoint.
        every_s: Seconds between two.
    """

    def __init__(self, path: str, every_s: float) -> None:
        self.path = Path(path)
        self.every_s = every_s
        self.saved_at = time.monotonic()
        self.saved_step = 0
        self.validating_since = self.saved_at
        self.validation_s = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; a new run begins with a checkpoint that it can go back to."""
        self.saved_at, self.saved_step = time.monotonic(), trainer.global_step
        if not trainer.global_step:
            self.save(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Save if it is time, or will be within the validation, and no gradients are waiting."""
        batches = trainer.fit_loop.epoch_loop.batch_progress
        done = batches.current.processed  # type: ignore[attr-defined]
        whole = done % trainer.accumulate_grad_batches == 0
        last_chance = done + trainer.accumulate_grad_batches >= trainer.num_training_batches
        ahead_s = self.validation_s if last_chance else 0.0
        if whole and not batches.is_last_batch and self.is_time(trainer, ahead_s):
            self.save(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of a validation, within which nothing can be saved."""
        self.validating_since = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note how long validation takes."""
        self.validation_s = time.monotonic() - self.validating_since

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save if it is time, or the last epoch: later, averaged weights replace the current."""
        if is_final(trainer) or self.is_time(trainer):
            self.save(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save what was reached, unless nothing was learnt since, or what was learnt is no good.

        Not from one of several processes: the others would not come to save. Nor where a signal
        ended it, after whose step all is saved, nor after a failed write: it may have come between
        an epoch and its row, which would then have no figures.
        """
        unfit = isinstance(exception, Incomplete | Stopped | OSError)
        good = trainer.world_size == 1 and not unfit
        if good and trainer.global_step > self.saved_step:
            self.save(trainer)

    def is_time(self, trainer: pl.Trainer, ahead_s: float = 0.0) -> bool:
        """Whether it is time to save, or will be so soon; all processes do as the first one."""
        due = time.monotonic() + ahead_s - self.saved_at >= self.every_s
        return bool(trainer.strategy.broadcast(due))

    def save(self, trainer: pl.Trainer) -> None:
        """Save, unless the weights are spoilt."""
        network = trainer.lightning_module
        tensors = (*network.parameters(), *network.buffers())
        if is_trial(trainer) or not all(bool(one.isfinite().all()) for one in tensors):
            return
        trainer.save_checkpoint(self.path)
        self.saved_at, self.saved_step = time.monotonic(), trainer.global_step


def is_final(trainer: pl.Trainer) -> bool:
    """Whether no epoch comes after this one."""
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    ended = (0 < epochs <= trainer.current_epoch + 1) or (0 < steps <= trainer.global_step)
    return ended or trainer.should_stop


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints under another name first.

    Lightning writes to the system's temporary folder and moves from there, which copies where that
    is another file system.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            Incomplete: If there is no room, which torch does not say by an OSError.
        """
        try:
            with replaced(Path(path)) as temporary:
                torch.save(checkpoint, temporary)
        except RuntimeError as error:
            if not any(word in str(error) for word in WRITING):
                raise
            raise Incomplete(
                f"{path}: cannot be written; is the disk full? make room, and go on from what was "
                "saved with ckpt_path=last"
            ) from error
