"""The recipe's transforms on shapes whose answers are known."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose

from pancseg.data.transforms import Preprocessing, deterministic

NUMBERS = Preprocessing("RAS", (1.5, 1.5, 1.0), (-200.0, 200.0), (32, 32, 32))


def stored(folder: Path, affine: np.ndarray) -> dict[str, str]:
    """A body of 40 HU in air, one corner off, with a box in it that is also the label."""
    image = np.full((40, 40, 24), -1000, np.int16)
    label = np.zeros(image.shape, np.uint8)
    image[6:34, 6:34] = 40
    image[6:10, 6:10] = -1000
    label[10:20, 12:22, 8:16] = 1
    image[label > 0] = 120
    paths = {"image": str(folder / "image.nii.gz"), "label": str(folder / "label.nii.gz")}
    nib.save(nib.Nifti1Image(image, affine), paths["image"])
    nib.save(nib.Nifti1Image(label, affine), paths["label"])
    return paths


@pytest.fixture
def item(tmp_path: Path) -> dict[str, torch.Tensor]:
    return Compose(deterministic(NUMBERS))(stored(tmp_path, np.diag([-2.0, -2.0, 3.0, 1.0])))


def test_image_and_label_have_the_networks_size(item: dict[str, torch.Tensor]) -> None:
    assert item["image"].shape == item["label"].shape == (1, 32, 32, 32)


def test_the_window_becomes_0_to_1(item: dict[str, torch.Tensor]) -> None:
    assert item["image"].min() == 0
    assert item["image"][item["label"] > 0].median() == pytest.approx(0.8)
    assert item["image"].median() == pytest.approx(0.6)


def test_labels_keep_their_values_and_do_not_grow(item: dict[str, torch.Tensor]) -> None:
    assert set(item["label"].unique().tolist()) == {0.0, 1.0}
    box_mm = abs(np.linalg.det(item["label"].affine.numpy()[:3, :3])) * float(item["label"].sum())
    assert box_mm == pytest.approx(10 * 10 * 8 * 12, rel=0.12)


@pytest.mark.parametrize("size", [(32, 32, 32), (48, 48, 32), (80, 64, 48)])
def test_labels_stay_in_place_to_a_quarter_of_a_voxel(
    tmp_path: Path, size: tuple[int, int, int]
) -> None:
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    paths = stored(tmp_path, affine)
    label = Compose(deterministic(Preprocessing("RAS", (2, 2, 3), (-200, 200), size)))(paths)[
        "label"
    ]
    centre = np.argwhere(label[0].numpy() > 0).mean(axis=0)
    here_mm = nib.affines.apply_affine(label.affine.numpy(), centre)
    drawn_mm = nib.affines.apply_affine(affine, [14.5, 16.5, 11.5])
    np.testing.assert_allclose(here_mm, drawn_mm, atol=0.5)


def test_air_that_pads_a_group_keeps_its_depth(tmp_path: Path) -> None:
    paths = stored(tmp_path, np.diag([-2.0, -2.0, 3.0, 1.0]))
    for path in paths.values():
        image = nib.load(path)
        values = np.asanyarray(image.dataobj).copy()
        values[..., 6:] = values.min()
        nib.save(nib.Nifti1Image(values, image.affine), path)
    item = Compose(deterministic(NUMBERS))(paths)
    assert nib.affines.voxel_sizes(item["image"].affine.numpy())[2] > 2


def test_the_crop_follows_the_image_and_not_the_label(item: dict[str, torch.Tensor]) -> None:
    assert (item["image"][:, 0] > 0).float().mean() > 0.9
    assert item["label"].sum() < 0.2 * item["label"].numel()


def test_the_bright_box_and_the_label_stay_together(item: dict[str, torch.Tensor]) -> None:
    bright = item["image"] > 0.7
    dice = 2 * (bright & (item["label"] > 0)).sum() / (bright.sum() + item["label"].sum())
    assert dice > 0.9


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_the_way_an_array_is_stored_does_not_matter(tmp_path: Path, signs: tuple[int, ...]) -> None:
    paths = stored(tmp_path, np.diag([2.0, 2.0, 3.0, 1.0]))
    expected = Compose(deterministic(NUMBERS))(paths)["image"]
    for path in paths.values():
        flips = np.array([[axis, sign] for axis, sign in enumerate(signs)])
        nib.save(nib.load(path).as_reoriented(flips), path)
    torch.testing.assert_close(
        Compose(deterministic(NUMBERS))(paths)["image"].as_tensor(), expected.as_tensor(),
        atol=2e-2, rtol=0,
    )  # fmt: skip


def test_a_scan_of_air_alone_is_not_cropped_to_nothing(tmp_path: Path) -> None:
    path = tmp_path / "air.nii.gz"
    nib.save(nib.Nifti1Image(np.full((20, 20, 20), -1000, np.int16), np.eye(4)), path)
    steps = Compose(deterministic(NUMBERS, keys=("image",)))
    assert steps({"image": str(path)})["image"].shape == (1, 32, 32, 32)


def test_without_a_size_voxels_keep_the_spacing_and_organs_their_volume(tmp_path: Path) -> None:
    steps = Compose(deterministic(replace(NUMBERS, spatial_size=None)))
    made = steps(stored(tmp_path, np.diag([-2.0, -2.0, 3.0, 1.0])))
    assert made["image"].shape == made["label"].shape
    assert made["image"].shape[3] == pytest.approx(24 * 3, abs=3)  # 24 slices of 3 mm at 1 mm
    volume_ml = float(made["label"].sum()) * 1.5 * 1.5 * 1.0 / 1000
    assert volume_ml == pytest.approx(10 * 10 * 8 * 2 * 2 * 3 / 1000, rel=0.05)
