"""Writing files so that a reader never meets half a file: temporary name, then rename."""

import csv
import io
import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pancseg.errors import PancsegError

PARTIAL = ".partial-"


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to ``path`` if the body succeeds.

    The temporary name keeps the ending, because writers choose their format by it.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with replaced(target) as temporary:
    ...     _ = temporary.write_text("whole")
    >>> target.read_text(), [file.name for file in target.parent.iterdir()]
    ('whole', ['a.txt'])
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{PARTIAL}{secrets.token_hex(6)}-{path.name}")
    try:
        yield temporary
        put_in_place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path``; rename it to ``path`` if the body succeeds.

    Where the body fails, nothing is left. ``path`` may be there if it is empty.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a"
    >>> with replaced_folder(target) as temporary:
    ...     _ = (temporary / "b.txt").write_text("whole")
    >>> [str(one.relative_to(target.parent)) for one in target.parent.rglob("*")]
    ['a', 'a/b.txt']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{PARTIAL}{secrets.token_hex(6)}-{path.name}")
    temporary.mkdir()
    try:
        yield temporary
        if path.is_dir():
            path.rmdir()  # it is empty; Windows renames to no folder that is there
        put_in_place(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(folder: Path, key: str) -> None:
    """Check that a folder can be written, before any work is done for it.

    Raises:
        PancsegError: If it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PancsegError(f"{key}={folder}: cannot be written ({error.strerror})") from error


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename; where another program has the target open, as on Windows, try for a second."""
    for _ in range(10):
        try:
            temporary.replace(path)
            return
        except PermissionError:
            time.sleep(0.1)
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, UTF-8; names of files that are not UTF-8 keep their bytes."""
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


def as_csv(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table as text, an empty cell for None.

    >>> print(as_csv(["patient", "dice"], [["a", 0.5], ["b", None]]), end="")
    patient,dice
    a,0.5
    b,
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    return text.getvalue()


def write_csv(path: Path, heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table: its heads and, in their order, the cells of each row."""
    write_text(path, as_csv(heads, rows))


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, in the order its keys were made."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def is_table(value: Any) -> bool:
    """Whether a value has names and values."""
    return isinstance(value, dict)


def read_json(path: Path, what: str, check: Callable[[Any], bool] = is_table) -> Any:
    """Read JSON and check its shape.

    Raises:
        PancsegError: If the file is not JSON or not ``what`` was expected.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise PancsegError(f"{path}: cannot be read as {what} (too deep)") from None
    except (ValueError, OSError) as error:
        raise PancsegError(f"{path}: cannot be read as {what} ({error})") from error
    if not check(value):
        raise PancsegError(f"{path}: is JSON, but not {what}")
    return value
