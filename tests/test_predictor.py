"""The predictor: from a scan to the network's grid and back, ensembles, memory, regions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, SpatialResample
from torch import nn

from pancseg.data.splits import Split
from pancseg.data.transforms import Preprocessing, deterministic
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
SHAPE = (100, 90, 120)
AFFINES = {
    "LPS": np.diag([-2.0, -2.0, 3.0, 1.0]),
    "RPS": np.diag([1.5, -2.5, 2.0, 1.0]),
    "rotated": np.array([[0, 2, 0, 5], [-2, 0, 0, 9], [0, 0, 2.5, -300], [0, 0, 0, 1.0]]),
    "oblique": np.array([[2, 0, 0.375, 5], [0, 2, 0, 9], [-0.3, 0, 2.5, -300], [0, 0, 0, 1.0]]),
}
SHEARED = np.array([[2, 0, 0.3, 5], [0, 2, 0, 9], [-0.3, 0, 2.5, -300], [0, 0, 0, 1.0]])
each_affine = pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)


class Bright(nn.Module):
    """Certain of whatever is brighter than 100 HU; counts its windows."""

    def __init__(self, threshold: float = 0.75) -> None:
        super().__init__()
        self.threshold, self.windows, self.dtypes = threshold, 0, list[torch.dtype]()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.windows += len(image)
        self.dtypes.append((image.flatten(2) @ torch.ones(image[0, 0].numel(), 1)).dtype)
        logit = torch.where(image > self.threshold, 20.0, -20.0)
        return torch.cat([torch.zeros_like(logit), logit], dim=1)


class Volume(nn.Module):
    """Gives one probability volume, whatever it sees."""

    def __init__(self, probability: torch.Tensor) -> None:
        super().__init__()
        self.logits = probability.double().logit().float()[None, None]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(self.logits), self.logits], dim=1)


def model(
    network: nn.Module,
    preprocessing: Preprocessing = PATCHES,
    view: dict[str, Any] | None = None,
    flips: tuple[float, ...] = (0, 0, 0),
) -> TrainedModel:
    return TrainedModel(
        path=Path("nowhere.ckpt"),
        network=network,
        hparams={"model": {}, "loss": {}, "view": view},
        data={"depth": 32, "augment": {"flip_probability": flips}, "split": {}},
        preprocessing=preprocessing,
        split=Split([], [], [], "holdout", 0),
        structures=(PANCREAS,),
        names="none",
        epoch=1,
        step=1,
        fingerprint="",
        has_average=False,
        optimizer_states=None,
        training_seconds=0.0,
        seen_before=frozenset(),
        profile=None,
    )


def scan(shape: tuple[int, ...], affine: np.ndarray) -> tuple[nib.Nifti1Image, np.ndarray]:
    """A body of 0 HU in air with an ellipsoid of 180 HU, which is the reference."""
    centred = [(np.arange(n) - (n - 1) / 2) / n for n in shape]
    x, y, z = np.meshgrid(*centred, indexing="ij")
    hu = np.where(x**2 + y**2 < 0.16, 0, -1000).astype(np.int16)
    organ = (x / 0.2) ** 2 + (y / 0.15) ** 2 + (z / 0.35) ** 2 < 1
    hu[organ] = 180
    return nib.Nifti1Image(hu, affine), organ


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def predict_volumes(
    *volumes: torch.Tensor, threshold: float = 0.5, largest: bool = False
) -> module.Prediction:
    """Prediction on a scan of 1 mm by networks that give these probabilities on its own grid."""
    size = tuple(volumes[0].shape)
    own = Preprocessing("RAS", (1.0, 1.0, 1.0), (-200.0, 200.0), None)
    options = PostprocessOptions(threshold, largest)
    predictor = Predictor([model(Volume(p), own) for p in volumes], options=options)
    return predictor.predict(nib.Nifti1Image(np.zeros(size, np.int16), np.eye(4)))


@pytest.mark.parametrize("slices", [20, 32, 33, 70])
@pytest.mark.parametrize("affine", [*AFFINES.values(), SHEARED], ids=[*AFFINES, "sheared"])
def test_groups_come_back_to_the_grid_of_the_scan(slices: int, affine: np.ndarray) -> None:
    image, organ = scan((56, 48, slices), affine)
    found = Predictor([model(Bright(), GROUPS)]).predict(image)
    assert found.mask.shape == found.probability.shape == organ.shape
    assert dice(found.mask, organ) > 0.93


def test_groups_cover_every_slice() -> None:
    image = nib.Nifti1Image(np.full((40, 40, 50), 180, np.int16), np.diag([2.0, 2.0, 3.0, 1.0]))
    probability = Predictor([model(Bright(), GROUPS)]).predict(image).probability
    np.testing.assert_allclose(probability, 1.0, atol=1e-5)


@each_affine
def test_windows_come_back_to_the_grid_of_the_scan_and_air_is_skipped(affine: np.ndarray) -> None:
    image, organ = scan((56, 48, 40), affine)
    network = Bright()
    predictor = Predictor([model(network, view=VIEW)])
    assert dice(predictor.predict(image).mask, organ) > 0.93
    seen = network.windows
    air = nib.Nifti1Image(np.full((56, 48, 40), -1000, np.int16), affine)
    found = predictor.predict(air, min_probability=0.0)
    assert not found.mask.any()
    assert (found.probability < 1e-6).all()
    assert found.expected_dice == 0
    assert network.windows == seen > 0


@each_affine
def test_the_input_made_in_blocks_equals_the_transforms_of_training(
    affine: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampling, "BLOCK_VOXELS", 10_000)
    hu = np.random.default_rng(0).integers(-900, 400, (31, 28, 25)).astype(np.int16)
    hu[:4], hu[:, -3:] = -1000, -1000
    steps = Compose(deterministic(PATCHES, keys=("image",), load=False))
    values = MetaTensor(torch.as_tensor(hu.astype(np.float32))[None], affine=torch.tensor(affine))
    expected = steps({"image": values})["image"]
    (found,) = network_inputs(nib.Nifti1Image(hu, affine), PATCHES, None)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-9)
    np.testing.assert_allclose(found.values, expected[0], atol=2e-4)


@pytest.mark.parametrize("kind", ["int16", "float32", "float64", "uint16", ">i2"])
def test_type_and_order_of_voxels_in_memory_do_not_change_the_input(kind: str) -> None:
    affine = AFFINES["LPS"]
    hu = np.random.default_rng(0).integers(0, 400, (21, 18, 15)).astype(np.int16)
    (expected,) = network_inputs(nib.Nifti1Image(hu, affine), PATCHES, None)
    flipped = nib.Nifti1Image(hu[::-1, :, ::-1].astype(kind), affine).as_reoriented(
        np.array([[0, -1], [1, 1], [2, -1]])
    )
    same = nib.Nifti1Image(np.asanyarray(flipped.dataobj), affine)
    (found,) = network_inputs(same, PATCHES, None)
    np.testing.assert_allclose(found.values, expected.values, atol=1e-5)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-9)


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
    found = grid[tuple(slice(0, size) for size in shape)]
    pair = MetaTensor(torch.stack([p, torch.ones_like(p)]), affine=torch.tensor(moved))
    back = SpatialResample(mode="bilinear", padding_mode="zeros")(
        pair, dst_affine=torch.tensor(affine), spatial_size=shape
    )
    value, weight = back.numpy()
    clear = np.abs(weight - 0.5) > 1e-3  # where rounding cannot decide
    expected = np.where(weight > 0.5, value / np.maximum(weight, 0.5), 0)
    np.testing.assert_allclose(found[clear], expected[clear], atol=1e-4)


@pytest.mark.parametrize("threshold", [0.005, 0.3, 0.5, 0.9])
def test_the_mask_does_not_depend_on_blocks_and_box(
    threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = (torch.rand(23, 21, 19, generator=torch.Generator().manual_seed(1)) ** 8).clamp(1e-6)
    p[:, :, :4] = 1e-7
    whole = predict_volumes(p, threshold=threshold)
    monkeypatch.setattr(resampling, "BLOCK_VOXELS", 2_000)
    found = predict_volumes(p, threshold=threshold)
    np.testing.assert_array_equal(found.mask, p.numpy() > threshold)
    np.testing.assert_array_equal(found.mask, whole.mask)
    assert found.expected_dice == whole.expected_dice


def test_expected_dice_and_components_by_hand() -> None:
    p = torch.full((4, 4, 4), 1e-6)
    p[1, 1, 1], p[1, 1, 2], p[2, 2, 2] = 0.9, 0.6, 0.3
    found = predict_volumes(p)
    assert found.mask.sum() == 2
    assert found.expected_dice == pytest.approx(2 * 1.5 / (1.8 + 2), abs=1e-5)
    assert predict_volumes(p, threshold=0.2, largest=True).mask.sum() == 3  # 26-connected
    p = torch.full((6, 4, 4), 1e-6)
    p[0, 1, 1], p[0, 1, 2], p[4, 2, 2] = 0.9, 0.7, 0.8
    found = predict_volumes(p, largest=True)
    assert found.mask.sum() == 2
    assert found.expected_dice == pytest.approx(2 * 1.6 / (2.4 + 2), abs=1e-5)


def test_an_ensemble_averages_and_its_disagreement_lowers_the_expected_dice() -> None:
    a, b = torch.full((4, 4, 4), 1e-7), torch.full((4, 4, 4), 1e-7)
    a[1, 1, 1:3], b[1, 1, 2], b[2, 1, 2] = 1 - 1e-7, 1 - 1e-7, 1 - 1e-7
    found = predict_volumes(a, b)
    np.testing.assert_allclose(found.probability[1, 1], [0, 0.5, 1, 0], atol=1e-5)
    assert found.mask.sum() in (1, 2, 3)  # 0.5 is the threshold itself
    assert found.expected_dice == pytest.approx(0.5, abs=1e-5)  # Dice of the two masks


def test_an_ensemble_of_different_structures_is_refused() -> None:
    liver = replace(model(Bright()), structures=(replace(PANCREAS, name="liver"),))
    with pytest.raises(PancsegError, match="different structures"):
        Predictor([model(Bright()), liver])


def test_members_with_equal_preprocessing_share_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, original = [], resampling.network_inputs

    def counted(*args: Any) -> Any:
        calls.append(args[1:])
        return original(*args)

    monkeypatch.setattr(resampling, "network_inputs", counted)
    image, _ = scan((30, 30, 20), AFFINES["LPS"])
    models = [model(Bright()), model(Bright(), GROUPS), model(Bright())]
    found = Predictor(models).predict(image)
    assert len(calls) == 2
    alone = Predictor(models[:1]).predict(image)
    assert dice(found.mask, alone.mask) > 0.9


def test_mirrored_images_are_averaged_along_the_axes_that_training_mirrored() -> None:
    class LeftEdge(nn.Module):
        """Certain of the first plane, whichever that is."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(len(image), 2, *image.shape[2:])
            logits[:, 1, 0] = 4.0
            return logits

    predictor = Predictor([model(LeftEdge(), flips=(0.5, 0.5, 0))], mirror=True)
    found = predictor.apply(0, torch.ones(3, 2, 2))
    np.testing.assert_allclose(found[0], torch.sigmoid(torch.tensor(2.0)), atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], atol=1e-6)
    np.testing.assert_allclose(found[1], 0.5)
    with pytest.raises(PancsegError, match="without mirrored images"):
        Predictor([model(LeftEdge())], mirror=True)


