"""A scan in numbers, worked out by hand, and what makes one unlike others."""

import nibabel as nib
import numpy as np
import pytest

from pancseg.dataset.appearance import FLOORS, SIGNS, appearance, profile_of

AFFINE = np.diag([2.0, 2.0, 4.0, 1.0])


def body(noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """Fat of -100 HU, 160 mm wide and 120 mm high; 40 mm of organs of 60 HU on the right."""
    hu = np.full((120, 100, 30), -1000.0)
    hu[20:100, 20:80] = -100
    hu[80:100, 20:80] = 60
    return hu + np.random.default_rng(seed).normal(0, noise, hu.shape)


def image(hu: np.ndarray, affine: np.ndarray = AFFINE) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.rint(hu).astype(np.int16), affine)


def test_each_number_is_worked_out_by_hand() -> None:
    seen = appearance(image(body()))
    assert set(seen) == set(FLOORS) == {name for names in SIGNS.values() for name in names}
    assert (seen["width_mm"], seen["height_mm"], seen["length_mm"]) == (160, 120, 120)
    assert (seen["soft_low_hu"], seen["soft_middle_hu"], seen["soft_high_hu"]) == (-100, -100, 60)
    assert (seen["bone_share"], seen["noise_hu"], seen["slice_mm"]) == (0, 0, 4)
    # RAS: x grows to the patient's right; the organs' middle lies 60 of 160 mm right of the body's
    assert seen["organs_right"] == pytest.approx(60 / 160, abs=0.01)
    assert seen["organs_front"] == pytest.approx(0, abs=1e-6)


def test_the_order_of_axes_does_not_matter_but_a_mirrored_patient_does() -> None:
    hu = body(10)
    seen = appearance(image(hu))
    turned = image(hu).as_reoriented(np.array([[1, -1], [0, 1], [2, -1]]))
    again = appearance(turned)
    for name in set(seen) - {"noise_hu"}:
        assert again[name] == pytest.approx(seen[name], rel=0.02, abs=0.02)
    mirrored = appearance(image(hu[::-1]))
    assert mirrored["organs_right"] == pytest.approx(-seen["organs_right"], abs=0.02)


@pytest.mark.parametrize("noise", [5.0, 20.0])
def test_noise_is_its_standard_deviation(noise: float) -> None:
    assert appearance(image(body(noise)))["noise_hu"] == pytest.approx(noise, rel=0.1)


def test_air_and_nothing_say_nothing() -> None:
    assert appearance(image(np.full((40, 40, 40), -1000.0))) == {}
    assert appearance(image(np.full((40, 40, 40), 3000.0))) == {}


def trained_on() -> list[dict[str, float]]:
    return [appearance(image(body(15, seed) + seed)) for seed in range(6)]


@pytest.mark.parametrize(
    ("changed", "flag"),
    [
        (lambda hu: hu + np.random.default_rng(9).normal(0, 60, hu.shape), "noise_unlike"),
        (lambda hu: hu + 1024, "hu_unlike"),
        (lambda hu: np.where(hu > -300, hu + 80, hu), "hu_unlike"),
        (lambda hu: hu[::-1], "sides_unlike"),
        (lambda hu: hu[70:], "field_unlike"),
    ],
    ids=["noise", "slope lost", "brighter", "mirrored", "cropped"],
)
def test_what_is_unlike_is_flagged_with_its_number_and_what_is_alike_is_not(
    changed: object, flag: str
) -> None:
    profile = profile_of(trained_on())
    assert profile.n == 6
    assert profile.unlike(appearance(image(body(16, 11))), limit=4.0) == {}
    found = profile.unlike(appearance(image(changed(body(15, 12)))), limit=4.0)  # type: ignore[operator]
    assert flag in found
    assert "trained on" in found[flag]


def test_thick_slices_are_unlike_and_long_scans_are_not() -> None:
    profile = profile_of(trained_on())
    thick = appearance(image(body(15)[..., ::2], np.diag([2.0, 2.0, 10.0, 1.0])))
    assert "spacing_unlike" in profile.unlike(thick, limit=4.0)
    long = appearance(image(np.concatenate([body(15)] * 5, axis=2)))
    assert profile.unlike(long, limit=4.0) == {}


def test_of_two_scans_nothing_can_be_unlike() -> None:
    assert profile_of(trained_on()[:2]).unlike({"noise_hu": 500.0}, limit=4.0) == {}
    assert profile_of([]).unlike({"noise_hu": 500.0}, limit=4.0) == {}
