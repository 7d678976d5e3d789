"""NRRD masks: read in place, whatever their space and layers, or refused with a reason."""

import bz2
import contextlib
import gzip
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from pancseg.errors import Refused
from pancseg.intake.found import Choice, Mask, Reading, Scan
from pancseg.intake.labels.nrrd import read_nrrd_mask
from tests.tiny_labels import damaged, voxels, write_nrrd

SCAN = Scan(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4)))  # not looked at
DOT = np.zeros((3, 4, 5), np.uint8)
DOT[1, 2, 3] = 1
SLICER = {"Segment0_Name": "Liver", "Segment0_LabelValue": 1, "Segment0_Layer": 0}
SLICER |= {"Segment1_Name": "Pankreas größer", "Segment1_LabelValue": 2, "Segment1_Layer": 0}


def read(file: Path, choice: Choice = None) -> Mask:
    mask = read_nrrd_mask(file, Reading(choice), SCAN)
    assert mask.image.get_data_dtype() == np.uint8
    return mask


def refusal(file: Path, choice: Choice = None) -> Refused:
    with pytest.raises(Refused) as refused:
        read_nrrd_mask(file, Reading(choice), SCAN)
    assert "\n" not in str(refused.value)
    return refused.value


def test_axes_are_as_stored_and_the_corner_turns_from_lps_to_ras(tmp_path: Path) -> None:
    image = read(write_nrrd(tmp_path / "a.nrrd", DOT)).image
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
    image = read(write_nrrd(tmp_path / "a.nrrd", DOT, space=space)).image
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
    assert_equals_simpleitk(read(file).image, file)


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
    assert_equals_simpleitk(read(file).image, file)


def test_bzip2_is_unpacked(tmp_path: Path) -> None:
    content = bz2.compress(DOT.tobytes(order="F"))
    file = write_nrrd(tmp_path / "a.nrrd", DOT, encoding="bzip2", content=content)
    assert voxels(read(file).image) == [[1, 2, 3]]


def test_big_endian_voxels_are_read(tmp_path: Path) -> None:
    file = write_nrrd(tmp_path / "a.nrrd", DOT.astype(">i2"), endian="big")
    assert voxels(read(file, (1,)).image) == [[1, 2, 3]]


def test_the_last_axis_runs_from_feet_to_head(tmp_path: Path) -> None:
    directions = "(0.5,0,0) (0,0.8,0) (0,0,-2.5)"
    image = read(write_nrrd(tmp_path / "a.nrrd", DOT, space_directions=directions)).image
    assert nib.aff2axcodes(image.affine)[2] == "S"
    assert voxels(image) == [[1, 2, 1]]
    assert nib.affines.apply_affine(image.affine, [1, 2, 1]).tolist() == [9.5, 18.4, 22.5]


def test_values_without_names_are_chosen_by_value(tmp_path: Path) -> None:
    values = DOT * 2
    values[0, 0, 0] = 1
    file = write_nrrd(tmp_path / "a.nrrd", values)
    mask = read(file, (2,))
    assert (voxels(mask.image), mask.undeclared) == ([[1, 2, 3]], ("1",))
    assert read(file).undeclared == ("1", "2")
    assert refusal(file, ("pancreas",)).code == "no_such_structure"


@pytest.mark.parametrize("choice", [("pankreas größer",), (2,)])
def test_a_named_segment_is_chosen_by_name_or_value(tmp_path: Path, choice: Choice) -> None:
    values = DOT * 2
    values[0, 0, 0] = 1
    mask = read(write_nrrd(tmp_path / "a.seg.nrrd", values, **SLICER), choice)
    assert (voxels(mask.image), mask.undeclared) == ([[1, 2, 3]], ())


