"""Errors that a user can meet, with the exit code that each ends a command with."""

import errno
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
REASON_LENGTH = 300  # characters of a reason in a table, at most


class PancsegError(Exception):
    """The command cannot start or continue: what was found, what was expected, what to do."""

    exit_code = 2


class Incomplete(PancsegError):
    """The work was done except for some of the input, which the table names."""

    exit_code = 1


class Refused(Exception):
    """A series or file cannot be used; the rest of the batch continues.

    Args:
        code: Reason code in ``snake_case``, the same for every case of its kind.
        sentence: What was found, with numbers, and what was expected. No value of a header may
            stand in it: values may name patients.
        repairs: Keys of ``repair`` that would make the series usable, ``gaps`` and ``tilt``.
        names: Names of structures in the file, shown on the console when asked for.
    """

    def __init__(
        self, code: str, sentence: str, *, repairs: Sequence[str] = (), names: Sequence[str] = ()
    ) -> None:
        super().__init__(f"{code}: {sentence}"[:REASON_LENGTH])
        self.code, self.repairs, self.names = code, tuple(repairs), tuple(names)

    @property
    def sentence(self) -> str:
        """The reason without its code."""
        return str(self).partition(": ")[2]


def lacks_room(error: BaseException | None) -> TypeGuard[OSError]:
    """Whether the disk is full or read-only."""
    return isinstance(error, OSError) and error.errno in NO_ROOM


def printable(text: str) -> str:
    r"""Text for the console: bytes of no encoding and control characters are escaped.

    >>> printable("a\x1b[31m\udcff")
    'a\\x1b[31m\\xff'
    """
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence pydicom's log and warnings, which quote values of headers."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def parsing(file: Path) -> Iterator[None]:
    """Refuse a file as ``unreadable`` on any error of a library, whose text may quote a header."""
    try:
        with quiet():
            yield
    except Refused:
        raise
    except EOFError:
        raise Refused("truncated", f"{file.name} ends too early; copy it again") from None
    except Exception as error:  # damaged headers raise nearly any
        reason = error.strerror if isinstance(error, OSError) else None
        reason = reason or f"it is damaged ({type(error).__name__}); export or copy it again"
        raise Refused("unreadable", f"{file.name}: {reason}") from error


def brief(error: Exception) -> str:
    """The first line of an error, without a path; do not use it for errors that quote headers."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = [line.strip() for line in text.strip().splitlines()]
    if len(lines) > 1 and lines[0].endswith(":"):
        lines[0] += f" {lines[1]}"
    return (lines[0][:200] if lines else "") or type(error).__name__
