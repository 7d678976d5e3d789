"""The predictor: from a scan to the network's grid and back, ensembles, memory, regions."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, SpatialResample
from torch import nn

from pancseg.data.transforms import Preprocessing, preprocessing_transforms
from pancseg.errors import PancsegError
from pancseg.inference import predictor as module
from pancseg.inference import resampling
from pancseg.inference.checkpoint import TrainedModel
from pancseg.inference.postprocessing import PostprocessOptions
from pancseg.inference.predictor import DeviceSettings, Predictor
from pancseg.inference.resampling import NetworkVolume, ScanProbability, network_inputs
from pancseg.structures import Structure

GROUPS = Preprocessing("RAS", (1.5, 1.5, 1.5), (-200.0, 200.0), (64, 64, 32))
PATCHES = replace(GROUPS, spatial_size=None)
VIEW = {"size": [32, 32, 32], "overlap": 0.25}
PANCREAS = Structure("pancreas", None, "15776009", "organ", (15, 300), (1,))
LPS = np.diag([-2.0, -2.0, 3.0, 1.0])
AFFINES = {
    "LPS": LPS,
    "RPS": np.diag([1.5, -2.5, 2.0, 1.0]),
    "rotated": np.array([[0, 2, 0, 5], [-2, 0, 0, 9], [0, 0, 2.5, -300], [0, 0, 0, 1.0]]),
    "oblique": np.array([[2, 0, 0.375, 5], [0, 2, 0, 9], [-0.3, 0, 2.5, -300], [0, 0, 0, 1.0]]),
    "sheared": np.array([[2, 0, 0.3, 5], [0, 2, 0, 9], [-0.3, 0, 2.5, -300], [0, 0, 0, 1.0]]),
}
each_affine = pytest.mark.parametrize("affine", list(AFFINES.values())[:4], ids=list(AFFINES)[:4])


class Bright(nn.Module):
    """Certain of whatever is brighter than 100 HU; counts its windows."""

    def __init__(self) -> None:
        super().__init__()
        self.windows, self.dtypes = 0, list[torch.dtype]()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.windows += len(image)
        self.dtypes.append((image.flatten(2) @ torch.ones(image[0, 0].numel(), 1)).dtype)
        logit = torch.where(image > 0.75, 20.0, -20.0)
        return torch.cat([torch.zeros_like(logit), logit], dim=1)


class Volume(nn.Module):
    """Gives one probability volume for any image."""

    def __init__(self, probability: torch.Tensor) -> None:
        super().__init__()
        self.logits = probability.double().logit().float()[None, None]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(self.logits), self.logits], dim=1)


def model(
    network: nn.Module, preprocessing: Preprocessing = PATCHES, view: Any = None, flips: Any = ()
) -> TrainedModel:
    values: dict[str, Any] = dict.fromkeys(field.name for field in fields(TrainedModel))
    values |= {"path": Path("nowhere.ckpt"), "network": network, "preprocessing": preprocessing}
    values |= {"hparams": {"loss": {}, "view": view}, "structures": (PANCREAS,)}
    return TrainedModel(**values | {"data": {"depth": 32, "augment": {"flip_probability": flips}}})


def scan(shape: tuple[int, ...], affine: np.ndarray) -> tuple[nib.Nifti1Image, np.ndarray]:
    """A body of 0 HU in air with an ellipsoid of 180 HU, which is the reference."""
    x, y, z = np.meshgrid(*((np.arange(n) - (n - 1) / 2) / n for n in shape), indexing="ij")
    hu = np.where(x**2 + y**2 < 0.16, 0, -1000).astype(np.int16)
    organ = (x / 0.2) ** 2 + (y / 0.15) ** 2 + (z / 0.35) ** 2 < 1
    hu[organ] = 180
    return nib.Nifti1Image(hu, affine), organ


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def predict_volumes(*volumes: torch.Tensor, threshold: float = 0.5, largest: bool = False) -> Any:
    """Prediction on a scan of 1 mm by networks that give these probabilities on its own grid."""
    own = Preprocessing("RAS", (1.0, 1.0, 1.0), (-200.0, 200.0), None)
    options = PostprocessOptions(threshold, largest)
    predictor = Predictor([model(Volume(p), own) for p in volumes], options=options)
    size = tuple(volumes[0].shape)
    return predictor.predict(nib.Nifti1Image(np.zeros(size, np.int16), np.eye(4)))


@pytest.mark.parametrize(("slices", "axes"), [(20, "sheared"), (33, "rotated"), (70, "oblique")])
def test_groups_cover_every_slice_and_come_back_to_the_grid_of_the_scan(
    slices: int, axes: str
) -> None:
    image, organ = scan((56, 48, slices), AFFINES[axes])
    predictor = Predictor([model(Bright(), GROUPS)])
    prediction = predictor.predict(image)
    assert prediction.mask.shape == prediction.probability.shape == organ.shape
    assert dice(prediction.mask, organ) > 0.93
    full = nib.Nifti1Image(np.full((40, 40, slices), 180, np.int16), AFFINES["RPS"])
    assert predictor.predict(full).probability.min() > 0.5


@each_affine
def test_windows_come_back_to_the_grid_of_the_scan_and_air_is_skipped(affine: np.ndarray) -> None:
    image, organ = scan((56, 48, 40), affine)
    network = Bright()
    predictor = Predictor([model(network, view=VIEW)])
    assert dice(predictor.predict(image).mask, organ) > 0.93
    windows = network.windows
    air = nib.Nifti1Image(np.full((56, 48, 40), -1000, np.int16), affine)
    prediction = predictor.predict(air, min_probability=0.0)
    assert (prediction.probability < 1e-6).all()
    assert (prediction.mask.any(), prediction.expected_dice) == (False, 0)
    assert network.windows == windows > 0


@each_affine
def test_the_input_made_in_blocks_equals_the_transforms_of_training(
    affine: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampling, "BLOCK_VOXELS", 10_000)
    hu = np.random.default_rng(0).integers(-900, 400, (31, 28, 25)).astype(np.int16)
    hu[:4], hu[:, -3:] = -1000, -1000
    steps = Compose(preprocessing_transforms(PATCHES, keys=("image",), load=False))
    values = MetaTensor(torch.as_tensor(hu.astype(np.float32))[None], affine=torch.tensor(affine))
    expected = steps({"image": values})["image"]
    flips = np.array([[0, -1], [1, 1], [2, -1]])
    for dtype in ("int16", "float64", ">i2"):  # in another order in memory
        flipped = nib.Nifti1Image(hu[::-1, :, ::-1].astype(dtype), affine).as_reoriented(flips)
        image = nib.Nifti1Image(np.asanyarray(flipped.dataobj), affine)
        (volume,) = network_inputs(image, PATCHES, None)
        np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-9)
        np.testing.assert_allclose(volume.values, expected[0], atol=2e-4)


@each_affine
def test_probability_on_the_scans_grid_equals_monais_resampling_without_its_border(
    affine: np.ndarray,
) -> None:
    shape = (30, 26, 22)
    (view,) = network_inputs(nib.Nifti1Image(np.zeros(shape, np.int16), affine), PATCHES, None)
    p = torch.rand(view.values.shape, generator=torch.Generator().manual_seed(0))
    p = p[3:-2, :, 1:].contiguous()  # the network's field is smaller than the scan
    moved = view.affine.copy()
    moved[:3, 3] += moved[:3, :3] @ [3, 0, 1]
    grid = ScanProbability(shape, affine, [NetworkVolume(p, moved, 0, shape[2])])
    pair = MetaTensor(torch.stack([p, torch.ones_like(p)]), affine=torch.tensor(moved))
    resample = SpatialResample(mode="bilinear", padding_mode="zeros")
    value, weight = resample(pair, dst_affine=torch.tensor(affine), spatial_size=shape).numpy()
    clear = np.abs(weight - 0.5) > 1e-3  # where rounding cannot decide
    expected = np.where(weight > 0.5, value / np.maximum(weight, 0.5), 0)
    whole = grid[tuple(slice(0, size) for size in shape)]
    np.testing.assert_allclose(whole[clear], expected[clear], atol=1e-4)


@pytest.mark.parametrize("threshold", [0.005, 0.5])
def test_the_mask_does_not_depend_on_blocks_and_box(
    threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = (torch.rand(23, 21, 19, generator=torch.Generator().manual_seed(1)) ** 8).clamp(1e-6)
    p[:, :, :4] = 1e-7
    whole = predict_volumes(p, threshold=threshold)
    monkeypatch.setattr(resampling, "BLOCK_VOXELS", 2_000)
    prediction = predict_volumes(p, threshold=threshold)
    np.testing.assert_array_equal(prediction.mask, p.numpy() > threshold)
    np.testing.assert_array_equal(prediction.mask, whole.mask)
    assert prediction.expected_dice == whole.expected_dice


def test_expected_dice_and_components_by_hand() -> None:
    p = torch.full((6, 4, 4), 1e-6)
    p[1, 1, 1], p[1, 1, 2], p[2, 2, 2] = 0.9, 0.6, 0.3
    prediction = predict_volumes(p)
    assert prediction.mask.sum() == 2
    assert prediction.expected_dice == pytest.approx(2 * 1.5 / (1.8 + 2), abs=1e-5)
    assert predict_volumes(p, threshold=0.2, largest=True).mask.sum() == 3  # 26-connected
    p[1, 1, 2], p[2, 2, 2], p[4, 2, 2] = 0.7, 1e-6, 0.8
    prediction = predict_volumes(p, largest=True)
    assert prediction.mask.sum() == 2
    assert prediction.expected_dice == pytest.approx(2 * 1.6 / (2.4 + 2), abs=1e-5)


def test_an_ensemble_averages_and_its_disagreement_lowers_the_expected_dice() -> None:
    a, b = torch.full((4, 4, 4), 1e-7), torch.full((4, 4, 4), 1e-7)
    a[1, 1, 1:3], b[1, 1, 2], b[2, 1, 2] = 1 - 1e-7, 1 - 1e-7, 1 - 1e-7
    prediction = predict_volumes(a, b)
    np.testing.assert_allclose(prediction.probability[1, 1], [0, 0.5, 1, 0], atol=1e-5)
    assert prediction.expected_dice == pytest.approx(0.5, abs=1e-5)  # Dice of the two masks
    liver = replace(model(Bright()), structures=(replace(PANCREAS, name="liver"),))
    with pytest.raises(PancsegError, match="different structures"):
        Predictor([model(Bright()), liver])


def test_members_with_equal_preprocessing_share_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, original = [], resampling.network_inputs
    monkeypatch.setattr(
        resampling, "network_inputs", lambda *args: calls.append(args) or original(*args)
    )
    image, organ = scan((30, 30, 20), LPS)
    predictor = Predictor([model(Bright()), model(Bright(), GROUPS), model(Bright())])
    assert dice(predictor.predict(image).mask, organ) > 0.85
    assert len(calls) == 2


def test_mirrored_images_are_averaged_along_the_axes_that_training_mirrored() -> None:
    p = torch.full((3, 2, 2), 0.5)
    p[0] = torch.sigmoid(torch.tensor(4.0))
    predictor = Predictor([model(Volume(p), flips=(0.5, 0.5, 0))], mirror=True)
    found = predictor.apply(0, torch.ones(3, 2, 2))
    sigmoid_of_2 = 1 / (1 + np.exp(-2))
    np.testing.assert_allclose(found[:, 0, 0], [sigmoid_of_2, 0.5, sigmoid_of_2], atol=1e-6)
    with pytest.raises(PancsegError, match="without mirrored images"):
        Predictor([model(Bright(), flips=(0, 0, 0))], mirror=True)


def test_the_network_runs_in_the_given_precision_where_the_device_is_fast_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = Bright()
    for precision in ("32-true", "bf16-mixed", "16-mixed"):
        p = Predictor([model(network)], precision=precision).apply(0, torch.ones(4, 4, 4))
        assert p.dtype == torch.float32
    # no CPU is faster in float16
    assert network.dtypes == [torch.float32, torch.bfloat16, torch.float32]
    for has_units, half in ((True, torch.bfloat16), (False, None)):  # where a GPU's memory ran out
        monkeypatch.setattr(module, "cpu_has_bf16", has_units.__bool__)
        *_, last = module.device_fallbacks("cuda", "bf16-mixed")
        assert (last.device, last.half) == ("cpu", half)


def test_out_of_memory_falls_back_for_this_scan_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    windows = []

    def mean(number: int, image: torch.Tensor, settings: DeviceSettings) -> torch.Tensor:
        windows.append(settings.windows)
        if settings.windows > 1:
            raise torch.OutOfMemoryError
        return image

    predictor = Predictor([model(Bright())])
    monkeypatch.setattr(predictor, "mean_over_mirrors", mean)
    steps = [DeviceSettings("cpu", "cpu", 4, None), DeviceSettings("cpu", "cpu", 1, None, "singly")]
    predictor.fallbacks = steps
    for _ in range(2):
        predictor.apply(0, torch.ones(1, 1, 1))
    assert windows == [4, 1, 4, 1]  # the next scan begins with the fastest settings again
    assert "memory ran out: trying singly" in caplog.text
    predictor.fallbacks = steps[:1]
    with pytest.raises(torch.OutOfMemoryError):
        predictor.apply(0, torch.ones(1, 1, 1))


def test_a_device_without_support_is_refused_in_one_line() -> None:
    for device in ("mps", "xpu:0"):
        with pytest.raises(PancsegError, match="expected auto, cpu, cuda"):
            module.check_device(device)
