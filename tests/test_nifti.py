"""NIfTI files: read as HU or mask, turned to run from feet to head, or refused with a reason."""

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from pancseg.errors import Refused
from pancseg.intake.nifti import find_nifti, read_nifti_ct, read_nifti_mask, stem_of

AFFINE = np.array([[-2.0, 0, 0, 10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]])
AXES = ["AIL", "ASR", "ILP", "LAS", "LPS", "LSA", "PIR", "PSL", "RAS", "RPI", "SAR", "SRP"]


def numbered() -> np.ndarray:
    """A volume whose every voxel has a value of its own."""
    return np.arange(24).reshape(2, 3, 4)


def write(
    path: Path, voxels: np.ndarray, affine: np.ndarray | None = AFFINE, dtype: str = "int16"
) -> Path:
    nib.save(nib.Nifti1Image(voxels.astype(dtype), affine, dtype=dtype), path)
    return path


def values_of(image: nib.Nifti1Image) -> np.ndarray:
    return np.asarray(nib.as_closest_canonical(image).dataobj)


@pytest.mark.parametrize("stored", ["int16", "int32", "int64", "uint16", "float32", "float64"])
def test_whole_hu_become_int16_however_they_are_stored(tmp_path: Path, stored: str) -> None:
    image = read_nifti_ct(write(tmp_path / "ct.nii.gz", numbered(), dtype=stored))
    assert image.get_data_dtype() == np.int16
    np.testing.assert_array_equal(image.dataobj, numbered())
    np.testing.assert_allclose(image.affine, AFFINE)


def test_negative_hu_and_fractions_are_kept(tmp_path: Path) -> None:
    voxels = numbered() - 1024.5
    image = read_nifti_ct(write(tmp_path / "ct.nii", voxels, dtype="float64"))
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(image.dataobj, voxels)


@pytest.mark.parametrize("value", [32768, -32769, 1e10])
def test_hu_beyond_int16_stay_float32(tmp_path: Path, value: float) -> None:
    voxels = np.where(numbered() == 7, value, numbered())
    image = read_nifti_ct(write(tmp_path / "ct.nii", voxels, dtype="float64"))
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(image.dataobj, voxels)


def test_slope_and_intercept_of_the_file_are_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(numbered().astype("int16"), AFFINE)
    image.header.set_slope_inter(2, -1000)
    nib.save(image, tmp_path / "ct.nii")
    np.testing.assert_array_equal(read_nifti_ct(tmp_path / "ct.nii").dataobj, numbered() * 2 - 1000)


@pytest.mark.parametrize("shape", [(2, 3, 4, 1), (2, 3, 4, 1, 1)])
def test_one_volume_with_more_axes_is_a_volume(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = write(tmp_path / "ct.nii", numbered().reshape(shape))
    np.testing.assert_array_equal(read_nifti_ct(path).dataobj, numbered())
    np.testing.assert_array_equal(read_nifti_mask(path).dataobj, numbered() != 0)


def test_nifti_2_is_read(tmp_path: Path) -> None:
    nib.save(nib.Nifti2Image(numbered().astype("int16"), AFFINE), tmp_path / "ct.nii")
    np.testing.assert_array_equal(read_nifti_ct(tmp_path / "ct.nii").dataobj, numbered())


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SRP", "ASL"])
def test_slices_run_from_feet_to_head_and_voxels_stay_in_place(tmp_path: Path, codes: str) -> None:
    upright = nib.Nifti1Image(numbered().astype("int16"), np.diag([2.0, 3, 4, 1]))
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(upright.affine), nib.orientations.axcodes2ornt(codes)
    )
    nib.save(upright.as_reoriented(turn), tmp_path / "ct.nii")
    image = read_nifti_ct(tmp_path / "ct.nii")
    kept = codes.replace("S", "").replace("I", "")
    assert "".join(nib.aff2axcodes(image.affine)) == kept + "S"
    np.testing.assert_array_equal(values_of(image), numbered())
    np.testing.assert_allclose(nib.as_closest_canonical(image).affine, upright.affine)
    mask = read_nifti_mask(tmp_path / "ct.nii")
    np.testing.assert_allclose(mask.affine, image.affine)
    np.testing.assert_array_equal(mask.dataobj, np.asarray(image.dataobj) != 0)


