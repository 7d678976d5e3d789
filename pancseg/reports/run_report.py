"""``RUN/report.html``: the training, the data, the scores and the slices of each case."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pancseg.metrics.lesions import LESION_COLUMNS
from pancseg.metrics.tables import by_patient
from pancseg.reports import charts, tables
from pancseg.reports.page import banners_of, write_page
from pancseg.reports.run_folder import EXTERNAL, Run
from pancseg.reports.tables import Column, Row, Table, format_interval, format_value, heading

MAX_VIEWS = 100  # cases, the worst: a page with the slices of a thousand opens in no browser
HIDDEN = (
    "patient", "structure", "dice_plain", "recipe_metric", "expected_dice", "spacing_x_mm",
    "spacing_y_mm", "manufacturer", "contrast",
)  # fmt: skip
QUOTED = ("dice", "hd95_mm", "volume_ml", "reference_ml")  # beside the slices


def write_run_report(run: Run, subset: str, by: str | None = None) -> Path:
    """Write the report of scores, with a section of subgroups ``by`` a column; return its path.

    ``subset`` is ``train``, ``val``, ``test`` or ``external_<root>``.

    Raises:
        PancsegError: If the subset was not scored, a file is damaged, or ``by`` is no column.
    """
    figures, rows = run.figures(subset), run.rows(subset)
    subset = subset if run.run_folders else EXTERNAL
    people, history, svg = tables.people_of(figures), run.history(), charts.as_svg
    is_standard = subset in ("test", EXTERNAL)
    names = ("loss", "dice") if history else ()
    return write_page(
        run.folder / ("report.html" if is_standard else f"report_{subset}.html"), "report.html",
        f"{figures.get('predictions') or run.name}: {subset}",
        banners=banners_of(figures["phantoms"], figures["held_out"]), figures=figures,
        people=people, data=data_facts(run, figures),
        curves={n: svg(f"{n} over epochs", charts.plot_curves, history, n) for n in names},
        sections=[
            section(run, subset, by, *part) for part in tables.by_structure(rows, figures)
        ],
        max_views=MAX_VIEWS, summary=next(iter(run.summaries), None),
        command=run.command() if run.run_folders else "",
        checkpoint="SWEEP" if run.is_sweep else "RUN/checkpoints/best.ckpt",
        patients="data.root=..." if subset.startswith(EXTERNAL) else f"subset={subset}",
    )  # fmt: skip


def section(
    run: Run, subset: str, by: str | None, structure: str, rows: Sequence[Row], figures: Row
) -> Row:
    """Scores and slices of a structure; ``structure`` is empty if there is only one."""
    # healthy patients have neither a lesion nor slices of it
    shown = [r for r in rows if not structure or r["volume_ml"] or r["reference_ml"]][:MAX_VIEWS]
    ending = f"_{structure}" if structure else ""
    views = run.views(subset, [row["case"] for row in shown], ending)
    cases = [{**row, "flags": " ".join(figures["flags"].get(row["case"], ()))} for row in rows]
    people = f"{tables.patients_of(figures)} {tables.people_of(figures)}"
    title = f"{subset}: {len(rows)} cases of {people}"
    names = [name for name in cases[0] if name not in HIDDEN]
    names.sort(key=lambda name: name not in ("case", "dice", *LESION_COLUMNS))
    return {
        "structure": structure, "ending": ending, "figures": figures,
        "headline": tables.headline(figures), "cases": tables.score_table(cases, names, title),
        "measures": measure_table(rows, figures), "lesions": tables.lesion_facts(figures),
        "subgroups": tables.subgroup_table(rows, by) if by else None,
        "charts": score_charts(rows, figures, structure) if figures["n"] else None,
        "views": {row["case"]: view_of(row, views) for row in shown if row["case"] in views},
    }  # fmt: skip


def data_facts(run: Run, figures: Row) -> list[tuple[str, str]]:
    """The training and the scored data."""
    facts: list[tuple[str, str]] = []
    for first in run.summaries[:1]:
        for subset, counts in first["parts"].items():
            facts.append((subset, ", ".join(f"{n} {unit}" for unit, n in counts.items())))
        facts.append(("network", f"{first['parameters']:,} parameters"))
        epochs = f"{first['epochs']} in {first['seconds']:,.0f} s"
        facts.append(("epochs", f"{epochs}; the best is {first['best_epoch']}"))
    if run.is_sweep:
        runs = f"{len(run.run_folders)} of a sweep; the numbers above are of the first"
        facts += ("runs", runs), ("networks a patient", str(figures["models_per_patient"]))
    if folds := figures.get("missing_folds"):
        facts.append(("folds without scores", ", ".join(map(str, folds))))
    if split := figures.get("split"):
        seed = "" if split["seed"] is None else f", seed {split['seed']}"
        facts.append(("split", f"{split['rule']}{seed}"))
        facts.append(("data fingerprint", figures["data_fingerprint"][:16]))
    flags = [f"{case}: {', '.join(names)}" for case, names in figures["flags"].items()]
    facts.append(("intake flags", f"{len(flags)} cases: {'; '.join(flags)}" if flags else "none"))
    for key in ("changed_since_prepared", "without_mask", "without_case"):
        if names := figures.get(key):
            facts.append((key.replace("_", " "), f"{len(names)}: {', '.join(names)}"))
    return facts


def measure_table(rows: Sequence[Row], figures: Row) -> Table:
    """Figures over patients, a line a measure."""
    lines = []
    for name in rows[0]:
        figure, (title, digits) = figures.get(name), heading(name)
        if not isinstance(figure, dict) or figure["mean"] is None:
            continue
        digits = max(1, digits)  # also of a mean of counts
        mean, sd, median = (format_value(figure[key], digits) for key in ("mean", "sd", "median"))
        intervals = (figure["ci95"], (figure["q1"], figure["q3"]), (figure["min"], figure["max"]))
        interval, quartiles, extremes = (format_interval(ends, digits) for ends in intervals)
        lines.append([title, mean, interval, sd, median, quartiles, extremes])
    heads = ("measure", "mean", "95 % interval", "sd", "median", "quartiles", "range")
    return Table("Figures over patients", [*map(Column, heads)], lines)


def score_charts(rows: Sequence[Row], figures: Row, structure: str) -> dict[str, str]:
    """Charts of at least one scored patient."""
    shares = [n for n in rows[0] if n in ("dice", "precision", "recall") or n.startswith("nsd_")]
    boxes = {heading(name)[0]: [*by_patient(rows, name).values()] for name in shares}
    volumes = [[*by_patient(rows, name).values()] for name in ("reference_ml", "volume_ml")]
    agreement, bins = figures["volume_agreement_ml"], figures["calibration"]["bins"]
    svg, of = charts.as_svg, f" of {structure}" * bool(structure)
    return {
        "boxes": svg(f"Box plots{of}", charts.plot_boxes, boxes),
        "volumes": svg(f"Predicted against reference volume{of}", charts.plot_volumes, *volumes),
        "bland_altman": svg(
            f"Bland-Altman plot{of}", charts.plot_bland_altman, *volumes, agreement
        ),
        "calibration": svg(f"Calibration{of}", charts.plot_calibration, bins) if bins else "",
    }


def view_of(row: Row, views: dict[str, Any]) -> dict[str, Any]:
    """Slices of a case, and its scores in a line."""
    scores = ((*heading(name), row[name]) for name in QUOTED if row[name] is not None)
    text = ", ".join(f"{title} {format_value(value, digits)}" for title, digits, value in scores)
    return {"data": views[row["case"]], "scores": text}
