"""``predictions.csv``: a row a scan, written after each, so that a batch can go on."""

import csv
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from pancseg.files import write_csv

NAME = "predictions.csv"
DONE, FAILED, REFUSED = "done", "failed", "refused"


@dataclass(frozen=True)
class Prediction:
    """What became of a scan.

    Attributes:
        case: Name of its files; empty where it was refused before it had one.
        path: Of the input.
        series_uid: Of DICOM.
        status: ``done``, ``failed`` or ``refused``.
        reason: Why it is not done.
        volume_ml: Of the mask.
        mean_hu: Inside the mask.
        confidence: The Dice to be expected, as far as validation patients taught to believe it.
        flags: What a person should look at.
        seconds: From reading to the last file.
        peak_memory_mb: Of the process so far.
        unlike: What in numbers is unlike the training scans.
        input: Hash of names, sizes and times of the input's files.
    """

    case: str
    path: str
    series_uid: str = ""
    status: str = DONE
    reason: str = ""
    volume_ml: float | str = ""
    mean_hu: float | str = ""
    confidence: float | str = ""
    flags: str = ""
    seconds: float | str = ""
    peak_memory_mb: float | str = ""
    unlike: str = ""
    input: str = ""


HEADS = [one.name for one in fields(Prediction)]


def read_predictions(folder: Path) -> list[Prediction]:
    """Rows of an earlier batch; none if there was none, or of another version."""
    path = folder / NAME
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != HEADS:
            return []
        return [Prediction(**row) for row in reader]


def write_predictions(folder: Path, rows: list[Prediction]) -> None:
    """Write the table, whole or not at all."""
    write_csv(folder / NAME, HEADS, map(astuple, rows))
