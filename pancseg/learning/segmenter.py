"""The Lightning module: network, loss, optimiser and Dice."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from monai.inferers import sliding_window_inference
from monai.losses import DiceLoss
from pytorch_lightning.callbacks import Timer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from pancseg.errors import Incomplete, PancsegError
from pancseg.learning.augmentation.augmenter import step_seed
from pancseg.learning.building import build
from pancseg.learning.deep_supervision import deep_supervision_loss
from pancseg.learning.patient_dice import PatientDice, batch_dice, count_voxels
from pancseg.learning.schedule import Schedule
from pancseg.learning.short_axes import convolve_carefully

Batch = dict[str, Any]
PARTS = ("train", "val")
WINDOWS = 2  # read at once: a CPU shares its cores out by sample


class Segmenter(pl.LightningModule):
    """Background against pancreas on ``(B, 1, H, W, D)`` images in 0..1.

    The arguments are plain values, so that a checkpoint loads from its path alone.

    Args:
        model: ``_target_`` and arguments of a network with 1 channel in and 2 out; in training it
            may give a list of logits, from fine to coarse.
        loss: ``_target_`` and arguments of a loss of logits ``(B, 2, H, W, D)`` and labels
            ``(B, 1, H, W, D)``.
        optimizer: ``_target_`` and arguments, without the parameters.
        schedule: Arguments of a :class:`Schedule`; None is a constant rate.
        view: ``size`` of the network's input, voxels, and ``overlap`` of the windows by which a
            larger image is read; None takes any image whole.
        seed: Of everything random in a step.
    """

    def __init__(
        self,
        model: dict[str, Any],
        loss: dict[str, Any],
        optimizer: dict[str, Any],
        schedule: dict[str, Any] | None = None,
        view: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.schedule = Schedule(**(schedule or {}))
        self.network = build(model, nn.Module)
        convolve_carefully(self.network)
        self.loss_function = build(loss, nn.Module)
        self.recipe_loss = DiceLoss(to_onehot_y=True, sigmoid=True, squared_pred=True)
        self.dice = nn.ModuleDict({f"{part}_dice": PatientDice() for part in PARTS})
        self.means = nn.ModuleDict(
            {f"{part}_{name}": MeanMetric() for part in PARTS for name in ("loss", "recipe_metric")}
        )
        for metric in (*self.dice.values(), *self.means.values()):
            metric.persistent(True)  # type: ignore[operator] # an epoch may be saved half done
        self.memory_format = torch.contiguous_format

    def prepare_for(self, *, channels_last: bool, compiled: bool) -> None:
        """Arrange the network as is fast on this machine; weights and checkpoints are the same."""
        if channels_last:
            self.memory_format = torch.channels_last_3d
            self.network.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        if compiled:
            self.network.compile()

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``(B, 2, H, W, D)`` of an image ``(B, 1, H, W, D)``, window by window.

        Windows are weighted by a Gaussian, so that their borders, which saw least, count least.
        """
        view = self.hparams["view"]
        if view is None or tuple(image.shape[2:]) == tuple(view["size"]):
            return self.finest(self.network(image))
        return sliding_window_inference(  # type: ignore[return-value]
            image,
            roi_size=view["size"],
            sw_batch_size=WINDOWS,
            predictor=self.read_window,
            overlap=view["overlap"],
            mode="gaussian",
        )

    def read_window(self, image: Tensor) -> Tensor:
        """Logits of windows, float32, which the network is given in its order of memory."""
        image = image.contiguous(memory_format=self.memory_format)
        return self.finest(self.network(image)).float()

    @staticmethod
    def finest(logits: Tensor | Sequence[Tensor]) -> Tensor:
        """The logits at full resolution."""
        return logits if isinstance(logits, Tensor) else logits[0]

    def evidence(self, image: Tensor) -> Tensor:
        """Logit of pancreas, ``(B, 1, h, w, d)`` float32, of windows that the network takes."""
        return self.evidence_of(self.read_window(image))

    def evidence_of(self, logits: Tensor) -> Tensor:
        """Logit of pancreas, ``(B, 1, H, W, D)``, by the rule that the loss teaches.

        A loss with ``sigmoid``, as the recipe's, teaches each channel by itself, and nothing ties
        their logits together; others teach a softmax over both, where the difference counts.
        """
        if self.hparams["loss"].get("sigmoid"):
            return logits[:, 1:]
        return logits[:, 1:] - logits[:, :1]

    def probability_of(self, logits: Tensor) -> Tensor:
        """Probability of pancreas, ``(B, 1, H, W, D)``."""
        return self.evidence_of(logits).sigmoid()

    def mask_of(self, logits: Tensor) -> Tensor:
        """Where the probability of pancreas is above one half, ``(B, 1, H, W, D)`` bool."""
        return self.evidence_of(logits) > 0

    def in_memory_format(self, batch: Batch) -> Batch:
        """A batch whose image is in the network's order of memory."""
        return {**batch, "image": batch["image"].contiguous(memory_format=self.memory_format)}

    def on_train_epoch_start(self) -> None:
        """Begin to count anew; an epoch that is gone on with goes on counting."""
        self.dice["train_dice"].reset()  # type: ignore[operator]
        for name in ("loss", "recipe_metric"):
            self.means[f"train_{name}"].reset()  # type: ignore[operator]

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Loss of a batch.

        Raises:
            Incomplete: If the loss is no number.
        """
        # of dropout, say: a step depends on nothing before it
        torch.manual_seed(step_seed(self.hparams["seed"], int(batch["step"][0])))
        batch = self.in_memory_format(batch)
        logits, label = self.network(batch["image"]), batch["label"]
        finest = self.finest(logits).float()  # sums over 10^6 voxels lose digits in half precision
        loss = deep_supervision_loss(self.loss_function, logits, label)
        if not torch.isfinite(loss):
            names = ", ".join(batch["name"])
            raise Incomplete(
                f"step {self.global_step}: the loss is {loss.item()} on {names}; "
                "last.ckpt holds the last good weights: begin with them at a lower rate by "
                "init_from=RUN/checkpoints/last.ckpt optimizer.lr=..., or clip gradients by "
                "trainer.gradient_clip_val=1"
            )
        self.note(batch, finest, loss.detach(), "train")
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        """Loss and logits of a batch."""
        batch = self.in_memory_format(batch)
        logits = self(batch["image"]).float()
        loss = self.loss_function(logits, batch["label"])
        self.note(batch, logits, loss, "val")
        return {"loss": loss, "logits": logits}

    @torch.no_grad()
    def note(self, batch: Batch, logits: Tensor, loss: Tensor, part: str) -> None:
        """Log loss, Dice and the recipe's metric of a batch, per step and per epoch.

        ``<part>/dice`` of an epoch is the mean over patients; of a step, over the batch's voxels.
        """
        label, size = batch["label"], len(batch["label"])
        voxels = count_voxels(self.mask_of(logits), label)
        recipe = 1 - self.recipe_loss(logits, label)
        dice = self.dice[f"{part}_dice"]
        dice.update(voxels, batch["patient"])  # type: ignore[operator]
        steps = {"loss": loss, "recipe_metric": recipe, "dice": batch_dice(voxels)}
        named = {f"{part}/{name}_step": value for name, value in steps.items()}
        self.log_dict(named, on_step=True, on_epoch=False, batch_size=size)
        epoch: dict[str, Any] = {f"{part}/dice": dice}
        for name in ("loss", "recipe_metric"):
            mean = self.means[f"{part}_{name}"]
            mean.update(steps[name], size)  # type: ignore[operator]
            epoch[f"{part}/{name}"] = mean
        self.log_dict(epoch, on_step=False, on_epoch=True, batch_size=size)

    def configure_optimizers(self) -> Any:
        """The optimiser of the configuration, and its learning rate over the training.

        Raises:
            PancsegError: If the rate is to fall to the end of a training that has none.
        """
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = build(self.hparams["optimizer"], torch.optim.Optimizer, parameters)
        if self.schedule == Schedule():
            return optimizer
        endless = self.trainer.max_epochs in (None, -1) and self.trainer.max_steps == -1
        if self.schedule.needs_an_end and endless and timer_of(self.trainer) is None:
            raise PancsegError(
                f"schedule={self.schedule.kind}: needs to know the end; give trainer.max_epochs, "
                "trainer.max_steps or trainer.max_time, or take schedule=constant"
            )
        rate = LambdaLR(optimizer, lambda step: self.schedule.factor(step, self.share_done(step)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    def share_done(self, step: int) -> float:
        """Share of the training that is done, by its steps or its time, whichever ends first.

        Before the first step nothing is asked: the trainer would set up its loader to count
        batches, before it knows where a training goes on.
        """
        if not step:
            return 0.0
        by_steps = step / max(self.trainer.estimated_stepping_batches, 1)
        timer = timer_of(self.trainer)
        if timer is None:
            return by_steps
        elapsed_s, left_s = timer.time_elapsed(), timer.time_remaining() or 0.0
        share = max(by_steps, elapsed_s / max(elapsed_s + left_s, 1e-9))
        return float(self.trainer.strategy.broadcast(share))  # each process has a clock of its own


def timer_of(trainer: pl.Trainer) -> Timer | None:
    """The clock behind ``trainer.max_time``, if there is one."""
    return next((one for one in trainer.callbacks if isinstance(one, Timer)), None)  # type: ignore[attr-defined]
