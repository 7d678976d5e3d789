"""The manifest: written and read back, and persons behind patients."""

import json
from pathlib import Path

import pytest

from pancseg.data.manifest import Manifest, read_manifest, same_person
from pancseg.errors import PancsegError
from tests.tiny_root import case_of, write_root


def test_a_manifest_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    manifest = write_root(tmp_path, "abc")
    assert read_manifest(tmp_path) == manifest
    lines = (tmp_path / "manifest.json").read_text().splitlines()
    assert sum('"input_hash"' in line for line in lines) == 3  # an entry is a line
    Manifest({}).write(tmp_path)
    assert read_manifest(tmp_path) == Manifest({})


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read"), ("[]", "not a manifest"), ('{"schema": 99}', "schema 99")],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(PancsegError, match=message):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("entries", "key", "value"),
    [
        ("cases", "name", "../../escaped"),
        ("cases", "patient", ".."),
        ("cases", "image", "/secret.nii.gz"),
        ("groups", "label", "groups/../../secret.nii.gz"),
        ("cases", "image_sha256", 3),
        ("cases", "shape", [8, 8]),
        ("cases", "spacing_mm", [1.0, 1.0, 1e9]),
        ("cases", "label_voxels", -1),
        ("cases", "structure_voxels", {"pancreas": "many"}),
        ("cases", "unknown", 1),
        ("groups", "case", "nobody"),
        ("groups", "patient", "b"),
    ],
)
def test_an_entry_that_was_edited_is_refused_by_name(
    tmp_path: Path, entries: str, key: str, value: object
) -> None:
    write_root(tmp_path, "ab")
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text())
    content[entries][0][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(PancsegError, match=rf"manifest\.json: not a manifest.*{entries}\[0\]"):
        read_manifest(tmp_path)


def test_patients_linked_by_others_are_one_person() -> None:
    cases = [
        case_of("a", study_hash="S1"), case_of("b", study_hash="S1"),
        case_of("b-2", patient="b", study_hash="S2"), case_of("c", study_hash="S2"),
        case_of("d", study_hash="S3"),
    ]  # fmt: skip
    assert same_person(cases) == {"a": "a", "b": "a", "c": "a", "d": "d"}


def test_an_identifier_that_all_patients_share_does_not_make_them_one_person() -> None:
    cases = [case_of(name, study_hash="S1", patient_id_hash="ANON") for name in "abc"]
    assert same_person(cases) == {"a": "a", "b": "b", "c": "c"}
    assert same_person(cases[:2]) == {"a": "a", "b": "a"}


def test_the_name_of_an_established_case_is_preferred() -> None:
    cases = [
        case_of("a", study_hash="S1"),
        case_of("m", study_hash="S1", prepared_before=True),
        case_of("z"),
    ]
    assert same_person(cases) == {"a": "m", "m": "m", "z": "z"}