def test_a_file_lands_where_simpleitk_puts_it(tmp_path: Path) -> None:
    image = read_nifti_ct(write(tmp_path / "ct.nii.gz", numbered()))
    theirs = SimpleITK.ReadImage(str(tmp_path / "ct.nii.gz"))
    for index in np.ndindex(2, 3, 4):
        left, posterior, head = theirs.TransformIndexToPhysicalPoint(index)
        here = nib.affines.apply_affine(np.linalg.inv(image.affine), [-left, -posterior, head])
        assert image.dataobj[tuple(np.rint(here).astype(int))] == theirs[index]


@pytest.mark.parametrize("stored", ["uint8", "int64", "float64"])
def test_a_mask_is_1_wherever_a_value_is_not_0(tmp_path: Path, stored: str) -> None:
    voxels = np.zeros((2, 3, 4))
    voxels[1, 2, 3], voxels[0, 0, 0] = 1, 255
    mask = read_nifti_mask(write(tmp_path / "mask.nii.gz", voxels, dtype=stored))
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(mask.dataobj, voxels != 0)


def test_nan_in_a_mask_is_not_foreground(tmp_path: Path) -> None:
    voxels = np.full((2, 3, 4), np.nan)
    voxels[1, 2, 3] = 1
    with pytest.raises(Refused) as refused:
        read_nifti_mask(write(tmp_path / "mask.nii", voxels, dtype="float32"))
    assert refused.value.code == "not_finite"


def without_affine(path: Path) -> None:
    write(path, numbered(), affine=None)


def two_volumes(path: Path) -> None:
    write(path, np.zeros((2, 3, 4, 2)))


def one_slice(path: Path) -> None:
    write(path, np.zeros((2, 3)))


def cut_short(path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 999, (8, 8, 8))
    content = write(path, voxels).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def damaged_within(path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 999, (8, 8, 8))
    content = bytearray(write(path, voxels).read_bytes())
    content[200:400] = bytes(200)
    path.write_bytes(content)


def text(path: Path) -> None:
    path.write_text("no image, but text that is longer than the header of a NIfTI file\n" * 20)


def zipped_text(path: Path) -> None:
    path.write_bytes(gzip.compress(b"no image, but text, and rather a lot of it\n" * 20))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def not_a_number(path: Path) -> None:
    write(path, np.where(numbered() == 7, np.nan, numbered()), dtype="float32")


def infinite(path: Path) -> None:
    write(path, np.where(numbered() == 7, np.inf, numbered()), dtype="float32")


def flat_affine(path: Path) -> None:
    write_with_sform(path, np.diag([1.0, 1, 0, 1]))


def infinite_affine(path: Path) -> None:
    write_with_sform(path, np.diag([1.0, 1, np.inf, 1]))


def sheared_affine(path: Path) -> None:
    sheared = np.diag([1.0, 1, 2, 1])
    sheared[1, 2] = 0.5  # each slice half a millimetre further: a tilt of 14 degrees
    write_with_sform(path, sheared)


