"""Series: found by headers, fitted to a regular grid, and read as HU in place as SimpleITK does."""

import math
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage, SecondaryCaptureImageStorage
from scipy.interpolate import interp1d

from pancseg.dicom.pixels import SlicePlane, planes_of
from pancseg.dicom.series import (
    Header,
    Repair,
    Series,
    SliceStack,
    build_stack,
    read_header,
    read_mask_series,
    read_series,
    same_extent,
    series_extent,
)
from pancseg.errors import Refused
from tests.other_software import assert_same, by_simpleitk
from tests.tiny_dicom import AXIAL, find, put, read, write_series
from tests.tiny_labels import item, structures

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


def test_slices_lost_between_two_folders_are_missing(tmp_path):
    split(tmp_path, {"DIR1": slice(0, 3), "DIR2": slice(4, 8)})
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


def test_all_problems_are_named_at_once_with_the_repairs_that_mend_them():
    heights = np.array([0, 4, 8, 16, 20, 24.0])
    refused = refusal(heights, aside=0.3 * heights)
    assert "16.7 degrees" in str(refused) and "missing_slice: 1 gap of 8.0 mm" in str(refused)
    assert (refused.code, sorted(refused.repairs)) == ("gantry_tilt", ["gaps", "tilt"])
    refused = refusal(heights, aside=0.3 * heights, tilt=True)
    assert (refused.code, refused.repairs) == ("missing_slice", ("gaps",))
    refused = refusal(heights, aside=0.3 * heights, gaps=True)
    assert (refused.code, refused.repairs) == ("gantry_tilt", ("tilt",))


def test_no_repair_is_named_where_it_would_not_suffice():
    for gaps in (False, True):
        refused = refusal([*range(8), *range(12, 20)], gaps=gaps)  # too wide
        assert (refused.code, refused.repairs) == ("missing_slice", ())
        assert "nothing is interpolated" in str(refused)
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
