"""Series: found wherever their files lie, and read as HU in place as SimpleITK reads them."""

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset

from pancseg.dicom.series import (
    Repair,
    Series,
    find_series,
    read_mask_series,
    read_series,
    same_extent,
    series_extent,
)
from pancseg.errors import Refused
from pancseg.structures import LabelMap
from tests.tiny_dicom import AXIAL, find, put, read, write_series
from tests.tiny_labels import structures

OBLIQUE = (0.936293, 0.275096, -0.218351, -0.289629, 0.956425, -0.036957)
DIRECTIONS = {
    "head_first": AXIAL,
    "feet_first": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "prone": (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "feet_first_prone": (1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "oblique": OBLIQUE,
    "coronal": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
    "coronal_oblique": (math.cos(0.3), math.sin(0.3), 0.0, 0.0, 0.0, -1.0),
    "sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
}


def read_mask(folder: Path) -> LabelMap:
    (series,), _ = find(folder)
    return read_mask_series(series.files, Repair(), structures())


def read_with_simpleitk(folder: Path) -> nib.Nifti1Image:
    reader = SimpleITK.ImageSeriesReader()
    (uid,) = reader.GetGDCMSeriesIDs(str(folder))
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), uid))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    voxels = SimpleITK.GetArrayFromImage(image).T.astype(np.float32)
    return nib.Nifti1Image(voxels, np.diag([-1, -1, 1, 1]) @ affine)


def codes(series: list[Series]) -> list[tuple[str, str]]:
    """Folder and reason code of each series."""
    return [(each.folder.as_posix(), each.problem.partition(":")[0]) for each in series]


def code_on_reading(series: Series) -> str:
    with pytest.raises(Refused) as refused:
        read_series(series.files, Repair())
    return refused.value.code


# reading


def test_slices_are_ordered_by_position_never_by_name_or_instance_number(tmp_path: Path) -> None:
    names = ["3.dcm", "0.dcm", "2.dcm", "4.dcm", "1.dcm"]
    image = read(write_series(tmp_path, names=names)).image
    numbers = [pydicom.dcmread(tmp_path / name).InstanceNumber for name in names]
    assert numbers != sorted(numbers)
    assert np.asarray(image.dataobj)[0, 0].tolist() == [0, 100, 200, 300, 400]


def test_coronal_slices_are_ordered_along_their_normal_and_turned_upright(tmp_path: Path) -> None:
    image = read(write_series(tmp_path, size=(4, 3), orientation=DIRECTIONS["coronal"])).image
    assert image.shape == (3, 5, 4)  # columns, slices, rows
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    assert np.asarray(image.dataobj)[0, :, -1].tolist() == [0, 100, 200, 300, 400]
    assert np.asarray(image.dataobj)[0, 0].tolist() == [30, 20, 10, 0]


def test_axes_are_columns_rows_slices_and_the_corner_turns_from_lps_to_ras(tmp_path: Path) -> None:
    image = read(write_series(tmp_path, size=(4, 3))).image
    assert image.shape == (3, 4, 5)
    assert np.asarray(image.dataobj)[2, 1, 4] == 412
    expected = [[-0.5, 0, 0, 10], [0, -0.8, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1]]
    np.testing.assert_allclose(image.affine, expected)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_voxels_land_where_simpleitk_puts_them(tmp_path: Path, direction: str) -> None:
    write_series(tmp_path, orientation=DIRECTIONS[direction], pixel_spacing=(1.5, 0.7))
    image = read(tmp_path).image
    assert nib.aff2axcodes(image.affine)[2] == "S"
    ours, theirs = map(nib.as_closest_canonical, (image, read_with_simpleitk(tmp_path)))
    np.testing.assert_array_equal(ours.dataobj, theirs.dataobj)
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)