def test_the_network_runs_in_the_given_precision_and_sums_are_float32() -> None:
    network = Bright()
    for precision in ("32-true", "bf16-mixed", "16-mixed"):
        found = Predictor([model(network)], precision=precision).apply(0, torch.ones(4, 4, 4))
        assert found.dtype == torch.float32
    # no CPU is faster in float16
    assert network.dtypes == [torch.float32, torch.bfloat16, torch.float32]


def test_out_of_memory_falls_back_for_this_scan_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    steps = [DeviceSettings("cpu", "cpu", 4, None), DeviceSettings("cpu", "cpu", 1, None, "singly")]
    monkeypatch.setattr(module, "device_fallbacks", lambda *args: steps)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    batches: list[int] = []

    class Narrow(Bright):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            batches.append(len(image))
            if len(image) > 1:
                raise torch.OutOfMemoryError
            return super().forward(image)

    predictor = Predictor([model(Narrow(), view=VIEW)], device="cuda")
    for _ in range(2):
        batches.clear()
        assert (predictor.apply(0, torch.ones(40, 40, 40)) > 0.99).all()
        assert batches[:2] == [4, 1]  # the next scan begins with the fastest settings again
    assert "memory ran out: trying singly" in caplog.text
    monkeypatch.setattr(module, "device_fallbacks", lambda *args: steps[:1])
    with pytest.raises(torch.OutOfMemoryError):
        Predictor([model(Narrow(), view=VIEW)]).apply(0, torch.ones(40, 40, 40))


