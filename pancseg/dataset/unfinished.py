"""What an unfinished preparation has done so far: one record a candidate, until all is done.

A killed preparation loses no more than the candidates it was at.
"""

import json
from dataclasses import asdict
from pathlib import Path

from pancseg.atomic import write_json
from pancseg.dataset.conversion import Outcome
from pancseg.dataset.intake_table import Row
from pancseg.dataset.manifest import Case, Group

FOLDER = ".unfinished"


def keep_record(root: Path, outcome: Outcome) -> None:
    """Write the record of one candidate."""
    write_json(root / FOLDER / f"{outcome.origin}.json", asdict(outcome))


def read_records(root: Path) -> list[Outcome]:
    """Records of a preparation that was interrupted; one of another version is done again."""
    outcomes = []
    for path in sorted((root / FOLDER).glob("*.json")):
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            case = Case(**value["case"]) if value["case"] else None
            groups = [Group(**group) for group in value["groups"]]
            rows = [Row(**row) for row in value["rows"]]
            outcomes.append(Outcome(value["origin"], value["source"], rows, case, groups))
        except (ValueError, KeyError, TypeError):
            path.unlink()
    return outcomes


def forget_records(root: Path) -> None:
    """Remove all records: the manifest holds what they held."""
    folder = root / FOLDER
    for path in folder.glob("*"):
        path.unlink()
    if folder.is_dir():
        folder.rmdir()
