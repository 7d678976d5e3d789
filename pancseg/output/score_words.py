"""Scores in words: headings, digits, and what each measure means."""

from typing import Any

from pancseg.scoring.case_scores import MEASURES

# Column: heading, digits after the point.
TITLES = {
    "case": ("case", 0),
    **{name: (measure.heading, measure.digits) for name, measure in MEASURES.items()},
    "dice_plain": ("Dice at 0.5", 3),
    "recipe_metric": ("recipe_metric", 3),
    "expected_dice": ("expected", 3),
    "fold": ("fold", 0),
    "status": ("status", 0),
}
RULES = [
    ("Dice", "Twice the common voxels over the sum of both masks': hard, of the pancreas, one a "
     "whole case, on the scan's own grid, groups put back together. A missed organ has 0."),
    ("NSD", "Normalised surface Dice: share of the surface voxels of both masks that lie within "
     "the stated distance of the other's surface. A missed organ has 0."),
    ("HD95", "95th percentile of the distances between the surfaces, the larger of both "
     "directions. A missed organ has the diagonal of the scan, so that it cannot be dropped."),
    ("ASSD", "Mean distance of the surface voxels of both masks from the other's surface. A "
     "missed organ has the diagonal of the scan."),
    ("precision, recall", "Share of the predicted voxels that are drawn; of the drawn voxels "
     "that are predicted."),
    ("error", "Predicted less drawn volume."),
    ("pieces", "Of the prediction; voxels that share a corner belong to one."),
    ("centroid", "Distance between the centres of gravity."),
    ("empty reference", "A case where nothing is drawn has no score. It is named, and its "
     "predicted volume stands in the table, but no mean counts it."),
    ("held out", "Neither trained on nor used to choose a checkpoint, a threshold or anything "
     "else. Validation patients are never held out."),
]  # fmt: skip


def title_of_column(name: str) -> tuple[str, int]:
    """Heading and digits of a column.

    >>> title_of_column("nsd_2mm"), title_of_column("hd95_mm")
    (('NSD 2 mm', 3), ('HD95 mm', 1))
    """
    if name.startswith("nsd_"):
        return f"NSD {name.removeprefix('nsd_').removesuffix('mm')} mm", 3
    return TITLES[name]


def is_share(name: str) -> bool:
    """Whether a measure lies between 0 and 1, the more the better."""
    return name.startswith("nsd_") or (name in MEASURES and MEASURES[name].better == 1)


def sense_of(name: str) -> int:
    """1 where more is better, -1 where less is; 0 of a volume, its error and a count.

    >>> sense_of("dice"), sense_of("hd95_mm"), sense_of("volume_ml")
    (1, -1, 0)
    """
    if is_share(name) or name in ("dice_plain", "recipe_metric"):
        return 1
    return MEASURES[name].better if name in MEASURES else 0


def shown(value: Any, digits: int) -> str:
    """A cell's text; a dash for what there is not.

    >>> shown(0.87654, 3), shown(2.0, 0), shown(None, 1), shown("missed", 0)
    ('0.877', '2', '-', 'missed')
    """
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.{digits}f}"
