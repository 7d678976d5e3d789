"""Files below a folder, and patterns."""

import os
from pathlib import Path

from pancseg.data.manifest import Manifest
from pancseg.intake.match_labels import SourceContents
from pancseg.intake.sources import files_under, search


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
    touch(tmp_path, "b", "a/c/d", "a/e", f"{latin}/f", "secret/g", "intake.csv")
    os.mkfifo(tmp_path / "pipe.dcm")
    os.mkfifo(tmp_path / "manifest.json")
    for name, target in (("broken", "missing"), ("null", "/dev/null"), ("loop", "loop")):
        (tmp_path / name).symlink_to(target)
    scandir = os.scandir

    def closed(path):
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    files, rows = names_and_rows(tmp_path)
    assert files == ["a/c/d", "a/e", "b", "intake.csv", f"{latin}/f"]
    others = ("broken", "loop", "manifest.json", "null", "pipe.dcm")
    assert rows == [*((name, "not_a_file") for name in others), ("secret", "unreadable")]
    assert names_and_rows(tmp_path / "pipe.dcm")[1] == [("pipe.dcm", "not_a_file")]


def test_links_are_followed_inside_the_source_and_to_files_once(tmp_path):
    touch(tmp_path, "archive/x", "source/p1/a")
    source = tmp_path / "source"
    links = {"linked": "../archive/x", "again": "p1", "root": "/", "p2": "../archive"}
    for name, target in links.items():
        (source / name).symlink_to(target)
    outside = [(name, "outside_link") for name in ("p2", "root")]
    assert names_and_rows(source) == (["linked", "p1/a"], outside)
    found = search(source / "p*", SourceContents())  # found by a pattern, not from above
    found = [(key, [file.name for file in files]) for key, _, files in found]
    assert found == [("1", ["a"]), ("2", ["x"])]


def test_a_prepared_folder_is_a_row_and_others_with_its_names_are_searched(tmp_path):
    touch(tmp_path, "p1/a", "prepared/cases/b.nii.gz", "prepared/intake.csv", "p1/intake.csv")
    Manifest({}).write(tmp_path / "prepared")
    (tmp_path / "p1" / "manifest.json").write_text('{"schema": 1}')
    files, rows = names_and_rows(tmp_path)
    assert "p1/a" in files and rows == [("prepared", "prepared_folder")]
