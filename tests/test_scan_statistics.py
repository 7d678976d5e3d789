"""Statistics of a scan, computed by hand, and scans that are unlike the training scans."""

from collections.abc import Callable

import nibabel as nib
import numpy as np
import pytest

from pancseg.data.scan_statistics import STATISTICS, scan_statistics, training_profile

AFFINE = np.diag([2.0, 2.0, 4.0, 1.0])


def body(noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """Fat of -100 HU, 160 mm wide and 120 mm high; 40 mm of organs of 60 HU on the right."""
    hu = np.full((120, 100, 30), -1000.0)
    hu[20:100, 20:80] = -100
    hu[80:100, 20:80] = 60
    return hu + np.random.default_rng(seed).normal(0, noise, hu.shape)


def image(hu: np.ndarray, affine: np.ndarray = AFFINE) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.rint(hu).astype(np.int16), affine)


def test_statistics_equal_those_computed_by_hand() -> None:
    found = scan_statistics(image(body()))
    assert set(found) == set(STATISTICS)
    assert (found["width_mm"], found["height_mm"], found["length_mm"]) == (160, 120, 120)
    soft = [found[f"soft_{name}_hu"] for name in ("low", "middle", "high")]
    assert soft == [-100, -100, 60]
    assert (found["bone_share"], found["noise_hu"], found["max_spacing_mm"]) == (0, 0, 4)
    # RAS: x grows to the patient's right; the middle of the organs is 60 of 160 mm off
    assert found["organs_right"] == pytest.approx(60 / 160, abs=0.01)
    assert found["organs_front"] == pytest.approx(0, abs=1e-6)


def test_the_order_of_axes_has_no_influence_and_mirroring_has() -> None:
    hu = body(10)
    found = scan_statistics(image(hu))
    turned = scan_statistics(image(hu).as_reoriented(np.array([[1, -1], [0, 1], [2, -1]])))
    for name in set(found) - {"noise_hu"}:
        assert turned[name] == pytest.approx(found[name], rel=0.02, abs=0.02)
    mirrored = scan_statistics(image(hu[::-1]))
    assert mirrored["organs_right"] == pytest.approx(-found["organs_right"], abs=0.02)


@pytest.mark.parametrize("noise", [5.0, 20.0])
def test_noise_is_a_standard_deviation(noise: float) -> None:
    assert scan_statistics(image(body(noise)))["noise_hu"] == pytest.approx(noise, rel=0.1)


@pytest.mark.parametrize("hu", [-1000.0, 3000.0])
def test_a_scan_without_soft_tissue_has_no_statistics(hu: float) -> None:
    assert scan_statistics(image(np.full((40, 40, 40), hu))) == {}


def training_scans() -> list[dict[str, float]]:
    return [scan_statistics(image(body(15, seed) + seed)) for seed in range(6)]


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        (lambda hu: hu + np.random.default_rng(9).normal(0, 60, hu.shape), "noise_unlike"),
        (lambda hu: hu + 1024, "hu_unlike"),
        (lambda hu: np.where(hu > -300, hu + 80, hu), "hu_unlike"),
        (lambda hu: hu[::-1], "sides_unlike"),
        (lambda hu: hu[70:], "field_unlike"),
    ],
    ids=["noise", "slope lost", "brighter", "mirrored", "cropped"],
)
def test_an_unlike_scan_is_flagged_with_its_statistic_and_a_similar_scan_is_not(
    change: Callable[[np.ndarray], np.ndarray], flag: str
) -> None:
    profile = training_profile(training_scans())
    assert profile.n == 6
    assert profile.unlike(scan_statistics(image(body(16, 11))), limit=4.0) == {}
    found = profile.unlike(scan_statistics(image(change(body(15, 12)))), limit=4.0)
    assert "trained on" in found[flag]


def test_thick_slices_are_flagged_and_long_scans_are_not() -> None:
    profile = training_profile(training_scans())
    thick = scan_statistics(image(body(15)[..., ::2], np.diag([2.0, 2.0, 10.0, 1.0])))
    assert "spacing_unlike" in profile.unlike(thick, limit=4.0)
    long = scan_statistics(image(np.concatenate([body(15)] * 5, axis=2)))
    assert profile.unlike(long, limit=4.0) == {}


def test_a_profile_of_two_scans_flags_nothing() -> None:
    for scans in (training_scans()[:2], [], [{}] * 5):
        assert training_profile(scans).unlike({"noise_hu": 500.0}, limit=4.0) == {}
