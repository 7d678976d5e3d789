"""The four curves of the recipe: loss and Dice, training and validation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pancseg.files import replaced

COLOURS = {"train": "#3566a8", "val": "#d9822b"}


def draw_history(path: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Draw loss and Dice over epochs; the best validation epoch is marked.

    Args:
        path: PNG file.
        rows: One an epoch, as in ``metrics.csv``.
        title: Says what was trained and what was held out.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "dice"), strict=True):
        for part, label in (("train", "training"), ("val", "validation")):
            points = [
                (r["epoch"], r[f"{part}/{name}"])
                for r in rows
                if r.get(f"{part}/{name}") is not None
            ]
            if points:
                axes.plot(*zip(*points, strict=True), color=COLOURS[part], label=label, marker=".")
                if part == "val":
                    best = (max if name == "dice" else min)(points, key=lambda point: point[1])
                    axes.plot(*best, "o", color=COLOURS[part], markersize=9, fillstyle="none")
                    ends = {points[0][0]: "left", points[-1][0]: "right"}  # within the frame
                    axes.annotate(
                        f"{best[1]:.3f} at {best[0]}",
                        best,
                        xytext=(0, 10 if name == "dice" else -17),  # where its own curve is not
                        textcoords="offset points",
                        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1},
                        ha=ends.get(best[0], "center"),
                        fontsize=9,
                    )
        axes.set(
            xlabel="epoch", title="Dice over patients, network's grid" if name == "dice" else "loss"
        )
        if name == "dice":
            axes.set_ylim(0, 1.12)  # room for a figure above 1
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.margins(y=0.15)
        if axes.lines:
            axes.legend(loc="best")
    figure.suptitle(title, fontsize=11)
    with replaced(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
