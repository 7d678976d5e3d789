"""Layouts of input: which image and which label make a case, who the patient is, what strays."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pancseg.errors import PancsegError
from pancseg.intake.sources import Found, find_dicom, find_nifti_pairs
from tests.tiny_dicom import write_series


def write_files(root: Path, *names: str) -> Path:
    """NIfTI files of one volume each, 0 in its first plane and 1 in its second."""
    voxels = np.arange(8, dtype="uint8").reshape(2, 2, 2) // 4
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    return root


def pairs(found: Found, images: Path, labels: Path) -> list[tuple[str, str]]:
    """Relative paths of each candidate's image and label."""
    return [
        (one.path.relative_to(images).as_posix(), one.label_path.relative_to(labels).as_posix())
        for one in found.candidates
        if one.label_path
    ]


def refused(found: Found) -> list[tuple[str, str, str]]:
    """Name, kind and reason code of each refused stray."""
    strays = [stray for stray in found.strays if stray.status == "refused"]
    return [(stray.path.name, stray.kind, stray.reason.split(":")[0]) for stray in strays]


def patients(found: Found) -> list[str]:
    return [one.patient for one in found.candidates]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tmp_path / "images"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return tmp_path / "labels"


# DICOM


def test_a_series_goes_with_the_mask_series_of_the_same_relative_path(
    images: Path, labels: Path
) -> None:
    for name in ("p1", "site/p2"):
        write_series(images / name)
        write_series(labels / name, pixels=np.eye(5)[:, :4, None] + [0, 0, 0], modality="SEG")
    found = find_dicom(images, labels)
    assert pairs(found, images, labels) == [("p1", "p1"), ("site/p2", "site/p2")]
    for one in found.candidates:
        assert len(one.files) == 10
        assert np.asarray(one.read_image().dataobj).max() == 432
        assert one.read_label is not None
        assert np.count_nonzero(one.read_label().dataobj) == 12  # the label's, not the image's


def test_series_that_lie_in_the_roots_themselves_go_together(images: Path, labels: Path) -> None:
    write_series(images)
    write_series(labels)
    assert pairs(find_dicom(images, labels), images, labels) == [(".", ".")]


def test_an_image_without_mask_series_is_refused_and_the_rest_goes_on(
    images: Path, labels: Path
) -> None:
    for name in ("p1", "p2", "p3"):
        write_series(images / name)
    for name in ("p1", "p3"):
        write_series(labels / name)
    found = find_dicom(images, labels)
    assert refused(found) == [("p2", "image", "no_label")]
    assert [stray.slices for stray in found.strays] == [5]
    assert pairs(found, images, labels) == [("p1", "p1"), ("p3", "p3")]


def test_a_mask_series_without_image_is_refused_and_the_rest_goes_on(
    images: Path, labels: Path
) -> None:
    write_series(images / "p1")
    for name in ("p1", "p2"):
        write_series(labels / name)
    found = find_dicom(images, labels)
    assert refused(found) == [("p2", "label", "no_image")]
    assert pairs(found, images, labels) == [("p1", "p1")]


def test_two_ct_series_with_one_mask_series_are_both_refused(images: Path, labels: Path) -> None:
    write_series(images / "p1", names=list("abcde"))
    write_series(images / "p1", names=list("vwxyz"))
    write_series(labels / "p1")
    found = find_dicom(images, labels)
    assert sorted(refused(found)) == [
        ("a", "image", "ambiguous_label"),
        ("p1", "label", "no_image"),
        ("v", "image", "ambiguous_label"),
    ]
    assert found.candidates == []


def test_a_ct_series_with_two_mask_series_is_refused(images: Path, labels: Path) -> None:
    write_series(images / "p1")
    write_series(labels / "p1", names=list("abcde"))
    write_series(labels / "p1", names=list("vwxyz"))
    found = find_dicom(images, labels)
    assert [stray for stray in refused(found) if stray[1] == "image"] == [
        ("p1", "image", "ambiguous_label")
    ]
    assert found.candidates == []


def test_without_labels_every_series_of_a_folder_is_a_candidate(images: Path) -> None:
    write_series(images / "p1", names=list("abcde"))
    write_series(images / "p1", names=list("vwxyz"))
    found = find_dicom(images, None)
    assert [one.read_label for one in found.candidates] == [None, None]
    assert len({one.path for one in found.candidates}) == 2
    assert found.strays == []


