"""Lightning's callbacks, fitted to what a training has."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from pancseg.errors import PancsegError
from pancseg.learning.averaging import MovingAverage
from pancseg.tracking.each_counts import EachCounts
from pancseg.tracking.epoch_report import EpochReport
from pancseg.tracking.going_on import EndsValidated, Patience
from pancseg.tracking.keep_last import KeepLast
from pancseg.tracking.signal_stop import SignalStop


def fit_callbacks(
    trainer: pl.Trainer, validates: bool, ema_decay: float, patience: int | None
) -> EpochReport:
    """Add, take away and tune, by what there is to do; the epoch report among them.

    Args:
        trainer: With the callbacks of its configuration.
        validates: Whether there are patients to validate on.
        ema_decay: Of a running mean of the weights; 0 keeps none.
        patience: Validations without a better one until training stops; None never stops.

    Raises:
        PancsegError: If patience is asked for where nothing is validated.
    """
    kept = trainer.callbacks  # type: ignore[attr-defined]
    report = next(one for one in kept if isinstance(one, EpochReport))
    last = next(one for one in kept if isinstance(one, KeepLast))
    savers = [one for one in kept if isinstance(one, ModelCheckpoint)]
    validates = validates and trainer.limit_val_batches != 0
    # before those that save: what they save is then up to date
    if ema_decay:
        kept = [MovingAverage(ema_decay), *kept]
    kept = [*kept, SignalStop(last)]  # after all that an epoch writes
    if trainer.world_size > 1:
        kept = [*kept, EachCounts()]
    if validates:
        kept = [EndsValidated(), *kept]
    if patience is not None:
        if not validates:
            raise PancsegError("patience: there is no validation to wait for; give split.val=0.2")
        kept = [Patience(patience), *kept]
    if trainer.fast_dev_run:  # type: ignore[attr-defined] # Lightning's own last slips through
        kept = [one for one in kept if one not in savers]
    if not validates:
        trainer.limit_val_batches = 0
        for saver in savers:
            saver.monitor = None  # the best is then the last
    trainer.callbacks = kept  # type: ignore[attr-defined]
    return report
