"""Report of a sweep: a table of its jobs, for the console, as a page, CSV and JSON.

The sweep may be a stranger's: links are not followed.
"""

import base64
import io
import json
import warnings
from collections import Counter
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from pancseg.config import SUMMARY, changes_result
from pancseg.errors import PancsegError, printable
from pancseg.files import read_json, write_csv, write_json
from pancseg.reports.page import banners_of, write_page
from pancseg.reports.run_folder import is_inside, read_yaml
from pancseg.reports.tables import Column, Row, Table, print_table

OVERRIDES = Path(".hydra", "overrides.yaml")
NUMBERS = {  # of summary.json, with headings
    "best_dice": "val/dice", "best_epoch": "best epoch", "epochs": "epochs", "seconds": "seconds",
}  # fmt: skip
STATUS = {"trained": "done", "pruned": "pruned"}  # by "ended" of summary.json


def report_sweep(folder: Path) -> Path:
    """Print the table of a sweep; write ``sweep.csv``, ``.json`` and the page; return its path.

    Raises:
        PancsegError: If the folder holds no jobs, or a damaged file.
    """
    paths = [path for path in folder.glob("*") if is_inside(path / OVERRIDES, folder)]
    if not paths:
        raise PancsegError(f"sweep={folder}: no folder in it holds a job's {OVERRIDES}")
    paths.sort(key=lambda path: (len(path.name), path.name))  # in the order of their numbers
    params, files = [read_params(path) for path in paths], [path / SUMMARY for path in paths]
    # a job has none while it is unfinished, or if it failed
    summaries = [read_json(f, "a run's summary") if is_inside(f, folder) else {} for f in files]
    keys = dict.fromkeys(key for values in params for key in values)
    varied = [key for key in keys if len({values.get(key) for values in params}) > 1]
    jobs: list[Row] = [
        {
            "job": printable(path.name),
            **{key: values.get(key, "null") for key in varied},
            **{name: number_or_none(summary.get(key)) for key, name in NUMBERS.items()},
            "status": STATUS.get(str(summary.get("ended")), "unfinished"),
        }
        for path, values, summary in zip(paths, params, summaries, strict=True)
    ]
    scored = [job for job in jobs if job["status"] == "done" and job["val/dice"] is not None]
    best = max(scored, key=lambda job: job["val/dice"], default=None)
    counts = Counter(job["status"] for job in jobs)
    title = f"{len(jobs)} jobs: {', '.join(f'{n} {status}' for status, n in counts.items())}"
    if best:
        title += f"; best {best['job']}, val/dice {best['val/dice']:.4f}, not held out"
    columns = [Column(name, None, name in ("job", "status")) for name in jobs[0]]
    table = Table(title, columns, [list(job.values()) for job in jobs])
    write_csv(folder / "sweep.csv", jobs[0], table.rows)
    write_json(folder / "sweep.json", {"jobs": jobs, "best": best["job"] if best else None})
    print_table(table, width=160)
    banners = banners_of(any(summary.get("phantoms") for summary in summaries), held_out=True)
    title, charts = f"Sweep {printable(folder.absolute().name)}", draw_charts(folder)
    path = folder / "sweep.html"
    return write_page(path, path.name, title, banners=banners, jobs=table, charts=charts)


def draw_charts(folder: Path) -> dict[str, str]:
    """Optuna's charts of a search in the folder, PNG as base64 by caption; empty without any."""
    database, charts = folder / "study.db", dict[str, str]()
    if not is_inside(database, folder) or find_spec("optuna") is None:
        return charts
    import optuna
    from matplotlib import pyplot as plt
    from optuna.visualization import matplotlib as plots

    from pancseg.training.sweeps import open_study

    url = f"sqlite:///{database.absolute()}"
    with (
        open_study(url, optuna.get_all_study_names(url)[0], None) as study,
        warnings.catch_warnings(action="ignore"),  # Optuna marks its charts as experimental
        plt.rc_context(),  # the charts set a style
    ):
        done = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
        plot_of: dict[str, Any] = {"Scores, and the best so far": plots.plot_optimization_history}
        plot_of["Score against each parameter"] = plots.plot_slice
        if len(done) > 3:  # fewer say nothing about importance
            plot_of["Importance of the parameters"] = plots.plot_param_importances
        for caption, plot in plot_of.items() if done else ():
            axes, out = plot(study), io.BytesIO()
            figure = getattr(axes, "flat", [axes])[0].figure
            figure.set_size_inches(11, 4)
            with suppress(ValueError):  # a choice with dollars that are no mathematics
                figure.savefig(out, format="png", dpi=110, bbox_inches="tight")
                charts[caption] = base64.b64encode(out.getvalue()).decode()
            plt.close(figure)
    return charts


def read_params(job: Path) -> Row:
    """Numbers or texts of a job's overrides that may change the result."""
    try:
        texts = [str(text) for text in read_yaml(job / OVERRIDES, list)]
        overrides = OverridesParser.create().parse_overrides(texts)
        params = {o.get_key_element().lstrip("+"): o.value() for o in overrides}
    except (HydraException, ValueError, RecursionError) as error:
        raise PancsegError(f"{job / OVERRIDES}: holds no overrides of Hydra") from error
    return {printable(key): cell(params[key]) for key in params if changes_result(key)}


def number_or_none(value: Any) -> float | None:
    """A number of usual size."""
    return value if type(value) in (int, float) and abs(value) < 1e15 else None


def cell(value: Any) -> float | str:
    """A number as it is, any other value as printable text: ``null`` for None."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    number = number_or_none(value)
    return printable(text) if number is None else number
