"""The layout ``dicom``: which label belongs to which series, who the patient is, what strays."""

import os
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage, SecondaryCaptureImageStorage

from pancseg.errors import PancsegError
from pancseg.intake.found import Found, Reading
from pancseg.intake.layouts.dicom import find_dicom
from tests.tiny_dicom import write_series
from tests.tiny_labels import Frame, at, item, write_nrrd, write_segmentation
from tests.what_was_found import pairs, patients, told


def find(images: Path, labels: Path | None, modality: str = "CT") -> Found:
    return find_dicom(images, labels, modality, Reading())


def put(**values: Any) -> Any:
    """Give every slice some values; None takes an attribute away."""

    def damage(slices: list[Dataset]) -> None:
        for one in slices:
            for keyword, value in values.items():
                if value is None:
                    delattr(one, keyword)
                else:
                    setattr(one, keyword, value)

    return damage


def test_a_series_goes_with_the_mask_series_of_the_same_relative_path(
    images: Path, labels: Path
) -> None:
    for name in ("p1", "site/p2"):
        write_series(images / name)
        write_series(labels / name, pixels=np.eye(5)[:, :4, None] + [0, 0, 0], modality="OT")
    found = find(images, labels)
    assert pairs(found, images, labels) == [("p1", "p1"), ("site/p2", "site/p2")]
    for one in found.candidates:
        assert len(one.files) == 10
        scan = one.read_image()
        assert np.asarray(scan.image.dataobj).max() == 432
        assert one.read_label is not None
        assert np.count_nonzero(one.read_label(scan).image.dataobj) == 12  # the label's


def test_series_that_lie_in_the_roots_themselves_go_together(images: Path, labels: Path) -> None:
    write_series(images, patient_id="")  # so that nothing but the path ties them
    write_series(labels, patient_id="", first=(0, 0, 0))
    assert pairs(find(images, labels), images, labels) == [(".", ".")]


def test_an_image_without_label_is_refused_and_the_rest_goes_on(images: Path, labels: Path) -> None:
    for n in (1, 2, 3):
        write_series(images / f"p{n}", patient_id=f"P-{n}")
    for n in (1, 3):
        write_series(labels / f"p{n}", patient_id=f"P-{n}")
    found = find(images, labels)
    assert told(found) == [("p2", "image", "no_label")]
    assert [stray.slices for stray in found.strays] == [5]
    assert pairs(found, images, labels) == [("p1", "p1"), ("p3", "p3")]


def test_a_label_without_image_is_refused_and_the_rest_goes_on(images: Path, labels: Path) -> None:
    write_series(images / "p1")
    for name in ("p1", "p2"):
        write_series(labels / name)
    found = find(images, labels)
    assert told(found) == [("p2", "label", "no_image")]
    assert pairs(found, images, labels) == [("p1", "p1")]


def test_two_series_that_one_label_fits_are_both_refused(images: Path, labels: Path) -> None:
    write_series(images / "p1", names=list("abcde"))
    write_series(images / "p1", names=list("vwxyz"))
    write_series(labels / "p1")
    found = find(images, labels)
    assert told(found) == [
        ("a", "image", "no_label"),
        ("p1", "label", "ambiguous_label"),
        ("v", "image", "no_label"),
    ]
    assert found.candidates == []


def test_a_series_with_two_labels_is_refused(images: Path, labels: Path) -> None:
    write_series(images / "p1")
    write_series(labels / "p1", names=list("abcde"))
    write_series(labels / "p1", names=list("vwxyz"))
    found = find(images, labels)
    assert ("p1", "image", "ambiguous_label") in told(found)
    assert found.candidates == []


def test_a_common_frame_of_reference_ties_whatever_the_folders(images: Path, labels: Path) -> None:
    for n in (1, 2):
        frame = put(FrameOfReferenceUID=f"1.2.{n}", PatientID="")
        write_series(images / f"scan{n}", damage=frame)
        write_series(labels / f"drawn{3 - n}", damage=frame)
    found = find(images, labels)
    assert pairs(found, images, labels) == [("scan1", "drawn2"), ("scan2", "drawn1")]


