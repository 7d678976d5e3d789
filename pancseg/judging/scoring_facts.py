"""Whom a scoring is of, and what stands beside its figures."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pancseg.data.cache import change_since_prepared
from pancseg.data.manifest import Case, read_manifest, read_rows
from pancseg.data.splits import SUBSETS
from pancseg.errors import PancsegError
from pancseg.files import read_json
from pancseg.inference.members import Member, are_held_out
from pancseg.inference.postprocess import Postprocess
from pancseg.intake.checks import INFO_FLAGS

log = logging.getLogger(__name__)
GEOMETRY = "whole cases on their own grid, {} put together by mean probability"


def describe_scoring(
    subset: str,
    judges: dict[str, list[Member]],
    cases: Sequence[Case],
    chosen: Mapping[Path, Postprocess],
    root: Path,
) -> dict[str, Any]:
    """Facts of a scoring, as they stand in ``scores/<subset>.json``.

    Args:
        subset: Which patients.
        judges: Who judges which patient.
        cases: That are scored.
        chosen: How each checkpoint makes a mask.
        root: Prepared folder.
    """
    members = list({m.checkpoint: m for judging in judges.values() for m in judging}.values())
    trained = members[0].trained
    most = max(len(judging) for judging in judges.values())
    return {
        "subset": subset,
        "held_out": are_held_out(judges, subset),
        "split": {"rule": trained.split.rule, "seed": trained.split.seed},
        "geometry": GEOMETRY.format("groups" if trained.depth else "windows"),
        "phantoms": any(case.phantom for case in cases),
        "checkpoints": len(members),
        "checkpoint": sorted({member.checkpoint.name for member in members}),
        "judges_of_a_patient": most,
        "checkpoint_epoch": [m.trained.epoch for m in members]
        if len(members) > 1
        else trained.epoch,
        "data_fingerprint": trained.fingerprint,
        "arithmetic": members[0].precision,
        "postprocess": [asdict(chosen[m.checkpoint]) for m in members],
        "changed_since_prepared": changed_of(cases, root),
    }


def cases_of(root: Path, patients: list[str], subset: str) -> list[Case]:
    """The cases to score.

    Raises:
        PancsegError: If patients are not in the folder.
    """
    cases = read_manifest(root).cases_of(patients)
    missing = sorted(set(patients) - {case.patient for case in cases})
    if missing:
        raise PancsegError(
            f"data.root={root}: holds no label of {len(missing)} {subset} patients, such as "
            f"{missing[0]}; give the folder the checkpoint was trained on, or one prepared with "
            "the same key"
        )
    return cases


def note_of(about: dict[str, Any]) -> str:
    """What is said on every picture of a scoring.

    >>> note_of({"phantoms": True, "held_out": False})
    'PHANTOM, NOT HELD OUT'
    """
    held_out = "held out" if about["held_out"] else "NOT HELD OUT"
    return f"PHANTOM, {held_out}" if about["phantoms"] else held_out


def flags_of(cases: Sequence[Case], root: Path) -> dict[str, list[str]]:
    """Flags that intake raised on cases, by case; facts that somebody chose are none."""
    rows = [row for row in read_rows(root) if row.kind == "image"]
    raised = {row.case: [one for one in row.flags.split() if one not in INFO_FLAGS] for row in rows}
    return {case.name: raised[case.name] for case in cases if raised.get(case.name)}


def changed_of(cases: Sequence[Case], root: Path) -> list[str]:
    """Cases whose files are not those that preparation wrote; each is told of."""
    changed = []
    for case in cases:
        try:
            warning = change_since_prepared(root, case)
        except (OSError, EOFError):
            continue  # its row will say that it cannot be read
        if warning:
            log.warning(warning)
            changed.append(case.name)
    return changed


def check_own(members: Sequence[Member]) -> None:
    """Check that checkpoints lie in the folders of the runs that wrote them.

    Raises:
        PancsegError: If one was trained on other patients than its folder says.
    """
    for member in members:
        path = member.checkpoint.parent.parent / "splits.json"
        if member.checkpoint.parent.name != "checkpoints" or not path.is_file():
            continue
        dealt = read_json(path, "a split", lambda v: isinstance(v, dict) and {*SUBSETS} <= v.keys())
        if any(dealt[part] != getattr(member.trained.split, part) for part in SUBSETS):
            raise PancsegError(
                f"checkpoint={member.checkpoint}: was trained on other patients than {path} says, "
                "so it is of another run; put the run's own checkpoint back, or score this one "
                "from a folder of its own"
            )
