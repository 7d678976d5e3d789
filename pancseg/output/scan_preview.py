"""A picture of a segmented scan: three planes through the organ, with its outline."""

from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pancseg.files import replaced
from pancseg.geometry import bounding_box
from pancseg.output.outlines import (
    PREDICTED,
    largest_slice,
    radiological_upright,
    show_slice,
)

WIDTH_INCHES = 12.0


def draw_scan(path: Path, image: nib.Nifti1Image, mask: NDArray[np.bool_], title: str) -> None:
    """Draw the planes of largest area, or the middle ones where nothing was found.

    Args:
        path: PNG file; written whole or not at all.
        image: HU, any axis order.
        mask: On its grid.
        title: One line.
    """
    hu, spacing_mm = radiological_upright(image, np.asanyarray(image.dataobj))
    found, _ = radiological_upright(image, mask)
    lengths = [size * step for size, step in zip(hu.shape, spacing_mm, strict=True)]
    widths = [lengths[0], lengths[0], lengths[1]]
    tallest = max(lengths[1], lengths[2])
    height = WIDTH_INCHES * tallest / sum(widths) + 0.6
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained", facecolor="black")
    box = bounding_box(found)  # counting voxels of a whole scan takes seconds
    all_axes = figure.subplots(1, 3, width_ratios=widths)
    for axes, axis in zip(all_axes, (2, 1, 0), strict=True):
        k = box[axis].start + largest_slice(found[box], axis)
        there = (slice(None),) * axis + (k,)
        across, up = (spacing_mm[i] for i in range(3) if i != axis)
        show_slice(axes, hu[there].T, [(found[there].T, PREDICTED)], aspect=up / across)
    all_axes[2].invert_xaxis()  # the front on the left
    figure.suptitle(title, fontsize=11, color="white")
    with replaced(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
