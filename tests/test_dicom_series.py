"""Series: found by headers, fitted to a regular grid, and read as HU in place as SimpleITK does."""

import math
import os
import shutil

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage, SecondaryCaptureImageStorage
from scipy.interpolate import interp1d

from pancseg.dicom.pixels import planes_of
from pancseg.dicom.series import (
    Repair,
    read_header,
    read_mask_series,
    read_series,
)
from pancseg.errors import Refused
from tests.other_software import assert_same, by_simpleitk
from tests.tiny_dicom import AXIAL, find, put, read, write_series
from tests.tiny_labels import item, structures

FLIPPED, PRONE = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
OBLIQUE = (0.936293, 0.275096, -0.218351, -0.289629, 0.956425, -0.036957)
SIDE, CORONAL = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0), (math.cos(0.3), math.sin(0.3), 0.0, 0.0, 0.0, -1.0)


def codes(folder):
    series, _ = find(folder)
    return [(each.folder.as_posix(), each.problem.partition(":")[0]) for each in series]


def refusal(folder, **repair):
    with pytest.raises(Refused) as refused:
        read(folder, **repair)
    return refused.value


def corner(image):
    return np.asarray(image.dataobj)[0, 0].tolist()


SECONDARY = {"SOPClassUID": SecondaryCaptureImageStorage, "ImagePositionPatient": None}
READ = {"problem": "", "manufacturer": "unknown", "contrast": "unknown", "is_damaged": False}


@pytest.mark.parametrize(("values", "expected"), [
    ({"ImageType": ["SECONDARY", "REF_SURVIEW"], **SECONDARY}, {"problem": "localizer"}),
    (SECONDARY, {"problem": "secondary_capture"}), ({"ImageType": ["NOT_LOCALIZER"]}, {}),
    ({"SOPClassUID": BasicTextSRStorage, "Rows": None}, {"problem": "not_an_image"}),
    ({"Rows": None}, {"problem": "unreadable", "is_damaged": True}),
    *(({"Manufacturer": name}, {"manufacturer": maker}) for name, maker in (
        ("Siemens Healthineers", "siemens"), ("GE MEDICAL SYSTEMS", "ge"), ("CANON_MEC", "canon"),
        ("TOSHIBA", "canon"), ("Imagenes SA", "other"), ("DOE^JOHN", "other"))),
    *(({"ContrastBolusAgent": agent}, {"contrast": contrast})
      for agent, contrast in (("Iohexol", "yes"), ("", "no"))),
])  # fmt: skip
def test_headers_tell_slices_from_other_and_damaged_objects(tmp_path, values, expected):
    (path,) = write_series(tmp_path, count=1, damage=put(**values)).iterdir()
    header = vars(read_header(path))
    header["problem"] = header["problem"].partition(":")[0]
    assert {key: header[key] for key in READ} == READ | expected


@pytest.mark.parametrize("orientation", [
    AXIAL, FLIPPED, PRONE, OBLIQUE, CORONAL, SIDE, (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)
])  # fmt: skip
def test_voxels_land_where_simpleitk_puts_them(tmp_path, orientation):
    write_series(tmp_path, orientation=orientation, pixel_spacing=(1.5, 0.7))
    image = read(tmp_path).image
    assert nib.aff2axcodes(image.affine)[2] == "S"
    assert_same(image, by_simpleitk(tmp_path))


@pytest.mark.parametrize(("slope", "intercept", "hu", "dtype"), [
    (1.0, -1024.0, [-1024, -924, -924], "int16"), (0.5, -3.0, [-3, 47, 47], "int16"),
    (0.015, 0.0, [0, 1.5, 1.5], "float32"), (600.0, 0.0, [0, 60000, 60000], "float32"),
    (-1.0, 7.0, [7, -93, -93], "int16"),
    (1.0, [-1024.0, -1000.5, 5.0], [-1024, -900.5, 105], "float32"),
])  # fmt: skip
def test_hu_are_slope_times_value_plus_intercept(tmp_path, slope, intercept, hu, dtype):
    pixels = np.repeat([0, 100, 100], 4).reshape(3, 2, 2)
    image = read(write_series(tmp_path, pixels=pixels, slope=slope, intercept=intercept)).image
    assert (corner(image), image.get_data_dtype()) == (hu, dtype)


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
    assert corner(read(tmp_path).image) == [0, 100, 200, 300, 400]