def test_an_unclear_choice_is_refused_with_what_there_is(tmp_path: Path) -> None:
    file = write_nrrd(tmp_path / "a.seg.nrrd", DOT, **SLICER)
    refused = refusal(file)
    assert refused.code == "ambiguous_segment"
    assert "1 Liver, 2 Pankreas größer" in str(refused)
    assert refusal(file, ("spleen",)).code == "no_such_segment"


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
    ("choice", "expected"),
    [
        (("A",), [[0, 0, 0], [1, 0, 0]]),
        (("B",), [[0, 0, 0]]),
        (("c",), [[2, 3, 4]]),
        (("A", "B", "C"), [[0, 0, 0], [1, 0, 0], [2, 3, 4]]),
    ],
)
def test_segments_of_layers_are_chosen_by_name(
    tmp_path: Path, choice: Choice, expected: list[list[int]]
) -> None:
    values, fields = layered()
    assert voxels(read(write_nrrd(tmp_path / "a.seg.nrrd", values, **fields), choice).image) == (
        expected
    )


def test_layers_may_be_the_last_axis(tmp_path: Path) -> None:
    values, fields = layered()
    directions = "(0.5,0,0) (0,0.8,0) (0,0,2.5) none"
    file = tmp_path / "a.seg.nrrd"
    write_nrrd(file, np.moveaxis(values, 0, -1), space_directions=directions, **fields)
    assert voxels(read(file, ("C",)).image) == [[2, 3, 4]]


def test_a_value_that_two_layers_share_names_no_segment(tmp_path: Path) -> None:
    values, fields = layered()
    file = write_nrrd(tmp_path / "a.seg.nrrd", values, **fields)
    refused = refusal(file, (1,))
    assert (refused.code, "A 1, B 1, C 2" in str(refused)) == ("ambiguous_segment", True)


def test_an_old_file_has_a_segment_in_each_layer(tmp_path: Path) -> None:
    values, _ = layered()
    fields = {"Segment0_Name": "A", "Segment1_Name": "B"}
    file = write_nrrd(tmp_path / "a.seg.nrrd", values, **fields)
    assert voxels(read(file, ("B",)).image) == [[0, 0, 0]]


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
        ({"sizes": "3 4 4"}, "truncated"),
        ({"sizes": "0 4 5"}, "too_large"),
        ({"sizes": "-3 -4 5"}, "too_large"),
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
    assert voxels(read(file).image) == [[1, 2, 3]]


def test_layers_without_names_are_no_volume(tmp_path: Path) -> None:
    assert refusal(write_nrrd(tmp_path / "a.nrrd", layered()[0])).code == "not_a_volume"


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    values = np.where(DOT, np.nan, 0).astype(np.float32)
    assert refusal(write_nrrd(tmp_path / "a.nrrd", values)).code == "not_finite"


def test_a_small_file_cannot_unpack_to_any_size(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(2**28))
    assert len(bomb) < 2**19
    file = write_nrrd(tmp_path / "a.nrrd", DOT, content=bomb)
    tracemalloc.start()
    refused = refusal(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refused.code == "truncated"
    assert peak < 2**27


def test_a_header_without_an_end_is_not_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\n" + b"# comment\n" * 2**20)
    assert refusal(tmp_path / "a.nrrd").code == "unreadable"
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004" + bytes(2**24))
    assert refusal(tmp_path / "a.nrrd").code == "unreadable"


def test_a_damaged_file_is_refused_or_read_and_never_stops_the_batch(tmp_path: Path) -> None:
    file = write_nrrd(tmp_path / "a.seg.nrrd", DOT, **SLICER)
    for one in damaged(file.read_bytes(), every=5, changes=300, places=2):
        file.write_bytes(one)
        with contextlib.suppress(Refused):
            read_nrrd_mask(file, Reading(("Liver",)), SCAN)


def test_a_mask_that_slicer_cropped_is_put_on_the_whole_grid(tmp_path: Path) -> None:
    affine = np.array([[-0.5, 0, 0, 10], [0, -0.8, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1]])
    scan = Scan(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), affine))
    origin = f"({-10 + 0.5},{-20 + 2 * 0.8},{30 + 3 * 2.5})"
    drawn = np.array([[[1], [0]], [[1], [1]]], np.uint8)
    file = write_nrrd(tmp_path / "a.nrrd", drawn, space_origin=origin)
    image = read_nrrd_mask(file, Reading((1,)), scan).image
    assert voxels(image) == [[1, 2, 3], [2, 2, 3], [2, 3, 3]]
    np.testing.assert_array_equal(image.affine, affine)
