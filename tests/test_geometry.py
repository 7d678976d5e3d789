"""Affines, axes and groups, worked out by hand."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform

from pancseg.geometry import (
    AIR_HU,
    cut_group,
    oriented_like,
    plan_cut,
    slices_from_feet,
    spacing_of,
    with_right_angles,
)

CODES = ["".join(code) for axes in permutations(("RL", "AP", "SI")) for code in product(*axes)]
RAS = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([1.0, 2, 3, 1]))


def test_slices_run_from_feet_to_head_and_labels_like_their_image_and_voxels_stay_in_place():
    for code in CODES:
        stored = RAS.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(code)))
        turned = slices_from_feet(stored)
        axes = nib.aff2axcodes(turned.affine)
        assert (*axes[:2], axes[2]) == (*(a for a in code if a not in "SI"), "S")
        again = nib.as_closest_canonical(turned)
        np.testing.assert_array_equal(again.dataobj, RAS.dataobj)
        np.testing.assert_allclose(again.affine, RAS.affine)
        np.testing.assert_array_equal(oriented_like(RAS, stored).dataobj, stored.dataobj)


def test_spacing_of_an_oblique_grid_is_its_voxels_and_shear_is_taken_out():
    affine = np.eye(4)
    turn = np.array([[0.6, -0.8, 0], [0.8, 0.6, 0], [0, 0, 1]])
    affine[:3, :3] = turn @ np.diag([0.5, 2.0, 3.0])
    assert spacing_of(affine) == pytest.approx((0.5, 2.0, 3.0))
    affine[0, 1] += 0.01
    mended = with_right_angles(nib.Nifti1Image(RAS.dataobj, affine)).affine
    assert abs(mended[:, 0] @ mended[:, 1]) < 1e-12
    np.testing.assert_allclose(mended, affine, atol=0.01)


@pytest.mark.parametrize(("slices", "tail", "starts", "left_out"), [
    (128, "drop", [0, 64], 0), (130, "drop", [0, 64], 1), (130, "shift", [0, 64, 66], 0),
    (130, "pad", [0, 64, 128], 0), (40, "shift", [], 1), (40, "pad", [0], 0),
])  # fmt: skip
def test_groups_start_where_counted_by_hand(slices, tail, starts, left_out):
    assert plan_cut(slices, 64, tail) == (starts, left_out)


def test_the_origin_of_a_group_moves_along_an_oblique_normal_and_air_pads_it():
    affine = np.array([[0, 0, 3, 10], [0, 2, 0, 20], [-1, 0, 4, 30], [0, 0, 0, 1.0]])
    case = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), affine)
    group = cut_group(case, first_slice=2, depth=4, fill=AIR_HU)
    assert group.affine[:3, 3].tolist() == [16, 20, 38]
    assert np.asarray(group.dataobj)[0, 0].tolist() == [2, 3, 4, -1024]
    assert group.get_data_dtype() == np.int16
