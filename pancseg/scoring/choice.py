"""Choosing threshold and components on validation patients: what gives the best mean Dice."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pancseg.bounding_box import bounding_box
from pancseg.inference.postprocess import AUTO, Postprocess, Wanted
from pancseg.scoring.statistics import per_patient

THRESHOLDS = [round(0.1 + 0.05 * i, 2) for i in range(17)]  # 0.1 to 0.9
WORTH = 1e-4  # a mean Dice this much better moves a setting away from its default
PLAIN = Postprocess()

Judged = tuple[str, NDArray[np.float32], NDArray[np.bool_]]


def candidates(wanted: Wanted, kept: Postprocess) -> list[Postprocess]:
    """The settings to try, the plainest first.

    >>> candidates(Wanted(0.4, "auto"), Postprocess())
    [Postprocess(threshold=0.4, largest_component=False), Postprocess(threshold=0.4, \
largest_component=True)]
    """
    given = wanted.over(kept)
    thresholds = THRESHOLDS if wanted.threshold == AUTO else [given.threshold]
    pieces = [False, True] if wanted.largest_component == AUTO else [given.largest_component]
    near = sorted(thresholds, key=lambda threshold: abs(threshold - PLAIN.threshold))
    return [Postprocess(threshold, largest) for largest in pieces for threshold in near]


def choose(
    wanted: Wanted, kept: Postprocess, cases: Iterable[Judged]
) -> tuple[Postprocess, dict[str, Any]]:
    """Choose by mean Dice over validation patients; a case without reference takes no part.

    Args:
        wanted: Which of them are to be chosen.
        kept: What was chosen before.
        cases: Patient, probability and drawn mask of each, on the case's own grid.

    Returns:
        The choice, and what was seen: mean Dice of each candidate, how many patients.
    """
    tried = candidates(wanted, kept)
    patients: list[str] = []
    dice: list[list[float]] = []
    for patient, probability, reference in cases:
        if reference.any():
            patients.append(patient)
            dice.append(dice_of_each(tried, probability, reference))
    if not patients:
        return wanted.over(kept), {"n": 0, "dice": []}
    means = [
        float(np.mean(per_patient(patients, [row[i] for row in dice]))) for i in range(len(tried))
    ]
    best = 0
    for i, mean in enumerate(means):
        if mean > means[best] + WORTH:
            best = i
    table = [
        {"threshold": one.threshold, "largest_component": one.largest_component, "dice": mean}
        for one, mean in zip(tried, means, strict=True)
    ]
    return tried[best], {"n": len(set(patients)), "dice": table}


def dice_of_each(
    tried: list[Postprocess], probability: NDArray[np.float32], reference: NDArray[np.bool_]
) -> list[float]:
    """Dice of one case by each of the settings, inside the box where any finds something."""
    box = bounding_box(reference | (probability > min(one.threshold for one in tried)))
    p, drawn = probability[box], reference[box]
    found = []
    for one in tried:
        mask = one.mask_of(p)
        found.append(2 * int((mask & drawn).sum()) / (int(mask.sum()) + int(drawn.sum())))
    return found
