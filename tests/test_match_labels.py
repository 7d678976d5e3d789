"""Which label belongs to which image, by UIDs, PatientID, grid and path."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset

from pancseg.dicom import series as dicom_series
from pancseg.intake.match_labels import SourceContents, SourceItem, match_labels
from pancseg.intake.sources import find_dicom
from tests.source_contents import options, pairs, skipped
from tests.tiny_dicom import write_series
from tests.tiny_labels import Frame, at, item, write_segmentation


def find(images: Path, labels: Path | None) -> SourceContents:
    return find_dicom(images, labels, "CT", options())


def put(**values: Any) -> Callable[[list[Dataset]], None]:
    """Set attributes of every slice."""

    def damage(slices: list[Dataset]) -> None:
        for dataset in slices:
            for keyword, value in values.items():
                setattr(dataset, keyword, value)

    return damage


def write_seg(
    file: Path, *, refers_to: str = "", frame: str = "", patient_id: str = "P-1", uid: str = ""
) -> None:
    """A SEG that refers to a series."""

    def damage(dataset: Dataset) -> None:
        if refers_to:
            dataset.ReferencedSeriesSequence = [item(SeriesInstanceUID=refers_to)]
        dataset.FrameOfReferenceUID, dataset.PatientID = frame, patient_id
        dataset.SeriesInstanceUID = uid or dataset.SeriesInstanceUID

    file.parent.mkdir(parents=True, exist_ok=True)
    write_segmentation(file, [Frame(np.ones((4, 3)), at(1))], damage=damage)


def test_nothing_but_equal_paths_matches_anonymous_series(images: Path, labels: Path) -> None:
    for name in ("p1", "site/p2"):
        write_series(images / name, patient_id="")
        write_series(labels / name, patient_id="", first=(0, 0, 0))
    assert pairs(find(images, labels), images, labels) == [("p1", "p1"), ("site/p2", "site/p2")]


def test_series_in_the_two_folders_themselves_match(images: Path, labels: Path) -> None:
    write_series(images, patient_id="")
    write_series(labels, patient_id="", first=(0, 0, 0))
    assert pairs(find(images, labels), images, labels) == [(".", ".")]


def test_images_and_labels_without_partner_are_refused(images: Path, labels: Path) -> None:
    for name in ("p1", "p2"):
        write_series(images / name, patient_id=name)
    for name in ("p1", "p3"):
        write_series(labels / name, patient_id=name)
    contents = find(images, labels)
    assert skipped(contents) == [("p2", "image", "no_label"), ("p3", "label", "no_image")]
    assert [row.slices for row in contents.skipped] == [5, 5]
    assert pairs(contents, images, labels) == [("p1", "p1")]


def test_a_label_that_fits_two_images_is_refused(images: Path, labels: Path) -> None:
    write_series(images / "p1", names=list("abcde"))
    write_series(images / "p1", names=list("vwxyz"))
    write_series(labels / "p1")
    contents = find(images, labels)
    assert contents.cases == []
    assert skipped(contents) == [
        ("a", "image", "no_label"),
        ("p1", "label", "ambiguous_label"),
        ("v", "image", "no_label"),
    ]


def test_two_labels_of_an_image_are_refused(images: Path, labels: Path) -> None:
    write_series(images / "p1")
    write_series(labels / "p1", names=list("abcde"))
    write_series(labels / "p1", names=list("vwxyz"))
    contents = find(images, labels)
    assert contents.cases == []
    assert skipped(contents) == [
        ("a", "label", "ambiguous_label"),
        ("p1", "image", "ambiguous_label"),
        ("v", "label", "ambiguous_label"),
    ]


def test_of_two_labels_the_label_of_the_same_path_is_used(images: Path, labels: Path) -> None:
    write_series(images / "p1")
    for name in ("p1", "p2"):
        write_series(labels / name)
    contents = find(images, labels)
    assert pairs(contents, images, labels) == [("p1", "p1")]
    assert skipped(contents) == [("p2", "label", "no_image")]


def test_a_common_frame_of_reference_goes_before_the_path(images: Path, labels: Path) -> None:
    for n in (1, 2):
        frame = put(FrameOfReferenceUID=f"1.2.{n}", PatientID="")
        write_series(images / f"p{n}", damage=frame)
        write_series(labels / f"p{3 - n}", damage=frame)
    assert pairs(find(images, labels), images, labels) == [("p1", "p2"), ("p2", "p1")]


def test_equal_grids_match_within_a_patient(images: Path, labels: Path) -> None:
    for n, height in enumerate((30.0, 90.0)):
        write_series(images / f"scan{n}", first=(-10, -20, height))
        write_series(labels / f"drawn{1 - n}", first=(-10, -20, height))
    found = pairs(find(images, labels), images, labels)
    assert found == [("scan0", "drawn1"), ("scan1", "drawn0")]


def test_equal_grids_match_nothing_across_patients(images: Path, labels: Path) -> None:
    write_series(images / "scan", patient_id="A")
    write_series(labels / "drawn", patient_id="B")
    assert skipped(find(images, labels)) == [
        ("drawn", "label", "no_image"),
        ("scan", "image", "no_label"),
    ]


def test_a_label_of_another_patient_at_the_same_path_is_refused(images: Path, labels: Path) -> None:
    write_series(images / "p1", patient_id="A")
    write_series(labels / "p1", patient_id="B")
    contents = find(images, labels)
    assert contents.cases == []
    assert skipped(contents) == [
        ("p1", "image", "other_patient"),
        ("p1", "label", "other_patient"),
    ]


@pytest.mark.parametrize("own", ["1.5.1", "1.5.9"])  # labels are in the order of their UIDs
def test_a_label_of_another_patient_leaves_the_image_to_its_own_label(
    images: Path, labels: Path, own: str
) -> None:
    write_series(images / "p1", damage=put(SeriesInstanceUID="1.2.3"))
    write_seg(labels / "own.dcm", refers_to="1.2.3", uid=own)
    write_seg(labels / "other.dcm", refers_to="1.2.3", uid="1.5.5", patient_id="X")
    contents = find(images, labels)
    assert pairs(contents, images, labels) == [("p1", "own.dcm")]
    assert [reason for _, _, reason in skipped(contents)] == ["other_patient"]


def test_a_frame_of_reference_that_all_share_leaves_the_patient_to_decide(
    images: Path, labels: Path
) -> None:
    for name in ("a", "b"):
        frame = put(FrameOfReferenceUID="1.2.3")
        write_series(images / f"scan-{name}", patient_id=name, damage=frame)
        write_series(labels / f"drawn-{name}", patient_id=name, damage=frame)
    found = pairs(find(images, labels), images, labels)
    assert found == [("scan-a", "drawn-a"), ("scan-b", "drawn-b")]


@pytest.mark.parametrize("series", ["first", "second"])
def test_the_series_that_a_label_refers_to_decides_alone(
    images: Path, labels: Path, series: str
) -> None:
    frame = put(FrameOfReferenceUID="1.2.8")
    for name, file_names in (("first", "abcde"), ("second", "vwxyz")):
        uid = f"1.2.3.{len(name)}"
        write_series(images / "p1", names=list(file_names), series_uid=uid, damage=frame)
    write_seg(labels / "x.dcm", refers_to=f"1.2.3.{len(series)}", frame="1.2.8")
    file = {"first": "a", "second": "v"}[series]
    assert pairs(find(images, labels), images, labels) == [(f"p1/{file}", "x.dcm")]


@pytest.mark.parametrize("frame", ["1.2.8", ""])
def test_a_label_that_refers_to_a_series_elsewhere_matches_no_other(
    images: Path, labels: Path, frame: str
) -> None:
    write_series(images / "p1", damage=put(FrameOfReferenceUID="1.2.9"))
    write_seg(labels / "p1" / "x.dcm", refers_to="1.2.3.999", frame=frame)
    contents = find(images, labels)
    assert contents.cases == []
    assert ("x.dcm", "label", "no_image") in skipped(contents)
    assert any("refers to is not here" in row.reason for row in contents.skipped)


def test_a_label_of_another_frame_of_reference_matches_nothing(images: Path, labels: Path) -> None:
    write_series(images / "p1", damage=put(FrameOfReferenceUID="1.2.9"))
    write_seg(labels / "p1" / "x.dcm", frame="1.2.8")
    assert find(images, labels).cases == []


def test_patterns_match_by_the_text_of_their_wildcards_alone(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_series(tmp_path / name / "CT" / "1", patient_id="same")
        for organ in ("pancreas", "liver"):
            write_series(tmp_path / name / "MASK" / organ, patient_id="same")
    write_series(tmp_path / "c" / "CT", patient_id="same")
    contents = find(tmp_path / "*" / "CT", tmp_path / "*" / "MASK" / "pancreas")
    assert [case.patient for case in contents.cases] == ["a", "b"]
    assert pairs(contents, tmp_path, tmp_path) == [
        ("a/CT/1", "a/MASK/pancreas"),
        ("b/CT/1", "b/MASK/pancreas"),
    ]
    assert skipped(contents) == [("CT", "image", "no_label")]


def test_a_single_label_file_matches_no_other_patient_under_patterns(tmp_path: Path) -> None:
    write_series(tmp_path / "p1" / "CT")
    (tmp_path / "p2").mkdir()
    voxels = np.eye(5, dtype=np.uint8)[:3, :4, None].repeat(5, axis=2)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "p2" / "pancreas.nii.gz")
    assert find(tmp_path / "*" / "CT", tmp_path / "*" / "pancreas.nii.gz").cases == []


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("p/PATIENT_DICOM", "p/MASKS_DICOM"),
        ("*/PATIENT_DICOM", "*/MASKS_DICOM"),
        ("*/PATIENT_DICOM", "*/MASKS_DICOM/*"),
    ],
)
def test_masks_of_several_organs_of_an_image_are_ambiguous_and_named_once(
    tmp_path: Path, images: str, labels: str
) -> None:
    write_series(tmp_path / "p" / "PATIENT_DICOM", patient_id="")
    organs = ["bone", "liver", "pancreas"]
    for organ in organs:
        write_series(tmp_path / "p" / "MASKS_DICOM" / organ, patient_id="")
    contents = find(tmp_path / images, tmp_path / labels)
    assert contents.cases == []
    rows = [*((organ, "label", "ambiguous_label") for organ in organs)]
    assert skipped(contents) == sorted([("PATIENT_DICOM", "image", "ambiguous_label"), *rows])
    [reason] = {row.reason for row in contents.skipped if row.kind == "label"}
    assert "3 labels belong to this image; give the folder" in reason


def test_a_single_label_below_the_path_of_its_image_matches(images: Path, labels: Path) -> None:
    for name in ("p1", "p2"):
        write_series(images / name, patient_id="")
    write_series(labels / "p1" / "liver", patient_id="", first=(0, 0, 0))
    write_series(labels / "p2" / "liver", patient_id="", first=(0, 0, 0))
    write_series(labels / "p2" / "spleen", patient_id="", first=(0, 0, 0))
    contents = find(images, labels)
    assert pairs(contents, images, labels) == [("p1", "p1/liver")]
    assert {code for _, _, code in skipped(contents)} == {"ambiguous_label"}


def test_a_label_below_the_root_belongs_to_a_scan_there_only_if_that_is_the_only_one(
    images: Path, labels: Path
) -> None:
    write_series(images, patient_id="")
    write_series(labels / "liver", patient_id="", first=(0, 0, 0))
    assert pairs(find(images, labels), images, labels) == [(".", "liver")]
    write_series(images / "p2", patient_id="")
    assert skipped(find(images, labels)) == [
        ("images", "image", "no_label"),
        ("liver", "label", "no_image"),
        ("p2", "image", "no_label"),
    ]


def test_labels_are_matched_with_thousands_of_images_without_comparing_each_pair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = []
    monkeypatch.setattr(
        "pancseg.intake.match_labels.may_belong", lambda a, b: compared.append(b) or True
    )

    def located(n: int, kind: str) -> SourceItem:
        folder = Path(f"/{kind}/p{n}")
        return SourceItem(
            uid=f"1.2.{kind}.{n}",
            patient_id=f"P-{n}",
            format="image",
            folder=folder,
            files=(folder / "1.dcm",),
            path=folder,
            key=f"p{n}",
            names_patient=False,
        )

    images, labels = ([located(n, kind) for n in range(2000)] for kind in ("images", "labels"))
    matches = match_labels(labels, images)
    assert [match.image for match in matches] == images
    assert len(compared) == 2000


def test_grids_are_read_only_where_they_decide(
    images: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("p1", "p2"):
        write_series(images / name, patient_id=name)
        write_series(labels / name, patient_id=name)
    monkeypatch.setattr(dicom_series, "read_planes", None)
    assert len(find(images, labels).cases) == 2
