"""How each checkpoint makes a mask: as given, as recorded, or chosen on its validation patients."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from pancseg.dataset.manifest import read_manifest
from pancseg.errors import PancsegError
from pancseg.inference.members import Member
from pancseg.inference.postprocess import Postprocess, Wanted, record, recorded, side_file
from pancseg.judging.case_judge import read_case
from pancseg.progress import track
from pancseg.scoring.choice import Judged, choose

log = logging.getLogger(__name__)


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
    for case in track(cases, "choosing on val", "case"):
        image, reference = read_case(case, root)
        yield case.patient, member.network.probability(image), reference
