"""The table of what was looked at: a row for each series or file, with what was decided."""

import csv
import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path

TABLE = "intake.csv"


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
    def key(self) -> tuple[str, str]:
        """What a row is replaced by: another one of the same path and kind."""
        return self.path or self.case, self.kind


def read_rows(path: Path) -> dict[tuple[str, str], Row]:
    """Rows of an earlier table, by path and kind; none if another version wrote it."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != [one.name for one in fields(Row)]:
            return {}
        rows = [Row(**row) for row in reader]
    return {row.key: row for row in rows}


def rows_to_csv(rows: list[Row]) -> str:
    """The table as text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()
