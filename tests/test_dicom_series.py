"""Series: found by headers wherever their files lie, and read as HU in place as SimpleITK does."""

import math
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage, SecondaryCaptureImageStorage

from pancseg.dicom.series import (
    Header,
    Repair,
    Series,
    read_header,
    read_mask_series,
    read_series,
    same_extent,
    series_extent,
)
from pancseg.errors import Refused
from tests.other_software import assert_same, by_simpleitk
from tests.tiny_dicom import AXIAL, find, put, read, write_series
from tests.tiny_labels import structures

FLIPPED, PRONE = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
DIRECTIONS = {
    "head_first": AXIAL,
    "feet_first": FLIPPED,
    "prone": PRONE,
    "oblique": (0.936293, 0.275096, -0.218351, -0.289629, 0.956425, -0.036957),
    "coronal": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
    "coronal_oblique": (math.cos(0.3), math.sin(0.3), 0.0, 0.0, 0.0, -1.0),
    "sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
    "on_the_right_side": (0.0, 1.0, 0.0, -1.0, 0.0, 0.0),
}


def header_of(folder: Path, **values: Any) -> Header:
    """Header of a slice with attributes changed, or removed by None."""
    (path,) = write_series(folder, count=1, damage=put(**values)).iterdir()
    return read_header(path)


def codes(series: list[Series]) -> list[tuple[str, str]]:
    """Folder and reason code of each series."""
    return [(each.folder.as_posix(), each.problem.partition(":")[0]) for each in series]


def code_on_reading(folder: Path) -> str:
    (series,), _ = find(folder)
    with pytest.raises(Refused) as refused:
        read_series(series.files, Repair())
    return refused.value.code


# headers


SECONDARY = {"SOPClassUID": SecondaryCaptureImageStorage, "ImagePositionPatient": None}
KINDS: list[tuple[dict[str, Any], str]] = [
    ({"ImageType": ["DERIVED", "SECONDARY", "REF_SURVIEW"], **SECONDARY}, "localizer"),
    (SECONDARY, "secondary_capture"),
    ({"SOPClassUID": BasicTextSRStorage, "Modality": "SR", "Rows": None}, "not_an_image"),
    ({"ImageType": ["ORIGINAL", "PRIMARY", "NOT_LOCALIZER"]}, ""),
    ({"Rows": None}, "unreadable"),
]


@pytest.mark.parametrize(("values", "code"), KINDS)
def test_objects_that_are_no_slices_are_distinguished_from_damaged_ones(tmp_path, values, code):
    header = header_of(tmp_path, **values)
    assert (header.problem.partition(":")[0], header.is_damaged) == (code, code == "unreadable")


MAKERS = {"Siemens Healthineers": "siemens", "GE MEDICAL SYSTEMS": "ge", "CANON_MEC": "canon"}
MAKERS |= {"TOSHIBA": "canon", "Imagenes SA": "other", "DOE^JOHN": "other", "": "unknown"}


def test_manufacturer_and_contrast_are_of_closed_lists(tmp_path):
    for n, (name, maker) in enumerate(MAKERS.items()):
        assert header_of(tmp_path / str(n), Manufacturer=name).manufacturer == maker
    for agent, contrast in (("Iohexol", "yes"), ("", "no")):
        assert header_of(tmp_path / contrast, ContrastBolusAgent=agent).contrast == contrast
    assert header_of(tmp_path / "none").contrast == "unknown"


# reading


def test_slices_are_ordered_by_position_and_the_corner_turns_from_lps_to_ras(tmp_path):
    names = ["3.dcm", "0.dcm", "2.dcm", "4.dcm", "1.dcm"]
    image = read(write_series(tmp_path, names=names)).image
    numbers = [pydicom.dcmread(tmp_path / name).InstanceNumber for name in names]
    assert numbers != sorted(numbers)
    assert np.asarray(image.dataobj)[2, 1].tolist() == [12, 112, 212, 312, 412]
    expected = [[-0.5, 0, 0, 10], [0, -0.8, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1]]
    np.testing.assert_allclose(image.affine, expected)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_voxels_land_where_simpleitk_puts_them(tmp_path, direction):
    write_series(tmp_path, orientation=DIRECTIONS[direction], pixel_spacing=(1.5, 0.7))
    image = read(tmp_path).image
    assert nib.aff2axcodes(image.affine)[2] == "S"
    assert_same(image, by_simpleitk(tmp_path))


