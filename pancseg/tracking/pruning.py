"""A trial of a search tells its study how it does, and stops where others did better by then."""

import logging
from typing import Any

import pytorch_lightning as pl

from pancseg.tracking.epoch_report import EpochReport, is_trial
from pancseg.tracking.study import open_study

log = logging.getLogger(__name__)


class Pruning(pl.Callback):
    """Reports ``val/dice`` of each validation to a study, and stops what is not promising.

    Args:
        storage: Address of the study's database.
        study: Its name.
        number: Of the trial.
        pruner: ``startup_trials`` and ``warmup_epochs``; None never stops a trial.
    """

    def __init__(
        self, storage: str, study: str, number: int, pruner: dict[str, int] | None
    ) -> None:
        self.place = (storage, study, pruner)
        self.number = number
        self.pruned = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report what was reached before the training was stopped, which the study may not know."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        rows = next(one.rows for one in callbacks if isinstance(one, EpochReport))
        known = {row["epoch"]: row["val/dice"] for row in rows if row["val/dice"] is not None}
        if trainer.is_global_zero and known:
            self.report(known)
        if self.pruned:
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report, and stop if the trial is to be pruned; all processes do as the first one."""
        value = trainer.callback_metrics.get("val/dice")
        if value is None or is_trial(trainer):
            return
        told = {trainer.current_epoch + 1: float(value)}
        stop = self.report(told) if trainer.is_global_zero else False
        if trainer.strategy.broadcast(stop):
            self.pruned = trainer.should_stop = True
            log.info("pruned: other trials did better in epoch %s", trainer.current_epoch + 1)

    def report(self, told: dict[int, float]) -> bool:
        """Report scores by epoch, those apart that the study knows.

        Returns:
            Whether the trial is to be pruned.
        """
        import optuna

        with open_study(*self.place) as study:
            found = study.trials[self.number]
            if found.state.is_finished():  # another worker took it for dead
                return False
            trial = optuna.trial.Trial(study, found._trial_id)
            for epoch, value in told.items():
                if epoch not in found.intermediate_values:
                    trial.report(value, epoch)
            return bool(trial.should_prune())

    def state_dict(self) -> dict[str, Any]:
        """Whether it was pruned: a run that was killed right after does not go on."""
        return {"pruned": self.pruned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up whether it was pruned."""
        self.pruned = bool(state_dict["pruned"])


def add_pruning(trainer: pl.Trainer, trial: dict[str, Any]) -> None:
    """Let a training report to the study that asked for it.

    Args:
        trainer: With its other callbacks, which come after.
        trial: What :class:`Pruning` is given.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    trainer.callbacks = [Pruning(**trial), *callbacks]  # type: ignore[attr-defined]


def was_pruned(trainer: pl.Trainer) -> bool:
    """Whether a training was stopped by its study."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return any(one.pruned for one in callbacks if isinstance(one, Pruning))
