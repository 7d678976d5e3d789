"""A progress bar that tells the time left for all epochs, not for the current one."""

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import TQDMProgressBar
from tqdm import tqdm

from pancseg.learning.segmenter import timer_of


class RunBar(TQDMProgressBar):
    """Lightning's bar with ``left`` for the whole run; silent where there is no terminal."""

    def __init__(self) -> None:
        super().__init__(leave=False)
        self.began = 0.0
        self.first_step = 0

    def on_train_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Start the clock."""
        self.began, self.first_step = time.perf_counter(), trainer.global_step
        if not sys.stdout.isatty():
            self.disable()
        super().on_train_start(trainer, *args)

    def get_metrics(self, trainer: pl.Trainer, *args: Any) -> dict[str, Any]:
        """The bar's figures: loss and Dice of the step, and the time left."""
        shown = super().get_metrics(trainer, *args)
        shown.pop("v_num", None)
        for name in ("train/loss_step", "train/dice_step"):
            if name in trainer.callback_metrics:
                shown[name.removesuffix("_step")] = f"{float(trainer.callback_metrics[name]):.3f}"
        seconds = seconds_left(
            time.perf_counter() - self.began,
            trainer.global_step - self.first_step,
            trainer.estimated_stepping_batches - trainer.global_step,
        )
        timer = timer_of(trainer)
        if timer is not None and seconds is not None:
            seconds = min(seconds, timer.time_remaining() or 0.0)
        if seconds is not None:
            shown["left"] = tqdm.format_interval(seconds)
        return shown


def seconds_left(elapsed_s: float, steps_done: int, steps_to_do: float) -> float | None:
    """Time left at the pace so far; None before the first step or without an end.

    >>> seconds_left(elapsed_s=10.0, steps_done=5, steps_to_do=100)
    200.0
    """
    if steps_done < 1 or steps_to_do == float("inf"):
        return None
    return elapsed_s / steps_done * max(0.0, steps_to_do)
