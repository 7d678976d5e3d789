"""The table of scores on the console: worst first, with what was held out."""

from typing import Any

from rich.console import Console
from rich.table import Table

NOT_HELD_OUT = "NOT HELD OUT: these patients were trained on or used to choose the checkpoint"


def print_scores(rows: list[dict[str, Any]], summary: dict[str, Any], subset: str) -> None:
    """Print one line a case, worst Dice first, and the mean with its interval."""
    held_out = summary["held_out"]
    kind = "PHANTOMS" if summary["phantoms"] else "patients"
    title = f"{subset}: {summary['n']} {kind}, {'held out' if held_out else NOT_HELD_OUT}"
    columns = [name for name in rows[0] if name != "patient"]
    table = Table(title=title, caption=headline(summary))
    for name in columns:
        table.add_column(name, justify="left" if name in ("case", "status") else "right")
    for row in sorted(rows, key=lambda row: (row["dice"] is None, row["dice"])):
        table.add_row(*(shown(row[name]) for name in columns))
    Console(width=None if Console().is_terminal else 120).print(table)


def headline(summary: dict[str, Any]) -> str:
    """The line one would quote.

    >>> figures = {"mean": 0.871, "ci95": [0.842, 0.894]}
    >>> headline({"dice": figures, "n": 24, "held_out": True, "phantoms": False})
    'Dice 0.871 (95 % CI 0.842 to 0.894), n = 24 held-out patients, whole cases on their own grid'
    """
    dice, who = summary["dice"], "phantoms" if summary["phantoms"] else "patients"
    kind = f"held-out {who}" if summary["held_out"] else f"{who}, NOT HELD OUT"
    if dice["mean"] is None:
        return "no case has a reference to score against"
    low, high = dice["ci95"]
    spread = f" (95 % CI {low:.3f} to {high:.3f})" if low is not None else ""
    return (
        f"Dice {dice['mean']:.3f}{spread}, n = {summary['n']} {kind}, whole cases on their own grid"
    )


def shown(value: Any) -> str:
    """A cell."""
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
