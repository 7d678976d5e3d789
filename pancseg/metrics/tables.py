"""``scores/<subset>.csv`` with a row a case, and ``<subset>.json`` with figures over patients."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import ArrayLike

from pancseg.errors import PancsegError
from pancseg.files import write_csv, write_json
from pancseg.metrics.case_scores import EMPTY_REFERENCE, calibration_summary
from pancseg.metrics.lesions import LESION_COLUMNS, lesion_summary
from pancseg.metrics.statistics import agreement, describe

FAILED = "failed"  # start of the status of a case that could not be scored
DIGITS = 6
TEXT_COLUMNS = ("patient", "case", "structure", "manufacturer", "contrast", "status")
NOT_MEASURES = (*TEXT_COLUMNS, "fold", *(f"spacing_{axis}_mm" for axis in "xyz"))
Row = dict[str, Any]


def summarise(rows: Sequence[Row], calibrations: Mapping[str, ArrayLike], about: Row) -> Row:
    """Figures over patients; cases with an empty reference and failed ones are listed.

    ``calibrations`` are counts of each case with a reference, by patient; ``about`` is added.
    """
    names = [name for name in rows[0] if name not in (*NOT_MEASURES, *LESION_COLUMNS)]
    is_lesion = any(row.get("lesions") is not None for row in rows)
    lesions = {"lesion_figures": lesion_summary(rows)} if is_lesion else {}
    values = {name: list(by_patient(rows, name).values()) for name in names}
    volumes = values.pop("volume_ml"), values.pop("reference_ml")
    return {
        "n": len(values["dice"]),
        "held_out": about["held_out"],
        **{name: describe(of_patients) for name, of_patients in values.items()},
        "volume_agreement_ml": agreement(*volumes),
        "calibration": calibration_summary(calibrations),
        **lesions,
        "cases": len(rows),
        "empty_reference": [row["case"] for row in rows if row["status"] == EMPTY_REFERENCE],
        "failed": [row["case"] for row in rows if row["status"].startswith(FAILED)],
        **about,
    }


def by_patient(rows: Sequence[Row], name: str) -> dict[str, float]:
    """Mean of a column over the scored cases of each patient who has a value, by name."""
    frame = pd.DataFrame(rows, columns=list(dict.fromkeys(["patient", "dice", name])))
    scored = frame[frame["dice"].notna()].astype({name: float})
    return scored.groupby("patient")[name].mean().dropna().to_dict()


def write_scores(folder: Path, subset: str, rows: list[Row], figures: Row | None = None) -> None:
    """Write ``<subset>.csv``, and ``<subset>.json`` if there are figures yet."""
    cells = ([round(v, DIGITS) if isinstance(v, float) else v for v in r.values()] for r in rows)
    write_csv(folder / f"{subset}.csv", rows[0], cells)
    if figures is not None:
        write_json(folder / f"{subset}.json", figures)


def read_scores(folder: Path, subset: str) -> list[Row]:
    """Rows of ``<subset>.csv``: texts, floats, and None for an empty cell."""
    path = folder / f"{subset}.csv"
    options: Any = {
        "dtype": defaultdict(lambda: float, dict.fromkeys(TEXT_COLUMNS, str)),
        "keep_default_na": False,  # a patient may be called NA
        "na_values": [""],
        "encoding_errors": "surrogateescape",
    }
    try:
        frame = pd.read_csv(path, **options)
        rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    except (ValueError, OSError) as error:
        raise PancsegError(f"{path}: cannot be read as a table of scores ({error})") from error
    if not rows or not {"patient", "case", "dice", "status"} <= rows[0].keys():
        raise PancsegError(f"{path}: is not a table of scores of pancseg.evaluate")
    return rows
