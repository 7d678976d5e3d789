"""Scans and label maps as NIfTI and NRRD: read with slices from feet to head, or refused."""

import bz2
import contextlib
import gzip
import tracemalloc
from collections.abc import Callable
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
    ReadOptions,
    read_label_file,
    read_scan_file,
)
from pancseg.structures import Label, LabelMap
from tests.tiny_labels import damaged, structures, voxels, write_nrrd

AFFINE = np.array([[-2.0, 0, 0, 10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]])
NUMBERED = np.arange(24).reshape(2, 3, 4)  # every voxel has its own value
SCAN = Scan(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4)))  # on no label's grid
DOT = np.zeros((3, 4, 5), np.uint8)
DOT[1, 2, 3] = 1
SLICER = {"Segment0_Name": "Liver", "Segment0_LabelValue": 1, "Segment0_Layer": 0}
SLICER |= {"Segment1_Name": "Pankreas größer", "Segment1_LabelValue": 2, "Segment1_Layer": 0}


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


def write(path: Path, values: np.ndarray = NUMBERED, dtype: str = "int16", *slope: float) -> Path:
    image = nib.Nifti1Image(values.astype(dtype), AFFINE)
    if slope:
        image.header.set_slope_inter(*slope)
    nib.save(image, path)
    return path


def ct_of(path: Path) -> nib.Nifti1Image:
    return read_scan_file(path).image


def mask_of(path: Path, *labels: Label, **options: Any) -> LabelMap:
    label = read_label_file(path, ReadOptions(structures(labels or None), **options), SCAN)
    assert label.image.get_data_dtype() == np.uint8
    return label


def refusal(path: Path, *labels: Label) -> Refused:
    with pytest.raises(Refused) as refused:
        mask_of(path, *labels)
    assert "\n" not in str(refused.value)
    return refused.value


# NIfTI


@pytest.mark.parametrize("stored", ["uint8", "int16", "int32", "float64"])
@pytest.mark.parametrize("slope", [(1, 0), (2, 3), (0.5, -7), (-1, 0), (1e3, 1e5)])
def test_values_are_those_that_nibabel_reads(tmp_path, stored, slope):
    path = write(tmp_path / "ct.nii", NUMBERED, stored, *slope)
    theirs = nib.Nifti1Image.from_filename(path).get_fdata()
    ours = ct_of(path)
    np.testing.assert_array_equal(ours.dataobj, theirs)
    np.testing.assert_allclose(ours.affine, AFFINE)
    is_whole = np.array_equal(theirs, np.rint(theirs)) and np.abs(theirs).max() < 32768
    assert ours.get_data_dtype() == (np.int16 if is_whole else np.float32)
    chosen = float(theirs[1, 1, 1])
    if chosen == int(chosen) and 0 in theirs:  # background
        np.testing.assert_array_equal(mask_of(path, int(chosen)).image.dataobj, theirs == chosen)


@pytest.mark.parametrize(
    ("stored", "slope", "image_bytes", "label_bytes"),
    [("uint8", 1, 1 + 2, 1 + 2 + 1), ("int16", 1, 2, 2 + 1), ("uint8", 0.1, 1 + 2 + 4, 1 + 4 + 1)],
)  # stored, int16 or float32, codes
def test_memory_is_that_of_values_and_result(tmp_path, stored, slope, image_bytes, label_bytes):
    values = np.random.default_rng(0).integers(0, 100, (192, 192, 64))
    path = write(tmp_path / "ct.nii.gz", values, stored, slope, 0)
    assert peak_of(lambda: ct_of(path)) < (image_bytes + 0.8) * values.size
    assert peak_of(lambda: mask_of(path, 1)) < (label_bytes + 2) * values.size


def test_what_memory_cannot_hold_is_not_read(tmp_path, monkeypatch):
    files = write(tmp_path / "a.nii.gz", DOT, "uint8"), write_nrrd(tmp_path / "a.nrrd", DOT)
    for bytes_there, is_read in ((3 * DOT.size, True), (3 * DOT.size - 1, False)):
        monkeypatch.setattr(volume_files, "main_memory", lambda n=bytes_there: n)
        for file in files:
            with contextlib.nullcontext() if is_read else pytest.raises(Refused, match="too_large"):
                read_scan_file(file)


