"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0


def track(items: Iterable[Item], doing: str, unit: str, total: int | None = None) -> Iterable[Item]:
    """Iterate with progress on stderr; ``total`` is for what has no length."""
    seconds = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
    return tqdm(
        items, desc=doing, unit=f" {unit}", total=total, mininterval=seconds, dynamic_ncols=True
    )


def follow(steps: Iterator[tuple[int, str]], doing: str, unit: str) -> None:
    """Run through steps, each with how many there are in all and what is worked on next."""
    seconds = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
    with tqdm(desc=doing, unit=f" {unit}", mininterval=seconds, dynamic_ncols=True) as bar:
        for done, (total, current) in enumerate(steps):
            bar.total = total
            bar.set_postfix_str(current, refresh=False)
            bar.update(min(done, 1))


def passing(items: Iterable[Item], total: int, doing: str, unit: str) -> Iterator[Item]:
    """Iterate with progress that shows itself only where it takes longer than a second or two."""
    seconds = 0.5 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
    yield from tqdm(
        items, doing, total, unit=f" {unit}", mininterval=seconds, delay=2.0, leave=False
    )
