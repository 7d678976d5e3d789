"""NIfTI files: read as HU or mask, turned to run from feet to head, or refused with a reason."""

import gzip
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from pancseg.errors import Refused
from pancseg.intake.found import Mask, Reading, Scan
from pancseg.intake.nifti.content import LONGEST_TAIL
from pancseg.intake.nifti.reading import (
    find_nifti,
    read_nifti_ct,
    read_nifti_mask,
    stem_of,
    without_ending,
)

AFFINE = np.array([[-2.0, 0, 0, 10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]])
AXES = ["AIL", "ASR", "ILP", "LAS", "LPS", "LSA", "PIR", "PSL", "RAS", "RPI", "SAR", "SRP"]


def overwrite(path: Path, at: int, values: np.ndarray) -> None:
    """Put bytes into a file, as damage or as what no writer offers."""
    content = bytearray(path.read_bytes())
    content[at : at + values.nbytes] = values.tobytes()
    path.write_bytes(content)


def peak_of(work: Callable[[], object]) -> int:
    """Most bytes that something held at a time, numpy's among them."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def numbered() -> np.ndarray:
    """A volume whose every voxel has a value of its own."""
    return np.arange(24).reshape(2, 3, 4)


def write(
    path: Path, voxels: np.ndarray, affine: np.ndarray | None = AFFINE, dtype: str = "int16"
) -> Path:
    nib.save(nib.Nifti1Image(voxels.astype(dtype), affine, dtype=dtype), path)
    return path


def ct_of(path: Path) -> nib.Nifti1Image:
    return read_nifti_ct(path).image


def mask_of(path: Path, *choice: int | str, declared: tuple[int, ...] = ()) -> Mask:
    scan = Scan(nib.Nifti1Image(np.zeros((1, 1, 1), "int16"), np.eye(4)))
    return read_nifti_mask(path, Reading(choice or None), scan, declared)


def values_of(image: nib.Nifti1Image) -> np.ndarray:
    return np.asarray(nib.as_closest_canonical(image).dataobj)


@pytest.mark.parametrize(
    "stored",
    [
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int32",
        "uint32",
        "int64",
        "uint64",
        "float32",
        "float64",
    ],
)
def test_whole_hu_become_int16_however_they_are_stored(tmp_path: Path, stored: str) -> None:
    image = ct_of(write(tmp_path / "ct.nii.gz", numbered(), dtype=stored))
    assert image.get_data_dtype() == np.int16
    np.testing.assert_array_equal(image.dataobj, numbered())
    np.testing.assert_allclose(image.affine, AFFINE)


def test_negative_hu_and_fractions_are_kept(tmp_path: Path) -> None:
    voxels = numbered() - 1024.5
    image = ct_of(write(tmp_path / "ct.nii", voxels, dtype="float64"))
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(image.dataobj, voxels)


@pytest.mark.parametrize("value", [32768, -32769, 1e10])
def test_hu_beyond_int16_stay_float32(tmp_path: Path, value: float) -> None:
    voxels = np.where(numbered() == 7, value, numbered())
    image = ct_of(write(tmp_path / "ct.nii", voxels, dtype="float64"))
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(image.dataobj, voxels)


def test_slope_and_intercept_of_the_file_are_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(numbered().astype("int16"), AFFINE)
    image.header.set_slope_inter(2, -1000)
    nib.save(image, tmp_path / "ct.nii")
    np.testing.assert_array_equal(ct_of(tmp_path / "ct.nii").dataobj, numbered() * 2 - 1000)


@pytest.mark.parametrize("stored", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("slope_intercept", [(1, -1024), (2, 3), (0.5, -7), (-1, 0), (1e3, 1e5)])
def test_values_are_those_that_nibabel_reads(
    tmp_path: Path, stored: str, slope_intercept: tuple[float, float]
) -> None:
    image = nib.Nifti1Image(numbered().astype(stored), AFFINE)
    image.header.set_slope_inter(*slope_intercept)
    nib.save(image, tmp_path / "ct.nii")
    theirs = nib.Nifti1Image.from_filename(tmp_path / "ct.nii").get_fdata()
    ours = ct_of(tmp_path / "ct.nii")
    np.testing.assert_array_equal(ours.dataobj, theirs)
    whole = np.array_equal(theirs, np.rint(theirs)) and np.abs(theirs).max() < 32768
    assert ours.get_data_dtype() == (np.int16 if whole else np.float32)


@pytest.mark.parametrize("stored", ["uint8", "int16", "float32"])
def test_values_of_a_mask_are_chosen_after_slope_and_intercept(tmp_path: Path, stored: str) -> None:
    image = nib.Nifti1Image(numbered().astype(stored), AFFINE)
    image.header.set_slope_inter(0.5, -2)
    nib.save(image, tmp_path / "mask.nii")
    mask = mask_of(tmp_path / "mask.nii", 3).image
    np.testing.assert_array_equal(mask.dataobj, numbered() * 0.5 - 2 == 3)


@pytest.mark.parametrize("slope", [np.nan, 0, np.inf])
def test_a_slope_that_is_no_number_is_none(tmp_path: Path, slope: float) -> None:
    path = write(tmp_path / "ct.nii", numbered())
    overwrite(path, 112, np.array([slope, 7], "float32"))
    np.testing.assert_array_equal(ct_of(path).dataobj, numbered())


def test_int16_is_read_without_a_copy_and_other_integers_with_one(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 1000, (128, 128, 128)).astype("int16")
    for stored, most in (("int16", 1.3), ("int32", 3.3)):
        path = write(tmp_path / f"{stored}.nii.gz", voxels, dtype=stored)
        assert peak_of(lambda: ct_of(path)) < most * voxels.nbytes  # noqa: B023


@pytest.mark.parametrize(("unit", "mm"), [(0, 1), (1, 1000), (2, 1), (3, 0.001), (2 + 8, 1)])
def test_metres_and_micrometres_become_millimetres(tmp_path: Path, unit: int, mm: float) -> None:
    path = write(tmp_path / "ct.nii", numbered(), np.diag([0.5, 0.5, 2, mm]) / mm)
    overwrite(path, 123, np.array([unit], "uint8"))
    np.testing.assert_allclose(ct_of(path).affine, np.diag([0.5, 0.5, 2, 1]))
    if unit in (1, 2, 3):
        np.testing.assert_allclose(SimpleITK.ReadImage(str(path)).GetSpacing(), [0.5, 0.5, 2])


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("stored", ["int16", "float32"])
def test_a_file_of_the_other_byte_order_is_read(tmp_path: Path, kind: Any, stored: str) -> None:
    header = kind.header_class(endianness=">")
    image = kind(numbered().astype(stored), AFFINE, header)
    nib.save(image, tmp_path / "ct.nii.gz")
    assert gzip.decompress((tmp_path / "ct.nii.gz").read_bytes())[0] == 0
    read = ct_of(tmp_path / "ct.nii.gz")
    assert np.asarray(read.dataobj).dtype.isnative
    np.testing.assert_array_equal(read.dataobj, numbered())
    np.testing.assert_allclose(read.affine, AFFINE)


def test_voxels_begin_after_extensions(tmp_path: Path) -> None:
    image = nib.Nifti1Image(numbered().astype("int16"), AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 5000))
    nib.save(image, tmp_path / "ct.nii.gz")
    np.testing.assert_array_equal(ct_of(tmp_path / "ct.nii.gz").dataobj, numbered())


def test_the_sform_counts_where_the_qform_says_otherwise(tmp_path: Path) -> None:
    image = nib.Nifti1Image(numbered().astype("int16"), AFFINE)
    image.set_qform(np.diag([1.0, 1, 1, 1]), code=1)
    nib.save(image, tmp_path / "ct.nii")
    np.testing.assert_allclose(ct_of(tmp_path / "ct.nii").affine, AFFINE)
    image.set_sform(None, code=0)
    nib.save(image, tmp_path / "ct.nii")
    np.testing.assert_allclose(ct_of(tmp_path / "ct.nii").affine, np.eye(4))


@pytest.mark.parametrize("after", [b"", bytes(512), b"garbage", b"\x1f", bytes(100_000)])
def test_zipped_members_follow_each_other_and_padding_is_left(tmp_path: Path, after: bytes) -> None:
    content = write(tmp_path / "ct.nii", numbered()).read_bytes()
    members = [gzip.compress(content[start : start + 99]) for start in range(0, len(content), 99)]
    (tmp_path / "ct.nii.gz").write_bytes(b"".join(members) + after)
    np.testing.assert_array_equal(ct_of(tmp_path / "ct.nii.gz").dataobj, numbered())


def test_bytes_after_the_voxels_are_left(tmp_path: Path) -> None:
    content = write(tmp_path / "ct.nii", numbered()).read_bytes() + b"more" * 1000
    (tmp_path / "ct.nii").write_bytes(content)
    (tmp_path / "ct.nii.gz").write_bytes(gzip.compress(content))
    for name in ("ct.nii", "ct.nii.gz"):
        np.testing.assert_array_equal(ct_of(tmp_path / name).dataobj, numbered())


def test_what_is_zipped_shows_in_the_file_not_in_its_name(tmp_path: Path) -> None:
    content = write(tmp_path / "ct.nii", numbered()).read_bytes()
    (tmp_path / "plain.nii.gz").write_bytes(content)
    (tmp_path / "zipped.nii").write_bytes(gzip.compress(content))
    for name in ("plain.nii.gz", "zipped.nii"):
        np.testing.assert_array_equal(ct_of(tmp_path / name).dataobj, numbered())


@pytest.mark.parametrize("shape", [(2, 3, 4, 1), (2, 3, 4, 1, 1)])
def test_one_volume_with_more_axes_is_a_volume(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = write(tmp_path / "ct.nii", numbered().reshape(shape))
    np.testing.assert_array_equal(ct_of(path).dataobj, numbered())
    np.testing.assert_array_equal(mask_of(path).image.dataobj, numbered() != 0)


def test_nifti_2_is_read(tmp_path: Path) -> None:
    nib.save(nib.Nifti2Image(numbered().astype("int16"), AFFINE), tmp_path / "ct.nii")
    np.testing.assert_array_equal(ct_of(tmp_path / "ct.nii").dataobj, numbered())


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SRP", "ASL"])
def test_slices_run_from_feet_to_head_and_voxels_stay_in_place(tmp_path: Path, codes: str) -> None:
    upright = nib.Nifti1Image(numbered().astype("int16"), np.diag([2.0, 3, 4, 1]))
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(upright.affine), nib.orientations.axcodes2ornt(codes)
    )
    nib.save(upright.as_reoriented(turn), tmp_path / "ct.nii")
    image = ct_of(tmp_path / "ct.nii")
    kept = codes.replace("S", "").replace("I", "")
    assert "".join(nib.aff2axcodes(image.affine)) == kept + "S"
    np.testing.assert_array_equal(values_of(image), numbered())
    np.testing.assert_allclose(nib.as_closest_canonical(image).affine, upright.affine)
    mask = mask_of(tmp_path / "ct.nii").image
    np.testing.assert_allclose(mask.affine, image.affine)
    np.testing.assert_array_equal(mask.dataobj, np.asarray(image.dataobj) != 0)


def test_a_file_lands_where_simpleitk_puts_it(tmp_path: Path) -> None:
    image = ct_of(write(tmp_path / "ct.nii.gz", numbered()))
    theirs = SimpleITK.ReadImage(str(tmp_path / "ct.nii.gz"))
    for index in np.ndindex(2, 3, 4):
        left, posterior, head = theirs.TransformIndexToPhysicalPoint(index)
        here = nib.affines.apply_affine(np.linalg.inv(image.affine), [-left, -posterior, head])
        assert image.dataobj[tuple(np.rint(here).astype(int))] == theirs[index]


@pytest.mark.parametrize("stored", ["uint8", "int64", "float64"])
def test_a_mask_is_1_wherever_a_value_is_not_0(tmp_path: Path, stored: str) -> None:
    voxels = np.zeros((2, 3, 4))
    voxels[1, 2, 3], voxels[0, 0, 0] = 1, 255
    mask = mask_of(write(tmp_path / "mask.nii.gz", voxels, dtype=stored)).image
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(mask.dataobj, voxels != 0)


@pytest.mark.parametrize(
    ("choice", "declared", "chosen", "undeclared"),
    [
        ((), (), [1, 2, 7], ("1", "2", "7")),
        ((1,), (), [1], ("2", "7")),
        ((1, 2), (7,), [1, 2], ()),
        ((), (1, 2), [1, 2, 7], ("7",)),
    ],
)
def test_values_of_a_mask_are_chosen(
    tmp_path: Path,
    choice: tuple[int, ...],
    declared: tuple[int, ...],
    chosen: list[int],
    undeclared: tuple[str, ...],
) -> None:
    voxels = np.zeros((2, 3, 4))
    voxels[1, 1] = [0, 1, 2, 7]
    path = write(tmp_path / "mask.nii.gz", voxels, dtype="uint8")
    mask = mask_of(path, *choice, declared=declared)
    assert mask.undeclared == undeclared
    assert np.unique(voxels[np.asarray(mask.image.dataobj) == 1]).tolist() == chosen


def test_nan_in_a_mask_is_not_foreground(tmp_path: Path) -> None:
    voxels = np.full((2, 3, 4), np.nan)
    voxels[1, 2, 3] = 1
    with pytest.raises(Refused) as refused:
        mask_of(write(tmp_path / "mask.nii", voxels, dtype="float32"))
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


def infinite_as_float32(path: Path) -> None:
    write(path, np.where(numbered() == 7, 1e300, numbered()), dtype="float64")


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
        (cut_short, "truncated"),
        (damaged_within, "unreadable"),
        (text, "unreadable"),
        (zipped_text, "unreadable"),
        (empty, "unreadable"),
        (not_a_number, "not_finite"),
        (infinite, "not_finite"),
        (infinite_as_float32, "not_finite"),
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
        ct_of(tmp_path / "p7.nii.gz")
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("damage", "code"), [(text, "unreadable"), (cut_short, "truncated"), (empty, "unreadable")]
)
def test_a_file_that_is_not_zipped_is_refused_alike(
    tmp_path: Path, damage: Callable[[Path], None], code: str
) -> None:
    damage(tmp_path / "p7.nii")
    with pytest.raises(Refused, match=r"p7\.nii") as refused:
        ct_of(tmp_path / "p7.nii")
    assert refused.value.code == code


def test_a_mask_is_refused_for_the_same_reasons(tmp_path: Path) -> None:
    without_affine(tmp_path / "p7.nii")
    with pytest.raises(Refused) as refused:
        mask_of(tmp_path / "p7.nii")
    assert refused.value.code == "no_affine"


HOSTILE: dict[str, tuple[int, Any, str]] = {  # name: (offset in the header, values, code)
    "no axes": (40, np.array([0], "int16"), "not_a_volume"),
    "a hundred axes": (40, np.array([100], "int16"), "unreadable"),
    "negative side": (42, np.array([-2], "int16"), "not_a_volume"),
    "empty side": (44, np.array([0], "int16"), "not_a_volume"),
    "two volumes": (40, np.array([4, 2, 3, 2, 2], "int16"), "not_a_volume"),
    "more than the file": (42, np.array([20, 30, 40], "int16"), "truncated"),
    "65 TB": (42, np.array([32767, 32767, 32767], "int16"), "too_large"),
    "a product that wraps": (
        40,
        np.array([7, 32767, 32767, 32767, 1, 1, 1, 1], "int16"),
        "too_large",
    ),
    "unknown type": (70, np.array([999], "int16"), "unreadable"),
    "no type": (70, np.array([0], "int16"), "unreadable"),
    "one bit": (70, np.array([1], "int16"), "unreadable"),
    "complex": (70, np.array([32], "int16"), "not_a_volume"),
    "RGB": (70, np.array([128], "int16"), "not_a_volume"),
    "voxels within the header": (108, np.array([100], "float32"), "unreadable"),
    "voxels at 0": (108, np.array([0], "float32"), "unreadable"),
    "voxels before the file": (108, np.array([-400], "float32"), "unreadable"),
    "voxels after the file": (108, np.array([1e6], "float32"), "truncated"),
    "voxels nowhere": (108, np.array([np.nan], "float32"), "unreadable"),
    "voxels at infinity": (108, np.array([np.inf], "float32"), "unreadable"),
    "huge slope": (112, np.array([1e30, 0], "float32"), "bad_rescale"),
    "infinite intercept": (112, np.array([1, np.inf], "float32"), "unreadable"),
    "NaN pixdim": (80, np.array([np.nan], "float32"), "bad_affine"),
    "NaN in the quaternion": (256, np.array([np.nan], "float32"), "bad_affine"),
    "long quaternion": (256, np.array([5, 5, 5], "float32"), "unreadable"),
    "far away": (268, np.array([1e30], "float32"), "bad_affine"),
    "NaN affine": (254, (np.array([1], "int16"), np.array([np.nan] * 12, "float32")), "bad_affine"),
    "zero affine": (254, (np.array([1], "int16"), np.array([0] * 12, "float32")), "bad_affine"),
    "no magic": (344, np.array([0, 0, 0, 0], "uint8"), "unreadable"),
    "voxels in another file": (344, np.frombuffer(b"ni1\0", "uint8"), "unreadable"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_hostile_header_is_refused_before_anything_is_allocated(
    tmp_path: Path, name: str, ending: str
) -> None:
    offset, values, code = HOSTILE[name]
    image = nib.Nifti1Image(numbered().astype("int16"), None)
    image.set_qform(AFFINE, code=1)
    path = tmp_path / "p7.nii"
    nib.save(image, path)
    if isinstance(values, tuple):
        overwrite(path, offset, values[0])
        offset, values = 280, values[1]
    overwrite(path, offset, values)
    if ending == ".nii.gz":
        path = tmp_path / "p7.nii.gz"
        path.write_bytes(gzip.compress((tmp_path / "p7.nii").read_bytes()))

    def read() -> None:
        with pytest.raises(Refused) as refused:
            ct_of(path)
        assert refused.value.code == code
        with pytest.raises(Refused) as refused:
            mask_of(path)
        assert refused.value.code == code

    assert peak_of(read) < 2e6


def test_a_truncated_file_says_what_it_has_and_what_its_header_claims(tmp_path: Path) -> None:
    content = write(tmp_path / "p7.nii", numbered()).read_bytes()[:-8]
    (tmp_path / "p7.nii").write_bytes(content)
    (tmp_path / "p7.nii.gz").write_bytes(gzip.compress(content))
    with pytest.raises(Refused, match="has 392 bytes, its header claims 400"):
        ct_of(tmp_path / "p7.nii")
    with pytest.raises(Refused, match="40 bytes of voxels, its header claims 48"):
        ct_of(tmp_path / "p7.nii.gz")


@pytest.mark.parametrize("lost", range(1, 9))
def test_a_zipped_file_without_its_whole_checksum_is_refused(tmp_path: Path, lost: int) -> None:
    path = write(tmp_path / "p7.nii.gz", numbered())
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(Refused, match=r"no (checksum|end)") as refused:
        ct_of(path)
    assert refused.value.code == "truncated"


@pytest.mark.parametrize("at", range(1, 9))
def test_a_zipped_file_with_a_wrong_checksum_is_refused(tmp_path: Path, at: int) -> None:
    path = write(tmp_path / "p7.nii.gz", numbered())
    content = bytearray(path.read_bytes())
    content[-at] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(Refused, match="unreadable"):
        ct_of(path)


def test_a_gzip_bomb_is_refused_without_being_unpacked(tmp_path: Path) -> None:
    content = write(tmp_path / "p7.nii", numbered()).read_bytes()
    nothing = gzip.compress(bytes(2**24), compresslevel=1)
    bomb = gzip.compress(content) + nothing * 128  # 2 GiB
    (tmp_path / "p7.nii.gz").write_bytes(bomb)
    assert LONGEST_TAIL <= 2**24 and len(bomb) < 12e6

    def read() -> None:
        with pytest.raises(Refused, match="goes on after the 48 bytes that it claims"):
            ct_of(tmp_path / "p7.nii.gz")

    assert peak_of(read) < 200e6


def test_random_damage_is_refused_or_read_and_never_anything_else(tmp_path: Path) -> None:
    whole = write(tmp_path / "p7.nii", numbered()).read_bytes()
    zipped = gzip.compress(whole)
    rng, codes = np.random.default_rng(11), set()
    for n in range(600):
        content = bytearray(zipped if n % 4 == 0 else whole)
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(len(content))] = rng.integers(256)
        path = tmp_path / "damaged.nii.gz"
        path.write_bytes(content)
        for read in (ct_of, mask_of):
            try:
                read(path)
            except Refused as refused:
                codes.add(refused.code)
    assert codes >= {"unreadable", "not_a_volume", "truncated", "bad_affine"}


def test_nifti_files_are_found_at_any_depth_and_others_left(tmp_path: Path) -> None:
    for name in ("b/c/p1.nii", "a/p2.nii.gz", "p3.nii.gz.txt", "p4.img", "a/._p2.nii.gz"):
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
        ("p7.NII.GZ", "p7"),
        ("p7.seg.nrrd", "p7"),
        ("p7_ct.seg.nrrd", "p7"),
        ("p7_label.nrrd", "p7"),
    ],
)
def test_a_stem_is_the_name_without_ending_and_role(name: str, stem: str) -> None:
    assert stem_of(Path("folder") / name) == stem


@pytest.mark.parametrize("name", ["p7_ct.nii.gz", "p7_ct.seg.nrrd", "p7_ct.nii", "p7_ct"])
def test_a_name_without_ending_keeps_its_role(name: str) -> None:
    assert without_ending(Path(name)) == "p7_ct"
