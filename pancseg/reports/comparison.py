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
from pancseg.reports.run_folder import Run, open_run
from pancseg.reports.tables import Column, Table, TextColumn, format_interval, heading

log = logging.getLogger(__name__)
HELD_OUT = {True: "yes", False: "NO", None: "not known"}
Comparison = dict[str, Any]


@dataclass(frozen=True)
class ScoredRun:
    """Scores of a run, or of masks of other tools."""

    run: Run
    figures: dict[str, Any]
    values: pd.DataFrame  # a row a patient, a column a measure (and structure: ``dice liver``)
    seen: set[str]  # patients used in training


def report_comparison(
    folders: Sequence[str], subset: str, measures: Sequence[str], output: Path
) -> Path:
    """Print a comparison; write ``comparison.csv`` (a row a patient), ``.json`` and the page.

    ``folders`` are runs, sweeps, or outputs of ``evaluate predictions=``, which are compared on the
    patients of the runs; ``measures`` are columns of the scores table. Return the page's path.

    Raises:
        PancsegError: If there is nothing to compare, or runs were scored on other patients.
    """
    compared = compare_runs(folders, subset, measures)
    for warning in compared["warnings"]:
        log.warning(warning)
    runs, differences = run_table(compared), difference_table(compared)
    for table in (runs, differences):
        tables.print_table(table, width=140)
    write_json(output / "comparison.json", compared)
    values = {run["name"]: run["values"] for run in compared["runs"]}
    columns = {f"{m} {name}": values[name][m] for m in compared["measures"] for name in values}
    patients = compared["patients"]
    frame = pd.DataFrame(columns, pd.Index(patients, name="patient")).round(6)
    write_text(output / "comparison.csv", frame.to_csv(lineterminator="\n"))
    plots: dict[str, Any] = {}
    heads, cells = [TextColumn("patient")], [patients]
    for measure in (m for m in compared["measures"] if m.partition(" ")[0] == measures[0]):
        (title, digits), sign = heading(measure), tables.direction(measure)
        cells += [values[name][measure] for name in values]
        heads += [Column(f"{title}, {name}", digits) for name in values]
        first = {name: [v for v in values[name][measure] if v is not None] for name in values}
        if sign == 1:
            plots[f"{title} of each run, one point per patient."] = charts.plot_boxes, first
        for baseline, candidate in combinations(first, 2):
            text = f"{title}: {candidate} minus {baseline}, one bar per patient."
            change = np.subtract(first[candidate], first[baseline])
            plots[text] = charts.plot_differences, change, sign or 1
    return page.write_page(
        output / "comparison.html", "comparison.html", f"Comparison: {', '.join(first)}",
        banners=page.banners_of(compared["phantoms"], compared["held_out"]), compared=compared,
        people=tables.people_of(compared), runs=runs, differences=differences,
        charts=[(charts.as_svg(text, *plot), text) for text, plot in plots.items()],
        patients=Table("Patients", heads, list(zip(*cells, strict=True))),
    )  # fmt: skip


def compare_runs(folders: Sequence[str], subset: str, measures: Sequence[str]) -> Comparison:
    """Compare runs, paired by patient; return plain values."""
    if len(folders) < 2:
        raise PancsegError(f"runs={folders}: expected two folders or more")
    if not measures:
        raise PancsegError("measures=[]: expected columns of the scores, such as measures=[dice]")
    runs = [read_scored(Path(folder), subset, measures) for folder in folders]
    structures = [", ".join(sorted(r.figures.get("structures", ["a single one"]))) for r in runs]
    if len(set(structures)) > 1:
        named = printable("; ".join(map("{}: {}".format, folders, structures)))
        raise PancsegError(f"runs: expected scores of the same structures ({named})")
    patients_of = {m: p for m in runs[0].values if (p := common_patients(runs, m))}
    patients = sorted(set().union(*patients_of.values()))
    names = [str(scored.figures.get("predictions") or scored.run.name) for scored in runs]
    names = [f"{s} ({i})" if names.count(s) > 1 else s for i, s in enumerate(names, start=1)]
    values = [
        {m: scored.values.loc[patients_of[m], m].to_dict() for m in patients_of} for scored in runs
    ]
    tests = [
        compare(m, names[i], names[j], [*values[i][m].values()], [*values[j][m].values()])
        for i, j in combinations(range(len(runs)), 2)
        for m in patients_of
    ]
    corrected = zip(tests, holm([test.p for test in tests]), strict=True)
    held_out = [scored.figures["held_out"] for scored in runs]
    return {
        "subset": subset,
        "phantoms": any(scored.figures["phantoms"] for scored in runs),
        "held_out": min(held_out, key=[False, None, True].index),
        "measures": list(patients_of),
        "patients": patients,
        "runs": [
            {"name": name, "folder": str(scored.run.folder), "held_out": known,
             "values": {measure: [*map(v[measure].get, patients)] for measure in v},
             **{measure: describe([*v[measure].values()]) for measure in v}}
            for name, scored, known, v in zip(names, runs, held_out, values, strict=True)
        ],
        "comparisons": [asdict(replace(test, p_holm=p)) for test, p in corrected],
        "warnings": [
            f"{scored.run.folder}: trained on, or was chosen by, {len(seen)} of the patients it is "
            f"compared on ({first_three(seen)})"
            for scored in runs
            if (seen := scored.seen.intersection(patients))
        ],
    }  # fmt: skip


