"""Workers at one prepared folder: those with the very same work share it, others wait."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pancseg.errors import PancsegError
from pancseg.intake.found import Found
from pancseg.preparing.conversion import Job, cannot_write
from pancseg.preparing.planning import plan
from pancseg.preparing.preparation import Preparation, remove_partial
from pancseg.preparing.preparation_checks import check_disk
from pancseg.preparing.unfinished import forget_records, record_of
from pancseg.sharing import POLL_S, Crew

LOCK = ".lock"
OpenRoot = Callable[[], Preparation]


@dataclass
class SharedRoot:
    """A prepared folder with the work that several may share.

    Attributes:
        crew: Who works here.
        preparation: What was there before any of them began.
        jobs: What all of them together have to do; names are dealt.
        before: The table as this worker found it.
        finished: Whether this worker came to the end.
    """

    crew: Crew
    preparation: Preparation
    jobs: list[Job]
    before: str
    finished: bool = False


@contextmanager
def shared_root(root: Path, open_root: OpenRoot, found: Found) -> Iterator[SharedRoot]:
    """Be one of the workers at a prepared folder.

    Args:
        root: The folder.
        open_root: Reads it.
        found: The source.

    Raises:
        PancsegError: If it was prepared with other settings, the disk would not hold it, or it
            cannot be written.
    """
    try:
        shared = join(Crew(root, LOCK), open_root, found)
    except OSError as error:
        raise cannot_write(root, error, PancsegError) from error
    try:
        yield shared
    except BaseException as raised:
        with suppress(OSError):  # there may be no room
            leave(shared)
        if isinstance(raised, OSError):
            raise cannot_write(root, raised) from raised
        raise
    leave(shared)


def join(crew: Crew, open_root: OpenRoot, found: Found) -> SharedRoot:
    """Join those who do the same; wait while others do something else."""
    waited_for: list[str] = []
    while True:
        with crew.lock:
            others = crew.others()
            if not others or others != waited_for:
                shared = joined(crew, others, open_root(), found)
                if shared is not None:
                    return shared
        if not waited_for:
            told = "another preparation, of other files or with other checks, is at work"
            print(f"{crew.folder}: {told}; waiting for its end", file=sys.stderr)
        waited_for = others
        time.sleep(POLL_S)


def joined(
    crew: Crew, others: list[str], preparation: Preparation, found: Found
) -> SharedRoot | None:
    """Plan, and join if all others have the same plan; with the lock held.

    Nothing is written before it is clear that it may be.
    """
    root = preparation.root
    if not others:
        remove_partial(root)
        if preparation.was_complete:
            forget_records(root)  # of a worker that was killed after all was entered
    before = preparation.table()
    preparation.look_at(found)
    jobs = plan(preparation, found.candidates)
    work = word_for(preparation, jobs)
    if any(other != work for other in others):
        return None
    check_disk(root, [job.candidate for job in jobs if record_of(job) is None])
    if not others:
        unchanged = not jobs and preparation.table() == before
        preparation.save_state(complete=unchanged and preparation.was_complete)
    crew.join(work)
    return SharedRoot(crew, preparation, jobs, before)


def word_for(preparation: Preparation, jobs: list[Job]) -> str:
    """A word for a piece of work: equal for those who start from the same and do the same."""
    manifest = preparation.manifest
    start = [preparation.settings, manifest.cases, manifest.groups, preparation.table()]
    to_do = [(job.origin, job.case, job.source) for job in jobs]
    return preparation.names.hash(repr([start, preparation.checks, to_do]))[:16]


def leave(shared: SharedRoot) -> None:
    """Leave; the last one removes what nobody needs any more."""
    crew = shared.crew
    with crew.lock:
        if crew.leave():
            remove_partial(crew.folder)
            if shared.finished:
                forget_records(crew.folder)
        crew.tidy()
