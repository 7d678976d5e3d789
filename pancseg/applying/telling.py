"""What became of each scan of a batch, on the console."""

from collections.abc import Sequence

from pancseg.output.prediction_table import DONE, Prediction


def tell_each(table: Sequence[Prediction]) -> int:
    """Tell what became of each scan, whoever segmented it.

    Returns:
        How many were refused or failed.
    """
    for row in table:
        if not row.case:  # to the console alone: paths of input files stand in no log
            print(f"refused {row.path}: {row.reason}")
            continue
        measured = f"{row.volume_ml} ml, confidence {row.confidence}"
        flags = f"  [{row.flags}]" if row.flags else ""
        print(f"{row.case}  {row.status}: {measured if row.status == DONE else row.reason}{flags}")
    return sum(row.status != DONE for row in table)
