"""Several processes, on one machine or many, that share a piece of work in one folder.

Who is there and who has taken what is told by locks alone. The operating system gives a lock back
however its process ends, and no clock is asked: those of two machines differ.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

FOLDER = ".unfinished"
WORKER, CLAIM = ".worker", ".claim"
POLL_S = 0.5  # between two looks at what others are doing


class Crew:
    """The workers at one folder.

    Args:
        folder: Where they work.
        lock: Name of the lock that is held, for a moment, by who reads or changes what all share.
    """

    def __init__(self, folder: Path, lock: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.notes = folder / FOLDER
        self.lock = FileLock(folder / lock)
        self.own: FileLock | None = None

    def others(self) -> list[str]:
        """What each other living worker is at; asked with the lock held.

        What dead ones left of themselves is removed.
        """
        alive = []
        for path in sorted(self.notes.glob(f"*{WORKER}")):
            if self.own is not None and path == Path(self.own.lock_file):
                continue
            if held := take_lock(path):
                held.release()
                path.unlink(missing_ok=True)
            else:
                alive.append(path.name.partition("-")[0])
        return alive

    def join(self, work: str) -> None:
        """Be one of them, until :meth:`leave` or the end of the process; with the lock held.

        Args:
            work: A word for what is done here, the same for all who may share it.
        """
        self.notes.mkdir(exist_ok=True)
        self.own = take_lock(self.notes / f"{work}-{secrets.token_hex(6)}{WORKER}")

    def leave(self) -> bool:
        """Be none of them; with the lock held.

        Returns:
            Whether nobody is left: then no claim is, either.
        """
        if self.own is not None:
            self.own.release()
            Path(self.own.lock_file).unlink(missing_ok=True)
            self.own = None
        if self.others():
            return False
        for path in self.notes.glob(f"*{CLAIM}"):
            path.unlink(missing_ok=True)
        return True

    def tidy(self) -> None:
        """Remove the folder of notes if nothing is in it."""
        if self.notes.is_dir() and not any(self.notes.iterdir()):
            self.notes.rmdir()


def claim(folder: Path, name: str) -> FileLock | None:
    """Take a part of the work; None where another worker has it."""
    return take_lock(folder / FOLDER / f"{name}{CLAIM}")


@contextmanager
def claimed(folder: Path, name: str) -> Iterator[bool]:
    """Take a part of the work for a while, and tell whether it was to be had."""
    held = claim(folder, name)
    try:
        yield held is not None
    finally:
        if held is not None:
            held.release()


def take_lock(path: Path) -> FileLock | None:
    """A lock that is ours, whichever thread gives it back; None where somebody has it."""
    lock = FileLock(path, blocking=False, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock
