"""The transforms on shapes whose answers are known, and the plan of patches."""

import math
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose

from pancseg.data.transforms import Preprocessing, make_plan, preprocessing_transforms
from pancseg.models.resunet import plan_levels

NUMBERS = Preprocessing("RAS", (1.5, 1.5, 1.0), (-200.0, 200.0), (32, 32, 32))
AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])


@pytest.fixture
def paths(tmp_path):
    """A body of 40 HU in air, one corner off, with a box in it that is also the label."""
    image, label = np.full((40, 40, 24), -1000, np.int16), np.zeros((40, 40, 24), np.uint8)
    image[6:34, 6:34] = 40
    image[6:10, 6:10] = -1000
    label[10:20, 12:22, 8:16] = 1
    image[label > 0] = 120
    for name, values in (("image", image), ("label", label)):
        nib.save(nib.Nifti1Image(values, AFFINE), tmp_path / f"{name}.nii.gz")
    return {name: str(tmp_path / f"{name}.nii.gz") for name in ("image", "label")}


def transformed(paths, numbers=NUMBERS):
    return Compose(preprocessing_transforms(numbers, tuple(paths)))(paths)


def test_a_group_has_the_networks_size_its_window_and_its_label_in_the_cropped_body(paths):
    item = transformed(paths)
    image, label = item["image"], item["label"] > 0
    assert image.shape == label.shape == (1, 32, 32, 32)
    assert image[label].median() == pytest.approx(0.8)  # 120 HU
    assert image.median() == pytest.approx(0.6)  # 40 HU
    volume_ml = abs(np.linalg.det(item["label"].affine.numpy()[:3, :3])) * float(label.sum()) / 1000
    assert volume_ml == pytest.approx(10 * 10 * 8 * 12 / 1000, rel=0.12)
    assert (image[:, 0] > 0).float().mean() > 0.9  # the crop follows the image


def test_labels_stay_in_place_to_a_quarter_of_a_voxel(paths):
    label = transformed(paths, Preprocessing("RAS", (2, 2, 3), (-200, 200), (80, 64, 48)))["label"]
    centre = np.argwhere(label[0].numpy() > 0).mean(axis=0)
    here_mm = nib.affines.apply_affine(label.affine.numpy(), centre)
    drawn_mm = nib.affines.apply_affine(AFFINE, [14.5, 16.5, 11.5])
    np.testing.assert_allclose(here_mm, drawn_mm, atol=0.5)


def test_air_is_cropped_across_but_keeps_the_depth_and_never_to_nothing(paths):
    for path in paths.values():
        values = np.asanyarray(nib.load(path).dataobj).copy()
        values[..., 6:] = values.min()
        nib.save(nib.Nifti1Image(values, AFFINE), path)
    assert nib.affines.voxel_sizes(transformed(paths)["image"].affine.numpy())[2] > 2
    nib.save(nib.Nifti1Image(np.full((20, 20, 20), -1000, np.int16), np.eye(4)), paths["image"])
    assert transformed({"image": paths["image"]})["image"].shape == (1, 32, 32, 32)


def test_without_a_size_voxels_keep_the_spacing_and_organs_their_volume(paths):
    item = transformed(paths, replace(NUMBERS, spatial_size=None))
    assert item["image"].shape[3] == pytest.approx(24 * 3, abs=3)  # 24 slices of 3 mm at 1 mm
    volume_ml = float(item["label"].sum()) * 1.5 * 1.5 * 1.0 / 1000
    assert volume_ml == pytest.approx(10 * 10 * 8 * 2 * 2 * 3 / 1000, rel=0.05)


@pytest.mark.parametrize("spacing_mm", [(0.7, 0.7, 5.0), (0.8, 0.8, 0.8), (3.0, 3.0, 3.0)])
def test_a_planned_patch_covers_the_field_fits_the_machine_and_suits_a_network(spacing_mm):
    shape = np.rint(np.divide((360, 330, 400), spacing_mm)).astype(int)
    cases = [SimpleNamespace(shape=shape, spacing_mm=spacing_mm)]
    for patch_voxels in (100_000, 4_000_000):
        plan = make_plan(cases, patch_voxels, (220, 180, 160))
        assert math.prod(plan.spatial_size) <= patch_voxels
        covered_mm = np.multiply(plan.spatial_size, plan.spacing_mm)
        assert (covered_mm >= 0.6 * np.array((220, 180, 160))).all()
        strides, _ = plan_levels(plan.spatial_size, plan.spacing_mm)
        assert not (np.array(plan.spatial_size) % np.prod(strides, axis=0)).any()
    assert make_plan(cases, 10**8, (220, 180, 160)).spacing_mm == spacing_mm