def write_with_sform(path: Path, affine: np.ndarray) -> None:
    image = nib.Nifti1Image(numbered().astype("int16"), None)
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = affine[:3]
    image.header["sform_code"] = 1
    nib.Nifti1Image(image.dataobj, None, image.header).to_filename(path)


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (without_affine, "no_affine"),
        (two_volumes, "not_a_volume"),
        (one_slice, "not_a_volume"),
        (cut_short, "unreadable"),
        (damaged_within, "unreadable"),
        (text, "unreadable"),
        (zipped_text, "unreadable"),
        (empty, "unreadable"),
        (not_a_number, "not_finite"),
        (infinite, "not_finite"),
        (flat_affine, "bad_affine"),
        (infinite_affine, "bad_affine"),
        (sheared_affine, "bad_affine"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_file_that_is_no_ct_is_refused_with_its_reason(
    tmp_path: Path, damage: Callable[[Path], None], code: str
) -> None:
    damage(tmp_path / "p7.nii.gz")
    with pytest.raises(Refused, match=r"p7\.nii\.gz") as refused:
        read_nifti_ct(tmp_path / "p7.nii.gz")
    assert refused.value.code == code


@pytest.mark.parametrize("damage", [text, cut_short, empty])
def test_a_file_that_is_not_zipped_is_refused_alike(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(tmp_path / "p7.nii")
    with pytest.raises(Refused, match=r"p7\.nii") as refused:
        read_nifti_ct(tmp_path / "p7.nii")
    assert refused.value.code == "unreadable"


def test_a_mask_is_refused_for_the_same_reasons(tmp_path: Path) -> None:
    without_affine(tmp_path / "p7.nii")
    with pytest.raises(Refused) as refused:
        read_nifti_mask(tmp_path / "p7.nii")
    assert refused.value.code == "no_affine"


def test_nifti_files_are_found_at_any_depth_and_others_left(tmp_path: Path) -> None:
    for name in ("b/c/p1.nii", "a/p2.nii.gz", "p3.nii.gz.txt", "notes.txt", "p4.img"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_nifti(tmp_path)]
    assert found == ["a/p2.nii.gz", "b/c/p1.nii"]
    assert find_nifti(tmp_path / "b/c/p1.nii") == [tmp_path / "b/c/p1.nii"]


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("p7.nii.gz", "p7"),
        ("p7_image.nii", "p7"),
        ("p7-Label.nii.gz", "p7"),
        ("p7.seg.nii.gz", "p7"),
        ("p7_0000.nii.gz", "p7_0000"),
        ("image.nii.gz", "image"),
        ("direct.nii", "direct"),
    ],
)
def test_a_stem_is_the_name_without_ending_and_role(name: str, stem: str) -> None:
    assert stem_of(Path("folder") / name) == stem


def test_one_head_in_twelve_axis_orders_is_one_image(shared_data: Path) -> None:
    folder = shared_data / "orientations"
    expected = nib.as_closest_canonical(nib.load(folder / "RAS.nii.gz"))
    for axes in AXES:
        image = read_nifti_ct(folder / f"{axes}.nii.gz")
        assert nib.aff2axcodes(image.affine)[2] == "S"
        np.testing.assert_allclose(values_of(image), expected.dataobj, rtol=1e-6)
        upright = nib.as_closest_canonical(image)
        np.testing.assert_allclose(upright.affine, expected.affine, atol=1e-3)


@pytest.mark.parametrize(("name", "code"), [("no_affine", "no_affine"), ("shear", "bad_affine")])
def test_a_real_file_without_a_usable_place_is_refused(
    shared_data: Path, name: str, code: str
) -> None:
    with pytest.raises(Refused) as refused:
        read_nifti_ct(shared_data / "orientations" / f"{name}.nii.gz")
    assert refused.value.code == code


def test_a_real_scan_stored_as_int32_and_its_mask_as_float64_are_read(shared_data: Path) -> None:
    image = read_nifti_ct(shared_data / "abdomen" / "ct.nii.gz")
    mask = read_nifti_mask(shared_data / "abdomen" / "pancreas.nii.gz")
    assert image.shape == mask.shape == (122, 101, 112)
    voxels = np.asarray(image.dataobj)
    assert (voxels.dtype, voxels.min(), voxels.max()) == (np.int16, -1207, 3382)
    assert (mask.get_data_dtype(), np.count_nonzero(mask.dataobj)) == (np.uint8, 818)
