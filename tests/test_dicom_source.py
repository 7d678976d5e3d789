"""The source ``dicom``: cases, their patients and identities, and rows of other files."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage, SecondaryCaptureImageStorage

from pancseg.dicom.series import Scan
from pancseg.errors import PancsegError, Refused
from pancseg.intake.match_labels import SourceContents, read_label
from pancseg.intake.sources import find_dicom
from tests.source_contents import codes_of, label_of, options, pairs, patients, skipped
from tests.tiny_dicom import write_series
from tests.tiny_labels import Frame, at, item, write_nrrd, write_segmentation

SECRET = "DOE JOHN"


def find(images: Path, labels: Path | None = None, modality: str = "CT") -> SourceContents:
    return find_dicom(images, labels, modality, options())


def put(**values: Any) -> Callable[[list[Dataset]], None]:
    """Set attributes of every slice; None removes an attribute."""

    def damage(slices: list[Dataset]) -> None:
        for dataset in slices:
            for keyword, value in values.items():
                if value is None:
                    delattr(dataset, keyword)
                else:
                    setattr(dataset, keyword, value)

    return damage


def identities(contents: SourceContents) -> list[str]:
    return [case.input_key for case in contents.cases]


def test_a_case_reads_its_image_and_its_mask_series_in_other_processes_too(
    images: Path, labels: Path
) -> None:
    write_series(images / "p1")
    write_series(labels / "p1", pixels=np.eye(5)[:, :4, None] + [0, 0, 0], modality="OT")
    [case] = pickle.loads(pickle.dumps(find(images, labels).cases))
    assert case.files == (*sorted((images / "p1").iterdir()), *sorted((labels / "p1").iterdir()))
    scan = case.read_image()
    assert np.asarray(scan.image.dataobj).max() == 432
    assert np.count_nonzero(case.read_label(scan).image.dataobj) == 12


def test_files_of_labels_match_the_folder_of_their_name(images: Path, labels: Path) -> None:
    drawn = np.zeros((3, 4, 5), np.uint8)
    drawn[1, 2, 3] = 1
    affine = np.array([[-0.5, 0, 0, 10], [0, -0.8, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1]])
    for n, name in enumerate(("p1.nii.gz", "p2/pancreas.nii", "p3/ct.nii.nrrd"), start=1):
        write_series(images / f"p{n}", patient_id=f"P-{n}")
        path = labels / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".nrrd":
            write_nrrd(path, drawn)
        else:
            nib.save(nib.Nifti1Image(drawn, affine), path)
    contents = find(images, labels)
    expected = [("p1", "p1.nii.gz"), ("p2", "p2/pancreas.nii"), ("p3", "p3/ct.nii.nrrd")]
    assert pairs(contents, images, labels) == expected
    assert contents.skipped == []
    for case in contents.cases:
        np.testing.assert_array_equal(codes_of(case), drawn)


def test_a_label_file_given_alone_belongs_to_the_only_series(tmp_path: Path) -> None:
    write_series(tmp_path / "scan")
    file = write_nrrd(tmp_path / "other.nrrd", np.ones((3, 4, 5), np.uint8))
    assert [case.label_path for case in find(tmp_path / "scan", file).cases] == [file]


def test_a_seg_among_the_images_is_their_label(images: Path) -> None:
    write_series(images / "p1", series_uid="1.2.3.4")

    def refer(dataset: Dataset) -> None:
        dataset.ReferencedSeriesSequence = [item(SeriesInstanceUID="1.2.3.4")]

    write_segmentation(images / "p1" / "x.dcm", [Frame(np.ones((4, 3)), at(1))], damage=refer)
    contents = find(images, images)
    assert pairs(contents, images, images) == [("p1", "p1/x.dcm")]
    assert contents.skipped == []
    assert np.count_nonzero(codes_of(contents.cases[0])) == 12
    assert skipped(find(images), "dropped") == [("x.dcm", "label", "label_among_images")]


def test_a_folder_of_images_alone_is_not_its_own_label(images: Path) -> None:
    write_series(images / "p1")
    with pytest.raises(PancsegError, match=r"is also source.labels.*no DICOM SEG or RTSTRUCT"):
        find(images, images)


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_seg_and_rtstruct_need_a_dicom_image(kind: str) -> None:
    scan = Scan(nib.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4)))
    with pytest.raises(Refused, match="label_needs_dicom"):
        read_label(kind, (Path("x.dcm"),), options(), scan)


def test_labels_in_a_folder_inside_the_images_are_not_images(images: Path) -> None:
    write_series(images / "p1")
    write_series(images / "masks" / "p1")
    contents = find(images, images / "masks")
    assert pairs(contents, images, images / "masks") == [("p1", "p1")]
    assert contents.skipped == []


def test_images_in_a_folder_inside_the_labels_are_not_labels(tmp_path: Path) -> None:
    write_series(tmp_path / "images" / "p1")
    write_series(tmp_path / "labels" / "p1")
    contents = find(tmp_path / "images", tmp_path)
    assert pairs(contents, tmp_path, tmp_path) == [("images/p1", "labels/p1")]
    assert contents.skipped == []


def test_one_folder_by_a_pattern_and_a_path_makes_no_image_its_own_label(images: Path) -> None:
    write_series(images / "p1")
    assert find(images / "*", images).cases == []


# Patients and identities


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        ({"first": ("P-1", "1.1"), "second": ("P-1", "1.2")}, ["P-1", "P-1"]),
        ({"site/p7": ("", "1.1")}, ["site/p7"]),
        ({"site/p7": ("  ", "")}, ["site/p7"]),
        ({".": ("", "1.1")}, ["images"]),
        ({"a/1": ("", "1.1"), "a/2": ("", "1.1"), "b": ("", "1.2")}, ["a/1", "a/1", "b"]),
        ({"a": ("", "1.1"), "b": ("P-7", "1.1")}, ["P-7", "P-7"]),
        ({"a": ("", ""), "b": ("P-7", "")}, ["a", "P-7"]),
    ],
)
def test_the_patient_is_the_patient_id_of_the_study_or_its_first_folder(
    images: Path, series: dict[str, tuple[str, str]], expected: list[str]
) -> None:
    for name, (patient_id, study) in series.items():
        write_series(images / name, patient_id=patient_id, damage=put(StudyInstanceUID=study))
    assert patients(find(images)) == expected


@pytest.mark.parametrize(("ids", "is_warned"), [("XXX", True), ("XYZ", False), ("XX", False)])
def test_many_scans_of_one_patient_id_are_warned_of(
    images: Path, ids: str, is_warned: bool
) -> None:
    for n, patient_id in enumerate(ids):
        write_series(images / f"p{n}", patient_id=patient_id)
    assert any("same PatientID" in text for text in find(images).warnings) == is_warned


def test_the_identity_stays_where_a_series_moves_or_a_second_copy_appears(images: Path) -> None:
    before = identities(find(write_series(images / "DIR1").parent))
    shutil.copytree(images / "DIR1", images / "DIR2")
    assert identities(find(images)) == before
    shutil.rmtree(images / "DIR1")
    assert identities(find(images)) == before


def test_scans_to_which_an_anonymiser_gave_one_uid_have_two_identities(images: Path) -> None:
    for n, height in enumerate((0.0, 1.0)):
        write_series(images / f"p{n}", first=(0, 0, height), series_uid="1.2.3", patient_id="")
    assert len(set(identities(find(images)))) == 2


def test_series_without_uid_are_told_apart_by_their_folders(images: Path) -> None:
    for name in ("a", "b"):
        write_series(images / name, patient_id="", damage=put(SeriesInstanceUID=""))
    first, second = identities(find(images))
    assert first != second
    assert first.startswith(str(images / "a"))


def test_manufacturer_contrast_and_uids_reach_the_case(images: Path) -> None:
    values = {"Manufacturer": "GE MEDICAL SYSTEMS", "ContrastBolusAgent": SECRET}
    write_series(images, series_uid="1.2.3.4", damage=put(**values, StudyInstanceUID="1.2.3"))
    [case] = find(images).cases
    assert (case.manufacturer, case.contrast, case.format) == ("ge", "yes", "image")
    assert (case.uid, case.study_uid, case.patient_id) == ("1.2.3.4", "1.2.3", "P-1")


def test_flags_of_image_and_label_series_reach_the_case(images: Path, labels: Path) -> None:
    write_series(images / "p1")
    write_series(labels / "p1")
    (labels / "p1" / "x.dcm").write_bytes(b"text")
    contents = find(images, labels)
    assert [case.flags for case in contents.cases] == [("damaged_file",)]
    assert skipped(contents) == [("x.dcm", "other", "not_dicom")]


def test_flags_of_reading_reach_the_scan(images: Path) -> None:
    write_series(images)
    shutil.copy(next(images.iterdir()), images / "copy.dcm")
    [case] = find(images).cases
    assert case.read_image().flags == ("duplicate_files",)


# Rows


def test_every_series_is_a_case_where_no_labels_are_wanted(images: Path) -> None:
    write_series(images / "p1", names=list("abcde"))
    write_series(images / "p1", names=list("vwxyz"))
    contents = find(images)
    assert [case.read_label for case in contents.cases] == [None, None]
    assert sorted(case.path.name for case in contents.cases) == ["a", "v"]
    assert contents.skipped == []


def test_other_series_of_a_labelled_patient_are_dropped(images: Path, labels: Path) -> None:
    write_series(images / "p1/venous", damage=put(FrameOfReferenceUID="1.2.1"))
    write_series(images / "p1/thin", gap_mm=1.0, damage=put(FrameOfReferenceUID="1.2.9"))
    write_series(labels / "p1", damage=put(FrameOfReferenceUID="1.2.1"))
    contents = find(images, labels)
    assert pairs(contents, images, labels) == [("p1/venous", "p1")]
    assert skipped(contents, "dropped") == [("thin", "image", "other_series")]
    assert skipped(contents) == []


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
def test_other_series_beside_a_scan_are_dropped(
    images: Path, values: dict[str, Any], code: str
) -> None:
    write_series(images / "p1")
    write_series(images / "p1", damage=put(**values), names=list("vwxyz"))
    contents = find(images)
    assert [len(case.files) for case in contents.cases] == [5]
    assert skipped(contents, "dropped") == [("v", "other", code)]
    assert [row.slices for row in contents.skipped] == [5]


def test_another_modality_is_refused_unless_any_is_wanted(images: Path) -> None:
    write_series(images / "p1", modality="MR")
    [row] = find(images).skipped
    assert row.reason == "not_ct: Modality is not CT, expected CT; source.modality=any takes it"
    assert (row.kind, row.status) == ("image", "refused")
    assert len(find(images, modality="any").cases) == 1


def test_no_row_or_warning_quotes_a_header(images: Path, labels: Path) -> None:
    for n, modality in enumerate((SECRET, "CT", "CT", "CT")):
        write_series(images / f"p{n}", patient_id=SECRET, modality=modality)
    write_series(labels / "p1", patient_id=f"{SECRET}^Q")
    alone, labelled = find(images), find(images, labels)
    shown = [row.reason for row in (*alone.skipped, *labelled.skipped)]
    assert len(shown) > 3
    assert "DOE" not in " ".join([*shown, *alone.warnings, *labelled.warnings])


def test_a_problem_of_an_image_or_label_stands_in_both_rows(images: Path, labels: Path) -> None:
    def damage(slices: list[Dataset]) -> None:
        slices[2].PatientID = "Q-1"

    write_series(images / "p1", damage=damage)
    write_series(labels / "p1")
    write_series(images / "p2", patient_id="P-2")
    write_series(labels / "p2", patient_id="", damage=damage)
    rows = {(row.path, row.reason.partition(":")[0]) for row in find(images, labels).skipped}
    assert rows == {
        (images / "p1", "mixed_patient"),
        (labels / "p1", "image_refused"),
        (images / "p2", "mixed_patient"),
        (labels / "p2", "mixed_patient"),
    }


def test_label_of_returns_structures(images: Path, labels: Path) -> None:
    write_series(images)
    write_series(labels, pixels=np.arange(60).reshape(5, 4, 3) % 3)
    chosen = options(pancreas=[1, 2], tumour=[2])
    [case] = find_dicom(images, labels, "CT", chosen).cases
    assert np.unique(label_of(case).image.dataobj).tolist() == [0, 1, 2]
