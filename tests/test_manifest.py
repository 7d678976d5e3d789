"""The manifest: written and read back, and persons behind patients."""

import json

import pytest

from pancseg.data.manifest import Manifest, read_manifest, same_person
from pancseg.errors import PancsegError
from tests.tiny_root import case_of, write_root


def test_a_manifest_is_read_back_as_it_was_written(tmp_path):
    manifest = write_root(tmp_path, "abc")
    assert read_manifest(tmp_path) == manifest
    Manifest({}).write(tmp_path)
    assert read_manifest(tmp_path) == Manifest({})


DAMAGED = [("{", "cannot be read"), ("[]", "not a manifest"), ('{"schema": 99}', "schema 99")]


@pytest.mark.parametrize(("text", "message"), DAMAGED)
def test_a_damaged_manifest_is_refused(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(PancsegError, match=message):
        read_manifest(tmp_path)


EDITED = [
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
]


@pytest.mark.parametrize(("entries", "key", "value"), EDITED)
def test_an_entry_that_was_edited_is_refused_by_name(tmp_path, entries, key, value):
    write_root(tmp_path, "ab")
    content = json.loads((tmp_path / "manifest.json").read_text())
    content[entries][0][key] = value
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(PancsegError, match=rf"manifest\.json: not a manifest.*{entries}\[0\]"):
        read_manifest(tmp_path)


def test_patients_linked_by_others_are_one_person_named_after_one_prepared_before():
    cases = [case_of("a", study_hash="S1"), case_of("b", study_hash="S1"), case_of("d")]
    cases += [case_of("b-2", patient="b", study_hash="S2"), case_of("c", study_hash="S2")]
    assert same_person(cases) == {"a": "a", "b": "a", "c": "a", "d": "d"}
    before = case_of("m", study_hash="S2", prepared_before=True)
    assert same_person([*cases, before])["a"] == "m"


def test_an_identifier_that_all_patients_share_does_not_make_them_one_person():
    cases = [case_of(name, study_hash="S1", patient_id_hash="ANON") for name in "abc"]
    assert same_person(cases) == {"a": "a", "b": "b", "c": "c"}
    assert same_person(cases[:2]) == {"a": "a", "b": "a"}