@pytest.mark.parametrize(
    ("slope", "intercept", "hu", "dtype"),
    [
        (1.0, -1024.0, [-1024, -924], "int16"),
        (2.0, 10.0, [10, 210], "int16"),
        (0.5, -3.0, [-3, 47], "int16"),
        (0.015, 0.0, [0, 1.5], "float32"),
        (600.0, 0.0, [0, 60000], "float32"),
        (20000.0, 0.0, [0, 2000000], "float32"),
        (-1.0, 7.0, [7, -93], "int16"),
    ],
)
def test_hu_are_stored_values_times_slope_plus_intercept(
    tmp_path: Path, slope: float, intercept: float, hu: list[float], dtype: str
) -> None:
    pixels = np.array([np.full((2, 2), 0), np.full((2, 2), 100), np.full((2, 2), 100)])
    write_series(tmp_path, pixels=pixels, slope=slope, intercept=intercept)
    image = read(tmp_path).image
    assert np.asarray(image.dataobj)[1, 1, :2].tolist() == hu
    assert image.get_data_dtype() == dtype


def test_each_slice_has_an_intercept_of_its_own(tmp_path: Path) -> None:
    write_series(tmp_path, pixels=np.zeros((3, 2, 2)), intercept=[-1024.0, -1000.5, 5.0])
    assert np.asarray(read(tmp_path).image.dataobj)[0, 0].tolist() == [-1024, -1000.5, 5]