def test_the_patient_is_the_patient_id_whatever_the_folder(images: Path) -> None:
    write_series(images / "first", patient_id="P-1")
    write_series(images / "second", patient_id="P-1")
    assert patients(find_dicom(images, None)) == ["P-1", "P-1"]


@pytest.mark.parametrize("empty", ["", "  "])
def test_the_patient_is_the_folder_where_the_patient_id_is_empty(images: Path, empty: str) -> None:
    write_series(images / "site/p7", patient_id=empty)
    assert patients(find_dicom(images, None)) == ["site/p7"]


def test_the_patient_is_the_root_where_nothing_else_names_it(images: Path) -> None:
    assert patients(find_dicom(write_series(images, patient_id=""), None)) == ["images"]


def test_files_that_are_not_dicom_are_dropped_with_a_reason(images: Path, labels: Path) -> None:
    write_series(images / "p1")
    write_series(labels / "p1")
    (images / "p1" / "notes.txt").write_text("seen")
    (labels / "README").write_text("drawn")
    found = find_dicom(images, labels)
    strays = [(one.path.name, one.kind, one.status) for one in found.strays]
    assert strays == [("notes.txt", "other", "dropped"), ("README", "other", "dropped")]
    assert len(found.candidates) == 1


# NIfTI


def test_files_of_one_relative_path_and_stem_go_together_whatever_their_roles(
    images: Path, labels: Path
) -> None:
    write_files(images, "p1.nii.gz", "p2_image.nii", "p3.img.nii.gz", "a/p1_ct.nii.gz")
    write_files(labels, "p1.nii", "p2_label.nii.gz", "p3.nii.gz", "a/p1-seg.nii.gz")
    assert sorted(pairs(find_nifti_pairs(images, labels), images, labels)) == [
        ("a/p1_ct.nii.gz", "a/p1-seg.nii.gz"),
        ("p1.nii.gz", "p1.nii"),
        ("p2_image.nii", "p2_label.nii.gz"),
        ("p3.img.nii.gz", "p3.nii.gz"),
    ]


def test_one_file_goes_with_one_file_whatever_their_names(tmp_path: Path) -> None:
    write_files(tmp_path, "ct.nii.gz", "drawn/pancreas.nii.gz")
    found = find_nifti_pairs(tmp_path / "ct.nii.gz", tmp_path / "drawn/pancreas.nii.gz")
    (one,) = found.candidates
    assert one.label_path == tmp_path / "drawn/pancreas.nii.gz"
    assert found.strays == []


def test_readers_read_the_files_they_were_made_for(images: Path, labels: Path) -> None:
    write_files(images, "p1.nii.gz")
    nib.save(nib.Nifti1Image(np.full((2, 2, 2), 40, "int16"), np.eye(4)), images / "p2.nii.gz")
    write_files(labels, "p1.nii.gz", "p2.nii.gz")
    _, second = find_nifti_pairs(images, labels).candidates
    assert np.unique(second.read_image().dataobj).tolist() == [40]
    assert second.read_label is not None
    assert np.unique(second.read_label().dataobj).tolist() == [0, 1]
    assert second.files == (images / "p2.nii.gz", labels / "p2.nii.gz")


def test_images_and_labels_without_partner_are_refused_and_the_rest_goes_on(
    images: Path, labels: Path
) -> None:
    write_files(images, "p1.nii.gz", "p2.nii.gz")
    write_files(labels, "p2.nii.gz", "p3.nii.gz", "a/p1.nii.gz")
    found = find_nifti_pairs(images, labels)
    assert patients(found) == ["p2"]
    assert sorted(refused(found)) == [
        ("p1.nii.gz", "image", "no_label"),
        ("p1.nii.gz", "label", "no_image"),
        ("p3.nii.gz", "label", "no_image"),
    ]


def test_without_labels_every_file_is_a_candidate(images: Path) -> None:
    write_files(images, "p1.nii.gz", "a/p1.nii.gz")
    found = find_nifti_pairs(images, None)
    assert sorted(patients(found)) == ["a/p1", "p1"]
    assert [one.read_label for one in found.candidates] == [None, None]
    assert found.strays == []


@pytest.mark.parametrize("twins", [("p7.nii", "p7.nii.gz"), ("p7.nii.gz", "p7_image.nii.gz")])
def test_two_images_of_one_stem_are_an_error(images: Path, twins: tuple[str, str]) -> None:
    write_files(images, *twins)
    with pytest.raises(PancsegError, match=rf"{twins[0]} and {twins[1]} are images"):
        find_nifti_pairs(images, None)