@pytest.mark.parametrize(("unit", "mm"), [(0, 1), (1, 1000), (2, 1), (3, 0.001)])
def test_metres_and_micrometres_become_millimetres(tmp_path, unit, mm):
    image = nib.Nifti1Image(NUMBERED.astype("int16"), np.diag([0.5, 0.5, 2, mm]) / mm)
    nib.save(image, tmp_path / "ct.nii")
    overwrite(tmp_path / "ct.nii", 123, np.array([unit], "uint8"))
    np.testing.assert_allclose(ct_of(tmp_path / "ct.nii").affine, np.diag([0.5, 0.5, 2, 1]))
    if unit:
        theirs = SimpleITK.ReadImage(str(tmp_path / "ct.nii"))
        np.testing.assert_allclose(theirs.GetSpacing(), [0.5, 0.5, 2])


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_big_endian_files_with_extensions_are_read(tmp_path, kind):
    header = kind.header_class(endianness=">")
    image = kind(NUMBERED.astype("int16").reshape(2, 3, 4, 1), AFFINE, header)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 5000))
    nib.save(image, tmp_path / "ct.nii.gz")
    read = ct_of(tmp_path / "ct.nii.gz")
    assert np.asarray(read.dataobj).dtype.isnative
    np.testing.assert_array_equal(read.dataobj, NUMBERED)


@pytest.mark.parametrize(("shift_mm", "is_flagged"), [(0.19, False), (0.21, True), (np.nan, False)])
def test_a_qform_unlike_the_sform_is_flagged(tmp_path, shift_mm, is_flagged):
    image = nib.Nifti1Image(NUMBERED.astype("int16"), AFFINE)  # a tenth of a voxel is 0.2 mm
    image.header.set_qform(AFFINE, code=2)
    image.header["qoffset_z"] += shift_mm
    nib.save(image, tmp_path / "ct.nii.gz")
    scan = read_scan_file(tmp_path / "ct.nii.gz")
    np.testing.assert_allclose(scan.image.affine, AFFINE)
    assert scan.flags == ("sform_qform",) * is_flagged
    assert (scan.qform is not None) == is_flagged
    if np.isfinite(shift_mm):
        image.header["sform_code"] = 0
        nib.Nifti1Image(NUMBERED.astype("int16"), None, image.header).to_filename(
            tmp_path / "q.nii"
        )
        assert ct_of(tmp_path / "q.nii").affine[2, 3] == pytest.approx(30 + shift_mm, abs=1e-5)


