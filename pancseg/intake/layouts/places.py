"""Places: folders or files that a path or a pattern names, and the key that tells them apart."""

import re
from dataclasses import dataclass
from pathlib import Path

WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Place:
    """A folder or file to look into.

    Attributes:
        key: What the pattern's wildcards stand for here, joined by ``/``; empty for a plain path.
        path: Where it is.
    """

    key: str
    path: Path


def is_pattern(path: Path) -> bool:
    """Whether a path has wildcards and is no file or folder by that very name."""
    return bool(WILD.search(str(path))) and not path.exists()


def places_of(path: Path) -> list[Place]:
    """What a path or pattern names, ordered by key.

    ``*`` stands for one name or a part of it, ``**`` for folders at any depth, ``?`` for one
    character, as in :meth:`pathlib.Path.glob`.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> for name in ("p2", "p1"):
    ...     (root / name / "CT").mkdir(parents=True)
    >>> [(place.key, place.path.name) for place in places_of(root / "*" / "CT")]
    [('p1', 'CT'), ('p2', 'CT')]
    """
    if not is_pattern(path):
        return [Place("", path)]
    parts = path.parts
    fixed = next(n for n, part in enumerate(parts) if WILD.search(part))
    root, pattern = Path(*parts[:fixed]), "/".join(parts[fixed:])
    captured = re.compile(expression_of(pattern))
    places = []
    for found in root.glob(pattern):
        match = captured.fullmatch(found.relative_to(root).as_posix())
        if match:
            places.append(Place("/".join(word for word in match.groups() if word), found))
    return sorted(places, key=lambda place: (place.key, place.path))


def expression_of(pattern: str) -> str:
    """A glob pattern as a regular expression that captures what each wildcard stands for.

    >>> re.fullmatch(expression_of("*/CT_?"), "p7/CT_3").groups()
    ('p7', '3')
    """
    pieces = {"**/": "(?:(.*)/)?", "**": "(.*)", "*": "([^/]*)", "?": "([^/])"}
    words = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    return "".join(
        pieces.get(word) or (f"({word.replace('[!', '[^')})" if n % 2 else re.escape(word))
        for n, word in enumerate(words)
    )
