"""Real scans through the command, against SimpleITK's reading."""

import csv
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.other_software import assert_same, by_simpleitk


def prepare(command, root, *words):  # type: ignore[no-untyped-def]
    """Exit code of the command, and rows of images by the name of their file."""
    ended = command("prepare", f"data.root={root}", "data.depth=4", "privacy=none", *words)
    assert "Traceback" not in ended.err
    with (root / "intake.csv").open(newline="") as table:
        rows = [row for row in csv.DictReader(table) if row["kind"] == "image"]
    return ended.code, {Path(row["path"]).name.partition(".")[0]: row for row in rows}


def case_of(root, row, role="image"):
    return nib.load(root / "cases" / f"{row['case']}_{role}.nii.gz")


def test_a_head_in_twelve_axis_orders_is_the_same_image_beside_broken_ones(
    shared_data, tmp_path, command
):
    heads, root = shared_data / "orientations", tmp_path / "root"
    words = ["source=nifti", f"source.images={heads}", "source.labels=null"]
    code, rows = prepare(command, root, *words)
    assert code == 1
    reasons = {name: rows.pop(name)["reason"].partition(":")[0] for name in ("no_affine", "shear")}
    assert reasons == {"no_affine": "no_affine", "shear": "bad_affine"}
    upright = by_simpleitk(heads / "RAS.nii.gz")
    assert len(rows) == 12
    for row in rows.values():
        assert nib.aff2axcodes(case_of(root, row).affine)[2] == "S"
        assert_same(case_of(root, row), upright)


def test_broken_series_are_refused_with_their_reasons_beside_good_ones(
    shared_data, tmp_path, command
):
    broken = ("gantry_tilt", "missing_slice", "one_position", "too_few")
    for name in broken:
        shutil.copytree(shared_data / "series" / "dicom2nifti" / name, tmp_path / "in" / name)
    for name, folder in (("ct", "abdomen/ct_dicom"), ("mr", "series/torchio")):
        shutil.copytree(shared_data / folder, tmp_path / "in" / name)
    words = [f"source.images={tmp_path / 'in'}", "source.labels=null", "source.modality=any"]
    code, rows = prepare(command, tmp_path / "root", *words)
    assert code == 1
    reasons = [rows[name]["reason"].partition(":")[0] for name in broken]
    assert reasons == ["gantry_tilt", "missing_slice", "same_position", "too_few_slices"]
    flags = [rows[name]["flags"] for name in ("ct", "mr")]
    assert flags == ["unlabelled", "hu_not_applied unlabelled"]  # the second was made from an MR
    for name in ("ct", "mr"):
        assert_same(case_of(tmp_path / "root", rows[name]), by_simpleitk(tmp_path / "in" / name))


ORGANS = [
    ("source=nifti", "ct.nii.gz", "pancreas.nii.gz", 1, "818", "label_pieces"),  # a model made it
    ("source=dicom", "ct_dicom", "ct_dicom_organs.nii.gz", 7, "1327", None),
]


@pytest.mark.parametrize(("source", "ct", "label", "value", "voxels", "flags"), ORGANS)
def test_a_real_pancreas_is_kept_with_its_voxels_on_its_scan(
    shared_data, tmp_path, command, source, ct, label, value, voxels, flags
):
    folder = shared_data / "abdomen"
    words = [source, f"source.images={folder / ct}", f"source.labels={folder / label}"]
    code, rows = prepare(command, tmp_path, *words, f"labels=[{value}]")
    (row,) = rows.values()
    assert (code, row["label_voxels"]) == (0, voxels)
    assert flags in (None, row["flags"])
    truth = by_simpleitk(folder / label)
    mask = (np.asarray(truth.dataobj) == value).astype(np.uint8)
    assert_same(case_of(tmp_path, row, "label"), nib.Nifti1Image(mask, truth.affine))
    assert_same(case_of(tmp_path, row), by_simpleitk(folder / ct))
