"""``intake.csv``: a row for each series or file of a source, with what was decided and why."""

import csv
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from pancseg.files import to_csv, write_text

TABLE = "intake.csv"


@dataclass
class Row:
    """A row; ``groups_kept``, ``groups_empty`` and ``groups_tail`` add up to all groups of a case.

    A group that was shifted or padded counts as kept or empty.
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
    groups_tail: int | str = ""  # incomplete and left out
    spacing_x_mm: float | str = ""
    spacing_y_mm: float | str = ""
    spacing_z_mm: float | str = ""
    label_voxels: int | str = ""
    label_ml: float | str = ""
    structures_ml: str = ""  # where there are several structures

    @property
    def key(self) -> tuple[str, str]:
        """A row replaces an earlier one of the same key."""
        return self.path or self.case, self.kind


COLUMNS = [column.name for column in fields(Row)]


def read_rows(root: Path) -> list[Row]:
    """Rows of a prepared folder's table; none where there is no table of this version."""
    path = root / TABLE
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        return [Row(**row) for row in reader] if reader.fieldnames == COLUMNS else []


def write_rows(root: Path, rows: Iterable[Row]) -> None:
    """Write the table, ordered by path."""
    write_text(root / TABLE, rows_to_csv(rows))


def rows_to_csv(rows: Iterable[Row]) -> str:
    """The table as text, ordered by path."""
    return to_csv(COLUMNS, map(astuple, sorted(rows, key=lambda row: row.key)))
