"""Scores of masks: of shapes worked out on paper, and of random ones by independent software."""

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import SimpleITK
import torch
from monai.metrics import compute_surface_dice
from scipy import ndimage
from scipy.spatial import KDTree

from pancseg.geometry import bounding_box
from pancseg.metrics import surface
from pancseg.metrics.case_scores import no_scores, score_case
from tests.hand_made import AFFINE, CUBE, ML, PAIRS, TOLERANCES_MM, Pair

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # invalid escapes in its docstrings
    import surface_distance

MEASURES = set(PAIRS[0].scores)
STATUS = {"missed: prediction empty": "missed", "reference empty": "empty_reference",
          "both empty": "empty_reference"}  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_scores_are_those_worked_out_by_hand_on_any_axes(pair: Pair) -> None:
    row = score_case(pair.prediction, pair.reference, AFFINE, TOLERANCES_MM)
    assert list(row) == list(no_scores(TOLERANCES_MM, "failed"))
    assert set(row) == MEASURES | {"volume_ml", "reference_ml", "status"}
    assert row["status"] == STATUS.get(pair.name, "scored")
    assert row["volume_ml"] == pytest.approx(pair.prediction.sum() * ML)
    assert row["reference_ml"] == pytest.approx(pair.reference.sum() * ML)
    for measure in MEASURES:
        assert row[measure] == pytest.approx(pair.scores.get(measure), abs=1e-6), measure
    rotated = AFFINE @ np.array([[0, 1, 0, 0], [-1, 0, 0, 9], [0, 0, 1, -4], [0, 0, 0, 1.0]])
    assert score_case(pair.prediction, pair.reference, rotated, TOLERANCES_MM) == row


def test_columns_are_in_order_for_any_tolerances() -> None:
    row = score_case(CUBE, CUBE, AFFINE, [0.5, 2.0])
    assert list(row)[:5] == ["dice", "nsd_0.5mm", "nsd_2mm", "hd95_mm", "assd_mm"]
    assert list(row)[-1] == "status"
    assert set(no_scores([2.0], "failed").values()) == {None, "failed"}


