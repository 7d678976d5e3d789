"""Thumbnails: one slice of a case with its label, small enough to look at a hundred at once."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel import orientations
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pancseg.files import replaced
from pancseg.geometry import spacing_of

SIDE = 240  # pixels: a pancreas is some 60 of them long
WINDOW_HU = (-160, 240)  # the usual abdominal window
OUTLINE = (61, 220, 132)  # the green that labels have in every picture
THICKNESS = 2  # pixels: one is lost where a page is shown smaller than it is
AS_RADIOLOGISTS_LOOK = orientations.axcodes2ornt(("L", "P", "S"))  # patient's right on the left
Pixels = NDArray[np.uint8]


def thumbnail(image: nib.Nifti1Image, mask: NDArray[Any] | None) -> Pixels:
    """Draw the axial slice with most of the label, or the middle one where there is no label.

    Args:
        image: HU, any axis order.
        mask: On the image's grid, 0 and 1; None where there is no label.

    Returns:
        ``(SIDE, SIDE, 3)``: rows, columns, colours; as many mm a pixel down as across, black where
        the slice does not reach.
    """
    hu, spacing_mm = as_seen(image, np.asanyarray(image.dataobj))
    seen = None if mask is None else as_seen(image, mask)[0]
    k = hu.shape[2] // 2 if seen is None else fullest_slice(seen)
    size = fitted((hu.shape[0] * spacing_mm[0], hu.shape[1] * spacing_mm[1]))
    low, high = WINDOW_HU
    shown = (hu[..., k].T.astype(np.float32) - low) * (255 / (high - low))
    grey = Image.fromarray(shown.clip(0, 255).astype(np.uint8))
    pixels = np.repeat(letterboxed(grey.resize(size, Image.Resampling.BILINEAR)), 3, axis=2)
    if seen is not None:
        pixels[outline_of(seen[..., k].T != 0, size)] = OUTLINE
    return pixels


def as_seen(
    image: nib.Nifti1Image, values: NDArray[Any]
) -> tuple[NDArray[Any], tuple[float, float, float]]:
    """An array on the image's grid turned to (left, back, head), a view, and its spacing, mm."""
    turn = orientations.ornt_transform(
        orientations.io_orientation(image.affine), AS_RADIOLOGISTS_LOOK
    )
    turned = orientations.apply_orientation(values, turn)
    affine = image.affine @ orientations.inv_ornt_aff(turn, image.shape)
    return turned, spacing_of(affine)


def fullest_slice(mask: NDArray[Any], axis: int = 2) -> int:
    """The slice with most voxels, of several the first; the middle one where the mask is empty.

    >>> mask = np.zeros((2, 2, 7), np.uint8)
    >>> fullest_slice(mask)
    3
    >>> mask[0, 0, 1] = mask[0, :, 2] = 1
    >>> fullest_slice(mask)
    2
    """
    areas = np.count_nonzero(mask, axis=tuple(i for i in range(3) if i != axis))
    return int(areas.argmax()) if areas.any() else mask.shape[axis] // 2


def fitted(extent_mm: tuple[float, float]) -> tuple[int, int]:
    """Width and height in pixels that fit the square, one scale for both.

    >>> fitted((400.0, 300.0))
    (240, 180)
    """
    scale = SIDE / max(extent_mm)
    width, height = (max(1, round(extent * scale)) for extent in extent_mm)
    return width, height


def letterboxed(grey: Image.Image) -> Pixels:
    """A grey picture in the middle of a black square, ``(SIDE, SIDE, 1)``."""
    square = Image.new("L", (SIDE, SIDE))
    square.paste(grey, ((SIDE - grey.width) // 2, (SIDE - grey.height) // 2))
    return np.asarray(square)[..., None]


def outline_of(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels just outside a mask once it is resized: what it encloses stays visible.

    A pixel belongs to the mask where at least half of it does; of a mask too thin for that,
    wherever any of it does.

    Args:
        mask: ``(rows, columns)`` of the slice.
        size: Width and height of the resized slice, pixels.

    Returns:
        ``(SIDE, SIDE)``.
    """
    covered = letterboxed(
        Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
    )[..., 0]
    inside = covered >= 128 if (covered >= 128).any() else covered > 0
    return ndimage.binary_dilation(inside, iterations=THICKNESS) & ~inside


def write_thumbnail(path: Path, pixels: Pixels) -> None:
    """Write a thumbnail as PNG; equal pixels give equal bytes."""
    with replaced(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def read_thumbnail(path: Path) -> Pixels:
    """Read a thumbnail, ``(rows, columns, 3)``."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))
