"""The recipe's transforms on shapes whose answers are known."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose

from pancseg.data.transforms import Preprocessing, preprocessing_transforms

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
    assert image.min() == 0
    assert image[label].median() == pytest.approx(0.8)
    assert image.median() == pytest.approx(0.6)
    assert set(item["label"].unique().tolist()) == {0.0, 1.0}
    volume_ml = abs(np.linalg.det(item["label"].affine.numpy()[:3, :3])) * float(label.sum()) / 1000
    assert volume_ml == pytest.approx(10 * 10 * 8 * 12 / 1000, rel=0.12)
    assert (image[:, 0] > 0).float().mean() > 0.9  # the crop follows the image
    bright = image > 0.7
    assert 2 * (bright & label).sum() / (bright.sum() + label.sum()) > 0.9


@pytest.mark.parametrize("size", [(32, 32, 32), (80, 64, 48)])
def test_labels_stay_in_place_to_a_quarter_of_a_voxel(paths, size):
    label = transformed(paths, Preprocessing("RAS", (2, 2, 3), (-200, 200), size))["label"]
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
