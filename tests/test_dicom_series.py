"""Series: found by headers, fitted to a regular grid, and read as HU in place as SimpleITK does."""

import math
import shutil

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage
from scipy.interpolate import interp1d

from pancseg.dicom.series import Repair, read_header, read_mask_series, read_series
from pancseg.errors import Refused
from tests.other_software import assert_same, by_simpleitk
from tests.tiny_dicom import AXIAL, find, put, read, write_series
from tests.tiny_labels import structures

FLIPPED, PRONE = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
OBLIQUE = (0.936293, 0.275096, -0.218351, -0.289629, 0.956425, -0.036957)
SIDE, CORONAL = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0), (math.cos(0.3), math.sin(0.3), 0.0, 0.0, 0.0, -1.0)
SCREEN_SHOT = {"SOPClassUID": SecondaryCaptureImageStorage, "ImagePositionPatient": None}


def refusal(folder, **repair):
    with pytest.raises(Refused) as refused:
        read(folder, **repair)
    return refused.value


def corner(image):
    return np.asarray(image.dataobj)[0, 0].tolist()


@pytest.mark.parametrize(("values", "problem"), [
    (SCREEN_SHOT, "secondary_capture"), ({"ImageType": ["NOT_LOCALIZER"]}, ""),
    ({"ImageType": ["SECONDARY", "REF_SURVIEW"]}, "localizer"),
])  # fmt: skip
def test_headers_tell_slices_from_other_images(tmp_path, values, problem):
    (path,) = write_series(tmp_path, count=1, damage=put(**values)).iterdir()
    assert read_header(path).problem.partition(":")[0] == problem


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


def test_files_without_meta_class_and_frame_are_read(tmp_path):
    write_series(tmp_path, damage=put(FrameOfReferenceUID=None))
    for path in tmp_path.iterdir():
        bare = Dataset()
        bare.update(pydicom.dcmread(path))
        bare.SOPClassUID = ""
        pydicom.dcmwrite(path, bare, implicit_vr=True, little_endian=True)
        assert path.read_bytes()[:2] == b"\x08\x00"
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


def phases(slices):
    for n, dataset in enumerate(slices):
        dataset.AcquisitionNumber = n % 2 + 1


@pytest.mark.parametrize(("first", "second", "damage", "slices"), [
    ("0123", "4567", None, [8]), ("0246", "1357", None, [8]),
    ("0123", "34567", None, [8]),  # an instance in both
    ("0246", "1357", phases, [4, 4]), ("0123", "4567", put(SeriesInstanceUID=""), [4, 4]),
])  # fmt: skip
def test_a_series_in_two_folders_is_one_unless_phases_lie_in_them(
    tmp_path, first, second, damage, slices
):
    whole = write_series(tmp_path / "p1", count=8, names="01234567", damage=damage)
    for folder, kept in ((shutil.copytree(whole, tmp_path / "p2"), second), (whole, first)):
        for name in set("01234567") - set(kept):
            (folder / name).unlink()
    series, _ = find(tmp_path)
    images = [read_series(each.files, Repair()).image for each in series]
    assert [image.shape[2] for image in images] == slices
    assert sorted(value for image in images for value in corner(image)) == list(range(0, 800, 100))


@pytest.mark.parametrize("options", [
    {"patient_id": "other"}, {"pixel_spacing": (0.8, 0.6)}, {"first": (-10, -24, 60)},  # on no line
    {"first": (-10, -20, 30), "slope": 2.0},  # other instances at the same positions
    {"first": (-10, -20, 31)},  # two regular stacks that are none together
])  # fmt: skip
def test_series_to_which_an_anonymiser_gave_one_uid_stay_separate(tmp_path, options):
    alike = {"series_uid": "1.2.3", "patient_id": "", "damage": put(FrameOfReferenceUID=None)}
    write_series(tmp_path / "p1", **alike)
    write_series(tmp_path / "p2", **alike | {"first": (-10, -20, 60)} | options)
    series, _ = find(tmp_path)
    assert [(each.folder.name, each.problem) for each in series] == [("p1", ""), ("p2", "")]


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
    assert len(read(stack(tmp_path / "a", heights)).stack.planes) == 30
    heights[14] += 2.0 * 0.05
    assert refusal(stack(tmp_path / "b", heights)).code == "uneven_gaps"
    heights = [0.1, 5.0, 10.0, 15.0, 19.9]  # fitted: 0.04, 5.02, 10.00, 14.98, 19.96
    scan = read(stack(tmp_path / "c", heights))
    assert scan.image.affine[2, 2:].tolist() == pytest.approx([4.96, 0.08])
    np.testing.assert_allclose(scan.stack.offsets_mm, [0.02, 4.92, 9.92, 14.92, 19.82])


@pytest.mark.parametrize(("modality", "keyword", "groups", "code"), [
    ("CT", "AcquisitionTime", "11212122", "mixed_acquisitions"),
    ("CT", "AcquisitionNumber", "11112222", ""),  # blocks that follow each other
    ("CT", "AcquisitionTime", "12345678", ""),
    ("MR", "AcquisitionTime", "12121212", ""),  # MR acquires every other slice first
])  # fmt: skip
def test_acquisitions_that_overlap_in_space_are_refused(tmp_path, modality, keyword, groups, code):
    def damage(slices):
        for dataset, group in zip(slices, groups, strict=True):
            dataset.add_new(keyword, "LO", f"A{group}")  # it is no number

    write_series(tmp_path, count=8, damage=damage, modality=modality)
    if code:
        assert refusal(tmp_path).code == code
    else:
        assert len(read(tmp_path).stack.planes) == 8


