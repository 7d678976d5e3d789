"""The best checkpoint and the end of a training, as a run that goes on needs them."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from pancseg.files import replaced

log = logging.getLogger(__name__)
BEST = "best.ckpt"
PATHS = ("best_model_path", "last_model_path", "kth_best_model_path")


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best by ``val/dice``, also of a run that was moved: Lightning forgets it there.

    Args:
        folder: Where ``best.ckpt`` is written, after the epoch's row.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(
            folder,
            "best",
            monitor="val/dice",
            mode="max",
            save_on_train_epoch_end=True,
            enable_version_counter=False,
            auto_insert_metric_name=False,
        )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep this epoch if it is the best; one without validation is none."""
        if self.monitor is None or self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what was best so far, in the folder where it lies now."""

        def moved(path: str) -> str:
            # the one name it writes: what replaces it is removed, and a file could name anything
            return str(Path(str(self.dirpath)) / BEST) if path else path

        state = {**state_dict, "dirpath": self.dirpath}
        state |= {name: moved(state[name]) for name in PATHS}
        state["best_k_models"] = {moved(path): v for path, v in state["best_k_models"].items()}
        super().load_state_dict(state)


class Patience(EarlyStopping):
    """Stops where validation gets no better, by the patience that is asked for now.

    Args:
        validations: To wait for a better ``val/dice``.
    """

    def __init__(self, validations: int) -> None:
        super().__init__(
            "val/dice", mode="max", patience=validations, check_on_train_epoch_end=False
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up how long nothing got better."""
        super().load_state_dict({**state_dict, "patience": self.patience})


class EndsValidated(pl.Callback):
    """Validates after the last of ``trainer.max_steps``, wherever in an epoch it comes.

    Lightning would end without, and the weights of the end of a schedule could not be the best.
    """

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Say that the training ends: what ends early is validated."""
        if 0 < trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True


def give_a_best(last: Path) -> None:
    """Where a run ended before its first validation the best checkpoint is the last."""
    best = last.with_name(BEST)
    if last.is_file() and not best.is_file():
        log.info("nothing was validated: best.ckpt is the last")
        with replaced(best) as temporary:
            shutil.copyfile(last, temporary)
