"""The contact sheet ``intake.png``: a slice of each case with its label, flags and volume.

Drawn by Pillow: matplotlib takes minutes for thousands of cases.
"""

import math
import re
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib
import nibabel as nib
import numpy as np
from nibabel import orientations
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from scipy import ndimage

from pancseg.files import replaced
from pancseg.geometry import spacing_of
from pancseg.intake.flags import FACTS
from pancseg.parallel import progress

PAGE = re.compile(r"intake(_\d+)?\.png")
COLUMNS, ROWS, MIN_COLUMNS = 8, 5, 3
KEY = "Comment"  # PNG's keyword for text; holds a hash of everything on the page

SIDE = 240  # pixels of a picture: a pancreas is some 60 of them long
GAP, FRAME, HEADER, LINE, FONT_SIZE, OUTLINE_WIDTH = 14, 4, 50, 19, 14, 2  # pixels
CHARACTERS, FLAG_LINES = 28, 3  # characters of a line below a picture

WINDOW_HU = (-160, 240)  # abdominal
COLOURS = ((61, 220, 132), (255, 99, 132), (92, 156, 255), (255, 206, 86))  # of structure codes
BACKGROUND, TEXT, FAINT, WARNING, EMPTY = "#16181d", "#f2f2f2", "#9aa3b0", "#ffb347", 40
RADIOLOGICAL = orientations.axcodes2ornt(("L", "P", "S"))  # the patient's right on the left


@dataclass(frozen=True)
class Tile:
    """A case on the sheet."""

    case: str
    patient: str
    picture: Path  # thumbnail
    flags: str
    text: str  # volume

    @property
    def is_flagged(self) -> bool:
        """Whether a person should check the case."""
        return any(flag not in FACTS for flag in self.flags.split())


@dataclass(frozen=True)
class Page:
    """A page of the sheet."""

    path: Path
    tiles: list[Tile]
    title: str
    number: str

    @cached_property
    def key(self) -> str:
        """Hash of everything on the page: an unchanged page is not drawn again."""
        tiles = [
            (tile.case, tile.flags, tile.text, tile.picture.is_file() and tile.picture.read_bytes())
            for tile in self.tiles
        ]
        return sha256(repr((self.title, self.number, tiles)).encode()).hexdigest()


def draw_contact_sheet(root: Path, tiles: list[Tile]) -> list[Path]:
    """Write ``intake.png``, ``intake_2.png`` and so on, and remove pages of a longer sheet.

    Only the first page says how many cases there are, so that an added case changes few pages.
    """
    size, pages = COLUMNS * ROWS, []
    for n, start in enumerate(range(0, len(tiles), size), start=1):
        part = tiles[start : start + size]
        title, number = f"cases {start + 1} to {start + len(part)}", f"page {n}"
        if n == 1:
            patients, flagged = len({t.patient for t in tiles}), sum(t.is_flagged for t in tiles)
            plural = "s" * (patients != 1)
            title += f" of {len(tiles)} ({patients} patient{plural}), {flagged} flagged"
            number += f" of {math.ceil(len(tiles) / size)}"
        path = root / ("intake.png" if n == 1 else f"intake_{n}.png")
        pages.append(Page(path, part, title, number))
    new = [page for page in pages if page.key != stored_key(page.path)]
    for page in progress(new, "drawing", "page", delay_s=2):
        draw_page(page)
    for path in set(root.glob("intake*.png")).difference(page.path for page in pages):
        if PAGE.fullmatch(path.name):
            path.unlink()
    return [page.path for page in pages]


def stored_key(path: Path) -> str | None:
    """The key of a drawn page, if it can be read."""
    try:
        with Image.open(path) as picture:
            return picture.info.get(KEY)
    except OSError:
        return None


def draw_page(page: Page) -> None:
    """Draw a page; thumbnails keep their pixels."""
    columns = max(MIN_COLUMNS, min(COLUMNS, len(page.tiles)))
    rows = [page.tiles[i : i + columns] for i in range(0, len(page.tiles), columns)]
    heights = [SIDE + LINE * (2 + max(len(flag_lines(tile)) for tile in row)) for row in rows]
    width = columns * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", (width, sum(heights) + HEADER), BACKGROUND)
    write(sheet, GAP, GAP, page.title, bold=True)
    write(sheet, width - GAP, GAP, page.number, colour=FAINT, anchor="r")
    top = HEADER
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            draw_tile(sheet, tile, GAP + column * (SIDE + GAP), top)
        top += height
    info = PngInfo()
    info.add_text(KEY, page.key)
    with replaced(page.path) as temporary:
        sheet.save(temporary, format="PNG", pnginfo=info, compress_level=1)


