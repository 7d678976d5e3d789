"""A sheet of training samples, to be checked before training."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pancseg.files import replaced
from pancseg.intake.contact_sheet import BACKGROUND, FAINT, TEXT, shortened
from pancseg.output.outlines import DRAWN, largest_slice, show_slice

COLUMNS, ROWS = 4, 4
WIDTH_INCHES, HEADING_INCHES, TITLE_INCHES, GAP_INCHES = 11.0, 0.5, 0.28, 0.08
TITLE_CHARACTERS, HEADING_CHARACTERS = 38, 110  # that fit a picture, and the sheet


def draw_samples(
    path: Path,
    images: Sequence[NDArray[Any]],
    labels: Sequence[NDArray[Any]],
    titles: Sequence[str],
    heading: str,
    *,
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
) -> None:
    """Draw the slice of largest label area of up to sixteen samples, patient's right on the left.

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
    figure = Figure(figsize=(WIDTH_INCHES, high), facecolor=BACKGROUND)
    figure.text(
        GAP_INCHES / WIDTH_INCHES, 1 - HEADING_INCHES / 2 / high,
        shortened(heading, HEADING_CHARACTERS), color=TEXT, fontsize=12, va="center",
        parse_math=False,
    )  # fmt: skip
    samples = zip(images, labels, titles, strict=True)
    for i, (image, label, title) in zip(range(count), samples, strict=False):
        row, column = divmod(i, COLUMNS)
        left = GAP_INCHES + column * (width + GAP_INCHES)
        top = HEADING_INCHES + row * (height + TITLE_INCHES + GAP_INCHES) + TITLE_INCHES
        place = (left / WIDTH_INCHES, 1 - (top + height) / high)
        axes = figure.add_axes((*place, width / WIDTH_INCHES, height / high))
        k = largest_slice(label > 0)
        # the patient's right on the left side, the front above
        seen, drawn = image[::-1, :, k].T, label[::-1, :, k].T > 0
        aspect = spacing_mm[1] / spacing_mm[0]
        show_slice(axes, seen, [(drawn, DRAWN)], window=(0, 1), aspect=aspect)
        axes.set_title(
            shortened(title, TITLE_CHARACTERS), color=FAINT, fontsize=9, pad=4, parse_math=False
        )
    with replaced(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png", metadata={"Software": None})
