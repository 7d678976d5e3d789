"""Charts for pages: drawn by matplotlib as SVG, in the colours of the page they stand on."""

import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#010203"  # stands for the page's text colour
TRAIN, VALIDATION, POINT, FAINT = "#3b7dd8", "#cf7518", "#238a7d", "#8a8f98"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT,
    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "axes.titlesize": 10,
}  # fmt: skip
Row = dict[str, Any]


def as_svg(draw: Callable[[Axes], None], title: str, size: tuple[float, float] = (5, 3.4)) -> str:
    """Draw one chart and give it as text for a page.

    Args:
        draw: Fills the axes.
        title: Read by those who cannot see it; also keeps its names apart from other charts'.
        size: Inches.
    """
    with mpl.rc_context({**STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.set_facecolor("none")
        axes.grid(alpha=0.25)
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the same in every chart
    sized = re.sub(r' (width|height)="[^"]*pt"', "", text, count=2)
    return sized.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


def curves(rows: Sequence[Row], name: str) -> str:
    """Training and validation over epochs, of ``loss`` or ``dice``; at least one epoch."""

    def draw(axes: Axes) -> None:
        parts = (("train", "training", TRAIN), ("val", "validation", VALIDATION))
        for part, label, colour in parts:
            column = f"{part}/{name}"
            points = [(row["epoch"], row[column]) for row in rows if row.get(column) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), ".-", color=colour, label=label)
        axes.set(xlabel="epoch", ylabel=name if name == "loss" else "Dice, network's grid")
        if name == "dice":
            axes.set_ylim(0, 1)
        axes.legend()

    return as_svg(draw, f"{name} of training and validation over epochs")


def boxes(values: dict[str, list[float]]) -> str:
    """Box plots beside one another, a point a patient; all of one scale from 0 to 1."""

    def draw(axes: Axes) -> None:
        for i, one in enumerate(values.values()):
            axes.boxplot(
                one, positions=[i], widths=0.5, showfliers=False, manage_ticks=False,
                medianprops={"color": POINT}, boxprops={"color": FAINT},
                whiskerprops={"color": FAINT}, capprops={"color": FAINT},
            )  # fmt: skip
            spread = np.random.default_rng(0).uniform(-0.14, 0.14, len(one))
            axes.plot(i + spread, one, "o", color=POINT, alpha=0.8, markersize=4, mew=0)
        names = [name.replace("NSD ", "NSD\n") for name in values]
        axes.set_xticks(range(len(values)), names)
        axes.set(ylim=(-0.02, 1.02), xlim=(-0.6, len(values) - 0.4))

    return as_svg(draw, "Box plots of " + ", ".join(values))


def volumes(reference_ml: Sequence[float], measured_ml: Sequence[float]) -> str:
    """Predicted against drawn volume."""

    def draw(axes: Axes) -> None:
        largest = 1.05 * max(*reference_ml, *measured_ml, 1.0)
        axes.plot([0, largest], [0, largest], "--", color=FAINT, linewidth=1)
        axes.plot(reference_ml, measured_ml, "o", color=POINT, alpha=0.8, mew=0)
        axes.set(xlabel="drawn, ml", ylabel="predicted, ml", xlim=(0, largest), ylim=(0, largest))

    return as_svg(draw, "Predicted against drawn volume")


def bland_altman(
    reference_ml: Sequence[float], measured_ml: Sequence[float], agreement: dict[str, Any]
) -> str:
    """Difference of volumes against their mean, with bias and limits of agreement."""

    def draw(axes: Axes) -> None:
        means = np.add(reference_ml, measured_ml) / 2
        axes.plot(means, np.subtract(measured_ml, reference_ml), "o", color=POINT, alpha=0.8, mew=0)
        low, high = agreement["limits"]
        marks = [
            (agreement["bias"], "-", "bias"),
            (low, "--", "- 1.96 sd"),
            (high, "--", "+ 1.96 sd"),
        ]
        for value, line, name in marks:
            if value is not None:
                axes.axhline(value, linestyle=line, color=FAINT, linewidth=1)
                axes.annotate(f"{name} {value:.1f}", (1, value), xycoords=("axes fraction", "data"),
                              ha="right", va="bottom", fontsize=8)  # fmt: skip
        axes.set(xlabel="mean of drawn and predicted, ml", ylabel="predicted - drawn, ml")
        axes.margins(y=0.2)

    return as_svg(draw, "Bland-Altman plot of volumes")


def calibration(bins: Sequence[dict[str, float]]) -> str:
    """Drawn share against probability, bin by bin."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], "--", color=FAINT, linewidth=1)
        points = [(one["probability"], one["drawn"]) for one in bins]
        axes.plot(*zip(*points, strict=True), "o-", color=POINT)
        axes.set(xlabel="probability", ylabel="share that is drawn", xlim=(0, 1), ylim=(0, 1))

    return as_svg(draw, "Calibration curve")


def paired(
    differences: Sequence[float], measure: str, one: str, other: str, better: int = 1
) -> str:
    """Differences of patients, from the smallest to the largest.

    Args:
        differences: One a patient.
        measure: What differs.
        one: Name of a configuration.
        other: That is compared with it.
        better: Sign of the differences that are drawn as better ones.
    """

    def draw(axes: Axes) -> None:
        ordered = sorted(differences)
        colours = [POINT if value * better > 0 else VALIDATION for value in ordered]
        axes.bar(range(len(ordered)), ordered, color=colours, width=0.7)
        axes.axhline(0, color=FAINT, linewidth=1)
        axes.set(xlabel="patients, ordered", ylabel=f"{measure}: {other} less {one}")
        axes.set_xticks([])

    return as_svg(draw, f"Differences of {measure} between {one} and {other}, patient by patient")
