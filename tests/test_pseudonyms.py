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
from pydicom import Dataset

from pancseg.errors import PancsegError
from pancseg.intake import pseudonyms
from pancseg.intake.pseudonyms import make_pseudonyms, read_key, safe_name, store_names
from tests.conftest import run_command
from tests.tiny_dicom import write_series

IDENTITIES = [
    *("P-1", "P_1", "P/1", "P 1", "P.1", "../../x", "x", "a/b", "a-b", "", " ", "-", ".", ".."),
    *("🙂", "🙃", "Müller", "Muller", "M-ller", "M\udcfcller", "M\udce4ller", "CON", "a\\b", "a:b"),
    *("a\nb", "a\rb", "a\0b", 'quote " and, comma', "p" * 40, "p" * 300, "p" * 301, "x" * 4000),
    *("1.2.840.113619", "1.2.840.113619."),
]
on_posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "site" / "privacy.key"


def test_a_name_and_the_rule_depend_on_the_key_alone(key_file: Path) -> None:
    first, again = make_pseudonyms("pseudonym", key_file), make_pseudonyms("pseudonym", key_file)
    other = make_pseudonyms("pseudonym", key_file.with_name("other.key"))
    assert (first.name("P-1"), first.key_id) == (again.name("P-1"), again.key_id)
    assert first.name("P-1") != other.name("P-1") and first.key_id != other.key_id
    key_file.write_text("00" * 32)
    # printf P-1 | openssl dgst -sha256 -mac HMAC -macopt hexkey:00...00
    assert make_pseudonyms("pseudonym", key_file).name("P-1") == "pbeb32a0c78"


def test_a_pseudonym_is_a_letter_and_ten_digits_and_differs_between_patients(
    key_file: Path,
) -> None:
    names = make_pseudonyms("pseudonym", key_file)
    given = {names.name(identity) for identity in IDENTITIES}
    assert len(given) == len(IDENTITIES)
    assert all(re.fullmatch("p[0-9a-f]{10}", name) for name in given)


def test_neither_identity_nor_key_is_part_of_a_name_or_of_the_rule(key_file: Path) -> None:
    names = make_pseudonyms("pseudonym", key_file)
    for identity in ("12345678", "DOE^JANE", "19670401"):
        assert identity.lower() not in names.name(identity)
    assert key_file.read_text()[:6] not in names.key_id


def test_the_key_is_created_once(key_file: Path) -> None:
    key = read_key(key_file)
    content = key_file.read_text()
    assert len(key) == 32
    assert read_key(key_file) == key
    assert key_file.read_text() == content


def test_several_threads_at_once_create_one_key(tmp_path: Path) -> None:
    barrier = Barrier(8)

    def make(n: int) -> bytes:
        barrier.wait()
        return read_key(tmp_path / f"{n}.key")

    with ThreadPoolExecutor(8) as pool:
        for n in range(20):
            assert len(set(pool.map(make, [n] * 8))) == 1


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"not hexadecimal", b"00ff", b"\xff\xfe\x00", b"0" * 63]
)
def test_a_key_file_without_a_key_is_an_error_and_is_left_alone(
    key_file: Path, content: bytes
) -> None:
    key_file.parent.mkdir()
    key_file.write_bytes(content)
    with pytest.raises(PancsegError, match=r"privacy\.key: expected a key"):
        make_pseudonyms("pseudonym", key_file)
    assert key_file.read_bytes() == content


def test_without_pseudonyms_the_patient_id_is_kept_and_nothing_is_written(tmp_path: Path) -> None:
    names = make_pseudonyms("none", tmp_path / "privacy.key")
    store_names(names, ["P-07"])
    for identity in ("P-07", "case_12", "1.2.840"):
        assert names.name(identity) == identity
    assert names.key_id == "none"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("identity", IDENTITIES)
