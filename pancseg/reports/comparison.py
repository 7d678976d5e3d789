"""Runs on the same patients, paired: which configuration is better, and is it more than chance?"""

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

HELD_OUT = {True: "yes", False: "NO", None: "not known"}
Found = dict[str, Any]


@dataclass(frozen=True)
class ScoredRun:
    """Scores of a run, or of masks of other tools, which are external."""

    folder: Path
    name: str
    is_external: bool
    figures: dict[str, Any]
    values: pd.DataFrame  # a row a patient, a column a measure
    seen: set[str]  # patients used in training
    seed: int | None
    kind: list[Any]  # equal in repetitions with other seeds


def compare_runs(folders: Sequence[str], subset: str, measures: Sequence[str]) -> Found:
    """Compare scored runs and masks of other tools, paired by patient; return plain values.

    Args:
        folders: Runs, sweeps, or outputs of ``evaluate predictions=``; at least two.
        subset: Of the runs; masks of other tools are compared on the same patients.
        measures: Columns of the scores table; at least one.

    Raises:
        PancsegError: If there is nothing to compare, or runs were scored on other patients.
    """
    if len(folders) < 2 or not measures:
        raise PancsegError(f"runs={folders}: expected two folders or more, and a measure or more")
    runs = [read_scored(Path(folder), subset, list(measures)) for folder in folders]
    patients = common_patients(runs)
    groups = group_by_seed([replace(run, values=run.values.loc[patients]) for run in runs])
    names = [group[0].name for group in groups]
    names = [f"{s} ({i})" if names.count(s) > 1 else s for i, s in enumerate(names, start=1)]
    found = [describe_group(*pair) for pair in zip(names, groups, strict=True)]
    tests = [
        compare(measure, a["name"], b["name"], a["values"][measure], b["values"][measure])
        for a, b in combinations(found, 2)
        for measure in measures
    ]
    corrected = zip(tests, holm([test.p for test in tests]), strict=True)
    return {
        "subset": subset,
        "phantoms": any(run.figures["phantoms"] for run in runs),
        "held_out": all_held_out(runs),
        "measures": list(measures),
        "patients": patients,
        "configurations": found,
        "comparisons": [asdict(replace(test, p_holm=p)) for test, p in corrected],
        "warnings": [
            f"{run.folder}: trained on, or was chosen by, {len(seen)} of the patients it is "
            f"compared on ({some(seen)})"
            for run in runs
            if (seen := run.seen.intersection(patients))
        ],
    }


def read_scored(folder: Path, subset: str, measures: list[str]) -> ScoredRun:
    """Read the scores of a run.

    Raises:
        PancsegError: If it was not scored, or lacks a measure.
    """
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
    keys = ("checkpoint", "checkpoints", "postprocess_origin")
    return ScoredRun(
        folder,
        name=str(figures.get("predictions") or run.name),
        is_external=not run.parts,
        figures=figures,
        values=values,
        # in a k-fold sweep each patient is held out of the network that segmented it
        seen=run.trained_on() - set(values.index if figures["held_out"] else ()),
        seed=run.composed().get("seed"),
        kind=[run.configuration(), *(figures.get(key) for key in keys)],
    )


def common_patients(runs: Sequence[ScoredRun]) -> list[str]:
    """Patients to compare on: those of each run; masks of other tools may be of more.

    Raises:
        PancsegError: If runs were scored on different patients.
    """
    first = next((run for run in runs if not run.is_external), runs[0])
    patients = set(first.values.index)
    for other in runs:
        others = set(other.values.index)
        differing = patients ^ others
        if other.is_external and not first.is_external:
            differing = patients - others
        if differing:
            leaked = (patients & other.seen) | (others & first.seen)
            leak = f"; {len(leaked)} of them were scored in one run and trained on in the other"
            raise PancsegError(
                f"{first.folder} and {other.folder} were not scored on the same patients: "
                f"{len(differing)} are in one of them only ({some(differing)}){leak * bool(leaked)}"
                "; train both with the same split (split=file split.path=RUN/splits.json)"
            )
    return sorted(patients)


def group_by_seed(runs: Sequence[ScoredRun]) -> list[list[ScoredRun]]:
    """Groups of runs that differ only in their seed."""
    groups: list[list[ScoredRun]] = []
    for run in runs:
        for group in groups if run.seed is not None else ():
            if run.kind == group[0].kind and run.seed not in [other.seed for other in group]:
                group.append(run)
                break
        else:
            groups.append([run])
    return groups


def some(patients: set[str]) -> str:
    """Three patients, for a message."""
    return printable(", ".join(sorted(patients)[:3]) + ("..." if len(patients) > 3 else ""))


def all_held_out(runs: Sequence[ScoredRun]) -> bool | None:
    """False if any run was not held out, None if that is not known of a run."""
    values = [run.figures["held_out"] for run in runs]
    return False if False in values else None if None in values else True


