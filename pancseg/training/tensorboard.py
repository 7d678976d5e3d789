"""TensorBoard: scalars in few groups, samples, overlays, Dice of each patient, PR curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from pytorch_lightning.loggers import TensorBoardLogger
from scipy.ndimage import binary_erosion
from torch import Tensor
from torch.utils.tensorboard.summary import hparams

from pancseg.reports.pictures import PREDICTED, REFERENCE, largest_slice

Batch = dict[str, Any]
Picture = NDArray[np.uint8]
METRICS = ("loss", "dice", "recipe_metric")
CHARTS = {name: ["Multiline", [f"train/{name}$", f"val/{name}$"]] for name in METRICS}
THRESHOLDS = 101  # of the precision-recall curve
SAMPLES = 4  # of a batch, in a picture
DICE_BINS = np.linspace(0, 1, 51)  # TensorBoard's own widen with the value: 0.08 at a Dice of 0.85
ZOOM = 3  # pixels of a picture for a voxel


class RunLogger(TensorBoardLogger):
    """Lightning's logger, with ``epoch`` among the training's scalars.

    Lightning adds it to every entry, and TensorBoard makes it a group above all others.
    """

    def __init__(self, save_dir: str) -> None:
        # its hp_metric of -1 would stand in the table before there is a score
        super().__init__(save_dir, name="tensorboard", version="", default_hp_metric=False)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Enter scalars under their names."""
        named = {("train/epoch" if k == "epoch" else k): value for k, value in metrics.items()}
        super().log_metrics(named, step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Enter the run in the table of hyperparameters.

        Lightning adds a description of the table made of this run alone, which TensorBoard takes
        for all runs. Without any it puts first what differs between them.
        """
        super().log_hyperparams(params)
        values = {key: "none" if value is None else value for key, value in params.items()}
        for part in hparams(values, {})[1:]:  # start and end of the run
            self.experiment._get_file_writer().add_summary(part)


class TensorBoardCallback(pl.Callback):
    """Base of callbacks that write to TensorBoard every few epochs."""

    def __init__(self, every_n_epochs: int) -> None:
        self.every_n_epochs = every_n_epochs

    def writers(self, trainer: pl.Trainer, always: bool = False) -> list[Any]:
        """Writers of this process; none except in the first, and in epochs that are left out."""
        is_due = trainer.current_epoch % self.every_n_epochs == 0 and not trainer.sanity_checking
        if not trainer.is_global_zero or not (is_due or always):
            return []
        return [log.experiment for log in trainer.loggers if isinstance(log, TensorBoardLogger)]


class TensorBoardImages(TensorBoardCallback):
    """Training samples, and the slice of largest area of the first validation volumes."""

    def __init__(self, every_n_epochs: int, volumes: int) -> None:
        super().__init__(every_n_epochs)
        self.volumes = volumes

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Draw the first samples of an epoch, augmented, as the network gets them."""
        for writer in [] if batch_idx else self.writers(trainer):
            reference = pl_module.reference_of(batch["label"])
            pairs = [*zip(batch["image"], reference, strict=True)][:SAMPLES]
            samples = [draw_slice(image[0], own) for image, own in pairs]
            writer.add_image("train/samples", tile(samples), trainer.global_step, dataformats="HWC")

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int, *_: Any
    ) -> None:
        """Draw the volumes of this batch that are among the first."""
        first = batch_idx * trainer.val_dataloaders.batch_size
        for i in range(min(self.volumes - first, len(batch["image"]))):
            for writer in self.writers(trainer):
                predicted = pl_module.mask_of(outputs["logits"][i : i + 1])[0]
                reference = pl_module.reference_of(batch["label"][i : i + 1])[0]
                picture = draw_slice(batch["image"][i, 0], reference, predicted)
                tag = f"val/volume_{first + i + 1}"
                writer.add_image(tag, picture, trainer.global_step, dataformats="HWC")


class TensorBoardCurves(TensorBoardCallback):
    """Charts of training beside validation, learning rate, Dice of each patient and PR curve.

    With several processes curves are of the volumes of the first.
    """

    def __init__(self, every_n_epochs: int) -> None:
        super().__init__(every_n_epochs)
        self.counts = torch.zeros(2, THRESHOLDS, dtype=torch.float64)  # of 10^8 voxels, and exact

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lay out the charts that hold training beside validation."""
        for writer in self.writers(trainer, always=True):
            writer.add_custom_scalars({"train against val": CHARTS})

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Enter the learning rate."""
        for writer in self.writers(trainer, always=True):
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            writer.add_scalar("train/lr", rate, trainer.global_step)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        """Count voxels by probability, labelled ones apart from the others."""
        if self.writers(trainer):
            probability = pl_module.probability_of(outputs["logits"])
            labelled = pl_module.reference_of(batch["label"]).to(probability.device)
            self.counts += count_by_probability(probability, labelled).cpu()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Enter the Dice of each patient and the precision-recall curve."""
        counts, self.counts = self.counts, torch.zeros_like(self.counts)
        for writer in self.writers(trainer):
            dice, step = torch.cat(pl_module.dice["val_dice"].per_patient()), trainer.global_step
            if len(dice):
                writer.add_histogram("val/dice_of_patients", dice, step, bins=DICE_BINS)
            if counts.sum():
                curve = precision_recall(counts)
                writer.add_pr_curve_raw("val/voxels", *curve, step, num_thresholds=THRESHOLDS)


def count_by_probability(probability: Tensor, labelled: Tensor) -> Tensor:
    """Voxels in each bin of probability, ``(2, bins)``: not labelled, labelled."""
    last = THRESHOLDS - 1  # of thresholds i / 100, as TensorBoard labels them
    bins = (probability.float().nan_to_num() * last).long().clamp(max=last)
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


def draw_slice(image: Tensor, reference: Tensor, predicted: Tensor | None = None) -> Picture:
    """The slice of largest label area of ``(H, W, D)``, RGB ``(rows, columns, 3)``, front up.

    The reference ``(K, H, W, D)`` of each structure is outlined in green, its predicted mask in
    red; lines are a voxel wide.
    """
    k = largest_slice(reference.any(dim=0).cpu().numpy())
    picture = np.repeat(image[..., k, None].float().cpu().numpy().clip(0, 1), 3, axis=2)
    for masks, colour in ((reference, REFERENCE), (predicted, PREDICTED)):
        for mask in () if masks is None else masks[..., k].cpu().numpy():
            picture[mask & ~binary_erosion(mask)] = to_rgb(colour)
    upright = (255 * picture[::-1, ::-1]).astype(np.uint8).transpose(1, 0, 2)
    return upright.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)


def tile(pictures: Sequence[Picture]) -> Picture:
    """Pictures of one size, two in a row: TensorBoard shows them 350 pixels wide."""
    columns = min(2, len(pictures))
    filled = [*pictures, *[np.zeros_like(pictures[0])] * (-len(pictures) % columns)]
    rows = [np.concatenate(filled[i : i + columns], 1) for i in range(0, len(filled), columns)]
    return np.concatenate(rows)