GAP = np.array([0, 4, 8, 16, 20, 24.0])
WIDE = [*range(8), *range(12, 20)]


@pytest.mark.parametrize(("heights", "aside", "repair", "code", "repairs", "sentence"), [
    ([0, 5, 20, 25, 35, 40], 0, {}, "missing_slice", ("gaps",), "2 gaps, the first of 15.0 mm at"),
    (GAP, 0.3 * GAP, {}, "gantry_tilt", ("tilt", "gaps"), "16.7 degrees"),  # both are mended
    (GAP, 0.3 * GAP, {"tilt": True}, "missing_slice", ("gaps",), "1 gap of 8.0 mm at slice 3"),
    (WIDE, 0, {"gaps": True}, "missing_slice", (), "nothing is interpolated"),
    (GAP, [0, 0, 9, 0, 0, 0], {}, "shifted_slice", (), "; missing_slice"),  # one cannot be mended
])  # fmt: skip
def test_problems_are_named_with_repairs(tmp_path, heights, aside, repair, code, repairs, sentence):
    refused = refusal(stack(tmp_path, heights, aside), **repair)
    assert (refused.code, refused.repairs) == (code, repairs)
    assert sentence in str(refused)


@pytest.mark.parametrize(("code", "values"), [  # of the third slice
    ("mixed_orientation", {"ImageOrientationPatient": [1, 0, 0, 0, 0.995, 0.0998]}),
    ("mixed_frame_of_reference", {"FrameOfReferenceUID": "1.2"}),
    ("same_position", {"ImagePositionPatient": [-10, -20, 32.5]}),
    ("no_geometry", {"PixelSpacing": [0.8, -0.5]}), ("no_rescale", {"RescaleSlope": 0}),
])  # fmt: skip
def test_a_series_with_a_fault_is_refused_with_its_reason(tmp_path, code, values):
    assert refusal(write_series(tmp_path, damage=put(2, **values))).code == code


def test_uneven_slices_are_interpolated_as_scipy_does_and_a_mask_by_the_nearest(tmp_path):
    heights_mm, stored = [0.0, 4, 11, 12, 16, 24, 28], random_pixels(7).transpose(2, 1, 0)
    scan = read(stack(tmp_path / "ct", heights_mm, pixels=random_pixels(7)), gaps=True)
    assert scan.stack.repairs == ("gaps of 1.00 to 8.00 mm, now 4.00 mm",)
    expected = interp1d(heights_mm, stored, axis=-1)(np.arange(0, 29, 4.0))
    np.testing.assert_allclose(scan.image.dataobj, expected, atol=0.5)  # HU are whole numbers
    np.testing.assert_allclose(scan.image.affine[2, 2:], [4, 0])
    (series,), _ = find(stack(tmp_path / "mask", heights_mm, pixels=random_pixels(7) > 0))
    mask = read_mask_series(series.files, Repair(gaps=True), structures()).image
    np.testing.assert_allclose(mask.affine, scan.image.affine)
    nearest = [0, 1, 2, 3, 4, 4, 5, 6]  # for 0, 4, 8, 12, 16, 20, 24 and 28 mm
    np.testing.assert_array_equal(mask.dataobj, stored[..., nearest] > 0)


def test_a_straightened_stack_is_resampled_as_by_simpleitk(tmp_path):
    step, pixels, first = np.array([0.3, -0.9, 4.0]), random_pixels(6), np.array([-10.0, -20, 30])
    positions = first + np.outer(np.arange(6), step)
    scan = read(write_series(tmp_path, pixels=pixels, positions=positions), tilt=True)
    assert scan.stack.repairs == ("tilt of 13.3 degrees",)
    moving = SimpleITK.GetImageFromArray(pixels.astype(np.float32))
    grid = SimpleITK.Image([int(n) for n in scan.image.shape], SimpleITK.sitkFloat32)
    for image, origin in ((moving, first), (grid, scan.image.affine[:3, 3] * [-1, -1, 1])):
        image.SetSpacing((0.5, 0.8, 4.0))
        image.SetOrigin(origin.tolist())
    per_mm = step / step[2]
    shear = SimpleITK.AffineTransform(3)
    shear.SetMatrix([1, 0, -per_mm[0], 0, 1, -per_mm[1], 0, 0, 1])
    shear.SetTranslation((per_mm * first[2] * [1, 1, 0]).tolist())
    resampled = SimpleITK.Resample(moving, grid, shear, SimpleITK.sitkLinear, -1024.0)
    theirs = SimpleITK.GetArrayFromImage(resampled).T
    inside = np.pad(theirs[1:-1, 1:-1] != -1024, ((1, 1), (1, 1), (0, 0)))
    for axis in (0, 1):  # borders may differ
        inside &= np.roll(inside, 1, axis) & np.roll(inside, -1, axis)
    assert inside.sum() > 100
    np.testing.assert_allclose(np.asarray(scan.image.dataobj)[inside], theirs[inside], atol=0.6)
