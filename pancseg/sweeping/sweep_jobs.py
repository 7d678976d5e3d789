"""The jobs of a sweep, read from what they left in their folders."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pancseg.configuration import JOB, changes_result
from pancseg.errors import PancsegError
from pancseg.failure import FAILED, SUMMARY
from pancseg.output.run_files import Run, read_yaml
from pancseg.sweeping.job import read_if_there
from pancseg.sweeping.search_space import as_value

SETTINGS = ".hydra"


@dataclass(frozen=True)
class Job:
    """A job of a sweep.

    Attributes:
        folder: Its own.
        params: Its overrides by key, without those that change no result.
        status: ``done``, ``pruned``, ``failed`` or ``unfinished``.
        dice: ``val/dice`` of its best epoch.
        best_epoch: Which that is.
        epochs: That it trained.
        seconds: That its epochs took.
        error: What ended it, in one line.
        summary: ``summary.json``, empty where it has none.
    """

    folder: Path
    params: dict[str, Any]
    status: str
    dice: float | None
    best_epoch: int | None
    epochs: int
    seconds: float
    error: str
    summary: dict[str, Any]


def read_sweep(folder: Path) -> list[Job]:
    """Read the jobs of a sweep, in the order of their numbers.

    Raises:
        PancsegError: If the folder holds none.
    """
    if not folder.is_dir():
        raise PancsegError(f"sweep={folder}: there is no such folder")
    found = [
        one
        for one in folder.iterdir()
        if one.is_dir() and any((one / name).is_file() for name in (JOB, SUMMARY, FAILED))
    ]
    if not found:
        raise PancsegError(
            f"sweep={folder}: is no folder of a sweep: no folder in it holds {JOB}, {SUMMARY} "
            f"or {FAILED}"
        )
    return [read_job(one) for one in sorted(found, key=number_of)]


def number_of(folder: Path) -> tuple[int, str]:
    """What a job is sorted by.

    >>> number_of(Path("trial_0012")), number_of(Path("7"))
    ((12, 'trial_0012'), (7, '7'))
    """
    digits = re.search(r"\d+$", folder.name)
    return int(digits[0]) if digits else -1, folder.name


def read_job(folder: Path) -> Job:
    """Read one job."""
    summary, failure = read_if_there(folder / SUMMARY), read_if_there(folder / FAILED)
    rows = Run(folder, [folder]).history()
    scores = {int(row["epoch"]): row["val/dice"] for row in rows if row["val/dice"] is not None}
    best = max(scores, key=lambda epoch: scores[epoch]) if scores else None
    status = "failed" if failure else "unfinished"
    if summary:
        status = "pruned" if summary.get("ended") == "pruned" else "done"
    return Job(
        folder=folder,
        params=params_of(folder, failure),
        status=status,
        dice=summary["best_dice"] if summary else scores.get(best or 0),
        best_epoch=summary["best_epoch"] if summary else best,
        epochs=int(rows[-1]["epoch"]) if rows else 0,
        seconds=round(sum(row["seconds"] for row in rows), 1),
        error="" if summary else failure.get("error", ""),
        summary=summary,
    )


def params_of(folder: Path, failure: dict[str, Any]) -> dict[str, Any]:
    """Overrides of a job by key; a job that was never composed has them in its failure."""
    path = folder / SETTINGS / "overrides.yaml"
    words = read_yaml(path, list) if path.is_file() else failure.get("overrides", [])
    pairs = (str(word).lstrip("+").partition("=") for word in words)
    return {
        key: as_value(value)
        for key, _, value in pairs
        if changes_result(key) and not key.startswith(("hydra.", "hydra/"))
    }


def varied(jobs: list[Job]) -> list[str]:
    """Keys in which jobs differ, in the order they were given."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.params))
    return [key for key in keys if len({str(job.params.get(key)) for job in jobs}) > 1]


def best_of(jobs: list[Job]) -> Job | None:
    """The job with the highest ``val/dice`` among those that came to their end."""
    done = [job for job in jobs if job.status == "done" and job.dice is not None]
    return max(done, key=lambda job: job.dice or 0.0, default=None)
