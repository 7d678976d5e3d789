"""A case small enough to lie in a page: grey values around the organ and both masks, as pictures.

Slices stand side by side in one picture each, which every browser unpacks by itself: JPEG for the
grey values, PNG for the masks. A volume of 96 x 96 x 96 voxels takes a tenth of its bytes.
"""

import base64
import io
import math
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pancseg.geometry import bounding_box
from pancseg.intake.contact_sheet import WINDOW_HU
from pancseg.output.outlines import radiological_upright

SIDE = 96  # voxels, at most
AROUND_MM = 25.0
QUALITY = 80  # of JPEG
LEVEL = 85  # grey levels between the four kinds of voxel, so that rounding harms none
View = dict[str, Any]


def make_view(
    image: nib.Nifti1Image, prediction: NDArray[np.bool_], reference: NDArray[np.bool_]
) -> View:
    """Cut a case to a box around both masks, on cubic voxels, and pack it.

    Args:
        image: HU, any axis order.
        prediction: On its grid.
        reference: On its grid.

    Returns:
        ``shape`` (columns, rows, slices), ``step_mm``, slices side by side in ``columns``, and
        data addresses of ``image`` (8 bit in the abdominal window) and ``masks`` (85 times: 1
        drawn, 2 predicted, 3 both). The first row is the front, the first column the patient's
        right, the first slice nearest the feet.
    """
    hu, spacing_mm = radiological_upright(image, np.asanyarray(image.dataobj))
    predicted, _ = radiological_upright(image, prediction)
    drawn, _ = radiological_upright(image, reference)
    box = box_around(predicted | drawn, spacing_mm)
    extent_mm = [
        (part.stop - part.start) * step for part, step in zip(box, spacing_mm, strict=True)
    ]
    step_mm = max(max(extent_mm) / SIDE, min(spacing_mm))
    shape = [max(1, math.floor(length / step_mm + 1e-6)) for length in extent_mm]
    zoom = [step_mm / step for step in spacing_mm]

    def cubic(values: NDArray[Any], order: int) -> NDArray[Any]:
        cut = values[box].astype(np.float32)
        first = [(z - 1) / 2 for z in zoom]  # the middle of the first new voxel
        return ndimage.affine_transform(
            cut, zoom, offset=first, output_shape=tuple(shape), order=order, mode="nearest"
        )

    low, high = WINDOW_HU
    grey = np.clip((cubic(hu, 1) - low) / (high - low), 0, 1) * 255
    kinds = (cubic(drawn, 0) > 0.5) * 1 + (cubic(predicted, 0) > 0.5) * 2
    columns = math.ceil(math.sqrt(shape[2]))
    return {
        "shape": shape,
        "step_mm": round(step_mm, 3),
        "columns": columns,
        "image": packed(side_by_side(np.rint(grey), columns), "JPEG", quality=QUALITY),
        "masks": packed(side_by_side(kinds * LEVEL, columns), "PNG", optimize=True),
    }


def box_around(
    mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float]
) -> tuple[slice, ...]:
    """A box around a mask with a margin, or around the middle of the scan where it is empty."""
    if not mask.any():
        mask = np.zeros(mask.shape, bool)
        mask[tuple(np.array(mask.shape) // 2)] = True
    return bounding_box(mask, AROUND_MM, spacing_mm)


def side_by_side(volume: NDArray[Any], columns: int) -> NDArray[np.uint8]:
    """Slices of ``(left, front, head)`` as tiles of one picture, from the upper left one on.

    >>> side_by_side(np.arange(6).reshape(1, 2, 3), columns=2).tolist()
    [[3, 4], [0, 1], [5, 0], [2, 0]]
    """
    width, height, depth = volume.shape
    rows = math.ceil(depth / columns)
    sheet = np.zeros((rows * height, columns * width), np.uint8)
    for k in range(depth):
        top, left = k // columns * height, k % columns * width
        sheet[top : top + height, left : left + width] = volume[:, ::-1, k].T
    return sheet


def packed(picture: NDArray[np.uint8], form: str, **options: Any) -> str:
    """A picture as an address that holds it."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
