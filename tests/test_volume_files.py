"""Scans and label maps as NIfTI and NRRD: read with slices from feet to head, or refused."""

import contextlib
import gzip
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from pancseg.dicom.series import Scan
from pancseg.errors import Refused
from pancseg.intake.volume_files import ReadOptions, read_label_file, read_scan_file
from pancseg.structures import IGNORED
from tests.other_software import assert_same, by_simpleitk
from tests.test_fuzz import mutated
from tests.tiny_labels import structures, voxels, write_nrrd

AFFINE = np.array([[-2.0, 0, 0, 10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]])
NUMBERED = np.arange(24, dtype=np.int16).reshape(2, 3, 4)  # every voxel has its own value
GRID = np.array([[-0.5, 0, 0, 10], [0, -0.8, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1]])
SCAN = Scan(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4)))  # on no label's grid
DOT = np.zeros((3, 4, 5), np.uint8)
DOT[1, 2, 3] = 1
SLICER = {"Segment0_Name": "Liver", "Segment0_LabelValue": 1, "Segment0_Layer": 0}
SLICER |= {"Segment1_Name": "Pankreas größer", "Segment1_LabelValue": 2, "Segment1_Layer": 0}


def peak_of(work):
    """Most bytes held at a time, numpy's among them."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def write(path, values=NUMBERED, dtype="int16", *slope):
    image = nib.Nifti1Image(values.astype(dtype), AFFINE)
    image.set_qform(np.diag([2.0, 3, 4, 1]), code=2)  # the sform counts
    if slope:
        image.header.set_slope_inter(*slope)
    nib.save(image, path)
    return path


def ct_of(path):
    return read_scan_file(path).image


def mask_of(path, *labels, scan=SCAN, **options):
    label = read_label_file(path, ReadOptions(structures(labels or None), **options), scan)
    assert label.image.get_data_dtype() == np.uint8
    return label


def refusal(path, *labels):
    with pytest.raises(Refused) as refused:
        mask_of(path, *labels)
    assert "\n" not in str(refused.value)
    return refused.value


def assert_equals_simpleitk(ours, file):
    """In value and place; a mask is 1 where a value is not 0."""
    theirs = by_simpleitk(file)
    assert nib.aff2axcodes(ours.affine)[2] == "S"
    if ours.get_data_dtype() == np.uint8:
        mask = (np.asarray(theirs.dataobj) != 0).astype(np.uint8)
        theirs = nib.Nifti1Image(mask, theirs.affine)
    assert_same(ours, theirs)
    assert np.asarray(ours.dataobj).any()


# NIfTI


@pytest.mark.parametrize("stored", ["uint8", "int16", "float64"])
@pytest.mark.parametrize("slope", [(1, 0), (0.5, -7), (-1, 0), (1e3, 1e5)])
def test_values_are_those_that_nibabel_reads(tmp_path, stored, slope):
    path = write(tmp_path / "ct.nii", NUMBERED, stored, *slope)
    theirs = nib.Nifti1Image.from_filename(path).get_fdata()
    ours = ct_of(path)
    np.testing.assert_array_equal(ours.dataobj, theirs)
    np.testing.assert_allclose(ours.affine, AFFINE)
    is_whole = np.array_equal(theirs, np.rint(theirs)) and np.abs(theirs).max() < 32768
    assert ours.get_data_dtype() == (np.int16 if is_whole else np.float32)


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SRP", "ASL"])
def test_slices_run_from_feet_to_head_and_lie_as_in_simpleitk(tmp_path, codes):
    upright, path = nib.Nifti1Image(NUMBERED, np.diag([2.0, 3, 4, 1])), tmp_path / "ct.nii"
    axes = nib.orientations.axcodes2ornt(codes)
    turn = nib.orientations.ornt_transform(nib.io_orientation(upright.affine), axes)
    nib.save(upright.as_reoriented(turn), path)
    kept = codes.replace("S", "").replace("I", "")
    for ours in (ct_of(path), mask_of(path).image):
        assert "".join(nib.aff2axcodes(ours.affine)) == kept + "S"
        assert_equals_simpleitk(ours, path)


@pytest.mark.parametrize("stored", ["uint8", "float64"])
def test_labels_saved_through_floats_are_whole(tmp_path, stored):
    whole = np.zeros((12, 12, 12))
    whole.ravel()[:917] = np.arange(917) % 3 + 1
    whole[0, 0, 0] = 7  # steps of 7/255 as uint8: 1 becomes 0.988
    header = nib.Nifti1Header()
    header.set_data_dtype(stored)  # nibabel scales floats to the range of an integer type
    factor, path = 0.99999 if stored == "float64" else 1, tmp_path / "mask.nii.gz"
    nib.save(nib.Nifti1Image(whole * factor, AFFINE, header), path)
    assert not np.array_equal(nib.load(path).get_fdata(), whole)
    label = mask_of(path, 1, 2, declared=(1, 2, 3, 7))
    np.testing.assert_array_equal(label.image.dataobj, np.isin(whole, (1, 2)))
    assert label.unknown_values == ()


def test_the_ignore_label_has_its_own_code_and_a_flag(tmp_path):
    values = np.zeros((10, 10, 10))
    values[0, 0, 0], values[1, 0, :9] = 1, 3
    path = write(tmp_path / "mask.nii.gz", values, "uint8")
    label = mask_of(path, 1, 3, ignore=3)
    np.testing.assert_array_equal(label.image.dataobj, np.where(values == 3, IGNORED, values))
    assert label.flags == ("ignore_label",) and mask_of(path, ignore=4).flags == ()


@pytest.mark.parametrize(("offset", "values", "kind", "code"), [  # put into the header
    (40, [100], "int16", "unreadable"),  # axes
    (42, [32767] * 3, "int16", "too_large"),  # 65 TB
    (70, [32], "int16", "not_a_volume"),  # complex numbers
    (108, [-400], "float32", "unreadable"),  # voxels before the file
    (112, [1e30, 0], "float32", "bad_rescale"),
    (280, [np.nan] * 12, "float32", "bad_affine"),
])  # fmt: skip
def test_a_hostile_header_is_refused_within_little_memory(tmp_path, offset, values, kind, code):
    path, new = write(tmp_path / "p7.nii"), np.array(values, kind).tobytes()
    content = path.read_bytes()
    path.write_bytes(content[:offset] + new + content[offset + len(new) :])

    def work():
        for read in (ct_of, mask_of):
            with pytest.raises(Refused, match=f"^{code}: p7.nii"):
                read(path)

    assert peak_of(work) < 2e6


def test_a_truncated_file_or_a_damaged_checksum_is_refused(tmp_path):
    plain, path = write(tmp_path / "p7.nii").read_bytes(), tmp_path / "p7.nii.gz"
    packed, short = gzip.compress(plain), "truncated: .* has 40 bytes of voxels, expected 48"
    for content, sentence in (
        (plain[:-8], short), (gzip.compress(plain[:-8]), short), (packed[:-1], "truncated"),
        (packed[:-8] + b"wrong" + packed[-3:], "unreadable"),
    ):  # fmt: skip
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
    plain, random = write(tmp_path / "p7.nii").read_bytes(), np.random.default_rng(0)
    nrrd = write_nrrd(tmp_path / "a.seg.nrrd", DOT, **SLICER).read_bytes()
    for name, content in (("a.nii", plain), ("a.nii.gz", gzip.compress(plain)), ("a.nrrd", nrrd)):
        for _ in range(250):
            (tmp_path / name).write_bytes(mutated(content, random))
            with contextlib.suppress(Refused):
                mask_of(tmp_path / name, *["Liver"] * (name == "a.nrrd"))


# NRRD


@pytest.mark.parametrize("space", ["left-posterior-superior", "LAS", "Right-Anterior-Superior"])
@pytest.mark.parametrize("encoding", ["gzip", "raw"])
def test_nrrd_equals_simpleitk(tmp_path, space, encoding):
    directions = "(0,0,-1.5) (0.6,0.8,0) (-1.6,1.2,0)"
    random = np.random.default_rng(0).random((3, 4, 5))
    for values in ((random < 0.4).astype(np.int16), random.astype(np.float32)):
        content = values.tobytes(order="F") if encoding == "raw" else None
        fields = {"space": space, "space_directions": directions, "encoding": encoding}
        file = write_nrrd(tmp_path / "a.nrrd", values, content=content, **fields)
        assert_equals_simpleitk(ct_of(file), file)
        if values.dtype == np.int16:
            assert_equals_simpleitk(mask_of(file).image, file)


@pytest.mark.parametrize("name", ["liver_seg", "single_and_multiframe/nrrd/label"])
def test_a_published_mask_equals_simpleitks_reading(shared_data, name):
    file = shared_data / "seg" / f"{name}.nrrd"
    assert_equals_simpleitk(mask_of(file).image, file)


def test_segments_of_layers_are_chosen_by_name(tmp_path):
    values, fields = np.zeros((2, 3, 4, 5), np.uint8), {}
    values[0, :2, 0, 0] = values[1, 0, 0, 0] = 1  # A and B overlap, both with value 1
    values[1, 2, 3, 4] = 2
    for n, (name, value, layer) in enumerate([("A", 1, 0), ("B", 1, 1), ("C", 2, 1)]):
        fields |= {f"Segment{n}_Name": name, f"Segment{n}_LabelValue": value}
        fields |= {f"Segment{n}_Layer": layer}
    file = write_nrrd(tmp_path / "a.seg.nrrd", values, **fields)
    a, b, c = [[0, 0, 0], [1, 0, 0]], [[0, 0, 0]], [[2, 3, 4]]
    for names, expected in (("A", a), ("B", b), ("c", c), ("ABC", a + c)):
        assert voxels(mask_of(file, *names).image) == expected
    assert refusal(file, 1).code == "no_such_segment"  # a value that two layers share


def test_a_segment_is_chosen_by_name_or_value_or_refused(tmp_path):
    values = DOT * 2
    values[0, 0, 0] = 1
    file = write_nrrd(tmp_path / "a.seg.nrrd", values, **SLICER)
    assert voxels(mask_of(file, "pankreas größer").image) == [[1, 2, 3]]
    assert voxels(mask_of(file, 2).image) == [[1, 2, 3]]
    refused = refusal(file)
    assert (refused.code, "Liver" in str(refused)) == ("ambiguous_segment", False)
    assert refused.names == ("1 Liver", "2 Pankreas größer")
    assert refusal(write_nrrd(tmp_path / "a.nrrd", values), "Liver").code == "no_such_structure"


@pytest.mark.parametrize(("fields", "code"), [
    ({"space": "scanner-xyz"}, "no_affine"), ({"space_units": '"cm" "cm" "cm"'}, "no_affine"),
    ({"space_directions": "(0.5,0,0) (0.5,0,0) (0,0,2.5)"}, "bad_affine"),
    ({"data_file": "/etc/passwd"}, "detached_data"), ({"type": "DOE JOHN"}, "unreadable"),
    ({"sizes": "4611686018427387904 4611686018427387904 4"}, "too_large"),
], ids=str)  # fmt: skip
def test_a_wrong_nrrd_header_is_refused_unquoted(tmp_path, fields, code):
    refused = refusal(write_nrrd(tmp_path / "a.nrrd", DOT, **fields))
    assert refused.code == code and "DOE" not in str(refused)


def test_a_mask_that_slicer_cropped_is_put_on_the_whole_grid_if_it_lies_on_its_voxels(tmp_path):
    scan = Scan(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), GRID))
    drawn = np.array([[[1], [1]], [[0], [1]]], np.uint8)  # rows, columns, slices
    fields = {"space_directions": "(0,0.8,0) (0.5,0,0) (0,0,2.5)"}
    for aside, is_placed in ((0, True), (0.2, False)):
        fields["space_origin"] = f"({-10 + 0.5 + aside},{-20 + 2 * 0.8},{30 + 3 * 2.5})"
        image = mask_of(write_nrrd(tmp_path / "a.nrrd", drawn, **fields), 1, scan=scan).image
        assert (image.shape == scan.image.shape) == is_placed
        if is_placed:
            assert voxels(image) == [[1, 2, 3], [2, 2, 3], [2, 3, 3]]
            np.testing.assert_array_equal(image.affine, GRID)
