"""Augmentation: image and label move together in mm, values change in HU, one seed."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from pancseg.errors import PancsegError
from pancseg.models import augmentation as aug
from pancseg.models.augmentation import PROBABILITY, Augmentation, Augmenter, SampleParameters, draw

SPACING_MM, WINDOW_HU, SIZE = (1.5, 1.0, 3.0), (-200.0, 200.0), (24, 32, 16)
GEOMETRY = ["flip", "rotation", "scale", "shear", "elastic"]
VALUES = ["low_resolution", "blur", "contrast", "brightness", "gamma", "noise"]
AFFINE = SampleParameters(angles=(0.2, -0.3, 0.4), scale=1.1, shears=(0.1, -0.05, 0.08))
ELASTIC = replace(AFFINE, elastic_mm=10.0, elastic_spacing_mm=20.0, elastic_seed=3)


def only(*names, **numbers):
    """These changes in every sample."""
    chances = {f"{name}{PROBABILITY}": (1.0,) * 3 if name == "flip" else 1.0 for name in names}
    return Augmentation(**{**chances, **numbers})


def augmenter(settings):
    return Augmenter(settings, spacing_mm=SPACING_MM, window_hu=WINDOW_HU, size=SIZE)


def batch(box, count=2):
    """Random values, and labels 0, 1 and 2."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(count, 1, *box, generator=generator)
    return image, torch.randint(0, 3, (count, 1, *box), generator=generator, dtype=torch.uint8)


def source_mm(change, spacing_mm, size):
    """Where voxels come from, ``(*size, 3)`` mm from the centre."""
    grid = aug.sampling_grid(change, spacing_mm, size, size, torch.device("cpu"))
    return grid.numpy()[..., ::-1] * np.multiply(size, spacing_mm) / 2


def test_resampling_agrees_with_scipy():
    image, label = batch((30, 36, 22), 1)
    results = aug.resample(image, label, AFFINE, SPACING_MM, SIZE)
    scale = np.diag(SPACING_MM)
    matrix = np.linalg.inv(scale) @ np.linalg.inv(aug.affine_matrix(AFFINE)) @ scale
    offset = (np.array(image.shape[2:]) - 1) / 2 - matrix @ ((np.array(SIZE) - 1) / 2)
    for given, result, order in zip((image, label), results, (1, 0), strict=True):
        volume = given[0, 0].numpy()
        expected = ndimage.affine_transform(volume, matrix, offset, SIZE, order=order)
        inside = np.s_[4:-4, 4:-4, 4:-4]  # the borders fade to 0 in other ways
        assert np.isclose(result[0, 0].numpy(), expected, atol=1e-3)[inside].mean() > 0.999


@pytest.mark.parametrize(("axis", "plane"), [(0, (3, 4)), (1, (4, 2)), (2, (2, 3))])
def test_a_quarter_turn_is_rot90(axis, plane):
    image, label = batch((24, 24, 24), 1)
    quarter = SampleParameters(angles=tuple(np.eye(3)[axis] * math.pi / 2))
    scan, mask = aug.resample(image, label, quarter, (2, 2, 2), (20, 20, 20))
    assert torch.equal(mask, torch.rot90(aug.center_crop(label, (20, 20, 20)), 1, plane))
    expected = torch.rot90(aug.center_crop(image, (20, 20, 20)), 1, plane)
    torch.testing.assert_close(scan, expected, atol=1e-4, rtol=0)


def test_a_shear_is_that_by_hand():
    sheared = aug.affine_matrix(SampleParameters(shears=(0.3, 0, 0))) @ [0, 10, 5]
    assert sheared == pytest.approx([3, 10, 5])


def test_a_deformation_is_bounded_and_never_folds():
    spacing_mm, size, apart = (2.0, 2.0, 4.0), (40, 40, 20), 20.0
    largest = apart / aug.CUBIC_BSPLINE_3D
    change = SampleParameters(elastic_mm=largest, elastic_spacing_mm=apart, elastic_seed=1)
    source = source_mm(change, spacing_mm, size)
    shift = source - source_mm(SampleParameters(), spacing_mm, size)
    assert largest / 3 < np.abs(shift).max() <= largest
    slopes = [np.gradient(source, step, axis=axis) for axis, step in enumerate(spacing_mm)]
    assert np.linalg.det(np.stack(slopes, axis=-1)).min() > 0
    with pytest.raises(PancsegError, match=r"at most 4\.0 mm with control points every 10"):
        Augmentation(elastic_spacing_mm=10)