def test_geometry_ties_within_one_patient(images: Path, labels: Path) -> None:
    for n, height in enumerate((30.0, 90.0)):
        write_series(images / f"scan{n}", first=(-10, -20, height))
        write_series(labels / f"drawn{1 - n}", first=(-10, -20, height))
    found = find(images, labels)
    assert pairs(found, images, labels) == [("scan0", "drawn1"), ("scan1", "drawn0")]


def test_geometry_ties_nothing_across_patients(images: Path, labels: Path) -> None:
    write_series(images / "scan", patient_id="A")
    write_series(labels / "drawn", patient_id="B")
    assert told(find(images, labels)) == [
        ("drawn", "label", "no_image"), ("scan", "image", "no_label"),
    ]  # fmt: skip


def test_a_label_of_another_patient_in_the_same_folder_is_refused(
    images: Path, labels: Path
) -> None:
    write_series(images / "p1", patient_id="A")
    write_series(labels / "p1", patient_id="B")
    found = find(images, labels)
    assert found.candidates == []
    assert ("p1", "image", "other_patient") in told(found)


def test_other_series_of_a_labelled_patient_are_dropped_not_refused(
    images: Path, labels: Path
) -> None:
    write_series(images / "p1/venous", damage=put(FrameOfReferenceUID="1.2.1"))
    write_series(images / "p1/thin", gap_mm=1.0, damage=put(FrameOfReferenceUID="1.2.9"))
    write_series(labels / "p1", damage=put(FrameOfReferenceUID="1.2.1"))
    found = find(images, labels)
    assert pairs(found, images, labels) == [("p1/venous", "p1")]
    assert told(found) == []
    assert told(found, "dropped") == [("thin", "image", "other_series")]


def test_a_nifti_label_goes_with_the_folder_of_its_name(images: Path, labels: Path) -> None:
    write_series(images / "p1")
    write_series(images / "p2", patient_id="P-2")
    affine = np.array([[-0.5, 0, 0, 10], [0, -0.8, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1]])
    drawn = np.zeros((3, 4, 5), np.uint8)
    drawn[1, 2, 3] = 1
    for path in (labels / "p1.nii.gz", labels / "p2" / "pancreas.nii"):
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(drawn, affine), path)
    found = find(images, labels)
    assert pairs(found, images, labels) == [("p1", "p1.nii.gz"), ("p2", "p2/pancreas.nii")]
    for one in found.candidates:
        scan = one.read_image()
        mask = one.read_label(scan).image  # type: ignore[misc]
        np.testing.assert_array_equal(mask.dataobj, drawn)
        np.testing.assert_allclose(mask.affine, scan.image.affine)
    assert told(found) == told(found, "dropped") == []


def test_an_nrrd_label_is_known_by_its_ending_whatever_else_it_is_called(
    images: Path, labels: Path
) -> None:
    write_series(images / "p1")
    drawn = np.zeros((3, 4, 5), np.uint8)
    drawn[1, 2, 3] = 1
    labels.joinpath("p1").mkdir(parents=True)
    write_nrrd(labels / "p1" / "ct.nii.nrrd", drawn)
    (one,) = find(images, labels).candidates
    assert one.read_label is not None
    np.testing.assert_array_equal(one.read_label(one.read_image()).image.dataobj.sum(), 1)


def test_patterns_tie_by_what_their_wildcards_stand_for_and_name_the_patient(
    tmp_path: Path,
) -> None:
    for name in ("b", "a"):
        write_series(tmp_path / name / "CT" / "1", patient_id="same")
        write_series(tmp_path / name / "MASK" / "pancreas", patient_id="same")
        write_series(tmp_path / name / "MASK" / "liver", patient_id="same")
    found = find(tmp_path / "*" / "CT", tmp_path / "*" / "MASK" / "pancreas")
    assert patients(found) == ["a", "b"]
    assert pairs(found, tmp_path, tmp_path) == [
        ("a/CT/1", "a/MASK/pancreas"), ("b/CT/1", "b/MASK/pancreas"),
    ]  # fmt: skip


