"""Pictures of validation groups or cases in TensorBoard: the same ones through the epochs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pancseg.output.outlines import DRAWN, PREDICTED, show_slice
from pancseg.tracking.event_log import boards_of

Batch = dict[str, Any]
SIDE_INCHES = 3.6  # the longer side of a picture, of 100 pixels an inch


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
        *_: Any,
    ) -> None:
        """Draw what of this batch is among the first groups."""
        first = batch_idx * trainer.val_dataloaders.batch_size  # type: ignore[union-attr]
        wanted = min(self.groups - first, len(batch["image"]))
        due = trainer.current_epoch % self.every_n_epochs == 0
        boards = boards_of(trainer)
        if wanted < 1 or not due or not boards:
            return
        probability = pl_module.probability_of(outputs["logits"][:wanted])  # type: ignore[operator]
        for i in range(wanted):
            arrays = [
                tensor[i, 0].float().cpu().numpy()
                for tensor in (batch["image"], batch["label"], probability)
            ]
            for board in boards:
                board.experiment.add_image(
                    f"val/volume_{first + i + 1}",
                    draw(*arrays),
                    trainer.global_step,
                    dataformats="HWC",
                )


def draw(image: np.ndarray, label: np.ndarray, probability: np.ndarray | None = None) -> np.ndarray:
    """One RGB picture ``(H, W, 3)`` uint8 of a volume in the network's orientation."""
    k = int((label > 0).sum(axis=(0, 1)).argmax())
    width, height = image.shape[:2]
    inches = SIDE_INCHES / max(width, height)
    figure = Figure(figsize=(width * inches, height * inches), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    masks = {"drawn": (label[::-1, :, k].T > 0, DRAWN)}
    if probability is not None:
        masks["predicted"] = (probability[::-1, :, k].T > 0.5, PREDICTED)
    seen = image[::-1, :, k].T
    show_slice(axes, seen, list(masks.values()), window=(0, 1), aspect="auto", width=3 / len(masks))
    for line, (name, (_, colour)) in enumerate(masks.items()):
        if len(masks) > 1:
            axes.annotate(name, (0, 1), (4, -4 - 11 * line), "axes fraction", "offset points",
                          color=colour, va="top", fontsize=9)  # fmt: skip
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def tile(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one size, two beside one another: the board shows them 350 pixels wide.

    >>> tile([np.ones((2, 4, 3), np.uint8)] * 3).shape
    (4, 8, 3)
    """
    columns = min(2, len(pictures))
    empty = [np.zeros_like(pictures[0])] * (-len(pictures) % columns)
    full = [*pictures, *empty]
    rows = [np.concatenate(full[i : i + columns], 1) for i in range(0, len(full), columns)]
    return np.concatenate(rows)
