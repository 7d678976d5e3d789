"""TensorBoard beyond scalars: train against val in one chart, samples, Dice of each patient."""

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from pancseg.tracking.event_log import boards_of
from pancseg.tracking.overlays import draw, tile

Batch = dict[str, Any]
LAYOUT = {
    "train against val": {
        name: ["Multiline", [f"train/{name}$", f"val/{name}$"]]
        for name in ("loss", "dice", "recipe_metric")
    }
}
THRESHOLDS = 101  # of the precision-recall curve
SAMPLES = 4  # of a batch, in one picture
DICE_BINS = np.linspace(0, 1, 51)  # TensorBoard's own widen with the value: 0.08 at a Dice of 0.85


class Board(pl.Callback):
    """Fills TensorBoard's custom scalars, images, histograms and PR curves.

    With several processes pictures and curves are of what the first one sees.

    Args:
        every_n_epochs: How often, but for the layout.
    """

    def __init__(self, every_n_epochs: int) -> None:
        self.every_n_epochs = every_n_epochs
        self.counts = torch.zeros(2, THRESHOLDS, dtype=torch.float64)  # of 10^8 voxels, and exact

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lay out the charts that hold training beside validation."""
        for board in boards_of(trainer):
            board.experiment.add_custom_scalars(LAYOUT)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Draw the first samples of an epoch, augmented, as the network is given them."""
        boards = boards_of(trainer)
        if batch_idx or not self.is_due(trainer) or not boards:
            return
        pairs = zip(batch["image"][:SAMPLES], batch["label"][:SAMPLES], strict=True)
        arrays = [
            (image[0].float().cpu().numpy(), label[0].cpu().numpy()) for image, label in pairs
        ]
        picture = tile([draw(image, label) for image, label in arrays])
        for board in boards:
            board.experiment.add_image(
                "train/samples", picture, trainer.global_step, dataformats="HWC"
            )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Enter the learning rate."""
        for board in boards_of(trainer):
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            board.experiment.add_scalar("train/lr", rate, trainer.global_step)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        *_: Any,
    ) -> None:
        """Count voxels by probability, those drawn apart from the others."""
        if self.is_due(trainer) and boards_of(trainer):
            probability = pl_module.probability_of(outputs["logits"])  # type: ignore[operator]
            self.counts += count_by_probability(probability, batch["label"] > 0).cpu()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Enter the Dice of each patient and the precision-recall curve."""
        boards, counts = boards_of(trainer), self.counts
        self.counts = torch.zeros_like(counts)
        if not self.is_due(trainer) or not boards:
            return
        dice = pl_module.dice["val_dice"].of_each()  # type: ignore[index, union-attr]
        for board in boards:
            if len(dice):
                board.experiment.add_histogram(
                    "val/dice_of_patients",
                    dice,
                    trainer.global_step,
                    bins=DICE_BINS,
                )
            if counts.sum():
                board.experiment.add_pr_curve_raw(
                    "val/voxels", *curve(counts), trainer.global_step, num_thresholds=THRESHOLDS
                )

    def is_due(self, trainer: pl.Trainer) -> bool:
        """Whether this epoch is entered."""
        return trainer.current_epoch % self.every_n_epochs == 0 and not trainer.sanity_checking


def count_by_probability(probability: Tensor, drawn: Tensor) -> Tensor:
    """Voxels in each bin of probability, ``(2, bins)``: not drawn, drawn.

    >>> count_by_probability(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0, 1, 0]) > 0).sum(1)
    tensor([2., 1.], dtype=torch.float64)
    """
    parts = (probability[~drawn], probability[drawn])
    return torch.stack([torch.histc(part.float(), THRESHOLDS, 0.0, 1.0) for part in parts]).double()


def curve(counts: Tensor) -> tuple[Tensor, ...]:
    """True and false positives, true and false negatives, precision and recall by threshold."""
    above = counts.flip(1).cumsum(1).flip(1)  # of each threshold, what lies in or above it
    false_positive, true_positive = above
    negative, positive = counts.sum(1)
    precision = true_positive / (true_positive + false_positive).clamp(min=1)
    recall = true_positive / positive.clamp(min=1)
    true_negative, false_negative = negative - false_positive, positive - true_positive
    return true_positive, false_positive, true_negative, false_negative, precision, recall
