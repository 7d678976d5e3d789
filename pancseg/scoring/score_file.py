"""The table and the figures of a scored subset, as files."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pancseg.atomic import write_json, write_text
from pancseg.scoring.case_scores import EMPTY_REFERENCE
from pancseg.scoring.soft_scores import NO_VOXELS, Calibration
from pancseg.scoring.statistics import agreement, describe, per_patient

NOT_FIGURES = ("patient", "case", "fold", "status", "volume_ml", "reference_ml")
FAILED = "failed"


def summarise(
    rows: list[dict[str, Any]], calibrations: Sequence[Calibration], about: dict[str, Any]
) -> dict[str, Any]:
    """Figures over patients; cases without a reference and failed ones are named apart.

    Args:
        rows: One a case.
        calibrations: One a case that has a reference.
        about: ``held_out`` and what else should stand beside the figures.
    """
    scored = [row for row in rows if row["dice"] is not None]
    patients = [row["patient"] for row in scored]

    def of(name: str) -> list[float]:
        return per_patient(patients, [row[name] for row in scored])

    calibration = sum(calibrations, NO_VOXELS)
    return {
        "n": len(set(patients)),
        "held_out": about["held_out"],
        **{name: describe(of(name)) for name in rows[0] if name not in NOT_FIGURES},
        "volume_agreement_ml": agreement(of("volume_ml"), of("reference_ml")),
        "calibration": {"error": calibration.expected_error(), "bins": calibration.points()},
        "cases": len(rows),
        "empty_reference": [row["case"] for row in rows if row["status"] == EMPTY_REFERENCE],
        "failed": [row["case"] for row in rows if str(row["status"]).startswith(FAILED)],
        **about,
    }


def write_scores(
    folder: Path, subset: str, rows: list[dict[str, Any]], figures: dict[str, Any]
) -> None:
    """Write ``<subset>.csv`` and ``<subset>.json``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rounded(row) for row in rows)
    write_text(folder / f"{subset}.csv", text.getvalue())
    write_json(folder / f"{subset}.json", figures)


def read_scores(folder: Path, subset: str) -> list[dict[str, Any]]:
    """Rows of ``<subset>.csv``, numbers as numbers, an empty cell as None."""
    with (folder / f"{subset}.csv").open(newline="", encoding="utf-8") as file:
        return [
            {key: as_value(key, text) for key, text in row.items()} for row in csv.DictReader(file)
        ]


def as_value(key: str, text: str) -> float | str | None:
    """What a cell holds.

    >>> as_value("dice", "0.5"), as_value("dice", ""), as_value("patient", "007")
    (0.5, None, '007')
    """
    if key in ("patient", "case", "status"):
        return text
    return float(text) if text else None


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Numbers to six digits, None as an empty cell."""
    return {
        key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()
    }
