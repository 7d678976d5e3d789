"""Whole cases: group by group and back onto the scan's own grid."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, SpatialResample

from pancseg.data.transforms import Preprocessing, deterministic
from pancseg.inference import network_view, own_grid, windows
from pancseg.inference.mask_finding import find_mask
from pancseg.inference.network_view import whole_view
from pancseg.inference.own_grid import OwnGrid, Piece
from pancseg.inference.postprocess import Postprocess
from pancseg.inference.whole_case import WholeCase
from pancseg.inference.windows import Windows
from pancseg.models.segmenter import Segmenter

NUMBERS = Preprocessing("RAS", (1.5, 1.5, 1.5), (-200.0, 200.0), (64, 64, 32))


class Bright:
    """Stands for a network that is sure of whatever is brighter than 100 HU."""

    hparams: dict[str, Any]

    def __init__(self, view: dict[str, Any] | None = None) -> None:
        self.hparams = {"view": view}
        self.asked = 0  # windows

    def to(self, device: str) -> "Bright":
        return self

    def window_foreground_logit(self, image: torch.Tensor) -> torch.Tensor:
        self.asked += len(image)
        return torch.where(image > 0.75, 20.0, -20.0)


def whole(
    depth: int | None = 32, numbers: Preprocessing = NUMBERS, view: dict[str, Any] | None = None
) -> WholeCase:
    return WholeCase(Windows(cast(Segmenter, Bright(view)), "cpu"), numbers, depth)


def scan(shape: tuple[int, int, int], affine: np.ndarray) -> tuple[nib.Nifti1Image, np.ndarray]:
    """A body of 0 HU in air with an ellipsoid of 180 HU, which is the reference."""
    centred = [(np.arange(n) - (n - 1) / 2) / n for n in shape]
    x, y, z = np.meshgrid(*centred, indexing="ij")
    hu = np.where(x**2 + y**2 < 0.16, 0, -1000).astype(np.int16)
    organ = (x / 0.2) ** 2 + (y / 0.15) ** 2 + (z / 0.35) ** 2 < 1
    hu[organ] = 180
    return nib.Nifti1Image(hu, affine), organ


AFFINES = {
    "LPS": np.diag([-2.0, -2.0, 3.0, 1.0]),
    "RPS": np.diag([1.5, -2.5, 2.0, 1.0]),
    "rotated": np.array([[0, 2, 0, 5], [-2, 0, 0, 9], [0, 0, 2.5, -300], [0, 0, 0, 1.0]]),
    "oblique": np.array([[2, 0, 0.375, 5], [0, 2, 0, 9], [-0.3, 0, 2.5, -300], [0, 0, 0, 1.0]]),
}
LEANING = np.array([[2, 0, 0.3, 5], [0, 2, 0, 9], [-0.3, 0, 2.5, -300], [0, 0, 0, 1.0]])
of_every_affine = pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
PATCHES = replace(NUMBERS, spatial_size=None)
VIEW = {"size": [32, 32, 32], "overlap": 0.25}


@pytest.mark.parametrize("slices", [20, 32, 33, 70])
@pytest.mark.parametrize("affine", [*AFFINES.values(), LEANING], ids=[*AFFINES, "leaning"])
def test_what_the_network_marks_comes_back_where_it_was(slices: int, affine: np.ndarray) -> None:
    image, organ = scan((56, 48, slices), affine)
    found = whole().probability(image) > 0.5
    assert found.shape == organ.shape
    assert 2 * (found & organ).sum() / (found.sum() + organ.sum()) > 0.93


def test_every_slice_is_covered_and_no_probability_leaves_0_to_1() -> None:
    image = nib.Nifti1Image(np.full((40, 40, 50), 180, np.int16), np.diag([2.0, 2.0, 3.0, 1.0]))
    probability = whole().probability(image)
    np.testing.assert_allclose(probability, 1.0, atol=1e-5)


@of_every_affine
def test_windows_of_whole_cases_come_back_too_and_air_is_never_asked_about(
    affine: np.ndarray,
) -> None:
    image, organ = scan((56, 48, 40), affine)
    found = (judge := whole(None, PATCHES, VIEW)).probability(image) > 0.5
    assert 2 * (found & organ).sum() / (found.sum() + organ.sum()) > 0.93
    asked = cast(Bright, judge.windows.segmenter).asked
    air = nib.Nifti1Image(np.full((56, 48, 40), -1000, np.int16), affine)
    assert not (judge.probability(air) > 1e-6).any()
    assert cast(Bright, judge.windows.segmenter).asked == asked > 0


@of_every_affine
def test_the_view_made_in_blocks_is_what_the_transforms_of_training_give(
    affine: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_view, "BLOCK_VOXELS", 10_000)
    hu = np.random.default_rng(0).integers(-900, 400, (31, 28, 25)).astype(np.int16)
    hu[:4], hu[:, -3:] = -1000, -1000
    steps = Compose(deterministic(PATCHES, keys=("image",), load=False))
    values = MetaTensor(torch.as_tensor(hu.astype(np.float32))[None], affine=torch.tensor(affine))
    expected = steps({"image": values})["image"]
    seen = whole_view(nib.Nifti1Image(hu, affine), PATCHES)
    np.testing.assert_allclose(seen.affine, expected.affine, atol=1e-9)
    np.testing.assert_allclose(seen.image, expected[0], atol=2e-4)


@pytest.mark.parametrize("kind", ["int16", "float32", "float64", "uint16", ">i2"])
def test_the_order_and_type_of_voxels_in_memory_change_nothing(kind: str) -> None:
    affine = AFFINES["LPS"]
    hu = np.random.default_rng(0).integers(0, 400, (21, 18, 15)).astype(np.int16)
    expected = whole_view(nib.Nifti1Image(hu, affine), PATCHES)
    flipped = nib.Nifti1Image(hu[::-1, :, ::-1].astype(kind), affine).as_reoriented(
        np.array([[0, -1], [1, 1], [2, -1]])
    )
    same = nib.Nifti1Image(np.asanyarray(flipped.dataobj), affine)
    seen = whole_view(same, PATCHES)
    np.testing.assert_allclose(seen.image, expected.image, atol=1e-5)
    np.testing.assert_allclose(seen.affine, expected.affine, atol=1e-9)


@of_every_affine
def test_the_way_back_in_blocks_is_monais_resampling_with_its_border_left_out(
    affine: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_grid, "BLOCK_VOXELS", 3_000)
    shape = (30, 26, 22)
    view = whole_view(nib.Nifti1Image(np.zeros(shape, np.int16), affine), PATCHES)
    p = torch.rand(view.image.shape, generator=torch.Generator().manual_seed(0))
    p = p[3:-2, :, 1:].contiguous()  # the network's field is smaller than the scan
    moved = view.affine.copy()
    moved[:3, 3] += moved[:3, :3] @ [3, 0, 1]
    found = OwnGrid(shape, affine, [[Piece(p, moved, 0, shape[2])]]).probability()
    pair = MetaTensor(torch.stack([p, torch.ones_like(p)]), affine=torch.tensor(moved))
    back = SpatialResample(mode="bilinear", padding_mode="zeros")(
        pair, dst_affine=torch.tensor(affine), spatial_size=shape
    )
    value, weight = back.numpy()
    clear = np.abs(weight - 0.5) > 1e-3  # where rounding cannot decide
    expected = np.where(weight > 0.5, value / np.maximum(weight, 0.5), 0)
    np.testing.assert_allclose(found[clear], expected[clear], atol=1e-4)


def grid_of(values: torch.Tensor, shape: tuple[int, int, int], step: float = 2.0) -> OwnGrid:
    """Probabilities on a coarse grid that a fine one of 1 mm lies on."""
    affine = np.diag([step, step, step, 1.0])
    return OwnGrid(shape, np.eye(4), [[Piece(values, affine, 0, shape[2])]])


@pytest.mark.parametrize("threshold", [0.005, 0.3, 0.5, 0.9])
def test_the_mask_is_the_same_as_of_the_whole_probability(
    threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_grid, "BLOCK_VOXELS", 2_000)
    p = torch.rand(12, 11, 10, generator=torch.Generator().manual_seed(1)) ** 8
    p[:, :, :4] = 0.0
    grid = grid_of(p, (23, 21, 19))
    found = find_mask(grid, Postprocess(threshold))
    np.testing.assert_array_equal(found.mask, grid.probability() > threshold)
    assert found.mask.any()
    assert found.agreement is None


def test_expected_dice_is_worked_out_by_hand() -> None:
    p = torch.zeros(4, 4, 4)
    p[1, 1, 1], p[1, 1, 2], p[2, 2, 2] = 0.9, 0.6, 0.3
    found = find_mask(grid_of(p, (4, 4, 4), step=1.0), Postprocess())
    assert found.mask.sum() == 2
    assert found.expected_dice == pytest.approx(2 * 1.5 / (1.8 + 2), abs=1e-6)
    largest = find_mask(grid_of(p, (4, 4, 4), step=1.0), Postprocess(0.2, largest_component=True))
    assert largest.mask.sum() == 3  # touching by a corner is being one piece


def test_a_piece_that_is_left_out_no_longer_speaks_for_the_mask() -> None:
    p = torch.zeros(6, 4, 4)
    p[0, 1, 1], p[0, 1, 2], p[4, 2, 2] = 0.9, 0.7, 0.8
    found = find_mask(grid_of(p, (6, 4, 4), step=1.0), Postprocess(0.5, largest_component=True))
    assert found.mask.sum() == 2
    assert found.expected_dice == pytest.approx(2 * 1.6 / (2.4 + 2), abs=1e-6)


def test_networks_that_contradict_each_other_are_trusted_less() -> None:
    one, other = torch.zeros(4, 4, 4), torch.zeros(4, 4, 4)
    one[1, 1, 1:3], other[1, 1, 2], other[2, 1, 2] = 1.0, 1.0, 1.0
    pieces = [[Piece(p, np.eye(4), 0, 4)] for p in (one, other)]
    found = find_mask(OwnGrid((4, 4, 4), np.eye(4), pieces), Postprocess())
    assert found.mask.sum() == 1  # where both are sure
    assert found.agreement == 0.5
    assert found.raw_confidence == pytest.approx(0.5)
    assert found.expected_dice == pytest.approx(2 * 1 / (2 + 1))


def test_mirror_images_count_alike() -> None:
    class LeftEdge(Bright):
        """Sure of the first plane that it is given, whichever that is."""

        def window_foreground_logit(self, image: torch.Tensor) -> torch.Tensor:
            found = torch.zeros_like(image)
            found[:, :, 0] = 4.0
            return found

    reader = Windows(cast(Segmenter, LeftEdge()), "cpu", mirrored=(0, 1))
    found = reader.probability(torch.ones(3, 2, 2))
    np.testing.assert_allclose(found[0], torch.sigmoid(torch.tensor(2.0)), atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], atol=1e-6)
    np.testing.assert_allclose(found[1], 0.5)


class Multiplying(Bright):
    """Notes in what it multiplies."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.dtype] = []

    def window_foreground_logit(self, image: torch.Tensor) -> torch.Tensor:
        self.seen.append((image.flatten(2) @ torch.ones(image[0, 0].numel(), 1)).dtype)
        return image.float()


