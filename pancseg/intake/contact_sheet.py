"""The contact sheet ``intake.png``: a slice of each case with its label, flags and volume."""

import math
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib
import nibabel as nib
import numpy as np
from nibabel import orientations
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from pancseg.data.manifest import Row
from pancseg.files import replaced
from pancseg.geometry import spacing_of
from pancseg.intake.checks import INFO_FLAGS
from pancseg.parallel import progress
from pancseg.structures import IGNORED

PAGE = re.compile(r"intake(_\d+)?\.png")
COLUMNS, ROWS, MIN_COLUMNS = 8, 5, 3
SIDE = 240  # pixels of a picture: a pancreas is some 60 of them long
GAP, FRAME, HEADER, LINE, FONT_SIZE, OUTLINE_WIDTH = 14, 4, 50, 19, 14, 2  # pixels
CHARACTERS, MAX_LINES = 28, 3  # below a picture
WINDOW_HU = (-160, 240)  # abdominal
COLOURS = ((61, 220, 132), (255, 99, 132), (92, 156, 255), (255, 206, 86))  # of structure codes
BACKGROUND, TEXT, FAINT, WARNING = "#16181d", "#f2f2f2", "#9aa3b0", "#ffb347"
RADIOLOGICAL = orientations.axcodes2ornt(("L", "P", "S"))  # the patient's right on the left


def draw_contact_sheet(root: Path, rows: Iterable[Row]) -> list[Path]:
    """Write pages with the rows of images, by case, and remove pages of a longer sheet."""
    size, paths, rows = COLUMNS * ROWS, [], sorted(rows, key=lambda row: row.case)
    patients, flagged = len({row.patient for row in rows}), sum(map(is_flagged, rows))
    counts = f" of {len(rows)} ({patients} patient{'s' * (patients != 1)}), {flagged} flagged"
    for n, start in enumerate(progress(range(0, len(rows), size), "drawing", "page", delay_s=2), 1):
        part = rows[start : start + size]
        title = f"page {n} of {math.ceil(len(rows) / size)}: cases {start + 1} to "
        page = draw_page(root, part, f"{title}{start + len(part)}{counts if n == 1 else ''}")
        paths.append(root / ("intake.png" if n == 1 else f"intake_{n}.png"))
        with replaced(paths[-1]) as temporary:
            page.save(temporary, format="PNG", compress_level=1)
    for path in set(root.glob("intake*.png")).difference(paths):
        if PAGE.fullmatch(path.name):
            path.unlink()
    return paths


def picture_path(case: str) -> str:
    """Path of a case's thumbnail, relative to the prepared folder."""
    return f"pictures/{case}.png"


def is_flagged(row: Row) -> bool:
    """Whether a person should check the case."""
    return not set(INFO_FLAGS).issuperset(row.flags.split())


def text_lines(row: Row) -> list[tuple[str, str]]:
    """Lines below a picture with their colours: name, volumes, flags."""
    flags, volumes = row.flags.split(), f"{float(row.label_ml or 0):.1f} ml" * bool(row.label_ml)
    if row.structures_ml:
        parts = (part.split("=") for part in row.structures_ml.split())
        volumes = " ".join(f"{name}:{float(ml):.1f}ml" for name, ml in parts)
    texts = {
        TEXT: volumes,
        WARNING: " ".join(flag for flag in flags if flag not in INFO_FLAGS),
        FAINT: " ".join(flag for flag in flags if flag in INFO_FLAGS),
    }
    return [(shortened(row.case, CHARACTERS), TEXT)] + [
        (shortened(line, CHARACTERS), colour)
        for colour, text in texts.items()
        for line in wrap(text, CHARACTERS, max_lines=MAX_LINES, placeholder=" ...")
    ]


def draw_page(root: Path, cases: list[Row], title: str) -> Image.Image:
    """Draw a page; thumbnails keep their pixels."""
    columns = max(MIN_COLUMNS, min(COLUMNS, len(cases)))
    rows = [cases[i : i + columns] for i in range(0, len(cases), columns)]
    heights = [SIDE + LINE * (1 + max(len(text_lines(case)) for case in row)) for row in rows]
    width = columns * (SIDE + GAP) + GAP
    page = Image.new("RGB", (width, sum(heights) + HEADER), BACKGROUND)
    draw = ImageDraw.Draw(page)
    draw.text((GAP, GAP), title, TEXT, font(bold=True), anchor="la")
    for i, row in enumerate(rows):
        for column, case in enumerate(row):
            left, top = GAP + column * (SIDE + GAP), HEADER + sum(heights[:i])
            if is_flagged(case):
                box = (left - FRAME, top - FRAME, left + SIDE + FRAME - 1, top + SIDE + FRAME - 1)
                draw.rectangle(box, WARNING)
            if (root / picture_path(case.case)).is_file():
                with Image.open(root / picture_path(case.case)) as picture:
                    page.paste(picture.convert("RGB"), (left, top))
            for n, (line, colour) in enumerate(text_lines(case)):
                y = top + SIDE + LINE // 2 + LINE * n
                draw.text((left, y), line, colour, font(bold=n == 0), anchor="la")
    return page


