"""Filling a prepared folder from a source, by several workers, safe to be killed."""

import time
from collections.abc import Callable, Iterator

from pancseg.dataset.case_files import picture_of
from pancseg.dataset.intake_table import TABLE
from pancseg.dataset.manifest import read_manifest
from pancseg.output.contact_sheet import Tile, draw_contact_sheet
from pancseg.parallel import process_map
from pancseg.preparing.conversion import Job, Outcome, cannot_write, convert, killed
from pancseg.preparing.preparation import Preparation
from pancseg.preparing.shared_root import SharedRoot
from pancseg.preparing.unfinished import keep_record, record_of
from pancseg.sharing import POLL_S, claimed


def fill(shared: SharedRoot, processes: int) -> Iterator[tuple[int, int, str]]:
    """Take everything that a source holds and no other worker has taken.

    Each candidate's record is kept as soon as it is there. Manifest and table are left alone until
    all records are: what they will say depends neither on who did what nor on who was killed.

    Args:
        shared: Where to, and the work.
        processes: How many work at a time, each with one scan in memory.

    Yields:
        How many candidates are done, how many there are to convert, and what is worked on next.
    """
    jobs, outcomes = {job.origin: job for job in shared.jobs}, dict[str, Outcome]()
    left = dict(jobs)
    yield 0, len(jobs), next((job.case for job in left.values()), "")
    while left:
        for outcome in process_map(take, list(left.values()), processes, give_up):
            if outcome is not None:
                outcomes[outcome.origin] = outcome
                del left[outcome.origin]
                yield len(outcomes), len(jobs), next((job.case for job in left.values()), "")
        for found in wait_for_others(left):
            outcomes |= found
            yield len(outcomes), len(jobs), f"{len(left)} with other workers" if left else ""
    with shared.crew.lock:
        enter_all(shared, outcomes)


def take(job: Job) -> Outcome | None:
    """Convert a candidate, unless it was done; None while another worker is at it."""
    return settle(job, convert)


def give_up(job: Job) -> Outcome | None:
    """What :func:`take` gives for a candidate whose process ended."""
    return settle(job, killed)


def settle(job: Job, how: Callable[[Job], Outcome]) -> Outcome | None:
    """The outcome of a candidate, as somebody recorded it, or found here and recorded.

    Raises:
        PancsegError: If the folder cannot be written.
    """
    if done := record_of(job):
        return done
    try:
        with claimed(job.root, job.origin) as mine:
            if not mine:
                return None
            done = record_of(job)  # it may have been finished since
            if done is None:
                done = how(job)
                keep_record(job.root, done)
            return done
    except OSError as error:
        raise cannot_write(job.root, error) from error


def wait_for_others(left: dict[str, Job]) -> Iterator[dict[str, Outcome]]:
    """Wait until others have done what they took, or one of them has died and left its part.

    Args:
        left: What is not done; what is, is taken out.

    Yields:
        What was done meanwhile, each time one has looked.
    """
    while left:
        found = {origin: done for origin, job in left.items() if (done := record_of(job))}
        for origin in found:
            del left[origin]
        yield found
        for job in left.values():
            with claimed(job.root, job.origin) as free:
                if free:
                    return
        if not found:
            time.sleep(POLL_S)


def enter_all(shared: SharedRoot, outcomes: dict[str, Outcome]) -> None:
    """Enter all outcomes into manifest and table, and look at all cases together.

    Each worker does so, in the order of the source, with one result; the first one writes it.
    """
    preparation = shared.preparation
    for job in shared.jobs:
        if known := preparation.cases.get(job.origin):
            preparation.forget(known)
    for job in shared.jobs:
        preparation.enter(outcomes[job.origin])
    preparation.look_across()
    preparation.sweep()
    table = preparation.table()
    if not is_written(preparation, table) and (
        not preparation.was_complete or shared.before != table
    ):
        draw(preparation)
    preparation.save_state(complete=True)
    shared.finished = True


def is_written(preparation: Preparation, table: str) -> bool:
    """Whether another worker came to the end before; with the lock held."""
    stored = (preparation.root / TABLE).read_bytes()
    same = stored == table.encode("utf-8", "surrogateescape")
    return same and read_manifest(preparation.root).complete


def draw(preparation: Preparation) -> None:
    """Draw the contact sheet."""
    rows = sorted(
        (r for r in preparation.rows.values() if r.case and r.kind == "image"),
        key=lambda row: row.case,
    )
    tiles = [
        Tile(
            row.case,
            row.patient,
            preparation.root / picture_of(row.case),
            str(row.flags),
            f"{float(row.label_ml):.1f} ml" if row.label_ml != "" else "",
        )
        for row in rows
    ]
    draw_contact_sheet(preparation.root, tiles)
