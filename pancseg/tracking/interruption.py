"""Ctrl-C: what was reached is saved."""

from pathlib import Path

import pytorch_lightning as pl

from pancseg.tracking.epoch_report import is_trial


class SaveOnInterrupt(pl.Callback):
    """Saves ``last.ckpt`` when training is interrupted from the keyboard.

    Args:
        path: Of the checkpoint.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save, unless nothing was learnt yet."""
        if (
            isinstance(exception, KeyboardInterrupt)
            and trainer.global_step
            and not is_trial(trainer)
        ):
            trainer.save_checkpoint(self.path)
