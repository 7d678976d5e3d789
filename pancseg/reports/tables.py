"""Tables of scores, for the console and for pages."""

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table as ConsoleTable
from rich.text import Text

from pancseg.errors import PancsegError, printable
from pancseg.metrics.case_scores import MEASURES
from pancseg.metrics.lesions import LESION_COLUMNS, MIN_IOU
from pancseg.metrics.statistics import describe
from pancseg.metrics.tables import TEXT_COLUMNS, by_patient

Row = dict[str, Any]
HEADINGS = {  # heading and digits, where the heading is not the name of the column
    **{name: (measure.heading, measure.digits) for name, measure in MEASURES.items()},
    "dice_plain": ("Dice at 0.5", 3),
    "recipe_metric": ("recipe_metric", 3),
    "expected_dice": ("expected Dice", 3),
    **{name: (name.removeprefix("lesions_").replace("_", " "), 0) for name in LESION_COLUMNS},
    "max_probability": ("max probability", 3),
    **{f"spacing_{axis}_mm": (f"{axis} mm", 2) for axis in "xyz"},
}
CONSOLE_COLUMNS = (
    "case", "dice", "nsd_2mm", "hd95_mm", "assd_mm", "volume_ml", "reference_ml", "components",
    "lesions", "lesions_found", "false_positives", "fold", "status",
)  # fmt: skip
LESION_FIGURES = {  # name and meaning
    "sensitivity": ("sensitivity", "share of the lesions that a predicted one overlaps"),
    "sensitivity_iou": ("sensitivity, IoU", f"share found one to one, at an IoU above {MIN_IOU}"),
    "false_positives": ("false positives a patient", "predicted lesions without any overlap"),
    "false_positives_iou": ("false positives, IoU", f"those without an IoU above {MIN_IOU}"),
    "specificity": ("specificity", "share of those without a lesion in whom nothing is predicted"),
    "auroc": ("AUROC", "of the largest predicted probability, as a sign of a lesion"),
}
PLAIN = {"threshold": 0.5, "largest_component": False}
NOT_HELD_OUT = "NOT HELD OUT: these patients were trained on or used to choose the checkpoint"
HELD_OUT = {True: "held out", False: NOT_HELD_OUT, None: "not known whether held out"}


class Column(NamedTuple):
    """Heading and digits of numbers (None: four significant ones), or a column of text."""

    heading: str
    digits: int | None = 0
    is_text: bool = False


TextColumn = partial(Column, is_text=True)


