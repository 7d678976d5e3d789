"""Names for patients: the same for the same key, and telling nothing."""

import csv
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
from pancseg.intake.pseudonyms import make_names, read_key, remember, safe_name
from tests.conftest import run_command
from tests.tiny_dicom import write_series

IDENTITIES = ["P-1", "P_1", "P/1", "P 1", "P.1", "../../x", "x", "a/b", "a-b", "", " ", "-", "."]
IDENTITIES += [
    "..",
    "🙂",
    "🙃",
    "Müller",
    "Muller",
    "M-ller",
    "CON",
    "a\\b",
    "a:b",
    "a\nb",
    "p" * 40,
]
IDENTITIES += ["p" * 300, "p" * 301, "1.2.840.113619", "1.2.840.113619."]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "site" / "privacy.key"


def test_one_key_gives_a_patient_one_name(key_file: Path) -> None:
    names = make_names("pseudonym", key_file)
    first, word = names.of, names.rule
    names = make_names("pseudonym", key_file)
    again, same_word = names.of, names.rule
    assert first("P-1") == again("P-1")
    assert word == same_word


def test_another_patient_has_another_name(key_file: Path) -> None:
    name = make_names("pseudonym", key_file).of
    assert len({name(identity) for identity in IDENTITIES}) == len(IDENTITIES)


def test_another_key_gives_another_name_and_another_word(tmp_path: Path) -> None:
    names = make_names("pseudonym", tmp_path / "here.key")
    here, word = names.of, names.rule
    names = make_names("pseudonym", tmp_path / "there.key")
    there, other_word = names.of, names.rule
    assert here("P-1") != there("P-1")
    assert word != other_word


@pytest.mark.parametrize("identity", IDENTITIES)
def test_a_pseudonym_is_a_letter_and_ten_digits_that_tell_nothing(
    key_file: Path, identity: str
) -> None:
    name = make_names("pseudonym", key_file).of
    assert re.fullmatch("p[0-9a-f]{10}", name(identity))


def test_the_identity_and_the_key_stand_in_no_name_and_in_no_word(key_file: Path) -> None:
    names = make_names("pseudonym", key_file)
    name, word = names.of, names.rule
    for identity in ("12345678", "DOE^JANE", "19670401"):
        assert identity.lower() not in name(identity)
    assert key_file.read_text()[:6] not in word


def test_a_name_depends_on_the_key_alone(key_file: Path) -> None:
    key_file.parent.mkdir()
    key_file.write_text("00" * 32)
    name = make_names("pseudonym", key_file).of
    # printf P-1 | openssl dgst -sha256 -mac HMAC -macopt hexkey:00...00
    assert name("P-1") == "pbeb32a0c78"


def test_a_folder_whose_name_is_not_utf_8_has_a_name(key_file: Path) -> None:
    for rule in ("pseudonym", "none"):
        name = make_names(rule, key_file).of
        assert name("M\udcfcller") != name("M\udce4ller")


def test_the_key_is_made_once(key_file: Path) -> None:
    key = read_key(key_file)
    content = key_file.read_text()
    assert len(key) == 32
    assert read_key(key_file) == key
    assert key_file.read_text() == content


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_only_the_owner_may_read_the_key(key_file: Path) -> None:
    read_key(key_file)
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600


def test_several_at_once_make_one_key(tmp_path: Path) -> None:
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
        make_names("pseudonym", key_file)
    assert key_file.read_bytes() == content


def test_without_privacy_the_patient_id_is_kept_and_no_key_is_made(key_file: Path) -> None:
    names = make_names("none", key_file)
    name, word = names.of, names.rule
    assert [name(identity) for identity in ("P-07", "case_12", "1.2.840")] == [
        "P-07",
        "case_12",
        "1.2.840",
    ]
    assert word == "none"
    assert not key_file.exists()


