"""Dice per patient, which torchmetrics lacks: voxels are summed before the ratio is formed."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class PatientDice(Metric):
    """Mean hard Dice over patients, on the grid of the masks, and over structures or of one.

    Patients without a voxel of a structure are left out: nothing can be missed there, and any
    prediction would count 0. An empty prediction of another patient counts 0. NaN without any
    patient. ``structure`` is the number of the only structure that counts.
    """

    full_state_update = False
    higher_is_better = True

    def __init__(self, structure: int | None = None) -> None:
        super().__init__()
        self.structure = structure
        self.add_state("patients", default=[], dist_reduce_fx="cat")
        self.add_state("voxels", default=[], dist_reduce_fx="cat")

    def update(self, voxels: Tensor, patient: Tensor) -> None:
        """Add a batch: ``(B, K, 3)`` of :func:`count_voxels`, and patients ``(B,)`` int."""
        self.patients.append(patient.detach().reshape(-1))  # type: ignore[operator, union-attr]
        self.voxels.append(voxels)  # type: ignore[operator, union-attr]

    def compute(self) -> Tensor:
        """Mean over structures with any patient of the mean over patients."""
        means = torch.stack([dice.mean() for dice in self.per_patient()])
        return means.nanmean() if self.structure is None else means[self.structure]

    def per_patient(self) -> list[Tensor]:
        """Dice ``(P,)`` of each structure, of this rank until the metric is synchronised."""
        if not len(self.patients):  # type: ignore[arg-type]
            return [torch.zeros(0)] * (1 + (self.structure or 0))
        patients, voxels = dim_zero_cat(self.patients), dim_zero_cat(self.voxels)  # type: ignore[arg-type]
        unique, position = patients.unique(return_inverse=True)
        sums = voxels.new_zeros(len(unique), *voxels.shape[1:]).index_add_(0, position, voxels)
        counts = [own[own[:, 2] > 0].T for own in sums.unbind(1)]
        return [(2 * common / (p + labelled)).float() for common, p, labelled in counts]


def count_voxels(prediction: Tensor, label: Tensor) -> Tensor:
    """Voxels of intersection, prediction and label, ``(B, K, 3)`` int64, of ``(B, K, H, W, D)``."""
    predicted, labelled = prediction.flatten(2).bool(), label.flatten(2) > 0
    counts = [(predicted & labelled).sum(2), predicted.sum(2), labelled.sum(2)]
    return torch.stack(counts, dim=2)


def batch_dice(voxels: Tensor) -> Tensor:
    """Mean over structures of the hard Dice of a batch; 1 where both masks are empty."""
    common, predicted, labelled = voxels.sum(0).unbind(1)
    total = predicted + labelled
    return torch.where(total > 0, 2 * common / total.clamp(min=1), 1.0).mean()
