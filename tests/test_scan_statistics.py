"""Statistics of a scan, computed by hand, and scans that are unlike the training scans."""

import nibabel as nib
import numpy as np
import pytest

from pancseg.data.scan_statistics import STATISTICS, scan_statistics, training_profile


def body(noise=0.0, seed=0):
    """Fat of -100 HU, 160 mm wide and 120 mm high; 40 mm of organs of 60 HU on the right."""
    hu = np.full((120, 100, 30), -1000.0)
    hu[20:100, 20:80] = -100
    hu[80:100, 20:80] = 60
    return hu + np.random.default_rng(seed).normal(0, noise, hu.shape)


def image(hu, slices_mm=4.0):
    return nib.Nifti1Image(np.rint(hu).astype(np.int16), np.diag([2.0, 2.0, slices_mm, 1.0]))


def test_statistics_equal_those_computed_by_hand_in_any_order_of_axes():
    expected = {"soft_low_hu": -100, "soft_middle_hu": -100, "soft_high_hu": 60, "bone_share": 0}
    expected |= {"noise_hu": 0, "length_mm": 120, "width_mm": 160, "height_mm": 120}
    # RAS: x grows to the patient's right; the middle of the organs is 60 of 160 mm off
    expected |= {"organs_right": 60 / 160, "organs_front": 0, "max_spacing_mm": 4}
    turned = image(body()).as_reoriented(np.array([[1, -1], [0, 1], [2, -1]]))
    for scan in (image(body()), turned):
        assert scan_statistics(scan) == pytest.approx(expected, abs=0.01)
    assert expected.keys() == STATISTICS.keys()


def test_noise_is_a_standard_deviation_and_without_soft_tissue_there_are_no_statistics():
    for noise in (5.0, 20.0):
        assert scan_statistics(image(body(noise)))["noise_hu"] == pytest.approx(noise, rel=0.1)
    for hu in (-1000.0, 3000.0):
        assert scan_statistics(image(np.full((40, 40, 40), hu))) == {}


SCAN = body(15, 12)


@pytest.mark.parametrize(("hu", "slices_mm", "flag"), [
    (SCAN + np.random.default_rng(9).normal(0, 60, SCAN.shape), 4, "noise_unlike"),
    (SCAN + 1024, 4, "hu_unlike"), (np.where(SCAN > -300, SCAN + 80, SCAN), 4, "hu_unlike"),
    (SCAN[::-1], 4, "sides_unlike"), (SCAN[70:], 4, "field_unlike"),
    (SCAN[..., ::2], 10, "spacing_unlike"),
])  # fmt: skip
def test_an_unlike_scan_is_flagged_and_similar_or_longer_ones_are_not(hu, slices_mm, flag):
    profile = training_profile([scan_statistics(image(body(15, seed) + seed)) for seed in range(6)])
    assert "trained on" in profile.unlike(scan_statistics(image(hu, slices_mm)), limit=4.0)[flag]
    short = profile.unlike({"length_mm": 10.0}, limit=4.0)  # of scans of one length
    assert short == {"field_unlike": "length_mm 10, trained on 120 +- 20"}
    for like in (body(16, 11), np.concatenate([body(15)] * 5, axis=2)):
        assert profile.unlike(scan_statistics(image(like)), limit=4.0) == {}
    few = training_profile([scan_statistics(image(body(15, seed))) for seed in range(2)])
    assert few.unlike({"noise_hu": 500.0}, limit=4.0) == {}
