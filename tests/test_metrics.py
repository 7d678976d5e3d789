"""Dice per patient, by hand."""

import pytest
import torch

from pancseg.models.metrics import PatientDice, batch_dice, count_voxels


def row(*values: int) -> torch.Tensor:
    return torch.tensor(values).reshape(1, 1, -1, 1, 1)


def dice_of(*samples: tuple[torch.Tensor, torch.Tensor, int]) -> PatientDice:
    """The metric after samples of prediction, label and patient."""
    dice = PatientDice()
    for prediction, label, patient in samples:
        dice.update(count_voxels(prediction, label), torch.tensor([patient]))
    return dice


def test_voxels_are_summed_over_a_patients_volumes_before_the_ratio() -> None:
    dice = dice_of(
        (row(1, 1, 0, 0), row(1, 1, 1, 1), 7),  # 2 in common, of 2 and 4
        (row(1, 0, 0, 0), row(0, 0, 0, 0), 7),  # 0 in common, of 1 and 0
        (row(1, 0, 0, 0), row(1, 0, 0, 0), 9),
    )
    assert dice.per_patient().tolist() == pytest.approx([4 / 7, 1])
    assert dice.compute().item() == pytest.approx((4 / 7 + 1) / 2)


def test_an_empty_prediction_of_a_patient_with_a_pancreas_counts_0() -> None:
    empty, label = row(0, 0, 0, 0), row(1, 1, 0, 0)
    assert dice_of((empty, label, 1), (empty, empty, 2)).compute() == 0  # 2 is left out


def test_without_a_pancreas_on_either_side_dice_is_nan() -> None:
    empty = row(0, 0, 0, 0)
    assert torch.isnan(dice_of((empty, empty, 2)).compute())
    assert batch_dice(count_voxels(empty, empty)) == 1