def draw_tile(sheet: Image.Image, tile: Tile, left: int, top: int) -> None:
    """Draw a thumbnail with text below, and a frame where the case is flagged."""
    if tile.is_flagged:
        box = (left - FRAME, top - FRAME, left + SIDE + FRAME - 1, top + SIDE + FRAME - 1)
        ImageDraw.Draw(sheet).rectangle(box, WARNING)
    if tile.picture.is_file():
        with Image.open(tile.picture) as picture:
            sheet.paste(picture.convert("RGB"), (left, top))
    else:
        sheet.paste((EMPTY,) * 3, (left, top, left + SIDE, top + SIDE))
        write(sheet, left + SIDE // 2, top + SIDE // 2, "no picture", colour=FAINT, anchor="m")
    below = top + SIDE + LINE // 2
    text = shortened(tile.text, CHARACTERS // 2)
    write(sheet, left, below, shortened(tile.case, CHARACTERS - len(text) - 1), bold=True)
    write(sheet, left + SIDE, below, text, anchor="r")
    for i, (line, colour) in enumerate(flag_lines(tile), start=1):
        write(sheet, left, below + LINE * i, line, colour=colour)


def flag_lines(tile: Tile) -> list[tuple[str, str]]:
    """Lines below a thumbnail with their colours: flags, then facts."""
    found = []
    for colour, most_lines, are_facts in ((WARNING, FLAG_LINES, False), (FAINT, 1, True)):
        text = " ".join(flag for flag in tile.flags.split() if (flag in FACTS) == are_facts)
        lines = wrap(
            text, CHARACTERS, max_lines=most_lines, placeholder=" ...", break_on_hyphens=False
        )
        found += [(line, colour) for line in lines]
    return found


def write(
    sheet: Image.Image,
    x: int,
    y: int,
    text: str,
    colour: str = TEXT,
    bold: bool = False,
    anchor: str = "l",
) -> None:
    """Write a line; ``x`` is its left, right or middle, ``y`` its upper edge."""
    ImageDraw.Draw(sheet).text((x, y), text, colour, font(bold), anchor=f"{anchor}a")


@cache
def font(bold: bool) -> ImageFont.FreeTypeFont:
    """A fixed-width font, which matplotlib brings to every machine."""
    name = f"DejaVuSansMono{'-Bold' * bold}.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    # the other layout engine is not everywhere, and places letters otherwise
    return ImageFont.truetype(str(path), FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)


def shortened(text: str, length: int) -> str:
    """Text without its middle where it is too long; characters the font may lack become ``?``.

    >>> shortened("patient-0001-of-the-study", 15), shortened("Müller-漢", 15)
    ('patient…e-study', 'Müller-?')
    """
    plain = re.sub(r"[^ -~\xa1-\xac\xae-\xff]", "?", text)
    if len(plain) <= length:
        return plain
    kept = length - 1
    return f"{plain[: kept - kept // 2]}…{plain[len(plain) - kept // 2 :]}"


def thumbnail(image: nib.Nifti1Image, codes: NDArray[Any] | None) -> NDArray[np.uint8]:
    """Draw the axial slice with most labelled voxels, or the middle slice without label.

    Returns ``(SIDE, SIDE, 3)``, isotropic, padded with black. Each structure code has a colour.
    """
    hu, spacing_mm = radiological(image, np.asanyarray(image.dataobj))
    k, drawn = hu.shape[2] // 2, np.zeros(hu.shape[:2], np.uint8)
    if codes is not None and codes.any():
        labels, _ = radiological(image, codes)
        k = int(np.count_nonzero(labels, axis=(0, 1)).argmax())
        drawn = labels[..., k]
    extent_mm = (hu.shape[0] * spacing_mm[0], hu.shape[1] * spacing_mm[1])
    width, height = (max(1, round(mm * SIDE / max(extent_mm))) for mm in extent_mm)
    grey = np.interp(hu[..., k].T, WINDOW_HU, (0, 255)).astype(np.uint8)
    slice_ = Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.repeat(padded(slice_)[..., None], 3, axis=2)
    for code in np.unique(drawn[drawn > 0]):
        outline = outline_of(code == drawn.T, (width, height))
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
    """Pixels ``(SIDE, SIDE)`` around the mask of a slice, resized to (width, height).

    A pixel belongs to the mask where half of it does; if it is too thin for that, where any does.
    """
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    covered = padded(grey.resize(size, Image.Resampling.BOX))
    inside = covered >= 128 if (covered >= 128).any() else covered > 0
    return ndimage.binary_dilation(inside, iterations=OUTLINE_WIDTH) & ~inside


def write_thumbnail(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write a thumbnail as PNG; equal pixels give equal bytes."""
    with replaced(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
