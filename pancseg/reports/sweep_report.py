"""Report of a sweep: a table, a page with Optuna's charts, and the best job as an experiment.

The sweep may be a stranger's: links are not followed, and the experiment can build no object.
"""

import base64
import io
import json
import logging
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from matplotlib import pyplot as plt

from pancseg.config import SUMMARY, changes_result, conf_folder
from pancseg.errors import PancsegError, printable
from pancseg.files import read_json, write_csv, write_json, write_text
from pancseg.reports.page import banners_of, write_page
from pancseg.reports.run_folder import is_inside, read_yaml
from pancseg.reports.tables import Column, Table, print_table

log = logging.getLogger(__name__)
OVERRIDES = Path(".hydra", "overrides.yaml")
NUMBERS = ("best_dice", "best_epoch", "epochs", "seconds")  # of summary.json
CHOICE = re.compile(r"\w[\w-]*(/\w[\w-]*)*")
KEY = re.compile(r"(?!hydra\b|defaults\b)[A-Za-z]\w*(\.[A-Za-z0-9]\w*)*")  # no part as _target_
HEADER = """# @package _global_
# {}, the best job of a sweep: val/dice {:.4f}, which chose it and is not held out.
# Other overrides that all jobs had are not in this file: give them again.
# python -m pancseg.train experiment=best_experiment data.root=PREPARED
"""


@dataclass(frozen=True)
class Job:
    """A job of a sweep."""

    name: str  # of its folder
    params: dict[str, Any]  # values of its overrides, of those that may change the result
    status: str  # done, pruned or unfinished, which includes failed
    numbers: list[Any]  # NUMBERS, each None where there is none
    phantoms: bool


def report_sweep(folder: Path) -> Path:
    """Print the table of a sweep; write CSV, JSON, the best experiment and a page; return its path.

    Raises:
        PancsegError: If the folder holds no jobs, or a damaged file.
    """
    jobs = read_jobs(folder)
    keys = dict.fromkeys(key for job in jobs for key in job.params)
    varied = [key for key in keys if len({cell(job.params.get(key)) for job in jobs}) > 1]
    scored = [job for job in jobs if job.status == "done" and job.numbers[0] is not None]
    best = max(scored, key=lambda job: job.numbers[0], default=None)
    counts = Counter(job.status for job in jobs)
    headline = f"{len(jobs)} jobs: {', '.join(f'{n} {status}' for status, n in counts.items())}"
    headline += f"; best {best.name}, val/dice {best.numbers[0]:.4f}, not held out" if best else ""
    heads = ["job", *map(printable, varied), "val/dice", "best epoch", *NUMBERS[2:], "status"]
    params = [[cell(job.params.get(key)) for key in varied] for job in jobs]
    rows = [[j.name, *cells, *j.numbers, j.status] for j, cells in zip(jobs, params, strict=True)]
    shares, charts = draw_charts(scored, varied)
    experiment = write_best_experiment(folder, best, varied) if best else ""
    write_csv(folder / "sweep.csv", heads, rows)
    found = {"jobs": [dict(zip(heads, row, strict=True)) for row in rows], "importances": shares}
    write_json(folder / "sweep.json", {**found, "best": best.name if best else None})
    table = Table(headline, [Column(head, None, head in ("job", "status")) for head in heads], rows)
    print_table(table, width=160)
    banners = banners_of(any(job.phantoms for job in jobs), held_out=True)
    content = {"banners": banners, "jobs": table, "charts": charts, "experiment": experiment}
    title = f"Sweep {printable(folder.absolute().name)}"
    return write_page(folder / "sweep.html", "sweep.html", title, **content)


def read_jobs(folder: Path) -> list[Job]:
    """Read the jobs of a sweep, in the order of their numbers."""
    found = [path for path in folder.glob("*") if is_inside(path / OVERRIDES, folder)]
    if not found:
        raise PancsegError(f"sweep={folder}: no folder in it holds a job's {OVERRIDES}")
    return [read_job(path) for path in sorted(found, key=lambda path: (len(path.name), path.name))]