class Table(NamedTuple):
    """Rows of numbers, texts or None, for the console or a page."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]


def heading(name: str) -> tuple[str, int]:
    """Heading and digits of a column of the scores table.

    >>> heading("nsd_2mm"), heading("hd95_mm"), heading("fold")
    (('NSD 2 mm', 3), ('HD95 mm', 1), ('fold', 0))
    >>> heading("dice tumour")  # of a structure
    ('tumour Dice', 3)
    """
    name, _, structure = name.partition(" ")
    title, digits = HEADINGS.get(name, (name, 0))
    if name.startswith("nsd_"):
        title, digits = f"NSD {name.removeprefix('nsd_').removesuffix('mm')} mm", 3
    return f"{structure} {title}".lstrip(), digits


def direction(name: str) -> int:
    """1 where higher values are better, -1 where lower ones are, 0 for volumes and counts.

    >>> direction("nsd_2mm"), direction("hd95_mm"), direction("volume_ml")
    (1, -1, 0)
    """
    name = name.partition(" ")[0]  # without the structure
    if name.startswith("nsd_") or name in ("dice_plain", "recipe_metric"):
        return 1
    return MEASURES[name].better if name in MEASURES else 0


def format_value(value: Any, digits: int | None = None) -> str:
    """Text of a cell.

    >>> format_value(0.87654, 3), format_value(0.000123), format_value(None), format_value("a", 1)
    ('0.877', '0.000123', '-', 'a')
    """
    if isinstance(value, float):
        return f"{value:.4g}" if digits is None else f"{value:.{digits}f}"
    return "-" if value is None else str(value)


def format_interval(ends: Sequence[float | None], digits: int, sign: str = "") -> str:
    """Text of an interval, such as ``+0.5 to +1.5``."""
    return "-" if None in ends else " to ".join(f"{end:{sign}.{digits}f}" for end in ends)


def score_table(rows: Sequence[Row], names: Sequence[str], title: str) -> Table:
    """Columns of the scores table; without ``fold`` and those of lesions where they are empty."""
    full = {name for row in rows for name in row if row[name] is not None}
    names = [name for name in names if name in full or name not in ("fold", *LESION_COLUMNS)]
    columns = [Column(*heading(name), name in (*TEXT_COLUMNS, "flags")) for name in names]
    return Table(title, columns, [[row[name] for name in names] for row in rows])


def worst_first(rows: Sequence[Row]) -> list[Row]:
    """Rows by ascending Dice, those without Dice last."""
    return sorted(rows, key=lambda row: (row["dice"] is None, row["dice"] or 0.0))


def by_structure(rows: Sequence[Row], figures: Row) -> list[tuple[str, list[Row], Row]]:
    """Name, rows and figures of each structure; the name is empty if there is only one.

    Rows without a structure, which are masks without a case, are among those of the first.
    """
    parts = figures.get("structures") or {"": figures}
    first = next(iter(parts))
    rows_of = {name: [r for r in rows if (r.get("structure") or first) == name] for name in parts}
    return [(name, rows_of[name], parts[name]) for name in parts if rows_of[name]]


def print_table(table: Table, caption: str = "", width: int = 120) -> None:
    """Print a table; text is not parsed as markup, and control characters are escaped."""
    lines = Text("\n").join(Text(printable(line)) for line in caption.split("\n"))
    view = ConsoleTable(title=Text(printable(table.title)), caption=lines)
    for i, (head, _, is_text) in enumerate(table.columns):
        side: Any = "left" if is_text else "right"
        view.add_column(Text(printable(head)), justify=side, no_wrap=i == 0)
    for row in table.rows:
        cells = map(format_value, row, [column.digits for column in table.columns])
        view.add_row(*(Text(printable(cell)) for cell in cells))
    Console(width=None if Console().is_terminal else width).print(view)


def print_scores(rows: Sequence[Row], figures: Row, subset: str) -> None:
    """Print a table a structure, worst Dice first, with the headline of its figures."""
    for structure, part, own in by_structure(rows, figures):
        wanted, lines = {*CONSOLE_COLUMNS, quoted_nsd(rows[0])}, [headline(own)]
        if facts := lesion_facts(own):
            wanted -= {"hd95_mm", "assd_mm", "components"}  # for the width
            lines.append(", ".join(f"{n} {text}" for n, text, _ in facts if "IoU" not in n))
        elif any(postprocess != PLAIN for postprocess in own.get("postprocess", ())):
            wanted.add("dice_plain")
        names = [name for name in rows[0] if name in wanted]
        title = f"{structure} {console_title(subset, patients_of(own), own)}".lstrip()
        table = score_table(worst_first(part), names, title)
        print_table(table, "\n".join([*lines, own["geometry"]]))


def console_title(subset: str, n: int, figures: Row) -> str:
    """Title of a table of patients."""
    people = "PHANTOMS" if figures["phantoms"] else "patients"
    return f"{subset}: {n} {people}, {HELD_OUT[figures['held_out']]}"


def people_of(figures: Row) -> str:
    """``phantoms`` or ``patients``."""
    return "phantoms" if figures["phantoms"] else "patients"


def patients_of(figures: Row) -> int:
    """Number of scored patients, of a lesion also of those without any."""
    return figures.get("lesion_figures", {}).get("patients", figures["n"])


def quoted_nsd(row: Row) -> str:
    """Column of the NSD that is quoted: at 2 mm, or else the first."""
    return "nsd_2mm" if "nsd_2mm" in row else next(name for name in row if name[:4] == "nsd_")


def headline(figures: Row) -> str:
    """The figures to quote, in a line: Dice with its interval, patients, HD95 and NSD."""
    dice, nsd, people = figures["dice"], quoted_nsd(figures), people_of(figures)
    if dice["mean"] is None:
        return "no case has a reference to score against"
    kinds = {True: f"held-out {people}", False: f"{people}, NOT HELD OUT"}
    patients = kinds.get(figures["held_out"], f"{people}, {HELD_OUT[None]}")
    interval = f" (95 % CI {format_interval(dice['ci95'], 3)})" if figures["n"] > 1 else ""
    return (
        f"Dice {dice['mean']:.3f}{interval}, n = {figures['n']} {patients}, HD95 "
        f"{figures['hd95_mm']['mean']:.1f} mm, NSD@{nsd[4:]} {figures[nsd]['mean']:.2f}"
    )


def lesion_facts(figures: Row) -> list[tuple[str, str, str]]:
    """Name, number with 95 % interval, and meaning of lesion figures; none for an organ."""
    if not (lesions := figures.get("lesion_figures")):
        return []
    n, positive, people = lesions["patients"], lesions["patients_with_lesion"], people_of(figures)
    counts = f"{lesions['lesions']} in {positive} {people}, none in {n - positive}"
    facts = [("lesions", counts, "26-connected components of the reference")]
    for name, (title, meaning) in LESION_FIGURES.items():
        figure = lesions[name] or {"mean": None, "ci95": [None]}  # AUROC of masks of other tools
        ends = format_interval(figure["ci95"], 3)
        interval = "" if ends == "-" else f" ({ends})"
        facts.append((title, f"{format_value(figure['mean'], 3)}{interval}", meaning))
    return facts


def subgroup_table(rows: Sequence[Row], name: str, structure: str = "") -> Table:
    """Dice and NSD of subgroups of patients: tertiles of a column of numbers, or its texts."""
    if name not in rows[0]:
        raise PancsegError(f"by={name}: no such column; expected one of {', '.join(rows[0])}")
    scored = [row for row in rows if row["dice"] is not None]
    numbers = [row[name] for row in scored if isinstance(row[name], float)]
    borders = np.quantile(numbers, [1 / 3, 2 / 3]) if numbers else []

    def subgroup(row: Row) -> Any:
        value = row[name]
        return np.searchsorted(borders, value) if isinstance(value, float) else value

    measures, lines = ("dice", quoted_nsd(rows[0])), []
    scored.sort(key=lambda row: (row[name] is None, row[name]))
    for _, members in groupby(scored, subgroup):
        group = list(members)
        ends = [format_value(group[i][name], heading(name)[1]) for i in (0, -1)]
        line: list[Any] = [" to ".join(dict.fromkeys(ends)), len(by_patient(group, "dice"))]
        for measure in measures:
            figure = describe(list(by_patient(group, measure).values()))
            line += [figure["mean"], format_interval(figure["ci95"], 3)]
        lines.append(line)
    columns = [TextColumn(name), Column("n")]
    for measure in measures:
        columns += [Column(f"{heading(measure)[0]}, mean", 3), Column("95 % interval")]
    return Table(f"Scores by {name}" + f", {structure}" * bool(structure), columns, lines)
