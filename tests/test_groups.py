"""Cutting cases into groups."""

import nibabel as nib
import numpy as np
import pytest

from pancseg.errors import PancsegError
from pancseg.geometry import AIR_HU, cut_group, plan_cut
from pancseg.intake.convert import GroupSettings


@pytest.mark.parametrize(
    ("slices", "tail", "starts", "left_out"),
    [
        (128, "drop", [0, 64], 0),
        (130, "drop", [0, 64], 1),
        (130, "shift", [0, 64, 66], 0),
        (130, "pad", [0, 64, 128], 0),
        (40, "drop", [], 1),
        (40, "shift", [], 1),
        (40, "pad", [0], 0),
    ],
)
def test_groups_start_where_counted_by_hand(
    slices: int, tail: str, starts: list[int], left_out: int
) -> None:
    assert plan_cut(slices, 64, tail) == (starts, left_out)


def test_the_origin_of_a_group_moves_along_an_oblique_normal() -> None:
    affine = np.array([[0, 0, 3, 10], [0, 2, 0, 20], [-1, 0, 4, 30], [0, 0, 0, 1.0]])
    case = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), affine)
    group = cut_group(case, first_slice=2, depth=2, fill=0)
    assert group.affine[:3, 3].tolist() == [16, 20, 38]
    np.testing.assert_array_equal(group.dataobj, case.dataobj[..., 2:4])


def test_a_padded_group_holds_air_after_its_slices() -> None:
    case = nib.Nifti1Image(np.zeros((2, 2, 3), np.int16), np.eye(4))
    group = cut_group(case, first_slice=2, depth=4, fill=AIR_HU)
    assert np.asanyarray(group.dataobj)[0, 0].tolist() == [0, -1024, -1024, -1024]
    assert group.get_data_dtype() == np.int16


@pytest.mark.parametrize(("depth", "tail"), [(0, "drop"), (-1, "pad"), (64, "fold")])
def test_impossible_settings_are_refused(depth: int, tail: str) -> None:
    with pytest.raises(PancsegError, match="expected"):
        GroupSettings(depth, tail, keep_empty=False)
