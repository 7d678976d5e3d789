"""What a scoring teaches ``predict``: how far a checkpoint's expected Dice is to be believed."""

import logging
from pathlib import Path
from typing import Any

from pancseg.inference.trust import keep_trust, learn_trust, trust_file
from pancseg.scoring.statistics import per_patient

log = logging.getLogger(__name__)


def teach_trust(checkpoint: Path, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Keep beside a checkpoint how far its expected Dice came true on validation patients.

    Not where threshold or components were given by hand: predict will not make its masks so.
    """
    if about["subset"] != "val" or about["postprocess_origin"] == "given":
        return
    scored = [row for row in rows if row["dice"] is not None]
    patients = [row["patient"] for row in scored]
    expected, reached = (
        per_patient(patients, [row[name] for row in scored]) for name in ("expected_dice", "dice")
    )
    trust = learn_trust(expected, reached)
    if trust.n:
        keep_trust(checkpoint, trust, {"learnt_on": "val"})
        log.info("confidence of predict: expected Dice times %s  %s", trust.scale,
                 trust_file(checkpoint))  # fmt: skip