def test_bytes_after_the_voxels_members_and_wrong_suffixes_are_read(tmp_path):
    plain = write(tmp_path / "ct.nii").read_bytes()
    members = b"".join(gzip.compress(plain[n : n + 99]) for n in range(0, len(plain), 99))
    contents = {
        "longer.nii": plain + b"more" * 1000, "longer.nii.gz": gzip.compress(plain + bytes(999)),
        "members.nii.gz": members + bytes(100_000), "plain.nii.gz": plain,
        "packed.nii": gzip.compress(plain),
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        np.testing.assert_array_equal(ct_of(tmp_path / name).dataobj, NUMBERED)


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SRP", "ASL"])
def test_slices_run_from_feet_to_head_and_lie_as_in_simpleitk(tmp_path, codes):
    upright = nib.Nifti1Image(NUMBERED.astype("int16"), np.diag([2.0, 3, 4, 1]))
    axes = nib.orientations.axcodes2ornt(codes)
    turn = nib.orientations.ornt_transform(nib.io_orientation(upright.affine), axes)
    nib.save(upright.as_reoriented(turn), tmp_path / "ct.nii")
    image, mask = ct_of(tmp_path / "ct.nii"), mask_of(tmp_path / "ct.nii").image
    kept = codes.replace("S", "").replace("I", "")
    assert "".join(nib.aff2axcodes(image.affine)) == kept + "S"
    np.testing.assert_allclose(mask.affine, image.affine)
    np.testing.assert_array_equal(mask.dataobj, np.asarray(image.dataobj) != 0)
    theirs = SimpleITK.ReadImage(str(tmp_path / "ct.nii"))
    for index in np.ndindex(theirs.GetSize()):
        left, posterior, head = theirs.TransformIndexToPhysicalPoint(index)
        here = nib.affines.apply_affine(np.linalg.inv(image.affine), [-left, -posterior, head])
        assert image.dataobj[tuple(np.rint(here).astype(int))] == theirs[index]


@pytest.mark.parametrize("stored", ["uint8", "int32", "float64"])
@pytest.mark.parametrize("labels", [(1, 2), ()])
def test_labels_saved_through_floats_are_whole(tmp_path, stored, labels):
    whole = np.zeros((12, 12, 12))
    whole.ravel()[:917] = np.arange(917) % 3 + 1
    header = nib.Nifti1Header()
    header.set_data_dtype(stored)  # nibabel scales floats to the range of an integer type
    values = whole * 0.99999 if stored.startswith("float") else whole
    nib.save(nib.Nifti1Image(values, AFFINE, header), tmp_path / "mask.nii.gz")
    assert not np.array_equal(nib.load(tmp_path / "mask.nii.gz").get_fdata(), whole)
    label = mask_of(tmp_path / "mask.nii.gz", *labels, declared=(1, 2, 3))
    expected = np.isin(whole, labels) if labels else whole > 0
    np.testing.assert_array_equal(label.image.dataobj, expected)
    assert label.unknown_values == ()


def test_the_ignore_label_becomes_background_with_a_flag(tmp_path):
    values = np.zeros((10, 10, 10))
    values[0, 0, 0], values[1, 0, :9] = 1, 3  # 0.9 % are ignored
    path = write(tmp_path / "mask.nii.gz", values, "uint8")
    label = mask_of(path, 1, 3, ignore=3)
    assert (voxels(label.image), label.flags) == ([[0, 0, 0]], ("ignore_label",))
    assert mask_of(path, ignore=4).flags == ()
    values[2, 0, :2] = 3
    with pytest.raises(Refused, match=r"ignore_label: .* on 1\.1% of its voxels"):
        mask_of(write(path, values, "uint8"), ignore=3)


HOSTILE: dict[str, tuple[int, Any, str]] = {  # name: (offset in the header, values, code)
    "a hundred axes": (40, np.array([100], "int16"), "unreadable"),
    "empty side": (44, np.array([0], "int16"), "not_a_volume"),
    "65 TB": (42, np.array([32767, 32767, 32767], "int16"), "too_large"),
    "unknown type": (70, np.array([999], "int16"), "unreadable"),
    "complex": (70, np.array([32], "int16"), "not_a_volume"),
    "voxels before the file": (108, np.array([-400], "float32"), "unreadable"),
    "voxels nowhere": (108, np.array([np.nan], "float32"), "unreadable"),
    "huge slope": (112, np.array([1e30, 0], "float32"), "bad_rescale"),
    "long quaternion": (256, np.array([5, 5, 5], "float32"), "unreadable"),
    "far away": (268, np.array([1e30], "float32"), "bad_affine"),
    "NaN affine": (280, np.array([np.nan] * 12, "float32"), "bad_affine"),
    "voxels in another file": (344, np.frombuffer(b"ni1\0", "uint8"), "unreadable"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused_within_little_memory(tmp_path, name):
    offset, values, code = HOSTILE[name]
    image = nib.Nifti1Image(NUMBERED.astype("int16"), None)
    image.set_qform(AFFINE, code=1)
    path = tmp_path / "p7.nii"
    nib.save(image, path)
    overwrite(path, offset, values)
    if offset == 280:
        overwrite(path, 254, np.array([1], "int16"))
    for read in (ct_of, mask_of):
        with pytest.raises(Refused, match=f"^{code}: p7.nii") as refused:
            assert peak_of(lambda read=read: read(path)) < 2e6
        assert refused.value.code == code


def test_a_truncated_file_or_a_damaged_checksum_is_refused(tmp_path):
    plain, path = write(tmp_path / "p7.nii").read_bytes(), tmp_path / "p7.nii.gz"
    packed = gzip.compress(plain)
    wrong = [
        packed[:-at] + bytes([packed[-at] ^ 16]) + packed[len(packed) - at + 1 :] for at in (1, 8)
    ]
    for content, sentence in (
        (plain[:-8], "truncated: .* has 40 bytes of voxels, expected 48"),
        (gzip.compress(plain[:-8]), "truncated: .* has 40 bytes of voxels, expected 48"),
        (packed[:-1], "truncated"),
        (packed[:-8], "truncated"),
        (wrong[0], "unreadable"),
        (wrong[1], "unreadable"),
    ):
        path.write_bytes(content)
        with pytest.raises(Refused, match=sentence):
            ct_of(path)


def test_bombs_are_refused_without_being_unpacked(tmp_path):
    content = gzip.compress(write(tmp_path / "p7.nii").read_bytes())
    bomb = content + gzip.compress(bytes(2**24), compresslevel=1) * 32  # 512 MiB
    (tmp_path / "p7.nii.gz").write_bytes(bomb)
    write_nrrd(tmp_path / "a.nrrd", DOT, content=gzip.compress(bytes(2**28)))
    (tmp_path / "endless.nrrd").write_bytes(b"NRRD0004\n" + b"# comment\n" * 2**22)
    for name in ("p7.nii.gz", "a.nrrd", "endless.nrrd"):
        assert peak_of(lambda name=name: refusal(tmp_path / name)) < 2**26


def test_random_damage_is_refused_or_read_and_never_anything_else(tmp_path):
    plain = write(tmp_path / "p7.nii").read_bytes()
    nrrd = write_nrrd(tmp_path / "a.seg.nrrd", DOT, **SLICER).read_bytes()
    cases = [
        ("a.nii", plain, ()),
        ("a.nii.gz", gzip.compress(plain), ()),
        ("a.nrrd", nrrd, ("Liver",)),
    ]
    for name, content, labels in cases:
        for changed in damaged(content, every=9, changes=200, places=2):
            (tmp_path / name).write_bytes(changed)
            with contextlib.suppress(Refused):
                mask_of(tmp_path / name, *labels)


# NRRD


@pytest.mark.parametrize("space", ["left-posterior-superior", "LAS", "Right-Anterior-Superior"])
@pytest.mark.parametrize("encoding", ["gzip", "raw", "bzip2"])
@pytest.mark.parametrize(
    "directions", ["(0,0,-1.5) (0.6,0.8,0) (-1.6,1.2,0)", "(1,0,0) (0,2,0) (0,0,-3)"]
)
def test_nrrd_equals_simpleitk(tmp_path, space, encoding, directions):
    random = np.random.default_rng(0).random((3, 4, 5))
    for values in ((random < 0.4).astype(np.int16), random.astype(np.float32)):
        raw = values.tobytes(order="F")
        content = {"gzip": None, "raw": raw, "bzip2": bz2.compress(raw)}[encoding]
        fields = {"space": space, "space_directions": directions}
        file = write_nrrd(tmp_path / "a.nrrd", values, content=content, encoding=encoding, **fields)
        theirs = write_nrrd(tmp_path / "b.nrrd", values, **fields)  # it does not read bzip2
        assert_equals_simpleitk(ct_of(file), theirs)
        if values.dtype == np.int16:
            assert_equals_simpleitk(mask_of(file).image, theirs)


def assert_equals_simpleitk(ours: nib.Nifti1Image, file: Path) -> None:
    """In value and place; a mask is 1 where a value is not 0."""
    image = SimpleITK.ReadImage(str(file))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    theirs = SimpleITK.GetArrayFromImage(image).T
    theirs = (theirs != 0).astype(np.uint8) if ours.get_data_dtype() == np.uint8 else theirs
    truth = nib.as_closest_canonical(nib.Nifti1Image(theirs, np.diag([-1, -1, 1, 1]) @ affine))
    assert nib.aff2axcodes(ours.affine)[2] == "S"
    ours = nib.as_closest_canonical(ours)
    np.testing.assert_allclose(ours.affine, truth.affine, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(truth.dataobj))
    assert np.asarray(ours.dataobj).any()


@pytest.mark.parametrize("name", ["liver_seg", "single_and_multiframe/nrrd/label"])
def test_a_published_mask_equals_simpleitks_reading(shared_data, name):
    file = shared_data / "seg" / f"{name}.nrrd"
    assert_equals_simpleitk(mask_of(file).image, file)


def layered() -> tuple[np.ndarray, dict[str, Any]]:
    """Two layers that overlap, both with value 1, and one more structure as 2 in the second."""
    values = np.zeros((2, 3, 4, 5), np.uint8)
    values[0, :2, 0, 0] = values[1, 0, 0, 0] = 1
    values[1, 2, 3, 4] = 2
    fields: Any = {}
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
def test_segments_of_layers_are_chosen_by_name(tmp_path, labels, expected):
    values, fields = layered()
    file = write_nrrd(tmp_path / "a.seg.nrrd", values, **fields)
    assert voxels(mask_of(file, *labels).image) == expected
    assert refusal(file, 1).code == "no_such_segment"  # a value that two layers share
    last = "(0.5,0,0) (0,0.8,0) (0,0,2.5) none"
    write_nrrd(file, np.moveaxis(values, 0, -1), space_directions=last, **fields)
    assert voxels(mask_of(file, *labels).image) == expected
    write_nrrd(file, values, Segment0_Name="A", Segment1_Name="B")  # as before 3D Slicer 4.11
    assert voxels(mask_of(file, "B").image) == [[0, 0, 0]]


@pytest.mark.parametrize("label", ["pankreas größer", 2])
def test_a_segment_is_chosen_by_name_or_value_or_refused(tmp_path, label):
    values = DOT * 2
    values[0, 0, 0] = 1
    file = write_nrrd(tmp_path / "a.seg.nrrd", values, **SLICER)
    mask = mask_of(file, label)
    assert (voxels(mask.image), mask.unknown_values) == ([[1, 2, 3]], ())
    refused = refusal(file)
    assert (refused.code, "Liver" in str(refused)) == ("ambiguous_segment", False)
    assert refused.names == ("1 Liver", "2 Pankreas größer")
    with pytest.raises(Refused, match="not_a_volume"):
        read_scan_file(file)
    plain = write_nrrd(tmp_path / "a.nrrd", values, space_units='"mm" "mm" "mm"')
    assert voxels(mask_of(plain, 2).image) == [[1, 2, 3]]
    assert refusal(plain, "pancreas").code == "no_such_structure"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"space": "scanner-xyz"}, "no_affine"),
        ({"space_units": '"cm" "cm" "cm"'}, "no_affine"),
        ({"space_directions": "(0.5,0,0) (0.5,0,0) (0,0,2.5)"}, "bad_affine"),
        ({"space_origin": "(inf,0,0)"}, "bad_affine"),
        ({"data_file": "/etc/passwd"}, "detached_data"),
        ({"byte_skip": "-1"}, "unreadable"),
        ({"encoding": "hex"}, "unreadable"),
        ({"sizes": "4611686018427387904 4611686018427387904 4"}, "too_large"),
        ({"type": "DOE JOHN"}, "unreadable"),
        ({"Segment0_Name": "A", "Segment0_LabelValue": "0"}, "bad_segments"),
    ],
    ids=str,
)
def test_a_wrong_nrrd_header_is_refused_unquoted(tmp_path, fields, code):
    (tmp_path / "b.raw").write_bytes(DOT.tobytes())
    refused = refusal(write_nrrd(tmp_path / "a.nrrd", DOT, **fields))
    assert refused.code == code and "DOE" not in str(refused)


def test_a_mask_that_slicer_cropped_is_put_on_the_whole_grid(tmp_path):
    affine = np.array([[-0.5, 0, 0, 10], [0, -0.8, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1]])
    scan = Scan(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), affine))
    origin = f"({-10 + 0.5},{-20 + 2 * 0.8},{30 + 3 * 2.5})"
    drawn = np.array([[[1], [0]], [[1], [1]]], np.uint8)
    file = write_nrrd(tmp_path / "a.nrrd", drawn, space_origin=origin)
    image = read_label_file(file, ReadOptions(structures((1,))), scan).image
    assert voxels(image) == [[1, 2, 3], [2, 2, 3], [2, 3, 3]]
    np.testing.assert_array_equal(image.affine, affine)
