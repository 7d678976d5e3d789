"""Pseudonyms: equal for the same key, and revealing nothing."""

import re
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from pancseg.errors import PancsegError
from pancseg.intake import pseudonyms
from pancseg.intake.pseudonyms import make_pseudonyms, read_key, safe_name, store_names
from tests.conftest import run_command
from tests.tiny_dicom import write_series

IDENTITIES = [
    "P-1", "P_1", "P/1", "P 1", "../../x", "x", "a/b", "a-b", "", "-", "..", "🙂", "🙃", "CON",
    "Müller", "M-ller", "M\udcfcller", "a\\b", "a\nb", "a\0b", 'quote " and, comma',
    "p" * 40, "p" * 300, "p" * 301, "1.2.840.113619", "1.2.840.113619.",
]  # fmt: skip


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


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"0" * 63])
def test_a_key_file_without_a_key_is_left_alone(tmp_path, content):
    (tmp_path / "privacy.key").write_bytes(content)
    with pytest.raises(PancsegError, match=r"privacy\.key: expected a key"):
        read_key(tmp_path / "privacy.key")
    assert (tmp_path / "privacy.key").read_bytes() == content


def test_without_pseudonyms_names_are_safe_and_never_collide(tmp_path):
    safe = {safe_name(identity) for identity in IDENTITIES}
    assert len(safe) == len(IDENTITIES)
    for name in safe:
        assert re.fullmatch(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,48}[A-Za-z0-9_])?", name)
    for n, identity in enumerate(["../../x", "p-1", "P-1"]):
        write_series(tmp_path / "in" / str(n), patient_id=identity)
    words = [f"source.images={tmp_path / 'in'}", "source.labels=null", "privacy=none"]
    assert run_command("prepare", *words, f"data.root={tmp_path / 'out/root'}", "data.depth=2") == 0
    images = [path.name.lower() for path in (tmp_path / "out" / "root" / "cases").iterdir()]
    assert len(set(images)) == 3
    assert not list(tmp_path.rglob("privacy*"))


def test_the_table_only_grows_and_holds_any_identity(key_file):
    names = make_pseudonyms("pseudonym", key_file)
    for identity in IDENTITIES:
        store_names(make_pseudonyms("pseudonym", key_file), [identity])
    expected = {names.name(identity): identity for identity in IDENTITIES}
    assert pseudonyms.read_table(names.table) == expected
    of_another = f"patient,identity\n{names.name('P-2')},P-0\n"
    names.table.write_text(of_another)
    with pytest.raises(PancsegError, match=f"one pseudonym, {names.name('P-2')}, by chance"):
        store_names(names, ["P-2"])
    assert names.table.read_text() == of_another


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_only_the_owner_may_read_the_key_and_the_names(key_file, capsys):
    names = make_pseudonyms("pseudonym", key_file)
    store_names(names, ["P-1"])
    for file in (key_file, names.table):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert capsys.readouterr().err == ""
    key_file.chmod(0o640)
    read_key(key_file)
    assert "other users may read the key" in capsys.readouterr().err
