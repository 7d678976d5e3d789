"""Pseudonyms: equal for the same key, and revealing nothing."""

import os
import re
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from filelock import FileLock

from pancseg.errors import PancsegError
from pancseg.intake import pseudonyms
from pancseg.intake.pseudonyms import make_pseudonyms, read_key, safe_name, store_names
from tests.conftest import run_command
from tests.tiny_dicom import put, write_series

IDENTITIES = [
    "P-1", "P_1", "P/1", "P 1", "../../x", "x", "a/b", "a-b", "", " ", "-", "..", "🙂", "🙃", "CON",
    "Müller", "M-ller", "M\udcfcller", "a\\b", "a\nb", "a\rb", "a\0b", 'quote " and, comma',
    "p" * 40, "p" * 300, "p" * 301, "x" * 4000, "1.2.840.113619", "1.2.840.113619.",
]  # fmt: skip
on_posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")


@pytest.fixture
def key_file(tmp_path):
    return tmp_path / "site" / "privacy.key"


def test_a_pseudonym_depends_on_identity_and_key_alone(key_file):
    first, again = make_pseudonyms("pseudonym", key_file), make_pseudonyms("pseudonym", key_file)
    other = make_pseudonyms("pseudonym", key_file.with_name("other.key"))
    assert (first.name("P-1"), first.key_id) == (again.name("P-1"), again.key_id)
    assert first.name("P-1") != other.name("P-1") and first.key_id != other.key_id
    assert key_file.read_text()[:6] not in first.key_id
    names = {first.name(identity) for identity in IDENTITIES}
    assert len(names) == len(IDENTITIES)
    assert all(re.fullmatch("p[0-9a-f]{10}", name) for name in names)
    key_file.write_text("00" * 32)
    # printf P-1 | openssl dgst -sha256 -mac HMAC -macopt hexkey:00...00
    assert make_pseudonyms("pseudonym", key_file).name("P-1") == "pbeb32a0c78"


def test_several_threads_at_once_create_one_key(tmp_path):
    barrier = Barrier(8)

    def make(n):
        barrier.wait()
        return read_key(tmp_path / f"{n}.key")

    with ThreadPoolExecutor(8) as pool:
        for n in range(20):
            assert len(set(pool.map(make, [n] * 8))) == 1


@pytest.mark.parametrize("content", [b"", b"not hexadecimal", b"00ff", b"\xff\xfe\x00", b"0" * 63])
def test_a_key_file_without_a_key_is_left_alone(key_file, content):
    key_file.parent.mkdir()
    key_file.write_bytes(content)
    with pytest.raises(PancsegError, match=r"privacy\.key: expected a key"):
        make_pseudonyms("pseudonym", key_file)
    assert key_file.read_bytes() == content


def test_without_pseudonyms_names_are_safe_and_nothing_is_written(tmp_path):
    names = make_pseudonyms("none", tmp_path / "privacy.key")
    store_names(names, ["P-07"])
    assert [names.name(text) for text in ("P-07", "1.2.840")] == ["P-07", "1.2.840"]
    assert (names.key_id, list(tmp_path.iterdir())) == ("none", [])
    safe = {safe_name(identity) for identity in IDENTITIES}
    assert len(safe) == len(IDENTITIES)
    for name in safe:
        assert re.fullmatch(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,48}[A-Za-z0-9_])?", name)


