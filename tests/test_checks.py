"""Flags and grids of labels: for each an input that raises it and a similar one that does not."""

import nibabel as nib
import numpy as np
import pytest

from pancseg.errors import Refused
from pancseg.geometry import oriented_like
from pancseg.intake.checks import Checks, check_grid, check_image, cross_case_flags, voxel_flags
from pancseg.structures import Structure
from tests.tiny_root import case_of

SHAPE = (40, 40, 12)
SPACING_MM = (2.0, 2.0, 5.0)  # a voxel is 0.02 ml
PANCREAS = Structure("pancreas", None, "15776009", "organ", (15, 300), (1,))
TUMOUR = Structure("tumour", (2,), "108369006", "lesion", (0, 5), (2,))
WITH_TUMOUR = (Structure("pancreas", (1, 2), "15776009", "organ", (15, 300), (1, 2)), TUMOUR)
GRID = np.array([[-0.8, 0, 0, 90.0], [0, -0.8, 0, 70.0], [0, 0, 2.5, -300.0], [0, 0, 0, 1]])


def body():
    """Air around fat around muscle, some bone; enhancement grows towards the head; noise."""
    x, y, z = np.indices(SHAPE)
    radius = np.hypot(x - 19.5, y - 19.5)
    hu = np.where(radius < 18, -100, -1000)
    hu[radius < 15] = 50
    hu[(radius < 15) & (x < 8 + z)] = 240
    hu[18:21, 30:33] = 1200
    return (hu + np.random.default_rng(0).normal(0, 10, SHAPE)).astype(np.int16)


def organ():
    """A block of 8 x 16 x 8 voxels, 20.48 ml, inside the body."""
    codes = np.zeros(SHAPE, np.uint8)
    codes[16:24, 12:28, 2:10] = 1
    return codes


def flags(hu, codes=None, structures=(PANCREAS,), **checks):
    return voxel_flags(hu, codes, SPACING_MM, Checks(**checks), structures)


@pytest.mark.parametrize(("flag", "change"), [
    ("hu_not_applied", lambda hu: (hu + 1000).clip(0)),  # half of the air at exactly 0
    ("hu_windowed", lambda hu: hu.clip(-1000, 300)),
    ("hu_windowed", lambda hu: hu.clip(-160, None)),
    ("hu_implausible", lambda hu: hu * 2),
    ("hu_implausible", lambda hu: np.where(hu > 1000, 60000, hu.astype(np.int32))),
    ("hu_implausible", lambda hu: hu / 4.0 - 1000),  # nothing but air
])  # fmt: skip
def test_values_that_are_not_hu_are_flagged(flag, change):
    assert flags(change(body())) == [flag]


@pytest.mark.parametrize("radius", [18, 19])  # without and with a rim of air
def test_constant_padding_is_not_flagged(radius):
    x, y, _ = np.indices(SHAPE)
    padded = np.where(np.hypot(x - 19.5, y - 19.5) > radius, -32768, body()).astype(np.int16)
    assert flags(padded) == []
    padded[20, 20, 5] = -8000  # a voxel out of range that is not padding
    assert flags(padded) == ["hu_implausible"]


def test_usual_scans_are_not_flagged():
    metal = body()
    metal[20, 20, 5:7] = 30000
    assert flags(metal) == flags(np.zeros((4, 3, 5), np.int16)) == flags(body(), organ()) == []
    noise = np.random.default_rng(1).normal(0, 60, SHAPE)
    for k in range(SHAPE[2]):  # a slice that is unlike the others
        unusual = body()
        unusual[..., k] = (unusual[..., k] + 5 * noise[..., k]).clip(-1500, 1500)
        assert flags(unusual) == []
    alternating = body()
    alternating[..., ::2] += (noise[..., :1] / 2).astype(np.int16)
    assert flags(alternating) == flags((body() + noise).astype(np.int16)) == []


@pytest.mark.parametrize("first", [0, 1, 5, 10])
def test_swapped_neighbours_are_flagged_at_every_position(first):
    order = np.arange(SHAPE[2])
    order[[first, first + 1]] = first + 1, first
    assert flags(body()[..., order]) == ["slice_order"]


def test_an_image_of_exactly_two_values_is_refused_as_a_mask():
    mask = np.indices((256, 256, 4))[0] % 2 * 255
    with pytest.raises(Refused, match="looks_like_mask: two values only, 0 and 255"):
        check_image(mask)
    mask[17, 13, 3] += 1  # one voxel, not among the sampled
    check_image(mask)


