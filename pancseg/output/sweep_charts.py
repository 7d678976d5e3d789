"""Charts of a sweep: the best so far, what mattered, and each parameter against the score."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pancseg.output.charts import FAINT, POINT, VALIDATION, as_svg


def best_so_far(scores: Sequence[float | None]) -> str:
    """Score of each job in their order, and the best until then; None of those without one."""
    known = [(i, score) for i, score in enumerate(scores) if score is not None]
    best = [max(score for _, score in known[: i + 1]) for i in range(len(known))]

    def draw(axes: Axes) -> None:
        numbers = [i for i, _ in known]
        axes.plot(numbers, [score for _, score in known], "o", color=POINT, alpha=0.8, mew=0)
        axes.step(numbers, best, where="post", color=VALIDATION, label="best so far")
        axes.set(xlabel="job", ylabel="val/dice, best epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()

    return as_svg(draw, "Score of each job and the best so far")


def what_mattered(shares: dict[str, float]) -> str:
    """Importance of each parameter, the most important on top."""

    def draw(axes: Axes) -> None:
        names = list(shares)[::-1]
        axes.barh(range(len(names)), [shares[name] for name in names], color=POINT, height=0.6)
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="importance, shares of 1", xlim=(0, 1))

    return as_svg(draw, "Importance of each parameter", (5, 1.2 + 0.4 * len(shares)))


def against(key: str, values: Sequence[Any], scores: Sequence[float], log: bool) -> str:
    """Score against a parameter, a point a job.

    Args:
        key: Of the parameter.
        values: Numbers, or names of choices.
        scores: One a value.
        log: Whether numbers stand on a logarithmic scale.
    """
    numbers = all(isinstance(value, (int, float)) for value in values)
    names = list(dict.fromkeys(map(str, values)))

    def draw(axes: Axes) -> None:
        places = list(values) if numbers else [names.index(str(value)) for value in values]
        axes.plot(places, list(scores), "o", color=POINT, alpha=0.8, mew=0)
        if not numbers:
            axes.set_xticks(range(len(names)), names)
            axes.set_xlim(-0.5, len(names) - 0.5)
        elif log:
            axes.set_xscale("log")
        top = max(scores)
        axes.axhline(top, linestyle="--", color=FAINT, linewidth=1)
        axes.set(xlabel=key, ylabel="val/dice, best epoch")

    return as_svg(draw, f"Score against {key}")
