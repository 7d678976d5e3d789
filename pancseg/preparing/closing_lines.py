"""What a preparation says of itself when it is done."""

from collections.abc import Iterable

from pancseg.intake.checks.flags import FACTS, FLAGS
from pancseg.preparing.preparation import Preparation

MOST_TOLD = 20  # refusals on the console; intake.csv holds all


def closing_lines(preparation: Preparation) -> Iterable[str]:
    """Closing lines: what was kept, what was refused and why."""
    manifest, refused = preparation.manifest, preparation.problems
    counts = [row for row in preparation.rows.values() if row.kind == "image"]
    empty = sum(int(row.groups_empty or 0) for row in counts)
    tails = sum(int(row.groups_tail or 0) for row in counts)
    looked_at = len(manifest.cases) + sum(row.status == "refused" for row in counts)
    unlabelled = sum(case.label is None for case in manifest.cases)
    raised = [set(str(row.flags).split()).difference(FACTS) for row in counts if row.case]
    flagged = sum(map(bool, raised))
    cutting = preparation.cutting
    dropped = "kept" if cutting.keep_empty else "dropped"
    groups = (
        "no groups"
        if cutting.depth is None
        else f"{len(manifest.groups)} groups of {cutting.depth} ({empty} empty groups {dropped}, "
        f"{tails} incomplete groups left out)"
    )
    yield (
        f"{preparation.root}: kept {len(manifest.cases)} of {looked_at} cases "
        f"({preparation.added} new, {unlabelled} unlabelled, {flagged} flagged), {groups}; "
        f"refused {len(refused)}" + (":" if refused else "")
    )
    for line in refused[:MOST_TOLD]:
        yield f"refused {line}"
    if len(refused) > MOST_TOLD:
        yield f"and {len(refused) - MOST_TOLD} more, see intake.csv"
    codes = {line.partition(": ")[2].partition(":")[0] for line in refused}
    if codes & {"missing_slice", "uneven_gaps", "gantry_tilt"}:
        yield (
            "repair.gaps=resample and repair.tilt=resample put such series on a regular grid, with "
            "another data.root"
        )
    yield from told_flags(raised)
    yield f"look at {preparation.root / 'intake.png'}"


def told_flags(raised: list[set[str]]) -> Iterable[str]:
    """For each flag that occurred, on how many cases, what it means and what to do."""
    for flag, meaning in FLAGS.items():
        if count := sum(flag in flags for flags in raised):
            yield f"flagged {flag}, {count} case{'s' * (count != 1)}: {meaning}"