def read_scored(folder: Path, subset: str, measures: Sequence[str]) -> ScoredRun:
    """Read the scores of a run; refuse one that was not scored, or lacks a measure."""
    run = open_run(folder, "runs")
    figures, rows = run.figures(subset), run.rows(subset)
    numbers = [name for name in measures if name in rows[0] and name not in TEXT_COLUMNS]
    columns = {
        f"{name} {structure}".rstrip(): by_patient(part, name)
        for structure, part, _ in tables.by_structure(rows, figures)
        for name in numbers
    }
    scored = {column.partition(" ")[0] for column in columns if columns[column]}
    if missing := [name for name in measures if name not in scored]:
        raise PancsegError(
            f"{folder}: its scores of {subset} have no {', '.join(missing)}; run pancseg.evaluate "
            "again, or give other measures=[...]"
        )
    values = pd.DataFrame(columns)
    # in a k-fold sweep each patient is held out of the network that segmented it
    seen = run.trained_on() - set(values.index if figures["held_out"] else ())
    return ScoredRun(run, figures, values, seen)


def common_patients(runs: Sequence[ScoredRun], measure: str) -> list[str]:
    """Patients of each run, which must be the same; masks of other tools may be of more."""
    first = next((scored for scored in runs if scored.run.run_folders), runs[0])
    patients = set(first.values[measure].dropna().index)
    for other in runs:
        others = set(other.values[measure].dropna().index)
        may_have_more = first.run.run_folders and not other.run.run_folders
        if differing := patients - others if may_have_more else patients ^ others:
            leaked = (patients & other.seen) | (others & first.seen)
            leak = f"; {len(leaked)} of them were scored in one run and trained on in the other"
            raise PancsegError(
                f"{first.run.folder} and {other.run.folder} were not scored on the same patients: "
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
    columns, measures = [*map(TextColumn, ("run", "folder", "held out"))], compared["measures"]
    columns += [Column(f"{heading(measure)[0]}, mean (95 % interval)") for measure in measures]
    lines = []
    for run in compared["runs"]:
        lines.append([run["name"], Path(run["folder"]).absolute().name, HELD_OUT[run["held_out"]]])
        for measure in measures:
            digits, figure = heading(measure)[1], run[measure]
            interval = format_interval(figure["ci95"], digits)
            lines[-1].append(f"{figure['mean']:.{digits}f} ({interval})")
    title = tables.console_title(compared["subset"], len(compared["patients"]), compared)
    return Table(title, columns, lines)


def difference_table(compared: Comparison) -> Table:
    """A line a test; volumes and counts are higher or lower, not better or worse."""
    lines = []
    for test in compared["comparisons"]:
        (title, digits), sign = heading(test["measure"]), tables.direction(test["measure"])
        counts = [f"{test[key]}{'' if sign else f' {key}'}" for key in ("higher", "lower")]
        names = (title, f"{test['other']} minus {test['one']}")
        change = f"{test['difference']:+.{digits}f}", format_interval(test["ci95"], digits, "+")
        p = (f"{test[key]:.3g}" for key in ("p", "p_holm"))
        lines.append([*names, test["n"], *change, *counts[:: sign or 1], *p])
    heads = ("n", "difference", "95 % interval", "better in", "worse in", "p", "p, Holm")
    columns = [*map(TextColumn, ("measure", "compared")), *map(Column, heads)]
    return Table("Paired by patient, Wilcoxon's signed-rank test", columns, lines)