@pytest.mark.parametrize("identity", IDENTITIES)
def test_a_safe_name_is_a_valid_file_name(tmp_path: Path, identity: str) -> None:
    name = safe_name(identity)
    assert re.fullmatch(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?", name)
    assert len(name) <= 50
    (tmp_path / f"{name}_image.nii.gz").touch()
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}_image.nii.gz"]


def test_no_two_safe_names_collide() -> None:
    assert len({safe_name(identity) for identity in IDENTITIES}) == len(IDENTITIES)


def test_patients_whose_ids_differ_in_case_have_files_that_every_file_system_tells_apart(
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
        for one in slices:
            one.SpecificCharacterSet = "ISO_IR 192"

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


def test_the_table_of_names_is_its_owners_alone_and_only_grows(
    tmp_path: Path, key_file: Path
) -> None:
    names = make_names("pseudonym", key_file)
    remember(names, ["Müller, Max", 'quote " and\nline'])
    remember(names, ["P-3", "Müller, Max"])
    table = key_file.with_name("privacy.key.names.csv")
    assert stat.S_IMODE(table.stat().st_mode) == 0o600
    with table.open(newline="", encoding="utf-8") as file:
        rows = {row["patient"]: row["identity"] for row in csv.DictReader(file)}
    identities = ["Müller, Max", 'quote " and\nline', "P-3"]
    assert rows == {names.of(identity): identity for identity in identities}


def test_without_pseudonyms_there_is_no_table_of_names(tmp_path: Path) -> None:
    remember(make_names("none", tmp_path / "privacy.key"), ["P-1"])
    assert list(tmp_path.iterdir()) == []


def test_two_patients_of_one_pseudonym_are_refused_also_from_one_run_to_the_next(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pseudonyms, "DIGITS", 1)  # 16 names
    names = make_names("pseudonym", key_file)
    first = "P-0"
    other = next(word for n in range(1, 999) if names.of(word := f"P-{n}") == names.of(first))
    remember(names, [first])
    before = names.table.read_text()
    with pytest.raises(PancsegError, match=f"one pseudonym, {names.of(first)}, by chance"):
        remember(names, [other])
    assert names.table.read_text() == before
    with pytest.raises(PancsegError, match="by chance"):
        remember(make_names("pseudonym", key_file.with_name("another.key")), ["P-0", *IDENTITIES])


def test_files_that_others_laid_out_are_neither_followed_nor_overwritten(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_file.parent.mkdir()
    victim = key_file.with_name("victim")
    victim.write_text("untouched")
    monkeypatch.setattr(pseudonyms.secrets, "token_hex", lambda n: "ab" * n)
    temporary = key_file.with_name(f"{pseudonyms.PARTIAL}{'ab' * 16}")
    temporary.symlink_to(victim)
    with pytest.raises(FileExistsError):
        read_key(key_file)
    assert victim.read_text() == "untouched"
    assert not key_file.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_a_key_that_others_may_read_is_warned_of_in_one_line(
    key_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read_key(key_file)
    assert capsys.readouterr().err == ""
    key_file.chmod(0o644)
    read_key(key_file)
    assert "other users may read the key" in capsys.readouterr().err


def test_a_lock_that_another_process_holds_ends_in_one_line(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pseudonyms, "LOCK_TIMEOUT_S", 0.05)
    key_file.parent.mkdir()
    with FileLock(f"{key_file}.lock"), pytest.raises(PancsegError, match="end that process"):
        read_key(key_file)
    names = make_names("pseudonym", key_file)
    remember(names, ["P-1"])
    with FileLock(f"{names.table}.lock"):
        remember(make_names("pseudonym", key_file), ["P-1"])  # nothing to add needs no lock
        with pytest.raises(PancsegError, match="end that process"):
            remember(names, ["P-2"])


def test_an_identity_of_any_length_is_read_back(key_file: Path) -> None:
    names = make_names("pseudonym", key_file)
    for _ in range(2):
        remember(names, ["x" * 200_000])
    remember(names, ["P-1"])
    assert pseudonyms.read_table(names.table)[names.of("x" * 200_000)] == "x" * 200_000