def test_under_a_pattern_no_header_ties_across_folders(tmp_path: Path) -> None:
    write_series(tmp_path / "b" / "CT", patient_id="ANON")
    write_series(tmp_path / "a" / "MASK", patient_id="ANON")
    found = find(tmp_path / "*" / "CT", tmp_path / "*" / "MASK")
    assert found.candidates == []
    assert told(found) == [("CT", "image", "no_label"), ("MASK", "label", "no_image")]


@pytest.mark.parametrize("frame", ["1.2.8", ""])
def test_a_label_that_refers_to_a_series_that_is_not_here_is_tied_to_no_other(
    images: Path, labels: Path, frame: str
) -> None:
    write_series(images / "p1", damage=put(FrameOfReferenceUID="1.2.9"))

    def refer(one: Dataset) -> None:
        one.ReferencedSeriesSequence = [item(SeriesInstanceUID="1.2.3.999")]
        one.FrameOfReferenceUID = frame

    (labels / "p1").mkdir(parents=True)
    write_segmentation(labels / "p1" / "x.dcm", [Frame(np.ones((4, 3)), at(1))], damage=refer)
    found = find(images, labels)
    assert found.candidates == []
    assert ("x.dcm", "label", "no_image") in told(found)
    assert any("refers to is not here" in one.reason for one in found.strays)


@pytest.mark.parametrize("series", ["first", "second"])
def test_the_series_that_a_label_refers_to_decides_alone(
    images: Path, labels: Path, series: str
) -> None:
    frame = put(FrameOfReferenceUID="1.2.8")
    for name, file_names in (("first", "abcde"), ("second", "vwxyz")):
        uid = f"1.2.3.{len(name)}"
        write_series(images / "p1", names=list(file_names), series_uid=uid, damage=frame)

    def refer(one: Dataset) -> None:
        one.ReferencedSeriesSequence = [item(SeriesInstanceUID=f"1.2.3.{len(series)}")]
        one.FrameOfReferenceUID, one.PatientID = "1.2.8", "P-1"

    labels.mkdir()
    write_segmentation(labels / "x.dcm", [Frame(np.ones((4, 3)), at(1))], damage=refer)
    found = find(images, labels)
    file = {"first": "a", "second": "v"}[series]
    assert pairs(found, images, labels) == [(f"p1/{file}", "x.dcm")]


def test_one_frame_of_reference_for_all_leaves_the_patient_to_decide(
    images: Path, labels: Path
) -> None:
    for name in ("a", "b"):
        constant = put(FrameOfReferenceUID="1.2.3")
        write_series(images / f"scan-{name}", patient_id=name, damage=constant)
        write_series(labels / f"drawn-{name}", patient_id=name, damage=constant)
    found = find(images, labels)
    assert pairs(found, images, labels) == [("scan-a", "drawn-a"), ("scan-b", "drawn-b")]


@pytest.mark.parametrize("parts", [(slice(0, 3), slice(3, 6)), (slice(0, 6, 2), slice(1, 6, 2))])
def test_a_series_that_lies_in_two_folders_is_one(images: Path, parts: tuple[slice, slice]) -> None:
    whole = write_series(images / "whole", count=6)
    slices = sorted(whole.iterdir(), key=lambda path: float(z_of(path)))
    for name, part in zip(("s1", "s2"), parts, strict=True):
        (images / name).mkdir()
        for path in slices[part]:
            path.rename(images / name / path.name)
    (one,) = find(images, None).candidates
    image = one.read_image().image
    assert image.shape == (3, 4, 6)
    assert image.affine[2, 2] == 2.5


@pytest.mark.parametrize("name", ["manifest.json", "intake.csv"])
def test_a_folder_is_no_prepared_one_for_one_file_of_such_a_name(images: Path, name: str) -> None:
    write_series(images)
    (images / name).write_text("somebody's")
    assert len(find(images, None).candidates) == 1


def z_of(path: Path) -> float:
    return float(pydicom.dcmread(path).ImagePositionPatient[2])


def test_copies_of_a_series_in_two_folders_stay_two(images: Path) -> None:
    shutil.copytree(write_series(images / "a"), images / "b")
    assert len(find(images, None).candidates) == 2


