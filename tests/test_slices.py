"""Slices: ordered by position, fitted to a regular grid, repaired or refused with every reason."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from pydicom.dataset import Dataset
from scipy.interpolate import interp1d

from pancseg.dicom.pixels import SlicePlane, planes_of
from pancseg.dicom.series import Repair, SliceStack, build_stack, read_mask_series
from pancseg.errors import Refused
from tests.tiny_dicom import AXIAL, find, put, read, write_series
from tests.tiny_labels import item, structures

UNEVEN_MM = [0.0, 4.0, 11.0, 12.0, 16.0, 24.0, 28.0]  # gaps of 4, 7, 1, 4, 8 and 4 mm


def stack_at(heights_mm: Any, aside: Any = 0.0, acquired: Any = None, **repair: bool) -> SliceStack:
    """A stack of axial slices, shifted along the columns by ``aside`` of each or of all."""
    count = len(heights_mm)
    positions = zip(np.zeros(count), np.broadcast_to(aside, count), heights_mm, strict=True)
    planes = [
        SlicePlane(*(Path("x"), n, 4, 3, tuple(map(float, position)), AXIAL), (0.8, 0.5), 1, 0, "")
        for n, position in enumerate(positions)
    ]
    for plane, acquisitions in zip(planes, acquired or (), strict=False):
        object.__setattr__(plane, "acquisitions", acquisitions)
    return build_stack(planes, Repair(**repair))


def refusal(heights_mm: Any, **options: Any) -> Refused:
    with pytest.raises(Refused) as refused:
        stack_at(heights_mm, **options)
    return refused.value


def random_pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1000, (count, 9, 7))


# the regular grid


@pytest.mark.parametrize("step_mm", [1.25, 0.75])
def test_positions_rounded_to_a_tenth_of_a_millimetre_are_a_regular_grid(step_mm):
    exact = 17.3 + step_mm * np.arange(40)
    stack = stack_at(np.floor(exact * 10 + 0.5) / 10)
    grid = stack.corner_mm[2] + stack.step_mm * np.arange(40)
    assert np.abs(grid - exact).max() < 0.05


@pytest.mark.parametrize(("off_steps", "code"), [(0.09, ""), (0.14, "uneven_gaps")])
def test_a_slice_may_lie_a_tenth_of_a_step_from_the_grid(off_steps, code):
    heights = 2.0 * np.arange(30)
    heights[14] += 2.0 * off_steps
    if code:
        assert refusal(heights).code == code
    else:
        assert stack_at(heights).step_mm == pytest.approx(2.0, abs=1e-3)


def test_the_origin_is_that_of_the_grid():
    stack = stack_at([0.1, 5.0, 10.0, 15.0, 19.9])  # fitted: 0.04, 5.02, 10.00, 14.98, 19.96
    assert stack.affine_at(stack.corner_mm)[2, 2:].tolist() == pytest.approx([4.96, 0.08])
    np.testing.assert_allclose(stack.offsets_mm, [0.02, 4.92, 9.92, 14.92, 19.82])


def test_a_missing_slice_and_its_place_are_named_and_two_slices_are_too_few():
    sentence = "missing_slice: 1 gap of 10.0 mm at slice 3, spacing is 5.0 mm"
    assert str(refusal([18.1, 23.1, 28.1, 38.1])) == sentence
    assert "2 gaps, the first of 15.0 mm at slice 2" in str(refusal([0, 5, 20, 25, 35, 40]))
    assert refusal([0, 5]).code == "too_few_slices"


# acquisitions


@pytest.mark.parametrize("is_time", [False, True])
@pytest.mark.parametrize(
    ("groups", "is_refused"),
    [
        ("12121212", True),  # two phases, the second half a step higher
        ("11212122", True),
        ("12311231", True),
        ("11112222", False),  # blocks that follow each other
        ("12345678", False),  # a slice each
        ("11121111", False),  # a single slice among others
        ("1.1.1.1.", False),  # unknown for half of them
    ],
)
def test_acquisitions_that_overlap_in_space_are_refused(is_time, groups, is_refused):
    texts = [group.strip(".") for group in groups]
    acquired = [("", text) if is_time else (text, "") for text in texts]
    if not is_refused:
        assert len(stack_at(2.5 * np.arange(8), acquired=acquired).planes) == 8
        return
    refused = refusal(2.5 * np.arange(8), acquired=acquired)
    assert (refused.code, refused.repairs) == ("mixed_acquisitions", ())
    assert f"{len(set(groups))} acquisitions" in str(refused)


def test_mr_acquires_every_other_slice_first_and_ct_does_not(tmp_path):
    def damage(slices: list[Dataset]) -> None:
        for n, dataset in enumerate(slices):
            dataset.AcquisitionTime = f"12000{n % 2}"
            dataset.add_new("AcquisitionNumber", "LO", "ANON")  # which is no number

    mr = write_series(tmp_path / "mr", count=8, damage=damage, modality="MR")
    assert len(read(mr).stack.planes) == 8
    with pytest.raises(Refused, match="mixed_acquisitions: 2 acquisitions"):
        read(write_series(tmp_path / "ct", count=8, damage=damage))


# everything that is wrong, and what would help


def test_all_problems_are_named_at_once_with_the_repairs_that_mend_them():
    heights = np.array([0, 4, 8, 16, 20, 24.0])
    refused = refusal(heights, aside=0.3 * heights)
    assert "16.7 degrees" in str(refused) and "missing_slice: 1 gap of 8.0 mm" in str(refused)
    assert (refused.code, sorted(refused.repairs)) == ("gantry_tilt", ["gaps", "tilt"])
    refused = refusal(heights, aside=0.3 * heights, tilt=True)
    assert (refused.code, refused.repairs) == ("missing_slice", ("gaps",))
    refused = refusal(heights, aside=0.3 * heights, gaps=True)
    assert (refused.code, refused.repairs) == ("gantry_tilt", ("tilt",))


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("lacking", [4, 161])
def test_no_repair_is_named_for_a_gap_that_is_too_wide(gaps, lacking):
    refused = refusal([*range(8), *range(8 + lacking, 16 + lacking)], gaps=gaps)
    assert (refused.code, refused.repairs) == ("missing_slice", ())
    assert "nothing is interpolated" in str(refused)


def test_no_repair_is_named_where_it_would_not_suffice():
    refused = refusal([0, 4, 8, 16, 20, 24], aside=[0, 0, 9, 0, 0, 0])
    assert (refused.code, refused.repairs) == ("shifted_slice", ())
    assert "missing_slice" in str(refused)


REFUSALS = [  # of the third slice
    ("mixed_orientation", {"ImageOrientationPatient": [1, 0, 0, 0, 0.995, 0.0998]}, "differ"),
    ("mixed_frame_of_reference", {"FrameOfReferenceUID": "1.2"}, "2 FrameOfReferenceUIDs"),
    ("same_position", {"ImagePositionPatient": [-10, -20, 32.5]}, "2 slices"),
    ("shifted_slice", {"ImagePositionPatient": [30, -20, 35]}, "32.0 mm"),
    ("no_geometry", {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "at right angles"),
    ("no_geometry", {"PixelSpacing": [0.8, -0.5]}, "no usable PixelSpacing"),
    ("no_rescale", {"RescaleSlope": 0}, "RescaleSlope"),
    ("no_rescale", {"RescaleIntercept": 12345678}, "RescaleIntercept"),
]


@pytest.mark.parametrize(("code", "values", "sentence"), REFUSALS)
def test_a_series_with_a_fault_is_refused_with_its_reason(tmp_path, code, values, sentence):
    write_series(tmp_path, damage=lambda slices: put(**values)(slices[2:3]))
    with pytest.raises(Refused, match=sentence) as refused:
        read(tmp_path)
    assert refused.value.code == code


def test_attributes_of_a_frame_precede_shared_ones_and_those_the_file():
    def measured(**values: Any) -> Dataset:
        return item(PixelMeasuresSequence=[item(**values)])

    dataset = item(NumberOfFrames=3, PixelSpacing=[9, 9], Rows=2, Columns=2)
    put(ImagePositionPatient=[0, 0, 0], ImageOrientationPatient=list(AXIAL))([dataset])
    number = item(FrameContentSequence=[item(FrameAcquisitionNumber=4)])
    frames = [measured(PixelSpacing=[1, 2]), number, measured(SliceThickness=5)]
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.SharedFunctionalGroupsSequence = [measured(PixelSpacing=[3, 4])]
    planes = planes_of(dataset, Path("x.dcm"))
    assert [plane.spacing_mm for plane in planes] == [(1, 2), (3, 4), (3, 4)]
    assert [plane.acquisitions[0] for plane in planes] == ["", "4", ""]
    del dataset.SharedFunctionalGroupsSequence
    assert planes_of(dataset, Path("x.dcm"))[1].spacing_mm == (9, 9)


# repairs, against an independent resampling


def test_uneven_slices_are_interpolated_as_scipy_does_and_a_mask_by_the_nearest(tmp_path):
    positions, stored = [(-10, -20, z) for z in UNEVEN_MM], random_pixels(7).transpose(2, 1, 0)
    write_series(tmp_path / "ct", pixels=random_pixels(7), positions=positions)
    with pytest.raises(Refused, match=r"uneven_gaps: gaps go from 1\.00 to 8\.00 mm"):
        read(tmp_path / "ct")
    scan = read(tmp_path / "ct", gaps=True)
    assert scan.stack.repairs == ("gaps of 1.00 to 8.00 mm, now 4.00 mm",)
    expected = interp1d(UNEVEN_MM, stored, axis=-1)(np.arange(0, 29, 4.0))
    np.testing.assert_allclose(scan.image.dataobj, expected, atol=0.5)  # HU are whole numbers
    np.testing.assert_allclose(scan.image.affine[2, 2:], [4, 0])
    write_series(tmp_path / "mask", pixels=random_pixels(7) > 0, positions=positions)
    (series,), _ = find(tmp_path / "mask")
    mask = read_mask_series(series.files, Repair(gaps=True), structures()).image
    np.testing.assert_allclose(mask.affine, scan.image.affine)
    nearest = [0, 1, 2, 3, 4, 4, 5, 6]  # for 0, 4, 8, 12, 16, 20, 24 and 28 mm
    np.testing.assert_array_equal(mask.dataobj, stored[..., nearest] > 0)


@pytest.mark.parametrize("rounding_mm", [0.0, 0.3])
def test_a_missing_slice_is_the_mean_of_its_neighbours_and_the_others_stay(tmp_path, rounding_mm):
    pixels = random_pixels(5)
    positions = [(0, 0, z) for z in (0, 5 + rounding_mm, 10, 20 - rounding_mm, 25)]
    image = read(write_series(tmp_path, pixels=pixels, positions=positions), gaps=True).image
    stored, regular = pixels.transpose(2, 1, 0), np.asarray(image.dataobj)
    np.testing.assert_array_equal(regular[..., [0, 1, 2, 4, 5]], stored)
    np.testing.assert_allclose(regular[..., 3], stored[..., 2:4].mean(axis=-1), atol=0.5)


@pytest.mark.parametrize("step", [(0.3, 0.9, 4.0), (0.0, -1.1, -4.0)])
def test_a_straightened_stack_is_what_simpleitk_resamples(tmp_path, step):
    step, pixels = np.array(step), random_pixels(6)
    positions = np.array([-10.0, -20.0, 30.0]) + np.outer(np.arange(6), step)
    scan = read(write_series(tmp_path, pixels=pixels, positions=positions), tilt=True)
    degrees = math.degrees(math.atan(math.hypot(*step[:2]) / 4))
    assert scan.stack.repairs == (f"tilt of {degrees:.1f} degrees",)
    turn = 1 if step[2] > 0 else -1
    first, per_mm = positions[::turn][0], step / step[2]
    moving = SimpleITK.GetImageFromArray(pixels[::turn].astype(np.float32))
    grid = SimpleITK.Image([int(n) for n in scan.image.shape], SimpleITK.sitkFloat32)
    for image, origin in ((moving, first), (grid, scan.image.affine[:3, 3] * [-1, -1, 1])):
        image.SetSpacing((0.5, 0.8, 4.0))
        image.SetOrigin(origin.tolist())
    shear = SimpleITK.AffineTransform(3)
    shear.SetMatrix([1, 0, -per_mm[0], 0, 1, -per_mm[1], 0, 0, 1])
    shear.SetTranslation((per_mm * first[2] * [1, 1, 0]).tolist())
    theirs = SimpleITK.Resample(moving, grid, shear, SimpleITK.sitkLinear, -1024.0)
    theirs = SimpleITK.GetArrayFromImage(theirs).T
    inside = np.zeros(theirs.shape, bool)
    inside[1:-1, 1:-1] = theirs[1:-1, 1:-1] != -1024
    for axis in (0, 1):  # borders may differ
        inside &= np.roll(inside, 1, axis) & np.roll(inside, -1, axis)
    assert inside.sum() > 100
    ours = np.asarray(scan.image.dataobj)
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=0.6)
    assert ours.min() == -1024


def test_tilt_and_gaps_are_repaired_together_and_a_regular_series_is_left_alone(tmp_path):
    positions = np.outer([0, 4, 8, 16, 20, 24.0], (0.1, 0.3, 1.0))
    scan = read(write_series(tmp_path / "a", positions=positions), gaps=True, tilt=True)
    assert (scan.image.shape[2], len(scan.stack.repairs)) == (7, 2)
    plain = read(write_series(tmp_path / "b")).image
    repaired = read(tmp_path / "b", gaps=True, tilt=True)
    assert repaired.stack.repairs == ()
    np.testing.assert_array_equal(plain.dataobj, repaired.image.dataobj)
