"""Files of a source: folders searched at any depth, and patterns such as ``DIR/*/CT``."""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from pancseg.data.intake_table import TABLE
from pancseg.data.manifest import MANIFEST
from pancseg.errors import PancsegError
from pancseg.files import read_json
from pancseg.intake.source import SkippedFile

WILDCARD = re.compile(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])")
WILDCARD_GROUPS = {"**/": "(?:(.*)/)?", "**": "(.*)", "*": "([^/]*)", "?": "([^/])"}
MANIFEST_KEYS = {"schema", "settings", "cases"}
OUTSIDE = "outside_link: leads to a folder outside of the source; name it by a pattern, as DIR/*"


class SearchedFolder(NamedTuple):
    """A folder, or the folder of a file, that a path or pattern names."""

    key: str  # text that the wildcards match, joined by /; empty for a plain path
    folder: Path
    files: list[Path]  # sorted; a file that several matches contain belongs to the first
    is_file: bool


def search(path: Path) -> tuple[list[SearchedFolder], list[SkippedFile]]:
    """Search everything that a path or pattern names; also return rows of what is not read."""
    searched, skipped = [], []
    known: set[Path] = set()
    for key, match in expand_pattern(path):
        files, rows = files_under(match)
        new = [file for file in files if file not in known]
        folder, is_file = (match, False) if match.is_dir() else (match.parent, True)
        searched.append(SearchedFolder(key, folder, new, is_file))
        known.update(new)
        skipped += rows
    return searched, list(dict.fromkeys(skipped))


def files_under(root: Path) -> tuple[list[Path], list[SkippedFile]]:
    """Regular files below a folder, sorted, or the file itself; and rows of what is not read.

    Links to files are read. Links to folders are not followed: the folder is searched by its own
    path, or lies outside and gets a row. Prepared folders are not searched.
    """
    files: list[Path] = []
    skipped: list[SkippedFile] = []

    def skip(path: Path | str, status: str, reason: str) -> None:
        skipped.append(SkippedFile(Path(path), "other", status, reason))

    def skip_folder(error: OSError) -> None:
        skip(error.filename, "refused", f"unreadable: cannot be listed ({error.strerror})")

    walk: Any = [(root.parent, [], [root.name])] if root.exists() else []
    for name, folders, names in os.walk(root, onerror=skip_folder) if root.is_dir() else walk:
        folder = Path(name)
        if {MANIFEST, TABLE} <= set(names) and is_prepared(folder):
            skip(folder, "dropped", "prepared_folder: pancseg wrote it; it is no source")
            folders.clear()
            continue
        for path in map(folder.joinpath, folders):
            if path.is_symlink() and not contains(root, path):
                skip(path, "refused", OUTSIDE)
        for path in map(folder.joinpath, names):
            if path.name.startswith("._"):
                skip(path, "dropped", "resource_fork: macOS keeps it beside a file")
            elif os.path.isfile(path):  # noqa: PTH113, Path.is_file raises in a closed folder
                files.append(path)
            else:
                skip(path, "refused", "not_a_file: a broken link, pipe, socket or device")
    return sorted(files), skipped


def contains(folder: Path, path: Path) -> bool:
    """Whether a path, with links resolved, lies in a folder or is that folder."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def is_prepared(folder: Path) -> bool:
    """Whether a folder holds a manifest of pancseg."""
    path = folder / MANIFEST
    try:
        return path.is_file() and read_json(path, "a manifest").keys() >= MANIFEST_KEYS
    except (PancsegError, OSError):
        return False


def is_pattern(path: Path) -> bool:
    """Whether a path has wildcards and no file or folder is named exactly so."""
    return bool(WILDCARD.search(str(path))) and not path.exists()


def expand_pattern(path: Path) -> list[tuple[str, Path]]:
    """Paths that a path or pattern names, each with the text that the wildcards match, sorted.

    ``*`` matches a name or a part of it, ``**`` folders at any depth, ``?`` a character, as in
    :meth:`pathlib.Path.glob`. Links to folders that contain the pattern's own folder are left out.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> for name in ("p2", "p1"):
    ...     (root / name / "CT").mkdir(parents=True)
    >>> [(key, path.name) for key, path in expand_pattern(root / "*" / "CT")]
    [('p1', 'CT'), ('p2', 'CT')]
    """
    if not is_pattern(path):
        return [("", path)]
    fixed = next(n for n, part in enumerate(path.parts) if WILDCARD.search(part))
    root, pattern = Path(*path.parts[:fixed]), "/".join(path.parts[fixed:])
    parts = [re.escape(part) for part in WILDCARD.split(pattern)]
    parts[1::2] = [
        WILDCARD_GROUPS.get(part) or f"({part.replace('[!', '[^')})"
        for part in WILDCARD.findall(pattern)
    ]
    expression = re.compile("".join(parts))
    return sorted(
        ("/".join(filter(None, match.groups())), path)
        for path in root.glob(pattern)
        if (match := expression.fullmatch(path.relative_to(root).as_posix()))
        and (path == root or not contains(path, root))
    )
