"""Whole cases: group by group and back onto the scan's own grid."""

from typing import cast

import nibabel as nib
import numpy as np
import pytest
import torch

from pancseg.dataset.transforms import Preprocessing
from pancseg.inference.whole_case import WholeCase, resample
from pancseg.learning.segmenter import Segmenter

NUMBERS = Preprocessing("RAS", (1.5, 1.5, 1.5), (-200.0, 200.0), (64, 64, 32))


class Bright:
    """Stands for a network that is sure of whatever is brighter than 100 HU."""

    device = torch.device("cpu")

    def probability(self, image: torch.Tensor) -> torch.Tensor:
        return (image > 0.75).float()


def scan(shape: tuple[int, int, int], affine: np.ndarray) -> tuple[nib.Nifti1Image, np.ndarray]:
    """A body of 0 HU in air with an ellipsoid of 180 HU, which is the reference."""
    centred = [(np.arange(n) - (n - 1) / 2) / n for n in shape]
    x, y, z = np.meshgrid(*centred, indexing="ij")
    hu = np.where(x**2 + y**2 < 0.16, 0, -1000).astype(np.int16)
    organ = (x / 0.2) ** 2 + (y / 0.15) ** 2 + (z / 0.35) ** 2 < 1
    hu[organ] = 180
    return nib.Nifti1Image(hu, affine), organ


@pytest.mark.parametrize("slices", [20, 32, 33, 70])
@pytest.mark.parametrize(
    "affine",
    [
        np.diag([-2.0, -2.0, 3.0, 1.0]),
        np.diag([1.5, -2.5, 2.0, 1.0]),
        np.array([[0, 2, 0, 5], [-2, 0, 0, 9], [0, 0, 2.5, -300], [0, 0, 0, 1.0]]),
        np.array([[2, 0, 0.3, 5], [0, 2, 0, 9], [-0.3, 0, 2.5, -300], [0, 0, 0, 1.0]]),
    ],
    ids=["LPS", "RPS", "rotated", "oblique"],
)
def test_what_the_network_marks_comes_back_where_it_was(slices: int, affine: np.ndarray) -> None:
    image, organ = scan((56, 48, slices), affine)
    found = WholeCase(cast(Segmenter, Bright()), NUMBERS, depth=32).probability(image) > 0.5
    assert found.shape == organ.shape
    assert 2 * (found & organ).sum() / (found.sum() + organ.sum()) > 0.93


def test_every_slice_is_covered_and_no_probability_leaves_0_to_1() -> None:
    image = nib.Nifti1Image(np.full((40, 40, 50), 180, np.int16), np.diag([2.0, 2.0, 3.0, 1.0]))
    probability = WholeCase(cast(Segmenter, Bright()), NUMBERS, depth=32).probability(image)
    np.testing.assert_allclose(probability, 1.0, atol=1e-5)


def test_resampling_onto_the_same_grid_changes_nothing_and_outside_is_0() -> None:
    values = torch.rand(1, 6, 5, 4)
    grid = torch.diag(torch.tensor([2.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    np.testing.assert_allclose(resample(values, grid, grid, (6, 5, 4)), values[0], atol=1e-5)
    away = grid.clone()
    away[0, 3] = 100
    assert not resample(values, grid, away, (6, 5, 4)).any()


def test_halfway_between_voxels_is_their_mean() -> None:
    values = torch.tensor([0.0, 1.0, 1.0]).reshape(1, 3, 1, 1).expand(1, 3, 3, 3)
    grid = torch.eye(4, dtype=torch.float64)
    between = grid.clone()
    between[0, 3] = 0.5
    moved = resample(values.contiguous(), grid, between, (3, 3, 3))
    np.testing.assert_allclose(moved[:, 1, 1], [0.5, 1.0, 0.0], atol=1e-5)
