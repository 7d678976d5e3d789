"""The nifti layout: which image and label make a case, who the patient is, what strays."""

import pickle
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest

from pancseg.errors import PancsegError
from pancseg.intake.found import Found, Reading
from pancseg.intake.layouts.nifti import find_nifti_pairs, pieces_of_one_patient
from tests.what_was_found import pairs, patients, told


def find(images: Path, labels: Path | None, patient: str | None = None) -> Found:
    return find_nifti_pairs(images, labels, patient, Reading())


def write_files(root: Path, *names: str) -> Path:
    """NIfTI files of one volume each, 0 in its first plane and 1 in its second."""
    voxels = np.arange(8, dtype="uint8").reshape(2, 2, 2) // 4
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return root


def test_files_of_one_relative_path_and_stem_go_together_whatever_their_roles(
    images: Path, labels: Path
) -> None:
    write_files(images, "p1.nii.gz", "p2_image.nii", "p3.img.nii.gz", "a/p1_ct.nii.gz")
    write_files(labels, "p1.nii", "p2_label.nii.gz", "p3.nii.gz", "a/p1-seg.nii.gz")
    assert sorted(pairs(find(images, labels), images, labels)) == [
        ("a/p1_ct.nii.gz", "a/p1-seg.nii.gz"),
        ("p1.nii.gz", "p1.nii"),
        ("p2_image.nii", "p2_label.nii.gz"),
        ("p3.img.nii.gz", "p3.nii.gz"),
    ]


def test_one_file_goes_with_one_file_whatever_their_names(tmp_path: Path) -> None:
    write_files(tmp_path, "ct.nii.gz", "drawn/pancreas.nii.gz")
    found = find(tmp_path / "ct.nii.gz", tmp_path / "drawn/pancreas.nii.gz")
    (one,) = found.candidates
    assert one.label_path == tmp_path / "drawn/pancreas.nii.gz"
    assert found.strays == []


def test_readers_read_the_files_they_were_made_for_in_other_processes_too(
    images: Path, labels: Path
) -> None:
    write_files(images, "p1.nii.gz")
    nib.save(nib.Nifti1Image(np.full((2, 2, 2), 40, "int16"), np.eye(4)), images / "p2.nii.gz")
    write_files(labels, "p1.nii.gz", "p2.nii.gz")
    _, second = pickle.loads(pickle.dumps(find(images, labels).candidates))
    scan = second.read_image()
    assert np.unique(scan.image.dataobj).tolist() == [40]
    assert scan.stack is None
    assert np.unique(second.read_label(scan).image.dataobj).tolist() == [0, 1]
    assert second.files == (images / "p2.nii.gz", labels / "p2.nii.gz")


def test_the_choice_of_labels_reaches_the_reader(images: Path, labels: Path) -> None:
    write_files(images, "p1.nii.gz")
    labels.mkdir()
    voxels = np.arange(8, dtype="uint8").reshape(2, 2, 2)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), labels / "p1.nii.gz")
    (one,) = find_nifti_pairs(images, labels, None, Reading(choice=(5,))).candidates
    assert one.read_label is not None
    mask = one.read_label(one.read_image())
    assert np.argwhere(mask.image.dataobj).tolist() == [[1, 0, 1]]
    assert mask.undeclared == ("1", "2", "3", "4", "6", "7")


@pytest.mark.parametrize("name", ["p1.seg.nrrd", "p1.nrrd", "p1_label.nrrd", "p1_ct.seg.nrrd"])
def test_a_label_may_be_nrrd(images: Path, labels: Path, name: str) -> None:
    write_files(images, "p1.nii.gz")
    labels.mkdir()
    voxels = np.arange(8, dtype="uint8").reshape(2, 2, 2) // 4
    header = {
        "space": "right-anterior-superior",
        "space directions": np.eye(3),
        "space origin": np.zeros(3),
    }
    nrrd.write(str(labels / name), voxels, header)
    (one,) = find(images, labels).candidates
    assert one.read_label is not None
    np.testing.assert_array_equal(one.read_label(one.read_image()).image.dataobj, voxels)


def test_an_nrrd_file_is_no_image(images: Path) -> None:
    write_files(images, "p1.nii.gz")
    (images / "p2.nrrd").touch()
    assert patients(find(images, None)) == ["p1"]


def test_images_and_labels_without_partner_are_refused_and_the_rest_goes_on(
    images: Path, labels: Path
) -> None:
    write_files(images, "p1.nii.gz", "p2.nii.gz")
    write_files(labels, "p2.nii.gz", "p3.nii.gz", "a/p1.nii.gz")
    found = find(images, labels)
    assert patients(found) == ["p2"]
    assert sorted(told(found)) == [
        ("p1.nii.gz", "image", "no_label"),
        ("p1.nii.gz", "label", "no_image"),
        ("p3.nii.gz", "label", "no_image"),
    ]


