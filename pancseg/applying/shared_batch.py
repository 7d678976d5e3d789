"""A batch of scans that several workers share: a record a scan, and one table of all."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from filelock import FileLock

from pancseg.applying.batch import segment_each
from pancseg.applying.find_scans import case_names
from pancseg.applying.scan_progress import Job
from pancseg.applying.scan_run import ScanRun, input_of
from pancseg.files import PARTIAL, write_json
from pancseg.intake.types import SourceContents
from pancseg.output.prediction_table import (
    DONE,
    REFUSED,
    Prediction,
    read_predictions,
    write_predictions,
)
from pancseg.sharing import FOLDER, POLL_S, Crew, claim

TABLE_S = 5.0  # at least, between two tables on the way: each holds all rows
ENDING = ".json"


class SharedBatch:
    """Scans, each segmented by one of several workers, and what became of them.

    Args:
        run: Segments a scan.
        jobs: All scans in the order of the table.
        strays: Rows of what is no scan.
    """

    def __init__(self, run: ScanRun, jobs: Sequence[Job], strays: list[Prediction]) -> None:
        self.run = replace(run, keep=self.keep)
        self.jobs = {job.case: job for job in jobs}
        self.strays = strays
        self.folder = run.files.folder
        self.records = self.folder / FOLDER
        self.rows: dict[str, Prediction] = {}
        self.held: dict[str, FileLock] = {}
        self.written_s = float("-inf")
        self.finished = False

    @property
    def word(self) -> str:
        """The same for all workers with the very same scans and options."""
        inputs = [
            (job.case, str(job.candidate.path), input_of(job.candidate))
            for job in self.jobs.values()
        ]
        files = self.run.files
        told = [inputs, self.strays, files.probabilities, files.rtstruct, self.run.doubts]
        return hashlib.sha256(repr(told).encode("utf-8", "surrogateescape")).hexdigest()[:16]

    @property
    def table(self) -> list[Prediction]:
        """All rows so far, in order."""
        return [*(self.rows[case] for case in self.jobs if case in self.rows), *self.strays]

    def begin(self, alone: bool) -> None:
        """Take up what is done; with the folder's lock held.

        Args:
            alone: Whether no other worker is alive. Then what failed before is tried again.
        """
        if alone:
            for path in self.records.glob(f"*{ENDING}"):
                row = self.read(path.name.removesuffix(ENDING))
                if row is None or not self.is_done(row):
                    path.unlink(missing_ok=True)
        earlier = (row for row in read_predictions(self.folder) if row.case in self.jobs)
        self.rows = {row.case: row for row in earlier if row.status == DONE and self.is_done(row)}
        self.look()

    def is_done(self, row: Prediction) -> bool:
        """Whether a row is of the very input, and all that it promises is there."""
        return row.status == DONE and self.run.is_done(self.jobs[row.case].candidate, row)

    def segment(self, crew: Crew) -> Iterator[tuple[int, int, str]]:
        """Segment what no other worker takes, until all is done.

        Yields:
            How many scans are done, how many there are, and what is waited for.

        Raises:
            Incomplete: If nothing more can be written; what is done is done.
        """
        yield len(self.rows), len(self.jobs), ""
        try:
            while len(self.rows) < len(self.jobs):
                before = len(self.rows)
                for row in segment_each(self.run, self.take()):
                    self.rows[row.case] = row
                    if time.monotonic() - self.written_s > TABLE_S:
                        self.write_table(crew)
                    yield len(self.rows), len(self.jobs), ""
                self.look()
                if len(self.rows) == before:
                    left = len(self.jobs) - before
                    yield before, len(self.jobs), f"{left} with other workers"
                    time.sleep(POLL_S)
        except BaseException:
            self.give_back()
            with suppress(OSError):  # there may be no room
                self.write_table(crew)
            raise
        self.write_table(crew)
        self.finished = True

    def take(self) -> Iterator[Job]:
        """Scans that are not done and that no other worker has, each held from here on."""
        for case, job in self.jobs.items():
            if case in self.rows or case in self.held:
                continue
            held = claim(self.folder, case)
            if held is None:
                continue
            if row := self.read(case):  # another one has done it
                held.release()
                self.rows[case] = row
                continue
            self.held[case] = held
            yield job

    def keep(self, row: Prediction) -> None:
        """Write the record of a scan, without paths, and give the scan back: it is done."""
        write_json(
            self.records / f"{row.case}{ENDING}", asdict(replace(row, path="", series_uid=""))
        )
        if held := self.held.pop(row.case, None):
            held.release()

    def give_back(self) -> None:
        """Give back the scans that are held."""
        while self.held:
            self.held.popitem()[1].release()

    def read(self, case: str) -> Prediction | None:
        """The record of a scan of this batch, if there is one."""
        try:
            value = json.loads((self.records / f"{case}{ENDING}").read_text(encoding="utf-8"))
            one = self.jobs[case].candidate
            own = {"case": case, "path": str(one.path), "series_uid": one.series_uid}
            return Prediction(**value | own)
        except (OSError, ValueError, KeyError, TypeError):
            return None  # it is done again

    def look(self) -> None:
        """Take up what others have recorded since."""
        for path in self.records.glob(f"*{ENDING}"):
            case = path.name.removesuffix(ENDING)
            if case not in self.rows and not case.startswith(PARTIAL) and (row := self.read(case)):
                self.rows[case] = row

    def write_table(self, crew: Crew) -> None:
        """Write the table of all that is known."""
        with crew.lock:
            self.look()
            write_predictions(self.folder, self.table)
        self.written_s = time.monotonic()

    def end(self) -> None:
        """Remove the records, which the table holds: nobody else is here."""
        if self.finished:
            for path in self.records.glob("*"):
                path.unlink(missing_ok=True)


def batch_of(run: ScanRun, found: SourceContents, base: Path) -> SharedBatch:
    """All scans that were found, and rows of what is none."""
    names = case_names(found.cases, base)
    jobs = [Job(one, name) for one, name in zip(found.cases, names, strict=True)]
    strays = [Prediction("", str(s.path), status=REFUSED, reason=s.reason) for s in found.skipped]
    return SharedBatch(run, jobs, strays)
