"""Runs on the same test patients: which configuration is better, and is it more than chance?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from pancseg.errors import PancsegError
from pancseg.output.run_files import Run, open_run
from pancseg.scoring.comparison import Comparison, compare, holm
from pancseg.scoring.score_file import by_patient
from pancseg.scoring.statistics import describe

NAMED = 3  # patients in a message


@dataclass(frozen=True)
class Scored:
    """A run with what ``evaluate`` found.

    Attributes:
        run: Its folder.
        figures: ``scores/<subset>.json``.
        values: A value a patient, by measure.
    """

    run: Run
    figures: dict[str, Any]
    values: dict[str, dict[str, float]]

    @property
    def kind(self) -> list[Any]:
        """What has to be equal in repetitions: what was trained, and how it was judged."""
        judged = ("checkpoint", "checkpoints", "postprocess_origin")
        return [self.run.configuration(), *(self.figures[key] for key in judged)]

    @property
    def patients(self) -> list[str]:
        """Who has scores, sorted."""
        return sorted(next(iter(self.values.values())))


@dataclass(frozen=True)
class Configuration:
    """Runs that differ in nothing but their seed.

    Attributes:
        name: Unique among those compared.
        runs: One a seed.
    """

    name: str
    runs: list[Scored]

    def values(self, measure: str) -> list[float]:
        """A value a patient, the mean over seeds, in order of the patients' names."""
        return [
            sum(one.values[measure][patient] for one in self.runs) / len(self.runs)
            for patient in self.runs[0].patients
        ]

    def as_dict(self, measures: Sequence[str]) -> dict[str, Any]:
        """Plain values: figures over patients, and the mean of each seed."""
        seeds = [one.run.seed for one in self.runs]
        return {
            "name": self.name,
            "folders": [str(one.run.folder) for one in self.runs],
            "seeds": seeds,
            "held_out": all(one.figures["held_out"] for one in self.runs),
            **{
                measure: {
                    **describe(self.values(measure)),
                    "mean_of_each_seed": [one.figures[measure]["mean"] for one in self.runs],
                }
                for measure in measures
            },
        }


def compare_runs(runs: list[str], subset: str, measures: list[str]) -> dict[str, Any]:
    """Compare scored runs, patients paired.

    Args:
        runs: Folders of runs or sweeps, two or more.
        subset: Whose scores.
        measures: Columns of ``scores/<subset>.csv``, one or more.

    Returns:
        Plain values, as :func:`pancseg.output.comparison_report.write_comparison` takes them.

    Raises:
        PancsegError: If there is nothing to compare, or runs were scored on other patients.
    """
    if len(runs) < 2 or not measures:
        raise PancsegError(f"runs={runs}: two or more are compared, by one measure or more")
    scored = [read_scored(open_run(Path(one), "runs"), subset, measures) for one in runs]
    check_same_patients(scored)
    found = configurations(scored)
    return {
        "subset": subset,
        "phantoms": any(one.figures["phantoms"] for one in scored),
        "measures": measures,
        "patients": scored[0].patients,
        "configurations": [
            {**one.as_dict(measures), "values": {m: one.values(m) for m in measures}}
            for one in found
        ],
        "comparisons": [asdict(one) for one in compare_all(found, measures)],
        "warnings": warnings_of(scored),
    }


def read_scored(run: Run, subset: str, measures: Sequence[str]) -> Scored:
    """Read the scores of a run.

    Raises:
        PancsegError: If it was not scored, or lacks a measure.
    """
    figures, rows = run.figures(subset), run.rows(subset)
    if not by_patient(rows, "dice"):
        raise PancsegError(f"{run.folder}: no case of {subset} has a reference to score against")
    lacking = [measure for measure in measures if measure not in figures or measure not in rows[0]]
    if lacking:
        raise PancsegError(
            f"{run.folder}: its scores have no {', '.join(lacking)}; run pancseg.evaluate again, "
            "or give other measures=[...]"
        )
    return Scored(run, figures, {measure: by_patient(rows, measure) for measure in measures})


def check_same_patients(runs: Sequence[Scored]) -> None:
    """Check that all were scored on the same patients.

    Raises:
        PancsegError: If not, naming some, and how many of them the other run trained on.
    """
    first = runs[0]
    for other in runs[1:]:
        differing = sorted({*first.patients} ^ {*other.patients})
        if not differing:
            continue
        seen = overlap(first, other) | overlap(other, first)
        leak = (
            f"; {len(seen)} of them one run was scored on and the other trained on" if seen else ""
        )
        raise PancsegError(
            f"{first.run.folder} and {other.run.folder} were not scored on the same patients: "
            f"{len(differing)} are in one of them only, such as {', '.join(differing[:NAMED])}"
            f"{leak}; train both with the same split (split=file split.path=RUN/splits.json)"
        )


def overlap(scored: Scored, trained: Scored) -> set[str]:
    """Patients whom one run was scored on and another trained on or chose by.

    Of a k-fold sweep, whoever was held out of the run that judged them is not among them.
    """
    held_out = set(trained.patients) if trained.figures["held_out"] else set()
    return (set(scored.patients) & trained.run.trained_on()) - held_out


def warnings_of(runs: Sequence[Scored]) -> list[str]:
    """What makes a comparison unfair, in sentences."""
    said = []
    for one in runs:
        seen = sorted(set().union(*(overlap(other, one) for other in runs)))
        if seen:
            names = ", ".join(seen[:NAMED]) + ("..." if len(seen) > NAMED else "")
            said.append(
                f"{one.run.folder}: trained on, or chose by, {len(seen)} of the patients it is "
                f"compared on ({names})"
            )
    return list(dict.fromkeys(said))


def configurations(runs: Sequence[Scored]) -> list[Configuration]:
    """Put runs together that differ in their seed alone, each group under a name of its own."""
    groups: list[list[Scored]] = []
    for one in runs:
        for group in groups:
            same = group[0].kind == one.kind
            if same and one.run.composed() and one.run.seed not in [o.run.seed for o in group]:
                group.append(one)
                break
        else:
            groups.append([one])
    names = unique([(group[0].run.name, group[0].run.folder.name) for group in groups])
    return [Configuration(name, group) for name, group in zip(names, groups, strict=True)]


def unique(named: Sequence[tuple[str, str]]) -> list[str]:
    """Names that tell apart: the name, the folder beside it where needed, else a number.

    >>> unique([("strong", "a"), ("strong", "b"), ("demo", "c"), ("demo", "c")])
    ['strong a', 'strong b', 'demo (1)', 'demo (2)']
    """
    short = [name for name, _ in named]
    told = [
        f"{name} {folder}" if short.count(name) > 1 and named.count((name, folder)) == 1 else name
        for name, folder in named
    ]
    return [
        f"{name} ({told[: i + 1].count(name)})" if told.count(name) > 1 else name
        for i, name in enumerate(told)
    ]


def compare_all(found: Sequence[Configuration], measures: Sequence[str]) -> list[Comparison]:
    """Compare every two configurations by every measure; p values corrected for all together."""
    made = [
        compare(measure, one.name, other.name, one.values(measure), other.values(measure))
        for one, other in combinations(found, 2)
        for measure in measures
    ]
    corrected = holm([one.p for one in made])
    return [replace(one, p_holm=p) for one, p in zip(made, corrected, strict=True)]