def test_series_of_a_folder_are_separated_by_uid_and_where_it_was_removed_by_patient(tmp_path):
    for uid, patient, names in (
        ("1.2", "P", "abcde"), ("1.3", "P", "vwxyz"), ("", "P", "ABCDE"), ("", "Q", "VWXYZ")
    ):  # fmt: skip
        own = {"patient_id": patient, "damage": put(SeriesInstanceUID=uid)}
        write_series(tmp_path / f"p{len(uid)}", names=names, **own)
    series, skipped = find(tmp_path)
    files = ["".join(file.name for file in each.files) for each in series]
    assert (files, skipped) == (["ABCDE", "VWXYZ", "abcde", "vwxyz"], [])
    assert codes(tmp_path) == [("p0", "")] * 2 + [("p3", "")] * 2


def test_skipped_objects_of_a_kind_are_one_row_and_damaged_slices_refuse_their_series(tmp_path):
    def localizer(slices):  # the last slice, turned
        put(4, ImageType=["LOCALIZER"], ImageOrientationPatient=[1, 0, 0, 0, 0, -1])(slices)

    write_series(tmp_path / "p", damage=localizer, names="abcde", series_uid="1.3")
    write_series(tmp_path / "q", damage=put(ImageType=["SCOUT"]), names="vwxyz")
    (series,), skipped = find(tmp_path)
    assert read_series(series.files, Repair()).image.shape == (3, 4, 4)
    rows = sorted((row.path.name, row.status, row.reason[:9], row.slices) for row in skipped)
    assert rows == [("e", "dropped", "localizer", 1), ("v", "dropped", "localizer", 5)]
    write_series(tmp_path / "p", series_uid="1.2", names="ABCDE", damage=put(4, Rows=None))
    (tmp_path / "r").mkdir()
    (tmp_path / "p" / "E").rename(tmp_path / "r" / "E")  # names its series in another folder
    assert codes(tmp_path) == [("p", "damaged_slice"), ("p", "")]


def copy(path, to, **values):
    dataset = pydicom.dcmread(path)
    put(**values)([dataset])
    dataset.save_as(to)


@pytest.mark.parametrize("values", [{"PixelData": b"\1" * 24}, {"RescaleIntercept": -5}])
def test_copies_that_differ_are_refused(tmp_path, values):
    copy(sorted(write_series(tmp_path).iterdir())[2], tmp_path / "copy.dcm", **values)
    assert refusal(tmp_path).code == "same_position"


def split(folder, *parts, **options):
    """Write a series of 8 slices into several folders."""
    whole = write_series(folder / "whole", count=8, names=list("01234567"), **options)
    for n, part in enumerate(parts, start=1):
        (folder / f"p{n}").mkdir()
        for name in "01234567"[part]:
            shutil.copy(whole / name, folder / f"p{n}" / f"{name}.dcm")
    shutil.rmtree(whole)
    return folder


@pytest.mark.parametrize(("first", "second", "flags"), [
    (slice(0, 4), slice(4, 8), ()), (slice(0, 8, 2), slice(1, 8, 2), ()),
    (slice(0, 4), slice(3, 8), ("duplicate_files",)),  # an instance in both
])  # fmt: skip
def test_a_series_in_two_folders_is_one(tmp_path, first, second, flags):
    scan = read(split(tmp_path, first, second))
    assert (scan.flags, corner(scan.image)) == (flags, [100 * n for n in range(8)])


