"""Scans and label maps as NIfTI and NRRD: read with slices from feet to head, or refused."""

import bz2
import contextlib
import gzip
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from pancseg.dicom.series import Scan
from pancseg.errors import Refused
from pancseg.intake import volume_files
from pancseg.intake.volume_files import (
    LARGEST_TAIL,
    ReadOptions,
    read_label_file,
    read_scan_file,
    stem_of,
    without_suffix,
)
from pancseg.structures import Label, LabelMap
from tests.tiny_labels import damaged, structures, voxels, write_nrrd

SCAN = Scan(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4)))  # on no label's grid
DOT = np.zeros((3, 4, 5), np.uint8)
DOT[1, 2, 3] = 1
SLICER = {"Segment0_Name": "Liver", "Segment0_LabelValue": 1, "Segment0_Layer": 0}
SLICER |= {"Segment1_Name": "Pankreas größer", "Segment1_LabelValue": 2, "Segment1_Layer": 0}
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
    return read_scan_file(path).image


def mask_of(path: Path, *labels: Label, **options: Any) -> LabelMap:
    label = read_label_file(path, ReadOptions(structures(labels or None), **options), SCAN)
    assert label.image.get_data_dtype() == np.uint8
    return label


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


@pytest.mark.parametrize(
    ("stored", "slope", "image_bytes", "label_bytes"),
    [("uint8", 1, 1 + 2, 1 + 2 + 1), ("int16", 1, 2, 2 + 1), ("uint8", 0.1, 1 + 2 + 4, 1 + 4 + 1)],
)  # stored, int16 or float32, codes
def test_memory_is_that_of_the_stored_values_and_the_result(
    tmp_path: Path, stored: str, slope: float, image_bytes: int, label_bytes: int
) -> None:
    values = np.random.default_rng(0).integers(0, 100, (192, 192, 64)).astype(stored)
    image = nib.Nifti1Image(values, AFFINE)
    image.header.set_slope_inter(slope, 0)
    nib.save(image, tmp_path / "ct.nii.gz")
    assert peak_of(lambda: ct_of(tmp_path / "ct.nii.gz")) < (image_bytes + 0.8) * values.size
    assert peak_of(lambda: mask_of(tmp_path / "ct.nii.gz", 1)) < (label_bytes + 2) * values.size


def test_what_memory_cannot_hold_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write(tmp_path / "a.nii.gz", DOT), write_nrrd(tmp_path / "a.nrrd", DOT)
    for bytes_there, is_read in ((3 * DOT.size + 60, True), (3 * DOT.size - 1, False)):
        monkeypatch.setattr(volume_files, "main_memory", lambda n=bytes_there: n)
        for file in files:
            with contextlib.nullcontext() if is_read else pytest.raises(Refused, match="too_large"):
                read_scan_file(file)


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


@pytest.mark.parametrize(
    ("shift_mm", "is_flagged"), [(0.19, False), (0.21, True), (20, True), (np.nan, False)]
)
def test_a_qform_that_disagrees_with_the_sform_is_flagged_and_kept(
    tmp_path: Path, shift_mm: float, is_flagged: bool
) -> None:
    image = nib.Nifti1Image(numbered().astype("int16"), AFFINE)  # a tenth of a voxel is 0.2 mm
    image.header.set_qform(AFFINE, code=2)
    image.header["qoffset_z"] += shift_mm
    nib.save(image, tmp_path / "ct.nii.gz")
    scan = read_scan_file(tmp_path / "ct.nii.gz")
    np.testing.assert_allclose(scan.image.affine, AFFINE)
    assert scan.flags == (("sform_qform",) if is_flagged else ())
    if is_flagged:
        np.testing.assert_allclose(
            scan.qform - AFFINE, np.outer([0, 0, 1, 0], [0, 0, 0, shift_mm]), atol=1e-5
        )
    else:
        assert scan.qform is None
    image.header["sform_code"] = 0
    nib.Nifti1Image(numbered().astype("int16"), None, image.header).to_filename(tmp_path / "q.nii")
    if np.isfinite(shift_mm):
        alone = read_scan_file(tmp_path / "q.nii")
        np.testing.assert_allclose(alone.image.affine[2, 3], 30 + shift_mm, atol=1e-5)
        assert alone.flags == ()


