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
        distances = surface_distance.compute_surface_distances(b, a, spacing_mm)
        expected = [
            surface_distance.compute_surface_dice_at_tolerance(distances, mm)
            for mm in TOLERANCES_MM
        ]
        nsd = surface.surface_dice(a, b, tuple(spacing_mm), TOLERANCES_MM)
        assert nsd == pytest.approx(expected, abs=1e-6)


@pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning")
@pytest.mark.parametrize("spacing_mm", [(0.1, 0.7, 0.7), (0.8, 0.8, 2.5)])
def test_surface_dice_is_that_of_monai_where_distances_equal_the_tolerance(
    spacing_mm: tuple[float, float, float],
) -> None:
    a, b = np.zeros((2, 12, 12, 12), bool)
    a[2:7, 2:9, 3:8] = b[5:9, 2:9, 3:8] = True
    for n in (1, 3):
        mm = round(n * spacing_mm[0], 1)  # as floats, 3 x 0.1 is more than 0.3
        masks = (torch.as_tensor(mask)[None, None] for mask in (a, b))
        expected = compute_surface_dice(*masks, [mm], True, spacing=spacing_mm, use_subvoxels=True)
        nsd = surface.surface_dice(a, b, spacing_mm, [mm])
        assert nsd == pytest.approx([expected.item()], abs=1e-6)


def surface_points(mask: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Centres of surface voxels, mm: by neighbours, without any morphology."""
    padded, inner = np.pad(mask, 1), np.ones_like(mask)
    for axis in range(3):
        for step in (-1, 1):
            inner &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
    return np.argwhere(mask & ~inner) * spacing_mm


def test_all_other_scores_of_200_random_pairs_agree_with_independent_software() -> None:
    for a, b, spacing_mm in random_pairs(seed=0):
        row = score_case(a, b, np.diag([*spacing_mm, 1.0]), [1.0])
        points = [surface_points(mask, spacing_mm) for mask in (a, b)]
        there = KDTree(points[1]).query(points[0])[0]
        back = KDTree(points[0]).query(points[1])[0]
        overlap, shape = (
            SimpleITK.LabelOverlapMeasuresImageFilter(),
            SimpleITK.LabelShapeStatisticsImageFilter(),
        )
        images = [SimpleITK.GetImageFromArray(mask.T.astype(np.uint8)) for mask in (a, b)]
        volumes, centres = [], []
        for image in images:  # whose arrays begin with the slice
            image.SetSpacing(spacing_mm.tolist())
            shape.Execute(image)
            volumes.append(shape.GetPhysicalSize(1) / 1000)
            centres.append(np.array(shape.GetCentroid(1)))
        overlap.Execute(images[1], images[0])
        components = SimpleITK.ConnectedComponentImageFilter()
        components.FullyConnectedOn()
        components.Execute(images[0])
        expected = {
            "hd95_mm": max(np.percentile(there, 95), np.percentile(back, 95)),
            "assd_mm": np.concatenate([there, back]).mean(),
            "dice": overlap.GetDiceCoefficient(1),
            "recall": 1 - overlap.GetFalseNegativeError(1),
            "precision": 1 - overlap.GetFalseDiscoveryRate(1),
            "volume_ml": volumes[0],
            "reference_ml": volumes[1],
            "centroid_mm": np.linalg.norm(centres[0] - centres[1]),
            "components": components.GetObjectCount(),
        }
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-5)


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
