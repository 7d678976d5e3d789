"""The Lightning module: network, loss, optimizer and Dice."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from monai.inferers import sliding_window_inference
from monai.losses import DiceLoss
from pytorch_lightning.callbacks import Timer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric

from pancseg.errors import Incomplete, PancsegError
from pancseg.hardware import is_out_of_memory
from pancseg.models.augmentation import step_seed
from pancseg.models.factory import build, use_channels_last, use_cpu_layers
from pancseg.models.losses import IgnoringLoss, deep_supervision_loss, without_ignored
from pancseg.models.metrics import PatientDice, batch_dice, count_voxels

log = logging.getLogger(__name__)
Batch = dict[str, Any]
SUBSETS = ("train", "val")
WINDOWS = 2  # in a batch: a CPU distributes samples over its cores
RANK_STRIDE = 7919  # a prime: seeds of dropout differ between processes
TOTAL_STEPS = ("T_max", "total_iters", "total_steps")  # arguments of schedulers that need the end


class Segmenter(pl.LightningModule):
    """Background and K structures on ``(B, 1, H, W, D)`` images in 0..1.

    The arguments are plain values, so that a checkpoint loads from its path alone: ``_target_`` and
    arguments of network, loss, optimizer (without parameters) and scheduler (without optimizer).

    Args:
        model: 1 channel in and K + 1 out; in training it may give a list of logits, fine to coarse.
        loss: Of logits ``(B, K + 1, H, W, D)`` and labels ``(B, 1, H, W, D)``.
        optimizer: Of ``torch.optim``.
        scheduler: Stepped after each step; a null ``T_max``, ``total_iters`` or ``total_steps``
            becomes the steps of the training.
        view: ``size`` of the network's input, voxels, and ``overlap`` of the windows by which a
            larger image is segmented; None takes any image whole.
        seed: Of everything random in a step.
        structures: Codes in the labels, which are also channels, of each structure by its name.
        has_ignored: Whether labels hold ``IGNORED``.
    """

    def __init__(
        self,
        model: dict[str, Any],
        loss: dict[str, Any],
        optimizer: dict[str, Any],
        scheduler: dict[str, Any] | None = None,
        view: dict[str, Any] | None = None,
        seed: int = 0,
        structures: dict[str, list[int]] | None = None,
        has_ignored: bool = False,
    ) -> None:
        super().__init__()
        self.structures = structures or {"pancreas": [1]}
        self.save_hyperparameters()
        self.network = build(model, nn.Module)
        use_cpu_layers(self.network)
        self.loss_function = build(loss, nn.Module)
        if has_ignored:
            self.loss_function = IgnoringLoss(self.loss_function)
        self.recipe_loss = DiceLoss(to_onehot_y=True, sigmoid=True, squared_pred=True)
        self.dice = nn.ModuleDict({f"{subset}_dice": PatientDice() for subset in SUBSETS})
        for number, name in enumerate(self.structures if len(self.structures) > 1 else ()):
            for subset in SUBSETS:
                self.dice[f"{subset}_dice_{name}"] = PatientDice(number)
        names = [f"{subset}_{name}" for subset in SUBSETS for name in ("loss", "recipe_metric")]
        # torchmetrics' own check for NaN reads each value from the GPU
        self.means = nn.ModuleDict({name: MeanMetric(nan_strategy="disable") for name in names})
        self.memory_format = torch.contiguous_format
        self.sum_device: torch.device | None = None  # of windows; None: of the image

    def prepare_for(
        self, device_type: str, channels_last: bool | None = None, compile_mode: str | None = None
    ) -> None:
        """Choose the network's memory format, None the faster one, and compile it in a mode."""
        if channels_last is None:
            channels_last = use_channels_last(self.network, device_type)
        if channels_last:
            self.memory_format = torch.channels_last_3d
            self.network.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        if compile_mode:
            # static shapes: a graph for each batch size of training and validation
            self.network.compile(mode=compile_mode, dynamic=False)

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``(B, K + 1, H, W, D)`` of an image ``(B, 1, H, W, D)``, window by window.

        For validation; ``training_step`` calls ``self.network`` on a patch. Windows are weighted by
        a Gaussian, because logits at their borders are less certain. After memory has run out once,
        logits are summed, and returned, on the CPU.
        """
        view = self.hparams["view"]
        if view is None or tuple(image.shape[2:]) == tuple(view["size"]):
            return finest(self.network(image))
        options: dict[str, Any] = {"overlap": view["overlap"], "device": self.sum_device}
        options |= {"predictor": self.window_logits, "mode": "gaussian"}
        windows: Any = sliding_window_inference
        try:
            return windows(image, view["size"], WINDOWS, **options)
        except RuntimeError as error:
            if self.sum_device is not None or not is_out_of_memory(error):
                raise
        torch.cuda.empty_cache()
        log.warning("memory ran out: windows are summed on the CPU from here on")
        self.sum_device = torch.device("cpu")
        return self(image)

    def window_logits(self, image: Tensor) -> Tensor:
        """Logits ``(B, K + 1, h, w, d)`` of windows, float32."""
        image = image.contiguous(memory_format=self.memory_format)
        return finest(self.network(image)).float()

    def structure_logits(self, logits: Tensor) -> Tensor:
        """Logit of each structure, ``(B, K, H, W, D)``, by the rule that the loss teaches."""
        is_sigmoid = bool(self.hparams["loss"].get("sigmoid"))
        return structure_logits(logits, list(self.structures.values()), is_sigmoid)

    def probability_of(self, logits: Tensor) -> Tensor:
        """Probability of each structure, ``(B, K, H, W, D)``."""
        return self.structure_logits(logits).sigmoid()

    def mask_of(self, logits: Tensor) -> Tensor:
        """Where the probability of a structure is above one half, ``(B, K, H, W, D)`` bool."""
        return self.structure_logits(logits) > 0

    def reference_of(self, label: Tensor) -> Tensor:
        """Voxels of each structure in a label, ``(B, K, H, W, D)`` bool."""
        codes = [label.new_tensor(values) for values in self.structures.values()]
        return torch.cat([torch.isin(label, own) for own in codes], dim=1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch."""
        # of dropout, for example: a step is a function of the seed, its number and its process
        seed = step_seed(self.hparams["seed"], batch["batch_number"])
        torch.manual_seed(seed + RANK_STRIDE * self.global_rank)
        image = batch["image"].contiguous(memory_format=self.memory_format)
        logits = self.network(image)
        loss = deep_supervision_loss(self.loss_function, logits, batch["label"])
        every_n: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every_n and self.trainer.global_step % every_n == 0:
            self.check_finite(loss, f"step {self.global_step}: the loss", batch["name"])
        self.log_metrics(batch, finest(logits).float(), loss.detach(), "train")
        return loss

    def on_train_epoch_end(self) -> None:
        """Check the mean loss before the epoch is saved."""
        if (mean := self.trainer.callback_metrics.get("train/loss")) is not None:
            self.check_finite(mean, f"epoch {self.current_epoch + 1}: the mean loss")

    def check_finite(self, loss: Tensor, subject: str, names: Sequence[str] = ()) -> None:
        """Raise Incomplete in all processes if a loss is not finite; it is read from the GPU."""
        is_finite = bool(torch.isfinite(loss))
        if not self.trainer.strategy.reduce_boolean_decision(is_finite):
            cases = f" on {', '.join(names)}" if names else ""
            raise Incomplete(
                f"{subject} is {loss.item()}{cases}; begin with the last whole epoch, "
                "init_from=RUN/checkpoints/last.ckpt, at a lower rate, optimizer.lr=..., or clip "
                "gradients by trainer.gradient_clip_val=1"
            )

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Loss and logits of a batch."""
        logits = self(batch["image"].contiguous(memory_format=self.memory_format)).float()
        label = batch["label"].to(logits.device)
        loss = self.loss_function(logits, label)
        logits = self.log_metrics({**batch, "label": label}, logits, loss, "val")
        return {"loss": loss, "logits": logits}

    @torch.no_grad()
    def log_metrics(self, batch: Batch, logits: Tensor, loss: Tensor, subset: str) -> Tensor:
        """Log loss, Dice and the recipe's metric of a batch, per step and per epoch.

        ``<subset>/dice`` of an epoch is the mean over patients; of a step, over the batch's voxels.
        Both are means over structures. Returned are the logits, background where ignored.
        """
        label, size = batch["label"], len(batch["label"])
        if self.hparams["has_ignored"]:
            logits, label = without_ignored(logits, label)
        device = batch["patient"].device
        voxels = count_voxels(self.mask_of(logits), self.reference_of(label)).to(device)
        recipe_metric = 1 - self.recipe_loss(logits, label).to(device)
        loss = loss.to(device)
        steps = {"loss": loss, "recipe_metric": recipe_metric, "dice": batch_dice(voxels)}
        named = {f"{subset}/{name}_step": value for name, value in steps.items()}
        self.log_dict(named, on_step=True, on_epoch=False, batch_size=size)
        epoch: dict[str, Any] = {}
        for name, dice in self.dice.items():
            if name.startswith(subset):
                dice.update(voxels, batch["patient"])  # type: ignore[operator]
                epoch[name.replace("_", "/", 1)] = dice
        for name in ("loss", "recipe_metric"):
            epoch[f"{subset}/{name}"] = mean = self.means[f"{subset}_{name}"]
            mean.update(steps[name], size)  # type: ignore[operator]
        self.log_dict(epoch, on_step=False, on_epoch=True, batch_size=size)
        return logits

    def configure_optimizers(self) -> Any:
        """Build the optimizer, and the scheduler of its learning rate."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = build(self.hparams["optimizer"], torch.optim.Optimizer, parameters)
        node = self.hparams["scheduler"]
        if not node:
            return optimizer
        open_ends = [key for key in TOTAL_STEPS if key in node and node[key] is None]
        steps = self.total_steps() if open_ends else 0
        if steps is None:
            advice = "give it, trainer.max_epochs or trainer.max_steps, or take scheduler=constant"
            raise PancsegError(f"scheduler.{open_ends[0]}: {advice}")
        scheduler = build({**node, **dict.fromkeys(open_ends, steps)}, LRScheduler, optimizer)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def total_steps(self) -> int | None:
        """Optimizer steps until ``trainer.max_epochs`` or ``max_steps``; None without both."""
        trainer: Any = self.trainer  # its own estimate makes the loader of a wrong epoch
        batches, limit = trainer.datamodule.batches_per_epoch(), trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        limits = [trainer.max_steps] if trainer.max_steps > 0 else []
        if (trainer.max_epochs or 0) > 0:
            limits.append(math.ceil(batches / trainer.accumulate_grad_batches) * trainer.max_epochs)
        return min(limits, default=None)

    def on_train_start(self) -> None:
        """Give restored optimizer states the memory layout of their parameters.

        A fused optimizer walks through both by address: a checkpoint of another memory format, or
        a forged one, would mix values or write beyond them.
        """
        for optimizer in self.trainer.optimizers:
            for parameter, state in optimizer.state.items():
                for name, value in state.items():
                    if value is not None and value.shape == parameter.shape:
                        state[name] = torch.empty_like(parameter).copy_(value)


