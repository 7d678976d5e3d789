"""Runs on the same patients, paired: which is better, and is it more than chance?"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pancseg.errors import PancsegError, printable
from pancseg.files import write_json, write_text
from pancseg.metrics.statistics import compare, describe, holm
from pancseg.metrics.tables import TEXT_COLUMNS, by_patient
from pancseg.reports import charts, page, tables
from pancseg.reports.run_folder import open_run
from pancseg.reports.tables import Column, Table, format_interval, format_value, heading

log = logging.getLogger(__name__)
HELD_OUT = {True: "yes", False: "NO", None: "not known"}
Comparison = dict[str, Any]


@dataclass(frozen=True)
class ScoredRun:
    """Scores of a run, or of masks of other tools, which are external."""

    folder: Path
    name: str
    is_external: bool
    figures: dict[str, Any]
    values: pd.DataFrame  # a row a patient, a column a measure
    seen: set[str]  # patients used in training


def report_comparison(
    folders: Sequence[str], subset: str, measures: Sequence[str], output: Path
) -> Path:
    """Print a comparison; write ``comparison.csv``, ``.json`` and the page; return its path.

    ``folders`` are runs, sweeps, or outputs of ``evaluate predictions=``, which are compared on the
    patients of the runs; ``measures`` are columns of the scores table.

    Raises:
        PancsegError: If there is nothing to compare, or runs were scored on other patients.
    """
    compared = compare_runs(folders, subset, measures)
    for warning in compared["warnings"]:
        log.warning(warning)
    for table in (run_table(compared), difference_table(compared)):
        tables.print_table(table, width=140)
    return write_comparison(output, compared)


def compare_runs(folders: Sequence[str], subset: str, measures: Sequence[str]) -> Comparison:
    """Compare runs, paired by patient; return plain values."""
    if len(folders) < 2 or not measures:
        raise PancsegError(f"runs={folders}: expected two folders or more, and a measure or more")
    runs = [read_scored(Path(folder), subset, measures) for folder in folders]
    patients = common_patients(runs)
    names = [run.name for run in runs]
    names = [f"{s} ({i})" if names.count(s) > 1 else s for i, s in enumerate(names, start=1)]
    values = [run.values.loc[patients].to_dict("list") for run in runs]
    tests = [
        compare(measure, names[i], names[j], values[i][measure], values[j][measure])
        for i, j in combinations(range(len(runs)), 2)
        for measure in measures
    ]
    corrected = zip(tests, holm([test.p for test in tests]), strict=True)
    held_out = {run.figures["held_out"] for run in runs}
    about = [{"folder": str(run.folder), "held_out": run.figures["held_out"]} for run in runs]
    return {
        "subset": subset,
        "phantoms": any(run.figures["phantoms"] for run in runs),
        "held_out": False if False in held_out else None if None in held_out else True,
        "measures": list(measures),
        "patients": patients,
        "runs": [
            {"name": name, **facts, "values": v, **{measure: describe(v[measure]) for measure in v}}
            for name, facts, v in zip(names, about, values, strict=True)
        ],
        "comparisons": [asdict(replace(test, p_holm=p)) for test, p in corrected],
        "warnings": [
            f"{run.folder}: trained on, or was chosen by, {len(seen)} of the patients it is "
            f"compared on ({first_three(seen)})"
            for run in runs
            if (seen := run.seen.intersection(patients))
        ],
    }


def read_scored(folder: Path, subset: str, measures: Sequence[str]) -> ScoredRun:
    """Read the scores of a run; refuse one that was not scored, or lacks a measure."""
    run = open_run(folder, "runs")
    figures, rows = run.figures(subset), run.rows(subset)
    numbers = [name for name in measures if name in rows[0] and name not in TEXT_COLUMNS]
    columns = {name: by_patient(rows, name) for name in numbers}
    if missing := [name for name in measures if not columns.get(name)]:
        raise PancsegError(
            f"{folder}: its scores of {subset} have no {', '.join(missing)}; run pancseg.evaluate "
            "again, or give other measures=[...]"
        )
    values = pd.DataFrame(columns)
    # in a k-fold sweep each patient is held out of the network that segmented it
    seen = run.trained_on() - set(values.index if figures["held_out"] else ())
    name = str(figures.get("predictions") or run.name)
    return ScoredRun(folder, name, not run.run_folders, figures, values, seen)


def common_patients(runs: Sequence[ScoredRun]) -> list[str]:
    """Patients to compare on: those of each run; masks of other tools may be of more.

    Raises:
        PancsegError: If runs were scored on different patients.
    """
    first = next((run for run in runs if not run.is_external), runs[0])
    patients = set(first.values.index)
    for other in runs:
        others = set(other.values.index)
        may_have_more = other.is_external and not first.is_external
        if differing := patients - others if may_have_more else patients ^ others:
            leaked = (patients & other.seen) | (others & first.seen)
            leak = f"; {len(leaked)} of them were scored in one run and trained on in the other"
            raise PancsegError(
                f"{first.folder} and {other.folder} were not scored on the same patients: "
                f"{len(differing)} are in one of them only ({first_three(differing)})"
                + leak * bool(leaked)
                + "; train both with the same split (split=file split.path=RUN/splits.json)"
            )
    return sorted(patients)


def first_three(patients: set[str]) -> str:
    """Names for a message."""
    return printable(", ".join(sorted(patients)[:3]) + ("..." if len(patients) > 3 else ""))


def run_table(compared: Comparison) -> Table:
    """A line a run: means with intervals."""
    lines, columns = [], [Column(name, is_text=True) for name in ("run", "folder", "held out")]
    for run in compared["runs"]:
        line = [run["name"], Path(run["folder"]).absolute().name, HELD_OUT[run["held_out"]]]
        for measure in compared["measures"]:
            digits, figure = heading(measure)[1], run[measure]
            interval = format_interval(figure["ci95"], digits)
            line.append(f"{format_value(figure['mean'], digits)} ({interval})")
        lines.append(line)
    for measure in compared["measures"]:
        columns.append(Column(f"{heading(measure)[0]}, mean (95 % interval)"))
    title = tables.console_title(compared["subset"], len(compared["patients"]), compared)
    return Table(title, columns, lines)


def difference_table(compared: Comparison) -> Table:
    """A line a test; volumes and counts are higher or lower, not better or worse."""
    lines = []
    for test in compared["comparisons"]:
        (title, digits), sign = heading(test["measure"]), tables.direction(test["measure"])
        counts = [str(n) for n in (test["higher"], test["lower"])[:: sign or 1]]
        if not sign:
            counts = [f"{counts[0]} higher", f"{counts[1]} lower"]
        difference = f"{test['difference']:+.{digits}f}"
        interval = format_interval(test["ci95"], digits, "+")
        names = (title, f"{test['other']} minus {test['one']}")
        p = (f"{test[key]:.3g}" for key in ("p", "p_holm"))
        lines.append([*names, test["n"], difference, interval, *counts, *p])
    heads = ("n", "difference", "95 % interval", "better in", "worse in", "p", "p, Holm")
    columns = [Column("measure", is_text=True), Column("compared", is_text=True)]
    title = "Paired by patient, Wilcoxon's signed-rank test"
    return Table(title, [*columns, *map(Column, heads)], lines)


def write_comparison(folder: Path, compared: Comparison) -> Path:
    """Write ``comparison.html``, ``.csv`` (a row a patient) and ``.json``; return the page."""
    write_json(folder / "comparison.json", compared)
    runs, patients, measures = compared["runs"], compared["patients"], compared["measures"]
    columns = {f"{m} {run['name']}": run["values"][m] for m in measures for run in runs}
    frame = pd.DataFrame(columns, index=pd.Index(patients, name="patient")).round(6)
    write_text(folder / "comparison.csv", frame.to_csv(lineterminator="\n"))
    (title, digits), sign = heading(measures[0]), tables.direction(measures[0])
    values, figures = {run["name"]: run["values"][measures[0]] for run in runs}, []
    if sign == 1:
        text = f"{title} of each run, a point a patient."
        figures.append((charts.as_svg(text, charts.plot_boxes, values), text))
    for baseline, candidate in combinations(values, 2):
        differences = np.subtract(values[candidate], values[baseline])
        text = f"{title}: {candidate} minus {baseline}, a bar a patient."
        svg = charts.as_svg(text, charts.plot_differences, differences, sign or 1)
        figures.append((svg, text))
    heads = [Column("patient", is_text=True), *(Column(f"{title}, {n}", digits) for n in values)]
    return page.write_page(
        folder / "comparison.html",
        "comparison.html",
        "Comparison: " + ", ".join(values),
        banners=page.banners_of(compared["phantoms"], compared["held_out"]),
        people=tables.people_of(compared),
        compared=compared,
        runs=run_table(compared),
        differences=difference_table(compared),
        charts=figures,
        patients=Table("Patients", heads, list(zip(patients, *values.values(), strict=True))),
    )