def test_the_network_is_asked_in_the_precision_of_the_hardware_and_sums_are_float32() -> None:
    network = Multiplying()
    for precision in ("32-true", "bf16-mixed", "16-mixed"):
        reader = Windows(cast(Segmenter, network), "cpu", precision=precision)
        assert reader.probability(torch.ones(4, 4, 4)).dtype == torch.float32
    # no CPU is faster in float16
    assert network.seen == [torch.float32, torch.bfloat16, torch.float32]


def test_where_memory_runs_out_less_is_asked_for_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ways = [windows.Way(4, "cpu", "cpu"), windows.Way(1, "cpu", "cpu", words="one by one")]
    monkeypatch.setattr(windows, "ways_for", lambda *asked: list(ways))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    class Narrow(Bright):
        def window_foreground_logit(self, image: torch.Tensor) -> torch.Tensor:
            if len(image) > 1:
                raise torch.OutOfMemoryError
            return super().window_foreground_logit(image)

    reader = Windows(cast(Segmenter, Narrow(VIEW)), "cuda")
    assert (reader.probability(torch.ones(40, 40, 40)) > 0.99).all()
    assert "memory ran out; going on one by one" in caplog.text
    assert reader.ways == ways[1:]  # from then on
    reader.segmenter = cast(Segmenter, SimpleNamespace(to=lambda device: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        reader.probability(torch.ones(40, 40, 40))


@pytest.mark.parametrize(("units", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_driven_to_the_cpu_the_network_is_asked_in_what_is_fast_there(
    monkeypatch: pytest.MonkeyPatch, units: bool, dtype: torch.dtype
) -> None:
    read = Windows.read

    def read_on_a_full_gpu(self: Windows, image: torch.Tensor, way: windows.Way) -> torch.Tensor:
        if way.network == "cuda":
            raise torch.OutOfMemoryError
        return read(self, image, way)

    monkeypatch.setattr(Windows, "read", read_on_a_full_gpu)
    monkeypatch.setattr(windows, "cpu_has_bf16", lambda: units)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    network = Multiplying()
    reader = Windows(cast(Segmenter, network), "cuda", precision="bf16-mixed")
    reader.probability(torch.ones(4, 4, 4))
    assert network.seen == [dtype]
