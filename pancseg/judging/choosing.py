"""How each checkpoint makes a mask: as given, as recorded, or chosen on its validation patients.

Chosen is the threshold, and whether the largest component stands alone: what gives the best mean
Dice.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pancseg.data.manifest import read_manifest
from pancseg.errors import PancsegError
from pancseg.geometry import bounding_box
from pancseg.inference.members import Member
from pancseg.inference.postprocess import (
    AUTO,
    Postprocess,
    Wanted,
    record,
    recorded,
    side_file,
)
from pancseg.judging.case_judge import PLAIN, read_case
from pancseg.parallel import progress
from pancseg.scoring.statistics import per_patient

log = logging.getLogger(__name__)
THRESHOLDS = [round(0.1 + 0.05 * i, 2) for i in range(17)]  # 0.1 to 0.9
WORTH = 1e-4  # a mean Dice this much better moves a setting away from its default
Judged = tuple[str, NDArray[np.float32], NDArray[np.bool_]]


def postprocess_of(member: Member, wanted: Wanted, root: Path) -> Postprocess:
    """How a checkpoint's probabilities become masks.

    What is chosen is written beside the checkpoint; later commands take it up.

    Args:
        member: The checkpoint.
        wanted: By the configuration.
        root: Prepared folder.

    Raises:
        PancsegError: If something is to be chosen and there is nobody to choose by.
    """
    kept = recorded(member.checkpoint) or Postprocess()
    if not wanted.asks_validation:
        return wanted.over(kept)
    chosen, seen = choose(wanted, kept, validation_cases(member, root))
    if not seen["n"]:
        raise PancsegError(
            "postprocess: auto chooses on validation patients, and the split dealt none with a "
            "pancreas (split.val=0); give numbers"
        )
    about = {"chosen_on": "val", "held_out": member.trained.split.held_out, **seen}
    record(member.checkpoint, wanted.chosen_alone(chosen, kept), about)
    log.info("chosen on %s validation patients: %s", seen["n"], chosen.describe())
    log.info("         %s", side_file(member.checkpoint))
    return chosen


def origin_of(members: Sequence[Member], wanted: Wanted) -> str:
    """Where threshold and components come from: ``given``, ``validation`` or ``plain``."""
    if wanted.is_given:
        return "given"
    kept = wanted.asks_validation or any(recorded(member.checkpoint) for member in members)
    return "validation" if kept else "plain"


def validation_cases(member: Member, root: Path) -> Iterator[Judged]:
    """Probability and drawn mask of each validation case."""
    cases = read_manifest(root).cases_of(member.trained.split.val)
    for case in progress(cases, "choosing on val", "case"):
        image, reference = read_case(case, root)
        yield case.patient, member.network.probability(image), reference


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
