"""Pictures of CT slices with mask outlines, reference green and prediction red; curves of a run.

Images hold HU in any axis order; their masks lie on the same grid.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pancseg.files import replaced
from pancseg.geometry import bounding_box
from pancseg.intake.contact_sheet import BACKGROUND, TEXT, WINDOW_HU, radiological, shortened
from pancseg.reports.charts import plot_curves

REFERENCE, PREDICTED = "#3ddc84", "#ff5a4f"
OUTLINES = (PREDICTED, "#4f9dff", "#ffc83c", "#b98bff", "#3ddc84", "#ffffff")  # of structures
WIDTH_INCHES = 11.0
CASE_MARGIN_MM, VIEW_MARGIN_MM = 50.0, 25.0  # around both masks
SAMPLE_COLUMNS, SAMPLE_ROWS = 4, 4
TITLE_CHARACTERS, SAMPLE_CHARACTERS = 110, 38  # of a line over a picture, and of a sample
VIEW_SIDE = 96  # voxels of a view along an axis, at most
GREY_STEP = 85  # between the four values of a mask in a view
Array = NDArray[Any]
Mask = NDArray[np.bool_]


def draw_case(
    path: Path, image: nib.Nifti1Image, prediction: Mask, reference: Mask, title: str
) -> None:
    """Draw the middle slice of the reference, and the slice with most wrong voxels."""
    (hu, predicted, expected), spacing_mm = upright(image, prediction, reference)
    columns, rows, _ = bounding_box(expected | predicted, CASE_MARGIN_MM, spacing_mm)
    wrong = (predicted ^ expected).sum(axis=(0, 1))
    covered = np.asarray((expected if expected.any() else predicted).any(axis=(0, 1)))
    filled = np.flatnonzero(covered if covered.any() else ~covered)
    aspect = spacing_mm[1] / spacing_mm[0]
    height = WIDTH_INCHES / 2 * aspect * (rows.stop - rows.start) / (columns.stop - columns.start)
    figure = Figure(figsize=(WIDTH_INCHES, height + 0.7), layout="constrained")
    middle = filled[len(filled) // 2]
    slices = {"middle": middle, "worst": wrong.argmax() if wrong.any() else middle}
    for axes, (name, k) in zip(figure.subplots(1, 2), slices.items(), strict=True):
        part = (columns, rows, k)
        masks = {REFERENCE: expected[part].T, PREDICTED: predicted[part].T}
        show_slice(axes, hu[part].T, masks, aspect)
        axes.set_title(f"{name}: slice {k} of {hu.shape[2]}, {wrong[k]} wrong voxels", fontsize=10)
    save_png(figure, path, f"{title}   (green reference, red predicted)")


def draw_scan(path: Path, image: nib.Nifti1Image, masks: Sequence[Mask], title: str) -> None:
    """Draw the axial, coronal and sagittal slice of largest area of the last mask with any voxel.

    Of an organ and its lesion that is the lesion; all masks are outlined. Without any voxel middle
    slices are drawn. The title may have several lines.
    """
    (hu, *predicted), spacing_mm = upright(image, *masks)
    lengths = np.multiply(hu.shape, spacing_mm)
    widths = lengths[[0, 0, 1]]
    height = WIDTH_INCHES * max(lengths[1:]) / widths.sum() + 0.5 + 0.2 * title.count("\n")
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained", facecolor=BACKGROUND)
    shown = next((mask for mask in reversed(predicted) if mask.any()), predicted[0])
    box = bounding_box(shown)  # counting all voxels of a scan takes seconds
    planes = figure.subplots(1, 3, width_ratios=widths.tolist())
    for axes, axis in zip(planes, (2, 1, 0), strict=True):
        k = box[axis].start + largest_slice(shown[box], axis)
        across, up = (spacing_mm[i] for i in range(3) if i != axis)
        # numpy's take would copy a scan that is not in C order, as most are not
        scan, *slices = (np.moveaxis(values, axis, 0)[k].T for values in (hu, *predicted))
        show_slice(axes, scan, dict(zip(OUTLINES, slices, strict=False)), up / across)
    planes[2].invert_xaxis()  # the front on the left
    save_png(figure, path, title, TEXT)


def draw_samples(
    path: Path, images: Sequence[Array], labels: Sequence[Array], titles: Sequence[str],
    heading: str, *, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
) -> None:  # fmt: skip
    """Draw the slice of largest label area of up to sixteen samples, patient's right on the left.

    Images and labels are ``(H, W, D)`` in RAS, images from 0 to 1; labels above 0 are outlined.
    """
    samples = list(zip(images, labels, titles, strict=True))[: SAMPLE_COLUMNS * SAMPLE_ROWS]
    rows, aspect = max(1, math.ceil(len(samples) / SAMPLE_COLUMNS)), spacing_mm[1] / spacing_mm[0]
    tallest = max((aspect * image.shape[1] / image.shape[0] for image, *_ in samples), default=1.0)
    height = rows * (WIDTH_INCHES / SAMPLE_COLUMNS * tallest + 0.25) + 0.4
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained", facecolor=BACKGROUND)
    grid = figure.subplots(rows, SAMPLE_COLUMNS, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, (image, label, title) in zip(grid, samples, strict=False):
        k = largest_slice(label > 0)
        outline = {REFERENCE: label[::-1, :, k].T > 0}
        show_slice(axes, image[::-1, :, k].T, outline, aspect, limits=(0, 1))
        title = shortened(title, SAMPLE_CHARACTERS)
        axes.set_title(title, color=TEXT, fontsize=9, parse_math=False)
    save_png(figure, path, heading, TEXT)


def draw_history(path: Path, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw loss and Dice over epochs, which are rows of ``metrics.csv``."""
    figure = Figure(figsize=(WIDTH_INCHES, 4.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "dice"), strict=True):
        axes.grid(alpha=0.3)
        plot_curves(axes, rows, name)
    save_png(figure, path, title)


