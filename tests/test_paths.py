"""Files below a folder, and patterns."""

import os
import socket
from pathlib import Path

import pytest

from pancseg.data.manifest import Manifest
from pancseg.intake.match_labels import SourceContents
from pancseg.intake.sources import expand_pattern, files_under, is_pattern, search


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def rows(root: Path) -> list[tuple[str, str, str]]:
    """Name, status and reason code of what is not read."""
    files_under(root, contents := SourceContents())
    return [(r.path.name, r.status, r.reason.partition(":")[0]) for r in contents.skipped]


def names(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in files_under(root, SourceContents())]


def test_files_are_found_at_any_depth_in_order(tmp_path: Path) -> None:
    touch(tmp_path / "b", tmp_path / "a" / "c" / "d", tmp_path / "a" / "e")
    assert (names(tmp_path), rows(tmp_path)) == (["a/c/d", "a/e", "b"], [])
    assert files_under(tmp_path / "b", SourceContents()) == [tmp_path / "b"]
    assert names(tmp_path / "missing") == rows(tmp_path / "missing") == rows(tmp_path / "b") == []


def test_pipes_sockets_devices_and_broken_links_become_rows(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.dcm")
    (tmp_path / "broken.nii").symlink_to(tmp_path / "missing")
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(tmp_path)  # the path of a socket is short
        server.bind("socket")
    expected = ["broken.nii", "loop", "null", "pipe.dcm", "socket"]
    assert names(tmp_path) == []
    assert sorted(rows(tmp_path)) == [(name, "refused", "not_a_file") for name in expected]
    assert rows(tmp_path / "pipe.dcm") == [("pipe.dcm", "refused", "not_a_file")]


def test_links_to_files_are_read_and_links_inside_the_source_are_found_once(tmp_path: Path) -> None:
    touch(tmp_path / "archive" / "x", tmp_path / "source" / "p1" / "a")
    (tmp_path / "source" / "linked").symlink_to(tmp_path / "archive" / "x")
    (tmp_path / "source" / "again").symlink_to(tmp_path / "source" / "p1")
    (tmp_path / "source" / "p1" / "up").symlink_to(tmp_path / "source")
    assert names(tmp_path / "source") == ["linked", "p1/a"]
    assert rows(tmp_path / "source") == []


@pytest.mark.parametrize("target", ["/", "..", "../beside"])
def test_a_link_that_leaves_the_source_is_not_followed(tmp_path: Path, target: str) -> None:
    touch(tmp_path / "beside" / "x", tmp_path / "source" / "p1" / "a")
    (tmp_path / "source" / "link").symlink_to(target)
    assert names(tmp_path / "source") == ["p1/a"]
    assert rows(tmp_path / "source") == [("link", "refused", "outside_link")]


def test_a_link_that_is_given_itself_or_by_a_pattern_is_searched(tmp_path: Path) -> None:
    touch(tmp_path / "archive" / "x")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "p1").symlink_to(tmp_path / "archive")
    assert names(tmp_path / "source" / "p1") == ["x"]
    [(key, _, files)] = search(tmp_path / "source" / "*", SourceContents())
    assert (key, files) == ("p1", [tmp_path / "source" / "p1" / "x"])


def test_a_folder_that_may_not_be_entered_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "secret" / "b", tmp_path / "a")
    scandir = os.scandir

    def closed(path: str) -> object:
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert names(tmp_path) == ["a"]
    assert rows(tmp_path) == [("secret", "refused", "unreadable")]


def test_prepared_folders_are_rows(tmp_path: Path) -> None:
    touch(tmp_path / "p1" / "a", tmp_path / "prepared" / "cases" / "b.nii.gz")
    Manifest({}).write(tmp_path / "prepared")
    (tmp_path / "prepared" / "intake.csv").touch()
    assert names(tmp_path) == ["p1/a"]
    assert rows(tmp_path) == [("prepared", "dropped", "prepared_folder")]


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"schema": 1}', "[" * 5000, '{"cases": [], "settings": 1e999}']
)
def test_other_folders_with_files_of_those_names_are_searched(tmp_path: Path, content: str) -> None:
    touch(tmp_path / "p1" / "a", tmp_path / "p1" / "intake.csv")
    (tmp_path / "p1" / "manifest.json").write_text(content)
    assert "p1/a" in names(tmp_path)
    assert rows(tmp_path) == []


def test_a_pipe_named_as_a_manifest_stops_nothing(tmp_path: Path) -> None:
    touch(tmp_path / "a", tmp_path / "intake.csv")
    os.mkfifo(tmp_path / "manifest.json")
    assert names(tmp_path) == ["a", "intake.csv"]


def test_resource_forks_are_rows(tmp_path: Path) -> None:
    touch(tmp_path / "._p7.nii.gz", tmp_path / "p7.nii.gz")
    assert names(tmp_path) == ["p7.nii.gz"]
    assert rows(tmp_path) == [("._p7.nii.gz", "dropped", "resource_fork")]


def test_names_that_are_not_utf_8_are_found(tmp_path: Path) -> None:
    name = os.fsdecode(b"p\xe4t")
    touch(tmp_path / name / "a.dcm")
    assert names(tmp_path) == [f"{name}/a.dcm"]
    assert [key for key, _ in expand_pattern(tmp_path / "*" / "a.dcm")] == [name]


@pytest.mark.parametrize(
    ("pattern", "keys"),
    [
        ("*/CT", ["p1", "p2"]),
        ("p?/CT", ["1", "2"]),
        ("p[!2]/C*", ["1/T"]),
        ("p[12]/*.nii", ["1/x", "2/x"]),
        ("**/CT", ["p1", "p1/old", "p2"]),
    ],
)
def test_the_key_is_what_the_wildcards_match(tmp_path: Path, pattern: str, keys: list[str]) -> None:
    touch(tmp_path / "p1" / "CT" / "a", tmp_path / "p1" / "old" / "CT" / "a")
    touch(tmp_path / "p2" / "CT" / "a", tmp_path / "p1" / "x.nii", tmp_path / "p2" / "x.nii")
    assert [key for key, _ in expand_pattern(tmp_path / pattern)] == keys


def test_a_name_with_wildcards_that_exists_is_no_pattern(tmp_path: Path) -> None:
    touch(tmp_path / "p[1]" / "a")
    assert not is_pattern(tmp_path / "p[1]")
    assert expand_pattern(tmp_path / "p[1]") == [("", tmp_path / "p[1]")]


def test_a_file_in_several_matches_is_found_once(tmp_path: Path) -> None:
    touch(tmp_path / "p1" / "CT" / "CT" / "a")
    found = search(tmp_path / "**" / "CT", SourceContents())
    assert [(key, len(files)) for key, _, files in found] == [("p1", 1), ("p1/CT", 0)]


@pytest.mark.parametrize("target", ["/", "."])
def test_a_pattern_does_not_follow_links_upwards(tmp_path: Path, target: str) -> None:
    touch(tmp_path / "p1" / "a")
    (tmp_path / "p2").symlink_to(target)
    contents = SourceContents()
    assert [len(files) for _, _, files in search(tmp_path / "*", contents)] == [1, 0]
    assert [row.reason.partition(":")[0] for row in contents.skipped] == ["outside_link"]
