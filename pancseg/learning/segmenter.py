"""The Lightning module: network, loss, optimiser and Dice."""

import math
from typing import Any

import pytorch_lightning as pl
import torch
from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from pancseg.errors import PancsegError
from pancseg.learning.building import build
from pancseg.learning.patient_dice import PatientDice, batch_dice
from pancseg.learning.schedule import Schedule

Batch = dict[str, Any]


class Segmenter(pl.LightningModule):
    """Background against pancreas on ``(B, 1, H, W, D)`` images in 0..1.

    The arguments are plain values, so that a checkpoint loads from its path alone.

    Args:
        model: ``_target_`` and arguments of a network with 1 channel in and 2 out.
        loss: ``_target_`` and arguments of a loss of logits ``(B, 2, H, W, D)`` and labels
            ``(B, 1, H, W, D)``.
        optimizer: ``_target_`` and arguments, without the parameters.
        schedule: Arguments of a :class:`Schedule`; None is a constant rate.
    """

    def __init__(
        self,
        model: dict[str, Any],
        loss: dict[str, Any],
        optimizer: dict[str, Any],
        schedule: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.schedule = Schedule(**(schedule or {}))
        self.network = build(model, nn.Module)
        self.loss_function = build(loss, nn.Module)
        self.recipe_loss = DiceLoss(to_onehot_y=True, sigmoid=True, squared_pred=True)
        self.train_dice = PatientDice()
        self.val_dice = PatientDice()

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``(B, 2, H, W, D)`` of an image ``(B, 1, H, W, D)``."""
        return self.network(image)

    def probability(self, image: Tensor) -> Tensor:
        """Probability of pancreas, ``(B, 1, H, W, D)`` float32: softmax over the two channels.

        One rule for every loss: above 0.5 is where the pancreas has the larger logit.
        """
        return self(image).float().softmax(dim=1)[:, 1:]

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Loss of a batch."""
        return self.step(batch, "train")

    def validation_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Loss of a batch."""
        return self.step(batch, "val")

    def step(self, batch: Batch, part: str) -> Tensor:
        """Loss, Dice and the recipe's metric of a batch, logged per step and per epoch.

        ``<part>/dice`` of an epoch is the mean over patients; of a step, over the batch's voxels.
        """
        image, label = batch["image"], batch["label"]
        logits = self(image).float()  # sums over 10^6 voxels lose digits in half precision
        loss = self.loss_function(logits, label)
        with torch.no_grad():
            prediction = logits[:, 1:] > logits[:, :1]
            recipe = 1 - self.recipe_loss(logits, label)
            dice = self.train_dice if part == "train" else self.val_dice
            dice.update(prediction, label, batch["patient"])
        means = {f"{part}/loss": loss.detach(), f"{part}/recipe_metric": recipe}
        steps = {**means, f"{part}/dice": batch_dice(prediction, label)}
        named = {f"{name}_step": value for name, value in steps.items()}
        epoch: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": len(image)}
        self.log_dict(named, on_step=True, on_epoch=False, batch_size=len(image))
        self.log_dict(means, sync_dist=True, **epoch)
        self.log(f"{part}/dice", dice, **epoch)
        return loss

    def configure_optimizers(self) -> Any:
        """The optimiser of the configuration, and its learning rate over the steps.

        Raises:
            PancsegError: If the rate is to fall to the end of a training that has none.
        """
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = build(self.hparams["optimizer"], torch.optim.Optimizer, parameters)
        if self.schedule == Schedule():
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if self.schedule.needs_an_end and math.isinf(steps):
            raise PancsegError(
                f"schedule={self.schedule.kind}: needs to know the last step; give "
                "trainer.max_epochs or trainer.max_steps, or take schedule=constant"
            )
        rate = LambdaLR(optimizer, lambda step: self.schedule.factor(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}