def save_png(figure: Figure, path: Path, title: str, colour: str = "black") -> None:
    """Write a figure with a title; equal figures give equal bytes."""
    title = "\n".join(shortened(line, TITLE_CHARACTERS) for line in title.split("\n"))
    figure.suptitle(title, fontsize=11, color=colour, parse_math=False)
    with replaced(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})


def upright(image: nib.Nifti1Image, *masks: Mask) -> tuple[list[Array], Sequence[float]]:
    """Voxels and masks of an image with axes to left, front and head, and its spacing, mm."""
    turned = [radiological(image, array) for array in (np.asanyarray(image.dataobj), *masks)]
    return [array[:, ::-1] for array, _ in turned], turned[0][1]


def show_slice(
    axes: Axes, pixels: Array, masks: dict[str, Mask], aspect: float, limits: Any = WINDOW_HU
) -> None:
    """Show a slice ``(rows, columns)``, the lowest row first, with masks outlined, by colour.

    ``aspect`` is the height of a pixel over its width; ``limits`` are black and white.
    """
    axes.imshow(pixels, "gray", aspect=aspect, vmin=limits[0], vmax=limits[1], origin="lower")
    for colour, mask in masks.items():
        if mask.any() and not mask.all():  # otherwise there is no outline, and matplotlib warns
            axes.contour(mask, levels=[0.5], colors=colour, linewidths=1.1)
    axes.set_axis_off()


def largest_slice(mask: Array, axis: int = 2) -> int:
    """The first slice with most voxels; the middle slice of an empty mask.

    >>> mask = np.array([[[0, 1, 1, 0, 0], [0, 1, 1, 1, 0]]])
    >>> largest_slice(mask), largest_slice(0 * mask)
    (1, 2)
    """
    areas = np.count_nonzero(mask, axis=tuple(i for i in range(3) if i != axis))
    return int(areas.argmax()) if areas.any() else mask.shape[axis] // 2


def make_view(image: nib.Nifti1Image, prediction: Mask, reference: Mask) -> dict[str, Any]:
    """Cut a case to a box around both masks, on cubic voxels, as pictures for a page.

    Returns:
        ``shape`` (columns, rows, slices), ``step_mm``, number of slices side by side in
        ``columns``, and data URLs of ``image`` (8 bits of the abdominal window) and ``masks`` (85
        times: 1 reference, 2 predicted, 3 both). The first row is the front, the first column the
        patient's right, the first slice nearest the feet.
    """
    (hu, predicted, expected), spacing_mm = upright(image, prediction, reference)
    marked = predicted | expected
    if not marked.any():
        marked[tuple(np.array(marked.shape) // 2)] = True
    box = bounding_box(marked, VIEW_MARGIN_MM, spacing_mm)
    extent_mm = [(side.stop - side.start) * mm for side, mm in zip(box, spacing_mm, strict=True)]
    step_mm = max(max(extent_mm) / VIEW_SIDE, min(spacing_mm))
    shape = tuple(max(1, math.floor(length / step_mm + 1e-6)) for length in extent_mm)
    zoom = np.divide(step_mm, spacing_mm)

    def resampled(values: Array, order: int) -> Array:
        offset = (zoom - 1) / 2  # centre of the first voxel
        values = values[box].astype(np.float32)
        return ndimage.affine_transform(values, zoom, offset, shape, order=order, mode="nearest")

    grey = np.rint(np.interp(resampled(hu, 1), WINDOW_HU, (0, 255)))
    masks = (resampled(expected, 0) > 0.5) * 1 + (resampled(predicted, 0) > 0.5) * 2
    columns = math.ceil(math.sqrt(shape[2]))
    return {
        "shape": shape,
        "step_mm": round(step_mm, 3),
        "columns": columns,
        "image": data_url(side_by_side(grey, columns), "JPEG", quality=80),
        "masks": data_url(side_by_side(masks * GREY_STEP, columns), "PNG", optimize=True),
    }


def side_by_side(volume: Array, columns: int) -> NDArray[np.uint8]:
    """Slices of a volume ``(left, front, head)`` as tiles of one picture, row by row.

    >>> side_by_side(np.arange(6).reshape(1, 2, 3), columns=2).tolist()
    [[3, 4], [0, 1], [5, 0], [2, 0]]
    """
    width, height, depth = volume.shape
    rows = math.ceil(depth / columns)
    tiles = np.zeros((rows * columns, height, width), np.uint8)
    tiles[:depth] = volume[:, ::-1].T
    grid = tiles.reshape(rows, columns, height, width).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width)


def data_url(picture: NDArray[np.uint8], form: str, **options: Any) -> str:
    """A picture as a data URL."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
