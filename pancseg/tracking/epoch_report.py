"""A row and a line an epoch, in the manner of the recipe.

Lightning's CSVLogger writes a row at every logging event, training and validation apart.
"""

import logging
import math
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from pancseg.files import write_csv
from pancseg.output.history import draw_history

log = logging.getLogger(__name__)
MEASURES = [
    f"{part}/{name}" for part in ("train", "val") for name in ("loss", "dice", "recipe_metric")
]
COLUMNS = ["epoch", "step", *MEASURES, "lr", "seconds"]


class EpochReport(pl.Callback):
    """Writes ``metrics.csv`` and ``history.png``, prints a line an epoch and a closing line.

    The history travels in checkpoints, so that a resumed run has all of it.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.rows: list[dict[str, Any]] = []
        self.title = ""
        self.validated = False
        self.began = time.perf_counter()
        self.spent_s = 0.0  # on the present epoch, by a run that this one goes on with

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of an epoch that was half done."""
        self.began = time.perf_counter() - self.spent_s

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch's clock."""
        self.began = time.perf_counter()
        self.validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note that this epoch has validation figures of its own."""
        self.validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's row and print its line."""
        if self.rows and self.rows[-1]["step"] == trainer.global_step:
            return  # Lightning ends the last epoch again where a run goes on to max_steps
        measured = {name: as_number(trainer.callback_metrics.get(name)) for name in MEASURES}
        if not self.validated:  # Lightning keeps those of an earlier epoch
            measured |= {name: None for name in MEASURES if name.startswith("val/")}
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            **measured,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "seconds": round(time.perf_counter() - self.began, 3),
        }
        self.rows = [old for old in self.rows if old["epoch"] < row["epoch"]] + [row]
        if not trainer.is_global_zero:
            return
        log.info(epoch_line(self.rows, trainer.max_epochs))
        if not is_trial(trainer):
            self.write()

    def write(self) -> None:
        """Write ``metrics.csv``, an empty cell for what was not measured.

        The next epoch tries again where another program holds it.
        """
        try:
            cells = ([row.get(name) for name in COLUMNS] for row in self.rows)
            write_csv(self.folder / "metrics.csv", COLUMNS, cells)
        except PermissionError as error:
            log.warning("metrics.csv cannot be written now: %s", error)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the curves and print the closing line."""
        if trainer.is_global_zero and self.rows:
            self.draw(trainer)
            log.info(closing_line(self.rows))

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Draw the curves as far as they go."""
        if trainer.is_global_zero and self.rows:
            self.draw(trainer)

    def draw(self, trainer: pl.Trainer) -> None:
        """Draw ``history.png``."""
        if not is_trial(trainer):
            draw_history(self.folder / "history.png", self.rows, self.title)

    def state_dict(self) -> dict[str, Any]:
        """The history so far."""
        return {"rows": self.rows, "spent_s": time.perf_counter() - self.began}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the history of the run that is resumed."""
        self.rows = list(state_dict["rows"])
        self.spent_s = float(state_dict["spent_s"])


def is_trial(trainer: pl.Trainer) -> bool:
    """Whether this is ``trainer.fast_dev_run``, which writes nothing."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def as_number(value: Any) -> float | None:
    """A logged value, or None where there is none or it is not a number."""
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None


def best(rows: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """The row with the best value: the largest Dice or the smallest loss, the earliest of equals.

    >>> best([{"epoch": 1, "val/loss": 0.4}, {"epoch": 2, "val/loss": 0.3}], "val/loss")["epoch"]
    2
    """
    valued = [row for row in rows if row.get(name) is not None]
    if not valued:
        return None
    return (min if name.endswith("loss") else max)(valued, key=lambda row: row[name])


def epoch_line(rows: list[dict[str, Any]], epochs: int | None) -> str:
    """``epoch 12/600 train loss 0.41 dice 0.52 | val loss 0.47 dice 0.44 | best 0.46 at 9``."""
    row, of = rows[-1], f"/{epochs}" if epochs and epochs > 0 else ""
    parts = [f"epoch {row['epoch']}{of} train {two(row, 'train')}"]
    if row["val/loss"] is not None:
        parts.append(f"val {two(row, 'val')}")
    if found := best(rows, "val/dice"):
        parts.append(f"best {found['val/dice']:.3f} at {found['epoch']}")
    return " | ".join(parts)


def two(row: dict[str, Any], part: str) -> str:
    """Loss and Dice of a part."""
    shown = [
        f"{name} {row[f'{part}/{name}']:.3f}"
        for name in ("loss", "dice")
        if row[f"{part}/{name}"] is not None
    ]
    return " ".join(shown)


def closing_line(rows: list[dict[str, Any]]) -> str:
    """``train completed, best dice 0.71 at epoch 18, best loss 0.21 at 20``."""
    part = "val" if best(rows, "val/loss") else "train"
    dice, loss = best(rows, f"{part}/dice"), best(rows, f"{part}/loss")
    line = "train completed"
    if dice:
        line += f", best dice {dice[f'{part}/dice']:.3f} at epoch {dice['epoch']}"
    if loss:
        line += f", best loss {loss[f'{part}/loss']:.3f} at {loss['epoch']}"
    return line if part == "val" else line + " (of training: nothing was validated)"
