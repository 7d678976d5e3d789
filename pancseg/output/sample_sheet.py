"""A sheet of samples as the network sees them, so that a person can look before training."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pancseg.atomic import replaced
from pancseg.dataset.contact_sheet import FAINT, GROUND, INK, shortened
from pancseg.output.outlines import DRAWN

COLUMNS, ROWS = 4, 4
WIDTH_INCHES, HEADING_INCHES, TITLE_INCHES, GAP_INCHES = 11.0, 0.5, 0.28, 0.08
LETTERS, HEADING_LETTERS = 38, 110  # that fit a picture, and the sheet


def draw_samples(
    path: Path,
    images: Sequence[NDArray[Any]],
    labels: Sequence[NDArray[Any]],
    titles: Sequence[str],
    heading: str,
    *,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
) -> None:
    """Draw the slice of largest label area of up to sixteen samples, as radiologists look.

    Args:
        path: PNG file; written whole or not at all.
        images: Each ``(H, W, D)`` 0..1, in RAS.
        labels: Of the same shapes; what is above 0 is outlined.
        titles: One for each sample.
        heading: One line above all.
        spacing_mm: Voxel size, for the shape of pixels.
    """
    count = min(len(images), COLUMNS * ROWS)
    rows = max(1, math.ceil(count / COLUMNS))
    width = (WIDTH_INCHES - GAP_INCHES) / COLUMNS - GAP_INCHES
    shapes = [np.multiply(image.shape, spacing_mm) for image in images[:count]]
    height = width * max((shape[1] / shape[0] for shape in shapes), default=1.0)
    high = HEADING_INCHES + rows * (height + TITLE_INCHES + GAP_INCHES)
    figure = Figure(figsize=(WIDTH_INCHES, high), facecolor=GROUND)
    FigureCanvasAgg(figure)
    figure.text(
        GAP_INCHES / WIDTH_INCHES, 1 - HEADING_INCHES / 2 / high,
        shortened(heading, HEADING_LETTERS), color=INK, fontsize=12, va="center", parse_math=False,
    )  # fmt: skip
    samples = zip(images, labels, titles, strict=True)
    for i, (image, label, title) in zip(range(count), samples, strict=False):
        row, column = divmod(i, COLUMNS)
        left = GAP_INCHES + column * (width + GAP_INCHES)
        top = HEADING_INCHES + row * (height + TITLE_INCHES + GAP_INCHES) + TITLE_INCHES
        place = (left / WIDTH_INCHES, 1 - (top + height) / high)
        axes = figure.add_axes((*place, width / WIDTH_INCHES, height / high))
        show(axes, image, label > 0, spacing_mm)
        axes.set_title(shortened(title, LETTERS), color=FAINT, fontsize=9, pad=4, parse_math=False)
    with replaced(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png", metadata={"Software": None})


def show(
    axes: Axes, image: NDArray[Any], mask: NDArray[np.bool_], spacing_mm: Sequence[float]
) -> None:
    """Show one slice with its outline: the patient's right on the left side, the front above."""
    k = fullest_slice(mask)
    aspect = spacing_mm[1] / spacing_mm[0]
    seen = image[::-1, :, k].T
    axes.imshow(seen, cmap="gray", vmin=0, vmax=1, origin="lower", aspect=aspect)
    outlined = mask[::-1, :, k].T
    if outlined.any() and not outlined.all():
        axes.contour(outlined, levels=[0.5], colors=DRAWN, linewidths=1.1)
    axes.set_axis_off()


def fullest_slice(mask: NDArray[np.bool_]) -> int:
    """The slice of largest area, or the middle one where the mask is empty.

    >>> fullest_slice(np.zeros((2, 2, 7), bool))
    3
    """
    areas = mask.sum(axis=(0, 1))
    return int(areas.argmax()) if areas.any() else mask.shape[2] // 2