SCALES: list[tuple[float, Any, list[float], str]] = [
    (1.0, -1024.0, [-1024, -924, -924], "int16"),
    (0.5, -3.0, [-3, 47, 47], "int16"),
    (0.015, 0.0, [0, 1.5, 1.5], "float32"),
    (600.0, 0.0, [0, 60000, 60000], "float32"),
    (-1.0, 7.0, [7, -93, -93], "int16"),
    (1.0, [-1024.0, -1000.5, 5.0], [-1024, -900.5, 105], "float32"),
]


@pytest.mark.parametrize(("slope", "intercept", "hu", "dtype"), SCALES)
def test_hu_are_stored_values_times_slope_plus_intercept_of_each_slice(
    tmp_path, slope, intercept, hu, dtype
):
    pixels = np.array([np.full((2, 2), value) for value in (0, 100, 100)])
    image = read(write_series(tmp_path, pixels=pixels, slope=slope, intercept=intercept)).image
    assert np.asarray(image.dataobj)[1, 1].tolist() == hu
    assert image.get_data_dtype() == dtype


@pytest.mark.parametrize("intercept", [0.0, -1024.0])
def test_a_mask_is_1_wherever_a_value_is_not_0_and_needs_background(tmp_path, intercept):
    pixels = np.zeros((3, 2, 2))
    pixels[2, 0, 1] = 255
    (series,), _ = find(write_series(tmp_path, pixels=pixels, modality="OT", intercept=intercept))
    if intercept:  # of its CT
        with pytest.raises(Refused, match="-1024"):
            read_mask_series(series.files, Repair(), structures())
        return
    mask = read_mask_series(series.files, Repair(), structures()).image
    assert mask.get_data_dtype() == np.uint8
    assert np.argwhere(np.asarray(mask.dataobj)).tolist() == [[1, 0, 2]]


def test_files_without_meta_class_frame_and_patient_under_any_name_are_read(tmp_path):
    write_series(tmp_path, damage=put(FrameOfReferenceUID=None, PatientID=None))
    for path in list(tmp_path.iterdir()):
        dataset, bare = pydicom.dcmread(path), Dataset()
        bare.update(dataset)
        bare.SOPClassUID = ""
        path.unlink()
        pydicom.dcmwrite(path, bare, implicit_vr=True, little_endian=True)
        assert path.read_bytes()[:2] == b"\x08\x00"
        if os.name != "nt":  # a name that is not UTF-8
            path.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xfc" + os.fsencode(path.name)))
    assert np.asarray(read(tmp_path).image.dataobj)[0, 0].tolist() == [0, 100, 200, 300, 400]


def test_the_extent_of_a_grid_is_known_from_headers(tmp_path):
    a = series_extent(write_series(tmp_path / "a").iterdir())
    flipped = write_series(tmp_path / "b", first=(-9, -20, 40), orientation=FLIPPED)  # 3 columns
    np.testing.assert_allclose(a, [3, 4, 5, 9, 17.6, 30, 10, 20, 40])
    assert same_extent(a, series_extent(flipped.iterdir()))
    assert not same_extent(a, series_extent(list(flipped.iterdir())[:3]))


# finding


def test_series_of_a_folder_are_separated_by_uid_and_where_it_was_removed_by_patient(tmp_path):
    write_series(tmp_path / "p1/ct", series_uid="1.2", names=list("abcde"))
    write_series(tmp_path / "p1/ct", series_uid="1.3", names=list("vwxyz"))
    for patient, names in (("P", "ABCDE"), ("Q", "VWXYZ")):
        options = {"patient_id": patient, "damage": put(SeriesInstanceUID="")}
        write_series(tmp_path / "p2", names=list(names), **options)
    series, skipped = find(tmp_path)
    files = ["".join(file.name for file in each.files) for each in series]
    assert files == ["abcde", "vwxyz", "ABCDE", "VWXYZ"]
    assert codes(series) == [("p1/ct", "")] * 2 + [("p2", "")] * 2
    assert skipped == []


def test_skipped_objects_of_a_kind_are_one_row_and_foreign_files_one_each(tmp_path):
    def localizers(slices: list[Dataset]) -> None:  # the last slice, turned
        slices[4].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        slices[4].ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    write_series(tmp_path / "p", damage=localizers, names=list("abcde"))
    write_series(tmp_path / "q", damage=put(ImageType=["SCOUT"]), names=list("vwxyz"))
    for name in ("LICENSE", "notes.txt", "text.dcm"):
        (tmp_path / name).write_text("not DICOM")
    (series,), skipped = find(tmp_path)
    assert read_series(series.files, Repair()).image.shape == (3, 4, 4)
    assert sorted((s.path.name, s.status, s.reason.split(":")[0], s.slices) for s in skipped) == [
        ("LICENSE", "dropped", "not_dicom", 1),
        ("e", "dropped", "localizer", 1),
        ("notes.txt", "dropped", "not_dicom", 1),
        ("text.dcm", "refused", "not_dicom", 1),
        ("v", "dropped", "localizer", 5),
    ]