@pytest.mark.parametrize("options", [
    {"orientation": PRONE}, {"pixel_spacing": (0.8, 0.6)}, {"patient_id": "other"},
    {"damage": put(FrameOfReferenceUID="1.2.9")}, {"first": (-10, -24, 60)},  # not on a line
    {"first": (-10, -20, 30), "slope": 2.0},  # other instances at the same positions
    {"first": (-10, -20, 31)},  # two regular stacks that are none together
])  # fmt: skip
def test_series_to_which_an_anonymiser_gave_one_uid_stay_separate(tmp_path, options):
    damage = put(FrameOfReferenceUID=None)
    alike = {"series_uid": "1.2.3", "patient_id": "", "damage": damage}
    write_series(tmp_path / "p1", **alike)
    write_series(tmp_path / "p2", **alike | {"first": (-10, -20, 60)} | options)
    assert codes(tmp_path) == [("p1", ""), ("p2", "")]
    assert all(read(tmp_path / name).flags == () for name in ("p1", "p2"))


def test_phases_and_series_without_uid_stay_in_their_folders_and_a_slice_lost_between(tmp_path):
    split(tmp_path / "a", slice(0, 8, 2), slice(1, 8, 2))
    for path in (tmp_path / "a").rglob("*.dcm"):
        copy(path, path, AcquisitionNumber=int(path.parent.name[1]))
    split(tmp_path / "b", slice(0, 4), slice(4, 8), damage=put(SeriesInstanceUID=""))
    series, _ = find(tmp_path)
    spacing_mm = [read_series(each.files, Repair()).image.affine[2, 2] for each in series]
    assert spacing_mm == [5, 5, 2.5, 2.5]
    assert refusal(split(tmp_path / "c", slice(0, 3), slice(4, 8))).code == "missing_slice"


def stack(folder, heights_mm, aside=0.0, **options):
    """A series of axial slices, shifted along the columns by ``aside`` of each or of all."""
    count = len(heights_mm)
    places = np.stack([np.zeros(count), np.broadcast_to(aside, count), heights_mm], axis=1)
    return write_series(folder, positions=places, **options)


def random_pixels(count):
    return np.random.default_rng(0).integers(-1000, 1000, (count, 9, 7))


def test_a_slice_may_lie_a_tenth_of_a_step_from_the_grid_which_is_fitted(tmp_path):
    heights = 2.0 * np.arange(30)
    heights[14] += 2.0 * 0.09
    assert read(stack(tmp_path / "a", heights)).stack.step_mm == pytest.approx(2.0, abs=1e-3)
    heights[14] += 2.0 * 0.05
    assert refusal(stack(tmp_path / "b", heights)).code == "uneven_gaps"
    heights = [0.1, 5.0, 10.0, 15.0, 19.9]  # fitted: 0.04, 5.02, 10.00, 14.98, 19.96
    scan = read(stack(tmp_path / "c", heights))
    assert scan.image.affine[2, 2:].tolist() == pytest.approx([4.96, 0.08])
    np.testing.assert_allclose(scan.stack.offsets_mm, [0.02, 4.92, 9.92, 14.92, 19.82])


@pytest.mark.parametrize("keyword", ["AcquisitionNumber", "AcquisitionTime"])
@pytest.mark.parametrize(("groups", "is_refused"), [
    ("12121212", True), ("11212122", True), ("12311231", True),
    ("11112222", False),  # blocks that follow each other
    ("12345678", False), ("11121111", False), ("1.1.1.1.", False),  # unknown for half
])  # fmt: skip
def test_acquisitions_that_overlap_in_space_are_refused(tmp_path, keyword, groups, is_refused):
    def damage(slices):
        for dataset, group in zip(slices, groups, strict=True):
            dataset.add_new(keyword, "LO", group.strip(".") and f"A{group}")  # it is no number

    write_series(tmp_path / "mr", count=8, damage=damage, modality="MR")
    if keyword == "AcquisitionTime":  # MR acquires every other slice first
        assert len(read(tmp_path / "mr").stack.planes) == 8
    write_series(tmp_path / "ct", count=8, damage=damage)
    if is_refused:
        refused = refusal(tmp_path / "ct")
        assert (refused.code, refused.repairs) == ("mixed_acquisitions", ())
        assert f"{len(set(groups))} acquisitions" in str(refused)
    else:
        assert len(read(tmp_path / "ct").stack.planes) == 8