def test_a_label_in_air_is_flagged_from_a_tenth_of_its_voxels():
    codes, hu = organ(), body()
    codes[24:, 20, 5] = 1  # to the edge of the scan: air beside the label does not count
    hu[16:24, 12:28, 2] = np.where(np.indices((8, 16))[1] < 12, -950, 50)  # 96 of 1040 voxels
    assert flags(hu, codes) == []
    hu[16:24, 12:28, 2] = -950  # 128
    assert flags(hu, codes) == ["label_outside_body"]


@pytest.mark.parametrize(("volume_ml", "is_flagged"), [
    ((20.4, 20.5), False), ((20.5, 300), True), ((1, 20.4), True)
])  # fmt: skip
def test_volume_is_compared_in_ml(volume_ml, is_flagged):
    expected = ["label_volume"] * is_flagged
    assert flags(body(), organ(), volume_ml=volume_ml) == expected
    structure = Structure("pancreas", None, "", "organ", volume_ml, (1,))
    assert flags(body(), organ(), (structure,)) == expected


def test_each_of_several_structures_has_its_volume_and_organs_alone_components_gaps_and_cuts():
    codes = organ()
    codes[16:20, 12:20, 2:9] = 2  # 224 voxels, 4.48 ml; the pancreas contains it
    assert flags(body(), codes, WITH_TUMOUR) == []
    codes[16:20, 12:20, 2:10] = 2  # 5.12 ml
    assert flags(body(), codes, WITH_TUMOUR) == ["label_volume:tumour"]
    codes = organ()
    codes[16:18, 12, [0, 4, 11]] = 2  # metastases in slices apart, on the first and on the last
    assert flags(body(), codes, (PANCREAS, TUMOUR)) == []
    assert flags(body(), codes, WITH_TUMOUR) == ["label_cut", "label_gaps"]


def test_a_second_large_component_is_flagged():
    codes = organ()
    codes[26, 12:28, 2:8] = 1  # 96 of 1120 voxels
    assert flags(body(), codes) == []
    codes[26, 12:28, 2:10] = 1  # 128 of 1152
    assert flags(body(), codes) == ["label_pieces"]
    codes[25, 28, 5] = codes[24, 27, 5] = 1  # connected by corners
    assert flags(body(), codes) == []


def test_a_spacing_far_from_the_median_of_five_cases_is_flagged():
    cases = [case_of(name) for name in "abcd"] + [case_of("thick", spacing_mm=[8, 8, 24])]
    assert cross_case_flags(cases, 2.5)[1] == {"thick": ["spacing_outlier"]}
    assert cross_case_flags(cases, 3.5)[1] == cross_case_flags(cases[1:], 2.5)[1] == {}


def on(affine, shape=(50, 40, 30)):
    return nib.Nifti1Image(np.zeros(shape, np.uint8), affine)


def moved(*mm):
    return nib.affines.from_matvec(GRID[:3, :3], GRID[:3, 3] + mm)


ENDS = "label begins where the image ends, "
SHIFTED = "label lies (1.60, 0.00, -5.00) mm to the right, front and head of the image, "


@pytest.mark.parametrize(("label", "reason"), [
    (on(GRID, (50, 40, 31)), "label_size: label has 50 x 40 x 31 voxels of 0.8"),
    (on(GRID @ np.diag([1, 1, 2, 1])), "label_spacing: label has voxels of 0.8 x 0.8 x 5 mm,"),
    (on(moved(49 * 0.8, 31.2, 0)), f"label_flipped: {ENDS}left-right and back-front: "),
    (on(moved(0, 0, -29 * 2.5)), f"label_flipped: {ENDS}feet-head: "),
    (on(moved(1.6, 0, -5)), f"label_shifted: {SHIFTED}(-2.00, 0.00, -2.00) voxels"),
    (on(moved(49 * 0.8, 3, 0)), "label_shifted: "),
])  # fmt: skip
def test_each_difference_of_grids_is_refused(label, reason):
    with pytest.raises(Refused) as refused:
        check_grid(on(GRID), oriented_like(label, on(GRID)))
    assert str(refused.value).startswith(reason)
    check_grid(on(GRID), on(moved(0.07, 0, 0)))  # less than a tenth of a voxel off