def test_a_deformation_is_scipys_cubic_spline_under_the_affine_map():
    generator = torch.Generator().manual_seed(ELASTIC.elastic_seed)
    lattice = torch.rand(3, 5, 5, 7, generator=generator, dtype=torch.float64).numpy() * 20 - 10
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(SIZE, SPACING_MM, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"))
    knots = points / 20 + np.reshape([2, 2, 3], (3, 1, 1, 1))  # the centre's is the middle one
    for axis in range(3):
        points[axis] += ndimage.map_coordinates(lattice[axis], knots, order=3, prefilter=False)
    expected = np.moveaxis(points, 0, -1) @ np.linalg.inv(aug.affine_matrix(ELASTIC)).T
    np.testing.assert_allclose(source_mm(ELASTIC, SPACING_MM, SIZE), expected, atol=1e-3)


def test_without_changes_a_batch_stays_bit_for_bit_and_a_flip_only_reverses_it():
    none, (image, label) = augmenter(Augmentation()), batch(SIZE)
    assert none.box == SIZE and torch.equal(none(image, label, 5)[0], image)
    flipped = augmenter(Augmentation(flip_probability=(0.0, 1.0, 0.0)))(image, label, 0)
    assert torch.equal(flipped[0], image.flip(3)) and torch.equal(flipped[1], label.flip(3))


@pytest.mark.parametrize("name", GEOMETRY + VALUES)
def test_a_change_of_geometry_moves_the_label_and_a_change_of_values_does_not(name):
    change = augmenter(only(name))
    image, label = batch(change.box)
    scan, mask = change(image, label, 1)
    assert (scan.shape, scan.dtype, mask.dtype) == ((2, 1, *SIZE), torch.float32, torch.uint8)
    assert not torch.equal(scan, aug.center_crop(image, SIZE))
    assert torch.equal(mask, aug.center_crop(label, SIZE)) == (name in VALUES)
    assert set(mask.unique().tolist()) <= {0, 1, 2} and 0 <= scan.min() <= scan.max() <= 1
    image[..., :8], image[..., 8:] = 0.0, 0.9999999  # what the window clipped stays clipped
    if name in VALUES[2:]:
        assert torch.equal(change(image, label, 0)[0], image)


def test_probabilities_and_ranges_are_those_that_are_drawn():
    chances = {"flip_probability": (0, 0.3, 0), "rotation_probability": 0.3, "scale_probability": 1}
    numbers = Augmentation(**chances, rotation_degrees=(0, 5, 20), scale_range=(0.5, 2.0))
    drawn = [draw(numbers, 7, i) for i in range(2000)]
    assert np.mean([d.flips for d in drawn], axis=0) == pytest.approx([0, 0.3, 0], abs=0.03)
    angles = np.degrees([d.angles for d in drawn if any(d.angles)])
    assert len(angles) / 2000 == pytest.approx(0.3, abs=0.03)
    assert np.abs(angles).max(0) == pytest.approx([0, 5, 20], abs=0.6)
    assert np.mean([d.scale > 1 for d in drawn]) == pytest.approx(0.5, abs=0.03)


def test_the_result_is_a_function_of_seed_and_index_alone():
    every = augmenter(only(*GEOMETRY, *VALUES))
    image, label = batch(every.box, 4)
    before = torch.get_rng_state()
    scan, mask = every(image, label, 3)
    assert not torch.equal(scan, every(image, label, 4)[0])
    parts = [every(image[i : i + 2], label[i : i + 2], 3, first=i) for i in (0, 2)]  # two processes
    for again in (every(image, label, 3), [torch.cat(pair) for pair in zip(*parts, strict=True)]):
        assert torch.equal(again[0], scan) and torch.equal(again[1], mask)
    assert torch.equal(torch.get_rng_state(), before)


def test_each_sample_has_its_own_voxel_size():
    settings, spacings_mm = (
        only("rotation", "blur", margin_share=0.0),
        [SPACING_MM, (3.0, 1.0, 2.0)],
    )
    image, label = batch(SIZE)
    together, _ = augmenter(settings)(image, label, 0, spacings_mm=spacings_mm)
    for n, spacing_mm in enumerate(spacings_mm):
        alone = Augmenter(settings, spacing_mm=spacing_mm, window_hu=WINDOW_HU, size=SIZE)
        assert torch.equal(together[n], alone(image[n : n + 1], label[n : n + 1], 0, first=n)[0][0])


def test_the_box_keeps_rotated_corners_out_of_air():
    change = augmenter(only("rotation", rotation_degrees=(12.0,) * 3, margin_share=1.0))
    image = torch.full((40, 1, *change.box), 0.6)
    scan, _ = change(image, image > 0, 0)
    assert (scan.amin(dim=(1, 2, 3, 4)) > 0.59).float().mean() >= 0.9


CHANGES = [
    ([0.5, 0.99], {"brightness_hu": 20}, [0.55, 1.0]),
    ([0.3, 0.5, 0.6], {"contrast": 1.5}, [0.2, 0.5, 0.65]),
    ([0.25, 0.5], {"gamma": 2}, [0.0625, 0.25]),
]


def test_values_change_by_the_hu_that_were_drawn():
    for values, change, expected in CHANGES:
        image = torch.tensor(values).view(1, 1, 1, 1, -1)
        changed = aug.change_values(image, SampleParameters(**change), SPACING_MM, WINDOW_HU)
        assert changed.flatten().tolist() == pytest.approx(expected)
    image, noise = torch.full((1, 1, 40, 40, 40), 0.5), SampleParameters(noise_hu=20)
    noisy = aug.change_values(image, noise, SPACING_MM, WINDOW_HU)
    assert ((noisy - image) * 400).std().item() == pytest.approx(20, rel=0.02)


def test_blur_is_scipys_in_mm_and_a_coarser_scan_loses_detail():
    image, _ = batch((20, 18, 14), 1)
    expected = ndimage.gaussian_filter(image[0, 0].numpy(), [1, 2, 0.5], truncate=3, mode="nearest")
    blurred = aug.change_values(image, SampleParameters(blur_mm=1.5), (1.5, 0.75, 3.0), WINDOW_HU)
    np.testing.assert_allclose(blurred[0, 0].numpy(), expected, atol=1e-5)
    stripes = (torch.arange(16) % 2).float().expand(1, 1, 16, 16, 16)
    torch.testing.assert_close(aug.reduce_resolution(stripes, 0.5), torch.full_like(stripes, 0.5))


def test_impossible_numbers_are_refused():
    impossible = {"noise_probability": 1.1, "flip_probability": 0.5, "scale_range": [1.1, 0.9]}
    for key, value in impossible.items():
        with pytest.raises(PancsegError, match=rf"^augment\.{key}=.*: .*expected"):
            Augmentation(**{key: value})