@pytest.mark.parametrize("twins", [("p7.nii", "p7.nii.gz"), ("p7_label.nii", "p7_seg.nii")])
def test_two_labels_of_one_stem_are_an_error(
    images: Path, labels: Path, twins: tuple[str, str]
) -> None:
    write_files(images, "p7.nii.gz")
    write_files(labels, *twins)
    with pytest.raises(PancsegError, match=rf"{twins[0]} and {twins[1]} are labels"):
        find_nifti_pairs(images, labels)


def test_a_regular_expression_names_the_patient(images: Path) -> None:
    write_files(images, "liver_3_0.nii.gz", "liver_3_1.nii.gz", "liver_12_0.nii.gz")
    found = find_nifti_pairs(images, None, patient=r"liver_(?P<patient>\d+)")
    assert sorted(patients(found)) == ["12", "3", "3"]
    assert found.warnings == []


def test_a_regular_expression_sees_the_folder(images: Path) -> None:
    write_files(images, "p3/ct_a.nii.gz", "p3/ct_b.nii.gz")
    found = find_nifti_pairs(images, None, patient="^(?P<patient>[^/]+)/")
    assert patients(found) == ["p3", "p3"]


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
        find_nifti_pairs(images, None, patient=pattern)


def test_a_file_numbered_0000_is_named_by_its_regular_expression_like_its_neighbours(
    images: Path,
) -> None:
    write_files(images, "case_0000.nii.gz", "case_0001.nii.gz")
    found = find_nifti_pairs(images, None, patient=r"case_(?P<patient>\d+)")
    assert patients(found) == ["0000", "0001"]


@pytest.mark.parametrize(
    "names",
    [("liver_1_0", "liver_1_1"), ("p1-series2", "p1-series3"), ("sub-01_ses-1", "sub-01_ses-2")],
)
def test_names_that_differ_in_a_second_number_are_warned_about(
    images: Path, names: tuple[str, str]
) -> None:
    write_files(images, *(f"{name}.nii.gz" for name in names))
    (warning,) = find_nifti_pairs(images, None).warnings
    assert warning.startswith(f"{names[0]} and {names[1]} look like pieces of one patient")
    assert "source.patient" in warning


@pytest.mark.parametrize(
    "names", [("case_001", "case_002"), ("liver_1_0", "liver_2_0"), ("a/p_1", "a/p_2")]
)
def test_names_that_differ_in_the_patients_number_are_not_warned_about(
    images: Path, names: tuple[str, str]
) -> None:
    write_files(images, *(f"{name}.nii.gz" for name in names))
    assert find_nifti_pairs(images, None).warnings == []


@pytest.mark.parametrize("find", [find_dicom, find_nifti_pairs])
def test_one_folder_given_for_images_and_labels_makes_no_image_its_own_mask(
    images: Path, find: Callable[[Path, Path], Found]
) -> None:
    write_series(images / "p1")
    write_files(images, "p1.nii.gz")
    with pytest.raises(PancsegError, match="labels"):
        find(images, images)


# Who and what lies together


def test_a_dose_report_beside_a_ct_is_left_out_and_the_ct_is_kept(
    images: Path, labels: Path
) -> None:
    write_series(images / "p1")
    write_series(images / "p1", modality="SR", names=list("vwxyz"))
    write_series(labels / "p1")
    found = find_dicom(images, labels)
    assert len(found.candidates) == 1
    assert [(one.kind, one.status, one.reason) for one in found.strays] == [
        ("other", "dropped", "not_ct: modality is SR")
    ]


def test_a_mask_of_another_patient_is_refused(images: Path, labels: Path) -> None:
    write_series(images / "p1", patient_id="A")
    write_series(labels / "p1", patient_id="B")
    found = find_dicom(images, labels)
    assert found.candidates == []
    assert ("p1", "image", "other_patient") in refused(found)


@pytest.mark.parametrize(("ids", "warned"), [("XXX", True), ("XYZ", False), ("XX", False)])
def test_many_scans_under_one_patient_id_are_warned_of(
    images: Path, ids: str, warned: bool
) -> None:
    for n, identity in enumerate(ids):
        write_series(images / f"p{n}", patient_id=identity)
    assert any("one PatientID" in one for one in find_dicom(images, None).warnings) == warned
