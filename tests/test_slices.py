"""Slices: ordered by position, fitted to a regular grid, repaired or refused with every reason."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from pydicom.dataset import Dataset
from scipy.interpolate import interp1d

from pancseg.dicom.pixels import SlicePlane, find_value, functional_groups, planes_of
from pancseg.dicom.series import Repair, SliceStack, build_stack, read_mask_series
from pancseg.errors import Refused
from tests.tiny_dicom import AXIAL, find, put, read, write_series
from tests.tiny_labels import structures

OBLIQUE = (0.936293, 0.275096, -0.218351, -0.289629, 0.956425, -0.036957)
UNEVEN_MM = [0.0, 4.0, 11.0, 12.0, 16.0, 24.0, 28.0]  # gaps of 4, 7, 1, 4, 8 and 4 mm


def stack_at(
    heights_mm: Any,
    *,
    aside: Any = 0.0,
    repair: Repair = Repair(),  # noqa: B008
    **values: Any,
) -> SliceStack:
    """A stack of axial slices; each value is of all slices or a list."""
    count = len(heights_mm)
    sides = np.broadcast_to(aside, count)
    lists = {key: v if isinstance(v, list) else [v] * count for key, v in values.items()}
    planes = [
        SlicePlane(
            *(Path(f"{n}.dcm"), 0, 4, 3, (0.0, float(sides[n]), float(heights_mm[n])), AXIAL),
            *((0.8, 0.5), 1.0, 0.0, ""),
            **{key: each[n] for key, each in lists.items()},
        )
        for n in range(count)
    ]
    return build_stack(planes, repair)


def refusal(heights_mm: Any, **options: Any) -> Refused:
    with pytest.raises(Refused) as refused:
        stack_at(heights_mm, **options)
    return refused.value


def random_pixels(count: int, rows: int = 9, columns: int = 7) -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1000, (count, rows, columns))


# the regular grid


@pytest.mark.parametrize("step_mm", [1.25, 0.75, 2.5])
@pytest.mark.parametrize("first_mm", [-60.0, 17.3])
def test_positions_rounded_to_a_tenth_of_a_millimetre_are_a_regular_grid(
    step_mm: float, first_mm: float
) -> None:
    exact = first_mm + step_mm * np.arange(40)
    stack = stack_at(np.floor(exact * 10 + 0.5) / 10)
    assert stack.step_mm == pytest.approx(step_mm, abs=0.005)
    grid = stack.corner_mm[2] + stack.step_mm * np.arange(40)
    assert np.abs(grid - exact).max() < 0.05


@pytest.mark.parametrize(("off_steps", "code"), [(0.09, ""), (0.14, "uneven_gaps")])
def test_a_slice_may_lie_a_tenth_of_a_step_from_the_grid(off_steps: float, code: str) -> None:
    heights = 2.0 * np.arange(30)
    heights[14] += 2.0 * off_steps
    if code:
        assert refusal(heights).code == code
    else:
        assert stack_at(heights).step_mm == pytest.approx(2.0, abs=1e-3)


def test_a_drift_of_small_gaps_is_uneven() -> None:
    drift = np.cumsum([0.0, *[5.04] * 60, *[4.96] * 60])  # 2.4 mm off in the middle
    assert refusal(drift).code == "uneven_gaps"
    assert stack_at(np.cumsum([0.0, *[5.04] * 5, *[4.96] * 5])).step_mm == pytest.approx(5)


def test_the_origin_is_that_of_the_grid() -> None:
    stack = stack_at([0.1, 5.0, 10.0, 15.0, 19.9])  # fitted: 0.04, 5.02, 10.00, 14.98, 19.96
    assert stack.step_mm == pytest.approx(4.96)
    assert stack.corner_mm[2] == pytest.approx(0.08)
    assert stack.affine_at(stack.corner_mm)[2, 3] == pytest.approx(0.08)
    np.testing.assert_allclose(stack.offsets_mm, [0.02, 4.92, 9.92, 14.92, 19.82])


def test_exact_positions_give_an_exact_affine(tmp_path: Path) -> None:
    affine = read(write_series(tmp_path, count=7, gap_mm=0.625)).image.affine
    expected = [[-0.5, 0, 0, 10], [0, -0.8, 0, 20], [0, 0, 0.625, 30], [0, 0, 0, 1]]
    np.testing.assert_array_equal(affine, expected)


def test_a_missing_slice_and_its_place_are_named() -> None:
    refused = refusal([18.1, 23.1, 28.1, 38.1])
    assert str(refused) == "missing_slice: 1 gap of 10.0 mm at slice 3, spacing is 5.0 mm"
    assert "2 gaps, the first of 15.0 mm at slice 2" in str(refusal([0, 5, 20, 25, 35, 40]))


def test_fewer_than_three_slices_are_too_few() -> None:
    assert "2 slices, expected at least 3" in str(refusal([0, 5]))


def test_directions_rounded_to_three_digits_are_read(tmp_path: Path) -> None:
    rounded = tuple(round(value, 3) for value in OBLIQUE)
    image = read(write_series(tmp_path, orientation=rounded)).image
    np.testing.assert_allclose(nib.affines.voxel_sizes(image.affine), [0.5, 0.8, 2.5], rtol=2e-3)


# acquisitions


def acquired(key: str, groups: str) -> dict[str, Any]:
    texts = [group.strip(".") for group in groups]
    return {"acquisitions": [(text, "") if key == "number" else ("", text) for text in texts]}


@pytest.mark.parametrize("key", ["number", "time"])
@pytest.mark.parametrize(
    ("groups", "is_refused"),
    [
        ("12121212", True),  # two phases, the second half a step higher
        ("11212122", True),
        ("11112222", False),  # blocks that follow each other
        ("12345678", False),  # a slice each
        ("11121111", False),  # a single slice among others
        ("1.1.1.1.", False),  # unknown for half of them
        ("12311231", True),
    ],
)
def test_acquisitions_that_overlap_in_space_are_refused(
    key: str, groups: str, is_refused: bool
) -> None:
    values = acquired(key, groups)
    if not is_refused:
        assert len(stack_at(2.5 * np.arange(8), **values).planes) == 8
        return
    refused = refusal(2.5 * np.arange(8), **values)
    assert refused.code == "mixed_acquisitions"
    assert f"{len(set(groups))} acquisitions" in str(refused)
    assert "split the series" in str(refused)
    assert refused.repairs == ()


@pytest.mark.parametrize("keyword", ["AcquisitionNumber", "AcquisitionTime"])
def test_two_phases_in_one_series_are_refused_on_reading(tmp_path: Path, keyword: str) -> None:
    def damage(slices: list[Dataset]) -> None:
        for n, dataset in enumerate(slices):
            setattr(dataset, keyword, (1, 2)[n % 2] if "Number" in keyword else f"12000{n % 2}")

    write_series(tmp_path / "phases", count=8, damage=damage)
    with pytest.raises(Refused, match="mixed_acquisitions: 2 acquisitions"):
        read(tmp_path / "phases")
    if "Time" in keyword:  # MR acquires every other slice first
        write_series(tmp_path / "mr", count=8, damage=damage, modality="MR")
        assert len(read(tmp_path / "mr").stack.planes) == 8


def test_an_acquisition_number_that_is_no_number_does_not_matter(tmp_path: Path) -> None:
    def damage(slices: list[Dataset]) -> None:
        for dataset in slices:
            dataset.add_new("AcquisitionNumber", "LO", "ANON")

    assert len(read(write_series(tmp_path, damage=damage)).stack.planes) == 5


# everything that is wrong, and what would help


def test_all_problems_are_named_at_once_with_the_repairs_that_mend_them() -> None:
    heights, aside = np.array([0, 4, 8, 16, 20, 24.0]), np.array([0, 4, 8, 16, 20, 24.0]) * 0.3
    refused = refusal(heights, aside=aside)
    assert refused.code == "gantry_tilt"
    assert "16.7 degrees" in str(refused) and "missing_slice: 1 gap of 8.0 mm" in str(refused)
    assert sorted(refused.repairs) == ["gaps", "tilt"]
    refused = refusal(heights, aside=aside, repair=Repair(tilt=True))
    assert (refused.code, refused.repairs) == ("missing_slice", ("gaps",))
    refused = refusal(heights, aside=aside, repair=Repair(gaps=True))
    assert (refused.code, refused.repairs) == ("gantry_tilt", ("tilt",))


@pytest.mark.parametrize("repair", [Repair(), Repair(gaps=True)])
@pytest.mark.parametrize("lacking", [4, 161])
def test_no_repair_is_named_for_a_gap_that_is_too_wide(repair: Repair, lacking: int) -> None:
    refused = refusal([*range(8), *range(8 + lacking, 16 + lacking)], repair=repair)
    assert (refused.code, refused.repairs) == ("missing_slice", ())
    assert "above 4.5 spacings nothing is interpolated" in str(refused)


def test_no_repair_is_named_where_it_would_not_suffice() -> None:
    refused = refusal([0, 4, 8, 16, 20, 24], aside=[0, 0, 9, 0, 0, 0])
    assert refused.code == "shifted_slice"
    assert "missing_slice" in str(refused)
    assert refused.repairs == ()


def change(keyword: str, value: Any) -> Callable[[list[Dataset]], None]:
    """Set an attribute of the third slice; None removes it."""
    return lambda slices: put(**{keyword: value})(slices[2:3])


def narrow(slices: list[Dataset]) -> None:
    slices[2].Columns, slices[2].PixelData = 2, slices[2].PixelData[:16]


def lean(slices: list[Dataset]) -> None:
    for n, dataset in enumerate(slices):
        dataset.ImagePositionPatient = [0, 2.5 * n * math.tan(math.radians(12)), 2.5 * n]


REFUSALS = [
    ("mixed_size", narrow, "differ by up to 1"),
    ("mixed_spacing", change("PixelSpacing", [0.8, 0.6]), "differ by up to 0.1"),
    ("mixed_orientation", change("ImageOrientationPatient", [1, 0, 0, 0, 0.995, 0.0998]), "differ"),
    ("mixed_frame_of_reference", change("FrameOfReferenceUID", "1.2"), "2 FrameOfReferenceUIDs"),
    ("same_position", change("ImagePositionPatient", [-10, -20, 32.5]), "2 slices"),
    ("shifted_slice", change("ImagePositionPatient", [30, -20, 35]), "32.0 mm"),
    ("uneven_gaps", change("ImagePositionPatient", [-10, -20, 35.5]), r"from 2\.00 to 3\.00 mm"),
    ("gantry_tilt", lean, r"12\.0 degrees"),
    ("no_geometry", change("ImagePositionPatient", None), "no usable ImagePositionPatient"),
    ("no_geometry", change("ImageOrientationPatient", None), "no usable ImageOrientationPatient"),
    ("no_geometry", change("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), "at right angles"),
    ("no_geometry", change("ImagePositionPatient", [""]), "no usable ImagePositionPatient"),
    ("no_geometry", change("PixelSpacing", 0.8), "no usable PixelSpacing"),
    ("no_geometry", put(PixelSpacing=[0.8, -0.5]), "no usable PixelSpacing"),
    ("no_rescale", change("RescaleSlope", 0), "RescaleSlope"),
    ("no_rescale", change("RescaleIntercept", 12345678), "RescaleIntercept"),
]


@pytest.mark.parametrize(
    ("code", "damage", "sentence"), REFUSALS, ids=lambda value: "" if callable(value) else value
)
def test_a_series_with_a_fault_is_refused_with_its_reason(
    tmp_path: Path, code: str, damage: Callable[[list[Dataset]], None], sentence: str
) -> None:
    write_series(tmp_path, damage=damage)
    with pytest.raises(Refused, match=sentence) as refused:
        read(tmp_path)
    assert refused.value.code == code


@pytest.mark.parametrize(
    "keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"]
)
@pytest.mark.parametrize("value", ["DOE^JOHN", "12345678"])
def test_no_value_of_a_header_stands_in_a_reason(tmp_path: Path, keyword: str, value: str) -> None:
    def damage(slices: list[Dataset]) -> None:
        slices[1].add_new(keyword, "LO", value)

    write_series(tmp_path, damage=damage)
    with pytest.raises(Refused) as refused:
        read(tmp_path)
    assert value not in str(refused.value)


@pytest.mark.parametrize(("count", "is_refused"), [(120, True), (8, False)])
def test_a_small_tilt_is_refused_where_it_moves_the_last_slice(
    count: int, is_refused: bool
) -> None:
    heights = 5.0 * np.arange(count)
    aside = heights * math.tan(math.radians(0.4))
    if is_refused:
        assert "0.4 degrees" in str(refusal(heights, aside=aside))
    else:
        assert stack_at(heights, aside=aside).shape == (3, 4, 8)


def test_an_empty_slope_and_intercept_count_as_1_and_0(tmp_path: Path) -> None:
    write_series(tmp_path, damage=put(RescaleSlope="", RescaleIntercept=""))
    assert np.asarray(read(tmp_path).image.dataobj)[0, 0].tolist() == [0, 100, 200, 300, 400]


def test_attributes_of_a_frame_precede_shared_ones_and_those_the_file() -> None:
    def item(**values: Any) -> Dataset:
        dataset = Dataset()
        put(**values)([dataset])
        return dataset

    def measured(*spacing_mm: float) -> Dataset:
        return item(PixelMeasuresSequence=[item(PixelSpacing=list(spacing_mm))])

    dataset = item(NumberOfFrames=2, PixelSpacing=[9, 9])
    dataset.PerFrameFunctionalGroupsSequence = [measured(1, 2), Dataset()]
    dataset.SharedFunctionalGroupsSequence = [measured(3, 4)]
    found = [
        find_value(levels, "PixelSpacing") for levels in functional_groups(dataset, Path("x.dcm"))
    ]
    assert found == [[1, 2], [3, 4]]
    dataset.PerFrameFunctionalGroupsSequence[0] = item(
        PixelMeasuresSequence=[item(SliceThickness=5)]
    )
    assert find_value(functional_groups(dataset, Path("x.dcm"))[0], "PixelSpacing") == [3, 4]
    dataset.SharedFunctionalGroupsSequence = [Dataset()]
    assert find_value(functional_groups(dataset, Path("x.dcm"))[1], "PixelSpacing") == [9, 9]
    frame = item(FrameContentSequence=[item(FrameAcquisitionNumber=4)])
    (plane, *_) = planes_of(frames_with(frame), Path("x.dcm"))
    assert plane.acquisitions == ("4", "")


def frames_with(frame: Dataset) -> Dataset:
    dataset = Dataset()
    dataset.Rows = dataset.Columns = 2
    dataset.NumberOfFrames, dataset.PerFrameFunctionalGroupsSequence = 1, [frame]
    dataset.PixelSpacing, dataset.ImagePositionPatient = [1, 1], [0, 0, 0]
    dataset.ImageOrientationPatient = list(AXIAL)
    return dataset


# repairs, against an independent resampling


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    positions = [(-10, -20, z) for z in UNEVEN_MM]
    return write_series(tmp_path / "uneven", pixels=random_pixels(7), positions=positions)


def test_uneven_slices_are_interpolated_as_scipy_interpolates(uneven: Path) -> None:
    with pytest.raises(Refused, match=r"uneven_gaps: gaps go from 1\.00 to 8\.00 mm"):
        read(uneven)
    volume = read(uneven, gaps=True)
    assert volume.stack.repairs == ("gaps of 1.00 to 8.00 mm, now 4.00 mm",)
    assert volume.image.shape == (7, 9, 8)
    stored = random_pixels(7).transpose(2, 1, 0)
    expected = interp1d(UNEVEN_MM, stored, axis=-1)(np.arange(0, 29, 4.0))
    np.testing.assert_allclose(volume.image.dataobj, expected, atol=0.5)  # HU are whole numbers
    np.testing.assert_allclose(volume.image.affine[:3, 2], [0, 0, 4.0])
    assert volume.image.affine[2, 3] == 0


@pytest.mark.parametrize("rounding_mm", [0.0, 0.3])
def test_a_missing_slice_is_the_mean_of_its_neighbours_and_the_others_are_untouched(
    tmp_path: Path, rounding_mm: float
) -> None:
    pixels = random_pixels(5)
    positions = [(0, 0, z) for z in (0, 5 + rounding_mm, 10, 20 - rounding_mm, 25)]
    image = read(write_series(tmp_path, pixels=pixels, positions=positions), gaps=True).image
    stored, regular = pixels.transpose(2, 1, 0), np.asarray(image.dataobj)
    np.testing.assert_array_equal(regular[..., [0, 1, 2, 4, 5]], stored)
    np.testing.assert_allclose(regular[..., 3], stored[..., 2:4].mean(axis=-1), atol=0.5)


def test_a_mask_is_repaired_by_the_nearest_slice(uneven: Path, tmp_path: Path) -> None:
    drawn = random_pixels(7) > 0
    positions = [(-10, -20, z) for z in UNEVEN_MM]
    write_series(tmp_path / "mask", pixels=drawn.astype(int), positions=positions)
    (series,), _ = find(tmp_path / "mask")
    scan = read(uneven, gaps=True)
    mask = read_mask_series(series.files, Repair(gaps=True), structures())
    assert mask.image.shape == scan.image.shape
    np.testing.assert_allclose(mask.image.affine, scan.image.affine)
    nearest = [0, 1, 2, 3, 4, 4, 5, 6]  # for 0, 4, 8, 12, 16, 20, 24 and 28 mm
    np.testing.assert_array_equal(mask.image.dataobj, drawn.transpose(2, 1, 0)[..., nearest])


def tilted(folder: Path, step: tuple[float, float, float]) -> Path:
    positions = np.array([-10.0, -20.0, 30.0]) + np.outer(np.arange(6), step)
    return write_series(folder, pixels=random_pixels(6), positions=positions)


@pytest.mark.parametrize("step", [(0.3, 0.9, 4.0), (-0.7, -0.2, 4.0), (0.0, -1.1, -4.0)])
def test_a_straightened_stack_is_what_simpleitk_resamples(
    tmp_path: Path, step: tuple[float, float, float]
) -> None:
    volume = read(tilted(tmp_path, step), tilt=True)
    image, (repair,) = volume.image, volume.stack.repairs
    assert repair == f"tilt of {math.degrees(math.atan(math.hypot(*step[:2]) / 4)):.1f} degrees"
    per_mm = np.array(step) / step[2]
    first = np.array([-10.0, -20.0, 30.0]) + (np.array(step) * 5 if step[2] < 0 else 0)
    pixels = random_pixels(6)[:: 1 if step[2] > 0 else -1]
    moving = SimpleITK.GetImageFromArray(pixels.astype(np.float32))
    moving.SetSpacing((0.5, 0.8, 4.0))
    moving.SetOrigin(first.tolist())
    shear = np.eye(3)
    shear[:2, 2] = -per_mm[:2]
    transform = SimpleITK.AffineTransform(3)
    transform.SetMatrix(shear.ravel())
    transform.SetTranslation((per_mm * first[2] * [1, 1, 0]).tolist())
    grid = SimpleITK.Image([int(n) for n in image.shape], SimpleITK.sitkFloat32)
    grid.SetSpacing((0.5, 0.8, 4.0))
    grid.SetOrigin((np.diag([-1, -1, 1]) @ image.affine[:3, 3]).tolist())
    theirs = SimpleITK.Resample(moving, grid, transform, SimpleITK.sitkLinear, -1024.0)
    theirs = SimpleITK.GetArrayFromImage(theirs).T
    inside = np.zeros(image.shape, bool)
    inside[1:-1, 1:-1] = theirs[1:-1, 1:-1] != -1024
    inside &= np.roll(inside, 1, 0) & np.roll(inside, -1, 0)  # borders may differ
    inside &= np.roll(inside, 1, 1) & np.roll(inside, -1, 1)
    assert inside.sum() > 100
    np.testing.assert_allclose(np.asarray(image.dataobj)[inside], theirs[inside], atol=0.6)
    assert np.asarray(image.dataobj).min() == -1024


def test_every_voxel_of_a_straightened_stack_keeps_its_position(tmp_path: Path) -> None:
    pixels = np.full((6, 9, 7), -1000)
    pixels[4, 6, 3] = 1000
    positions = np.array([-10.0, -20.0, 30.0]) + np.outer(np.arange(6), (0.5, 1.6, 4.0))
    folder = write_series(tmp_path, pixels=pixels, positions=positions)  # whole pixels a slice
    image = read(folder, tilt=True).image
    (index,) = np.argwhere(np.asarray(image.dataobj) == 1000)
    expected_lps = positions[4] + [3 * 0.5, 6 * 0.8, 0]
    found = image.affine @ [*index, 1]
    np.testing.assert_allclose(found[:3], expected_lps * [-1, -1, 1], atol=1e-6)


def test_tilt_and_gaps_are_repaired_together(tmp_path: Path) -> None:
    positions = np.outer([0, 4, 8, 16, 20, 24.0], (0.1, 0.3, 1.0))
    volume = read(write_series(tmp_path, positions=positions), gaps=True, tilt=True)
    assert volume.image.shape[2] == 7
    assert len(volume.stack.repairs) == 2


def test_a_series_that_needs_no_repair_is_left_alone(tmp_path: Path) -> None:
    write_series(tmp_path, pixels=random_pixels(4))
    plain, repaired = read(tmp_path), read(tmp_path, gaps=True, tilt=True)
    np.testing.assert_array_equal(plain.image.dataobj, repaired.image.dataobj)
    np.testing.assert_array_equal(plain.image.affine, repaired.image.affine)
    assert repaired.stack.repairs == ()
