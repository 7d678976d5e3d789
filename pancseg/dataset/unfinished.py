"""What an unfinished preparation has done so far: one record a candidate, until all is done.

A killed preparation loses no more than the candidates it was at.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path

from pancseg.atomic import write_json
from pancseg.dataset.conversion import Outcome
from pancseg.dataset.intake_table import Row
from pancseg.dataset.manifest import Case, Group

FOLDER = ".unfinished"


def keep_record(root: Path, outcome: Outcome) -> None:
    """Write the record of one candidate, without the paths of its input: they may name patients."""
    rows = [replace(row, path="") for row in outcome.rows]
    write_json(root / FOLDER / f"{outcome.origin}.json", asdict(replace(outcome, rows=rows)))


def read_record(root: Path, origin: str, paths: dict[str, Path | None]) -> Outcome | None:
    """The record of a candidate in a preparation that was interrupted, if there is one.

    Args:
        root: The prepared folder.
        origin: Keyed hash of the candidate.
        paths: Of its image and its label.
    """
    try:
        value = json.loads((root / FOLDER / f"{origin}.json").read_text(encoding="utf-8"))
        case = Case(**value["case"]) if value["case"] else None
        groups = [Group(**group) for group in value["groups"]]
        rows = [Row(**{**row, "path": str(paths[row["kind"]])}) for row in value["rows"]]
        return Outcome(origin, value["name"], value["source"], rows, case, groups)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it is done again


def forget_records(root: Path) -> None:
    """Remove all records: the manifest holds what they held."""
    folder = root / FOLDER
    for path in folder.glob("*"):
        path.unlink()
    if folder.is_dir():
        folder.rmdir()
