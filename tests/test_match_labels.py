"""Which label belongs to which image, by UIDs, PatientID, grid and path."""

from pathlib import Path
from typing import Any

import pytest

from pancseg.dicom import series as dicom_series
from pancseg.intake import match_labels as matching
from pancseg.intake.match_labels import SourceItem, match_labels
from pancseg.intake.sources import find_dicom
from tests.source_contents import options, pairs, skipped
from tests.tiny_dicom import put, write_series


def located(key: str, patient_id: str = "", **fields: Any) -> SourceItem:
    """A series without grid; the key is its path and, unless given, its UID."""
    path = Path("/nowhere") / key
    own = {"format": "image", "uid": key, "names_patient": False, "key": key} | fields
    return SourceItem(folder=path, path=path, files=(path / "0.dcm",), patient_id=patient_id, **own)


def seg(key: str, patient_id: str = "", **fields: Any) -> SourceItem:
    return located(key, patient_id, format="seg", **fields)


def under_pattern(key: str, **fields: Any) -> SourceItem:
    return located(key, "same", names_patient=True, **fields)


F8, F9 = ({"frame_of_reference_uid": uid} for uid in ("1.2.8", "1.2.9"))


@pytest.mark.parametrize(
    ("images", "labels", "expected"),
    [
        # equal paths, alone and below
        ([located("p1"), located("s/p2")], [located("p1"), located("s/p2")], ["p1", "s/p2"]),
        ([located(".")], [located(".")], ["."]),
        ([located("p1"), located("p2")], [located("p1/liver"), located("p3")], ["p1", "no_image"]),
        ([located(".")], [located("liver")], ["."]),
        ([located("."), located("p2")], [located("liver")], ["no_image"]),
        # PatientID goes before the path, frame of reference before both, reference before all
        ([located("a", "A"), located("b", "B")], [located("b", "A")], ["a"]),
        ([located("a", "A", **F8), located("b", "A", **F9)], [located("b", "A", **F8)], ["a"]),
        ([located("a", **F8), located("b", **F8)], [seg("b", **F8, refers_to=("a",))], ["a"]),
        ([located("a", "A", **F8), located("b", "B", **F8)], [located("x", "B", **F8)], ["b"]),
        # what a SEG says of itself rules out other images, what mask slices say does not
        ([located("a", **F9)], [seg("a", **F8)], ["no_image"]),
        ([located("a", **F9)], [located("a", **F8)], ["a"]),
        ([located("a", **F8)], [seg("a", **F8, refers_to=("z",))], ["a"]),
        ([located("a", **F9)], [seg("a", refers_to=("z",))], ["no_image"]),
        # several
        ([located("a", "A"), located("b", "A")], [located("x", "A")], ["ambiguous_label"]),
        ([located("a", "A")], [located("x", "A"), located("y", "A")], 2 * ["ambiguous_label"]),
        ([located("a", "A")], [located("a", "A"), located("y", "A")], ["a", "no_image"]),
        ([located("a", "A")], [located("a", "B")], ["other_patient"]),
        ([located("a", "A")], [seg("x", "A", refers_to=("a",)), seg("y", "B", refers_to=("a",))],
         ["a", "other_patient"]),
        # patterns
        ([under_pattern("a"), under_pattern("b")], [under_pattern("b"), under_pattern("a/x")],
         ["b", "a"]),
        ([under_pattern("a")], [under_pattern("b")], ["no_image"]),
    ],
)  # fmt: skip
def test_the_strongest_link_decides_and_never_a_guess(images, labels, expected):
    found = [
        match.problem.partition(":")[0] or (match.image.key if match.image else "")
        for match in match_labels(labels, images)
    ]
    assert found == expected


def test_of_several_images_that_of_the_labels_grid_is_chosen(images, labels):
    for name, gap_mm in (("thin", 1.0), ("thick", 2.5)):
        write_series(images / name, gap_mm=gap_mm, damage=put(FrameOfReferenceUID="1.2"))
    write_series(labels / "drawn", damage=put(FrameOfReferenceUID="1.2"))
    contents = find_dicom(images, labels, "CT", options())
    assert pairs(contents, images, labels) == [("thick", "drawn")]
    assert skipped(contents, "dropped") == [("thin", "image", "other_series")]


def test_grids_are_read_only_where_needed(images, labels, monkeypatch):
    for name in ("p1", "p2"):
        write_series(images / name, patient_id=name)
        write_series(labels / name, patient_id=name)
    monkeypatch.setattr(dicom_series, "read_planes", None)
    assert len(find_dicom(images, labels, "CT", options()).cases) == 2


@pytest.mark.parametrize("pattern", ["p/{}", "*/{}"])
def test_masks_of_several_organs_of_an_image_are_ambiguous(tmp_path, pattern):
    write_series(tmp_path / "p" / "CT", patient_id="")
    for organ in ("bone", "liver"):
        write_series(tmp_path / "p" / "MASKS" / organ, patient_id="")
    paths = (tmp_path / pattern.format(name) for name in ("CT", "MASKS"))
    contents = find_dicom(*paths, "CT", options())
    assert {code for *_, code in skipped(contents)} == {"ambiguous_label"}
    [warning] = contents.warnings
    assert warning.endswith("of one structure as source.labels: bone, liver")


def test_matching_compares_no_pair_of_thousands(monkeypatch):
    compared: list[SourceItem] = []
    monkeypatch.setattr(matching, "may_belong", lambda _, image: compared.append(image) or True)
    images, labels = ([located(f"p{n}", f"P-{n}") for n in range(2000)] for _ in range(2))
    assert [match.image for match in match_labels(labels, images)] == images
    assert len(compared) == 2000
