"""Find series and files, in folders at any depth or by patterns such as ``DIR/*/CT``."""

import os
import re
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from pancseg.data.manifest import MANIFEST, TABLE
from pancseg.dicom.series import find_series
from pancseg.errors import PancsegError
from pancseg.files import read_json
from pancseg.intake.types import ReadOptions, SkippedFile, SourceContents, SourceItem
from pancseg.intake.volume_files import is_volume_file, stem_of, unread_format

WILDCARD = re.compile(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])")
WILDCARD_GROUPS = {"**/": "(?:(.*)/)?", "**": "(.*)", "*": "([^/]*)", "?": "([^/])"}
MANIFEST_KEYS = {"schema", "settings", "cases"}
SUFFIX = re.compile(r"(?<=.)[/.]+(nii|nii\.gz|gz|seg\.nrrd|nrrd)$", re.IGNORECASE)
OUTSIDE = "outside_link: leads to a folder outside of the source; name it by a pattern, as DIR/*"


def locate_series(
    path: Path, options: ReadOptions, contents: SourceContents, without: Collection[Path] = ()
) -> list[SourceItem]:
    """Series that a path or pattern names; rows of other files, except some, are added."""
    located = []
    for pattern_key, match, files in search(path, contents):
        root = match if match.is_dir() else match.parent
        rest = [file for file in files if file not in without]
        series, skipped = find_series(root, rest, options.processes)
        contents.skipped += [
            SkippedFile(row.path, "other", row.status, row.reason, row.count) for row in skipped
        ]
        in_folder = Counter(each.folder for each in series if each.format == "image")
        for each in series:
            own: dict[str, Any] = vars(each) | {"folder": (folder := root / each.folder)}
            has_folder = each.format == "image" and in_folder[each.folder] == 1
            own |= {"path": folder if has_folder else each.files[0]}
            key = pattern_key or each.folder.as_posix()
            located.append(SourceItem(**own, key=key, names_patient=bool(pattern_key)))
    return located


def locate_files(
    path: Path, role: str, contents: SourceContents, stem: Callable[[Path], str] = stem_of
) -> list[SourceItem]:
    """NIfTI and NRRD files that a path or pattern names; rows of what is not read are added.

    Unread formats get rows of the kind ``role``, ``image`` or ``label``; an empty role, none.
    """
    located = []
    for pattern_key, match, files in search(path, contents):
        for file in files:
            if reason := role and unread_format(file):
                contents.skipped.append(SkippedFile(file, role, "refused", reason))
            elif is_volume_file(file) and not (role == "image" and ".seg." in file.name.lower()):
                if file == match:  # the text of * in ct.nii* names nobody
                    key = SUFFIX.sub("", pattern_key) or stem(file)
                else:
                    folder = Path(pattern_key) / file.parent.relative_to(match)
                    key = (folder / stem(file)).as_posix()
                located.append(volume_item(file, key))
    return located


def volume_item(file: Path, key: str) -> SourceItem:
    """An image or label file."""
    place: dict[str, Any] = {"folder": file.parent, "path": file, "files": (file,)}
    return SourceItem(format="file", key=key, names_patient=True, **place)


def search(path: Path, contents: SourceContents) -> list[tuple[str, Path, list[Path]]]:
    """Paths that a path or pattern names, each with its key and files; rows are added.

    A file that several matches of a pattern contain belongs to the first.
    """
    found, known = [], set()
    for key, match in expand_pattern(path):
        files, rows = files_under(match)
        found.append((key, match, [file for file in files if file not in known]))
        known.update(files)
        contents.skipped += rows
    return found


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

    walk: Any = []
    if root.is_symlink() and contains(root, root.parent):
        skip(root, "refused", OUTSIDE)
    elif root.is_dir():
        walk = os.walk(root, onerror=skip_folder)
    elif root.exists():
        walk = [(root.parent, [], [root.name])]
    for name, folders, names in walk:
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
    :meth:`pathlib.Path.glob`.
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
    )
