"""Callbacks of a training: epoch report, progress bar, early stopping, averaged weights."""

import logging
import math
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import EarlyStopping, TQDMProgressBar, WeightAveraging
from torch import Tensor
from tqdm import tqdm

from pancseg.errors import PancsegError
from pancseg.files import write_csv
from pancseg.models.segmenter import timer_of
from pancseg.reports.pictures import draw_history
from pancseg.training.checkpoints import is_at_last_step, is_discarded, is_partial
from pancseg.training.sweeps import pruning_callback

log = logging.getLogger(__name__)
METRICS = [f"{part}/{x}" for part in ("train", "val") for x in ("loss", "dice", "recipe_metric")]


def build_callbacks(cfg: DictConfig, monitor: str | None) -> list[pl.Callback]:
    """Callbacks of ``cfg.callbacks`` that have something to do; ``monitor`` chooses the best."""
    absent = {
        "weight_averaging": not average_decay(cfg),
        "early_stopping": OmegaConf.select(cfg, "callbacks.early_stopping.patience") is None,
        "progress_bar": not cfg.trainer.enable_progress_bar,
        **dict.fromkeys(("best", "last"), bool(cfg.trainer.fast_dev_run)),
    }
    if monitor is None and not absent["early_stopping"]:
        raise PancsegError("patience: there is no validation to wait for; give split.val=0.2")
    kept = {name: node for name, node in cfg.callbacks.items() if node and not absent.get(name)}
    if "epoch_report" not in kept:
        raise PancsegError("callbacks.epoch_report: metrics.csv and summary.json need it; keep it")
    callbacks = [pruning_callback(**dict(cfg.trial))] if cfg.trial and monitor else []
    for name, node in kept.items():
        options = {"monitor": monitor} if name in ("best", "early_stopping") else {}
        callbacks.append(instantiate(node, **options, _convert_="all"))
    return [*callbacks, SignalHandlers()]


def average_decay(cfg: DictConfig) -> float:
    """Decay of the average of the weights; 0 without it."""
    return OmegaConf.select(cfg, "callbacks.weight_averaging.decay") or 0.0


