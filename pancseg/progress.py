"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 10.0


def track(items: Sequence[Item], doing: str, unit: str) -> Iterable[Item]:
    """Iterate with progress on stderr."""
    seconds = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
    return tqdm(items, desc=doing, unit=f" {unit}", mininterval=seconds, dynamic_ncols=True)
