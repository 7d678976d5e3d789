"""Pictures of CT slices with the outlines of masks: drawn in green, predicted in red."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pancseg.files import replaced
from pancseg.geometry import bounding_box
from pancseg.intake.contact_sheet import WINDOW_HU, radiological

WIDTH_INCHES, TITLES_INCHES = 11.0, 0.9
AROUND_MM = 50.0  # of both masks, shown
DRAWN, PREDICTED = "#3ddc84", "#ff5a4f"


def draw_case(
    path: Path,
    image: nib.Nifti1Image,
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    title: str,
) -> None:
    """Draw the middle slice of the drawn mask and the slice with most wrong voxels.

    Args:
        path: PNG file.
        image: HU, any axis order.
        prediction: On the image's grid.
        reference: On the image's grid.
        title: One line.
    """
    hu, spacing_mm = radiological_upright(image, np.asanyarray(image.dataobj))
    predicted, _ = radiological_upright(image, prediction)
    drawn, _ = radiological_upright(image, reference)
    across, along, _ = bounding_box(drawn | predicted, AROUND_MM, spacing_mm)
    columns, rows = hu[across, along, 0].shape
    height = WIDTH_INCHES / 2 * (rows * spacing_mm[1]) / (columns * spacing_mm[0])
    figure = Figure(figsize=(WIDTH_INCHES, height + TITLES_INCHES), layout="constrained")
    middle = middle_slice(drawn if drawn.any() else predicted)
    slices = {"middle": middle, "worst": worst_slice(predicted, drawn)}
    for axes, (name, k) in zip(figure.subplots(1, 2), slices.items(), strict=True):
        wrong = int((predicted[..., k] ^ drawn[..., k]).sum())
        part = (across, along, k)
        outlines = [(drawn[part].T, DRAWN), (predicted[part].T, PREDICTED)]
        show_slice(axes, hu[part].T, outlines, aspect=spacing_mm[1] / spacing_mm[0])
        axes.set_title(f"{name}: slice {k} of {hu.shape[2]}, {wrong} wrong voxels", fontsize=10)
    figure.suptitle(f"{title}   (green drawn, red predicted)", fontsize=11)
    with replaced(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def radiological_upright(
    image: nib.Nifti1Image, values: NDArray[Any]
) -> tuple[NDArray[Any], tuple[float, float, float]]:
    """An array on the image's grid in the order left, front, head, and its spacing, mm."""
    turned, spacing_mm = radiological(image, values)
    return turned[:, ::-1], spacing_mm


def show_slice(
    axes: Axes,
    pixels: NDArray[Any],
    outlines: Sequence[tuple[NDArray[np.bool_], str]],
    *,
    window: tuple[float, float] = WINDOW_HU,
    aspect: float | Literal["auto"] = 1.0,
    width: float = 1.1,
) -> None:
    """Show one slice with outlines of masks.

    Args:
        axes: Where.
        pixels: ``(rows, columns)``, the lowest row first.
        outlines: Masks of that shape, each with its colour.
        window: What is black and what is white.
        aspect: Height of a pixel over its width; ``auto`` fills the axes.
        width: Of the lines, points.
    """
    low, high = window
    axes.imshow(pixels, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=aspect)
    for mask, colour in outlines:
        if mask.any() and not mask.all():  # else there is no outline, and matplotlib warns
            axes.contour(mask, levels=[0.5], colors=colour, linewidths=width)
    axes.set_axis_off()


def middle_slice(mask: NDArray[np.bool_]) -> int:
    """The slice in the middle of a mask, or of the scan where it is empty."""
    found = np.flatnonzero(mask.any(axis=(0, 1)))
    return int(found[len(found) // 2]) if len(found) else mask.shape[2] // 2


def largest_slice(mask: NDArray[Any], axis: int = 2) -> int:
    """The first slice with most voxels; the middle one where the mask is empty.

    >>> mask = np.zeros((2, 2, 7), np.uint8)
    >>> largest_slice(mask)
    3
    >>> mask[0, 0, 1] = mask[0, :, 2] = 1
    >>> largest_slice(mask)
    2
    """
    areas = np.count_nonzero(mask, axis=tuple(i for i in range(3) if i != axis))
    return int(areas.argmax()) if areas.any() else mask.shape[axis] // 2


def worst_slice(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> int:
    """The slice with most voxels that differ.

    >>> one, other = np.zeros((2, 2, 3), bool), np.zeros((2, 2, 3), bool)
    >>> one[..., 2] = True
    >>> worst_slice(one, other)
    2
    """
    return int((prediction ^ reference).sum(axis=(0, 1)).argmax())
