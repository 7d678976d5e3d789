"""A page of a contact sheet: pictures of cases with the words below them."""

import hashlib
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from textwrap import wrap

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from pancseg.files import replaced
from pancseg.intake.checks.flags import FACTS
from pancseg.output.thumbnails import SIDE, read_thumbnail

COLUMNS = 8
FEWEST_COLUMNS = 3  # the header needs their width
PACKED = 1  # of 9: a tenth larger, in a fifth of the time
KEY = "Comment"  # PNG's word for it

# Pixels.
GAP, FRAME, HEADER, LINE = 14, 4, 50, 19
LETTER = 14  # high, and 8.4 wide
LETTERS = 28  # that fit a tile
FLAG_LINES = 3
GROUND, INK, FAINT, WARNING, EMPTY = "#16181d", "#f2f2f2", "#9aa3b0", "#ffb347", 40


@dataclass(frozen=True)
class Tile:
    """A case on the sheet.

    Attributes:
        case: Its name.
        patient: Whose it is.
        picture: Its thumbnail, or None.
        flags: As in the table, separated by spaces.
        text: A few words beside the name, such as the label's volume.
    """

    case: str
    patient: str
    picture: Path | None
    flags: str
    text: str

    @property
    def is_flagged(self) -> bool:
        """Whether there is anything to look at, apart from facts."""
        return any(flag not in FACTS for flag in self.flags.split())


@dataclass(frozen=True)
class Page:
    """A page to draw.

    Attributes:
        path: Where to.
        tiles: On it.
        header: Said at the left.
        number: Said at the right.
    """

    path: Path
    tiles: list[Tile]
    header: str
    number: str

    @cached_property
    def key(self) -> str:
        """Hash of all that is seen on it: a page that was drawn with it is not drawn again."""
        digest = hashlib.sha256(f"{self.header}\n{self.number}".encode())
        for tile in self.tiles:
            shown = f"\n{tile.case}\n{tile.flags}\n{tile.text}\n"
            digest.update(shown.encode("utf-8", "surrogatepass"))
            if tile.picture is not None and tile.picture.is_file():
                digest.update(tile.picture.read_bytes())
        return digest.hexdigest()


def draw_page(page: Page) -> bool:
    """Draw one page; pictures keep their pixels.

    By Pillow: matplotlib takes several times as long, minutes for thousands of cases.

    Returns:
        Whether its process ended: it did not.
    """
    tiles = page.tiles
    columns = max(FEWEST_COLUMNS, min(COLUMNS, len(tiles)))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [SIDE + LINE * (2 + max(len(flag_lines(tile)) for tile in row)) for row in rows]
    width, height = columns * (SIDE + GAP) + GAP, sum(heights) + HEADER
    sheet = Image.new("RGB", (width, height), GROUND)
    write(sheet, GAP, GAP, page.header, bold=True)
    write(sheet, width - GAP, GAP, page.number, colour=FAINT, anchor="r")
    top = HEADER
    for row, row_height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            draw_tile(sheet, tile, GAP + column * (SIDE + GAP), top)
        top += row_height
    told = PngInfo()
    told.add_text(KEY, page.key)
    with replaced(page.path) as temporary:
        sheet.save(temporary, format="PNG", pnginfo=told, compress_level=PACKED)
    return False


def draw_tile(sheet: Image.Image, tile: Tile, left: int, top: int) -> None:
    """Draw a picture with the words below it, and a frame where the case is flagged.

    Args:
        sheet: The page.
        tile: The case.
        left: Of the picture, pixels from the page's left edge.
        top: Of the picture, pixels from the page's upper edge.
    """
    if tile.is_flagged:
        ends = (left - FRAME, top - FRAME, left + SIDE + FRAME - 1, top + SIDE + FRAME - 1)
        ImageDraw.Draw(sheet).rectangle(ends, WARNING)
    if tile.picture is not None and tile.picture.is_file():
        sheet.paste(Image.fromarray(read_thumbnail(tile.picture)), (left, top))
    else:
        sheet.paste((EMPTY,) * 3, (left, top, left + SIDE, top + SIDE))
        middle = (left + SIDE // 2, top + SIDE // 2)
        write(sheet, *middle, "no picture", colour=FAINT, anchor="m")
    below = top + SIDE + LINE // 2
    beside = shortened(tile.text, LETTERS // 2)
    name = shortened(tile.case, LETTERS - len(beside) - 1)
    write(sheet, left, below, name, bold=True)
    write(sheet, left + SIDE, below, beside, anchor="r")
    for i, (line, colour) in enumerate(flag_lines(tile), start=1):
        write(sheet, left, below + LINE * i, line, colour=colour)


def flag_lines(tile: Tile) -> list[tuple[str, str]]:
    """Lines below a picture, each with its colour: what to look at, then facts."""
    flags = tile.flags.split()
    facts = lines_of([flag for flag in flags if flag in FACTS], 1)
    warnings = lines_of([flag for flag in flags if flag not in FACTS], FLAG_LINES)
    return [(line, WARNING) for line in warnings] + [(line, FAINT) for line in facts]


def write(
    sheet: Image.Image,
    x: int,
    y: int,
    text: str,
    *,
    colour: str = INK,
    bold: bool = False,
    anchor: str = "l",
) -> None:
    """Write one line; ``x`` is its left, right or middle, ``y`` its upper edge."""
    ImageDraw.Draw(sheet).text((x, y), text, colour, font(bold), anchor=f"{anchor}a")


@cache
def font(bold: bool) -> ImageFont.FreeTypeFont:
    """Fixed width, as matplotlib brings it to every machine."""
    name = f"DejaVuSansMono{'-Bold' * bold}.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    # the other engine is not everywhere, and sets letters otherwise
    return ImageFont.truetype(str(path), LETTER, layout_engine=ImageFont.Layout.BASIC)


def shortened(text: str, letters: int) -> str:
    """A text that fits, its middle left out; characters that the font may lack become ``?``.

    >>> shortened("patient-0001-of-the-study", 15), shortened("Müller-漢", 15)
    ('patient…e-study', 'Müller-?')
    """
    plain = text.encode("latin-1", "replace").decode("latin-1")
    plain = "".join(letter if letter.isprintable() else "?" for letter in plain)
    if len(plain) <= letters:
        return plain
    kept = letters - 1
    return f"{plain[: kept - kept // 2]}…{plain[len(plain) - kept // 2 :]}"


def lines_of(flags: list[str], most: int) -> list[str]:
    """Flags wrapped to a tile's width; where lines do not do, the last says how many are left.

    >>> lines_of(["repaired", "label_cut", "hu_windowed", "slice_order", "label_gaps"], 1)
    ['repaired label_cut +3 more']
    """
    for shown in range(len(flags), -1, -1):
        left = len(flags) - shown
        words = " ".join(flags[:shown] + [f"+{left} more"] * bool(left))
        lines = wrap(words, LETTERS, break_on_hyphens=False)
        if len(lines) <= most:
            return lines
    return []
