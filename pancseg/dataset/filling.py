"""Filling a prepared folder from a source, in several processes, safe to be killed."""

from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from pancseg.dataset.case_files import picture_of
from pancseg.dataset.contact_sheet import Tile, draw_contact_sheet
from pancseg.dataset.conversion import convert, killed
from pancseg.dataset.planning import plan
from pancseg.dataset.preparation import Preparation
from pancseg.dataset.preparation_checks import check_disk
from pancseg.dataset.unfinished import forget_records, keep_record
from pancseg.intake.found import Found
from pancseg.processes import in_processes


def fill(preparation: Preparation, found: Found, processes: int) -> Iterator[tuple[int, str]]:
    """Take everything that a source holds; what was reached is kept on any way out.

    Args:
        preparation: Where to.
        found: The source.
        processes: How many work at a time, each with one scan in memory.

    Yields:
        How many candidates there are to convert, and the case that is worked on next.

    Raises:
        PancsegError: If the disk would not hold it.
    """
    before = preparation.table()
    preparation.look_at(found)
    jobs = {job.case: job for job in plan(preparation, found.candidates)}
    check_disk(preparation.root, [job.candidate for job in jobs.values()])
    complete, total = False, len(jobs)
    preparation.save_state(complete=not jobs and preparation.was_complete)
    try:
        yield total, next(iter(jobs), "")
        for job in jobs.values():
            if known := preparation.cases.get(job.origin):
                preparation.forget(known)
        for outcome in in_processes(convert, list(jobs.values()), processes, killed):
            keep_record(preparation.root, outcome)
            preparation.enter(outcome)
            del jobs[outcome.name]
            yield total, next(iter(jobs), "")
        preparation.look_across()
        preparation.sweep()
        if not preparation.was_complete or preparation.table() != before:
            draw(preparation)
        complete = True
    finally:
        preparation.save_state(complete)
    forget_records(preparation.root)


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


def lock(root: Path) -> FileLock:
    """A lock that makes several preparations of one folder wait for each other."""
    root.mkdir(parents=True, exist_ok=True)
    return FileLock(root / ".lock")