def read_job(folder: Path) -> Job:
    """Read one job."""
    try:
        texts = [str(text) for text in read_yaml(folder / OVERRIDES, list)]
        overrides = OverridesParser.create().parse_overrides(texts)
        params = {o.get_key_element().lstrip("+"): o.value() for o in overrides}
    except (HydraException, ValueError, RecursionError) as error:
        raise PancsegError(f"{folder / OVERRIDES}: holds no overrides of Hydra") from error
    path = folder / SUMMARY
    summary = read_json(path, "a run's summary") if is_inside(path, folder) else {}
    ended = "pruned" if summary.get("ended") == "pruned" else "done"
    return Job(
        name=printable(folder.name),
        params={key: value for key, value in params.items() if changes_result(key)},
        status=ended if summary else "unfinished",
        numbers=[summary.get(key) if is_number(summary.get(key)) else None for key in NUMBERS],
        phantoms=bool(summary.get("phantoms")),
    )


def is_number(value: Any) -> bool:
    """Whether a value is a number of usual size."""
    return type(value) in (int, float) and abs(value) < 1e15


def cell(value: Any) -> Any:
    """A number as it is, any other value as printable text: ``null`` for None."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return value if is_number(value) else printable(text)


def draw_charts(jobs: list[Job], varied: list[str]) -> tuple[dict[str, float], list[Any]]:
    """Importances of parameters, and charts with captions; none without scored jobs or Optuna."""
    if not jobs or find_spec("optuna") is None:
        return {}, []
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from optuna.visualization import matplotlib as charts

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    dollar = str.maketrans({"$": r"\$"})  # pyplot takes text between two for mathematics
    columns = {key.translate(dollar): [cell(job.params.get(key)) for job in jobs] for key in varied}
    columns = {key: column for key, column in columns.items() if len({*column}) > 1}
    space: dict[str, Any] = {}
    for key, column in columns.items():
        if all(map(is_number, column)):
            low, high = float(min(column)), float(max(column))
            space[key] = FloatDistribution(low, high, log=0 < 10 * low <= high)
        else:
            columns[key] = [str(value).translate(dollar) for value in column]
            space[key] = CategoricalDistribution(list(dict.fromkeys(columns[key])))
    for n, job in enumerate(jobs):
        given: Any = {"params": {key: columns[key][n] for key in space}, "distributions": space}
        study.add_trial(optuna.trial.create_trial(value=job.numbers[0], **given))
    shares: dict[str, float] = {}
    drawn: list[Any] = [("Scores, and the best so far.", charts.plot_optimization_history)]
    with warnings.catch_warnings(), plt.rc_context():  # the charts set a style
        warnings.simplefilter("ignore")  # Optuna marks the charts as experimental
        if space and len(jobs) > 3:  # fewer say nothing about importance
            shares = optuna.importance.get_param_importances(study)
            drawn.append(("Importance of parameters, PED-ANOVA.", charts.plot_param_importances))
        if space:
            drawn.append(("Score against each parameter, a point a job.", charts.plot_slice))
        return shares, [(caption, as_png(draw(study))) for caption, draw in drawn]


def as_png(axes: Any) -> str:
    """Axes of pyplot, or an array of them, as base64 of a PNG file; their figure is closed."""
    figure = getattr(axes, "flat", [axes])[0].figure
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return base64.b64encode(out.getvalue()).decode()


def write_best_experiment(folder: Path, job: Job, varied: list[str]) -> str:
    """Write ``best_experiment.yaml``: what the sweep varied. Return its text, empty if refused."""
    path, defaults = folder / "best_experiment.yaml", base_experiment(job.params.get("experiment"))
    content: dict[str, Any] = {"defaults": defaults}
    for key in (key for key in varied if key in job.params):
        value, is_group = job.params[key], (conf_folder() / key).is_dir()
        is_choice = value is None or CHOICE.fullmatch(str(value))
        if not KEY.fullmatch(key) or not is_plain(value) or (is_group and not is_choice):
            log.warning("%s: not written, because of %s", path, printable(key))
            path.unlink(missing_ok=True)
            return ""
        if is_group:
            defaults += [{f"override /{key}": value}] if key != "experiment" else []
            continue
        node, (*parents, last) = content, key.split(".")
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    defaults.append("_self_")
    text = HEADER.format(job.name, job.numbers[0]) + yaml.safe_dump(content, sort_keys=False)
    write_text(path, text)
    return text


def is_plain(value: Any) -> bool:
    """Whether a value is a scalar or a list, without nodes and interpolations."""
    if isinstance(value, list):
        return all(map(is_plain, value))
    return isinstance(value, str | int | float | None) and "${" not in str(value)


def base_experiment(name: Any) -> list[Any]:
    """Defaults with a sweep's experiment, or with its base if it starts a search by itself."""
    if not CHOICE.fullmatch(str(name or "")):
        return []
    path = conf_folder() / "experiment" / f"{name}.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content["defaults"][:1] if "hydra" in content else [name]