@cache
def font(*, bold: bool = False) -> ImageFont.FreeTypeFont:
    """A fixed-width font, which matplotlib brings to every machine."""
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"DejaVuSansMono{'-Bold' * bold}.ttf")
    # the other layout engine is not everywhere, and places letters otherwise
    return ImageFont.truetype(str(path), FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)


def shortened(text: str, length: int) -> str:
    """Text without its middle where it is too long; characters the font may lack become ``?``.

    >>> shortened("patient-0001-of-the-study", 15), shortened("Müller-漢…", 15)
    ('patient…e-study', 'Müller-?…')
    """
    kept = (letter.isprintable() and (letter < "\u0100" or letter == "…") for letter in text)
    plain = "".join(letter if keep else "?" for letter, keep in zip(text, kept, strict=True))
    if len(plain) <= length:
        return plain
    tail = (length - 1) // 2
    return f"{plain[: length - 1 - tail]}…{plain[-tail:]}"


def write_thumbnail(path: Path, image: nib.Nifti1Image, codes: NDArray[Any] | None) -> None:
    """Write a thumbnail as PNG; equal pixels give equal bytes."""
    with replaced(path) as temporary:
        Image.fromarray(thumbnail(image, codes)).save(temporary, format="PNG")


def thumbnail(image: nib.Nifti1Image, codes: NDArray[Any] | None) -> NDArray[np.uint8]:
    """The slice with most labelled voxels, else the middle one, isotropic ``(SIDE, SIDE, 3)``."""
    hu, spacing_mm = radiological(image, np.asanyarray(image.dataobj))
    k, plane = hu.shape[2] // 2, np.zeros(hu.shape[:2], np.uint8)
    if codes is not None and codes.any():
        labels, _ = radiological(image, np.where(codes == IGNORED, 0, codes))
        k = int(np.count_nonzero(labels, axis=(0, 1)).argmax())
        plane = labels[..., k]
    extent_mm = (hu.shape[0] * spacing_mm[0], hu.shape[1] * spacing_mm[1])
    width, height = (max(1, round(mm * SIDE / max(extent_mm))) for mm in extent_mm)
    grey = np.interp(hu[..., k].T, WINDOW_HU, (0, 255)).astype(np.uint8)
    slice_ = Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.repeat(padded(slice_)[..., None], 3, axis=2)
    for code in np.unique(plane[plane > 0]):  # with later codes, which may be a part of it
        outline = outline_of(np.greater_equal(plane.T, code), (width, height))
        pixels[outline] = COLOURS[(int(code) - 1) % len(COLOURS)]
    return pixels


def radiological(
    image: nib.Nifti1Image, values: NDArray[Any]
) -> tuple[NDArray[Any], tuple[float, float, float]]:
    """An array on the image's grid, reoriented for display, and its spacing, mm."""
    turn = orientations.ornt_transform(orientations.io_orientation(image.affine), RADIOLOGICAL)
    affine = image.affine @ orientations.inv_ornt_aff(turn, image.shape)
    return orientations.apply_orientation(values, turn), spacing_of(affine)


def padded(grey: Image.Image) -> NDArray[np.uint8]:
    """A grey picture in the middle of a black square, ``(SIDE, SIDE)``."""
    square = Image.new("L", (SIDE, SIDE))
    square.paste(grey, ((SIDE - grey.width) // 2, (SIDE - grey.height) // 2))
    return np.asarray(square)


def outline_of(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels ``(SIDE, SIDE)`` around the mask of a slice, resized to (width, height)."""
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    covered = padded(grey.resize(size, Image.Resampling.BOX))
    inside = covered >= 128 if (covered >= 128).any() else covered > 0
    return ndimage.binary_dilation(inside, iterations=OUTLINE_WIDTH) & ~inside