def test_a_safe_name_is_a_valid_file_name(tmp_path: Path, identity: str) -> None:
    name = safe_name(identity)
    assert re.fullmatch(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?", name)
    assert len(name) <= 50
    (tmp_path / f"{name}_image.nii.gz").touch()
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}_image.nii.gz"]


def test_no_two_safe_names_collide() -> None:
    assert len({safe_name(identity) for identity in IDENTITIES}) == len(IDENTITIES)


def test_patients_whose_ids_differ_in_case_have_different_files_on_every_file_system(
    tmp_path: Path,
) -> None:
    for folder, identity in (("a", "P-1"), ("b", "p-1")):
        write_series(tmp_path / "images" / folder, patient_id=identity)
    words = [f"source.images={tmp_path / 'images'}", "source.labels=null", "privacy=none"]
    assert run_command("prepare", *words, f"data.root={tmp_path / 'root'}", "data.depth=2") == 0
    images = [path.name for path in (tmp_path / "root" / "cases").iterdir()]
    assert sorted(images) == ["P-1_image.nii.gz", "p-1-2_image.nii.gz"]


@pytest.mark.parametrize("rule", ["none", "pseudonym"])
def test_no_patient_id_leaves_the_folder_or_breaks_a_name(tmp_path: Path, rule: str) -> None:
    def damage(slices: list[Dataset]) -> None:
        for dataset in slices:
            dataset.SpecificCharacterSet = "ISO_IR 192"

    identities = ["../../x", "a/b", "", "p" * 64, "🙂", "CON", "a b"]
    for n, identity in enumerate(identities):
        write_series(tmp_path / "in" / "images" / str(n), patient_id=identity, damage=damage)
    words = [f"source.images={tmp_path / 'in' / 'images'}", "source.labels=null"]
    words += [f"privacy={rule}", f"data.root={tmp_path / 'out' / 'root'}", "data.depth=2"]
    assert run_command("prepare", *words) == 0
    images = list((tmp_path / "out" / "root" / "cases").iterdir())
    assert len(images) == len(identities)
    for image in images:
        assert re.fullmatch(r"[A-Za-z0-9_.-]{1,60}_image\.nii\.gz", image.name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@on_posix
def test_only_the_owner_may_read_key_and_table_and_the_table_only_grows(key_file: Path) -> None:
    names = make_pseudonyms("pseudonym", key_file)
    store_names(names, IDENTITIES[:5])
    store_names(names, IDENTITIES[3:])
    table = key_file.with_name("privacy.key.names.csv")
    for file in (key_file, table):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    expected = {names.name(identity): identity for identity in IDENTITIES}
    assert pseudonyms.read_table(table) == expected


def test_the_table_can_be_read_back_whatever_an_identity_holds(key_file: Path) -> None:
    for identity in IDENTITIES:
        store_names(make_pseudonyms("pseudonym", key_file), [identity])
    names = make_pseudonyms("pseudonym", key_file)
    before = names.table.stat().st_mtime_ns
    store_names(names, IDENTITIES)
    assert names.table.stat().st_mtime_ns == before


@pytest.mark.parametrize("text", ["patient;identity\np1;P-1\n", "P-1\nP-2\n"])
def test_a_file_that_is_no_table_is_left_alone(key_file: Path, text: str) -> None:
    names = make_pseudonyms("pseudonym", key_file)
    names.table.write_text(text)
    with pytest.raises(PancsegError, match=r"names\.csv: no table of names"):
        store_names(names, ["P-2"])
    assert names.table.read_text() == text


def test_two_patients_of_one_pseudonym_are_refused_also_in_a_later_run(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pseudonyms, "DIGITS", 1)  # 16 names
    names = make_pseudonyms("pseudonym", key_file)
    first = "P-0"
    other = next(text for n in range(1, 999) if names.name(text := f"P-{n}") == names.name(first))
    store_names(names, [first])
    before = names.table.read_text()
    with pytest.raises(PancsegError, match=f"one pseudonym, {names.name(first)}, by chance"):
        store_names(names, [other])
    assert names.table.read_text() == before
    with pytest.raises(PancsegError, match="by chance"):
        store_names(
            make_pseudonyms("pseudonym", key_file.with_name("another.key")), ["P-0", *IDENTITIES]
        )


@on_posix
@pytest.mark.parametrize("kind", ["readable file", "link to a file"])
def test_files_that_another_user_created_in_advance_are_not_used(key_file: Path, kind: str) -> None:
    key_file.parent.mkdir()
    victim = key_file.with_name("victim")
    victim.write_text("untouched")
    for path in (key_file, key_file.with_name("privacy.key.names.csv")):
        for name in (f"{path.name}.{os.getpid()}.new", f"{path.name}.new", f".{path.name}"):
            file = path.with_name(name)
            if kind == "readable file":
                file.touch()
                file.chmod(0o666)
            else:
                file.symlink_to(victim)
    names = make_pseudonyms("pseudonym", key_file)
    store_names(names, ["P-1"])
    for file in (key_file, names.table):
        assert stat.S_IMODE(file.lstat().st_mode) == 0o600 and not file.is_symlink()
    assert victim.read_text() == "untouched"


@on_posix
def test_a_temporary_file_that_exists_is_neither_followed_nor_overwritten(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_file.parent.mkdir()
    victim = key_file.with_name("victim")
    victim.write_text("untouched")
    monkeypatch.setattr(pseudonyms.secrets, "token_hex", lambda n: "ab" * n)
    key_file.with_name(f"{pseudonyms.PARTIAL}{'ab' * 16}").symlink_to(victim)
    with pytest.raises(FileExistsError):
        read_key(key_file)
    assert victim.read_text() == "untouched"
    assert not key_file.exists()


@pytest.mark.parametrize("has_links", [True, False])
def test_a_key_that_another_process_created_first_wins(
    key_file: Path, has_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def link_late(source: Path, target: Path) -> None:
        target.write_text("00" * 32)
        if not has_links:
            raise PermissionError
        link(source, target)

    monkeypatch.setattr(os, "link", link_late)
    assert read_key(key_file) == bytes(32)
    assert [path.name for path in key_file.parent.iterdir()] == ["privacy.key"]


def test_a_key_is_created_where_the_file_system_has_no_hard_links(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    assert read_key(key_file) == read_key(key_file)


@on_posix
def test_a_key_that_others_may_read_gives_a_line_of_warning(
    key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = read_key(key_file)
    assert capsys.readouterr().err == ""
    for mode in (0o640, 0o604, 0o620):
        key_file.chmod(mode)
        assert read_key(key_file) == key
        warning = capsys.readouterr().err
        assert "other users may read the key" in warning and warning.count("\n") == 1


def test_a_lock_that_another_process_holds_ends_in_one_line(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pseudonyms, "LOCK_TIMEOUT_S", 0.05)
    key_file.parent.mkdir()
    with FileLock(f"{key_file}.lock"), FileLock(f"{key_file}.names.csv.lock"):
        names = make_pseudonyms("pseudonym", key_file)  # a key is created without a lock
        with pytest.raises(PancsegError, match=r"names\.csv\.lock: held by another process"):
            store_names(names, ["P-1"])
    store_names(names, ["P-1"])
    with FileLock(f"{names.table}.lock"):
        store_names(names, ["P-1"])  # is in the table already


@on_posix
def test_a_folder_that_cannot_be_written_serves_known_patients(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = make_pseudonyms("pseudonym", key_file)
    store_names(names, ["P-1"])
    before = sorted(key_file.parent.iterdir())

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError  # chmod does not stop root, who may run the tests

    for function in ("open", "link", "mkdir"):
        monkeypatch.setattr(pseudonyms.os, function, refuse)
    store_names(make_pseudonyms("pseudonym", key_file), ["P-1"])
    assert sorted(key_file.parent.iterdir()) == before
