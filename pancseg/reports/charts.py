"""Charts: functions that plot on matplotlib axes, and SVG of them in the colours of a page."""

import html
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

TEXT, GROUND = "#010203", "#fefdfc"  # placeholders of the page's own colours
TRAIN, VALIDATION, POINT, FAINT = "#3b7dd8", "#cf7518", "#238a7d", "#8a8f98"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "text.parse_math": False,
    "text.color": TEXT, "axes.labelcolor": TEXT, "axes.edgecolor": FAINT, "axes.facecolor": "none",
    "xtick.color": TEXT, "ytick.color": TEXT, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.alpha": 0.25, "legend.frameon": False,
}  # fmt: skip


def as_svg(title: str, plot: Callable[..., None], *values: Any) -> str:
    """SVG element of ``plot(axes, *values)``, with the title as its accessible name."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": title}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser has other fonts
        figure = Figure(figsize=(5, 3.4), layout="constrained")
        plot(figure.add_subplot(), *values)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue().replace(TEXT, "currentColor").replace(GROUND, "var(--ground, white)")
    text = re.sub(r"(?s)^.*?(?=<svg)|<metadata>.*?</metadata>", "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # equal in every chart of a page
    text = re.sub(r' (width|height)="[^"]*pt"', "", text, count=2)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


def plot_curves(axes: Axes, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    """Plot ``loss`` or ``dice`` of rows of ``metrics.csv``, with the best epoch of validation."""
    for subset, label, colour in (("train", "training", TRAIN), ("val", "validation", VALIDATION)):
        column = f"{subset}/{name}"
        points = [(row["epoch"], row[column]) for row in rows if row.get(column) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), ".-", color=colour, label=label)
        if points and subset == "val":
            best = (max if name == "dice" else min)(points, key=lambda point: point[1])
            axes.plot(*best, "o", color=colour, markersize=9, fillstyle="none")
            axes.annotate(
                f"{best[1]:.3f} at {best[0]:g}", best, (0, 10 if name == "dice" else -17),
                textcoords="offset points", fontsize=9,
                ha={points[0][0]: "left", points[-1][0]: "right"}.get(best[0], "center"),
                bbox={"facecolor": GROUND, "alpha": 0.8, "edgecolor": "none", "pad": 1},
            )  # fmt: skip
    axes.set(xlabel="epoch", ylabel="loss" if name == "loss" else "Dice on the network's grid")
    axes.margins(y=0.15)
    if name == "dice":
        axes.set_ylim(0, 1.12)  # leaves space for the number above a Dice of 1
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if rows:
        axes.set_xlim(rows[0]["epoch"] - 0.5, rows[-1]["epoch"] + 0.5)
    if axes.lines:
        axes.legend(loc="lower right" if name == "dice" else "upper right")  # "best" is slow


def plot_boxes(axes: Axes, values: Mapping[str, Sequence[float]]) -> None:
    """Plot boxes of values from 0 to 1 by name, with a point a patient."""
    faint: Any = {name: {"color": FAINT} for name in ("boxprops", "whiskerprops", "capprops")}
    axes.boxplot(
        list(values.values()), positions=range(len(values)), widths=0.5, showfliers=False,
        manage_ticks=False, medianprops={"color": POINT}, **faint,
    )  # fmt: skip
    for i, points in enumerate(values.values()):
        spread = np.random.default_rng(0).uniform(-0.14, 0.14, len(points))
        axes.plot(i + spread, points, "o", color=POINT, alpha=0.8, markersize=4, mew=0)
    axes.set_xticks(range(len(values)), [name.replace("NSD ", "NSD\n") for name in values])
    axes.set(ylim=(-0.02, 1.02), xlim=(-0.6, len(values) - 0.4))


def plot_volumes(axes: Axes, reference_ml: Sequence[float], predicted_ml: Sequence[float]) -> None:
    """Plot predicted against reference volume, a point a patient."""
    end = 1.05 * max(*reference_ml, *predicted_ml, 1.0)
    axes.plot([0, end], [0, end], "--", color=FAINT, linewidth=1)
    axes.plot(reference_ml, predicted_ml, "o", color=POINT, alpha=0.8, mew=0)
    axes.set(xlabel="reference, ml", ylabel="predicted, ml", xlim=(0, end), ylim=(0, end))


def plot_bland_altman(
    axes: Axes, reference_ml: Sequence[float], predicted_ml: Sequence[float], agreement: Any
) -> None:
    """Plot the difference of volumes against their mean, with bias and limits of agreement."""
    differences = np.subtract(predicted_ml, reference_ml)
    means = np.add(reference_ml, predicted_ml) / 2
    axes.plot(means, differences, "o", color=POINT, alpha=0.8, mew=0)
    low, high = agreement["limits"]
    lines = ((agreement["bias"], "-", "bias"), (low, "--", "- 1.96 sd"), (high, "--", "+ 1.96 sd"))
    for value, style, name in lines:
        if value is not None:
            axes.axhline(value, linestyle=style, color=FAINT, linewidth=1)
            axes.annotate(f"{name} {value:.1f}", (1, value), xycoords=("axes fraction", "data"),
                          ha="right", va="bottom", fontsize=8)  # fmt: skip
    axes.set(xlabel="mean of reference and predicted, ml", ylabel="predicted - reference, ml")
    axes.margins(y=0.2)


def plot_calibration(axes: Axes, bins: Sequence[Mapping[str, float]]) -> None:
    """Plot the share of reference voxels against the probability, a point a bin."""
    axes.plot([0, 1], [0, 1], "--", color=FAINT, linewidth=1)
    points = [(values["probability"], values["reference"]) for values in bins]
    axes.plot(*zip(*points, strict=True), "o-", color=POINT)
    axes.set(xlabel="probability", ylabel="share of the reference", xlim=(0, 1), ylim=(0, 1))


def plot_differences(axes: Axes, differences: Sequence[float], better: int) -> None:
    """Plot differences in ascending order, a bar a patient; ``better`` is their good sign."""
    ordered = sorted(differences)
    colours = [POINT if value * better > 0 else VALIDATION for value in ordered]
    axes.bar(range(len(ordered)), ordered, color=colours, width=0.7)
    axes.axhline(0, color=FAINT, linewidth=1)
    axes.set(xlabel="patients, ordered", ylabel="difference", xticks=[])
