"""The picture of the four curves."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from pancseg.output.history import draw_history


@pytest.mark.parametrize("dice", [[0.5], [0.7, 0.8, 0.82], [0.9, 0.2, 0.1], [0.1, 0.5, 1.0, 0.6]])
def test_epochs_are_whole_and_the_best_ones_figure_lies_within_the_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dice: list[float]
) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig

    def kept(figure: Figure, *given: object, **more: object) -> None:
        save(figure, *given, **more)  # type: ignore[arg-type]
        drawn.append(figure)

    monkeypatch.setattr(Figure, "savefig", kept)
    rows = [
        {"epoch": n, "train/dice": one, "val/dice": one, "train/loss": 1 - one, "val/loss": 1 - one}
        for n, one in enumerate(dice, start=1)
    ]
    draw_history(tmp_path / "history.png", rows, "a run")
    (figure,) = drawn
    assert len(figure.axes) == 2
    for axes in figure.axes:
        low, high = axes.get_xlim()
        shown = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert shown and all(tick == round(tick) for tick in shown)
        (best,) = [one for one in axes.texts if isinstance(one, Annotation)]
        frame, words = axes.get_window_extent(), best.get_window_extent()
        marked = axes.transData.transform(best.xy)[1]
        is_dice = "Dice" in axes.get_title()
        assert words.y0 > marked if is_dice else words.y1 < marked  # off its own curve
        assert best.get_bbox_patch()  # read on the other curve, too
        assert frame.x0 <= words.x0 and words.x1 <= frame.x1
        assert frame.y0 <= words.y0 and words.y1 <= frame.y1
