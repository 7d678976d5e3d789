"""TensorBoard: scalars in few groups, samples, overlays, Dice of each patient, PR curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from pancseg.reports.pictures import PREDICTED, REFERENCE, show_slice

Batch = dict[str, Any]
Picture = NDArray[np.uint8]
LAYOUT = {
    "train against val": {
        name: ["Multiline", [f"train/{name}$", f"val/{name}$"]]
        for name in ("loss", "dice", "recipe_metric")
    }
}
THRESHOLDS = 101  # of the precision-recall curve
SAMPLES = 4  # of a batch, in a picture
DICE_BINS = np.linspace(0, 1, 51)  # TensorBoard's own widen with the value: 0.08 at a Dice of 0.85
SIDE_INCHES = 3.6  # the longer side of a picture, of 100 pixels an inch


class RunLogger(TensorBoardLogger):
    """Lightning's logger, with ``epoch`` among the training's scalars.

    Lightning adds it to every entry, and TensorBoard makes it a group above all others.

    Args:
        save_dir: Where ``tensorboard/`` is made.
    """

    def __init__(self, save_dir: str) -> None:
        # its hp_metric of -1 would stand in the table before there is a score
        super().__init__(save_dir, name="tensorboard", version="", default_hp_metric=False)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Enter scalars under their names."""
        named = {("train/epoch" if k == "epoch" else k): value for k, value in metrics.items()}
        super().log_metrics(named, step)


def writers_of(trainer: pl.Trainer) -> list[Any]:
    """TensorBoard writers of this process; none except in the first."""
    if not trainer.is_global_zero:
        return []
    return [log.experiment for log in trainer.loggers if isinstance(log, TensorBoardLogger)]


class TensorBoardImages(pl.Callback):
    """Training samples, and the slice of largest area of a few validation volumes, with outlines.

    Args:
        every_n_epochs: How often.
        volumes: Validation volumes, the same in each epoch.
    """

    def __init__(self, every_n_epochs: int, volumes: int) -> None:
        self.every_n_epochs, self.volumes = every_n_epochs, volumes

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Draw the first samples of an epoch, augmented, as the network gets them."""
        if batch_idx or not is_due(trainer, self.every_n_epochs) or not writers_of(trainer):
            return
        arrays = [as_arrays(batch, i) for i in range(min(SAMPLES, len(batch["image"])))]
        add_image(trainer, "train/samples", tile([draw_slice(*pair) for pair in arrays]))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        *_: Any,
    ) -> None:
        """Draw the volumes of this batch that are among the first."""
        first = batch_idx * trainer.val_dataloaders.batch_size  # type: ignore[union-attr]
        count = min(self.volumes - first, len(batch["image"]))
        if count < 1 or not is_due(trainer, self.every_n_epochs) or not writers_of(trainer):
            return
        probability = pl_module.probability_of(outputs["logits"][:count])  # type: ignore[operator]
        for i in range(count):
            predicted = probability[i, 0].float().cpu().numpy()
            add_image(
                trainer, f"val/volume_{first + i + 1}", draw_slice(*as_arrays(batch, i), predicted)
            )


class TensorBoardCurves(pl.Callback):
    """Charts of training beside validation, learning rate, Dice of each patient and PR curve.

    With several processes curves are of the volumes of the first.

    Args:
        every_n_epochs: How often histogram and PR curve are entered.
    """

    def __init__(self, every_n_epochs: int) -> None:
        self.every_n_epochs = every_n_epochs
        self.counts = torch.zeros(2, THRESHOLDS, dtype=torch.float64)  # of 10^8 voxels, and exact

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lay out the charts that hold training beside validation."""
        for writer in writers_of(trainer):
            writer.add_custom_scalars(LAYOUT)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Enter the learning rate."""
        for writer in writers_of(trainer):
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            writer.add_scalar("train/lr", rate, trainer.global_step)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        *_: Any,
    ) -> None:
        """Count voxels by probability, labelled ones apart from the others."""
        if is_due(trainer, self.every_n_epochs) and writers_of(trainer):
            probability = pl_module.probability_of(outputs["logits"])  # type: ignore[operator]
            labelled = (batch["label"] > 0).to(probability.device)
            self.counts += count_by_probability(probability, labelled).cpu()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Enter the Dice of each patient and the precision-recall curve."""
        counts, self.counts = self.counts, torch.zeros_like(self.counts)
        if not is_due(trainer, self.every_n_epochs):
            return
        dice = pl_module.dice["val_dice"].per_patient()  # type: ignore[index, union-attr]
        step = trainer.global_step
        for writer in writers_of(trainer):
            if len(dice):
                writer.add_histogram("val/dice_of_patients", dice, step, bins=DICE_BINS)
            if counts.sum():
                curve = precision_recall(counts)
                writer.add_pr_curve_raw("val/voxels", *curve, step, num_thresholds=THRESHOLDS)


