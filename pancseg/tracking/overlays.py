"""Pictures of validation groups or cases in TensorBoard: the same ones through the epochs."""

from typing import Any

import numpy as np
import pytorch_lightning as pl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pytorch_lightning.loggers import TensorBoardLogger

from pancseg.output.outlines import DRAWN, PREDICTED

Batch = dict[str, Any]


class Overlays(pl.Callback):
    """Draws the slice of largest area of a few validation volumes, with both outlines.

    Args:
        groups: How many.
        every_n_epochs: How often.
    """

    def __init__(self, groups: int, every_n_epochs: int) -> None:
        self.groups = groups
        self.every_n_epochs = every_n_epochs

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw what of this batch is among the first groups."""
        first = batch_idx * trainer.val_dataloaders.batch_size  # type: ignore[union-attr]
        wanted = min(self.groups - first, len(batch["image"]))
        due = trainer.current_epoch % self.every_n_epochs == 0
        boards = [one for one in trainer.loggers if isinstance(one, TensorBoardLogger)]
        if wanted < 1 or not due or not boards or not trainer.is_global_zero:
            return
        probability = pl_module.probability_of(outputs["logits"][:wanted])  # type: ignore[operator]
        for i in range(wanted):
            arrays = [
                tensor[i, 0].float().cpu().numpy()
                for tensor in (batch["image"], batch["label"], probability)
            ]
            for board in boards:
                board.experiment.add_image(
                    f"val/group_{first + i + 1}",
                    draw(*arrays),
                    trainer.global_step,
                    dataformats="HWC",
                )


def draw(image: np.ndarray, label: np.ndarray, probability: np.ndarray | None = None) -> np.ndarray:
    """One RGB picture ``(H, W, 3)`` uint8 of a volume in the network's orientation."""
    k = int((label > 0).sum(axis=(0, 1)).argmax())
    figure = Figure(figsize=(3.6, 3.6), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(image[::-1, :, k].T, cmap="gray", vmin=0, vmax=1, origin="lower")
    masks = [(label[..., k] > 0, DRAWN)]
    if probability is not None:
        masks.append((probability[..., k] > 0.5, PREDICTED))
    for mask, colour in masks:
        if mask.any() and not mask.all():
            axes.contour(mask[::-1].T, levels=[0.5], colors=colour, linewidths=1.0)
    axes.set_axis_off()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
