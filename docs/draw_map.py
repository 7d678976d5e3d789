"""Draws ``docs/architecture.svg``: wings, what they are for, and who imports whom.

    python docs/draw_map.py

Written by hand, as text: a picture of a dozen boxes needs no library, and a test reads the arrows
back out of it and holds them against the imports.
"""

import ast
import html
import textwrap
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pancseg"
PICTURE = ROOT / "docs" / "architecture.svg"
WIDE, HIGH, GAP, DOWN = 216, 74, 30, 134  # of a box, between two, from row to row, pixels
BAND = 72  # height of what lies above and below
PASSING = 14  # what an arrow takes that passes a row
Edges = set[tuple[str, str]]


def wings() -> dict[str, str]:
    """Each wing with what its ``__init__`` says it is."""
    found = {}
    for file in sorted(PACKAGE.glob("*/__init__.py")):
        said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        found[file.parent.name] = said.split("\n")[0].rstrip(".")
    return found


def imported(path: Path) -> set[str]:
    """Wings that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("pancseg.")}


def edges() -> Edges:
    """Pairs of wings, the first of which imports the second."""
    known, found = wings(), set()
    for name in known:
        for file in (PACKAGE / name).rglob("*.py"):
            found |= {(name, other) for other in imported(file) if other in known and other != name}
    return found


def plain(pairs: Edges) -> Edges:
    """Without the pairs that a longer way tells, too.

    >>> sorted(plain({("a", "b"), ("b", "c"), ("a", "c")}))
    [('a', 'b'), ('b', 'c')]
    """

    def reaches(start: str, end: str, without: tuple[str, str]) -> bool:
        after = [b for a, b in pairs if a == start and (a, b) != without]
        return end in after or any(reaches(one, end, without) for one in after)

    return {pair for pair in pairs if not reaches(*pair, without=pair)}


def rows_of(pairs: Edges, names: list[str]) -> tuple[list[list[str]], list[list[str]]]:
    """Wings and passing arrows row by row, and the way of each arrow through the rows.

    A row's wings import none of its own; an arrow that goes further takes a place in each row that
    it passes (Sugiyama's way of drawing graphs, and his order by the mean of what stands above).
    """
    above = {name: {a for a, b in pairs if b == name} for name in names}
    row_of: dict[str, int] = {}
    for name in TopologicalSorter(above).static_order():
        row_of[name] = 1 + max((row_of[one] for one in above[name]), default=-1)
    last = max(row_of.values())
    for name in names:  # what nobody imports stands with the others that import nobody
        if not any(a == name for a, _ in pairs):
            row_of[name] = last
    rows: list[list[str]] = [
        [name for name in names if row_of[name] == row] for row in range(last + 1)
    ]
    ways = []
    for a, b in sorted(plain(pairs)):
        between = range(row_of[a] + 1, row_of[b])
        ways.append([a, *(f"{a}>{b}@{row}" for row in between), b])
        for row in between:
            rows[row].append(f"{a}>{b}@{row}")
    for _ in range(4):
        for upper, lower in pairwise(rows):
            lower.sort(key=lambda one: mean_place(one, upper, ways))
        for lower, upper in pairwise(rows[::-1]):
            upper.sort(key=lambda one: mean_place(one, lower, ways))
    return rows, ways


def mean_place(name: str, beside: list[str], ways: list[list[str]]) -> float:
    """Where in a row its neighbours of the next row stand, on average, as a share of the row."""
    steps = [step for way in ways for step in pairwise(way)]
    others = [(set(step) - {name}).pop() for step in steps if name in step]
    places = [(beside.index(one) + 0.5) / len(beside) for one in others if one in beside]
    return sum(places) / len(places) if places else 0.5


def width_of(name: str) -> int:
    """What a wing or a passing arrow takes."""
    return PASSING if "@" in name else WIDE


def draw() -> str:
    """The picture."""
    said, pairs = wings(), edges()
    rows, ways = rows_of(pairs, list(said))
    widths = [sum(width_of(name) + GAP for name in row) for row in rows]
    width, place = max(widths) + GAP, {}
    for n, row in enumerate(rows):
        left = (width - widths[n] + GAP) / 2
        for name in row:
            place[name] = (left + width_of(name) / 2, 110.0 + n * DOWN)
            left += width_of(name) + GAP
    height = 110 + len(rows) * DOWN + 85
    doors = sorted(p.stem for p in PACKAGE.glob("*.py") if (ROOT / f"conf/{p.stem}.yaml").is_file())
    base = sorted(
        p.stem for p in PACKAGE.glob("*.py") if p.stem not in doors and p.stem != "__init__"
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0 8 4 0 8z" fill="#567"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        *band(
            15, 15, width - 30, "front doors: " + ", ".join(doors), "they put the wings together"
        ),
    ]
    lines += [arrow([place[name] for name in way], way[0], way[-1]) for way in ways]
    for name in said:
        x, y = place[name][0] - WIDE / 2, place[name][1]
        files = list((PACKAGE / name).rglob("*.py"))
        size = sum(file.read_text(encoding="utf-8").count("\n") for file in files)
        lines += box(x, y, name, said[name], f"{len(files) - 1} rooms, {size} lines")
    lines += band(15, height - 90, width - 30, "all may use: " + ", ".join(base), "no wing in them")
    return "\n".join([*lines, "</svg>", ""])


def arrow(way: list[tuple[float, float]], a: str, b: str) -> str:
    """From under one wing to above another, through the places it has in the rows between."""
    (x, y), *through, (end_x, end_y) = way
    path, y = f"M{x:.0f} {y + HIGH:.0f}", y + HIGH
    for to_x, top in [*through, (end_x, end_y - 2)]:
        path += f" C{x:.0f} {y + 36:.0f} {to_x:.0f} {top - 36:.0f} {to_x:.0f} {top:.0f}"
        x, y = to_x, top
        if (to_x, top) in through:
            path, y = f"{path} V{top + HIGH:.0f}", top + HIGH
    return (
        f'<path data-edge="{a} {b}" d="{path}" fill="none" stroke="#567" stroke-width="1.4" '
        'marker-end="url(#tip)"/>'
    )


def box(x: float, y: float, name: str, said: str, size: str) -> list[str]:
    """A wing."""
    words, text = said.split(), [""]
    for word in words:
        if len(text[-1]) + len(word) > 33:
            text.append("")
        text[-1] = f"{text[-1]} {word}".strip()
    told = [
        f'<text x="{x + 10:.0f}" y="{y + 38 + 14 * n:.0f}" font-size="11" fill="#345">'
        f"{html.escape(line)}</text>"
        for n, line in enumerate(text[:3])
    ]
    return [
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{WIDE}" height="{HIGH}" rx="6" fill="#eef4f8" '
        'stroke="#567"/>',
        f'<text x="{x + 10:.0f}" y="{y + 20:.0f}" font-weight="bold">{name}</text>',
        f'<text x="{x + WIDE - 10:.0f}" y="{y + 20:.0f}" font-size="10" text-anchor="end" '
        f'fill="#678">{size}</text>',
        *told,
    ]


def band(x: float, y: float, width: float, said: str, note: str) -> list[str]:
    """What lies above or below all wings; said in at most two lines, by pixels for a letter."""
    lines = textwrap.wrap(said, int(width / 8))
    return [
        f'<rect x="{x}" y="{y}" width="{width}" height="{BAND}" rx="6" fill="#f6f1e4" '
        'stroke="#a96"/>',
        *(
            f'<text x="{x + 10}" y="{y + 22 + 16 * n}">{html.escape(line)}</text>'
            for n, line in enumerate(lines)
        ),
        f'<text x="{x + 10}" y="{y + 26 + 16 * len(lines)}" font-size="11" fill="#654">{note}'
        "</text>",
    ]


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
