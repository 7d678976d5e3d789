"""The report of a sweep: tables, a page, and the best configuration as an experiment."""

import logging
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from pancseg.files import write_csv, write_json
from pancseg.output import sweep_charts
from pancseg.output.page import banners_of, write_page
from pancseg.sweeping.best_experiment import NAME as BEST_NAME
from pancseg.sweeping.best_experiment import write_best
from pancseg.sweeping.importance import FEWEST, importances, spans_a_decade
from pancseg.sweeping.sweep_jobs import Job, best_of, read_sweep, varied

MEASURED = ("val/dice", "best epoch", "epochs", "seconds", "status", "error")
NOT_SAID = f"What mattered is told from {FEWEST} finished jobs on, where Optuna is installed."
log = logging.getLogger(__name__)
STATES = ("done", "pruned", "failed", "unfinished")


def report_sweep(folder: Path) -> Path:
    """Print the table of a sweep, and write ``sweep.html``, ``.csv``, ``.json`` and the best.

    Args:
        folder: Of the sweep.

    Returns:
        The page.

    Raises:
        PancsegError: If the folder holds no jobs.
    """
    jobs = read_sweep(folder)
    keys, best = varied(jobs), best_of(jobs)
    shares = importances(jobs, keys)
    rows = [row_of(job, keys) for job in jobs]
    heads = ["job", *keys, *MEASURED]
    file = best_file(folder, best) if best else None
    write_csv(folder / "sweep.csv", heads, rows)
    write_json(
        folder / "sweep.json",
        {
            "jobs": [dict(zip(heads, row, strict=True)) for row in rows],
            "importances": shares,
            "best": best and best.folder.name,
        },
    )
    failed = [(job.folder.name, job.error) for job in jobs if job.error]  # long: below the table
    print_table(headline_of(jobs, best), heads[:-1], [row[:-1] for row in rows])
    for name, error in failed:
        print(f"{name} failed: {error}")
    scored = [job for job in jobs if job.dice is not None]
    write_page(
        folder / "sweep.html",
        "sweep.html",
        f"Sweep {folder.absolute().name}",
        banners=banners_of(any(job.summary.get("phantoms") for job in jobs), held_out=True),
        headline=headline_of(jobs, best),
        heads=heads[:-1],
        rows=[[("" if v is None else v, shown(v)) for v in row[:-1]] for row in rows],
        failed=failed,
        progress=Markup(sweep_charts.best_so_far([j.dice for j in jobs])) if scored else None,
        mattered=Markup(sweep_charts.what_mattered(shares)) if shares else None,
        not_said=NOT_SAID,
        scatters=scatters(scored, keys),
        best_file=file.read_text(encoding="utf-8") if file else None,
        best_name=best.folder.name if best else "",
        best_name_of_file=f"{BEST_NAME}.yaml",
    )
    return folder / "sweep.html"


def best_file(folder: Path, best: Job) -> Path | None:
    """The best job as an experiment; none where what it names is no longer there."""
    try:
        return write_best(folder, best)
    except HydraException as error:
        told = " ".join(str(error).split())[:200]
        log.warning("%s: cannot be made an experiment (%s); its .hydra says all", best.folder, told)
        return None


def scatters(jobs: list[Job], keys: list[str]) -> list[tuple[Markup, str]]:
    """A chart a parameter, of the jobs that have it and a score."""
    found = []
    for key in keys:
        pairs = [(job.params[key], job.dice) for job in jobs if key in job.params]
        if pairs:
            values, scores = [value for value, _ in pairs], [dice or 0.0 for _, dice in pairs]
            numbers = all(isinstance(value, (int, float)) for value in values)
            log = numbers and spans_a_decade(values)
            found.append((Markup(sweep_charts.against(key, values, scores, log)), key))
    return found


def row_of(job: Job, keys: list[str]) -> list[Any]:
    """A job's line: its name, what varied, and what came of it."""
    params = [job.params.get(key) for key in keys]
    name = job.folder.name
    return [
        name, *params, job.dice, job.best_epoch, job.epochs, job.seconds, job.status, job.error,
    ]  # fmt: skip


def headline_of(jobs: list[Job], best: Job | None) -> str:
    """How many jobs ended in which way, and the best."""
    counts = {state: sum(job.status == state for job in jobs) for state in STATES}
    told = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    found = f"; best {best.folder.name}, val/dice {best.dice:.4f}, not held out" if best else ""
    return f"{len(jobs)} jobs: {told}{found}"


def shown(value: Any) -> str:
    """A cell's text.

    >>> shown(0.0123456), shown(None), shown("dice")
    ('0.01235', '', 'dice')
    """
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def print_table(title: str, heads: list[str], rows: list[list[Any]]) -> None:
    """Print the table."""
    console = Console(width=None if Console().is_terminal else 160)
    table = Table(title=title)
    for head in heads:
        table.add_column(head, justify="left" if head in ("job", "status") else "right")
    for row in rows:
        table.add_row(*(shown(value) for value in row))
    console.print(table)
