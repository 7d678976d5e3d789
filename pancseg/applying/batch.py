"""Many scans: the next one is read and the last one written while the network works."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from pancseg.applying.scan_progress import Job, Progress
from pancseg.applying.scan_run import ScanRun
from pancseg.output.prediction_table import Prediction

AHEAD_MB = 150  # of files: a larger scan is read when its turn comes, so that one is held at a time


def segment_each(run: ScanRun, jobs: Iterable[Job]) -> Iterator[Prediction]:
    """Segment scans one after the other; rows come in their order, each once it is written.

    Raises:
        Incomplete: If nothing more can be written; what is done is done.
    """
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        writing: Future[Prediction] | None = None
        for progress in read_ahead(run, jobs, reader):
            if writing and progress.is_large:
                yield writing.result()
                writing = None
            found = run.look(progress)
            if writing:
                yield writing.result()
            writing = writer.submit(run.finish, found)
            del progress, found
        if writing:
            yield writing.result()


def read_ahead(run: ScanRun, jobs: Iterable[Job], reader: ThreadPoolExecutor) -> Iterator[Progress]:
    """Scans in order, a small one read before it is asked for."""
    ahead: Future[Progress] | None = None
    coming = iter(jobs)  # which may take a scan from other workers: one more than is worked on
    job = next(coming, None)
    while job is not None:
        progress = ahead.result() if ahead else run.read(job)
        following = next(coming, None)
        small = following is not None and size_mb(following) <= AHEAD_MB
        ahead = reader.submit(run.read, following) if small and following else None
        yield progress
        del progress
        job = following


def size_mb(job: Job) -> float:
    """Of a scan's files; nothing where they are gone."""
    try:
        return sum(file.stat().st_size for file in job.candidate.files) / 1e6
    except OSError:
        return 0.0