GAP = np.array([0, 4, 8, 16, 20, 24.0])
WIDE = [*range(8), *range(12, 20)]


@pytest.mark.parametrize(("heights", "aside", "repair", "code", "repairs", "sentence"), [
    ([18.1, 23.1, 28.1, 38.1], 0, "", "missing_slice", ("gaps",),
     "1 gap of 10.0 mm at slice 3, spacing is 5.0 mm"),
    ([0, 5, 20, 25, 35, 40], 0, "", "missing_slice", ("gaps",),
     "2 gaps, the first of 15.0 mm at slice 2"),
    ([0, 5], 0, "", "too_few_slices", (), "2 slices"),
    # all problems are named at once with the repairs that mend them
    (GAP, 0.3 * GAP, "", "gantry_tilt", ("tilt", "gaps"),
     "16.7 degrees to their normal; missing_slice"),
    (GAP, 0.3 * GAP, "tilt", "missing_slice", ("gaps",), ""),
    (GAP, 0.3 * GAP, "gaps", "gantry_tilt", ("tilt",), ""),
    # and none where it would not suffice
    (WIDE, 0, "gaps", "missing_slice", (), "nothing is interpolated"),
    (GAP, [0, 0, 9, 0, 0, 0], "", "shifted_slice", (), "missing_slice"),
])  # fmt: skip
def test_problems_are_named_with_repairs(tmp_path, heights, aside, repair, code, repairs, sentence):
    refused = refusal(stack(tmp_path, heights, aside), **{repair: True} if repair else {})
    assert (refused.code, refused.repairs) == (code, repairs)
    assert sentence in str(refused)