def random_pairs(seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """200 pairs of masks that may touch the border, and voxel sizes of 0.5 to 3 mm."""
    rng = np.random.default_rng(seed)
    for _ in range(200):
        shape, share = rng.integers(6, 24, 3), rng.uniform(0.7, 0.95)
        noise = [ndimage.gaussian_filter(rng.normal(size=shape), 1.5) for _ in range(2)]
        a, b = (field > np.quantile(field, share) for field in noise)
        yield a, b, rng.uniform(0.5, 3.0, 3)


@pytest.mark.filterwarnings("ignore:Please import .*ndimage:DeprecationWarning")
def test_surface_dice_of_200_random_pairs_is_that_of_deepminds_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for n, (a, b, spacing_mm) in enumerate(random_pairs(seed=1)):
        monkeypatch.setattr(surface, "MAX_VOXELS_A_POINT", (0, 10**9)[n % 2])  # tree, transform
        found = surface.surface_dice(a, b, tuple(spacing_mm), TOLERANCES_MM)
        distances = surface_distance.compute_surface_distances(b, a, spacing_mm)
        expected = [
            surface_distance.compute_surface_dice_at_tolerance(distances, mm)
            for mm in TOLERANCES_MM
        ]
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning")
def test_surface_dice_is_that_of_monai_where_distances_equal_the_tolerance() -> None:
    a, b = np.zeros((2, 12, 12, 12), bool)
    a[2:7, 2:9, 3:8] = b[5:9, 2:9, 3:8] = True
    for spacing_mm in ((0.1, 0.7, 0.7), (0.8, 0.8, 2.5), (0.7, 1.0, 5.0)):
        for n in (1, 2, 3):
            mm = round(n * spacing_mm[0], 1)  # as floats, 3 x 0.1 is more than 0.3
            masks = (torch.as_tensor(mask)[None, None] for mask in (a, b))
            expected = compute_surface_dice(
                *masks, [mm], include_background=True, spacing=spacing_mm, use_subvoxels=True
            )
            found = surface.surface_dice(a, b, spacing_mm, [mm])
            assert found == pytest.approx([expected.item()], abs=1e-6)


def surface_points(mask: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Centres of surface voxels, mm: by neighbours, without any morphology."""
    padded = np.pad(mask, 1)
    inner = np.ones_like(mask)
    for axis in range(3):
        for step in (-1, 1):
            inner &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
    return np.argwhere(mask & ~inner) * spacing_mm


def shape_of(mask: np.ndarray, spacing_mm: np.ndarray) -> SimpleITK.LabelShapeStatisticsImageFilter:
    """Volume and centre of a mask by SimpleITK, whose arrays begin with the slice."""
    image = SimpleITK.GetImageFromArray(mask.T.astype(np.uint8))
    image.SetSpacing(spacing_mm.tolist())
    shape = SimpleITK.LabelShapeStatisticsImageFilter()
    shape.Execute(image)
    return shape


def test_all_other_scores_of_200_random_pairs_agree_with_independent_software() -> None:
    for a, b, spacing_mm in random_pairs(seed=0):
        row = score_case(a, b, np.diag([*spacing_mm, 1.0]), [1.0])
        points = [surface_points(mask, spacing_mm) for mask in (a, b)]
        there = KDTree(points[1]).query(points[0])[0]
        back = KDTree(points[0]).query(points[1])[0]
        assert row["hd95_mm"] == pytest.approx(
            max(np.percentile(there, 95), np.percentile(back, 95)), abs=1e-5
        )
        assert row["assd_mm"] == pytest.approx(np.concatenate([there, back]).mean(), abs=1e-5)
        overlap = SimpleITK.LabelOverlapMeasuresImageFilter()
        overlap.Execute(*(SimpleITK.GetImageFromArray(m.astype(np.uint8)) for m in (b, a)))
        assert row["dice"] == pytest.approx(overlap.GetDiceCoefficient(1), abs=1e-9)
        assert row["recall"] == pytest.approx(1 - overlap.GetFalseNegativeError(1), abs=1e-9)
        assert row["precision"] == pytest.approx(1 - overlap.GetFalseDiscoveryRate(1), abs=1e-9)
        shapes = [shape_of(mask, spacing_mm) for mask in (a, b)]
        assert row["volume_ml"] == pytest.approx(shapes[0].GetPhysicalSize(1) / 1000)
        assert row["reference_ml"] == pytest.approx(shapes[1].GetPhysicalSize(1) / 1000)
        centres = [np.array(shape.GetCentroid(1)) for shape in shapes]
        assert row["centroid_mm"] == pytest.approx(np.linalg.norm(centres[0] - centres[1]))
        components = SimpleITK.ConnectedComponentImageFilter()
        components.FullyConnectedOn()
        components.Execute(SimpleITK.GetImageFromArray(a.astype(np.uint8)))
        assert row["components"] == components.GetObjectCount()


def test_a_voxel_far_off_needs_no_transform_of_the_whole_scan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reference = np.zeros((200, 200, 100), bool)
    reference[90:110, 90:110, 45:55] = True
    prediction = reference.copy()
    prediction[0, 0, 0] = True
    monkeypatch.setattr(surface, "distance_transform_edt", None)
    row = score_case(prediction, reference, np.eye(4), [2.0])
    n = 20 * 20 * 10 - 18 * 18 * 8  # surface voxels of the reference
    assert row["hd95_mm"] == 0
    assert row["assd_mm"] == pytest.approx(np.sqrt(2 * 90**2 + 45**2) / (2 * n + 1), abs=1e-6)


def test_a_box_holds_a_mask_and_its_margin_inside_the_array() -> None:
    mask = np.zeros((9, 9, 9), bool)
    assert mask[bounding_box(mask)].shape == mask.shape
    mask[0, 4, 8] = True
    assert bounding_box(mask, 2.0, (1, 0.5, 2)) == (slice(0, 3), slice(0, 9), slice(7, 9))
