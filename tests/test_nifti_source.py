"""The source ``nifti``: images and labels of one path, and their patients."""

import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pancseg.errors import PancsegError
from pancseg.intake.match_labels import SourceContents
from pancseg.intake.sources import find_nifti_pairs
from tests.source_contents import codes_of, options, pairs, patients, skipped
from tests.tiny_labels import write_nrrd

VOXELS = np.arange(8, dtype="uint8").reshape(2, 2, 2) // 4  # 0 in the first plane, then 1


def find(images: Path, labels: Path | None, patient: str | None = None) -> SourceContents:
    return find_nifti_pairs(images, labels, patient, options())


def write_files(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".nrrd":
            write_nrrd(path, VOXELS)
        else:
            nib.save(nib.Nifti1Image(VOXELS, np.eye(4)), path)
    return root


def test_files_of_one_relative_path_and_stem_match_whatever_their_roles(
    images: Path, labels: Path
) -> None:
    write_files(images, "p1.nii.gz", "p2_image.nii", "p3.img.nii.gz", "a/p1_ct.nii.gz", "p4.nrrd")
    write_files(labels, "p1.nii", "p2_label.nii.gz", "p3.nii.gz", "a/p1-seg.nii.gz", "p4.seg.nrrd")
    contents = find(images, labels)
    assert sorted(pairs(contents, images, labels)) == [
        ("a/p1_ct.nii.gz", "a/p1-seg.nii.gz"),
        ("p1.nii.gz", "p1.nii"),
        ("p2_image.nii", "p2_label.nii.gz"),
        ("p3.img.nii.gz", "p3.nii.gz"),
        ("p4.nrrd", "p4.seg.nrrd"),
    ]
    assert (contents.skipped, contents.warnings) == ([], [])


def test_a_file_matches_a_file_whatever_their_names(tmp_path: Path) -> None:
    write_files(tmp_path, "ct.nii.gz", "drawn/pancreas.nii.gz")
    contents = find(tmp_path / "ct.nii.gz", tmp_path / "drawn/pancreas.nii.gz")
    assert pairs(contents, tmp_path, tmp_path) == [("ct.nii.gz", "drawn/pancreas.nii.gz")]
    assert contents.skipped == []


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_cases_read_their_files_in_other_processes_too(
    images: Path, labels: Path, suffix: str
) -> None:
    write_files(images, f"p1{suffix}")
    write_files(labels, f"p1{suffix}")
    [case] = pickle.loads(pickle.dumps(find(images, labels).cases))
    assert case.files == (images / f"p1{suffix}", labels / f"p1{suffix}")
    scan = case.read_image()
    assert np.unique(scan.image.dataobj).tolist() == [0, 1]
    assert (scan.stack, case.format) == (None, "file")
    np.testing.assert_array_equal(codes_of(case), VOXELS)


def test_structures_reach_the_reader(images: Path, labels: Path) -> None:
    write_files(images, "p1.nii.gz")
    labels.mkdir()
    values = np.arange(8, dtype="uint8").reshape(2, 2, 2)
    nib.save(nib.Nifti1Image(values, np.eye(4)), labels / "p1.nii.gz")
    [case] = find_nifti_pairs(images, labels, None, options(pancreas=[5])).cases
    assert np.argwhere(codes_of(case)).tolist() == [[1, 0, 1]]


def test_files_without_partner_are_refused_and_the_others_are_cases(
    images: Path, labels: Path
) -> None:
    write_files(images, "p1.nii.gz", "p2.nii.gz")
    write_files(labels, "p2.nii.gz", "p3.nii.gz", "a/p1.nii.gz")
    contents = find(images, labels)
    assert patients(contents) == ["p2"]
    assert skipped(contents) == [
        ("p1.nii.gz", "image", "no_label"),
        ("p1.nii.gz", "label", "no_image"),
        ("p3.nii.gz", "label", "no_image"),
    ]


def test_without_labels_every_image_is_a_case(images: Path) -> None:
    write_files(images, "p1.nii.gz", "a/p1.nii.gz", "p2.seg.nrrd")
    contents = find(images, None)
    assert sorted(patients(contents)) == ["a/p1", "p1"]
    assert [case.read_label for case in contents.cases] == [None, None]
    assert contents.skipped == []


@pytest.mark.parametrize(
    "twins",
    [("p7.nii", "p7.nii.gz"), ("p7.nii.gz", "p7_image.nii.gz"), ("p7.nii", "p7.nrrd")],
)
def test_two_images_of_one_stem_are_refused(images: Path, twins: tuple[str, str]) -> None:
    write_files(images, *twins, "p8.nii")
    contents = find(images, None)
    assert patients(contents) == ["p8"]
    assert skipped(contents) == [(name, "image", "ambiguous_image") for name in twins]


@pytest.mark.parametrize(
    "twins", [("p7.nii", "p7.nii.gz"), ("p7_label.nii", "p7_seg.nii"), ("p7.nii", "p7.seg.nrrd")]
)
def test_two_labels_of_one_stem_are_refused_with_their_image(
    images: Path, labels: Path, twins: tuple[str, str]
) -> None:
    write_files(images, "p7.nii.gz", "p8.nii.gz")
    write_files(labels, *twins, "p8.nii")
    contents = find(images, labels)
    assert patients(contents) == ["p8"]
    rows = [(name, "label", "ambiguous_label") for name in twins]
    assert skipped(contents) == sorted([("p7.nii.gz", "image", "ambiguous_label"), *rows])
    assert contents.warnings == []


def test_labels_in_a_folder_inside_the_images_are_not_images(images: Path) -> None:
    write_files(images, "p1.nii.gz", "labels/p1.nii.gz")
    contents = find(images, images / "labels")
    assert pairs(contents, images, images) == [("p1.nii.gz", "labels/p1.nii.gz")]
    assert contents.skipped == []


def test_labels_of_several_structures_of_an_image_are_ambiguous_and_named_once(
    images: Path, labels: Path
) -> None:
    write_files(images, "p1.nii.gz", "p2.nii.gz")
    write_files(labels, *(f"{p}/{organ}.nii.gz" for p in ("p1", "p2") for organ in ("a", "b")))
    contents = find(images, labels)
    assert {code for _, _, code in skipped(contents)} == {"ambiguous_label"}


@pytest.mark.parametrize("name", ["p1.mha", "p1.mhd", "p1.nhdr", "p1.hdr", "p1.img"])
@pytest.mark.parametrize("kind", ["image", "label"])
def test_files_of_formats_that_are_not_read_are_rows(tmp_path: Path, name: str, kind: str) -> None:
    folders = {"image": tmp_path / "images", "label": tmp_path / "labels"}
    for folder in folders.values():
        write_files(folder, "p2.nii.gz")
    (folders[kind] / name).touch()
    contents = find(folders["image"], folders["label"])
    assert patients(contents) == ["p2"]
    assert skipped(contents) == [(name, kind, "unread_format")]


def test_resource_forks_are_dropped(images: Path, labels: Path) -> None:
    for folder in (images, labels):
        write_files(folder, "p1.nii.gz")
        (folder / "._p1.nii.gz").write_bytes(b"\0\5\26\7")
    contents = find(images, labels)
    assert patients(contents) == ["p1"]
    assert skipped(contents, "dropped") == [("._p1.nii.gz", "other", "resource_fork")] * 2


# Channels of nnU-Net in plain folders


def test_first_channels_match_labels_without_channel(images: Path, labels: Path) -> None:
    write_files(images, "100_01_0000.nii.gz", "a/101_0000.nii.gz", "a/101_0001.nii.gz")
    write_files(labels, "100_01.nii.gz", "a/101.nii.gz")
    contents = find(images, labels)
    assert sorted(patients(contents)) == ["100_01", "a/101"]
    assert skipped(contents, "dropped") == [("101_0001.nii.gz", "other", "other_channel")]
    assert skipped(contents) == []


def test_numbered_images_with_labels_of_the_same_names_stay_as_they_are(
    images: Path, labels: Path
) -> None:
    names = ("case_0000.nii.gz", "case_0001.nii.gz")
    write_files(images, *names)
    write_files(labels, *names, "case.nii.gz")
    contents = find(images, labels)
    assert pairs(contents, images, labels) == [(name, name) for name in names]
    assert skipped(contents) == [("case.nii.gz", "label", "no_image")]
    assert patients(find(images, None)) == ["case_0000", "case_0001"]


def test_an_image_of_the_exact_name_goes_before_a_first_channel(images: Path, labels: Path) -> None:
    write_files(images, "p7.nii.gz", "p7_0000.nii.gz")
    write_files(labels, "p7.nii.gz")
    contents = find(images, labels)
    assert pairs(contents, images, labels) == [("p7.nii.gz", "p7.nii.gz")]
    assert skipped(contents) == [("p7_0000.nii.gz", "image", "no_label")]


# Patterns


def test_the_text_of_a_wildcard_matches_files_and_names_the_patient(tmp_path: Path) -> None:
    for name in ("s0001", "s0002"):
        write_files(tmp_path / name, "ct.nii.gz", "masks/pancreas.nii.gz", "masks/liver.nii.gz")
    write_files(tmp_path / "s0003", "ct.nii.gz")
    contents = find(tmp_path / "*" / "ct.nii.gz", tmp_path / "*" / "masks" / "pancreas.nii.gz")
    assert patients(contents) == ["s0001", "s0002"]
    assert pairs(contents, tmp_path, tmp_path) == [
        (f"{name}/ct.nii.gz", f"{name}/masks/pancreas.nii.gz") for name in patients(contents)
    ]
    assert [row.path.parent.name for row in contents.skipped] == ["s0003"]


@pytest.mark.parametrize("suffix", ["*", ".*", ".nii*"])
def test_a_wildcard_in_the_suffix_is_no_part_of_the_key(tmp_path: Path, suffix: str) -> None:
    write_files(tmp_path, "ct/7-x.nii.gz", "mask/organ_7.nii", "ct/8-x.nii", "mask/organ_9.nii.gz")
    (tmp_path / "ct" / "7-x.json").touch()
    contents = find(tmp_path / "ct" / f"?-x{suffix}", tmp_path / "mask" / f"organ_?{suffix}")
    assert patients(contents) == ["7"]
    assert skipped(contents) == [
        ("8-x.nii", "image", "no_label"),
        ("organ_9.nii.gz", "label", "no_image"),
    ]


def test_folders_that_a_pattern_names_are_searched(tmp_path: Path) -> None:
    names = ("a/{}/p1.nii.gz", "b/{}/p1.nii.gz", "b/{}/x/p2.nii.gz")
    write_files(tmp_path, *(name.format(role) for name in names for role in ("image", "mask")))
    contents = find(tmp_path / "*" / "image", tmp_path / "*" / "mask")
    assert patients(contents) == ["a/p1", "b/p1", "b/x/p2"]
    assert contents.skipped == []


def test_two_files_of_one_wildcard_are_refused(tmp_path: Path) -> None:
    write_files(tmp_path, "p1/ct.nii.gz", "p1/ct.nii", "p2/ct.nii")
    contents = find(tmp_path / "*" / "ct.nii*", None)
    assert patients(contents) == ["p2"]
    assert [code for _, _, code in skipped(contents)] == ["ambiguous_image"] * 2


def test_one_folder_for_images_and_labels_is_an_error(images: Path) -> None:
    write_files(images, "p1.nii.gz")
    with pytest.raises(PancsegError, match=r"is also source\.labels"):
        find(images, images)


# Patients


@pytest.mark.parametrize(
    ("names", "pattern", "expected"),
    [
        (("liver_3_0", "liver_3_1", "liver_12_0"), r"liver_(?P<patient>\d+)", ["12", "3", "3"]),
        (("p3/ct_a", "p3/ct_b"), "^(?P<patient>[^/]+)/", ["p3", "p3"]),
    ],
)
def test_a_regular_expression_names_the_patient(
    images: Path, names: tuple[str, ...], pattern: str, expected: list[str]
) -> None:
    write_files(images, *(f"{name}.nii.gz" for name in names))
    contents = find(images, None, pattern)
    assert (sorted(patients(contents)), contents.warnings) == (expected, [])


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        (r"scan_(?P<patient>\d+)", "does not match liver_3"),
        ("liver_(?P<patient>x*)", "does not match liver_3"),
        (r"liver_(\d+)", "no such group"),
        ("liver_(?P<patient>", "missing"),
    ],
)
def test_a_regular_expression_that_names_no_patient_is_an_error(
    images: Path, pattern: str, sentence: str
) -> None:
    write_files(images, "liver_3.nii.gz")
    with pytest.raises(PancsegError, match=f"source.patient=.*{sentence}.*group named patient"):
        find(images, None, pattern)


@pytest.mark.parametrize(
    ("names", "is_warned"),
    [
        (("liver_1_0", "liver_1_1"), True),
        (("p1-series2", "p1-series3"), True),
        (("sub-01_ses-1", "sub-01_ses-2"), True),
        (("case_001", "case_002"), False),
        (("liver_1_0", "liver_2_0"), False),
        (("a/p_1", "a/p_2"), False),
    ],
)
def test_names_that_differ_in_a_second_number_are_warned_of(
    images: Path, names: tuple[str, str], is_warned: bool
) -> None:
    write_files(images, *(f"{name}.nii.gz" for name in names))
    warnings = find(images, None).warnings
    expected = f"{names[0]} and {names[1]} look like parts of one patient"
    assert [text.startswith(expected) for text in warnings] == [True] * is_warned
