"""Dice per patient, which torchmetrics lacks: voxels are summed before the ratio is formed."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class PatientDice(Metric):
    """Mean hard Dice of the foreground over patients, on the grid of the masks.

    Patients without a labelled voxel are left out: nothing can be missed there, and any prediction
    would count 0. An empty prediction of another patient counts 0. NaN without any patient.
    """

    full_state_update = False
    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self.add_state("patients", default=[], dist_reduce_fx="cat")
        self.add_state("voxels", default=[], dist_reduce_fx="cat")

    def update(self, voxels: Tensor, patient: Tensor) -> None:
        """Add a batch: ``(B, 3)`` of :func:`count_voxels`, and patients ``(B,)`` int."""
        self.patients.append(patient.detach().reshape(-1))  # type: ignore[operator, union-attr]
        self.voxels.append(voxels)  # type: ignore[operator, union-attr]

    def compute(self) -> Tensor:
        """Mean over patients."""
        return self.per_patient().mean()

    def per_patient(self) -> Tensor:
        """Dice of each patient that is not left out, ``(P,)``; before synchronisation, per rank."""
        if not len(self.patients):  # type: ignore[arg-type]
            return torch.zeros(0)
        patients, voxels = dim_zero_cat(self.patients), dim_zero_cat(self.voxels)  # type: ignore[arg-type]
        unique, position = patients.unique(return_inverse=True)
        sums = voxels.new_zeros(len(unique), 3).index_add_(0, position, voxels)
        common, predicted, labelled = sums[sums[:, 2] > 0].T
        return (2 * common / (predicted + labelled)).float()


def count_voxels(prediction: Tensor, label: Tensor) -> Tensor:
    """Voxels of intersection, prediction and label, ``(B, 3)`` int64, of ``(B, 1, H, W, D)``."""
    predicted, labelled = prediction.flatten(1).bool(), label.flatten(1) > 0
    counts = [(predicted & labelled).sum(1), predicted.sum(1), labelled.sum(1)]
    return torch.stack(counts, dim=1)


def batch_dice(voxels: Tensor) -> Tensor:
    """Hard Dice of the foreground over all voxels of a batch; 1 if both masks are empty."""
    common, predicted, labelled = voxels.sum(0)
    total = predicted + labelled
    return torch.where(total > 0, 2 * common / total.clamp(min=1), 1.0)
