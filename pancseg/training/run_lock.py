"""A run's folder belongs to one training at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pancseg.config import TRAINING_LOCK
from pancseg.errors import PancsegError
from pancseg.files import PARTIAL


@contextmanager
def locked_run(folder: Path, is_writing: bool = True) -> Iterator[None]:
    """Keep other trainings out of a run's folder; a killed process releases it.

    Args:
        folder: Of the run, or of a sweep.
        is_writing: Whether this process writes there: the first of those that train together.

    Raises:
        PancsegError: If another training writes to it, or it cannot be written.
    """
    if not is_writing:
        yield
        return
    lock = FileLock(folder / TRAINING_LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise PancsegError(
            f"hydra.run.dir={folder}: another pancseg.train is writing to it; wait for its end, or "
            "give another folder"
        ) from error
    except OSError as error:
        raise PancsegError(
            f"hydra.run.dir={folder}: cannot be written ({error.strerror or error})"
        ) from error
    try:
        for path in [*folder.glob(f"{PARTIAL}*"), *folder.glob(f"checkpoints/{PARTIAL}*")]:
            path.unlink(missing_ok=True)  # of writes that were killed
        yield
    finally:
        lock.release()
