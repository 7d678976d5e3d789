"""Augmentation: image and label move together in mm, values change in HU, one seed."""

import math
import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy import ndimage
from torch import Tensor

from pancseg.config import conf_folder
from pancseg.errors import PancsegError
from pancseg.models.augmentation import (
    CUBIC_BSPLINE_3D,
    PROBABILITY,
    Augmentation,
    Augmenter,
    SampleParameters,
    affine_matrix,
    center_crop,
    change_values,
    draw,
    gaussian_blur,
    reduce_resolution,
    resample,
    sampling_grid,
)

SPACING_MM, WINDOW_HU, SIZE = (1.5, 1.0, 3.0), (-200.0, 200.0), (24, 32, 16)
SPATIAL = ["flip", "rotation", "scale", "shear", "elastic"]
VALUES = ["low_resolution", "blur", "contrast", "brightness", "gamma", "noise"]
TURNED = SampleParameters(angles=(0.2, -0.3, 0.4), scale=1.1, shears=(0.1, -0.05, 0.08))
BENT = replace(TURNED, elastic_mm=10.0, elastic_spacing_mm=25.0, elastic_seed=3)


def only(*names: str, **numbers: Any) -> Augmentation:
    """Some changes, always."""
    certain = {f"{name}{PROBABILITY}": (1.0,) * 3 if name == "flip" else 1.0 for name in names}
    return Augmentation(**{**certain, **numbers})


def augmenter(settings: Augmentation) -> Augmenter:
    return Augmenter(settings, spacing_mm=SPACING_MM, window_hu=WINDOW_HU, size=SIZE)


def batch(box: tuple[int, ...], count: int = 2) -> tuple[Tensor, Tensor]:
    """Random values and labels 0, 1 and 2."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(count, 1, *box, generator=generator)
    return image, torch.randint(0, 3, (count, 1, *box), generator=generator, dtype=torch.uint8)


def centroid(volume: Tensor) -> np.ndarray:
    """Voxels."""
    weights = volume[0, 0].double().numpy()
    return np.array(ndimage.center_of_mass(weights))


@pytest.mark.parametrize("change", [TURNED, BENT, SampleParameters(flips=(True, False, True))])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_thin_landmark_moves_together_in_image_and_label(
    change: SampleParameters, axis: int
) -> None:
    box, size = (48, 50, 31), (40, 40, 25)
    part = [slice(22, 31), slice(18, 27), slice(12, 21)]
    part[axis] = slice(part[axis].start + 4, part[axis].start + 5)  # a plate one voxel thick
    image = torch.zeros(1, 1, *box)
    image[(0, 0, *part)] = 1.0
    scan, mask = resample(image, image.bool(), change, SPACING_MM, size)
    assert mask.any()
    assert np.abs(centroid(scan) - centroid(mask)).max() < 0.5


def test_the_resampling_is_scipys() -> None:
    image, label = batch((30, 36, 22), 1)
    scan, mask = resample(image, label, TURNED, SPACING_MM, SIZE)
    scale = np.diag(SPACING_MM)
    matrix = np.linalg.inv(scale) @ np.linalg.inv(affine_matrix(TURNED)) @ scale
    offset = (np.array(image.shape[2:]) - 1) / 2 - matrix @ ((np.array(SIZE) - 1) / 2)
    for given, found, order in ((image, scan, 1), (label, mask, 0)):
        expected = ndimage.affine_transform(
            given[0, 0].numpy(), matrix, offset, SIZE, order=order, mode="constant"
        )
        same = np.isclose(found[0, 0].numpy(), expected, atol=1e-3)
        inside = np.s_[4:-4, 4:-4, 4:-4]  # at the border they fade to 0 in other ways
        assert same[inside].mean() > 0.999


@pytest.mark.parametrize(("axis", "plane"), [(0, (3, 4)), (1, (4, 2)), (2, (2, 3))])
def test_a_quarter_turn_is_rot90(axis: int, plane: tuple[int, int]) -> None:
    image, label = batch((24, 24, 24), 1)
    angles = [0.0, 0.0, 0.0]
    angles[axis] = math.pi / 2
    scan, mask = resample(
        image, label, SampleParameters(angles=tuple(angles)), (2, 2, 2), (20, 20, 20)
    )
    assert torch.equal(mask, torch.rot90(center_crop(label, (20, 20, 20)), 1, plane))
    torch.testing.assert_close(
        scan, torch.rot90(center_crop(image, (20, 20, 20)), 1, plane), atol=1e-4, rtol=0
    )


def test_unequal_spacing_does_not_shear_what_is_turned() -> None:
    rod = torch.zeros(1, 1, 40, 40, 8)
    rod[0, 0, 10:30, 19:21, 2:6] = 1  # 20 x 4 mm
    quarter = SampleParameters(angles=(0, 0, math.pi / 2))
    _, mask = resample(rod, rod, quarter, (1.0, 2.0, 1.0), (40, 40, 8))
    assert mask[0, 0].amax(dim=(1, 2)).sum() == 4
    assert mask[0, 0].amax(dim=(0, 2)).sum() == 10


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_volume_grows_with_the_third_power_of_the_scale(factor: float) -> None:
    axes = np.meshgrid(*(np.arange(40) - 19.5 for _ in range(3)), indexing="ij")
    ball = torch.tensor(sum(axis**2 for axis in axes) < 12**2)[None, None]
    _, mask = resample(ball.float(), ball, SampleParameters(scale=factor), (2, 2, 2), (40, 40, 40))
    assert mask.sum() / ball.sum() == pytest.approx(factor**3, rel=0.02)


def test_a_shear_moves_along_one_axis_and_keeps_the_volume() -> None:
    change = SampleParameters(shears=(0.3, 0.0, 0.0))
    np.testing.assert_allclose(affine_matrix(change) @ [0, 10, 5], [3, 10, 5])
    assert np.linalg.det(affine_matrix(replace(change, shears=(0.3, 0.2, 0.1)))) == pytest.approx(1)


def source_mm(
    change: SampleParameters, spacing_mm: tuple[float, ...], size: tuple[int, ...]
) -> np.ndarray:
    """Where voxels come from, ``(*size, 3)`` mm from the centre."""
    grid = sampling_grid(change, spacing_mm, size, size, torch.device("cpu"))
    return grid.numpy()[..., ::-1] * np.multiply(size, spacing_mm) / 2


def test_a_deformation_is_bounded_smooth_and_never_folds() -> None:
    spacing_mm, size, apart = (2.0, 2.0, 4.0), (40, 40, 20), 20.0
    largest = apart / CUBIC_BSPLINE_3D
    for seed in range(5):
        change = SampleParameters(elastic_mm=largest, elastic_spacing_mm=apart, elastic_seed=seed)
        places = source_mm(change, spacing_mm, size)
        shift = places - source_mm(SampleParameters(scale=1.0), spacing_mm, size)
        assert largest / 3 < np.abs(shift).max() <= largest
        slopes = np.stack(
            [np.gradient(places, step, axis=axis) for axis, step in enumerate(spacing_mm)], axis=-1
        )
        assert np.linalg.det(slopes).min() > 0
        assert np.abs(np.diff(shift, n=2, axis=0)).max() < 1.0  # mm, from 2 to 2 mm


def test_a_deformation_is_scipys_cubic_spline_turned_like_the_rest() -> None:
    change = replace(BENT, elastic_spacing_mm=20.0)
    generator = torch.Generator().manual_seed(change.elastic_seed)
    lattice = torch.rand(3, 5, 5, 7, generator=generator, dtype=torch.float64).numpy() * 20 - 10
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(SIZE, SPACING_MM, strict=True)]
    places = np.stack(np.meshgrid(*axes, indexing="ij"))
    knots = places / 20 + np.reshape([2, 2, 3], (3, 1, 1, 1))  # that of the centre is the middle
    for axis in range(3):
        places[axis] += ndimage.map_coordinates(lattice[axis], knots, order=3, prefilter=False)
    expected = np.moveaxis(places, 0, -1) @ np.linalg.inv(affine_matrix(change)).T
    np.testing.assert_allclose(source_mm(change, SPACING_MM, SIZE), expected, atol=1e-3)


def test_flips_turn_exactly_their_axes() -> None:
    image, label = batch(SIZE)
    chances = (0.0, 1.0, 0.0)
    scan, mask = augmenter(Augmentation(flip_probability=chances))(image, label, 0)
    assert torch.equal(scan, image.flip(3)) and torch.equal(mask, label.flip(3))


@pytest.mark.parametrize("box", [SIZE, (30, 32, 18)])
def test_nothing_is_the_middle_of_the_box_bit_for_bit(box: tuple[int, ...]) -> None:
    image, label = batch(box, 1)
    scan, mask = resample(image, label, SampleParameters(), SPACING_MM, SIZE)
    top, left, low = ((have - want) // 2 for have, want in zip(box, SIZE, strict=True))
    part = np.s_[..., top : top + 24, left : left + 32, low : low + 16]
    assert torch.equal(scan, image[part]) and torch.equal(mask, label[part])


def test_without_a_chance_nothing_changes() -> None:
    none = augmenter(Augmentation())
    image, label = batch(none.box)
    scan, mask = none(image, label, 5)
    assert none.box == SIZE
    assert torch.equal(scan, image) and torch.equal(mask, label)


def test_an_untouched_sample_of_a_batch_is_not_resampled() -> None:
    some = augmenter(Augmentation(rotation_probability=0.5))
    image, label = batch(some.box, 8)
    scan, _ = some(image, label, 0)
    same = [torch.equal(a, b) for a, b in zip(scan, center_crop(image, SIZE), strict=True)]
    assert 0 < sum(same) < 8


@pytest.mark.parametrize("name", SPATIAL + VALUES)
def test_each_change_alone_changes_what_it_should_and_nothing_else(name: str) -> None:
    change = augmenter(only(name))
    image, label = batch(change.box)
    scan, mask = change(image, label, 1)
    assert (change.box == SIZE) == (name not in SPATIAL[1:])
    assert scan.shape == mask.shape == (2, 1, *SIZE)
    assert (scan.dtype, mask.dtype) == (torch.float32, torch.uint8)
    assert not torch.equal(scan, center_crop(image, SIZE))
    assert torch.equal(mask, center_crop(label, SIZE)) == (name in VALUES)
    assert set(mask.unique().tolist()) <= {0, 1, 2}
    assert scan.min() >= 0 and scan.max() <= 1
    flat, _ = change(torch.full_like(image, 0.6), label, 1)
    kept = flat[..., 8:-8, 8:-8, 4:-4] - 0.6
    assert (kept.abs().max() < 1e-5) == (name in [*SPATIAL, "low_resolution", "blur"])


@pytest.mark.parametrize("name", SPATIAL + VALUES)
def test_a_change_leaves_the_draws_of_the_others_as_they_were(name: str) -> None:
    whole = draw(only(*SPATIAL, *VALUES), 1, 0)
    without = draw(only(*[other for other in SPATIAL + VALUES if other != name]), 1, 0)
    differing = [
        field.name
        for field in fields(SampleParameters)
        if getattr(whole, field.name) != getattr(without, field.name)
    ]
    assert len(differing) == 1


def test_probabilities_and_ranges_are_those_that_are_drawn() -> None:
    numbers = Augmentation(
        flip_probability=(0.0, 0.3, 0.0), rotation_probability=0.3, rotation_degrees=(0, 5, 20),
        noise_probability=0.6, noise_hu=(5, 10), scale_probability=1.0, scale_range=(0.5, 2.0),
    )  # fmt: skip
    drawn = [draw(numbers, 7, i) for i in range(2000)]
    assert np.mean([one.flips for one in drawn], axis=0) == pytest.approx([0, 0.3, 0], abs=0.03)
    angles = np.degrees([one.angles for one in drawn if any(one.angles)])
    assert len(angles) / 2000 == pytest.approx(0.3, abs=0.03)
    np.testing.assert_allclose(angles.min(axis=0), [0, -5, -20], atol=0.6)
    np.testing.assert_allclose(angles.max(axis=0), [0, 5, 20], atol=0.6)
    noise = [one.noise_hu for one in drawn if one.noise_hu]
    assert len(noise) / 2000 == pytest.approx(0.6, abs=0.03)
    assert 5 <= min(noise) < 5.1 and 9.9 < max(noise) <= 10
    assert np.mean([one.scale > 1 for one in drawn]) == pytest.approx(0.5, abs=0.03)


def test_one_seed_is_one_result_and_another_is_another() -> None:
    every = augmenter(only(*SPATIAL, *VALUES))
    image, label = batch(every.box)
    given = image.clone()
    (one, a), (again, b), (other, c) = (every(image, label, seed) for seed in (3, 3, 4))
    assert torch.equal(one, again) and torch.equal(a, b)
    assert not torch.equal(one, other) and not torch.equal(a, c)
    assert torch.equal(image, given)


def test_processes_that_share_a_batch_change_it_as_one_would() -> None:
    every = augmenter(only(*SPATIAL, *VALUES))
    image, label = batch(every.box, 4)
    whole = every(image, label, 9)
    parts = [every(image[i : i + 2], label[i : i + 2], 9, first=i) for i in (0, 2)]
    for tensor, halves in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(tensor, torch.cat(halves))


def test_the_result_does_not_depend_on_the_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image, label = batch((30, 36, 22), 1)
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(resample(image, label, BENT, SPACING_MM, SIZE))
    for scan, mask in results[1:]:
        assert torch.equal(scan, results[0][0]) and torch.equal(mask, results[0][1])


def test_the_global_random_state_is_not_touched() -> None:
    every = augmenter(only(*SPATIAL, *VALUES))
    image, label = batch(every.box)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    every(image, label, 0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


@pytest.mark.parametrize("largest", [(0.0, 0.0, 12.0), (12.0, 12.0, 12.0)])
def test_turned_corners_are_rarely_air(largest: tuple[float, ...]) -> None:
    change = augmenter(only("rotation", rotation_degrees=largest, margin_share=1.0))
    image = torch.full((40, 1, *change.box), 0.6)
    scan, _ = change(image, image > 0, 0)
    assert (scan.amin(dim=(1, 2, 3, 4)) > 0.59).float().mean() >= 0.9
    bare = augmenter(only("rotation", rotation_degrees=largest, margin_share=0.0))
    assert bare.box == SIZE
    assert bare(image[..., :24, :32, :16], image[..., :24, :32, :16], 0)[0].min() == 0


def test_the_box_grows_by_no_more_than_its_share_and_evenly() -> None:
    for share in (0.1, 0.3, 1.0):
        box = augmenter(only("rotation", rotation_degrees=(90, 90, 90), margin_share=share)).box
        assert all(
            want <= have <= want * (1 + share) and (have - want) % 2 == 0
            for have, want in zip(box, SIZE, strict=True)
        )


def values_of(values: list[float], change: SampleParameters) -> list[float]:
    image = torch.tensor(values).view(1, 1, 1, 1, -1)
    return change_values(image, change, SPACING_MM, WINDOW_HU).flatten().tolist()


def test_values_change_by_the_hu_that_were_drawn() -> None:
    assert values_of([0.5, 0.99], SampleParameters(brightness_hu=20)) == pytest.approx([0.55, 1.0])
    assert values_of([0.3, 0.5, 0.6], SampleParameters(contrast=1.5)) == pytest.approx(
        [0.2, 0.5, 0.65]
    )
    assert values_of([0.25, 0.5], SampleParameters(gamma=2)) == pytest.approx([0.0625, 0.25])
    together = SampleParameters(contrast=0.5, brightness_hu=-40, gamma=2)
    assert values_of([0.9], together) == pytest.approx([0.36])  # 0.7, then 0.6, then 0.36


def test_noise_has_the_standard_deviation_that_was_drawn_in_hu() -> None:
    change = Augmenter(
        only("noise", noise_hu=(20, 20)), spacing_mm=SPACING_MM, window_hu=WINDOW_HU, size=3 * [40]
    )
    image = torch.full((2, 1, 40, 40, 40), 0.5)
    noise = (change(image, image, 0)[0] - image) * 400
    assert noise.std(dim=(1, 2, 3, 4)).tolist() == pytest.approx([20, 20], rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.2)
    assert abs(np.corrcoef(noise.flatten(1).numpy())[0, 1]) < 0.02


@pytest.mark.parametrize("name", VALUES[2:])
def test_what_the_window_clipped_stays_clipped(name: str) -> None:
    change = augmenter(only(name))
    image, label = batch(change.box)
    image[..., :8], image[..., 8:] = 0.0, 0.9999999
    assert torch.equal(change(image, label, 0)[0], image)


def test_blur_is_scipys_in_mm() -> None:
    image, _ = batch((20, 18, 14), 1)
    sigmas = [1.0, 2.0, 0.5]
    expected = ndimage.gaussian_filter(image[0, 0].numpy(), sigmas, truncate=3, mode="nearest")
    np.testing.assert_allclose(gaussian_blur(image, sigmas)[0, 0].numpy(), expected, atol=1e-5)
    in_mm = change_values(image, SampleParameters(blur_mm=1.5), (1.5, 0.75, 3.0), WINDOW_HU)
    torch.testing.assert_close(in_mm, gaussian_blur(image, sigmas))


def test_a_coarser_scan_loses_detail_and_stays_in_place() -> None:
    stripes = (torch.arange(16) % 2).float().expand(1, 1, 16, 16, 16)
    torch.testing.assert_close(reduce_resolution(stripes, 0.5), torch.full_like(stripes, 0.5))
    spot = torch.zeros(1, 1, 24, 24, 24)
    spot[..., 10, 9, 13] = 1
    spot = gaussian_blur(spot, [2.0, 2.0, 2.0])
    np.testing.assert_allclose(centroid(reduce_resolution(spot, 0.6)), [10, 9, 13], atol=0.1)
    assert torch.equal(reduce_resolution(spot, 1.0), spot)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("noise_probability", 1.1), ("noise_probability", -0.1), ("noise_probability", None),
        ("noise_probability", True), ("noise_probability", "0.5"), ("blur_probability", [0.5]),
        ("flip_probability", 0.5), ("flip_probability", [0.5]), ("flip_probability", [0, 0, 2]),
        ("rotation_degrees", [10]), ("rotation_degrees", [0, 0, -1]), ("rotation_degrees", "abc"),
        ("scale_range", [0.0, 1.0]), ("scale_range", [1.1, 0.9]), ("scale_range", [1, 2, 3]),
        ("shear_share", -0.1), ("elastic_mm", [0, 17]), ("elastic_spacing_mm", 0),
        ("elastic_mm", [2, 1]), ("noise_hu", [-1, 1]), ("noise_hu", [0, math.nan]),
        ("blur_mm", [0, math.inf]), ("brightness_hu", -1), ("contrast_range", [0, 1]),
        ("gamma_range", [-1, 1]), ("low_resolution_range", [0.5, 1.5]), ("margin_share", -0.1),
        ("low_resolution_range", [0, 0.5]), ("margin_share", 1.5),
    ],
)  # fmt: skip
def test_impossible_numbers_are_refused(key: str, value: Any) -> None:
    with pytest.raises(PancsegError, match=rf"^augment\.{key}=.*: .*expected"):
        Augmentation(**{key: value})


def test_a_deformation_that_could_fold_is_refused_with_what_would_do() -> None:
    with pytest.raises(PancsegError, match=r"at most 4\.0 mm with control points every 10"):
        Augmentation(elastic_spacing_mm=10)


def test_shapes_spacing_and_windows_that_cannot_be_are_refused() -> None:
    change = augmenter(Augmentation())
    image, label = batch(SIZE)
    for wrong in ((image[:, 0], label), (image, label[:1]), (image[..., 1:], label[..., 1:])):
        with pytest.raises(PancsegError, match="of shape"):
            change(*wrong, 0)
    good: dict[str, Any] = {"spacing_mm": SPACING_MM, "window_hu": WINDOW_HU, "size": SIZE}
    for key, bad in (("spacing_mm", [1, 0, 1]), ("window_hu", [200, -200]), ("size", [8, 8])):
        with pytest.raises(PancsegError, match="expected"):
            Augmenter(Augmentation(), **{**good, key: bad})


def configured(name: str) -> Augmentation:
    with hydra.initialize_config_dir(str(conf_folder() / "augment"), version_base="1.3"):
        node: Any = OmegaConf.to_container(hydra.compose(name))
        return Augmentation(**node)


def test_the_choices_of_the_configuration() -> None:
    none, light, full = (configured(name) for name in ("none", "light", "full"))
    assert none == Augmentation()
    assert not none.resamples and light.resamples and full.resamples
    assert light.flip_probability == full.flip_probability == (0, 0, 0)
    chances = [field.name for field in fields(full) if field.name.endswith(PROBABILITY)]
    assert {name for name in chances if getattr(full, name) == 0} == set()


def test_the_page_explains_every_number() -> None:
    page = (Path(__file__).parent.parent / "docs" / "augmentation.md").read_text()
    for field in fields(Augmentation):
        assert f"`{field.name}`" in page, field.name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_moves_a_batch_as_the_cpu_does() -> None:
    moving = augmenter(only(*SPATIAL, *VALUES[:-1]))
    image, label = batch(moving.box)
    scan, mask = moving(image.cuda(), label.cuda(), 3)
    expected = moving(image, label, 3)
    assert scan.device.type == mask.device.type == "cuda"
    assert (mask.cpu() == expected[1]).float().mean() > 0.999
    torch.testing.assert_close(scan.cpu(), expected[0], atol=2e-3, rtol=0)
    noisy = augmenter(only("noise"))
    image, label = image[..., :24, :32, :16].cuda(), label[..., :24, :32, :16].cuda()
    assert torch.equal(noisy(image, label, 1)[0], noisy(image, label, 1)[0])
