"""TensorBoard's events of a run, in as few groups of charts as there are kinds of figures."""

from collections.abc import Mapping

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger


class EventLog(TensorBoardLogger):
    """Lightning's logger, with ``epoch`` among the figures of training.

    Lightning adds it to every entry, and TensorBoard makes it a group above those one looks for.

    Args:
        save_dir: Where ``tensorboard/`` is made.
    """

    def __init__(self, save_dir: str) -> None:
        # its hp_metric of -1 would stand in the table before there is a score
        super().__init__(save_dir, name="tensorboard", version="", default_hp_metric=False)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Enter figures under their names.

        Args:
            metrics: By name.
            step: Of the optimiser.
        """
        named = dict(metrics)
        if "epoch" in named:
            named["train/epoch"] = named.pop("epoch")
        super().log_metrics(named, step)


def boards_of(trainer: pl.Trainer) -> list[TensorBoardLogger]:
    """The boards that this process writes to."""
    if not trainer.is_global_zero:
        return []
    return [one for one in trainer.loggers if isinstance(one, TensorBoardLogger)]
