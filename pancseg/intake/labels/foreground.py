"""Which of a label's values or structures are the organ."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pancseg.errors import Refused
from pancseg.intake.found import Choice

MOST_NAMED = 8  # of the values found, in a message


def chosen_values(
    values: NDArray[Any], choice: Choice, declared: Iterable[int] = ()
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Choose the voxels of the organ by their values.

    Args:
        values: A label, any shape and type.
        choice: Values; None takes all but 0.
        declared: Values that are known to be something else.

    Returns:
        The mask, 0 and 1, and values found that nobody spoke of: where all are taken, several
        different ones are none that anybody meant.

    Raises:
        Refused: If nothing is background, or the choice has names, which numbers have not.

    >>> mask, undeclared = chosen_values(np.array([0, 1, 2, 7]), (1, 2))
    >>> mask.tolist(), undeclared
    ([0, 1, 1, 0], ('7',))
    """
    nonzero = values != 0
    if nonzero.all():
        span = f"{values.min():g} to {values.max():g}"
        raise Refused("no_background", f"no voxel is 0, values go from {span}")
    found = np.unique(values[nonzero])
    known = {float(value) for value in declared}
    if choice is None:
        several = len(found) > 1 and not known
        left = found if several else [v for v in found if known and float(v) not in known]
        return nonzero.astype(np.uint8), named(left)
    chosen = sorted(number_of(word) for word in choice)
    left = [value for value in found if float(value) not in known.union(chosen)]
    return np.isin(values, chosen).astype(np.uint8), named(left)


def number_of(word: int | str) -> float:
    """A chosen value as a number.

    Raises:
        Refused: If it is a name.
    """
    try:
        return float(word)
    except ValueError:
        raise Refused(
            "no_such_structure",
            f"labels names {word!r}, but this label holds numbers without names; give its values, "
            "such as labels=[1]",
        ) from None


def chosen_structures(
    structures: dict[int, tuple[str, ...]], choice: Choice, kind: str
) -> tuple[list[int], tuple[str, ...]]:
    """Choose structures by number, name or code.

    Args:
        structures: For each number the words it goes by: its name first, then codes.
        choice: Numbers, names or codes, upper and lower case alike; None takes the only one.
        kind: What they are called, for messages, such as ``segment``.

    Returns:
        The numbers chosen, and the names of those left.

    Raises:
        Refused: If none is chosen, or there are several and no choice.

    >>> chosen_structures({1: ("Liver",), 2: ("Pancreas", "15776009")}, (15776009,), "segment")
    ([2], ('Liver',))
    """
    there = ", ".join(f"{n} {words[0]}" for n, words in structures.items()) or "none"
    if choice is None:
        if len(structures) != 1:
            raise Refused(
                f"ambiguous_{kind}",
                f"{len(structures)} {kind}s ({there}); choose by labels=[NAME]",
            )
        return list(structures), ()
    wanted = {str(word).strip().casefold() for word in choice}
    chosen = [
        n
        for n, words in structures.items()
        if wanted & {str(n), *(word.strip().casefold() for word in words)}
    ]
    if not chosen:
        raise Refused(
            f"no_such_{kind}",
            f"no {kind} goes by {', '.join(map(str, choice))}; there are {there}",
        )
    return chosen, tuple(words[0] for n, words in structures.items() if n not in chosen)


def named(values: Iterable[Any]) -> tuple[str, ...]:
    """Values as words, the first few."""
    return tuple(f"{value:g}" for value in values)[:MOST_NAMED]