def test_what_pydicom_logs_about_values_reaches_nobody(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def damage(slices: list[Dataset]) -> None:
        for dataset in slices:
            dataset.add_new("FrameOfReferenceUID", "LO", "SMITH_JOHN_1950")

    write_series(tmp_path, damage=damage)
    read(tmp_path)
    assert "SMITH" not in "".join(capfd.readouterr()) + caplog.text


def test_a_mask_is_1_wherever_a_value_is_not_0(tmp_path: Path) -> None:
    pixels = np.zeros((3, 2, 2))
    pixels[2, 0, 1] = 255
    mask = read_mask(write_series(tmp_path, pixels=pixels, modality="OT"))
    assert mask.image.get_data_dtype() == np.uint8
    assert np.argwhere(np.asarray(mask.image.dataobj)).tolist() == [[1, 0, 2]]


def test_a_mask_with_the_intercept_of_its_ct_is_refused(tmp_path: Path) -> None:
    pixels = np.zeros((3, 2, 2))
    pixels[2, 0, 1] = 1
    write_series(tmp_path, pixels=pixels, intercept=-1024.0)
    with pytest.raises(Refused, match="-1024"):
        read_mask(tmp_path)


@pytest.mark.parametrize(
    ("unit", "modality", "flags"),
    [
        ("MGML", "CT", ("rescale_type",)),  # an iodine map
        ("HU", "CT", ()),
        ("US", "CT", ()),
        ("", "CT", ()),
        ("normalized", "MR", ()),
    ],
)
def test_another_unit_than_hu_is_flagged(
    tmp_path: Path, unit: str, modality: str, flags: tuple[str, ...]
) -> None:
    write_series(tmp_path, modality=modality, damage=put(RescaleType=unit))
    assert read(tmp_path).flags == flags


def test_a_series_without_file_meta_is_read(tmp_path: Path) -> None:
    expected = read(write_series(tmp_path)).image
    for path in tmp_path.iterdir():
        dataset, bare = pydicom.dcmread(path), Dataset()
        bare.update(dataset)
        path.unlink()
        pydicom.dcmwrite(path, bare, implicit_vr=True, little_endian=True)
        assert path.read_bytes()[:2] == b"\x08\x00"
    np.testing.assert_array_equal(read(tmp_path).image.dataobj, expected.dataobj)


def test_a_series_without_class_frame_or_patient_is_read(tmp_path: Path) -> None:
    write_series(tmp_path, damage=put(FrameOfReferenceUID=None, PatientID=None))
    for path in tmp_path.iterdir():
        copy(path, path, SOPClassUID="")
    assert read(tmp_path).image.shape == (3, 4, 5)


@pytest.mark.skipif(os.name == "nt", reason="names are UTF-16 there")
def test_files_whose_names_are_not_utf8_are_a_series(tmp_path: Path) -> None:
    for path in write_series(tmp_path).iterdir():
        path.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xfc" + os.fsencode(path.name)))
    assert read(tmp_path).image.shape == (3, 4, 5)


def test_the_extent_of_a_grid_is_known_from_headers(tmp_path: Path) -> None:
    flipped = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    for name, values in {
        "a": {},
        "same": {"first": (-9, -20, 40), "orientation": flipped},  # 3 columns of 0.5 mm
        "higher": {"first": (-10, -20, 31)},
        "shifted": {"positions": [(0, 0, 0), (0, 0, 1), (0, 0, 9), (0, 9, 10)]},
    }.items():
        write_series(tmp_path / name, **values)  # type: ignore[arg-type]
    a, same, higher, shifted = (
        series_extent((tmp_path / name).iterdir()) for name in ("a", "same", "higher", "shifted")
    )
    np.testing.assert_allclose(a, [3, 4, 5, 9, 17.6, 30, 10, 20, 40])
    assert same_extent(a, same) and not same_extent(a, higher)
    assert shifted is None and not same_extent(shifted, shifted)


# finding


def test_several_series_of_a_folder_are_separated(tmp_path: Path) -> None:
    write_series(tmp_path, series_uid="1.2", names=list("abcde"))
    write_series(tmp_path, series_uid="1.3", names=list("vwxyz"))
    series, skipped = find(tmp_path)
    assert [each.uid for each in series] == ["1.2", "1.3"]
    assert ["".join(file.name for file in each.files) for each in series] == ["abcde", "vwxyz"]
    assert skipped == []


@pytest.mark.parametrize("other", [{"patient_id": "Q-2"}, {"modality": "MR"}])
def test_patients_and_modalities_are_separated_where_the_uid_was_removed(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    damage = put(SeriesInstanceUID="")
    write_series(tmp_path, damage=damage, names=list("abcde"))
    write_series(tmp_path, damage=damage, names=list("vwxyz"), **other)
    assert [(each.uid, len(each.files)) for each in find(tmp_path)[0]] == [("", 5), ("", 5)]


def test_nested_folders_are_named_from_the_root(tmp_path: Path) -> None:
    write_series(tmp_path / "site/p2/ct")
    write_series(tmp_path / "p1")
    assert codes(find(tmp_path)[0]) == [("p1", ""), ("site/p2/ct", "")]


def test_a_series_of_two_patients_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, damage=lambda slices: setattr(slices[0], "PatientID", "DOE"))
    (series,), _ = find(tmp_path)
    assert series.problem == "mixed_patient: slices carry 2 PatientIDs, expected one"


def test_skipped_objects_of_a_kind_are_one_row_and_foreign_files_one_each(tmp_path: Path) -> None:
    write_series(tmp_path / "p")
    write_series(tmp_path / "p", damage=put(ImageType=["SCOUT"]), names=list("vwxyz"))
    for name in ("LICENSE", "notes.txt", "text.dcm"):
        (tmp_path / name).write_text("not DICOM")
    _, skipped = find(tmp_path)
    assert sorted((s.path.name, s.status, s.reason.split(":")[0], s.slices) for s in skipped) == [
        ("LICENSE", "dropped", "not_dicom", 1),
        ("notes.txt", "dropped", "not_dicom", 1),
        ("text.dcm", "refused", "not_dicom", 1),
        ("v", "dropped", "localizer", 5),
    ]


def test_a_localizer_inside_a_series_is_left_out_of_it(tmp_path: Path) -> None:
    def damage(slices: list[Dataset]) -> None:
        slices[4].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        slices[4].ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    assert read(write_series(tmp_path, damage=damage)).image.shape == (3, 4, 4)


def test_headers_read_in_processes_are_the_same(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", series_uid="1.3")
    files = sorted(tmp_path.rglob("*.dcm"))
    from pancseg.dicom import series as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BATCH", 1)
        assert find_series(tmp_path, files, 2) == find_series(tmp_path, files, 0)


# damaged files and copies


@pytest.mark.parametrize("content", [b"", b"text", bytes(128) + b"DICM" + b"\1" * 40])
def test_a_damaged_file_beside_a_series_is_a_row_and_a_flag(tmp_path: Path, content: bytes) -> None:
    write_series(tmp_path / "p1")
    (tmp_path / "p1" / "x.dcm").write_bytes(content)
    write_series(tmp_path / "p2")
    series, skipped = find(tmp_path)
    assert [(each.problem, each.flags) for each in series] == [("", ("damaged_file",)), ("", ())]
    assert [(row.path.name, row.status) for row in skipped] == [("x.dcm", "refused")]


def test_a_damaged_slice_in_the_middle_of_a_series_is_missing(tmp_path: Path) -> None:
    files = sorted(write_series(tmp_path).iterdir(), key=height)
    files[2].write_bytes(files[2].read_bytes()[:200])
    (series,), _ = find(tmp_path)
    assert series.flags == ("damaged_file",)
    assert code_on_reading(series) == "missing_slice"


@pytest.mark.parametrize("place", ["a", "b"])
def test_a_damaged_file_that_names_its_series_refuses_it(tmp_path: Path, place: str) -> None:
    def damage(slices: list[Dataset]) -> None:
        del slices[4].Rows

    write_series(tmp_path / "a", series_uid="1.2", names=list("abcde"), damage=damage)
    write_series(tmp_path / "a", series_uid="1.3", names=list("vwxyz"))
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "e").rename(tmp_path / place / "e")
    series, _ = find(tmp_path)
    assert codes(series) == [("a", "damaged_slice"), ("a", "")]
    assert "e of the series cannot be read" in series[0].problem


def test_an_empty_file_of_another_kind_is_no_damaged_slice(tmp_path: Path) -> None:
    write_series(tmp_path)
    for name in (".complete", "READY", "privacy.key.lock"):
        (tmp_path / name).touch()
    (series,), skipped = find(tmp_path)
    assert series.flags == ()
    assert {row.reason for row in skipped} == {"empty_file: 0 bytes"}


def height(path: Path) -> float:
    return float(pydicom.dcmread(path).ImagePositionPatient[2])


def copy(path: Path, to: Path, **values: Any) -> None:
    dataset = pydicom.dcmread(path)
    put(**values)([dataset])
    dataset.save_as(to)


@pytest.mark.parametrize("values", [{}, {"SOPInstanceUID": "1.2.3"}, {"AccessionNumber": "7"}])
def test_copies_of_slices_count_once_and_are_flagged(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    expected = read(write_series(tmp_path)).image
    for path in list(tmp_path.iterdir())[1:4]:
        copy(path, path.with_name(f"{path.stem} (1).dcm"), **values)
    volume = read(tmp_path)
    assert volume.flags == ("duplicate_files",)
    np.testing.assert_array_equal(volume.image.dataobj, expected.dataobj)
    assert len({plane.file for plane in volume.stack.planes}) == 5


@pytest.mark.parametrize(
    "values", [{"PixelData": b"\1" * 24}, {"RescaleIntercept": -5}, {"RescaleSlope": 2}]
)
def test_copies_that_differ_are_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    path = sorted(write_series(tmp_path).iterdir())[2]
    copy(path, tmp_path / "copy.dcm", **values)
    (series,), _ = find(tmp_path)
    assert code_on_reading(series) == "same_position"


# one series in several folders


def split(folder: Path, parts: dict[str, slice], **options: Any) -> None:
    """Write a series of 8 slices into several folders."""
    whole = write_series(folder / "whole", count=8, **options)
    files = sorted(whole.iterdir(), key=height)
    for name, part in parts.items():
        (folder / name).mkdir()
        for file in files[part]:
            shutil.copy(file, folder / name / file.name)
    shutil.rmtree(whole)


@pytest.mark.parametrize(
    ("second", "flags"),
    [
        (slice(4, 8), ()),
        (slice(3, 8), ("duplicate_files",)),  # an instance in both
        (slice(0, 8), ("duplicate_files",)),
    ],
)
def test_a_series_in_two_folders_is_one(
    tmp_path: Path, second: slice, flags: tuple[str, ...]
) -> None:
    split(tmp_path, {"DIR1": slice(0, 4), "DIR2": second})
    volume = read(tmp_path)
    assert volume.image.shape == (3, 4, 8)
    assert volume.flags == flags
    assert np.asarray(volume.image.dataobj)[0, 0].tolist() == [100 * n for n in range(8)]


def test_a_series_whose_slices_alternate_between_folders_is_one(tmp_path: Path) -> None:
    split(tmp_path, {"s1": slice(0, 8, 2), "s2": slice(1, 8, 2)})
    assert read(tmp_path).image.affine[2, 2] == 2.5


@pytest.mark.parametrize("lost", [1, 3])
def test_slices_lost_between_two_folders_are_missing(tmp_path: Path, lost: int) -> None:
    split(tmp_path, {"DIR1": slice(0, 3), "DIR2": slice(3 + lost, 8)})
    (series,), _ = find(tmp_path)
    assert code_on_reading(series) == "missing_slice"


def test_a_damaged_slice_in_the_second_folder_refuses_the_series(tmp_path: Path) -> None:
    split(tmp_path, {"a": slice(0, 4), "b": slice(4, 8)})
    cut = sorted((tmp_path / "b").iterdir())[0]
    cut.write_bytes(cut.read_bytes()[:-10])
    (series,), _ = find(tmp_path)
    assert code_on_reading(series) == "truncated"


def second(**options: Any) -> Callable[[Path], None]:
    """Write two series of the same UID, removed frame of reference and patient, that differ."""

    def write(folder: Path) -> None:
        alike = {"series_uid": "1.2.3", "patient_id": "", "damage": put(FrameOfReferenceUID=None)}
        write_series(folder / "p1", **alike)  # type: ignore[arg-type]
        write_series(folder / "p2", **alike | {"first": (-10, -20, 60)} | options)  # type: ignore[arg-type]

    return write


@pytest.mark.parametrize(
    "write",
    [
        second(orientation=DIRECTIONS["prone"]),
        second(pixel_spacing=(0.8, 0.6)),
        second(size=(4, 4)),
        second(damage=put(FrameOfReferenceUID="1.2.9")),
        second(first=(-10, -24, 60)),  # not on a line
        second(first=(-10, -20, 30), slope=2.0),  # other instances at the same positions
        second(first=(-10, -20, 31)),  # two regular stacks that are none together
        second(patient_id="other"),
    ],
)
def test_series_to_which_an_anonymiser_gave_one_uid_stay_separate(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    write(tmp_path)
    series, _ = find(tmp_path)
    assert codes(series) == [("p1", ""), ("p2", "")]
    assert all(read_series(each.files, Repair()).flags == () for each in series)


def test_phases_in_two_folders_stay_separate(tmp_path: Path) -> None:
    split(tmp_path, {"p1": slice(0, 8, 2), "p2": slice(1, 8, 2)})
    for n in (1, 2):
        for path in (tmp_path / f"p{n}").iterdir():
            copy(path, path, AcquisitionNumber=n)
    series, _ = find(tmp_path)
    assert [read_series(each.files, Repair()).image.affine[2, 2] for each in series] == [5, 5]


def test_series_without_uid_stay_in_their_folders(tmp_path: Path) -> None:
    split(tmp_path, {"a": slice(0, 4), "b": slice(4, 8)}, damage=put(SeriesInstanceUID=""))
    assert codes(find(tmp_path)[0]) == [("a", ""), ("b", "")]


# real scans


REAL = {
    "series/dicom2nifti/gantry_tilt": "gantry_tilt: slices are stacked at 14.0 degrees",
    "series/dicom2nifti/missing_slice": "missing_slice: 1 gap of 10.0 mm at slice 3",
    "series/dicom2nifti/one_position": "same_position: 4 slices or more",
    "series/dicom2nifti/too_few": "too_few_slices: 2 slices",
    "abdomen/ct_dicom": "",
    "series/torchio": "",
    "seg/ct": "",
    "seg/single_and_multiframe/image": "",
}


@pytest.mark.parametrize("name", REAL)
def test_real_series_are_read_as_simpleitk_reads_them_or_refused(
    shared_data: Path, name: str
) -> None:
    if REAL[name]:
        with pytest.raises(Refused, match=REAL[name]):
            read(shared_data / name)
        return
    ours, theirs = read(shared_data / name).image, read_with_simpleitk(shared_data / name)
    ours, theirs = map(nib.as_closest_canonical, (ours, theirs))
    np.testing.assert_array_equal(ours.dataobj, theirs.dataobj)
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-3)