def test_without_labels_every_file_is_a_candidate(images: Path) -> None:
    write_files(images, "p1.nii.gz", "a/p1.nii.gz")
    found = find(images, None)
    assert sorted(patients(found)) == ["a/p1", "p1"]
    assert [one.read_label for one in found.candidates] == [None, None]
    assert found.strays == []


@pytest.mark.parametrize("twins", [("p7.nii", "p7.nii.gz"), ("p7.nii.gz", "p7_image.nii.gz")])
def test_two_images_of_one_stem_are_refused_and_the_rest_goes_on(
    images: Path, twins: tuple[str, str]
) -> None:
    write_files(images, *twins, "p8.nii")
    found = find(images, None)
    assert patients(found) == ["p8"]
    assert told(found) == [(name, "image", "ambiguous_image") for name in twins]
    assert f"{twins[0]} and {twins[1]} are all images named p7" in found.strays[0].reason


@pytest.mark.parametrize(
    "twins", [("p7.nii", "p7.nii.gz"), ("p7_label.nii", "p7_seg.nii"), ("p7.nii", "p7.seg.nrrd")]
)
def test_two_labels_of_one_stem_are_refused_with_their_image_and_the_rest_goes_on(
    images: Path, labels: Path, twins: tuple[str, str]
) -> None:
    write_files(images, "p7.nii.gz", "p8.nii.gz")
    write_files(labels, "p8.nii")
    for name in twins:
        (labels / name).touch()
    found = find(images, labels)
    assert patients(found) == ["p8"]
    assert told(found) == sorted(
        [
            ("p7.nii.gz", "image", "ambiguous_label"),
            *((name, "label", "ambiguous_label") for name in twins),
        ]
    )
    assert f"{sorted(twins)[0]} and {sorted(twins)[1]}" in found.strays[0].reason


def test_labels_that_lie_in_the_folder_of_the_images_are_no_images(images: Path) -> None:
    write_files(images, "p1.nii.gz", "labels/p1.nii.gz")
    found = find(images, images / "labels")
    assert pairs(found, images, images) == [("p1.nii.gz", "labels/p1.nii.gz")]
    assert found.strays == []


def test_resource_forks_of_macos_are_dropped(images: Path, labels: Path) -> None:
    write_files(images, "p1.nii.gz")
    write_files(labels, "p1.nii.gz")
    (images / "._p1.nii.gz").write_bytes(b"\0\5\26\7")
    (labels / "._p1.nii.gz").write_bytes(b"\0\5\26\7")
    found = find(images, labels)
    assert patients(found) == ["p1"]
    strays = [(one.path, one.kind, one.status, one.reason[:13]) for one in found.strays]
    assert sorted(strays) == [
        (folder / "._p1.nii.gz", "other", "dropped", "resource_fork") for folder in (images, labels)
    ]


# Patterns


def test_what_a_wildcard_stands_for_ties_files_and_names_the_patient(tmp_path: Path) -> None:
    for name in ("s0001", "s0002"):
        write_files(tmp_path / name, "ct.nii.gz", "segmentations/pancreas.nii.gz")
        write_files(tmp_path / name, "segmentations/liver.nii.gz")
    write_files(tmp_path / "s0003", "ct.nii.gz")
    found = find(tmp_path / "*" / "ct.nii.gz", tmp_path / "*" / "segmentations" / "pancreas.nii.gz")
    assert patients(found) == ["s0001", "s0002"]
    assert pairs(found, tmp_path, tmp_path) == [
        (f"{name}/ct.nii.gz", f"{name}/segmentations/pancreas.nii.gz") for name in patients(found)
    ]
    assert told(found) == [("ct.nii.gz", "image", "no_label")]
    assert "s0003" in found.strays[0].reason


@pytest.mark.parametrize("ending", ["*", ".*", ".nii*"])
def test_a_wildcard_within_a_name_stands_for_a_part_of_it_whatever_the_format(
    tmp_path: Path, ending: str
) -> None:
    write_files(tmp_path, "ct/7-x.nii.gz", "mask/organ_7.nii", "ct/8-x.nii", "mask/organ_9.nii.gz")
    found = find(tmp_path / "ct" / f"?-x{ending}", tmp_path / "mask" / f"organ_?{ending}")
    assert patients(found) == ["7"]
    assert told(found) == [
        ("8-x.nii", "image", "no_label"),
        ("organ_9.nii.gz", "label", "no_image"),
    ]


def test_a_folder_that_a_pattern_names_is_searched(tmp_path: Path) -> None:
    write_files(tmp_path, "a/image/p1.nii.gz", "b/image/p1.nii.gz", "b/image/x/p2.nii.gz")
    write_files(tmp_path, "a/mask/p1.nii.gz", "b/mask/p1.nii.gz", "b/mask/x/p2.nii.gz")
    found = find(tmp_path / "*" / "image", tmp_path / "*" / "mask")
    assert patients(found) == ["a/p1", "b/p1", "b/x/p2"]
    assert found.strays == []


