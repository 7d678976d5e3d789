"""The table of what was looked at: a row for each series or file, with what was decided."""

import csv
from collections import UserDict
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from pancseg.files import to_csv

TABLE = "intake.csv"
Key = tuple[str, str]


@dataclass
class Row:
    """A line of ``intake.csv``; groups_kept, groups_empty and groups_tail add up to all groups.

    ``groups_tail`` counts an incomplete group that was left out; one that was shifted or padded
    counts as kept or empty. All three are 0 where whole cases alone are prepared.
    """

    patient: str
    case: str
    path: str
    kind: str
    status: str
    reason: str = ""
    flags: str = ""
    slices: int | str = ""
    groups_kept: int | str = ""
    groups_empty: int | str = ""
    groups_tail: int | str = ""
    spacing_x_mm: float | str = ""
    spacing_y_mm: float | str = ""
    spacing_z_mm: float | str = ""
    label_voxels: int | str = ""
    label_ml: float | str = ""

    @property
    def key(self) -> Key:
        """What a row is replaced by: another one of the same path and kind."""
        return self.path or self.case, self.kind


HEADS = [one.name for one in fields(Row)]


class Rows(UserDict[Key, Row]):
    """Rows by path and kind; those of one case are found without looking at all others."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.of_case: dict[str, dict[Key, None]] = {}
        super().__init__()
        for row in rows:
            self.enter(row)

    def enter(self, row: Row) -> None:
        """Put a row in, in place of an earlier one of the same path and kind."""
        self[row.key] = row

    def take_out(self, case: str) -> list[Row]:
        """Take out the rows of a case; they are returned."""
        return [self.pop(key) for key in list(self.of_case.get(case, ()))]

    def __setitem__(self, key: Key, row: Row) -> None:
        if key in self.data:
            self.of_case[self.data[key].case].pop(key)
        self.data[key] = row
        self.of_case.setdefault(row.case, {})[key] = None

    def __delitem__(self, key: Key) -> None:
        keys = self.of_case[self.data.pop(key).case]
        del keys[key]


def read_rows(path: Path) -> Rows:
    """Rows of an earlier table, by path and kind; none if another version wrote it."""
    if not path.is_file():
        return Rows()
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != HEADS:
            return Rows()
        return Rows(Row(**row) for row in reader)


def rows_to_csv(rows: list[Row]) -> str:
    """The table as text."""
    return to_csv(HEADS, map(astuple, rows))