def describe_group(name: str, group: Sequence[ScoredRun]) -> Found:
    """Figures of a configuration; the value of a patient is the mean over its seeds."""
    values: pd.DataFrame = sum(run.values for run in group) / len(group)
    means = [run.values.mean() for run in group]
    return {
        "name": name,
        "folders": [str(run.folder) for run in group],
        "seeds": [run.seed for run in group],
        "held_out": all_held_out(group),
        "values": values.to_dict("list"),
        **{
            measure: {
                **describe(values[measure].tolist()),
                "mean_of_each_seed": [float(mean[measure]) for mean in means],
            }
            for measure in values
        },
    }


def configuration_table(found: Found) -> Table:
    """A line a configuration; of several seeds also the mean of each."""
    lines = []
    for configuration in found["configurations"]:
        folders = ", ".join(Path(folder).absolute().name for folder in configuration["folders"])
        seeds = ", ".join(map(format_value, configuration["seeds"]))
        line = [configuration["name"], folders, seeds, HELD_OUT[configuration["held_out"]]]
        for measure in found["measures"]:
            digits, figure = heading(measure)[1], configuration[measure]
            each = ", ".join(format_value(mean, digits) for mean in figure["mean_of_each_seed"])
            interval = format_interval(figure["ci95"], digits)
            text = f"{format_value(figure['mean'], digits)} ({interval})"
            line.append(f"{text}; seeds {each}" if "," in seeds else text)
        lines.append(line)
    heads = ("configuration", "folder", "seed", "held out")
    columns = [Column(name, is_text=True) for name in heads]
    columns += [Column(f"{heading(name)[0]}, mean (95 % interval)") for name in found["measures"]]
    title = tables.console_title(found["subset"], len(found["patients"]), found)
    return Table(title, columns, lines)


def difference_table(found: Found) -> Table:
    """A line a comparison; volumes and counts are higher or lower, not better or worse."""
    lines = []
    for test in found["comparisons"]:
        (title, digits), sign = heading(test["measure"]), tables.direction(test["measure"])
        counts = [str(n) for n in (test["higher"], test["lower"])[:: sign or 1]]
        if not sign:
            counts = [f"{counts[0]} higher", f"{counts[1]} lower"]
        difference = f"{test['difference']:+.{digits}f}"
        interval = format_interval(test["ci95"], digits, "+")
        names = (title, f"{test['other']} minus {test['one']}")
        p = (f"{test[key]:.3g}" for key in ("p", "p_holm"))
        lines.append([*names, test["n"], difference, interval, *counts, *p])
    columns = [Column(name, is_text=True) for name in ("measure", "compared")]
    heads = ("n", "difference", "95 % interval", "better in", "worse in", "p", "p, Holm")
    columns += map(Column, heads)
    return Table("Paired by patient, Wilcoxon's signed-rank test", columns, lines)


def print_comparison(found: Found) -> None:
    """Print the tables of configurations and differences."""
    tables.print_table(configuration_table(found), width=140)
    tables.print_table(difference_table(found), width=140)


def write_comparison(folder: Path, found: Found) -> Path:
    """Write ``comparison.html``, ``.csv`` (a row a patient) and ``.json``; return the page."""
    write_json(folder / "comparison.json", found)
    each, patients, measure = found["configurations"], found["patients"], found["measures"][0]
    columns = {f"{m} {c['name']}": c["values"][m] for m in found["measures"] for c in each}
    frame = pd.DataFrame(columns, index=pd.Index(patients, name="patient")).round(6)
    write_text(folder / "comparison.csv", frame.to_csv(lineterminator="\n"))
    values, (title, digits) = {c["name"]: c["values"][measure] for c in each}, heading(measure)
    sign, figures = tables.direction(measure), []
    if sign == 1:
        text = f"{title} of each configuration, a point a patient."
        figures.append((charts.as_svg(text, charts.plot_boxes, values), text))
    for test in (test for test in found["comparisons"] if test["measure"] == measure):
        differences = np.subtract(values[test["other"]], values[test["one"]])
        text = f"{title}: {test['other']} minus {test['one']}, a bar a patient."
        svg = charts.as_svg(text, charts.plot_differences, differences, sign or 1)
        figures.append((svg, text))
    heads = [Column("patient", is_text=True), *(Column(f"{title}, {n}", digits) for n in values)]
    return page.write_page(
        folder / "comparison.html",
        "comparison.html",
        "Comparison: " + ", ".join(values),
        banners=page.banners_of(found["phantoms"], found["held_out"]),
        subset=found["subset"],
        people=tables.people_of(found),
        warnings=found["warnings"],
        configurations=configuration_table(found),
        differences=difference_table(found),
        charts=figures,
        patients=Table("Patients", heads, list(zip(patients, *values.values(), strict=True))),
    )