def test_folders_within_folders_make_each_file_one_case(tmp_path: Path) -> None:
    write_files(tmp_path, "a/ct/p1.nii.gz", "a/b/ct/ct/p2.nii.gz")
    found = find(tmp_path / "**" / "ct", None)
    assert sorted(one.path.name for one in found.candidates) == ["p1.nii.gz", "p2.nii.gz"]


def test_two_files_of_one_wildcard_are_refused(tmp_path: Path) -> None:
    write_files(tmp_path, "p1/ct.nii.gz", "p1/ct.nii", "p2/ct.nii")
    found = find(tmp_path / "*" / "ct.nii*", None)
    assert patients(found) == ["p2"]
    assert sorted(told(found)) == [
        ("ct.nii", "image", "ambiguous_image"),
        ("ct.nii.gz", "image", "ambiguous_image"),
    ]


def test_a_regular_expression_is_searched_in_what_wildcards_stand_for(tmp_path: Path) -> None:
    write_files(tmp_path, "site_p1_early/ct.nii", "site_p1_late/ct.nii", "site_p2_late/ct.nii")
    found = find(tmp_path / "*" / "ct.nii", None, r"_(?P<patient>p\d)_")
    assert patients(found) == ["p1", "p1", "p2"]


@pytest.mark.parametrize("plain", ["images", "labels"])
def test_a_pattern_with_a_plain_path_is_an_error(tmp_path: Path, plain: str) -> None:
    write_files(tmp_path, "p1/ct.nii", "labels/p1.nii")
    paths = {"images": tmp_path / "*" / "ct.nii", "labels": tmp_path / "*" / "ct.nii.gz"}
    paths[plain] = tmp_path / "labels"
    with pytest.raises(PancsegError, match=f"source.{plain}=.* is no pattern"):
        find(paths["images"], paths["labels"])


def test_files_that_a_pattern_names_and_that_are_no_images_are_left(tmp_path: Path) -> None:
    write_files(tmp_path, "p1/ct.nii")
    (tmp_path / "p1" / "ct.json").touch()
    (tmp_path / "p1" / "ct.txt").touch()
    assert patients(find(tmp_path / "*" / "ct.*", None)) == ["p1"]


# Patients


def test_a_regular_expression_names_the_patient(images: Path) -> None:
    write_files(images, "liver_3_0.nii.gz", "liver_3_1.nii.gz", "liver_12_0.nii.gz")
    found = find(images, None, patient=r"liver_(?P<patient>\d+)")
    assert sorted(patients(found)) == ["12", "3", "3"]
    assert found.warnings == []


def test_a_regular_expression_sees_the_folder(images: Path) -> None:
    write_files(images, "p3/ct_a.nii.gz", "p3/ct_b.nii.gz")
    assert patients(find(images, None, patient="^(?P<patient>[^/]+)/")) == ["p3", "p3"]


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        (r"scan_(?P<patient>\d+)", "no group named patient in liver_3"),
        (r"liver_(\d+)", "no group named patient in liver_3"),
        ("liver_(?P<patient>x*)", "no group named patient in liver_3"),
        ("liver_(?P<patient>", "not a regular expression"),
    ],
)
def test_a_regular_expression_that_names_no_patient_is_an_error(
    images: Path, pattern: str, sentence: str
) -> None:
    write_files(images, "liver_3.nii.gz")
    with pytest.raises(PancsegError, match=sentence):
        find(images, None, patient=pattern)


def test_a_file_numbered_0000_is_named_by_its_regular_expression_like_its_neighbours(
    images: Path,
) -> None:
    write_files(images, "case_0000.nii.gz", "case_0001.nii.gz")
    assert patients(find(images, None, patient=r"case_(?P<patient>\d+)")) == ["0000", "0001"]


@pytest.mark.parametrize(
    "names",
    [("liver_1_0", "liver_1_1"), ("p1-series2", "p1-series3"), ("sub-01_ses-1", "sub-01_ses-2")],
)
def test_names_that_differ_in_a_second_number_are_warned_about(
    images: Path, names: tuple[str, str]
) -> None:
    write_files(images, *(f"{name}.nii.gz" for name in names))
    (warning,) = find(images, None).warnings
    assert warning.startswith(f"{names[0]} and {names[1]} look like pieces of one patient")
    assert "source.patient" in warning


@pytest.mark.parametrize(
    "names", [("case_001", "case_002"), ("liver_1_0", "liver_2_0"), ("a/p_1", "a/p_2")]
)
def test_names_that_differ_in_the_patients_number_are_not_warned_about(
    names: tuple[str, str],
) -> None:
    assert pieces_of_one_patient(list(names)) is None


def test_one_folder_given_for_images_and_labels_makes_no_image_its_own_mask(images: Path) -> None:
    write_files(images, "p1.nii.gz")
    with pytest.raises(PancsegError, match="labels"):
        find(images, images)
