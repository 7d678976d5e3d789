"""Scores of shapes that one can work out on paper, and of random ones against other ways."""

import numpy as np
import pytest
import SimpleITK
from scipy import ndimage
from scipy.spatial import KDTree

from pancseg.geometry import bounding_box
from pancseg.scoring.case_scores import score_case
from tests.hand_made import AFFINE, CUBE, ML, PAIRS, TOLERANCES_MM, Pair

MEASURES = set(PAIRS[0].scores)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_scores_are_those_worked_out_by_hand(pair: Pair) -> None:
    row = score_case(pair.prediction, pair.reference, AFFINE, TOLERANCES_MM).as_row()
    assert set(row) == MEASURES | {"volume_ml", "reference_ml", "status"}
    for measure in MEASURES:
        expected = pair.scores.get(measure)
        if expected is None:
            assert row[measure] is None, measure
        else:
            assert row[measure] == pytest.approx(expected, abs=1e-5), measure
    assert row["volume_ml"] == pytest.approx(pair.prediction.sum() * ML)
    assert row["reference_ml"] == pytest.approx(pair.reference.sum() * ML)


def test_a_case_says_what_became_of_it() -> None:
    found = {p.name: score_case(p.prediction, p.reference, AFFINE, [1.0]).status for p in PAIRS}
    assert found["missed: prediction empty"] == "missed"
    assert found["reference empty"] == found["both empty"] == "empty_reference"
    others = {status for name, status in found.items() if "empty" not in name}
    assert others == {"scored"}


def test_columns_stand_in_their_order_whatever_the_tolerances() -> None:
    row = score_case(CUBE, CUBE, AFFINE, [0.5, 2.0]).as_row()
    assert list(row)[:5] == ["dice", "nsd_0.5mm", "nsd_2mm", "hd95_mm", "assd_mm"]
    assert list(row)[-1] == "status"


def test_axes_that_are_turned_and_oblique_change_no_score() -> None:
    turned = AFFINE @ np.array([[0, 1, 0, 0], [-1, 0, 0, 9], [0, 0, 1, -4], [0, 0, 0, 1.0]])
    for pair in PAIRS:
        plain = score_case(pair.prediction, pair.reference, AFFINE, TOLERANCES_MM)
        assert score_case(pair.prediction, pair.reference, turned, TOLERANCES_MM) == plain


def surface_points(mask: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Places of surface voxels, mm: by neighbours, without any morphology."""
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


def test_200_random_pairs_agree_with_another_implementation() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        spacing_mm = rng.uniform(0.5, 3.0, 3)
        shape = rng.integers(6, 24, 3)
        noise = [ndimage.gaussian_filter(rng.normal(size=shape), 1.5) for _ in range(2)]
        share = rng.uniform(0.7, 0.95)
        one, other = (field > np.quantile(field, share) for field in noise)
        found = score_case(one, other, np.diag([*spacing_mm, 1.0]), TOLERANCES_MM)
        points = [surface_points(mask, spacing_mm) for mask in (one, other)]
        there = KDTree(points[1]).query(points[0])[0]
        back = KDTree(points[0]).query(points[1])[0]
        both = np.concatenate([there, back])
        farther = max(np.percentile(there, 95), np.percentile(back, 95))
        assert found.hd95_mm == pytest.approx(farther, abs=1e-3)
        assert found.assd_mm == pytest.approx(both.mean(), abs=1e-3)
        for tolerance_mm in TOLERANCES_MM:
            assert found.nsd[tolerance_mm] == pytest.approx((both <= tolerance_mm).mean(), abs=1e-3)
        overlap = SimpleITK.LabelOverlapMeasuresImageFilter()
        overlap.Execute(*(SimpleITK.GetImageFromArray(m.astype(np.uint8)) for m in (other, one)))
        assert found.dice == pytest.approx(overlap.GetDiceCoefficient(1), abs=1e-9)
        assert found.recall == pytest.approx(1 - overlap.GetFalseNegativeError(1), abs=1e-9)
        assert found.precision == pytest.approx(1 - overlap.GetFalseDiscoveryRate(1), abs=1e-9)
        sizes = [shape_of(mask, spacing_mm) for mask in (one, other)]
        assert found.volume_ml == pytest.approx(sizes[0].GetPhysicalSize(1) / 1000)
        assert found.reference_ml == pytest.approx(sizes[1].GetPhysicalSize(1) / 1000)
        centres = [np.array(size.GetCentroid(1)) for size in sizes]
        assert found.centroid_mm == pytest.approx(np.linalg.norm(centres[0] - centres[1]))
        pieces = SimpleITK.ConnectedComponentImageFilter()
        pieces.FullyConnectedOn()
        pieces.Execute(SimpleITK.GetImageFromArray(one.astype(np.uint8)))
        assert found.components == pieces.GetObjectCount()


def test_a_box_holds_a_mask_and_its_margin_inside_the_array() -> None:
    mask = np.zeros((9, 9, 9), bool)
    assert mask[bounding_box(mask)].shape == mask.shape
    mask[0, 4, 8] = True
    assert bounding_box(mask, 2.0, (1, 0.5, 2)) == (slice(0, 3), slice(0, 9), slice(7, 9))
