"""Which label belongs to which image, by UIDs, PatientID, grid and path."""

from pathlib import Path

import pytest

from pancseg.intake.match_labels import SourceItem, match_labels
from pancseg.intake.sources import find_dicom
from tests.source_contents import options, pairs, skipped
from tests.tiny_dicom import put, write_series


def ct(key, patient_id="", **fields):
    """A series without grid; the key is its path and, unless given, its UID."""
    path = Path("/nowhere") / key
    own = {"format": "image", "uid": key, "names_patient": False, "key": key} | fields
    return SourceItem(folder=path, path=path, files=(path / "0.dcm",), patient_id=patient_id, **own)


def seg(key, patient_id="", **fields):
    return ct(key, patient_id, format="seg", **fields)


def named(key):
    return ct(key, "same", names_patient=True)


F8, F9 = ({"frame_of_reference_uid": uid} for uid in ("1.2.8", "1.2.9"))
A = {"refers_to": ("a",)}
MATCHES = [  # images, labels, and for each label the key of its image or a reason code
    # equal paths, alone and below
    ([ct("p1"), ct("s/p2")], [ct("p1"), ct("s/p2")], ["p1", "s/p2"]),
    ([ct(".")], [ct(".")], ["."]),
    ([ct("p1"), ct("p2")], [ct("p1/liver"), ct("p3")], ["p1", "no_image"]),
    ([ct(".")], [ct("liver")], ["."]),
    ([ct("."), ct("p2")], [ct("liver")], ["no_image"]),
    # PatientID goes before the path, frame of reference before both, reference before all
    ([ct("a", "A"), ct("b", "B")], [ct("b", "A")], ["a"]),
    ([ct("a", "A", **F8), ct("b", "A", **F9)], [ct("b", "A", **F8)], ["a"]),
    ([ct("a", **F8), ct("b", **F8)], [seg("b", **F8, **A)], ["a"]),
    ([ct("a", "A", **F8), ct("b", "B", **F8)], [ct("x", "B", **F8)], ["b"]),
    # attributes of a SEG rule out other images, those of mask slices do not
    ([ct("a", **F9)], [seg("a", **F8)], ["no_image"]),
    ([ct("a", **F9)], [ct("a", **F8)], ["a"]),
    ([ct("a", **F8)], [seg("a", **F8, refers_to=("z",))], ["a"]),
    ([ct("a", **F9)], [seg("a", refers_to=("z",))], ["no_image"]),
    # several
    ([ct("a", "A"), ct("b", "A")], [ct("x", "A")], ["ambiguous_label"]),
    ([ct("a", "A")], [ct("x", "A"), ct("y", "A")], 2 * ["ambiguous_label"]),
    ([ct("a", "A")], [ct("a", "A"), ct("y", "A")], ["a", "no_image"]),
    ([ct("a", "A")], [ct("a", "B")], ["other_patient"]),
    ([ct("a", "A")], [seg("x", "A", **A), seg("y", "B", **A)], ["a", "other_patient"]),
    # patterns
    ([named("a"), named("b")], [named("b"), named("a/x")], ["b", "a"]),
    ([named("a")], [named("b")], ["no_image"]),
]


@pytest.mark.parametrize(("images", "labels", "expected"), MATCHES)
def test_the_strongest_link_decides_and_never_a_guess(images, labels, expected):
    matches = match_labels(labels, images)
    found = [m.problem.partition(":")[0] or (m.image.key if m.image else "") for m in matches]
    assert found == expected


def test_of_several_images_that_of_the_labels_grid_is_chosen(images, labels):
    for path, gap_mm in ((images / "thin", 1.0), (images / "thick", 2.5), (labels / "drawn", 2.5)):
        write_series(path, gap_mm=gap_mm, damage=put(FrameOfReferenceUID="1.2"))
    contents = find_dicom(images, labels, "CT", options())
    assert pairs(contents, images, labels) == [("thick", "drawn")]
    assert skipped(contents, "dropped") == [("thin", "image", "other_series")]


@pytest.mark.parametrize("pattern", ["p/{}", "*/{}"])
def test_masks_of_several_organs_of_an_image_are_ambiguous(tmp_path, pattern):
    for path in ("CT", "MASKS/bone", "MASKS/liver"):
        write_series(tmp_path / "p" / path, patient_id="")
    paths = (tmp_path / pattern.format(name) for name in ("CT", "MASKS"))
    contents = find_dicom(*paths, "CT", options())
    assert {code for *_, code in skipped(contents)} == {"ambiguous_label"}
    [warning] = contents.warnings
    assert warning.endswith("of one structure as source.labels: bone, liver")
