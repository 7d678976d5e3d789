"""Results of time_to_dice.py: the arms, their files, table and plot."""

import datetime
import json
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from intake import processor

from pancseg.data.manifest import Case, read_manifest
from pancseg.files import write_json, write_text
from pancseg.metrics.case_scores import score_case
from pancseg.metrics.statistics import describe, per_patient
from pancseg.parallel import cores

TOLERANCES_MM = [2.0]  # of the surface Dice, which is not shown

TINY = ("data.spatial_size=[32,32,32]", "model.channels=[4,8,8,8,8]", "model.num_res_units=0")
CLOCK = (
    "Seconds are wall-clock from the start of the process: imports, reading, caching, validation "
    "and checkpoints count. For the plain script saving at a budget does not. Preparation "
    "(DICOM to NIfTI) and scoring count for no arm. pancseg computes as `hardware=auto` finds "
    "best, in bf16 where the processor has units for it; the plain script, as written, in float32."
)


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Attributes:
        label: In table and plot.
        colour: In the plot.
        lr: Learning rate of the plain script, or None where ``overrides`` are given to pancseg.
        overrides: Arguments of ``pancseg.train``.
        tiny: Arguments that make it small, with ``--quick``.
        chooses: Whether it takes validation patients out of the training ones.
    """

    label: str
    colour: str
    lr: float | None = None
    overrides: tuple[str, ...] = ()
    tiny: tuple[str, ...] = ()
    chooses: bool = False


RECIPE = ("experiment=recipe64", "trainer.max_epochs=100000")  # max_time ends it
ARMS = {
    "a": Arm("plain script, lr 1e-5", "#8c8c8c", lr=1e-5),
    "b": Arm("plain script, lr 1e-3", "#d98c1f", lr=1e-3),
    "c": Arm("pancseg, recipe64", "#3b7dd8", overrides=RECIPE, tiny=TINY),
    "d": Arm("pancseg, strong", "#2a9d5c", overrides=("experiment=strong",), chooses=True),
}


def whole_case_dice(
    prepared: Path, patients: Sequence[str], mask_of: Callable[[Case], Any]
) -> dict[str, float]:
    """Dice of each patient, whole cases on their own grid, as ``pancseg.evaluate`` scores them.

    Args:
        prepared: Prepared folder.
        patients: To score.
        mask_of: Gives the predicted mask of a case, bool, on the case's own grid.
    """
    cases, dice = read_manifest(prepared).cases_of([*patients]), []
    for case in cases:
        label = nib.Nifti1Image.from_filename(prepared / str(case.label))
        reference = np.asanyarray(label.dataobj) > 0
        found = score_case(mask_of(case), reference, label.affine, TOLERANCES_MM)["dice"]
        if found is None:
            raise SystemExit(f"{case.name}: its reference is empty; it has no Dice")
        dice.append(found)
    names = [case.patient for case in cases]
    return dict(zip(sorted(set(names)), per_patient(names, dice), strict=True))


def write_result(
    work: Path,
    arm: str,
    budget: float,
    wall: float,
    steps: int,
    dice: dict[str, float],
    note: str = "",
) -> None:
    """The result file of an arm and a budget."""
    result = {
        "arm": arm,
        "budget_s": budget,
        "wall_s": round(wall, 1),
        "steps": steps,
        "dice": dice,
        "note": note,
    }
    write_json(work / "results" / f"{arm}_{budget:g}.json", result)
    print(f"{ARMS[arm].label}, {budget:g} s: mean Dice {describe([*dice.values()])['mean']:.3f}")


def read_results(work: Path) -> list[dict[str, Any]]:
    """Every result of a folder, by arm and budget."""
    found = [json.loads(path.read_text()) for path in (work / "results").glob("*.json")]
    return sorted(found, key=lambda row: (row["arm"], row["budget_s"]))


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown, a row an arm and budget; all figures are over patients."""
    head = "| arm | budget s | wall-clock s | steps | mean Dice | 95 % CI | worst case | n |"
    lines = [head, "|--|--|--|--|--|--|--|--|"]
    for row in results:
        dice = row["dice"]
        figures, worst = describe([*dice.values()]), min(dice, key=dice.__getitem__)
        low, high = figures["ci95"]
        interval = "" if low is None else f"{low:.3f} to {high:.3f}"
        shown = (
            f"{row['budget_s']:g} | {row['wall_s']:.0f} | {row['steps']} | {figures['mean']:.3f}"
        )
        last = f"{interval} | {dice[worst]:.3f} ({worst}) | {len(dice)} |"
        lines.append(f"| {ARMS[row['arm']].label} | {shown} | {last}")
    return "\n".join(lines) + "\n"


def draw(results: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Dice against wall-clock: a pale dot a patient, a line an arm through the means."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.add_subplot(
        xlabel="wall-clock of the whole command, s (log)", ylabel="Dice, whole case"
    )
    axes.set(xscale="log", ylim=(-0.02, 1.0))
    axes.set_title(title, fontsize=10)
    for name, arm in ARMS.items():
        rows = [row for row in results if row["arm"] == name]
        if not rows:
            continue
        means = [describe([*row["dice"].values()])["mean"] for row in rows]
        for row in rows:
            values = [*row["dice"].values()]
            axes.scatter(
                [row["wall_s"]] * len(values), values, s=14, color=arm.colour, alpha=0.45, lw=0
            )
        seconds = [row["wall_s"] for row in rows]
        axes.plot(seconds, means, "o-", ms=4.5, color=arm.colour, label=arm.label)
    ticks = sorted({row["budget_s"] for row in results})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.savefig(path, dpi=150)


def machine() -> str:
    """Cores, processor, GPU and torch."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    python = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{cores()} cores of {processor()}, {gpu}, {python}"


def report(work: Path) -> None:
    """Write ``results.json``, ``table.md`` and ``time_to_dice.png``."""
    results = read_results(work)
    if not results:
        raise SystemExit(f"{work}: no results yet")
    settings = json.loads((work / "settings.json").read_text())
    train, test, spacing = (settings[key] for key in ("train", "test", "spacing_mm"))
    what = f"{train} phantoms to train on, {test} held out, {spacing:g} mm"
    told = f"{machine()}, {datetime.date.today()}. {what}."
    command = f"`python benchmarks/{Path(sys.argv[0]).name} {shlex.join(sys.argv[1:])}`"
    write_json(work / "results.json", {"about": told, "command": command, "results": results})
    notes = " ".join([CLOCK, *sorted({row["note"] for row in results if row.get("note")})])
    write_text(work / "table.md", f"{command}, {told}\n{notes}\n\n{table(results)}")
    draw(results, work / "time_to_dice.png", what)
    print((work / "table.md").read_text())