@pytest.mark.parametrize(("code", "values", "sentence"), [  # of the third slice
    ("mixed_orientation", {"ImageOrientationPatient": [1, 0, 0, 0, 0.995, 0.0998]}, "differ"),
    ("mixed_frame_of_reference", {"FrameOfReferenceUID": "1.2"}, "2 FrameOfReferenceUIDs"),
    ("same_position", {"ImagePositionPatient": [-10, -20, 32.5]}, "2 slices"),
    ("shifted_slice", {"ImagePositionPatient": [30, -20, 35]}, "32.0 mm"),
    ("no_geometry", {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "at right angles"),
    ("no_geometry", {"PixelSpacing": [0.8, -0.5]}, "no usable PixelSpacing"),
    ("no_rescale", {"RescaleSlope": 0}, "RescaleSlope"),
    ("no_rescale", {"RescaleIntercept": 12345678}, "RescaleIntercept"),
])  # fmt: skip
def test_a_series_with_a_fault_is_refused_with_its_reason(tmp_path, code, values, sentence):
    refused = refusal(write_series(tmp_path, damage=put(2, **values)))
    assert refused.code == code and sentence in str(refused)


def test_attributes_of_a_frame_precede_shared_ones_and_those_the_file(tmp_path):
    measured, shared = ([item(PixelSpacing=mm)] for mm in ([1, 2], [3, 4]))
    place = {"ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": list(AXIAL)}
    dataset = item(NumberOfFrames=3, PixelSpacing=[9, 9], Rows=2, Columns=2, **place)
    number = item(FrameContentSequence=[item(FrameAcquisitionNumber=4)])
    thick = item(PixelMeasuresSequence=[item(SliceThickness=5)])
    frames = [item(PixelMeasuresSequence=measured), number, thick]
    dataset.PerFrameFunctionalGroupsSequence = frames
    assert [plane.spacing_mm for plane in planes_of(dataset, tmp_path)] == [(1, 2), (9, 9), (9, 9)]
    dataset.SharedFunctionalGroupsSequence = [item(PixelMeasuresSequence=shared)]
    planes = planes_of(dataset, tmp_path)
    assert [plane.spacing_mm for plane in planes] == [(1, 2), (3, 4), (3, 4)]
    assert [plane.acquisitions[0] for plane in planes] == ["", "4", ""]


def test_uneven_slices_are_interpolated_as_scipy_does_and_a_mask_by_the_nearest(tmp_path):
    heights_mm, stored = [0.0, 4, 11, 12, 16, 24, 28], random_pixels(7).transpose(2, 1, 0)
    stack(tmp_path / "ct", heights_mm, pixels=random_pixels(7))
    refused = refusal(tmp_path / "ct")
    assert str(refused) == "uneven_gaps: gaps go from 1.00 to 8.00 mm"
    scan = read(tmp_path / "ct", gaps=True)
    assert scan.stack.repairs == ("gaps of 1.00 to 8.00 mm, now 4.00 mm",)
    expected = interp1d(heights_mm, stored, axis=-1)(np.arange(0, 29, 4.0))
    np.testing.assert_allclose(scan.image.dataobj, expected, atol=0.5)  # HU are whole numbers
    np.testing.assert_allclose(scan.image.affine[2, 2:], [4, 0])
    (series,), _ = find(stack(tmp_path / "mask", heights_mm, pixels=random_pixels(7) > 0))
    mask = read_mask_series(series.files, Repair(gaps=True), structures()).image
    np.testing.assert_allclose(mask.affine, scan.image.affine)
    nearest = [0, 1, 2, 3, 4, 4, 5, 6]  # for 0, 4, 8, 12, 16, 20, 24 and 28 mm
    np.testing.assert_array_equal(mask.dataobj, stored[..., nearest] > 0)


@pytest.mark.parametrize("step", [(0.3, 0.9, 4.0), (0.0, -1.1, -4.0)])
def test_a_straightened_stack_is_resampled_as_by_simpleitk(tmp_path, step):
    step, pixels = np.array(step), random_pixels(6)
    positions = np.array([-10.0, -20.0, 30.0]) + np.outer(np.arange(6), step)
    scan = read(write_series(tmp_path, pixels=pixels, positions=positions), tilt=True)
    degrees = math.degrees(math.atan(math.hypot(*step[:2]) / 4))
    assert scan.stack.repairs == (f"tilt of {degrees:.1f} degrees",)
    turn, per_mm = int(np.sign(step[2])), step / step[2]
    first = positions[::turn][0]
    moving = SimpleITK.GetImageFromArray(pixels[::turn].astype(np.float32))
    grid = SimpleITK.Image([int(n) for n in scan.image.shape], SimpleITK.sitkFloat32)
    for image, origin in ((moving, first), (grid, scan.image.affine[:3, 3] * [-1, -1, 1])):
        image.SetSpacing((0.5, 0.8, 4.0))
        image.SetOrigin(origin.tolist())
    shear = SimpleITK.AffineTransform(3)
    shear.SetMatrix([1, 0, -per_mm[0], 0, 1, -per_mm[1], 0, 0, 1])
    shear.SetTranslation((per_mm * first[2] * [1, 1, 0]).tolist())
    resampled = SimpleITK.Resample(moving, grid, shear, SimpleITK.sitkLinear, -1024.0)
    theirs = SimpleITK.GetArrayFromImage(resampled).T
    inside = np.pad(theirs[1:-1, 1:-1] != -1024, ((1, 1), (1, 1), (0, 0)))
    for axis in (0, 1):  # borders may differ
        inside &= np.roll(inside, 1, axis) & np.roll(inside, -1, axis)
    assert inside.sum() > 100
    ours = np.asarray(scan.image.dataobj)
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=0.6)
    assert ours.min() == -1024


def test_tilt_and_gaps_are_repaired_together_and_rounded_slices_stay(tmp_path):
    scan = read(stack(tmp_path / "a", GAP, 0.3 * GAP), gaps=True, tilt=True)
    assert (scan.image.shape[2], len(scan.stack.repairs)) == (7, 2)
    rounded = stack(tmp_path / "b", (0, 5.3, 10, 19.7, 25))
    assert corner(read(rounded, gaps=True).image) == [0, 100, 200, 250, 300, 400]
