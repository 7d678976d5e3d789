"""The table of scores on the console: worst first, with what was held out."""

from typing import Any

from rich.console import Console
from rich.table import Table

from pancseg.output.score_words import shown, title_of_column

NOT_HELD_OUT = "NOT HELD OUT: these patients were trained on or used to choose the checkpoint"
SHOWN = (
    "case", "dice", "hd95_mm", "assd_mm", "volume_ml", "reference_ml", "components", "fold",
    "status",
)  # fmt: skip
CROWDED = ("nsd_1mm", "nsd_3mm")  # beside 2 mm; of other tolerances all are shown
PLAIN = {"threshold": 0.5, "largest_component": False}
QUOTED_MM = 2.0  # tolerance of the NSD that is quoted, where it was measured


def print_scores(rows: list[dict[str, Any]], summary: dict[str, Any], subset: str) -> None:
    """Print one line a case, worst Dice first, and the line one would quote.

    Where masks are not made the plain way, what that would have given stands beside.
    """
    held_out = summary["held_out"]
    kind = "PHANTOMS" if summary["phantoms"] else "patients"
    title = f"{subset}: {summary['n']} {kind}, {'held out' if held_out else NOT_HELD_OUT}"
    columns = [name for name in rows[0] if is_shown(name)]
    if any(one != PLAIN for one in summary["postprocess"]):
        columns.insert(columns.index("dice") + 1, "dice_plain")
    if all(row["fold"] is None for row in rows):
        columns.remove("fold")
    table = Table(title=title, caption=f"{headline(summary)}\n{summary['geometry']}")
    for name in columns:
        table.add_column(
            title_of_column(name)[0],
            justify="left" if name in ("case", "status") else "right",
            no_wrap=name == "case",
        )
    for row in sorted(rows, key=lambda row: (row["dice"] is None, row["dice"])):
        table.add_row(*(shown(row[name], title_of_column(name)[1]) for name in columns))
    Console(width=None if Console().is_terminal else 120).print(table)


def is_shown(name: str) -> bool:
    """Whether a column fits on the console; the file has all."""
    return name in SHOWN or (name.startswith("nsd_") and name not in CROWDED)


def headline(summary: dict[str, Any]) -> str:
    """The line one would quote.

    >>> dice = {"mean": 0.871, "ci95": [0.842, 0.894]}
    >>> measures = {"dice": dice, "hd95_mm": {"mean": 6.21}, "nsd_2mm": {"mean": 0.912}}
    >>> headline({**measures, "n": 24, "held_out": True, "phantoms": False})
    'Dice 0.871 (95 % CI 0.842 to 0.894), n = 24 held-out patients, HD95 6.2 mm, NSD@2mm 0.91'
    """
    dice, who = summary["dice"], people(summary)
    kind = f"held-out {who}" if summary["held_out"] else f"{who}, NOT HELD OUT"
    if dice["mean"] is None:
        return "no case has a reference to score against"
    low, high = dice["ci95"]
    spread = f" (95 % CI {low:.3f} to {high:.3f})" if low is not None else ""
    line = f"Dice {dice['mean']:.3f}{spread}, n = {summary['n']} {kind}"
    line += f", HD95 {summary['hd95_mm']['mean']:.1f} mm"
    measured = [name for name in summary if name.startswith("nsd_")]
    quoted = f"nsd_{QUOTED_MM:g}mm"
    name = quoted if quoted in measured else measured[0]
    return f"{line}, NSD@{name.removeprefix('nsd_')} {summary[name]['mean']:.2f}"


def people(summary: dict[str, Any]) -> str:
    """What the scored are."""
    return "phantoms" if summary["phantoms"] else "patients"
