"""Ending a training on a signal, with all its processes together and nothing lost."""

import pytorch_lightning as pl
import torch

from pancseg.requeue import has_own_folder
from pancseg.stopping import Stopped, name_of, watch
from pancseg.tracking.epoch_report import is_trial
from pancseg.tracking.keep_last import KeepLast, is_final

VALIDATION_S = 10.0  # a validation may take after a signal; Slurm kills 30 s after SIGTERM


class SignalStop(pl.Callback):
    """Finishes the step, saves and ends, whichever process of the training got a signal.

    A validation that takes longer is left, where one process trains: the training goes on from
    the checkpoint before it. Several cannot leave it together, for each validates other cases.

    Args:
        saver: Writes ``last.ckpt``; it comes before this one among the callbacks.
    """

    def __init__(self, saver: KeepLast) -> None:
        self.saver = saver

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on the training ends where it may; Lightning listens no more."""
        watch.defer()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        """End after a step, not where the epoch's end or gradients of more batches are waiting."""
        batches = trainer.fit_loop.epoch_loop.batch_progress
        done = batches.current.processed  # type: ignore[attr-defined]
        if done % trainer.accumulate_grad_batches == 0 and not batches.is_last_batch:
            self.end_if_asked(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        """Leave a validation that takes too long."""
        late = watch.signum and watch.waited_s() > VALIDATION_S
        if late and trainer.world_size == 1:
            raise self.stopped(watch.signum)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End after an epoch, unless it was the last."""
        if not is_final(trainer):
            self.end_if_asked(trainer)

    def end_if_asked(self, trainer: pl.Trainer) -> None:
        """Save and end where any of the processes got a signal.

        Raises:
            Stopped: In every process.
        """
        signum = heard_by_any(trainer)
        if not signum or is_trial(trainer):
            return
        if self.saver.saved_step != trainer.global_step:
            self.saver.save(trainer)
        stopped = self.stopped(signum)
        if not trainer.is_global_zero:  # one of them speaks, and is waited for
            stopped.told, stopped.exit_code = "", 0
        raise stopped

    def stopped(self, signum: int) -> Stopped:
        """How the training ended, and how to go on."""
        stopped, step = Stopped(signum), self.saver.saved_step
        stopped.told = (
            f"stopped by {name_of(signum)}; to go on after step {step}, run it again with "
            f"ckpt_path={self.saver.path}"
        )
        stopped.goes_on = has_own_folder()
        return stopped


def heard_by_any(trainer: pl.Trainer) -> int:
    """The signal that any of the processes got, or 0."""
    if trainer.world_size == 1:
        return watch.signum
    heard = torch.tensor(watch.signum, device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(heard, reduce_op="max"))
