"""A running mean of the weights, which is what is validated and saved."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor


class MovingAverage(WeightAveraging):
    """Exponential moving average of the weights (Polyak and Juditsky 1992).

    The mean of the first steps is short, ``(1 + n) / (10 + n)`` after ``n`` of them, as
    TensorFlow's: otherwise a training of minutes would be judged by its first weights.

    Args:
        decay: Share of the mean that stays at a step, once there were many.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(avg_fn=self.average)
        self.decay = decay
        self.swapped = False

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the mean in the place of the current weights."""
        super().on_validation_epoch_start(trainer, pl_module)
        self.swapped = True

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the current weights back."""
        super().on_validation_epoch_end(trainer, pl_module)
        self.swapped = False

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Put the current weights back where a validation was interrupted, to be saved as such."""
        if self.swapped:
            self.on_validation_epoch_end(trainer, pl_module)

    def average(self, mean: Tensor, current: Tensor, steps: Tensor | int) -> Tensor:
        """One tensor's new mean; whole numbers, such as batch norm's count, are taken as they are.

        >>> average = MovingAverage(0.9).average
        >>> import torch
        >>> [round(average(torch.zeros(1), torch.ones(1), n).item(), 3) for n in (0, 8, 1000)]
        [0.9, 0.5, 0.1]
        """
        if not mean.is_floating_point():
            return current
        n = float(steps)
        return mean.lerp(current, 1 - min(self.decay, (1 + n) / (10 + n)))
