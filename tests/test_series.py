"""DICOM series: found, ordered by position, read as HU in place, or refused with a reason."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset

from pancseg.errors import Refused
from pancseg.intake.dicom.finding import find_series
from pancseg.intake.dicom.planes import levels_of, look_up
from pancseg.intake.dicom.series import read_ct, read_mask_series
from pancseg.intake.dicom.stack import Repair
from pancseg.intake.found import Reading, Scan
from tests.tiny_dicom import AXIAL, write_series
from tests.tiny_labels import item

Volume = nib.Nifti1Image
NO_SCAN = Scan(nib.Nifti1Image(np.zeros((1, 1, 1)), np.eye(4)))
TILTED = (math.cos(0.3), math.sin(0.3), 0.0, 0.0, 0.0, -1.0)  # coronal, turned about the long axis
OBLIQUE = (0.936293, 0.275096, -0.218351, -0.289629, 0.956425, -0.036957)
DIRECTIONS = {
    "head_first": AXIAL,
    "feet_first": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "prone": (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "feet_first_prone": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "oblique": OBLIQUE,
    "coronal": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
    "coronal_oblique": TILTED,
    "sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
}


def read_folder(folder: Path, **repair: bool) -> Volume:
    (series,), _ = find_series(folder)
    return read_ct(series.files, Reading(repair=Repair(**repair))).image


def read_mask(folder: Path) -> Volume:
    (series,), _ = find_series(folder)
    return read_mask_series(series.files, Reading(), NO_SCAN).image


def read_with_simpleitk(folder: Path) -> Volume:
    reader = SimpleITK.ImageSeriesReader()
    (uid,) = reader.GetGDCMSeriesIDs(str(folder))
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), uid))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    voxels = SimpleITK.GetArrayFromImage(image).T.astype(np.float32)
    return Volume(voxels, np.diag([-1, -1, 1, 1]) @ affine)


def assert_same_place_and_values(ours: Volume, theirs: Volume) -> None:
    ours, theirs = nib.as_closest_canonical(ours), nib.as_closest_canonical(theirs)
    np.testing.assert_array_equal(ours.dataobj, theirs.dataobj)
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)


def test_slices_are_ordered_by_position_never_by_name_or_instance_number(tmp_path: Path) -> None:
    names = ["3.dcm", "0.dcm", "2.dcm", "4.dcm", "1.dcm"]
    image = read_folder(write_series(tmp_path, names=names))
    numbers = [pydicom.dcmread(tmp_path / name).InstanceNumber for name in names]
    assert numbers != sorted(numbers)
    assert np.asarray(image.dataobj)[0, 0].tolist() == [0, 100, 200, 300, 400]


def test_coronal_slices_are_ordered_along_their_normal_and_turned_upright(tmp_path: Path) -> None:
    image = read_folder(write_series(tmp_path, size=(4, 3), orientation=DIRECTIONS["coronal"]))
    assert image.shape == (3, 5, 4)  # columns, slices, rows
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    assert np.asarray(image.dataobj)[0, :, -1].tolist() == [0, 100, 200, 300, 400]
    assert np.asarray(image.dataobj)[0, 0].tolist() == [30, 20, 10, 0]


def test_axes_are_columns_rows_slices_and_the_corner_turns_from_lps_to_ras(tmp_path: Path) -> None:
    image = read_folder(write_series(tmp_path, size=(4, 3)))
    assert image.shape == (3, 4, 5)
    assert np.asarray(image.dataobj)[2, 1, 4] == 412
    expected = [[-0.5, 0, 0, 10], [0, -0.8, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1]]
    np.testing.assert_allclose(image.affine, expected)


@pytest.mark.parametrize(
    ("slope", "intercept", "hu"),
    [(1.0, -1024.0, [-1024, -924]), (2.0, 10.0, [10, 210]), (0.5, -3.0, [-3, 47])],
)
def test_hu_are_stored_values_times_slope_plus_intercept(
    tmp_path: Path, slope: float, intercept: float, hu: list[int]
) -> None:
    pixels = np.array([np.full((2, 2), 0), np.full((2, 2), 100), np.full((2, 2), 100)])
    write_series(tmp_path, pixels=pixels, slope=slope, intercept=intercept)
    image = read_folder(tmp_path)
    assert np.asarray(image.dataobj)[1, 1, :2].tolist() == hu
    assert image.get_data_dtype() == np.int16


def test_each_slice_has_an_intercept_of_its_own(tmp_path: Path) -> None:
    write_series(tmp_path, pixels=np.zeros((3, 2, 2)), intercept=[-1024.0, -1000.0, 5.0])
    assert np.asarray(read_folder(tmp_path).dataobj)[0, 0].tolist() == [-1024, -1000, 5]


def test_hu_that_are_not_whole_stay_float32(tmp_path: Path) -> None:
    image = read_folder(write_series(tmp_path, pixels=np.full((3, 2, 2), 3), slope=0.5))
    assert image.get_data_dtype() == np.float32
    assert np.unique(image.dataobj).tolist() == [1.5]


def test_hu_beyond_int16_stay_float32(tmp_path: Path) -> None:
    image = read_folder(write_series(tmp_path, pixels=np.full((3, 2, 2), 30000), slope=2.0))
    assert image.get_data_dtype() == np.float32
    assert np.unique(image.dataobj).tolist() == [60000]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_voxels_land_where_simpleitk_puts_them(tmp_path: Path, direction: str) -> None:
    write_series(tmp_path, orientation=DIRECTIONS[direction], pixel_spacing=(1.5, 0.7))
    assert_same_place_and_values(read_folder(tmp_path), read_with_simpleitk(tmp_path))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_last_axis_runs_from_feet_to_head(tmp_path: Path, direction: str) -> None:
    image = read_folder(write_series(tmp_path, orientation=DIRECTIONS[direction]))
    assert nib.aff2axcodes(image.affine)[2] == "S"


def test_directions_rounded_to_three_digits_are_read(tmp_path: Path) -> None:
    rounded = tuple(round(value, 3) for value in OBLIQUE)
    image = read_folder(write_series(tmp_path, orientation=rounded))
    np.testing.assert_allclose(nib.affines.voxel_sizes(image.affine), [0.5, 0.8, 2.5], rtol=2e-3)


def test_positions_that_rounding_moved_are_one_stack(tmp_path: Path) -> None:
    heights = np.arange(9) * 1.25 + [0, 0.01, 0, -0.01, 0, 0.01, 0, -0.01, 0]
    image = read_folder(write_series(tmp_path, positions=[(0, 0, z) for z in heights]))
    assert nib.affines.voxel_sizes(image.affine)[2] == pytest.approx(1.25)


def test_gaps_that_add_up_to_another_place_are_uneven(tmp_path: Path) -> None:
    heights = np.cumsum([0.0, *[5.04] * 60, *[4.96] * 60])  # 2.4 mm off in the middle
    with pytest.raises(Refused) as refused:
        read_folder(write_series(tmp_path, positions=[(0, 0, z) for z in heights]))
    assert refused.value.code == "uneven_gaps"


def test_gaps_that_are_rounded_to_and_fro_are_one_spacing(tmp_path: Path) -> None:
    heights = np.cumsum([0.0, *[5.04] * 5, *[4.96] * 5])  # 0.2 mm off in the middle
    image = read_folder(write_series(tmp_path, positions=[(0, 0, z) for z in heights]))
    assert nib.affines.voxel_sizes(image.affine)[2] == pytest.approx(5)


@pytest.mark.parametrize(("count", "is_refused"), [(120, True), (8, False)])
def test_a_small_tilt_is_refused_where_it_moves_the_last_slice(
    tmp_path: Path, count: int, is_refused: bool
) -> None:
    aside_mm = 5 * math.tan(math.radians(0.4))
    positions = [(0, n * aside_mm, 5.0 * n) for n in range(count)]
    write_series(tmp_path, positions=positions)
    if not is_refused:
        assert read_folder(tmp_path).shape[2] == count
        return
    with pytest.raises(Refused, match=r"0\.4 degrees") as refused:
        read_folder(tmp_path)
    assert refused.value.code == "gantry_tilt"


def test_two_stacks_side_by_side_are_no_copies(tmp_path: Path) -> None:
    positions = [(x, 0, z) for x in (0, 50) for z in (0, 5, 10)]
    with pytest.raises(Refused) as refused:
        read_folder(write_series(tmp_path, positions=positions, pixels=np.zeros((6, 4, 3))))
    assert refused.value.code == "same_position"


def test_what_pydicom_thinks_of_values_reaches_nobody(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def damage(slices: list[Dataset]) -> None:
        for one in slices:
            one.add_new("FrameOfReferenceUID", "LO", "SMITH_JOHN_1950")

    write_series(tmp_path, damage=damage)
    read_folder(tmp_path)
    assert "SMITH" not in "".join(capfd.readouterr()) + caplog.text


def test_a_mask_is_1_wherever_a_value_is_not_0(tmp_path: Path) -> None:
    pixels = np.zeros((3, 2, 2))
    pixels[2, 0, 1] = 255
    mask = read_mask(write_series(tmp_path, pixels=pixels, modality="OT"))
    assert mask.get_data_dtype() == np.uint8
    assert np.argwhere(np.asarray(mask.dataobj)).tolist() == [[1, 0, 2]]


def test_a_mask_with_the_intercept_of_its_ct_is_not_taken_for_all_foreground(
    tmp_path: Path,
) -> None:
    pixels = np.zeros((3, 2, 2))
    pixels[2, 0, 1] = 1
    write_series(tmp_path, pixels=pixels, intercept=-1024.0)
    with pytest.raises(Refused, match="-1024"):
        read_mask(tmp_path)


def remove(slices: list[Dataset]) -> None:
    del slices[2]


def give(keyword: str, value: Any) -> Callable[[list[Dataset]], None]:
    """Put a value into the third slice."""
    return lambda slices: setattr(slices[2], keyword, value)


def lack(keyword: str) -> Callable[[list[Dataset]], None]:
    """Take an attribute out of the third slice."""
    return lambda slices: delattr(slices[2], keyword)


def narrow(slices: list[Dataset]) -> None:
    slices[2].Columns, slices[2].PixelData = 2, slices[2].PixelData[:16]


def lean(slices: list[Dataset]) -> None:
    for n, one in enumerate(slices):
        one.ImagePositionPatient = [0, 2.5 * n * math.tan(math.radians(12)), 2.5 * n]


REFUSALS = [
    ("mixed_size", narrow, r"\(4, 2\), \(4, 3\)"),
    ("mixed_spacing", give("PixelSpacing", [0.8, 0.6]), r"\[0.8, 0.5\] to \[0.8, 0.6\]"),
    ("mixed_orientation", give("ImageOrientationPatient", [1, 0, 0, 0, 0.995, 0.0998]), "0.0998"),
    ("same_position", give("ImagePositionPatient", [-10, -20, 32.5]), "2 slices"),
    ("shifted_slice", give("ImagePositionPatient", [30, -20, 35]), "40.0 mm"),
    ("missing_slice", remove, r"1 gap of 5\.0 mm at slice 2, spacing is 2\.5 mm"),
    ("uneven_gaps", give("ImagePositionPatient", [-10, -20, 35.5]), r"from 2\.00 to 3\.00 mm"),
    ("gantry_tilt", lean, r"12\.0 degrees"),
    ("no_geometry", lack("ImagePositionPatient"), "no usable ImagePositionPatient"),
    ("no_geometry", lack("ImageOrientationPatient"), "no usable ImageOrientationPatient"),
    ("no_geometry", lack("PixelSpacing"), "no usable PixelSpacing"),
    ("no_geometry", give("ImagePositionPatient", None), "no usable ImagePositionPatient"),
    ("no_geometry", give("PixelSpacing", 0.8), "no usable PixelSpacing"),
    ("no_geometry", give("PixelSpacing", [0.8]), "no usable PixelSpacing"),
    ("no_pixels", lack("PixelData"), "no pixel data"),
]


@pytest.mark.parametrize(
    ("code", "damage", "sentence"), REFUSALS, ids=lambda value: "" if callable(value) else value
)
def test_a_series_with_one_fault_is_refused_with_its_reason(
    tmp_path: Path, code: str, damage: Callable[[list[Dataset]], None], sentence: str
) -> None:
    names = [f"{n}.dcm" for n in range(4 if damage is remove else 5)]
    write_series(tmp_path, damage=damage, names=names)
    with pytest.raises(Refused, match=sentence) as refused:
        read_folder(tmp_path)
    assert refused.value.code == code


def test_the_series_that_the_faults_are_made_in_is_good(tmp_path: Path) -> None:
    assert read_folder(write_series(tmp_path)).shape == (3, 4, 5)


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_slices_are_too_few(tmp_path: Path, count: int) -> None:
    with pytest.raises(Refused, match=f"{count} slices, expected at least 3") as refused:
        read_folder(write_series(tmp_path, count=count))
    assert refused.value.code == "too_few_slices"


@pytest.mark.parametrize("spacing", [[0, 0], [0.8, -0.5]])
def test_pixels_without_a_size_are_no_geometry(tmp_path: Path, spacing: list[float]) -> None:
    def damage(slices: list[Dataset]) -> None:
        for one in slices:
            one.PixelSpacing = spacing

    with pytest.raises(Refused) as refused:
        read_folder(write_series(tmp_path, damage=damage))
    assert refused.value.code == "no_geometry"


def test_an_empty_slope_and_intercept_count_as_1_and_0(tmp_path: Path) -> None:
    def damage(slices: list[Dataset]) -> None:
        for one in slices:
            one.RescaleSlope = one.RescaleIntercept = None

    image = read_folder(write_series(tmp_path, damage=damage))
    assert np.asarray(image.dataobj)[0, 0].tolist() == [0, 100, 200, 300, 400]


def test_several_series_in_one_folder_are_told_apart(tmp_path: Path) -> None:
    write_series(tmp_path, series_uid="1.2", names=list("abcde"))
    write_series(tmp_path, series_uid="1.3", names=list("vwxyz"))
    series, strays = find_series(tmp_path)
    assert [one.uid for one in series] == ["1.2", "1.3"]
    assert [sorted(file.name for file in one.files) for one in series] == [
        list("abcde"),
        list("vwxyz"),
    ]
    assert strays == []


@pytest.mark.parametrize("other", [{"patient_id": "Q-2"}, {"modality": "MR"}])
def test_two_patients_or_modalities_are_told_apart_where_an_anonymiser_emptied_the_uid(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    def damage(slices: list[Dataset]) -> None:
        for one in slices:
            one.SeriesInstanceUID = ""

    write_series(tmp_path, damage=damage, names=list("abcde"))
    write_series(tmp_path, damage=damage, names=list("vwxyz"), **other)
    series, _ = find_series(tmp_path)
    assert [(one.uid, len(one.files)) for one in series] == [("", 5), ("", 5)]


def test_nested_folders_are_searched_and_named_from_the_root(tmp_path: Path) -> None:
    write_series(tmp_path / "site/p2/ct", patient_id=" P-2 ")
    write_series(tmp_path / "p1", patient_id="")
    series, _ = find_series(tmp_path)
    assert [one.folder.as_posix() for one in series] == ["p1", "site/p2/ct"]
    assert [one.patient_id for one in series] == ["", "P-2"]


def test_files_that_are_not_dicom_are_told_from_damaged_ones(tmp_path: Path) -> None:
    write_series(tmp_path / "p1")
    for name in ("LICENSE", "p1/notes.txt", "p1/.DS_Store", "empty", "text.dcm"):
        (tmp_path / name).write_text("not DICOM" if name != "empty" else "")
    series, strays = find_series(tmp_path)
    told = {one.path.relative_to(tmp_path).as_posix(): (one.status, one.reason) for one in strays}
    foreign = ("dropped", "not_dicom: not a DICOM file")
    assert told == {
        "LICENSE": foreign,
        "p1/.DS_Store": foreign,
        "p1/notes.txt": foreign,
        "empty": ("dropped", "empty_file: 0 bytes"),
        "text.dcm": ("refused", "not_dicom: named .dcm, but no DICOM file"),
    }
    assert [len(one.files) for one in series] == [5]


@pytest.mark.filterwarnings("ignore:Invalid value for VR")  # a UID cut in the middle
def test_a_file_cut_short_anywhere_never_stops_the_search(tmp_path: Path) -> None:
    whole = write_series(tmp_path / "whole", count=2, names=["a", "b"]) / "a"
    content = whole.read_bytes()
    (tmp_path / "cut").mkdir()
    for length in range(0, len(content), 7):
        (tmp_path / "cut" / f"{length:04}").write_bytes(content[:length])
    series, strays = find_series(tmp_path / "cut")
    files = [file for one in series for file in one.files]
    told = sum(one.slices or 1 for one in strays)
    assert len(files) + told == len(range(0, len(content), 7))


def test_what_a_frame_says_of_itself_goes_before_what_all_share_and_that_before_the_file() -> None:
    def measured(*spacing_mm: float) -> Dataset:
        return item(PixelMeasuresSequence=[item(PixelSpacing=list(spacing_mm))])

    one = item(NumberOfFrames=2, PixelSpacing=[9, 9])
    one.PerFrameFunctionalGroupsSequence = [measured(1, 2), Dataset()]
    one.SharedFunctionalGroupsSequence = [measured(3, 4)]
    found = [look_up(levels, "PixelSpacing") for levels in levels_of(one, Path("x.dcm"))]
    assert found == [[1, 2], [3, 4]]
    one.PerFrameFunctionalGroupsSequence[0] = item(PixelMeasuresSequence=[item(SliceThickness=5)])
    assert look_up(levels_of(one, Path("x.dcm"))[0], "PixelSpacing") == [3, 4]
    one.SharedFunctionalGroupsSequence = [Dataset()]
    assert look_up(levels_of(one, Path("x.dcm"))[1], "PixelSpacing") == [9, 9]
