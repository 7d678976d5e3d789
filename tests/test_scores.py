"""Scores of masks by hand and by independent software; statistics, calibration and tables."""

import warnings

import numpy as np
import pytest
import SimpleITK
import torch
from monai.losses import DiceLoss
from scipy import ndimage
from scipy.spatial import KDTree
from torchmetrics.functional.classification import binary_calibration_error

from pancseg.errors import PancsegError
from pancseg.metrics import case_scores, surface
from pancseg.metrics.case_scores import calibration_counts, calibration_summary, recipe_metric
from pancseg.metrics.statistics import agreement, compare, describe, holm, interval
from pancseg.metrics.tables import by_patient, read_scores, summarise, write_scores
from tests.hand_made import AFFINE, ML, PAIRS, TOLERANCES_MM
from tests.tiny_scores import score_row

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # invalid escapes in its docstrings
    import surface_distance

ALL = (slice(None),) * 3
MEASURES = set(PAIRS[0].scores)
STATUS = {"missed: prediction empty": "missed", "reference empty": "empty_reference",
          "both empty": "empty_reference"}  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_scores_are_those_worked_out_by_hand_on_any_axes(pair):
    row = case_scores.score_case(pair.prediction, pair.reference, AFFINE, TOLERANCES_MM)
    assert set(row) == MEASURES | {"volume_ml", "reference_ml", "status"}
    assert row["status"] == STATUS.get(pair.name, "scored")
    assert row["volume_ml"] == pytest.approx(pair.prediction.sum() * ML)
    assert row["reference_ml"] == pytest.approx(pair.reference.sum() * ML)
    for measure in MEASURES:
        assert row[measure] == pytest.approx(pair.scores.get(measure), abs=1e-6), measure
    rotated = AFFINE @ np.array([[0, 1, 0, 0], [-1, 0, 0, 9], [0, 0, 1, -4], [0, 0, 0, 1.0]])
    assert case_scores.score_case(pair.prediction, pair.reference, rotated, TOLERANCES_MM) == row


