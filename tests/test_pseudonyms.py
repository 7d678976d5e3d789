"""Pseudonyms: equal for the same key, and revealing nothing."""

import os
import re
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from filelock import FileLock

from pancseg.errors import PancsegError
from pancseg.intake import pseudonyms
from pancseg.intake.pseudonyms import make_pseudonyms, read_key, safe_name, store_names
from tests.conftest import run_command
from tests.tiny_dicom import write_series

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


def test_several_threads_at_once_create_one_key(tmp_path, monkeypatch):
    barrier = Barrier(8)

    def make(n):
        barrier.wait()
        return read_key(tmp_path / f"{n}.key")

    with ThreadPoolExecutor(8) as pool:
        for n in range(20):
            assert len(set(pool.map(make, [n] * 8))) == 1
    monkeypatch.setattr(os, "link", lambda *_: Path("no links").stat())
    assert read_key(tmp_path / "20.key") == read_key(tmp_path / "20.key")


@pytest.mark.parametrize("content", [b"", b"not hexadecimal", b"00ff", b"\xff\xfe\x00", b"0" * 63])
def test_a_key_file_without_a_key_is_left_alone(tmp_path, content):
    (tmp_path / "privacy.key").write_bytes(content)
    with pytest.raises(PancsegError, match=r"privacy\.key: expected a key"):
        read_key(tmp_path / "privacy.key")
    assert (tmp_path / "privacy.key").read_bytes() == content


def test_without_pseudonyms_names_are_safe_and_never_collide(tmp_path):
    names = make_pseudonyms("none", tmp_path / "privacy.key")
    store_names(names, ["P-07"])
    assert [names.name(text) for text in ("P-07", "1.2.840")] == ["P-07", "1.2.840"]
    assert (names.key_id, list(tmp_path.iterdir())) == ("none", [])
    safe = {safe_name(identity) for identity in IDENTITIES}
    assert len(safe) == len(IDENTITIES)
    for name in safe:
        assert re.fullmatch(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,48}[A-Za-z0-9_])?", name)
    for n, identity in enumerate(["../../x", "a/b", "", "p-1", "P-1"]):
        write_series(tmp_path / "in" / str(n), patient_id=identity)
    words = [f"source.images={tmp_path / 'in'}", "source.labels=null", "privacy=none"]
    assert run_command("prepare", *words, f"data.root={tmp_path / 'out/root'}", "data.depth=2") == 0
    images = [path.name.lower() for path in (tmp_path / "out" / "root" / "cases").iterdir()]
    assert len(set(images)) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_the_table_only_grows_and_holds_any_identity(key_file):
    names = make_pseudonyms("pseudonym", key_file)
    for identity in IDENTITIES:
        store_names(make_pseudonyms("pseudonym", key_file), [identity])
    expected = {names.name(identity): identity for identity in IDENTITIES}
    assert pseudonyms.read_table(names.table) == expected
    before = names.table.stat().st_mtime_ns
    store_names(names, IDENTITIES)
    assert names.table.stat().st_mtime_ns == before
    of_another = f"patient,identity\n{names.name('P-2')},P-0\n"
    for text, sentence in (
        ("patient;identity\np1;P-1\n", r"names\.csv: no table of names"),
        (of_another, f"one pseudonym, {names.name('P-2')}, by chance"),
    ):
        names.table.write_text(text)
        with pytest.raises(PancsegError, match=sentence):
            store_names(names, ["P-2"])
        assert names.table.read_text() == text


@on_posix
@pytest.mark.parametrize("is_link", [True, False])
def test_files_made_in_advance_are_not_used(key_file, is_link, monkeypatch):
    key_file.parent.mkdir()
    victim = key_file.with_name("victim")
    victim.write_text("untouched")
    for start in ("privacy.key", "privacy.key.names.csv"):
        for name in (f"{start}.{os.getpid()}.new", f"{start}.new", f".{start}"):
            file = key_file.with_name(name)
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