@pytest.mark.parametrize("after", [b"", bytes(512), bytes(100_000)])
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
    ("labels", "declared", "chosen", "unknown_values"),
    [
        ((), (), [1, 2, 7], ("1", "2", "7")),
        ((1,), (), [1], ()),
        ((1, 2), (7,), [1, 2], ()),
        ((), (1, 2), [1, 2, 7], ("7",)),
    ],
)
def test_values_of_a_mask_are_chosen(
    tmp_path: Path,
    labels: tuple[int, ...],
    declared: tuple[int, ...],
    chosen: list[int],
    unknown_values: tuple[str, ...],
) -> None:
    values = np.zeros((2, 3, 4))
    values[1, 1] = [0, 1, 2, 7]
    path = write(tmp_path / "mask.nii.gz", values, dtype="uint8")
    label = mask_of(path, *labels, declared=declared)
    assert label.unknown_values == unknown_values
    assert np.unique(values[np.asarray(label.image.dataobj) == 1]).tolist() == chosen


def test_of_structures_that_share_a_value_the_later_one_has_it(tmp_path: Path) -> None:
    path = write(tmp_path / "mask.nii.gz", numbered(), dtype="uint8")
    options = ReadOptions(structures((1, 2), (2,), (7,)))
    codes = read_label_file(path, options, SCAN).image.dataobj
    assert np.asarray(codes).ravel()[:9].tolist() == [0, 1, 2, 0, 0, 0, 0, 3, 0]


