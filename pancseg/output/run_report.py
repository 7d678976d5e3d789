"""``RUN/report.html``: what was trained on what, how good it is, and where it is wrong."""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from pancseg.output import charts
from pancseg.output.page import as_data, banners_of, write_page
from pancseg.output.run_files import Run
from pancseg.output.score_table import PLAIN, headline, people
from pancseg.output.score_words import RULES, TITLES, is_share, shown, title_of_column
from pancseg.scoring.score_file import by_patient

NAME = "report.html"
MOST_VIEWED = 100  # cases, the worst: slices of a thousand make a page that no browser opens
HIDDEN = ("patient", "dice_plain", "recipe_metric", "expected_dice")
ORIGINS = {
    "plain": "Nothing was chosen; postprocess.threshold=auto chooses on validation patients.",
    "given": "It was given by hand: figures are honest only if it was not tried out on these.",
}
Row = dict[str, Any]


def write_run_report(run: Run, subset: str) -> Path:
    """Write the report of a run or a sweep that was scored.

    Args:
        run: The run or sweep.
        subset: Whose scores to show.

    Returns:
        The page.

    Raises:
        PancsegError: If it was not scored.
    """
    figures, rows = run.figures(subset), run.rows(subset)
    views = run.views(subset, [row["case"] for row in rows[:MOST_VIEWED]])
    path = run.folder / NAME
    history = run.history()
    curves = {name: Markup(charts.curves(history, name)) for name in ("loss", "dice") if history}
    who = people(figures)
    write_page(
        path,
        "report.html",
        f"{run.name}: {subset}",
        banners=banners_of(figures["phantoms"], figures["held_out"]),
        headline=headline(figures),
        geometry=figures["geometry"],
        subset=subset,
        who=who,
        who_title=f"{subset}: {len(rows)} cases of {figures['n']} {who}",
        trained=trained_facts(run, figures),
        curves=curves,
        table=score_table(rows, figures["flags"], set(views)),
        views=[view_of(row, views[row["case"]]) for row in rows if row["case"] in views],
        views_said=views_said(len(views), len(rows)),
        rules=RULES,
        command=run.command(),
        checkpoint="SWEEP" if run.is_sweep else f"RUN/checkpoints/{figures['checkpoint'][0]}",
        environment=environment_facts(run, figures),
        **(figure_parts(rows, figures, who) if figures["n"] else {"figures": None}),
    )
    return path


def views_said(viewed: int, cases: int) -> str:
    """Which cases can be scrolled through, where those are not all."""
    return "" if cases <= MOST_VIEWED else f"Of the {viewed} cases with the lowest Dice."


def trained_facts(run: Run, figures: dict[str, Any]) -> list[tuple[str, str]]:
    """What was trained on what, line by line."""
    facts: list[tuple[str, str]] = []
    summaries = run.summaries
    if summaries:
        first = summaries[0]
        facts += [
            (part, ", ".join(f"{n} {what}" for what, n in numbers.items()))
            for part, numbers in first["parts"].items()
        ]
        best = [one["best_epoch"] for one in summaries]
        facts += [
            ("network", f"{first['parameters']:,} parameters"),
            ("epochs", f"{first['epochs']} in {first['seconds']:,.0f} s; the best is {best[0]}"),
        ]
    if len(run.parts) > 1:
        facts.append(("runs", f"{len(run.parts)} of a sweep; the first one's numbers stand above"))
        judges = figures["judges_of_a_patient"]
        said = "the one that held the patient out" if judges == 1 else f"the mean of {judges}"
        facts.append(("each patient judged by", said))
    if figures["missing_folds"]:
        missing = ", ".join(map(str, figures["missing_folds"]))
        facts.append(("folds that are missing", f"{missing}: their patients are not here"))
    split = figures["split"]
    seed = "" if split["seed"] is None else f", seed {split['seed']}"
    flagged = figures["flags"]
    odd = "; ".join(f"{case}: {', '.join(flags)}" for case, flags in flagged.items())
    return [
        *facts,
        ("split", f"{split['rule']}{seed}"),
        ("data fingerprint", figures["data_fingerprint"][:16]),
        ("odd at intake", f"{len(flagged)} of these cases. {odd}" if flagged else "none of these"),
    ]