class EpochReport(pl.Callback):
    """Write ``metrics.csv`` and ``history.png`` to the run's folder, and print a line an epoch.

    Lightning's CSVLogger writes training and validation in rows of their own. The history is kept
    in checkpoints, so that a resumed run has all of it.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.rows: list[dict[str, Any]] = []
        self.structures: list[str] = []  # several, whose Dice gets columns of their own
        self.title = ""
        self.is_partial = False  # training ended within its first epoch, whose part is kept
        self.has_validated = False
        self.start_s = 0.0

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics of an epoch."""
        own = [f"{part}/dice_{name}" for part in ("train", "val") for name in self.structures]
        return [*METRICS, *own]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the epoch's clock."""
        self.structures = list(pl_module.structures) if len(pl_module.structures) > 1 else []
        self.start_s, self.has_validated = time.perf_counter(), False

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        """Validate after the last of ``trainer.max_steps``, wherever in an epoch it comes.

        Lightning would end without; the weights at the end of a schedule could not be the best.
        """
        if is_at_last_step(trainer):
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that this epoch has validation metrics of its own."""
        self.has_validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's row and print its line."""
        # Lightning ends the last epoch again where a run goes on to max_steps
        if self.rows and self.rows[-1]["step"] == trainer.global_step:
            return
        if is_discarded(trainer):
            done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            counts = trainer.current_epoch + 1, done, trainer.num_training_batches
            log.info("epoch %s ended after %s of %s batches, and is discarded", *counts)
            return
        row: dict[str, Any] = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        for name in self.metrics:  # Lightning keeps those of an earlier validation
            is_new = self.has_validated or name.startswith("train/")
            value = float(trainer.callback_metrics.get(name, math.nan))
            row[name] = value if is_new and math.isfinite(value) else None
        row["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        row["seconds"] = round(time.perf_counter() - self.start_s, 3)
        self.rows = [old for old in self.rows if old["epoch"] < row["epoch"]] + [row]
        self.is_partial = is_partial(trainer)
        log.info(epoch_line(self.rows, trainer.max_epochs))  # warnings alone in other processes
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            columns = ["epoch", "step", *self.metrics, "lr", "seconds"]
            cells = ([row.get(name) for name in columns] for row in self.rows)
            try:
                write_csv(self.folder / "metrics.csv", columns, cells)
            except PermissionError as error:  # another program holds it; the next epoch tries again
                log.warning("metrics.csv cannot be written now: %s", error)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the curves and print the closing line."""
        self.draw(trainer)
        if self.rows:
            log.info(closing_line(self.rows))

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Draw the curves as far as they go; a full disk must not hide the exception."""
        with suppress(OSError):
            self.draw(trainer)

    def draw(self, trainer: pl.Trainer) -> None:
        """Draw ``history.png``."""
        if trainer.is_global_zero and self.rows and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            draw_history(self.folder / "history.png", self.rows, self.title)

    def state_dict(self) -> dict[str, Any]:
        """The history."""
        return {"rows": self.rows, "is_partial": self.is_partial}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the history of the run that is resumed."""
        self.rows, self.is_partial = list(state_dict["rows"]), state_dict["is_partial"]


def best_row(rows: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """The row with the largest Dice, of equal ones with the smallest loss; or the smallest loss."""
    valued = [row for row in rows if row.get(name) is not None]
    if name.endswith("loss"):
        return min(valued, key=lambda row: row[name], default=None)
    loss = name.replace("dice", "loss")
    by_loss = sorted(valued, key=lambda row: math.inf if row.get(loss) is None else row[loss])
    return max(by_loss, key=lambda row: row[name], default=None)


def epoch_line(rows: list[dict[str, Any]], max_epochs: int | None) -> str:
    """``epoch 12/600 train loss 0.41 dice 0.52 | val loss 0.47 dice 0.44 | best 0.46 at 9``."""
    row, total = rows[-1], f"/{max_epochs}" if max_epochs and max_epochs > 0 else ""

    def values_of(subset: str) -> str:
        named = {name: row[f"{subset}/{name}"] for name in ("loss", "dice")}
        shown = [f"{name} {value:.3f}" for name, value in named.items() if value is not None]
        return " ".join([subset, *shown]) if shown else ""

    best = best_row(rows, "val/dice")
    best_text = f"best {best['val/dice']:.3f} at {best['epoch']}" if best else ""
    parts = f"epoch {row['epoch']}{total} {values_of('train')}", values_of("val"), best_text
    return " | ".join(filter(None, parts))


def closing_line(rows: list[dict[str, Any]]) -> str:
    """``train completed, best dice 0.71 at epoch 18, best loss 0.21 at epoch 20``."""
    subset, parts = "val" if best_row(rows, "val/loss") else "train", ["train completed"]
    for name in ("dice", "loss"):
        if best := best_row(rows, f"{subset}/{name}"):
            parts.append(f"best {name} {best[f'{subset}/{name}']:.3f} at epoch {best['epoch']}")
    return ", ".join(parts) + " (of training: nothing was validated)" * (subset == "train")


class SignalHandlers(pl.Callback):
    """Put the process's handler of SIGTERM back when training starts.

    Lightning's own calls a collective within the handler, which waits for ever if the other
    processes are in another collective.
    """

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace Lightning's handler."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.handler)


class Patience(EarlyStopping):
    """Stop after ``patience`` validations without a better one."""

    def __init__(self, patience: int, monitor: str = "val/dice") -> None:
        mode = "min" if monitor.endswith("loss") else "max"
        super().__init__(monitor, mode=mode, patience=patience, check_on_train_epoch_end=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore how long nothing got better, but not the patience: it may be another one now."""
        super().load_state_dict({**state_dict, "patience": self.patience})


class MovingAverage(WeightAveraging):
    """Exponential moving average of the weights (Polyak and Juditsky 1992).

    It is validated and saved in place of the weights. Its decay is at most ``(1 + n) / (10 + n)``
    after ``n`` steps, as TensorFlow's: otherwise a training of minutes would be judged by its first
    weights.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Update the average after a step of the optimizer.

        Not by torch's ``AveragedModel``, which reads its count from the GPU at each step.
        """
        if trainer.global_step > self._latest_update_step:
            average: Any = self._average_model
            averages, weights = (
                [*network.parameters(), *network.buffers()]
                for network in (average.module, pl_module)
            )
            update_average(averages, weights, self.decay, trainer.global_step - 1)
            self._latest_update_step = trainer.global_step


@torch.no_grad()
def update_average(averages: list[Tensor], weights: list[Tensor], decay: float, steps: int) -> None:
    """Update averages in place after ``steps`` earlier updates; integers are copied."""
    share = 1.0 if steps == 0 else 1 - min(decay, (1 + steps) / (10 + steps))
    pairs = list(zip(averages, weights, strict=True))
    real = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([a for a, _ in real], [w for _, w in real], share)
    for average, weight in pairs:
        if not average.is_floating_point():
            average.copy_(weight)


class ProgressBar(TQDMProgressBar):
    """Lightning's bar with ``left`` for the whole run; silent where there is no terminal."""

    def __init__(self) -> None:
        super().__init__(leave=False)

    def on_train_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Start the clock."""
        self.start_s, self.first_step = time.perf_counter(), trainer.global_step
        if not sys.stdout.isatty():
            self.disable()
        super().on_train_start(trainer, *args)

    def get_metrics(self, trainer: pl.Trainer, *args: Any) -> dict[str, Any]:
        """Loss and Dice of the last logged step, and the time left."""
        metrics = super().get_metrics(trainer, *args)
        metrics.pop("v_num", None)
        for name in ("train/loss", "train/dice"):
            if f"{name}_step" in trainer.callback_metrics:
                metrics[name] = f"{float(trainer.callback_metrics[f'{name}_step']):.3f}"
        left_s = math.inf
        if steps := trainer.global_step - self.first_step:
            a_step = (time.perf_counter() - self.start_s) / steps
            left_s = a_step * (trainer.estimated_stepping_batches - trainer.global_step)
        if timer := timer_of(trainer):
            left_s = min(left_s, timer.time_remaining() or 0.0)
        if math.isfinite(left_s):
            metrics["left"] = tqdm.format_interval(max(0.0, left_s))
        return metrics