def random_pairs():
    """200 pairs of masks that may touch the border, and voxel sizes of 0.5 to 3 mm."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        shape, share = rng.integers(6, 24, 3), rng.uniform(0.7, 0.95)
        noise = [ndimage.gaussian_filter(rng.normal(size=shape), 1.5) for _ in range(2)]
        a, b = (field > np.quantile(field, share) for field in noise)
        yield a, b, rng.uniform(0.5, 3.0, 3)


def surface_points(mask, spacing_mm):
    """Centres of surface voxels, mm: by neighbours, without any morphology."""
    padded, inner = np.pad(mask, 1), np.ones_like(mask)
    for axis in range(3):
        for step in (-1, 1):
            inner &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
    return np.argwhere(mask & ~inner) * spacing_mm


@pytest.mark.filterwarnings("ignore:Please import .*ndimage:DeprecationWarning")
def test_scores_of_200_random_pairs_agree_with_deepminds_package_simpleitk_and_scipy(monkeypatch):
    for n, (a, b, spacing_mm) in enumerate(random_pairs()):
        monkeypatch.setattr(surface, "MAX_VOXELS_A_POINT", (0, 10**9)[n % 2])  # tree, transform
        distances = surface_distance.compute_surface_distances(b, a, spacing_mm)
        dice_at = surface_distance.compute_surface_dice_at_tolerance
        nsd = surface.surface_dice(a, b, tuple(spacing_mm), TOLERANCES_MM)
        assert nsd == pytest.approx([dice_at(distances, mm) for mm in TOLERANCES_MM], abs=1e-6)
        points = [surface_points(mask, spacing_mm) for mask in (a, b)]
        there = KDTree(points[1]).query(points[0])[0]
        back = KDTree(points[0]).query(points[1])[0]
        overlap = SimpleITK.LabelOverlapMeasuresImageFilter()
        shape = SimpleITK.LabelShapeStatisticsImageFilter()
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
            "volume_ml": volumes[0], "reference_ml": volumes[1],
            "centroid_mm": np.linalg.norm(centres[0] - centres[1]),
            "components": components.GetObjectCount(),
        }  # fmt: skip
        row = case_scores.score_case(a, b, np.diag([*spacing_mm, 1.0]), [1.0])
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-5)


def test_distances_equal_to_the_tolerance_are_within_it():
    masks = np.zeros((2, 9, 3, 3), bool)
    masks[0, 1, 1, 1] = masks[1, 4, 1, 1] = True
    # elements lie at corners, 2 or 3 voxels apart; as floats, 3 x 0.1 is more than 0.3
    assert surface.surface_dice(*masks, (0.1, 0.1, 2.5), [0.19, 0.2, 0.3]) == [0, 0.5, 1]


def test_descriptions_intervals_and_agreement_are_those_by_hand():
    figures = describe([0.2, 0.4, 0.9])
    ends = figures.pop("ci95")
    assert figures == pytest.approx({
        "mean": 0.5, "sd": np.sqrt((0.09 + 0.01 + 0.16) / 2), "median": 0.4, "q1": 0.3,
        "q3": 0.65, "min": 0.2, "max": 0.9,
    })  # fmt: skip
    assert ends == pytest.approx([0.2, 0.9])  # three alike in 1 of 27 resamples, over 2.5 %
    assert describe([0.7])["ci95"] == [None, None] and describe([0.7])["sd"] is None
    # exact bootstrap of 0 and 1, n a resample: P(0 of 4 ones) = 0.0625, over 2.5 %
    assert interval([0.0, 0.0, 1.0, 1.0]) == [0.0, 1.0]
    # of ten values P(1 or fewer ones) = 0.011 and P(2 or fewer) = 0.055: from 0.2 to 0.8
    assert interval([0.0, 1.0] * 5) == [0.2, 0.8]
    volumes = [52.0, 48.0, 61.0, 39.0], [50.0, 50.0, 60.0, 40.0]  # Bland and Altman
    figures, limit = agreement(*volumes), 1.96 * np.sqrt((4 + 4 + 1 + 1) / 3)
    assert (figures["bias"], figures["limits"]) == (0, pytest.approx([-limit, limit]))
    assert figures["correlation"] == pytest.approx(np.corrcoef(*volumes)[0, 1])
    assert agreement([1.0], [2.0]) == {"bias": -1, "limits": [None, None], "correlation": None}


def test_paired_differences_intervals_and_p_values_are_those_by_hand():
    pairs = compare("dice", "a", "b", [0.5, 0.6, 0.7, 0.8], [0.6, 0.7, 0.8, 0.7])
    assert (pairs.n, pairs.higher, pairs.lower) == (4, 3, 1)
    assert pairs.difference == pytest.approx(0.05)
    assert pairs.ci95 == pytest.approx(interval([0.1, 0.1, 0.1, -0.1]))
    # of 2^10 signs of ten differences in one direction, two are as extreme
    pairs = compare("dice", "a", "b", [0.0] * 10, np.linspace(0.01, 0.1, 10).tolist())
    assert pairs.p == pytest.approx(2 / 2**10)
    # equal pairs are left out: of 2^3 signs of three
    pairs = compare("dice", "a", "b", [0.5] * 5, [0.5, 0.5, 0.6, 0.7, 0.8])
    assert pairs.p == pytest.approx(2 / 2**3)
    pairs = compare("dice", "a", "a", [0.1 + 0.2, 0.6], [0.3, 0.6])
    assert (pairs.difference, pairs.ci95, pairs.p, pairs.higher) == (0, [0, 0], 1, 0)
    # sorted: 5 x 0.001, 4 x 0.04, 3 x 0.04 (not below the one before), 2 x 0.2, 1 x 0.9
    assert holm([0.2, 0.001, 0.04, 0.04, 0.9]) == pytest.approx([0.4, 0.005, 0.16, 0.16, 0.9])


def test_calibration_error_and_the_recipes_metric_are_those_of_torchmetrics_and_monai():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=(12, 10, 8)).astype(np.float32)
    reference = rng.uniform(size=p.shape) < p**2
    summary = calibration_summary({"a": [calibration_counts(p, reference, ALL)]})
    tensors = torch.as_tensor(p).flatten(), torch.as_tensor(reference).flatten().int()
    expected = binary_calibration_error(*tensors, n_bins=10).item()
    assert summary["error"] == pytest.approx(expected, abs=1e-5)
    loss = DiceLoss(squared_pred=True, include_background=True)
    for share in (0.01, 0.9):
        reference = rng.uniform(size=p.shape) < share
        both = [torch.as_tensor(np.stack([1 - a, a])[None]).double() for a in (p, reference * 1.0)]
        assert recipe_metric(p, reference) == pytest.approx(1 - loss(*both).item(), abs=1e-6)


def column(*values):
    return np.array(values, np.float32).reshape(-1, 1, 1)


def test_calibration_weighs_every_patient_alike():
    right = calibration_counts(column(1, 1, 0, 0), column(1, 1, 0, 0) > 0, ALL)
    wrong = calibration_counts(column(*[1] * 36), column(*[0] * 36) > 0, ALL)
    summary = calibration_summary({"a": [right], "b": [wrong.tolist()]})
    assert summary["error"] == pytest.approx(0.5)  # by voxels it would be 36 of 40
    # a has half its voxels in the last bin, b all of them
    assert [bin_["reference"] for bin_ in summary["bins"]] == pytest.approx([0, 0.5 / 1.5])
    # voxels of a patient's cases add up: 36 of 40
    assert calibration_summary({"a": [right, wrong]})["error"] == pytest.approx(0.9)


ROWS = [
    score_row("a", 0.8, volume_ml=64.0, reference_ml=60.0),
    score_row("a", 0.6, volume_ml=60.0, reference_ml=60.0, case="a-2"),
    score_row("007", 0.0, volume_ml=0.0, reference_ml=60.0, case="NA", status="missed"),
    score_row("b", None),
    score_row("d", None, case="d,\r\n\udce4", status='failed: "gone"'),
]


def test_figures_are_means_over_patients_who_have_a_reference():
    counts = calibration_counts(column(1, 0), column(1, 1) > 0, ALL)
    figures = summarise(ROWS, {"a": [counts]}, about={"subset": "test", "held_out": True})
    assert (figures["n"], figures["cases"], figures["held_out"]) == (2, 5, True)
    assert figures["dice"]["mean"] == pytest.approx((0.7 + 0.0) / 2)
    assert figures["volume_agreement_ml"]["bias"] == pytest.approx((2 - 60) / 2)
    assert figures["calibration"]["error"] == pytest.approx(0.5)
    assert (figures["empty_reference"], figures["failed"]) == (["b"], ["d,\r\n\udce4"])
    assert by_patient(ROWS, "dice") == pytest.approx({"007": 0.0, "a": 0.7})


def test_a_table_of_scores_is_read_as_it_was_written_and_a_damaged_one_is_refused(tmp_path):
    exact = ROWS[0] | {"dice": 2 / 3}
    write_scores(tmp_path, "test", [exact, *ROWS[1:]])
    assert read_scores(tmp_path, "test") == [exact | {"dice": 0.666667}, *ROWS[1:]]
    (tmp_path / "test.csv").write_text("patient,dice\n1,2,3\n")
    with pytest.raises(PancsegError, match=r"test\.csv: .* table of scores"):
        read_scores(tmp_path, "test")
