"""Calibration, and the number that old scripts print."""

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss

from pancseg.scoring.soft_scores import NO_VOXELS, calibration_of, recipe_metric

ALL = (slice(None),) * 3


def test_the_recipes_number_is_one_less_monais_loss() -> None:
    rng = np.random.default_rng(0)
    loss = DiceLoss(squared_pred=True, include_background=True)
    for share in (0.01, 0.2, 0.9):
        p = rng.uniform(size=(12, 10, 8)).astype(np.float32)
        drawn = rng.uniform(size=p.shape) < share
        both = [
            torch.as_tensor(np.stack([1 - one, one])[None]).double() for one in (p, drawn * 1.0)
        ]
        assert recipe_metric(p, drawn) == pytest.approx(1 - loss(*both).item(), abs=1e-6)


def test_an_empty_prediction_reads_one_half_there() -> None:
    drawn = np.zeros((20, 20, 20), bool)
    drawn[:4, :4, :4] = True
    assert recipe_metric(np.zeros(drawn.shape, np.float32), drawn) == pytest.approx(0.5, abs=0.01)
    assert recipe_metric(drawn.astype(np.float32), drawn) == pytest.approx(1.0, abs=1e-6)


def test_probabilities_that_come_true_are_calibrated() -> None:
    p = np.repeat(np.array([0.05, 0.55, 0.95], np.float32), 100).reshape(300, 1, 1)
    drawn = np.concatenate([np.arange(100) < n for n in (5, 55, 95)]).reshape(300, 1, 1)
    found = calibration_of(p, drawn, ALL)
    assert found.expected_error() == pytest.approx(0, abs=1e-6)
    points = [(round(one["probability"], 2), one["drawn"]) for one in found.points()]
    assert points == [(0.05, 0.05), (0.55, 0.55), (0.95, 0.95)]


def test_calibrations_of_cases_add_up_by_voxels() -> None:
    sure = calibration_of(np.ones((10, 1, 1), np.float32), np.ones((10, 1, 1), bool), ALL)
    wrong = calibration_of(np.ones((30, 1, 1), np.float32), np.zeros((30, 1, 1), bool), ALL)
    assert (NO_VOXELS + sure + wrong).expected_error() == pytest.approx(30 / 40)
    assert NO_VOXELS.expected_error() is None
    assert NO_VOXELS.points() == []


def test_only_the_box_counts() -> None:
    p = np.zeros((10, 4, 4), np.float32)
    p[0] = 0.5
    drawn = np.zeros(p.shape, bool)
    assert calibration_of(p, drawn, (slice(0, 1), slice(None), slice(None))).expected_error() == 0.5