@pytest.mark.parametrize("stored", ["uint8", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("labels", [(1, 2), ()])
def test_whole_labels_that_were_saved_through_floats_are_those_labels(
    tmp_path: Path, stored: str, classes: int, labels: tuple[int, ...]
) -> None:
    whole = np.zeros((12, 12, 12))
    whole.ravel()[:917] = np.arange(917) % classes + 1
    header = nib.Nifti1Header()
    header.set_data_dtype(stored)  # nibabel scales floats to the range of an integer type
    values = whole * 0.99999 if stored.startswith("float") else whole
    nib.save(nib.Nifti1Image(values, AFFINE, header), tmp_path / "mask.nii.gz")
    assert not np.array_equal(nib.load(tmp_path / "mask.nii.gz").get_fdata(), whole)
    label = mask_of(tmp_path / "mask.nii.gz", *labels, declared=(1, 2, 3))
    expected = np.isin(whole, labels) if labels else whole > 0
    np.testing.assert_array_equal(label.image.dataobj, expected)
    assert label.unknown_values == ()


@pytest.mark.parametrize("stored", ["uint8", "float32"])
def test_the_ignore_label_becomes_background_with_a_flag(tmp_path: Path, stored: str) -> None:
    values = np.zeros((10, 10, 10))
    values[0, 0, 0], values[1, 0, :9] = 1, 3  # 0.9 % are ignored
    path = write(tmp_path / "mask.nii.gz", values, dtype=stored)
    for labels in ((), (1, 3)):
        label = mask_of(path, *labels, declared=(1, 3), ignore=3)
        assert (voxels(label.image), label.unknown_values) == ([[0, 0, 0]], ())
        assert label.flags == ("ignore_label",)
    assert mask_of(path, ignore=4).flags == ()
    values[2, 0, :2] = 3
    write(path, values, dtype=stored)
    with pytest.raises(Refused, match=r"ignore_label: .* on 1\.1% of its voxels, .* at most 1%"):
        mask_of(path, ignore=3)


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
    for name in ("p7.nii", "p7.nii.gz"):
        with pytest.raises(Refused, match="has 40 bytes of voxels, expected 48"):
            ct_of(tmp_path / name)


@pytest.mark.parametrize("lost", range(1, 9))
def test_a_zipped_file_without_its_whole_checksum_is_refused(tmp_path: Path, lost: int) -> None:
    path = write(tmp_path / "p7.nii.gz", numbered())
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(Refused, match="ends within compressed data") as refused:
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
    assert LARGEST_TAIL <= 2**20 and len(bomb) < 12e6

    def read() -> None:
        with pytest.raises(Refused, match="goes on after 48 bytes of voxels"):
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
def test_a_stem_is_the_name_without_suffix_and_role(name: str, stem: str) -> None:
    assert stem_of(Path("folder") / name) == stem


@pytest.mark.parametrize("name", ["p7_ct.nii.gz", "p7_ct.seg.nrrd", "p7_ct.nii", "p7_ct"])
def test_a_name_without_suffix_keeps_its_role(name: str) -> None:
    assert without_suffix(Path(name)) == "p7_ct"


def refusal(file: Path, *labels: Label) -> Refused:
    with pytest.raises(Refused) as refused:
        mask_of(file, *labels)
    assert "\n" not in str(refused.value)
    return refused.value


def test_axes_are_as_stored_and_the_corner_turns_from_lps_to_ras(tmp_path: Path) -> None:
    image = mask_of(write_nrrd(tmp_path / "a.nrrd", DOT)).image
    assert voxels(image) == [[1, 2, 3]]
    expected = [[-0.5, 0, 0, 10], [0, -0.8, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1]]
    np.testing.assert_allclose(image.affine, expected)


@pytest.mark.parametrize(
    ("space", "corner"),
    [
        ("left-posterior-superior", [10, 20, 30]),
        ("LPS", [10, 20, 30]),
        ("right-anterior-superior", [-10, -20, 30]),
        ("RAS", [-10, -20, 30]),
        ("Left-Anterior-Superior", [10, -20, 30]),
        ("LAS", [10, -20, 30]),
    ],
)
def test_every_space_of_patients_turns_to_ras(
    tmp_path: Path, space: str, corner: list[float]
) -> None:
    image = mask_of(write_nrrd(tmp_path / "a.nrrd", DOT, space=space)).image
    assert image.affine[:3, 3].tolist() == corner


@pytest.mark.parametrize("space", ["left-posterior-superior", "LAS", "RAS"])
@pytest.mark.parametrize("encoding", ["gzip", "raw"])
def test_voxels_and_place_are_those_of_simpleitk(tmp_path: Path, space: str, encoding: str) -> None:
    random = np.random.default_rng(0)
    values = (random.random((3, 4, 5)) < 0.4).astype(np.int16)
    fields: dict[str, Any] = {"space_directions": "(0,0,-1.5) (0.6,0.8,0) (-1.6,1.2,0)"}
    content = values.tobytes(order="F") if encoding == "raw" else None
    file = tmp_path / "a.nrrd"
    write_nrrd(file, values, space=space, encoding=encoding, content=content, **fields)
    assert_equals_simpleitk(mask_of(file).image, file)


def assert_equals_simpleitk(ours: nib.Nifti1Image, file: Path) -> None:
    """In value and place."""
    image = SimpleITK.ReadImage(str(file))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    theirs = SimpleITK.GetArrayFromImage(image).T != 0
    truth = nib.Nifti1Image(theirs.astype(np.uint8), np.diag([-1, -1, 1, 1]) @ affine)
    ours, truth = nib.as_closest_canonical(ours), nib.as_closest_canonical(truth)
    np.testing.assert_allclose(ours.affine, truth.affine, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(truth.dataobj))
    assert np.asarray(ours.dataobj).any()


@pytest.mark.parametrize(
    "name", ["liver_seg", "partial_overlaps-2", "single_and_multiframe/nrrd/label"]
)
def test_a_published_mask_equals_simpleitks_reading(shared_data: Path, name: str) -> None:
    file = shared_data / "seg" / f"{name}.nrrd"
    assert_equals_simpleitk(mask_of(file).image, file)


def test_bzip2_is_unpacked(tmp_path: Path) -> None:
    content = bz2.compress(DOT.tobytes(order="F"))
    file = write_nrrd(tmp_path / "a.nrrd", DOT, encoding="bzip2", content=content)
    assert voxels(mask_of(file).image) == [[1, 2, 3]]


def test_big_endian_voxels_are_read(tmp_path: Path) -> None:
    file = write_nrrd(tmp_path / "a.nrrd", DOT.astype(">i2"), endian="big")
    assert voxels(mask_of(file, 1).image) == [[1, 2, 3]]


def test_the_last_axis_runs_from_feet_to_head(tmp_path: Path) -> None:
    directions = "(0.5,0,0) (0,0.8,0) (0,0,-2.5)"
    image = mask_of(write_nrrd(tmp_path / "a.nrrd", DOT, space_directions=directions)).image
    assert nib.aff2axcodes(image.affine)[2] == "S"
    assert voxels(image) == [[1, 2, 1]]
    assert nib.affines.apply_affine(image.affine, [1, 2, 1]).tolist() == [9.5, 18.4, 22.5]


def test_values_without_names_are_chosen_by_value(tmp_path: Path) -> None:
    values = DOT * 2
    values[0, 0, 0] = 1
    file = write_nrrd(tmp_path / "a.nrrd", values)
    mask = mask_of(file, 2)
    assert (voxels(mask.image), mask.unknown_values) == ([[1, 2, 3]], ())
    assert mask_of(file).unknown_values == ("1", "2")
    assert refusal(file, "pancreas").code == "no_such_structure"


@pytest.mark.parametrize("labels", [("pankreas größer",), (2,)])
def test_a_named_segment_is_chosen_by_name_or_value(
    tmp_path: Path, labels: Sequence[Label]
) -> None:
    values = DOT * 2
    values[0, 0, 0] = 1
    mask = mask_of(write_nrrd(tmp_path / "a.seg.nrrd", values, **SLICER), *labels)
    assert (voxels(mask.image), mask.unknown_values) == ([[1, 2, 3]], ())


def test_an_unclear_choice_is_refused_with_what_there_is(tmp_path: Path) -> None:
    file = write_nrrd(tmp_path / "a.seg.nrrd", DOT, **SLICER)
    refused = refusal(file)
    assert (refused.code, "Liver" in str(refused)) == ("ambiguous_segment", False)
    assert refused.names == ("1 Liver", "2 Pankreas größer")
    assert refusal(file, "spleen").code == "no_such_segment"


def layered() -> tuple[np.ndarray, dict[str, Any]]:
    """Two layers that overlap, both with value 1, and one more structure as 2 in the second."""
    values = np.zeros((2, 3, 4, 5), np.uint8)
    values[0, :2, 0, 0] = values[1, 0, 0, 0] = 1
    values[1, 2, 3, 4] = 2
    fields: dict[str, Any] = {}
    for n, (name, value, layer) in enumerate([("A", 1, 0), ("B", 1, 1), ("C", 2, 1)]):
        fields |= {f"Segment{n}_Name": name, f"Segment{n}_LabelValue": value}
        fields |= {f"Segment{n}_Layer": layer}
    return values, fields


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("A",), [[0, 0, 0], [1, 0, 0]]),
        (("B",), [[0, 0, 0]]),
        (("c",), [[2, 3, 4]]),
        (("A", "B", "C"), [[0, 0, 0], [1, 0, 0], [2, 3, 4]]),
    ],
)
def test_segments_of_layers_are_chosen_by_name(
    tmp_path: Path, labels: Sequence[Label], expected: list[list[int]]
) -> None:
    values, fields = layered()
    assert voxels(
        mask_of(write_nrrd(tmp_path / "a.seg.nrrd", values, **fields), *labels).image
    ) == (expected)