def environment_facts(run: Run, figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Machine and versions."""
    if not run.summaries:
        return []
    first = run.summaries[0]
    hardware = first["hardware"]
    machine = (hardware["device"], hardware["machine"], hardware["system"])
    return [
        ("versions", ", ".join(f"{name} {number}" for name, number in first["versions"].items())),
        ("machine", f"{' '.join(machine)}, precision {hardware['precision']}"),
        ("seed", str(first["seed"])),
        ("checkpoint of epoch", str(figures["checkpoint_epoch"])),
    ]


def score_table(rows: list[Row], flags: dict[str, list[str]], viewed: set[str]) -> dict[str, Any]:
    """The table of cases: headings, and cells with what they sort by."""
    columns = [
        name
        for name in rows[0]
        if name not in HIDDEN and (name != "fold" or any(row["fold"] is not None for row in rows))
    ]
    cells = []
    for row in rows:
        line = [cell(row[name], title_of_column(name)[1]) for name in columns]
        line[0]["link"] = link_of(row["case"]) if row["case"] in viewed else None
        raised = " ".join(flags.get(row["case"], []))
        cells.append([*line, {"value": raised, "text": raised, "words": True}])
    titles = [{"title": title_of_column(n)[0], "words": n == "status"} for n in columns]
    return {"columns": [*titles, {"title": "flags", "words": True}], "rows": cells}


def cell(value: Any, digits: int) -> dict[str, Any]:
    """One cell."""
    words = isinstance(value, str)
    return {"value": "" if value is None else value, "text": shown(value, digits), "words": words}


def figure_parts(rows: list[Row], figures: dict[str, Any], who: str) -> dict[str, Any]:
    """The parts of the page that need at least one case with a reference."""

    def of(name: str) -> list[float]:
        return list(by_patient(rows, name).values())

    drawn, found = of("reference_ml"), of("volume_ml")
    shares = [name for name in rows[0] if is_share(name)]
    agreement, calibration = figures["volume_agreement_ml"], figures["calibration"]
    correlation = agreement["correlation"]
    return {
        "figures": [figure_row(name, figures[name]) for name in rows[0] if name in figures],
        "apart": apart(figures),
        "charts": {
            "boxes": Markup(charts.boxes({title_of_column(n)[0]: of(n) for n in shares})),
            "volumes": Markup(charts.volumes(drawn, found)),
            "volumes_said": "Volumes"
            + ("" if correlation is None else f", correlation r = {correlation:.3f}"),
            "bland_altman": Markup(charts.bland_altman(drawn, found, agreement)),
            "calibration": calibration["bins"] and Markup(charts.calibration(calibration["bins"])),
            "calibration_said": "Calibration within 20 mm of the masks; expected calibration error "
            f"{shown(calibration['error'], 3)}.",
        },
        "postprocess_said": postprocess_said(figures),
        "old": {
            "recipe": f"{figures['recipe_metric']['mean']:.3f}",
            "dice": f"{figures['dice']['mean']:.3f}",
            "said": f"Both are means over the same {figures['n']} {who}. Scripts measure their "
            "number on resized groups, and on patients they were trained on; here it is measured "
            "on whole scans, where background weighs more still.",
        },
    }


def figure_row(name: str, figure: dict[str, Any]) -> list[str]:
    """A line of the table over patients."""
    title, digits = title_of_column(name)
    digits = max(1, digits)  # a mean of counts is no count
    low, high = figure["ci95"]
    to = [shown(figure[key], digits) for key in ("mean", "sd", "median", "q1", "q3", "min", "max")]
    mean, sd, median, q1, q3, smallest, largest = to
    interval = "-" if low is None else f"{low:.{digits}f} to {high:.{digits}f}"
    return [title, mean, interval, sd, median, f"{q1} to {q3}", f"{smallest} to {largest}"]


def apart(figures: dict[str, Any]) -> str:
    """Cases that take no part in the figures."""
    parts = (("empty_reference", "without anything drawn"), ("failed", "failed"))
    told = [
        f"{len(figures[key])} {words}: {', '.join(figures[key])}"
        for key, words in parts
        if figures[key]
    ]
    return f"Not in these figures: {'; '.join(told)}." if told else "Every case takes part."


def postprocess_said(figures: dict[str, Any]) -> str:
    """How masks were made, and what that changed."""
    used = {
        f"threshold {one['threshold']:g}, "
        + ("largest component alone" if one["largest_component"] else "all components")
        for one in figures["postprocess"]
    }
    plain, now = figures["dice_plain"]["mean"], figures["dice"]["mean"]
    changed = (
        "That is the plain way."
        if figures["postprocess"] == [PLAIN] * len(figures["postprocess"])
        else f"The plain way, threshold 0.5 and all components, gives these {people(figures)} Dice "
        f"{plain:.3f}: a change of {now - plain:+.3f}."
    )
    return f"Masks were made by {' or '.join(sorted(used))}. {changed} {origin_said(figures)}"


def origin_said(figures: dict[str, Any]) -> str:
    """Who chose how masks are made, and whether these patients had a part in it."""
    if (origin := figures["postprocess_origin"]) in ORIGINS:
        return ORIGINS[origin]
    if figures["held_out"]:  # of a sweep they chose for others, but none for itself
        return "It was chosen on validation patients, never on one it is used on."
    if figures["subset"] == "val":
        return "It was chosen on these very patients: it fits them better than others."
    return "It was chosen on validation patients."


def view_of(row: Row, view: dict[str, Any]) -> dict[str, Any]:
    """What a viewer is given."""
    scores = ", ".join(
        f"{title} {shown(row[name], digits)}"
        for name, (title, digits) in TITLES.items()
        if name in ("dice", "hd95_mm", "volume_ml", "reference_ml") and row[name] is not None
    )
    return {
        "case": row["case"],
        "said": scores,
        "link": link_of(row["case"]),
        "data": as_data(view),
    }


def link_of(case: str) -> str:
    """Anchor of a case."""
    return f"case-{case}"