# damaged files and copies


def height(path: Path) -> float:
    return float(pydicom.dcmread(path).ImagePositionPatient[2])


def test_a_damaged_file_that_names_its_series_refuses_it(tmp_path):
    def damage(slices: list[Dataset]) -> None:
        del slices[4].Rows

    write_series(tmp_path / "a", series_uid="1.2", names=list("abcde"), damage=damage)
    write_series(tmp_path / "a", series_uid="1.3", names=list("vwxyz"))
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "e").rename(tmp_path / "b" / "e")
    series, _ = find(tmp_path)
    assert codes(series) == [("a", "damaged_slice"), ("a", "")]


def copy(path: Path, to: Path, **values: Any) -> None:
    dataset = pydicom.dcmread(path)
    put(**values)([dataset])
    dataset.save_as(to)


@pytest.mark.parametrize("values", [{"PixelData": b"\1" * 24}, {"RescaleIntercept": -5}])
def test_copies_that_differ_are_refused(tmp_path, values):
    path = sorted(write_series(tmp_path).iterdir())[2]
    copy(path, tmp_path / "copy.dcm", **values)
    assert code_on_reading(tmp_path) == "same_position"


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
    ("first", "second", "flags"),
    [
        (slice(0, 4), slice(4, 8), ()),
        (slice(0, 4), slice(3, 8), ("duplicate_files",)),  # an instance in both
        (slice(0, 8, 2), slice(1, 8, 2), ()),
    ],
)
def test_a_series_in_two_folders_is_one(tmp_path, first, second, flags):
    split(tmp_path, {"DIR1": first, "DIR2": second})
    scan = read(tmp_path)
    assert scan.flags == flags
    assert np.asarray(scan.image.dataobj)[0, 0].tolist() == [100 * n for n in range(8)]


@pytest.mark.parametrize("lost", [1, 3])
def test_slices_lost_between_two_folders_are_missing(tmp_path, lost):
    split(tmp_path, {"DIR1": slice(0, 3), "DIR2": slice(3 + lost, 8)})
    assert code_on_reading(tmp_path) == "missing_slice"


OTHERS: list[dict[str, Any]] = [
    {"orientation": PRONE},
    {"pixel_spacing": (0.8, 0.6)},
    {"damage": put(FrameOfReferenceUID="1.2.9")},
    {"first": (-10, -24, 60)},  # not on a line
    {"first": (-10, -20, 30), "slope": 2.0},  # other instances at the same positions
    {"first": (-10, -20, 31)},  # two regular stacks that are none together
    {"patient_id": "other"},
]


@pytest.mark.parametrize("options", OTHERS)
def test_series_to_which_an_anonymiser_gave_one_uid_stay_separate(tmp_path, options):
    alike: dict[str, Any] = {"series_uid": "1.2.3", "patient_id": ""}
    alike["damage"] = put(FrameOfReferenceUID=None)
    write_series(tmp_path / "p1", **alike)
    write_series(tmp_path / "p2", **alike | {"first": (-10, -20, 60)} | options)
    series, _ = find(tmp_path)
    assert codes(series) == [("p1", ""), ("p2", "")]
    assert all(read_series(each.files, Repair()).flags == () for each in series)


def test_phases_and_series_without_uid_stay_in_their_folders(tmp_path):
    split(tmp_path / "a", {"p1": slice(0, 8, 2), "p2": slice(1, 8, 2)})
    for path in (tmp_path / "a").rglob("*.dcm"):
        copy(path, path, AcquisitionNumber=int(path.parent.name[1]))
    split(tmp_path / "b", {"p1": slice(0, 4), "p2": slice(4, 8)}, damage=put(SeriesInstanceUID=""))
    series, _ = find(tmp_path)
    spacing_mm = [read_series(each.files, Repair()).image.affine[2, 2] for each in series]
    assert spacing_mm == [5, 5, 2.5, 2.5]


@pytest.mark.parametrize("name", ["seg/ct", "seg/single_and_multiframe/image"])
def test_real_series_are_read_as_simpleitk_reads_them(shared_data, name):
    assert_same(read(shared_data / name).image, by_simpleitk(shared_data / name))