def test_layers_may_be_the_last_axis(tmp_path: Path) -> None:
    values, fields = layered()
    directions = "(0.5,0,0) (0,0.8,0) (0,0,2.5) none"
    file = tmp_path / "a.seg.nrrd"
    write_nrrd(file, np.moveaxis(values, 0, -1), space_directions=directions, **fields)
    assert voxels(mask_of(file, "C").image) == [[2, 3, 4]]


def test_a_value_that_two_layers_share_names_no_segment(tmp_path: Path) -> None:
    values, fields = layered()
    file = write_nrrd(tmp_path / "a.seg.nrrd", values, **fields)
    refused = refusal(file, 1)
    assert refused.code == "no_such_segment"


def test_an_old_file_has_a_segment_in_each_layer(tmp_path: Path) -> None:
    values, _ = layered()
    fields = {"Segment0_Name": "A", "Segment1_Name": "B"}
    file = write_nrrd(tmp_path / "a.seg.nrrd", values, **fields)
    assert voxels(mask_of(file, "B").image) == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"space": None}, "no_affine"),
        ({"space": "scanner-xyz"}, "no_affine"),
        ({"space_directions": None}, "no_affine"),
        ({"space_directions": "none (0,0.8,0) (0,0,2.5)"}, "no_affine"),
        ({"space_origin": None}, "no_affine"),
        ({"space_units": '"cm" "cm" "cm"'}, "no_affine"),
        ({"space_directions": "(0.5,0,0) (0.5,0,0) (0,0,2.5)"}, "bad_affine"),
        ({"space_directions": "(0.5,0,0) (0.3,0.8,0) (0,0,2.5)"}, "bad_affine"),
        ({"space_directions": "(1e300,0,0) (0,1e300,0) (0,0,1e300)"}, "bad_affine"),
        ({"space_origin": "(inf,0,0)"}, "bad_affine"),
        ({"data_file": "b.raw"}, "detached_data"),
        ({"data_file": "/etc/passwd"}, "detached_data"),
        ({"datafile": "../b.raw"}, "detached_data"),
        ({"byte_skip": "-1"}, "unreadable"),
        ({"encoding": "hex"}, "unreadable"),
        ({"encoding": None}, "unreadable"),
        ({"sizes": None}, "unreadable"),
        ({"sizes": "3 4"}, "no_affine"),
        ({"sizes": "3 4 6"}, "truncated"),
        ({"sizes": "0 4 5"}, "not_a_volume"),
        ({"sizes": "-3 -4 5"}, "not_a_volume"),
        ({"sizes": "99999 99999 99999"}, "too_large"),
        ({"sizes": "4611686018427387904 4611686018427387904 4"}, "too_large"),
        ({"type": "block", "block_size": "1"}, "unreadable"),
        ({"type": "nonsense"}, "unreadable"),
        ({"Segment0_Name": "A", "Segment0_Layer": "3"}, "bad_segments"),
        ({"Segment0_Name": "A", "Segment0_LabelValue": "x"}, "unreadable"),
        ({"Segment0_Name": "A", "Segment0_LabelValue": "0"}, "bad_segments"),
    ],
    ids=str,
)
def test_a_header_with_one_fault_is_refused_with_its_reason(
    tmp_path: Path, fields: dict[str, Any], code: str
) -> None:
    (tmp_path / "b.raw").write_bytes(DOT.tobytes())
    assert refusal(write_nrrd(tmp_path / "a.nrrd", DOT, **fields)).code == code


