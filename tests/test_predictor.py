"""The predictor: from a scan to the network's grid and back, ensembles, memory, threshold."""

from dataclasses import fields, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, SpatialResample
from torch import nn

from pancseg.data.transforms import Preprocessing, preprocessing_transforms
from pancseg.inference import calibration, resampling
from pancseg.inference import postprocessing as post
from pancseg.inference.calibration import Calibration
from pancseg.inference.postprocessing import DEFAULT, Postprocess, PostprocessOptions, choose
from pancseg.inference.predictor import DeviceSettings, Predictor
from pancseg.inference.resampling import NetworkVolume, ScanProbability, network_inputs
from pancseg.inference.trained_model import TrainedModel
from pancseg.structures import Structure

GROUPS = Preprocessing("RAS", (1.5, 1.5, 1.5), (-200.0, 200.0), (64, 64, 32))
PATCHES = replace(GROUPS, spatial_size=None)
VIEW = {"size": [32, 32, 32], "overlap": 0.25}
PANCREAS = Structure("pancreas", None, "15776009", "organ", (15, 300), (1,))
AFFINES = {
    "LPS": np.diag([-2.0, -2.0, 3.0, 1.0]),
    "RPS": np.diag([1.5, -2.5, 2.0, 1.0]),
    "rotated": np.array([[0, 2, 0, 5], [-2, 0, 0, 9], [0, 0, 2.5, -300], [0, 0, 0, 1.0]]),
    "oblique": np.array([[2, 0, 0.375, 5], [0, 2, 0, 9], [-0.3, 0, 2.5, -300], [0, 0, 0, 1.0]]),
    "sheared": np.array([[2, 0, 0.3, 5], [0, 2, 0, 9], [-0.3, 0, 2.5, -300], [0, 0, 0, 1.0]]),
}
each_affine = pytest.mark.parametrize("affine", list(AFFINES.values())[:4], ids=list(AFFINES)[:4])


class Bright(nn.Module):
    """Certain of whatever is brighter than 100 HU; counts its windows."""

    windows = 0

    def forward(self, image):
        self.windows += len(image)
        logit = torch.where(image > 0.75, 20.0, -20.0)
        return torch.cat([torch.zeros_like(logit), logit], dim=1)


class Volume(nn.Module):
    """Gives one probability volume for any image."""

    def __init__(self, probability):
        super().__init__()
        self.logits = probability.double().logit().float()[None, None]

    def forward(self, image):
        return torch.cat([torch.zeros_like(self.logits), self.logits], dim=1)


def model(network, preprocessing=PATCHES, view=None, flips=()):
    values = dict.fromkeys(field.name for field in fields(TrainedModel))
    values |= {"path": Path("nowhere.ckpt"), "network": network, "preprocessing": preprocessing}
    values |= {"hparams": {"loss": {}, "view": view}, "structures": (PANCREAS,)}
    return TrainedModel(**values | {"data": {"depth": 32, "augment": {"flip_probability": flips}}})


def scan(shape, affine):
    """A body of 0 HU in air with an ellipsoid of 180 HU, which is the reference."""
    x, y, z = np.meshgrid(*((np.arange(n) - (n - 1) / 2) / n for n in shape), indexing="ij")
    hu = np.where(x**2 + y**2 < 0.16, 0, -1000).astype(np.int16)
    organ = (x / 0.2) ** 2 + (y / 0.15) ** 2 + (z / 0.35) ** 2 < 1
    hu[organ] = 180
    return nib.Nifti1Image(hu, affine), organ


def constant(hu, shape, affine):
    return nib.Nifti1Image(np.full(shape, hu, np.int16), affine)


def dice(a, b):
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def predict_volumes(*volumes, threshold=0.5, largest=False):
    """Prediction on a scan of 1 mm by networks that give these probabilities on its own grid."""
    own = Preprocessing("RAS", (1.0, 1.0, 1.0), (-200.0, 200.0), None)
    options = PostprocessOptions(threshold, largest)
    ensemble = Predictor([model(Volume(p), own) for p in volumes], options=options)
    return ensemble.predict(constant(0, tuple(volumes[0].shape), np.eye(4)))


@pytest.mark.parametrize(("slices", "axes"), [(20, "sheared"), (33, "rotated"), (70, "oblique")])
def test_groups_cover_every_slice_and_come_back_to_the_grid_of_the_scan(slices, axes):
    image, organ = scan((56, 48, slices), AFFINES[axes])
    of_groups = Predictor([model(Bright(), GROUPS)])
    prediction = of_groups.predict(image)
    assert prediction.mask.shape == prediction.probability.shape == organ.shape
    assert dice(prediction.mask, organ) > 0.93
    full = constant(180, (40, 40, slices), AFFINES["RPS"])
    assert of_groups.predict(full).probability.min() > 0.5


@each_affine
def test_windows_come_back_to_the_grid_of_the_scan_and_air_is_skipped(affine):
    image, organ = scan((56, 48, 40), affine)
    network = Bright()
    of_windows = Predictor([model(network, view=VIEW)])
    assert dice(of_windows.predict(image).mask, organ) > 0.93
    windows = network.windows
    prediction = of_windows.predict(constant(-1000, (56, 48, 40), affine), min_probability=0.0)
    assert (prediction.probability < 1e-6).all()
    assert (prediction.mask.any(), prediction.expected_dice) == (False, 0)
    assert network.windows == windows > 0


