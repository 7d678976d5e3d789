"""Files of a source: at any depth, through links, each once."""

import os
from pathlib import Path

PREPARED = {"manifest.json", "intake.csv"}  # a prepared folder is no source, wherever it lies


def files_under(root: Path) -> list[Path]:
    """All files below a folder, sorted, or the file itself.

    Links to folders are followed, each folder is entered once, prepared folders are not.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> (root / "p1").mkdir(); (root / "p1" / "a").touch(); (root / "again").symlink_to(root)
    >>> [path.relative_to(root).as_posix() for path in files_under(root)]
    ['p1/a']
    """
    if root.is_file():
        return [root]
    files: list[Path] = []
    entered = {os.path.realpath(root)}
    closed: list[OSError] = []  # a folder that cannot be entered is listed, to be told of
    for folder, folders, names in os.walk(root, followlinks=True, onerror=closed.append):
        if set(names) >= PREPARED:
            folders.clear()
            continue
        new = []
        for name in sorted(folders):
            place = os.path.realpath(Path(folder) / name)
            if place not in entered:
                entered.add(place)
                new.append(name)
        folders[:] = new
        files += [file for name in names if (file := Path(folder) / name).is_file()]
    return sorted([*files, *(Path(error.filename) for error in closed if error.filename)])


def is_fork(path: Path) -> bool:
    """Whether this is what macOS keeps beside a file: a resource fork.

    >>> is_fork(Path("p1/._p7.nii.gz"))
    True
    """
    return path.name.startswith("._")


FORK = "resource_fork: what macOS keeps beside a file"