@pytest.mark.parametrize("units", ['"mm" "mm" "mm"', '"" "" ""'])
def test_units_of_mm_are_known(tmp_path: Path, units: str) -> None:
    file = write_nrrd(tmp_path / "a.nrrd", DOT, space_units=units)
    assert voxels(mask_of(file).image) == [[1, 2, 3]]


def test_layers_without_names_are_no_volume(tmp_path: Path) -> None:
    assert refusal(write_nrrd(tmp_path / "a.nrrd", layered()[0])).code == "not_a_volume"


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    values = np.where(DOT, np.nan, 0).astype(np.float32)
    assert refusal(write_nrrd(tmp_path / "a.nrrd", values)).code == "not_finite"


def test_a_small_file_cannot_unpack_to_any_size(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(2**28))
    assert len(bomb) < 2**19
    file = write_nrrd(tmp_path / "a.nrrd", DOT, content=bomb)
    assert peak_of(lambda: refusal(file)) < 2**26
    assert refusal(file).code == "unreadable"


@pytest.mark.parametrize("content", [b"NRRD0004\n" + b"# comment\n" * 2**22, bytes(2**25)])
def test_a_header_without_an_end_is_not_read_whole(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.nrrd").write_bytes(content)
    assert peak_of(lambda: refusal(tmp_path / "a.nrrd")) < 2**25


def test_a_damaged_file_is_refused_or_read_and_never_stops_the_batch(tmp_path: Path) -> None:
    file = write_nrrd(tmp_path / "a.seg.nrrd", DOT, **SLICER)
    for one in damaged(file.read_bytes(), every=5, changes=300, places=2):
        file.write_bytes(one)
        with contextlib.suppress(Refused):
            mask_of(file, "Liver")


def test_a_mask_that_slicer_cropped_is_put_on_the_whole_grid(tmp_path: Path) -> None:
    affine = np.array([[-0.5, 0, 0, 10], [0, -0.8, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1]])
    scan = Scan(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), affine))
    origin = f"({-10 + 0.5},{-20 + 2 * 0.8},{30 + 3 * 2.5})"
    drawn = np.array([[[1], [0]], [[1], [1]]], np.uint8)
    file = write_nrrd(tmp_path / "a.nrrd", drawn, space_origin=origin)
    image = read_label_file(file, ReadOptions(structures((1,))), scan).image
    assert voxels(image) == [[1, 2, 3], [2, 2, 3], [2, 3, 3]]
    np.testing.assert_array_equal(image.affine, affine)


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize("values", [numbered() - 1000, numbered() / 2, numbered() * 10_000])
def test_a_ct_as_nrrd_is_read_as_simpleitk_does(
    tmp_path: Path, encoding: str, values: np.ndarray
) -> None:
    theirs = SimpleITK.GetImageFromArray(
        values.T.astype("float32" if values.max() == 11.5 else "int32")
    )
    theirs.SetSpacing((0.5, 0.8, 2.5))
    theirs.SetOrigin((-10, -20, 30))
    theirs.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, -1))
    SimpleITK.WriteImage(theirs, str(tmp_path / "ct.nrrd"), useCompression=encoding == "gzip")
    scan = read_scan_file(tmp_path / "ct.nrrd")
    assert (scan.flags, nib.aff2axcodes(scan.image.affine)[2]) == ((), "S")
    assert scan.image.get_data_dtype() == (np.int16 if values.min() == -1000 else np.float32)
    for index in np.ndindex(values.shape):
        left, posterior, head = theirs.TransformIndexToPhysicalPoint(index)
        for affine in (scan.image.affine, scan.file_affine):
            here = nib.affines.apply_affine(np.linalg.inv(affine), [-left, -posterior, head])
            np.testing.assert_allclose(here, np.rint(here), atol=1e-6)
            if affine is scan.file_affine:
                assert np.rint(here).tolist() == list(index)
            else:
                assert scan.image.dataobj[tuple(np.rint(here).astype(int))] == values[index]


def test_segments_or_layers_are_no_ct(tmp_path: Path) -> None:
    for file in (
        write_nrrd(tmp_path / "a.nrrd", DOT, **SLICER),
        write_nrrd(tmp_path / "b.nrrd", layered()[0]),
    ):
        with pytest.raises(Refused, match="not_a_volume"):
            read_scan_file(file)


@pytest.mark.parametrize(
    "keyword", ["space", "type", "encoding", "endian", "sizes", "space_origin"]
)
def test_the_text_of_a_header_is_not_quoted(tmp_path: Path, keyword: str) -> None:
    file = write_nrrd(tmp_path / "a.nrrd", DOT.astype("int16"), **{keyword: "DOE JOHN"})
    assert "DOE" not in str(refusal(file)).upper()
