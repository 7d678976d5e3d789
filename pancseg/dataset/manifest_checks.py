"""A manifest as it may come back from a text editor: each value is what it says, or is named."""

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pancseg.errors import PancsegError

MOST = 2**62  # of any number: more is a slip of the hand
LARGEST_AXIS = 2**20  # voxels
SPACING_MM = (1e-3, 1e4)
LONGEST = 200  # letters of a name: files add endings to it
FILES = ("image", "label")
NAMES = ("case", "group", "patient")
Entry = TypeVar("Entry")


def entries_of(kind: type[Entry], values: Any, what: str) -> list[Entry]:
    """Entries of a manifest, each checked.

    Args:
        kind: Dataclass of an entry.
        values: As read.
        what: Of the list, for messages.

    Raises:
        PancsegError: Naming the entry and the field that cannot be.
    """
    if not isinstance(values, list):
        raise PancsegError(f"{what} is no list")
    hints = get_type_hints(kind)
    needed = {one.name for one in fields(kind) if is_needed(one)}  # type: ignore[arg-type]
    for n, value in enumerate(values):
        if not isinstance(value, dict):
            raise PancsegError(f"{what}[{n}] is no table")
        lacking = sorted(needed - value.keys())
        strange = sorted(value.keys() - hints.keys())
        if lacking or strange:
            told = f"lacks {lacking[0]}" if lacking else f"has a field {strange[0]} of no meaning"
            raise PancsegError(f"{what}[{n}] {told}")
        check_entry(value, hints, f"{what}[{n}]")
    return [kind(**value) for value in values]


def is_needed(one: Any) -> bool:
    """Whether a field has no value of its own."""
    return one.default is MISSING and one.default_factory is MISSING


def check_entry(value: Mapping[str, Any], hints: Mapping[str, Any], what: str) -> None:
    """Check the fields of one entry.

    Raises:
        PancsegError: Naming the first that cannot be.
    """
    for name, given in value.items():
        if not fits(given, hints[name]):
            raise PancsegError(f"{what}.{name} is {str(given)[:60]!r}")
        if name in NAMES and not is_name(given):
            raise PancsegError(f"{what}.{name} is {given[:60]!r}, which is no name")
        if name in FILES and given is not None and not is_inside(given):
            raise PancsegError(f"{what}.{name} is {given[:60]!r}, outside of the folder")
    shape, spacing_mm = value.get("shape"), value.get("spacing_mm")
    if shape is not None and not are_three(shape, 1, LARGEST_AXIS):
        raise PancsegError(f"{what}.shape is {str(shape)[:60]}")
    if spacing_mm is not None and not are_three(spacing_mm, *SPACING_MM):
        raise PancsegError(f"{what}.spacing_mm is {str(spacing_mm)[:60]}")


def are_three(values: list[float], least: float, most: float) -> bool:
    """Whether they are three numbers within bounds."""
    return len(values) == 3 and all(least <= one <= most for one in values)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, as JSON knows types.

    >>> fits([1, 2], list[int]), fits([1, "2"], list[int]), fits(None, str | None), fits(True, int)
    (True, False, True, False)
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is list:
        return isinstance(value, list) and all(fits(one, inner[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(one, inner[1]) for one in value.values())
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and -1 < value < MOST
    return isinstance(value, hint)


def is_name(value: str) -> bool:
    r"""Whether it can be part of a file's name, on every system, and leads nowhere else.

    >>> [is_name(word) for word in ("p1-a.b", "..", "a/b", "a\\b", "", "a\n")]
    [True, False, False, False, False, False]
    """
    return (
        0 < len(value) <= LONGEST
        and value.isprintable()
        and not set(value) & set('/\\:*?"<>|')
        and value.strip(".") != ""
    )


def is_inside(value: str) -> bool:
    """Whether it is a file below a folder.

    >>> [is_inside(path) for path in ("cases/p_image.nii.gz", "/etc/passwd", "cases/../../x", "")]
    [True, False, False, False]
    """
    return all(map(is_name, value.split("/")))
