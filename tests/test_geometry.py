"""Affines and axes, worked out by hand."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform

from pancseg.geometry import oriented_like, same_grid, slices_from_feet, spacing_of

CODES = ["".join(code) for axes in permutations(("RL", "AP", "SI")) for code in product(*axes)]
RAS = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([1.0, 2, 3, 1]))


def stored_as(code: str) -> nib.Nifti1Image:
    return RAS.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(code)))


@pytest.mark.parametrize("code", CODES)
def test_slices_run_from_feet_to_head_and_voxels_stay_in_place(code: str) -> None:
    turned = slices_from_feet(stored_as(code))
    codes = nib.aff2axcodes(turned.affine)
    assert codes[2] == "S"
    assert [axis for axis in codes if axis != "S"] == [axis for axis in code if axis not in "SI"]
    again = nib.as_closest_canonical(turned)
    np.testing.assert_array_equal(again.dataobj, RAS.dataobj)
    np.testing.assert_allclose(again.affine, RAS.affine)


@pytest.mark.parametrize("code", CODES[::7])
def test_a_label_is_turned_to_its_images_axes(code: str) -> None:
    turned = oriented_like(RAS, stored_as(code))
    assert nib.aff2axcodes(turned.affine) == tuple(code)
    np.testing.assert_array_equal(turned.dataobj, stored_as(code).dataobj)


@pytest.mark.parametrize(("shift_mm", "same"), [(0.0, True), (0.07, True), (0.5, False)])
def test_grids_are_one_within_a_tenth_of_a_voxel(shift_mm: float, same: bool) -> None:
    moved = np.diag([-0.8, -0.8, 2.5, 1.0])
    moved[0, 3] = shift_mm
    assert same_grid((5, 5, 5), np.diag([-0.8, -0.8, 2.5, 1.0]), (5, 5, 5), moved) == same


def test_spacing_of_an_oblique_grid_is_its_voxels_and_not_its_diagonal() -> None:
    turn = np.array([[0.6, -0.8, 0], [0.8, 0.6, 0], [0, 0, 1]]) @ np.diag([0.5, 2.0, 3.0])
    affine = np.eye(4)
    affine[:3, :3] = turn
    assert spacing_of(affine) == pytest.approx((0.5, 2.0, 3.0))