@pytest.mark.parametrize("names", [["1.2.1", "1.2.2"], ["1.2.1", "1.2.9"]])
def test_parts_whose_slices_are_not_all_known_as_different_stay_apart(
    images: Path, names: list[str]
) -> None:
    for n, last in enumerate(names):  # one part above the other, the first slices of one name

        def name(slices: list[Dataset], last: str = last, n: int = n) -> None:
            for k, one in enumerate(slices):
                one.SOPInstanceUID = f"1.2.{n}.{k}"
                one.FrameOfReferenceUID = "1.2.8"
            slices[-1].SOPInstanceUID = last
            slices[0].SOPInstanceUID = "1.2.5" if "1.2.9" not in names else f"1.2.6.{n}"

        above = (0, 0, 7.5 * n)
        write_series(images / f"s{n}", count=3, first=above, series_uid="1.2.3", damage=name)
    for path in images.rglob("*.dcm"):
        one = pydicom.dcmread(path)
        if one.SOPInstanceUID == "1.2.9":  # is never written empty
            one.SOPInstanceUID = ""
            one.save_as(path)
    assert len(find(images, None).candidates) == 2


def test_series_to_which_an_anonymiser_gave_one_uid_stay_apart(images: Path) -> None:
    for n, z in enumerate((0.0, 1.0)):
        write_series(images / f"p{n}", first=(0, 0, z), series_uid="1.2.3", patient_id="")
    assert len(find(images, None).candidates) == 2


def test_one_series_of_two_patients_is_refused(images: Path) -> None:
    def damage(slices: list[Dataset]) -> None:
        slices[0].PatientID = "somebody else"

    found = find(write_series(images / "p1", damage=damage).parent, None)
    assert found.candidates == []
    assert told(found) == [("p1", "image", "mixed_patient")]


@pytest.mark.parametrize("content", [b"", b"text", bytes(128) + b"DICM" + b"\1" * 40])
def test_a_damaged_file_beside_a_series_may_be_a_slice_of_it(images: Path, content: bytes) -> None:
    write_series(images / "p1")
    (images / "p1" / "x.dcm").write_bytes(content)
    write_series(images / "p2", patient_id="P-2")
    found = find(images, None)
    assert patients(found) == ["P-2"]
    assert ("p1", "image", "damaged_slice") in told(found)
    assert any(one.path.name == "x.dcm" and one.status == "refused" for one in found.strays)


def test_an_empty_file_that_is_named_like_no_slice_is_no_slice(images: Path) -> None:
    write_series(images / "p1")
    for name in (".complete", "READY", "privacy.key.lock"):
        (images / "p1" / name).touch()
    found = find(images, None)
    assert len(found.candidates) == 1
    assert {code for _, _, code in told(found, "dropped")} == {"empty_file"}


def test_an_object_without_pixels_that_says_so_is_no_damaged_slice(images: Path) -> None:
    write_series(images / "p1")
    raw = put(SOPClassUID="1.3.12.2.1107.5.9.1", Rows=None, Columns=None, PixelData=None)
    write_series(images / "p1", damage=raw, names=list("vwxyz"))
    found = find(images, None)
    assert len(found.candidates) == 1
    assert told(found, "dropped") == [("v", "other", "not_an_image")]


def test_a_damaged_file_that_names_its_series_refuses_that_one_among_several(images: Path) -> None:
    def damage(slices: list[Dataset]) -> None:
        del slices[4].Rows

    write_series(images, names=list("abcde"), damage=damage)
    write_series(images, names=list("vwxyz"), patient_id="P-2")
    found = find(images, None)
    assert patients(found) == ["P-2"]
    assert ("a", "image", "damaged_slice") in told(found)


def test_a_damaged_slice_in_the_second_folder_of_a_series_is_noticed(images: Path) -> None:
    whole = write_series(images / "a", count=8)
    slices = sorted(whole.iterdir(), key=z_of)
    (images / "b").mkdir()
    for path in slices[4:]:
        path.rename(images / "b" / path.name)
    cut = images / "b" / slices[7].name
    cut.write_bytes(cut.read_bytes()[:300])
    found = find(images, None)
    assert found.candidates == []
    assert "damaged_slice" in {code for _, _, code in told(found)}


