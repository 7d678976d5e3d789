"""Scores of shapes that one can work out on paper, and of random ones against scipy."""

import numpy as np
import pytest
from scipy import ndimage

from pancseg.scoring.case_scores import score_case

SPACING = np.diag([0.8, 0.8, 2.5, 1.0])


def box(x: slice, y: slice, z: slice) -> np.ndarray:
    mask = np.zeros((20, 20, 20), bool)
    mask[x, y, z] = True
    return mask


CUBE = box(slice(5, 9), slice(5, 9), slice(5, 9))


def test_identical_masks_are_perfect() -> None:
    scores = score_case(CUBE, CUBE, SPACING, 2.0)
    assert (scores.dice, scores.nsd, scores.hd95_mm, scores.assd_mm) == (1, 1, 0, 0)
    assert scores.volume_ml == pytest.approx(64 * 1.6 / 1000)


def test_a_missed_organ_counts_with_the_scans_diagonal() -> None:
    scores = score_case(np.zeros_like(CUBE), CUBE, SPACING, 2.0)
    diagonal_mm = 19 * np.sqrt(0.8**2 + 0.8**2 + 2.5**2)
    assert (scores.dice, scores.nsd, scores.status) == (0, 0, "missed")
    assert scores.hd95_mm == scores.assd_mm == pytest.approx(diagonal_mm)


def test_an_empty_reference_has_no_dice() -> None:
    scores = score_case(CUBE, np.zeros_like(CUBE), SPACING, 2.0)
    assert scores.dice is None
    assert scores.status == "empty_reference"
    assert scores.as_row(2.0)["volume_error_ml"] == pytest.approx(64 * 1.6 / 1000)


@pytest.mark.parametrize(("axis", "step_mm"), [(0, 0.8), (2, 2.5)])
def test_a_shift_by_one_voxel_costs_its_overlap_and_at_most_its_step(
    axis: int, step_mm: float
) -> None:
    scores = score_case(np.roll(CUBE, 1, axis), CUBE, SPACING, 1.0)
    assert scores.dice == pytest.approx(2 * 48 / 128)
    assert scores.hd95_mm == pytest.approx(step_mm)
    assert 0 < scores.assd_mm < step_mm
    assert (scores.nsd == 1) == (step_mm <= 1.0)


def test_half_an_organ_has_two_thirds() -> None:
    half = box(slice(5, 7), slice(5, 9), slice(5, 9))
    assert score_case(half, CUBE, SPACING, 2.0).dice == pytest.approx(2 / 3)


def test_an_organ_at_the_border_is_scored_like_one_inside() -> None:
    at_border = [np.roll(mask, -5, axis=(0, 1, 2)) for mask in (np.roll(CUBE, 1, 0), CUBE)]
    inside = score_case(np.roll(CUBE, 1, 0), CUBE, SPACING, 1.0)
    assert score_case(*at_border, SPACING, 1.0) == inside


def test_distances_agree_with_scipys_on_random_blobs() -> None:
    rng = np.random.default_rng(0)
    spacing = (0.8, 1.2, 2.5)
    for _ in range(20):
        noise = [ndimage.gaussian_filter(rng.normal(size=(24, 24, 16)), 3) for _ in range(2)]
        one, other = (field > np.quantile(field, 0.9) for field in noise)
        scores = score_case(one, other, np.diag([*spacing, 1.0]), 2.0)
        edges = [mask & ~ndimage.binary_erosion(mask) for mask in (one, other)]
        to_other = ndimage.distance_transform_edt(~edges[1], sampling=spacing)[edges[0]]
        to_one = ndimage.distance_transform_edt(~edges[0], sampling=spacing)[edges[1]]
        both = np.concatenate([to_other, to_one])
        assert scores.hd95_mm == pytest.approx(
            max(np.percentile(to_other, 95), np.percentile(to_one, 95)), abs=1e-3
        )
        assert scores.assd_mm == pytest.approx(both.mean(), abs=1e-3)
        assert scores.nsd == pytest.approx((both <= 2.0).mean(), abs=1e-3)
