"""Contact sheets: all cases of a folder on a few pages, so that a person can look at each."""

import math
import re
from pathlib import Path

from PIL import Image

from pancseg.errors import PancsegError
from pancseg.output.contact_page import COLUMNS, KEY, Page, Tile, draw_page
from pancseg.parallel import cores, process_map, progress

PAGE = re.compile(r"intake(_\d+)?\.png")
ROWS = 5
FEWEST_PAGES = 40  # that are worth starting processes for


def draw_contact_sheet(root: Path, tiles: list[Tile]) -> list[Path]:
    """Write ``intake.png``, ``intake_2.png`` and so on, and remove pages of a longer sheet.

    Args:
        root: The prepared folder.
        tiles: In the order to show.

    Returns:
        The pages; none where there is no tile. Equal tiles give equal bytes.
    """
    pages = pages_of(root, tiles)
    new = [page for page in pages if page.key != key_in(page.path)]
    processes = min(cores(), len(new)) if len(new) >= FEWEST_PAGES else 0
    drawn = process_map(draw_page, new, processes, died)
    if any(progress(drawn, "drawing", "page", len(new), delay_s=2)):
        raise PancsegError(f"{root}: a page of the contact sheet ended the process that drew it")
    paths = [page.path for page in pages]
    for path in set(root.glob("intake*.png")).difference(paths):
        if PAGE.fullmatch(path.name):
            path.unlink()
    return paths


def pages_of(root: Path, tiles: list[Tile]) -> list[Page]:
    """All pages; only the first says how many there are, so that an added case changes few."""
    size = COLUMNS * ROWS
    pages = []
    for n, start in enumerate(range(0, len(tiles), size), start=1):
        part = tiles[start : start + size]
        header, number = f"cases {start + 1} to {start + len(part)}", f"page {n}"
        if n == 1:
            header += f" of {counted(tiles)}"
            number += f" of {math.ceil(len(tiles) / size)}"
        path = root / f"intake{'' if n == 1 else f'_{n}'}.png"
        pages.append(Page(path, part, header, number))
    return pages


def key_in(path: Path) -> str | None:
    """The key that a page was drawn with, if it can be read."""
    try:
        with Image.open(path) as picture:
            return picture.info.get(KEY)
    except OSError:
        return None


def died(page: Page) -> bool:
    """Whether the process that drew a page ended: it did."""
    return True


def counted(tiles: list[Tile]) -> str:
    """How many cases, patients and flagged ones there are.

    >>> counted([Tile("p1", "p1", None, "label_cut", ""), Tile("p1-2", "p1", None, "phantom", "")])
    '2 (1 patient), 1 flagged'
    """
    patients = len({tile.patient for tile in tiles})
    flagged = sum(tile.is_flagged for tile in tiles)
    return f"{len(tiles)} ({patients} patient{'s' * (patients != 1)}), {flagged} flagged"