def test_one_label_file_is_tied_to_no_other_patient_under_patterns(tmp_path: Path) -> None:
    write_series(tmp_path / "p1" / "CT")
    (tmp_path / "p2").mkdir()
    nib.save(nib.Nifti1Image(np.eye(5)[:3, :4, None] + np.zeros(5), np.eye(4)),
             tmp_path / "p2" / "pancreas.nii.gz")  # fmt: skip
    found = find(tmp_path / "*" / "CT", tmp_path / "*" / "pancreas.nii.gz")
    assert found.candidates == []


def test_a_series_without_file_meta_is_read(images: Path) -> None:
    write_series(images / "p1")
    expected = find(images, None).candidates[0].read_image().image
    for path in (images / "p1").iterdir():
        one = pydicom.dcmread(path)
        bare = Dataset()
        bare.update(one)
        path.unlink()
        pydicom.dcmwrite(path, bare, implicit_vr=True, little_endian=True)
        assert path.read_bytes()[:2] == b"\x08\x00"
    (one,) = find(images, None).candidates
    np.testing.assert_array_equal(one.read_image().image.dataobj, expected.dataobj)


def test_a_folder_that_cannot_be_entered_is_told(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(images / "p1")
    write_series(images / "secret" / "p2")
    scandir = os.scandir

    def closed(path: Any) -> Any:
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    found = find(images, None)
    assert len(found.candidates) == 1
    assert ("secret", "other", "unreadable") in told(found)


def test_a_damaged_file_among_several_series_refuses_none_of_them(images: Path) -> None:
    write_series(images, names=list("abcde"))
    write_series(images, names=list("vwxyz"), patient_id="P-2")
    (images / "bad.dcm").write_bytes(b"")
    assert len(find(images, None).candidates) == 2


def test_a_pattern_of_any_depth_finds_a_series_once(images: Path) -> None:
    write_series(images / "a" / "b" / "c")
    assert len(find(images / "**", None).candidates) == 1


def test_links_to_folders_are_followed_and_prepared_folders_are_not_entered(
    images: Path, tmp_path: Path
) -> None:
    write_series(tmp_path / "real" / "a")
    images.mkdir()
    (images / "link").symlink_to(tmp_path / "real" / "a")
    (images / "loop").symlink_to(images)
    write_series(images / "prepared" / "cases")
    for name in ("manifest.json", "intake.csv"):
        (images / "prepared" / name).touch()
    assert [one.path.name for one in find(images, None).candidates] == ["link"]


def test_without_labels_every_series_of_a_folder_is_a_candidate(images: Path) -> None:
    write_series(images / "p1", names=list("abcde"))
    write_series(images / "p1", names=list("vwxyz"))
    found = find(images, None)
    assert [one.read_label for one in found.candidates] == [None, None]
    assert len({one.path for one in found.candidates}) == 2
    assert found.strays == []


def test_the_patient_is_the_patient_id_whatever_the_folder(images: Path) -> None:
    write_series(images / "first", patient_id="P-1")
    write_series(images / "second", patient_id="P-1")
    assert patients(find(images, None)) == ["P-1", "P-1"]


@pytest.mark.parametrize("empty", ["", "  "])
def test_the_patient_is_the_folder_where_the_patient_id_is_empty(images: Path, empty: str) -> None:
    write_series(images / "site/p7", patient_id=empty)
    assert patients(find(images, None)) == ["site/p7"]


def test_series_of_one_study_are_of_one_patient_though_nobody_names_him(images: Path) -> None:
    for name, study in (("a/1", "1.2.1"), ("a/2", "1.2.1"), ("b/1", "1.2.2")):
        write_series(images / name, patient_id="", damage=put(StudyInstanceUID=study))
    assert patients(find(images, None)) == ["a/1", "a/1", "b/1"]


def test_series_of_one_study_are_of_the_patient_that_one_of_them_names(images: Path) -> None:
    write_series(images / "a", patient_id="", damage=put(StudyInstanceUID="1.2.1"))
    write_series(images / "b", patient_id="P-7", damage=put(StudyInstanceUID="1.2.1"))
    assert patients(find(images, None)) == ["P-7", "P-7"]


def test_series_without_a_study_are_not_of_one_patient_for_that(images: Path) -> None:
    write_series(images / "a", patient_id="", damage=put(StudyInstanceUID=""))
    write_series(images / "b", patient_id="P-7", damage=put(StudyInstanceUID=""))
    assert patients(find(images, None)) == ["a", "P-7"]


def test_the_patient_is_the_root_where_nothing_else_names_it(images: Path) -> None:
    assert patients(find(write_series(images, patient_id=""), None)) == ["images"]


def test_a_series_without_class_frame_or_patient_is_read(images: Path) -> None:
    write_series(images, damage=put(FrameOfReferenceUID=None, PatientID=None))
    for path in images.iterdir():
        slice_ = pydicom.dcmread(path)
        slice_.SOPClassUID = ""
        slice_.save_as(path)
    (one,) = find(images, None).candidates
    assert one.read_image().image.shape == (3, 4, 5)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        (
            {"SOPClassUID": SecondaryCaptureImageStorage, "ImagePositionPatient": None},
            "secondary_capture",
        ),
        ({"SOPClassUID": BasicTextSRStorage, "Modality": "SR", "Rows": None}, "not_an_image"),
        ({"Modality": "PT"}, "not_ct"),
    ],
)
def test_what_lies_beside_a_scan_is_dropped_with_its_reason(
    images: Path, values: dict[str, Any], code: str
) -> None:
    write_series(images / "p1")
    write_series(images / "p1", damage=put(**values), names=list("vwxyz"))
    found = find(images, None)
    assert len(found.candidates) == 1
    assert len(found.candidates[0].files) == 5
    assert told(found, "dropped") == [("v", "other", code)]
    assert [stray.slices for stray in found.strays] == [5]


