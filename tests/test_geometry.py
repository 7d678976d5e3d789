"""Axes and groups, worked out by hand, and real scans where SimpleITK puts them."""

import csv
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform

from pancseg.geometry import cut_group, oriented_like, plan_cut, slices_from_feet
from tests.other_software import assert_same, by_simpleitk

CODES = ["".join(code) for axes in permutations(("RL", "AP", "SI")) for code in product(*axes)]
RAS = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([1.0, 2, 3, 1]))


def test_slices_run_from_feet_to_head_and_labels_like_their_image_and_voxels_stay_in_place():
    for code in CODES:
        stored = RAS.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(code)))
        turned = slices_from_feet(stored)
        assert nib.aff2axcodes(turned.affine) == (*(axis for axis in code if axis not in "SI"), "S")
        again = nib.as_closest_canonical(turned)
        np.testing.assert_array_equal(again.dataobj, RAS.dataobj)
        np.testing.assert_allclose(again.affine, RAS.affine)
        np.testing.assert_array_equal(oriented_like(RAS, stored).dataobj, stored.dataobj)


@pytest.mark.parametrize(("slices", "tail", "starts", "left_out"), [
    (128, "drop", [0, 64], 0), (130, "drop", [0, 64], 1), (130, "shift", [0, 64, 66], 0),
    (130, "pad", [0, 64, 128], 0), (40, "shift", [], 1), (40, "pad", [0], 0),
])  # fmt: skip
def test_groups_start_where_counted_by_hand(slices, tail, starts, left_out):
    assert plan_cut(slices, 64, tail) == (starts, left_out)


def test_the_origin_of_a_group_moves_along_an_oblique_normal_and_air_pads_it():
    affine = np.array([[0, 0, 3, 10], [0, 2, 0, 20], [-1, 0, 4, 30], [0, 0, 0, 1.0]])
    case = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), affine)
    group = cut_group(case, first_slice=2, depth=4, fill=-1024)
    assert group.affine[:3, 3].tolist() == [16, 20, 38]
    assert np.asarray(group.dataobj)[0, 0].tolist() == [2, 3, 4, -1024]


def prepare(command, root, *words):
    """Rows of the images that are kept."""
    command("prepare", f"data.root={root}", "data.depth=4", "privacy=none", *words)
    with (root / "intake.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    return [row for row in rows if row["kind"] == "image" and row["status"] == "kept"]


def case_of(root, row, role="image"):
    return nib.load(root / "cases" / f"{row['case']}_{role}.nii.gz")


def test_a_head_in_twelve_axis_orders_is_the_same_image(shared_data, tmp_path, command):
    heads = shared_data / "orientations"
    words = ["source=nifti", f"source.images={heads}", "source.labels=null"]
    rows = prepare(command, tmp_path, *words)
    assert len(rows) == 12
    for row in rows:
        assert_same(case_of(tmp_path, row), by_simpleitk(heads / "RAS.nii.gz"))


@pytest.mark.parametrize(("source", "ct", "label", "value", "voxels"), [
    ("source=nifti", "ct.nii.gz", "pancreas.nii.gz", 1, "818"),
    ("source=dicom", "ct_dicom", "ct_dicom_organs.nii.gz", 7, "1327"),
])  # fmt: skip
def test_a_real_pancreas_is_kept_with_its_voxels_on_its_scan(
    shared_data, tmp_path, command, source, ct, label, value, voxels
):
    folder = shared_data / "abdomen"
    words = [source, f"source.images={folder / ct}", f"source.labels={folder / label}"]
    (row,) = prepare(command, tmp_path, *words, f"labels=[{value}]")
    assert row["label_voxels"] == voxels
    truth = by_simpleitk(folder / label)
    mask = (np.asarray(truth.dataobj) == value).astype(np.uint8)
    assert_same(case_of(tmp_path, row, "label"), nib.Nifti1Image(mask, truth.affine))
    assert_same(case_of(tmp_path, row), by_simpleitk(folder / ct))
