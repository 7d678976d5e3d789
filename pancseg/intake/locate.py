"""Find series and files, in folders at any depth or by patterns such as ``DIR/*/CT``."""

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from pancseg.data.manifest import MANIFEST, TABLE
from pancseg.dicom.series import find_series
from pancseg.errors import PancsegError
from pancseg.files import read_json
from pancseg.intake.types import ReadOptions, SourceContents, SourceItem
from pancseg.intake.volume_files import is_volume_file, stem_of, unread_format

WILDCARD = re.compile(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])")
WILDCARD_GROUPS = {"**/": "(?:(.*)/)?", "**": "(.*)", "*": "([^/]*)", "?": "([^/])"}
MANIFEST_KEYS = {"schema", "settings", "cases"}
SUFFIX = re.compile(r"(?<=.)[/.]+(nii|nii\.gz|gz|seg\.nrrd|nrrd)$", re.IGNORECASE)
OUTSIDE = "outside_link: leads to a folder outside of the source; name it by a pattern, as DIR/*"
RESOURCE_FORK = "resource_fork: macOS keeps it beside a file"
NOT_A_FILE = "not_a_file: a broken link, pipe, socket or device"
PREPARED = "prepared_folder: pancseg wrote it; it is no source"


def locate_series(
    path: Path, options: ReadOptions, contents: SourceContents, without: Collection[Path] = ()
) -> list[SourceItem]:
    """Series that a path or pattern names; rows of other files, except some, are added."""
    located = []
    for pattern_key, match, files in search(path, contents):
        root = match if match.is_dir() else match.parent
        rest = [file for file in files if file not in without]
        series, skipped = find_series(root, rest, options.processes)
        for row in skipped:
            contents.skip(row.path, "other", row.status, row.reason, row.count)
        count = Counter(item.folder for item in series if item.format == "image")
        for item in series:
            folder, key = root / item.folder, pattern_key or item.folder.as_posix()
            has_folder = item.format == "image" and count[item.folder] == 1
            place = {"folder": folder, "path": folder if has_folder else item.files[0], "key": key}
            located.append(SourceItem(**vars(item) | place, names_patient=bool(pattern_key)))
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
                contents.skip(file, role, "refused", reason)
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
    return SourceItem(
        format="file", folder=file.parent, path=file, files=(file,), key=key, names_patient=True
    )


def search(path: Path, contents: SourceContents) -> list[tuple[str, Path, list[Path]]]:
    """Paths that a path or pattern names, each with its key and files; rows are added.

    A file that several matches of a pattern contain belongs to the first.
    """
    located, known = [], set[Path]()
    for key, match in expand_pattern(path):
        files = [file for file in files_under(match, contents) if file not in known]
        known.update(files)
        located.append((key, match, files))
    return located


def files_under(root: Path, contents: SourceContents) -> list[Path]:
    """Regular files below a folder, sorted, or the file itself; rows of what is not read are added.

    Links to files are read. Links to folders are not followed: the folder is searched by its own
    path, or lies outside and gets a row. Prepared folders are not searched.
    """

    def skip_folder(error: OSError) -> None:
        reason = f"unreadable: cannot be listed ({error.strerror})"
        contents.skip(Path(error.filename), "other", "refused", reason)

    files: list[Path] = []
    walk: Iterable[tuple[str, list[str], list[str]]] = ()
    if root.is_symlink() and contains(root, root.parent):
        contents.skip(root, "other", "refused", OUTSIDE)
    elif root.is_dir():
        walk = os.walk(root, onerror=skip_folder)
    elif root.exists():
        walk = [(str(root.parent), [], [root.name])]
    for name, folders, names in walk:
        folder = Path(name)
        if {MANIFEST, TABLE} <= set(names) and is_prepared(folder):
            contents.skip(folder, "other", "dropped", PREPARED)
            folders.clear()
            continue
        for path in map(folder.joinpath, folders):
            if path.is_symlink() and not contains(root, path):
                contents.skip(path, "other", "refused", OUTSIDE)
        for path in map(folder.joinpath, names):
            if path.name.startswith("._"):
                contents.skip(path, "other", "dropped", RESOURCE_FORK)
            elif os.path.isfile(path):  # noqa: PTH113, Path.is_file raises in a closed folder
                files.append(path)
            else:
                contents.skip(path, "other", "refused", NOT_A_FILE)
    return sorted(files)


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
    parts = WILDCARD.split(pattern)  # in turn texts and wildcards
    parts[0::2] = [re.escape(text) for text in parts[0::2]]
    parts[1::2] = [WILDCARD_GROUPS.get(w) or f"({w.replace('[!', '[^')})" for w in parts[1::2]]
    expression = re.compile("".join(parts))
    return sorted(
        ("/".join(filter(None, match.groups())), path)
        for path in root.glob(pattern)
        if (match := expression.fullmatch(path.relative_to(root).as_posix()))
    )
