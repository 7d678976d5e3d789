"""Dice over patients: voxels are summed over a patient's groups before the ratio is taken.

torchmetrics averages over samples or over everything; neither is a patient.
"""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class PatientDice(Metric):
    """Mean hard Dice of the foreground over patients, on the grid of the masks.

    A patient whose masks are empty on both sides takes no part; an empty prediction of a patient
    who has a pancreas counts 0. NaN if no patient takes part.
    """

    full_state_update = False
    higher_is_better = True

    def __init__(self) -> None:
        super().__init__()
        self.add_state("patients", default=[], dist_reduce_fx="cat")
        self.add_state("voxels", default=[], dist_reduce_fx="cat")

    def update(self, voxels: Tensor, patient: Tensor) -> None:
        """Take up a batch.

        Args:
            voxels: ``(B, 3)`` of :func:`count_voxels`.
            patient: ``(B,)`` int.
        """
        self.patients.append(patient.detach().reshape(-1))  # type: ignore[operator, union-attr]
        self.voxels.append(voxels)  # type: ignore[operator, union-attr]

    def compute(self) -> Tensor:
        """Mean over patients."""
        return self.of_each().mean()  # NaN of none

    def of_each(self) -> Tensor:
        """Dice of each patient who takes part, as far as this process has seen them."""
        if not len(self.patients):  # type: ignore[arg-type]
            return torch.zeros(0)
        patients, voxels = dim_zero_cat(self.patients), dim_zero_cat(self.voxels)  # type: ignore[arg-type]
        unique, position = patients.unique(return_inverse=True)
        sums = voxels.new_zeros(len(unique), 3).index_add_(0, position, voxels)
        both = sums[:, 1] + sums[:, 2]
        return (2 * sums[both > 0, 0] / both[both > 0]).float()


def count_voxels(prediction: Tensor, label: Tensor) -> Tensor:
    """Voxels in common, predicted and labelled, of each sample: ``(B, 3)`` int64.

    Args:
        prediction: ``(B, 1, H, W, D)`` bool.
        label: ``(B, 1, H, W, D)``, foreground above 0.
    """
    predicted, labelled = prediction.flatten(1).bool(), label.flatten(1) > 0
    counts = [(predicted & labelled).sum(1), predicted.sum(1), labelled.sum(1)]
    return torch.stack(counts, dim=1)


def batch_dice(voxels: Tensor) -> Tensor:
    """Hard Dice of the foreground over all voxels of a batch; 1 where both are empty.

    >>> batch_dice(count_voxels(torch.tensor([[1, 1, 0]]) > 0, torch.tensor([[1, 0, 0]]))).item()
    0.6666666865348816
    """
    common, predicted, labelled = voxels.sum(0)
    both = predicted + labelled
    return torch.where(both > 0, 2 * common / both.clamp(min=1), 1.0)
