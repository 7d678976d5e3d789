"""What each of several processes has counted of an epoch that is saved half done."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, distributed
from torchmetrics import Metric

COUNTS = "counts_of_each"


class EachCounts(pl.Callback):
    """Keeps the epoch's sums of every process: Lightning writes those of the first one alone.

    Needed where several train, and only for figures of the table: weights do not depend on it.
    """

    def __init__(self) -> None:
        self.taken_up: list[dict[str, Any]] = []

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Gather the sums; every process comes here."""
        everyone: list[Any] = [None] * trainer.world_size
        distributed.all_gather_object(everyone, counts_of(pl_module))
        checkpoint[COUNTS] = everyone

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take up the sums of a training that is gone on with."""
        self.taken_up = checkpoint.get(COUNTS, [])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count on from this process's own sums, where as many processes go on."""
        if len(self.taken_up) == trainer.world_size:
            for name, value in self.taken_up[trainer.global_rank].items():
                owner, _, state = name.rpartition(".")
                setattr(pl_module.get_submodule(owner), state, moved(value, pl_module.device))
        self.taken_up = []


def counts_of(module: torch.nn.Module) -> dict[str, Any]:
    """The states of a module's metrics, by dotted name, on the CPU."""
    metrics = {name: one for name, one in module.named_modules() if isinstance(one, Metric)}
    cpu = torch.device("cpu")
    return {
        f"{name}.{state}": moved(getattr(metric, state), cpu)
        for name, metric in metrics.items()
        for state in metric._defaults
    }


def moved(value: Any, device: torch.device) -> Any:
    """A tensor, or a list of them, on a device, apart from the original."""
    if isinstance(value, Tensor):
        return value.detach().clone().to(device)
    return [moved(one, device) for one in value]
