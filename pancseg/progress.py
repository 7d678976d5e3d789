"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0


def track(items: Iterable[Item], doing: str, unit: str) -> Iterable[Item]:
    """Iterate with progress on stderr."""
    seconds = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
    return tqdm(items, desc=doing, unit=f" {unit}", mininterval=seconds, dynamic_ncols=True)


def follow(steps: Iterator[tuple[int, int, str]], doing: str, unit: str) -> None:
    """Run through steps: how many are done, how many there are, and what is worked on next."""
    seconds = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
    with tqdm(desc=doing, unit=f" {unit}", mininterval=seconds, dynamic_ncols=True) as bar:
        for done, total, current in steps:
            bar.total = total
            waits = done == bar.n and bar.postfix not in (None, current)
            bar.set_postfix_str(current, refresh=waits)  # as when all that is left is with others
            bar.update(done - bar.n)


def passing(items: Iterable[Item], total: int, doing: str, unit: str) -> Iterator[Item]:
    """Iterate with progress that shows itself only where it takes longer than a second or two."""
    seconds = 0.5 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
    yield from tqdm(
        items, doing, total, unit=f" {unit}", mininterval=seconds, delay=2.0, leave=False
    )
