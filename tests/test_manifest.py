"""The manifest: written and read back, and persons behind patients."""

import json

import pytest

from pancseg.data.manifest import read_manifest, same_person
from pancseg.errors import PancsegError
from tests.tiny_root import case_of, write_root

BAD = [
    ("cases", "name", "../../escaped"), ("cases", "image", "/secret.nii.gz"),
    ("cases", "spacing_mm", [1.0, 1.0, 1e9]), ("groups", "label", "../secret.nii.gz"),
    ("groups", "case", "nobody"),
]  # fmt: skip


def test_a_manifest_is_read_back_or_refused_by_the_name_of_the_damaged_entry(tmp_path):
    path, manifest = tmp_path / "manifest.json", write_root(tmp_path, "abc")
    assert read_manifest(tmp_path) == manifest
    with pytest.raises(PancsegError, match=r"prepare it first: .*, or give data\.root=PREPARED"):
        read_manifest(tmp_path / "gone")
    good = path.read_text()
    for entries, key, value in BAD:
        content = json.loads(good)
        content[entries][0][key] = value
        path.write_text(json.dumps(content))
        with pytest.raises(PancsegError, match=rf"\.json: not a manifest.*{entries}\[0\]"):
            read_manifest(tmp_path)
    path.write_text('{"schema": 99}')
    with pytest.raises(PancsegError, match="schema 99"):
        read_manifest(tmp_path)


def test_patients_linked_by_others_are_one_person_named_after_one_prepared_before():
    cases = [case_of("a", study_hash="S1"), case_of("b", study_hash="S1"), case_of("d")]
    cases += [case_of("b-2", patient="b", study_hash="S2"), case_of("c", study_hash="S2")]
    assert same_person(cases) == {"a": "a", "b": "a", "c": "a", "d": "d"}
    before = case_of("m", study_hash="S2", prepared_before=True)
    assert same_person([*cases, before])["a"] == "m"
    # an identifier that all patients share, three or more, is an anonymiser's
    cases = [case_of(name, study_hash="S1", patient_id_hash="ANON") for name in "abc"]
    assert same_person(cases) == {"a": "a", "b": "b", "c": "c"}
    assert same_person(cases[:2]) == {"a": "a", "b": "a"}
