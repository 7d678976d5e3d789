"""What stands beside figures: split, geometry, who judged, how masks were made, what was odd."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pancseg.dataset.contact_sheet import FACTS
from pancseg.dataset.intake_table import TABLE, read_rows
from pancseg.dataset.manifest import Case
from pancseg.inference.members import Member, are_held_out
from pancseg.inference.postprocess import Postprocess

GEOMETRY = "whole cases on their own grid, {} put together by mean probability"


def describe_scoring(
    subset: str,
    judges: dict[str, list[Member]],
    cases: Sequence[Case],
    chosen: Mapping[Path, Postprocess],
) -> dict[str, Any]:
    """Facts of a scoring, as they stand in ``scores/<subset>.json``.

    Args:
        subset: Which patients.
        judges: Who judges which patient.
        cases: That are scored.
        chosen: How each checkpoint makes a mask.
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
    }


def note_of(about: dict[str, Any]) -> str:
    """What is said on every picture of a scoring.

    >>> note_of({"phantoms": True, "held_out": False})
    'PHANTOM, NOT HELD OUT'
    """
    held_out = "held out" if about["held_out"] else "NOT HELD OUT"
    return f"PHANTOM, {held_out}" if about["phantoms"] else held_out


def flags_of(cases: Sequence[Case], root: Path) -> dict[str, list[str]]:
    """Flags that intake raised on cases, by case; facts that somebody chose are none."""
    rows = [row for row in read_rows(root / TABLE).values() if row.kind == "image"]
    raised = {row.case: [one for one in row.flags.split() if one not in FACTS] for row in rows}
    return {case.case: raised[case.case] for case in cases if raised.get(case.case)}