@each_affine
def test_the_input_made_in_blocks_equals_the_transforms_of_training(affine, monkeypatch):
    monkeypatch.setattr(resampling, "BLOCK_VOXELS", 10_000)
    hu = np.random.default_rng(0).integers(-900, 400, (31, 28, 25)).astype(np.int16)
    hu[:4], hu[:, -3:] = -1000, -1000
    steps = Compose(preprocessing_transforms(PATCHES, keys=("image",), load=False))
    values = MetaTensor(torch.as_tensor(hu.astype(np.float32))[None], affine=torch.tensor(affine))
    expected = steps({"image": values})["image"]
    (volume,) = network_inputs(nib.Nifti1Image(hu, affine), PATCHES, None)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-9)
    np.testing.assert_allclose(volume.values, expected[0], atol=2e-4)


@each_affine
def test_probability_on_the_scans_grid_equals_monais_resampling_without_its_border(affine):
    shape = (30, 26, 22)
    (view,) = network_inputs(constant(0, shape, affine), PATCHES, None)
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


@pytest.mark.parametrize("voxels", [10**6, 1])
def test_expected_dice_and_components_by_hand_whatever_the_size_of_blocks(voxels, monkeypatch):
    monkeypatch.setattr(resampling, "BLOCK_VOXELS", voxels)
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


def test_an_ensemble_averages_and_disagreement_lowers_the_expected_dice():
    a, b = torch.full((4, 4, 4), 1e-7), torch.full((4, 4, 4), 1e-7)
    a[1, 1, 1:3], b[1, 1, 2], b[2, 1, 2] = 1 - 1e-7, 1 - 1e-7, 1 - 1e-7
    prediction = predict_volumes(a, b)
    np.testing.assert_allclose(prediction.probability[1, 1], [0, 0.5, 1, 0], atol=1e-5)
    assert prediction.expected_dice == pytest.approx(0.5, abs=1e-5)  # Dice of the two masks


def test_mirrored_images_are_averaged_along_the_axes_that_training_mirrored():
    p = torch.full((3, 2, 2), 0.5)
    p[0] = torch.sigmoid(torch.tensor(4.0))
    mirrored = Predictor([model(Volume(p), flips=(0.5, 0.5, 0))], mirror=True)
    found = mirrored.apply(0, torch.ones(3, 2, 2))
    sigmoid_of_2 = 1 / (1 + np.exp(-2))
    np.testing.assert_allclose(found[0, :, 0, 0], [sigmoid_of_2, 0.5, sigmoid_of_2], atol=1e-6)


def test_the_network_runs_in_the_given_precision():
    network, dtypes = nn.Conv3d(1, 2, 1), []
    network.register_forward_hook(lambda *given: dtypes.append(given[2].dtype))
    for precision in ("32-true", "bf16-mixed", "16-mixed"):
        Predictor([model(network)], precision=precision).apply(0, torch.ones(4, 4, 4))
    assert dtypes == [torch.float32, torch.bfloat16, torch.float32]  # no CPU is faster in float16


def test_out_of_memory_falls_back_for_this_scan_only(monkeypatch):
    windows = []

    def mean(number, image, settings):
        windows.append(settings.windows)
        if settings.windows > 1:
            raise torch.OutOfMemoryError
        return image

    bright = Predictor([model(Bright())])
    monkeypatch.setattr(bright, "mean_over_mirrors", mean)
    bright.fallbacks = [DeviceSettings("cpu", "cpu", n, None) for n in (4, 1)]
    for _ in range(2):
        bright.apply(0, torch.ones(1, 1, 1))
    assert windows == [4, 1, 4, 1]  # the next scan begins with the fastest settings again


# threshold and components: given, chosen on validation patients, kept beside a checkpoint

ORGAN = np.zeros((20, 20, 20), bool)
ORGAN[2:8, 2:8, 2:8] = True
FIELD = np.where(ORGAN, 0.4, 0).astype(np.float32)  # and a smaller false alarm at 0.9
FIELD[15:17, 15:17, 15:17] = 0.9


def test_the_candidate_of_the_highest_mean_dice_over_patients_nearest_to_the_default_is_chosen():
    candidates = PostprocessOptions("auto", "auto").candidates(DEFAULT)

    def chosen(*cases):
        dice = [(name, *post.dice_of_each(candidates, p, mask)) for name, p, mask in cases]
        return choose(candidates, dice)

    assert chosen(("p", FIELD, ORGAN)) == (Postprocess(0.35, True), 1)
    assert chosen(("p", ORGAN.astype(np.float32), ORGAN))[0] == DEFAULT
    # three cases of a are best at 0.5, one of b at 0.35: each patient has one vote
    high = ("a", np.where(ORGAN, 0.6, 0.4).astype(np.float32), ORGAN)
    low = ("b", np.where(ORGAN, 0.4, 0.0).astype(np.float32), ORGAN)
    # at 0.5: a 1, b 0; at 0.35: a 2 * 216 / (8000 + 216) = 0.053, b 1
    candidates = [Postprocess(0.5), Postprocess(0.35)]
    assert chosen(high, high, high, low) == (Postprocess(0.35), 2)


def test_a_sidecar_holds_for_the_weights_that_it_was_written_for():
    checkpoint = Path("best.ckpt")
    checkpoint.write_bytes(b"weights")
    post.write_postprocess(checkpoint, Postprocess(0.35, True), chosen_on="val", n=3)
    calibration.write_calibration(checkpoint, Calibration(0.9, 3, 0.7))
    assert post.read_postprocess(checkpoint) == Postprocess(0.35, True)
    assert calibration.read_calibration(checkpoint) == Calibration(0.9, 3, 0.7)
    checkpoint.write_bytes(b"other weights")
    assert post.read_postprocess(checkpoint) is None
    assert calibration.read_calibration(checkpoint) == Calibration()