def finest(logits: Tensor | Sequence[Tensor]) -> Tensor:
    """The logits at full resolution of a network with deep supervision or without."""
    return logits if isinstance(logits, Tensor) else logits[0]


def structure_logits(logits: Tensor, structures: Sequence[Sequence[int]], sigmoid: bool) -> Tensor:
    """Logit of each structure, ``(B, K, H, W, D)``, of logits ``(B, C, H, W, D)`` of its channels.

    A loss with ``sigmoid``, as the recipe's, teaches each channel by itself, and a structure is as
    likely as the likeliest of its channels; others teach a softmax, where probabilities add up.
    """

    def total(channels: Sequence[int]) -> Tensor:
        if len(channels) == 1:
            return logits[:, channels[0] : channels[0] + 1]
        parts = logits[:, list(channels)]
        return parts.amax(1, keepdim=True) if sigmoid else parts.logsumexp(1, keepdim=True)

    if sigmoid:
        return torch.cat([total(own) for own in structures], dim=1)
    every = range(logits.shape[1])
    pairs = [(own, [n for n in every if n not in own]) for own in structures]
    return torch.cat([total(own) - total(others) for own, others in pairs], dim=1)


def timer_of(trainer: pl.Trainer) -> Timer | None:
    """The timer of ``trainer.max_time``, if it is set."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, Timer)), None)
