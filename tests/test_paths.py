"""Files below a folder, and patterns."""

import os
import socket
from pathlib import Path

import pytest

from pancseg.data.manifest import Manifest
from pancseg.intake.match_labels import SourceContents
from pancseg.intake.sources import expand_pattern, files_under, is_pattern, search


def touch(root, *names):
    for path in (root / name for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names_and_rows(root):
    """Files below a folder; name and reason code of what is not read."""
    files = files_under(root, contents := SourceContents())
    rows = [(row.path.name, row.reason.partition(":")[0]) for row in contents.skipped]
    return [path.relative_to(root).as_posix() for path in files], sorted(rows)


def test_files_are_found_at_any_depth_in_order_and_all_else_becomes_a_row(tmp_path, monkeypatch):
    latin = os.fsdecode(b"p\xe4t")  # not UTF-8
    touch(tmp_path, "b", "a/c/d", "a/e", f"{latin}/f", "secret/g", "._fork.nii.gz", "intake.csv")
    os.mkfifo(tmp_path / "pipe.dcm")
    os.mkfifo(tmp_path / "manifest.json")
    for name, target in (("broken", "missing"), ("null", "/dev/null"), ("loop", "loop")):
        (tmp_path / name).symlink_to(target)
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(tmp_path)  # the path of a socket is short
        server.bind("socket")
    scandir = os.scandir

    def closed(path):
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    files, rows = names_and_rows(tmp_path)
    assert files == ["a/c/d", "a/e", "b", "intake.csv", f"{latin}/f"]
    other = {name: code for name, code in rows if code != "not_a_file"}
    assert other == {"._fork.nii.gz": "resource_fork", "secret": "unreadable"}
    no_file = {name for name, code in rows if code == "not_a_file"}
    assert no_file >= {"broken", "loop", "null", "pipe.dcm", "socket"}
    assert names_and_rows(tmp_path / "pipe.dcm")[1] == [("pipe.dcm", "not_a_file")]
    assert [key for key, _ in expand_pattern(tmp_path / "*" / "f")] == [latin]
    assert files_under(tmp_path / "b", SourceContents()) == [tmp_path / "b"]
    assert names_and_rows(tmp_path / "missing") == ([], [])


def test_links_are_followed_inside_the_source_and_to_files_once(tmp_path):
    touch(tmp_path, "archive/x", "source/p1/a")
    source = tmp_path / "source"
    for link, target in (("linked", "../archive/x"), ("again", "p1"), ("p1/up", "..")):
        (source / link).symlink_to(target)
    assert names_and_rows(source) == (["linked", "p1/a"], [])
    for name, target in (("root", "/"), ("above", ".."), ("p2", "../archive")):
        (source / name).symlink_to(target)
        assert names_and_rows(source) == (["linked", "p1/a"], [(name, "outside_link")])
        if name != "p2":
            (source / name).unlink()
    found = search(source / "p*", SourceContents())  # found by a pattern, not from above
    found = [(key, [file.name for file in files]) for key, _, files in found]
    assert found == [("1", ["a"]), ("2", ["x"])]


def test_a_prepared_folder_is_a_row_and_others_with_its_names_are_searched(tmp_path):
    touch(tmp_path, "p1/a", "prepared/cases/b.nii.gz", "prepared/intake.csv", "p1/intake.csv")
    Manifest({}).write(tmp_path / "prepared")
    for content in ("", "[]", '{"schema": 1}', "[" * 5000, '{"cases": [], "settings": 1e999}'):
        (tmp_path / "p1" / "manifest.json").write_text(content)
        files, rows = names_and_rows(tmp_path)
        assert "p1/a" in files and rows == [("prepared", "prepared_folder")]


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
def test_the_key_is_the_part_that_the_wildcards_match(tmp_path, pattern, keys):
    touch(tmp_path, "p1/CT/a", "p1/old/CT/a", "p2/CT/a", "p1/x.nii", "p2/x.nii")
    assert [key for key, _ in expand_pattern(tmp_path / pattern)] == keys


def test_matches_share_no_file_and_an_existing_name_with_wildcards_is_no_pattern(tmp_path):
    touch(tmp_path, "p1/CT/CT/a", "p[1]/a")
    assert not is_pattern(tmp_path / "p[1]")
    assert expand_pattern(tmp_path / "p[1]") == [("", tmp_path / "p[1]")]
    found = search(tmp_path / "**" / "CT", SourceContents())
    assert [(key, len(files)) for key, _, files in found] == [("p1", 1), ("p1/CT", 0)]