@pytest.mark.parametrize("rule", ["none", "pseudonym"])
def test_no_patient_id_leaves_the_folder_or_collides(tmp_path, rule):
    identities = ["../../x", "a/b", "", "p" * 64, "🙂", "P-1", "p-1"]
    for n, identity in enumerate(identities):
        damage = put(SpecificCharacterSet="ISO_IR 192")
        write_series(tmp_path / "in" / str(n), patient_id=identity, damage=damage)
    words = [f"source.images={tmp_path / 'in'}", "source.labels=null", f"privacy={rule}"]
    assert run_command("prepare", *words, f"data.root={tmp_path / 'out/root'}", "data.depth=2") == 0
    images = [path.name.lower() for path in (tmp_path / "out" / "root" / "cases").iterdir()]
    assert len(set(images)) == len(identities)
    assert all(re.fullmatch(r"[a-z0-9_.-]{1,60}_image\.nii\.gz", name) for name in images)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_the_table_only_grows_and_can_hold_any_identity(key_file):
    names = make_pseudonyms("pseudonym", key_file)
    for identity in IDENTITIES:
        store_names(make_pseudonyms("pseudonym", key_file), [identity])
    expected = {names.name(identity): identity for identity in IDENTITIES}
    assert pseudonyms.read_table(names.table) == expected
    before = names.table.stat().st_mtime_ns
    store_names(names, IDENTITIES)
    assert names.table.stat().st_mtime_ns == before
    names.table.write_text("patient;identity\np1;P-1\n")
    with pytest.raises(PancsegError, match=r"names\.csv: no table of names"):
        store_names(names, ["P-2"])
    assert names.table.read_text() == "patient;identity\np1;P-1\n"


def test_two_patients_of_one_pseudonym_are_refused(key_file, monkeypatch):
    monkeypatch.setattr(pseudonyms, "DIGITS", 1)  # 16 names
    names = make_pseudonyms("pseudonym", key_file)
    other = next(text for n in range(1, 999) if names.name(text := f"P-{n}") == names.name("P-0"))
    store_names(names, ["P-0"])
    before = names.table.read_text()
    with pytest.raises(PancsegError, match=f"one pseudonym, {names.name('P-0')}, by chance"):
        store_names(names, [other])
    assert names.table.read_text() == before


@on_posix
@pytest.mark.parametrize("is_link", [True, False])
def test_files_made_in_advance_are_not_used(key_file, is_link, monkeypatch):
    key_file.parent.mkdir()
    victim = key_file.with_name("victim")
    victim.write_text("untouched")
    for path in (key_file, key_file.with_name("privacy.key.names.csv")):
        for name in (f"{path.name}.{os.getpid()}.new", f"{path.name}.new", f".{path.name}"):
            file = path.with_name(name)
            file.symlink_to(victim) if is_link else file.touch(0o666)
    names = make_pseudonyms("pseudonym", key_file)
    store_names(names, ["P-1"])
    for file in (key_file, names.table):
        assert stat.S_IMODE(file.lstat().st_mode) == 0o600 and not file.is_symlink()
    monkeypatch.setattr(pseudonyms.secrets, "token_hex", lambda n: "ab" * n)
    key_file.with_name(f"{pseudonyms.PARTIAL}{'ab' * 16}").symlink_to(victim)
    with pytest.raises(FileExistsError):
        read_key(key_file.with_name("other.key"))
    assert victim.read_text() == "untouched"


@pytest.mark.parametrize("has_links", [True, False])
def test_a_key_created_meanwhile_wins(key_file, has_links, monkeypatch):
    link = os.link

    def link_late(source, target):
        target.write_text("00" * 32)
        if not has_links:
            raise PermissionError
        link(source, target)

    monkeypatch.setattr(os, "link", link_late)
    assert read_key(key_file) == bytes(32)
    assert [path.name for path in key_file.parent.iterdir()] == ["privacy.key"]


@on_posix
def test_a_key_that_others_may_read_is_warned_of(key_file, capsys):
    read_key(key_file)
    assert capsys.readouterr().err == ""
    key_file.chmod(0o640)
    read_key(key_file)
    assert "other users may read the key" in capsys.readouterr().err


def test_a_lock_of_another_process_ends_in_one_line(key_file, monkeypatch):
    monkeypatch.setattr(pseudonyms, "LOCK_TIMEOUT_S", 0.05)
    names = make_pseudonyms("pseudonym", key_file)
    held = pytest.raises(PancsegError, match=r"names\.csv\.lock: held by another process")
    with FileLock(f"{names.table}.lock"), held:
        store_names(names, ["P-1"])
    store_names(names, ["P-1"])
    with FileLock(f"{names.table}.lock"):
        store_names(names, ["P-1"])  # is in the table already: as in a read-only folder