def test_a_localizer_inside_a_series_is_left_out_of_it(images: Path) -> None:
    def damage(slices: list[Dataset]) -> None:
        slices[4].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        slices[4].ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    (one,) = find(write_series(images, damage=damage), None).candidates
    assert one.read_image().image.shape == (3, 4, 4)


def test_another_modality_is_refused_unless_any_is_asked_for(images: Path) -> None:
    write_series(images / "p1", modality="MR")
    found = find(images, None)
    assert told(found) == [("p1", "image", "not_ct")]
    assert "source.modality=any" in found.strays[0].reason
    assert len(find(images, None, modality="any").candidates) == 1


def test_files_that_are_not_dicom_are_dropped_with_a_reason(images: Path, labels: Path) -> None:
    write_series(images / "p1")
    write_series(labels / "p1")
    (images / "p1" / "notes.txt").write_text("seen")
    (labels / "README").write_text("drawn")
    found = find(images, labels)
    assert told(found, "dropped") == [
        ("README", "other", "not_dicom"), ("notes.txt", "other", "not_dicom"),
    ]  # fmt: skip
    assert len(found.candidates) == 1


def test_one_folder_for_images_and_labels_makes_no_image_its_own_mask(images: Path) -> None:
    write_series(images / "p1")
    with pytest.raises(PancsegError, match=r"source.labels.*holds no DICOM SEG or RTSTRUCT"):
        find(images, images)


def test_labels_in_a_folder_inside_the_images_are_no_images(images: Path) -> None:
    write_series(images / "p1")
    write_series(images / "masks" / "p1")
    found = find(images, images / "masks")
    assert pairs(found, images, images / "masks") == [("p1", "p1")]
    assert found.strays == []


def test_images_in_a_folder_inside_the_labels_are_no_labels(tmp_path: Path) -> None:
    write_series(tmp_path / "images" / "p1")
    write_series(tmp_path / "labels" / "p1")
    found = find(tmp_path / "images", tmp_path)
    assert pairs(found, tmp_path, tmp_path) == [("images/p1", "labels/p1")]
    assert found.strays == []


@pytest.mark.parametrize(("ids", "warned"), [("XXX", True), ("XYZ", False), ("XX", False)])
def test_many_scans_under_one_patient_id_are_warned_of(
    images: Path, ids: str, warned: bool
) -> None:
    for n, identity in enumerate(ids):
        write_series(images / f"p{n}", patient_id=identity)
    assert any("one PatientID" in one for one in find(images, None).warnings) == warned
