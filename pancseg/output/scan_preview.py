"""A picture of a segmented scan: three planes through the organ, with its outline."""

from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pancseg.atomic import replaced
from pancseg.bounding_box import bounding_box
from pancseg.output.outlines import PREDICTED, WINDOW_HU, as_seen

WIDTH_INCHES = 12.0


def draw_scan(path: Path, image: nib.Nifti1Image, mask: NDArray[np.bool_], title: str) -> None:
    """Draw the planes of largest area, or the middle ones where nothing was found.

    Args:
        path: PNG file; written whole or not at all.
        image: HU, any axis order.
        mask: On its grid.
        title: One line.
    """
    hu, spacing_mm = as_seen(image, np.asanyarray(image.dataobj))
    found, _ = as_seen(image, mask)
    lengths = [size * step for size, step in zip(hu.shape, spacing_mm, strict=True)]
    widths = [lengths[0], lengths[0], lengths[1]]
    tallest = max(lengths[1], lengths[2])
    height = WIDTH_INCHES * tallest / sum(widths) + 0.6
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained", facecolor="black")
    FigureCanvasAgg(figure)
    low, high = WINDOW_HU
    box = bounding_box(found)  # counting voxels of a whole scan takes seconds
    all_axes = figure.subplots(1, 3, width_ratios=widths)
    for axes, axis in zip(all_axes, (2, 1, 0), strict=True):
        k = box[axis].start + fullest(found[box], axis)
        there = (slice(None),) * axis + (k,)
        plane, outline = hu[there].T, found[there].T
        step = [spacing_mm[i] for i in range(3) if i != axis]
        axes.imshow(
            plane, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=step[1] / step[0]
        )
        if outline.any() and not outline.all():
            axes.contour(outline, levels=[0.5], colors=PREDICTED, linewidths=1.1)
        axes.set_axis_off()
    all_axes[2].invert_xaxis()  # the front on the left
    figure.suptitle(title, fontsize=11, color="white")
    with replaced(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def fullest(mask: NDArray[np.bool_], axis: int) -> int:
    """The slice of largest area along an axis, or the middle one.

    >>> fullest(np.zeros((2, 2, 7), bool), axis=2)
    3
    """
    areas = np.count_nonzero(mask, axis=tuple(i for i in range(3) if i != axis))
    return int(areas.argmax()) if areas.any() else mask.shape[axis] // 2
