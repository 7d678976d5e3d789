"""Compared runs, for people: a page, a table of patients, and the tables on the console."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from pancseg.files import write_csv, write_json
from pancseg.output import charts
from pancseg.output.page import banners_of, write_page
from pancseg.output.score_words import is_share, sense_of, shown, title_of_column

NAME = "comparison"
Found = dict[str, Any]
COMPARISON_HEADS = (
    "measure", "compared", "n", "difference", "95 % interval", "better in", "worse in", "p",
    "p, Holm",
)  # fmt: skip


def write_comparison(folder: Path, found: Found) -> Path:
    """Write ``comparison.html``, ``.csv`` (a row a patient) and ``.json``.

    Args:
        folder: Where to.
        found: ``subset``, ``phantoms``, ``measures``, ``patients``, ``configurations`` (each with
            ``values`` by measure), ``comparisons`` and ``warnings``, as plain values.

    Returns:
        The page.
    """
    write_json(folder / f"{NAME}.json", found)
    write_values(folder / f"{NAME}.csv", found)
    measure, each = found["measures"][0], found["configurations"]
    pairs = [one for one in found["comparisons"] if one["measure"] == measure]
    write_page(
        folder / f"{NAME}.html",
        "comparison.html",
        "Comparison: " + ", ".join(one["name"] for one in each),
        banners=banners_of(found["phantoms"], all(one["held_out"] for one in each)),
        subset=found["subset"],
        n=len(found["patients"]),
        who="phantoms" if found["phantoms"] else "patients",
        warnings=found["warnings"],
        heads=configuration_heads(found),
        configurations=configuration_rows(found),
        comparison_heads=COMPARISON_HEADS,
        comparisons=comparison_rows(found),
        charts=[chart_of(one, each, measure) for one in pairs],
        spread=Markup(charts.boxes({one["name"]: one["values"][measure] for one in each}))
        if is_share(measure)
        else None,
        measure=title_of_column(measure)[0],
        names=[one["name"] for one in each],
        rows=patient_rows(found, measure),
    )
    return folder / f"{NAME}.html"


def chart_of(pair: Found, each: Sequence[Found], measure: str) -> tuple[Markup, str]:
    """Bars of what differs between the two of a pair, patient by patient, and what they are."""
    of, title = {one["name"]: one["values"][measure] for one in each}, title_of_column(measure)[0]
    one, other = pair["one"], pair["other"]
    differences = [b - a for a, b in zip(of[one], of[other], strict=True)]
    drawn = charts.paired(differences, title, one, other, sense_of(measure) or 1)
    return Markup(drawn), f"{other} less {one}, {title}, one bar a patient."


def patient_rows(found: Found, measure: str) -> list[list[tuple[Any, str]]]:
    """A line a patient: what each cell sorts by, and its text."""
    digits = title_of_column(measure)[1]
    columns = [one["values"][measure] for one in found["configurations"]]
    return [
        [(patient, patient), *((column[i], shown(column[i], digits)) for column in columns)]
        for i, patient in enumerate(found["patients"])
    ]


def configuration_heads(found: Found) -> list[str]:
    """Headings of the table of configurations."""
    measures = (title_of_column(measure)[0] for measure in found["measures"])
    return ["configuration", "seeds", *(f"{name}, mean (95 % interval)" for name in measures)]


def configuration_rows(found: Found) -> list[list[str]]:
    """A line a configuration; of several seeds also the mean of each."""
    lines = []
    for one in found["configurations"]:
        line = [one["name"], ", ".join("?" if seed is None else str(seed) for seed in one["seeds"])]
        for measure in found["measures"]:
            digits, figure = title_of_column(measure)[1], one[measure]
            low, high = figure["ci95"]
            text = shown(figure["mean"], digits)
            if low is not None:
                text += f" ({low:.{digits}f} to {high:.{digits}f})"
            if len(one["seeds"]) > 1:
                each = ", ".join(shown(mean, digits) for mean in figure["mean_of_each_seed"])
                text += f"; seeds {each}"
            line.append(text)
        lines.append(line)
    return lines


def comparison_rows(found: Found) -> list[list[str]]:
    """A line a comparison."""
    lines = []
    for one in found["comparisons"]:
        title, digits = title_of_column(one["measure"])
        low, high = one["ci95"]
        interval = "-" if low is None else f"{low:+.{digits}f} to {high:+.{digits}f}"
        lines.append(
            [title, f"{one['other']} less {one['one']}", str(one["n"]),
             f"{one['difference']:+.{digits}f}", interval, *better_and_worse(one),
             f"{one['p']:.3g}", f"{one['p_holm']:.3g}"]
        )  # fmt: skip
    return lines


def better_and_worse(one: Found) -> tuple[str, str]:
    """In how many patients the other is better, and worse; of a volume, higher and lower."""
    counts = one["higher"], one["lower"]
    sense = sense_of(one["measure"])
    if not sense:
        return f"{counts[0]} higher", f"{counts[1]} lower"
    better, worse = counts[::sense]
    return str(better), str(worse)


def print_comparison(found: Found) -> None:
    """Print both tables."""
    who = "PHANTOMS" if found["phantoms"] else "patients"
    held_out = all(one["held_out"] for one in found["configurations"])
    title = f"{found['subset']}: {len(found['patients'])} {who}"
    title += ", held out" if held_out else ", NOT HELD OUT"
    console = Console(width=None if Console().is_terminal else 140)
    tables = [(title, configuration_heads(found), configuration_rows(found))]
    if found["comparisons"]:
        said = "paired by patient; Wilcoxon's signed-rank test"
        tables.append((said, list(COMPARISON_HEADS), comparison_rows(found)))
    for said, heads, lines in tables:
        table = Table(title=said)
        for head in heads:
            table.add_column(head, justify="left" if head in heads[:2] else "right")
        for line in lines:
            table.add_row(*line)
        console.print(table)


def write_values(path: Path, found: Found) -> None:
    """Write a row a patient, a column a measure and configuration."""
    columns = [
        (f"{measure} {one['name']}", one["values"][measure])
        for measure in found["measures"]
        for one in found["configurations"]
    ]
    rows = (
        [patient, *(round(values[i], 6) for _, values in columns)]
        for i, patient in enumerate(found["patients"])
    )
    write_csv(path, ["patient", *(name for name, _ in columns)], rows)
