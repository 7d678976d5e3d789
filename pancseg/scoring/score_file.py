"""The table and the figures of a scored subset, as files."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pancseg.files import write_csv, write_json
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

    def of(name: str) -> list[float]:
        return list(by_patient(rows, name).values())

    calibration = sum(calibrations, NO_VOXELS)
    return {
        "n": len(of("dice")),
        "held_out": about["held_out"],
        **{name: describe(of(name)) for name in rows[0] if name not in NOT_FIGURES},
        "volume_agreement_ml": agreement(of("volume_ml"), of("reference_ml")),
        "calibration": {"error": calibration.expected_error(), "bins": calibration.points()},
        "cases": len(rows),
        "empty_reference": [row["case"] for row in rows if row["status"] == EMPTY_REFERENCE],
        "failed": [row["case"] for row in rows if str(row["status"]).startswith(FAILED)],
        **about,
    }


def by_patient(rows: Sequence[dict[str, Any]], name: str) -> dict[str, float]:
    """A measure's mean over the cases of each patient, sorted; cases without scores take no part.

    >>> rows = [{"patient": "a", "dice": 0.5}, {"patient": "b", "dice": None}]
    >>> by_patient(rows, "dice")
    {'a': 0.5}
    """
    scored = [row for row in rows if row["dice"] is not None]
    patients = [row["patient"] for row in scored]
    means = per_patient(patients, [row[name] for row in scored])
    return dict(zip(sorted(set(patients)), means, strict=True))


def write_scores(
    folder: Path, subset: str, rows: list[dict[str, Any]], figures: dict[str, Any]
) -> None:
    """Write ``<subset>.csv`` and ``<subset>.json``."""
    heads = list(rows[0])
    cells = ([rounded(row[head]) for head in heads] for row in rows)
    write_csv(folder / f"{subset}.csv", heads, cells)
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


def rounded(value: Any) -> Any:
    """A number to six digits; anything else as it is."""
    return round(value, 6) if isinstance(value, float) else value