def is_due(trainer: pl.Trainer, every_n_epochs: int) -> bool:
    """Whether this epoch is entered."""
    return trainer.current_epoch % every_n_epochs == 0 and not trainer.sanity_checking


def as_arrays(batch: Batch, i: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Image and label of a sample, ``(H, W, D)``."""
    return batch["image"][i, 0].float().cpu().numpy(), batch["label"][i, 0].cpu().numpy()


def add_image(trainer: pl.Trainer, tag: str, picture: Picture) -> None:
    """Enter a picture ``(H, W, 3)``."""
    for writer in writers_of(trainer):
        writer.add_image(tag, picture, trainer.global_step, dataformats="HWC")


def count_by_probability(probability: Tensor, labelled: Tensor) -> Tensor:
    """Voxels in each bin of probability, ``(2, bins)``: not labelled, labelled.

    >>> count_by_probability(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0, 1, 0]) > 0).sum(1)
    tensor([2., 1.], dtype=torch.float64)
    """
    bins = (probability.float().nan_to_num() * THRESHOLDS).long().clamp(max=THRESHOLDS - 1)
    # torch.histc has no deterministic form on CUDA
    counts = torch.bincount((bins + THRESHOLDS * labelled).flatten(), minlength=2 * THRESHOLDS)
    return counts.view(2, THRESHOLDS).double()


def precision_recall(counts: Tensor) -> tuple[Tensor, ...]:
    """True and false positives, true and false negatives, precision and recall by threshold."""
    false_positive, true_positive = counts.flip(1).cumsum(1).flip(1)  # in or above each bin
    negative, positive = counts.sum(1)
    precision = true_positive / (true_positive + false_positive).clamp(min=1)
    recall = true_positive / positive.clamp(min=1)
    true_negative, false_negative = negative - false_positive, positive - true_positive
    return true_positive, false_positive, true_negative, false_negative, precision, recall


def draw_slice(
    image: NDArray[Any], label: NDArray[Any], probability: NDArray[Any] | None = None
) -> Picture:
    """Draw the slice of largest label area of a volume ``(H, W, D)``, as RGB ``(H, W, 3)``."""
    k = int((label > 0).sum(axis=(0, 1)).argmax())
    width, height = image.shape[:2]
    inches = SIDE_INCHES / max(width, height)
    figure = Figure(figsize=(width * inches, height * inches), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    masks = {"reference": (label[::-1, :, k].T > 0, REFERENCE)}
    if probability is not None:
        masks["predicted"] = (probability[::-1, :, k].T > 0.5, PREDICTED)
    outlines = list(masks.values())
    grey = image[::-1, :, k].T
    show_slice(axes, grey, outlines, window=(0, 1), aspect="auto", width=3 / len(masks))
    for line, (name, (_, colour)) in enumerate(masks.items()):
        if len(masks) > 1:
            axes.annotate(name, (0, 1), (4, -4 - 11 * line), "axes fraction", "offset points",
                          color=colour, va="top", fontsize=9)  # fmt: skip
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def tile(pictures: Sequence[Picture]) -> Picture:
    """Pictures of one size, two in a row: TensorBoard shows them 350 pixels wide.

    >>> tile([np.ones((2, 4, 3), np.uint8)] * 3).shape
    (4, 8, 3)
    """
    columns = min(2, len(pictures))
    filled = [*pictures, *[np.zeros_like(pictures[0])] * (-len(pictures) % columns)]
    rows = [np.concatenate(filled[i : i + columns], 1) for i in range(0, len(filled), columns)]
    return np.concatenate(rows)
