"""Contact sheets: all cases of a folder on a few pages, so that a person can look at each."""

import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pancseg.atomic import replaced
from pancseg.dataset.thumbnails import SIDE, read_thumbnail

PAGE = re.compile(r"intake(_\d+)?\.png")
COLUMNS, ROWS = 8, 5
FEWEST_COLUMNS = 3  # the header needs their width
DPI = 100

# Pixels.
GAP, FRAME, HEADER, LINE = 14, 4, 50, 19
POINTS = 10.0
LETTERS = 28  # of the fixed-width font that fit a tile
FLAG_LINES = 3
GROUND, INK, FAINT, WARNING, EMPTY = "#16181d", "#f2f2f2", "#9aa3b0", "#ffb347", 40
FACTS = ("unlabelled", "phantom")  # what somebody chose: of a whole folder, not of one case


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


def draw_contact_sheet(root: Path, tiles: list[Tile]) -> list[Path]:
    """Write ``intake.png``, ``intake_2.png`` and so on, and remove pages of a longer sheet.

    Args:
        root: The prepared folder.
        tiles: In the order to show.

    Returns:
        The pages; none where there is no tile. Equal tiles give equal bytes.
    """
    size = COLUMNS * ROWS
    parts = [tiles[start : start + size] for start in range(0, len(tiles), size)]
    pages = [root / f"intake{'' if n == 1 else f'_{n}'}.png" for n in range(1, len(parts) + 1)]
    for n, (page, part) in enumerate(zip(pages, parts, strict=True)):
        first = n * size + 1
        header = f"cases {first} to {first + len(part) - 1} of {counted(tiles)}"
        draw_page(page, part, header, f"page {n + 1} of {len(parts)}")
    for path in root.glob("intake*.png"):
        if PAGE.fullmatch(path.name) and path not in pages:
            path.unlink()
    return pages


def counted(tiles: list[Tile]) -> str:
    """How many cases, patients and flagged ones there are.

    >>> counted([Tile("p1", "p1", None, "label_cut", ""), Tile("p1-2", "p1", None, "phantom", "")])
    '2 (1 patient), 1 flagged'
    """
    patients = len({tile.patient for tile in tiles})
    flagged = sum(tile.is_flagged for tile in tiles)
    return f"{len(tiles)} ({patients} patient{'s' * (patients != 1)}), {flagged} flagged"


def draw_page(path: Path, tiles: list[Tile], header: str, number: str) -> None:
    """Draw one page; pictures keep their pixels."""
    columns = max(FEWEST_COLUMNS, min(COLUMNS, len(tiles)))
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [SIDE + LINE * (2 + max(len(flag_lines(tile)) for tile in row)) for row in rows]
    width, height = columns * (SIDE + GAP) + GAP, sum(heights) + HEADER
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=GROUND)
    FigureCanvasAgg(figure)
    write(figure, GAP, height - GAP, header, weight="bold")
    write(figure, width - GAP, height - GAP, number, colour=FAINT, align="right")
    top = height - HEADER
    for row, row_height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            draw_tile(figure, tile, GAP + column * (SIDE + GAP), top)
        top -= row_height
    with replaced(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png", metadata={"Software": None})


def draw_tile(figure: Figure, tile: Tile, left: int, top: int) -> None:
    """Draw a picture with the words below it, and a frame where the case is flagged.

    Args:
        figure: The page.
        tile: The case.
        left: Of the picture, pixels from the page's left edge.
        top: Of the picture, pixels from the page's lower edge.
    """
    picture = np.full((SIDE, SIDE, 3), EMPTY, np.uint8)
    if tile.picture is not None and tile.picture.is_file():
        picture = read_thumbnail(tile.picture)
    else:
        write(figure, left + SIDE // 2, top - SIDE // 2, "no picture", colour=FAINT, align="center")
    figure.figimage(picture[::-1], left, top - SIDE, origin="lower")
    if tile.is_flagged:
        frame(figure, left, top)
    below = top - SIDE - LINE // 2
    beside = shortened(tile.text, LETTERS // 2)
    name = shortened(tile.case, LETTERS - len(beside) - 1)
    write(figure, left, below, name, weight="bold")
    write(figure, left + SIDE, below, beside, align="right")
    for i, (line, colour) in enumerate(flag_lines(tile), start=1):
        write(figure, left, below - LINE * i, line, colour=colour)


def flag_lines(tile: Tile) -> list[tuple[str, str]]:
    """Lines below a picture, each with its colour: what to look at, then facts."""
    flags = tile.flags.split()
    facts = lines_of([flag for flag in flags if flag in FACTS], 1)
    warnings = lines_of([flag for flag in flags if flag not in FACTS], FLAG_LINES)
    return [(line, WARNING) for line in warnings] + [(line, FAINT) for line in facts]


def frame(figure: Figure, left: int, top: int) -> None:
    """Draw a frame around a picture."""
    width, height = figure.get_size_inches() * DPI
    box = Rectangle(
        ((left - FRAME / 2) / width, (top - SIDE - FRAME / 2) / height),
        (SIDE + FRAME) / width,
        (SIDE + FRAME) / height,
        transform=figure.transFigure,
        fill=False,
        edgecolor=WARNING,
        linewidth=FRAME * 72 / DPI,
    )
    figure.add_artist(box)


def write(
    figure: Figure,
    x: float,
    y: float,
    text: str,
    *,
    colour: str = INK,
    weight: str = "normal",
    align: str = "left",
) -> None:
    """Write one line; ``x`` and ``y`` are pixels of its upper edge from the lower left corner."""
    width, height = figure.get_size_inches() * DPI
    figure.text(
        x / width,
        y / height,
        text,
        color=colour,
        fontsize=POINTS,
        fontweight=weight,
        family="DejaVu Sans Mono",
        ha=align,
        va="top",
        parse_math=False,
    )


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
