"""Freezing of a part of the network for the first epochs of a training."""

import re
from typing import Any

import pytorch_lightning as pl
from torch import nn

from pancseg.errors import PancsegError

ENCODERS = {  # patterns of the names of an encoder's weights
    "NNUNet": r"encoder\.",
    "ResUNet": r"(input_block|downsamples|bottleneck)\.",
    "SegResNet": r"(convInit|down_layers)\.",
    "SwinUNETR": r"(swinViT|encoder\d+)\.",
}


class FreezeEncoder(pl.Callback):
    """Keep the weights of a part, the ``encoder``, as they are for the first epochs.

    They stay in the optimizer and in DDP's buckets, which must not change; the optimizer skips them
    because they have no gradient. A single process does not compute their gradients.
    """

    def __init__(self, part: str | None, epochs: int) -> None:
        if part not in (None, "encoder"):
            raise PancsegError(f"model.freeze={part}: expected encoder or null")
        self.epochs = epochs if part else 0
        self.frozen: list[nn.Parameter] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Freeze, or release after the last frozen epoch."""
        encoder = encoder_of(pl_module.network) if self.epochs else []
        is_frozen = trainer.current_epoch < self.epochs
        self.frozen = encoder if is_frozen else []
        for parameter in encoder:
            parameter.requires_grad_(not is_frozen or trainer.world_size > 1)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Release, so that all parameters count as trainable."""
        for parameter in encoder_of(pl_module.network) if self.epochs else []:
            parameter.requires_grad_()

    def on_before_optimizer_step(self, *args: Any) -> None:
        """Drop gradients, before they are clipped."""
        for parameter in self.frozen:
            parameter.grad = None


def encoder_of(network: nn.Module) -> list[nn.Parameter]:
    """Parameters of a network's encoder."""
    inner: Any = getattr(network, "network", network)  # of an AdaptedNetwork
    name = type(inner).__name__
    if name not in ENCODERS:
        raise PancsegError(f"model.freeze=encoder: not known in {name}; give null")
    return [p for key, p in inner.named_parameters() if re.match(ENCODERS[name], key)]
