"""The table and the figures of a scored subset, as files."""

import csv
import io
from pathlib import Path
from typing import Any

from pancseg.atomic import write_json, write_text
from pancseg.scoring.case_scores import EMPTY_REFERENCE
from pancseg.scoring.statistics import describe, per_patient

NOT_FIGURES = ("patient", "case", "status", "volume_ml", "reference_ml")
FAILED = "failed"


def summarise(rows: list[dict[str, Any]], held_out: bool, about: dict[str, Any]) -> dict[str, Any]:
    """Figures over patients; cases without a reference and failed ones are named apart.

    Args:
        rows: One a case.
        held_out: Whether these patients were kept out of training and of every choice.
        about: Split, geometry and what else should stand beside the figures.
    """
    scored = [row for row in rows if row["dice"] is not None]
    patients = [row["patient"] for row in scored]
    figures = {
        name: describe(per_patient(patients, [row[name] for row in scored]))
        for name in rows[0]
        if name not in NOT_FIGURES
    }
    return {
        "n": len(set(patients)),
        "held_out": held_out,
        **figures,
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


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Numbers to six digits, None as an empty cell."""
    return {
        key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()
    }
