"""What an unfinished preparation has done so far: one record a candidate, until all is done.

A killed preparation loses no more than the candidates it was at.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path

from pancseg.dataset.case_files import picture_of
from pancseg.dataset.intake_table import Row
from pancseg.dataset.manifest import Case, Group
from pancseg.dataset.manifest_checks import entries_of
from pancseg.errors import PancsegError
from pancseg.files import write_json
from pancseg.preparing.conversion import Job, Outcome
from pancseg.sharing import FOLDER


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
        [case] = entries_of(Case, [value["case"]], "case") if value["case"] else [None]
        groups = entries_of(Group, value["groups"], "groups")
        rows = [Row(**{**row, "path": str(paths[row["kind"]])}) for row in value["rows"]]
        return Outcome(origin, value["name"], value["source"], rows, case, groups)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, PancsegError):
        return None  # it is done again


def record_of(job: Job) -> Outcome | None:
    """What somebody recorded of a candidate, if of this very input and its files are there."""
    candidate = job.candidate
    paths = {"image": candidate.path, "label": candidate.label_path}
    outcome = read_record(job.root, job.origin, paths)
    if outcome is None or (outcome.name, outcome.source) != (job.case, job.source):
        return None
    return outcome if all((job.root / file).is_file() for file in files_of(outcome)) else None


def files_of(outcome: Outcome) -> list[str]:
    """Every file of what a candidate became."""
    if outcome.case is None:
        return []
    files = [picture_of(outcome.case.case), outcome.case.image, outcome.case.label]
    for group in outcome.groups:
        files += [group.image, group.label]
    return [file for file in files if file]


def forget_records(root: Path) -> None:
    """Remove all records: the manifest holds what they held."""
    folder = root / FOLDER
    for path in folder.glob("*"):
        path.unlink()
    if folder.is_dir():
        folder.rmdir()