@pytest.mark.parametrize("has_units", [True, False])
def test_a_cpu_without_bf16_units_computes_in_float32_after_a_gpu(
    monkeypatch: pytest.MonkeyPatch, has_units: bool
) -> None:
    monkeypatch.setattr(module, "cpu_has_bf16", lambda: has_units)
    *_, last = module.device_fallbacks("cuda", "bf16-mixed")
    assert (last.device, last.half) == ("cpu", torch.bfloat16 if has_units else None)


@each_affine
def test_roi_finds_the_whole_organ_with_fewer_windows(affine: np.ndarray) -> None:
    image, organ = scan(SHAPE, affine)
    everything, near = Bright(), Bright()
    expected = Predictor([model(everything, view=VIEW)]).predict(image)
    found = Predictor([model(near, view=VIEW)], roi="auto").predict(image)
    assert dice(found.mask, organ) > 0.97
    assert dice(found.mask, expected.mask) > 0.97
    assert near.windows < 0.8 * everything.windows


def test_a_region_has_a_margin_and_is_no_smaller_than_a_window() -> None:
    hu = np.full(SHAPE, 0, np.int16)
    hu[48:54, 40:46, 60:64] = 180  # 12 x 12 x 12 mm
    image = nib.Nifti1Image(hu, np.diag([2.0, 2.0, 3.0, 1.0]))
    box = Predictor([model(Bright(), view=VIEW)], roi="auto").find_region(image)
    assert box is not None
    for part, low, mm in zip(box, (48, 40, 60), (2, 2, 3), strict=True):
        assert (low - part.start) * mm >= module.REGION_MARGIN_MM - 2 * module.COARSE_MM
        assert (part.stop - part.start) * mm >= 32 * 1.5


@pytest.mark.parametrize("box", [None, (slice(45, 55), slice(40, 50), slice(55, 65))])
def test_the_whole_scan_is_segmented_without_a_region_or_where_it_cuts_the_organ(
    box: tuple[slice, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "find_region", lambda self, image: box)
    image, organ = scan(SHAPE, np.diag([2.0, 2.0, 3.0, 1.0]))
    found = Predictor([model(Bright(), view=VIEW)], roi="auto").predict(image)
    assert dice(found.mask, organ) > 0.97


@pytest.mark.parametrize("device", ["mps", "xpu:0", "tpu"])
def test_a_device_without_support_is_refused_in_one_line(device: str) -> None:
    with pytest.raises(PancsegError, match="expected auto, cpu, cuda"):
        module.check_device(device)
