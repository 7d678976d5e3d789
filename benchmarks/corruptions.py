"""Does predict know when it errs? Held-out phantoms, corrupted in ways that scans go wrong.

    python benchmarks/corruptions.py --checkpoint RUN/checkpoints/best.ckpt --truth PHANTOMS/truth \
        --work FOLDER --plot docs/confidence.png

Every phantom is written as it is and in each corrupted form, with its mask moved along, and all of
them are segmented by ``pancseg.predict``. Dice is held against confidence and flags. The phantoms
must be others than those of the checkpoint.
"""

import argparse
import csv
import datetime
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from dice_over_time import machine
from matplotlib.figure import Figure
from scipy import ndimage

FAILED_BELOW = 0.5  # Dice
FALSE_ALARMS = 0.1  # of clean scans
Pair = tuple[nib.Nifti1Image, nib.Nifti1Image]


def same_mask(change: Callable[[np.ndarray, np.random.Generator], np.ndarray]):
    """A change of values: the mask stays."""

    def corrupt(pair: Pair, rng: np.random.Generator) -> Pair:
        hu = change(np.asarray(pair[0].dataobj, np.float32), rng)
        return as_int16(hu, pair[0].affine), pair[1]

    return corrupt


def as_int16(hu: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """HU as scanners store them."""
    return nib.Nifti1Image(np.rint(np.clip(hu, -32768, 32767)).astype(np.int16), affine)


def noise(sd_hu: float):
    """Noise of a standard deviation."""
    return same_mask(lambda hu, rng: hu + rng.normal(0, sd_hu, hu.shape))


def like_mr(hu: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fat bright, muscle grey, air and bone dark, brighter near one side's coil."""
    seen = 600 * np.exp(-(((hu + 90) / 60) ** 2)) + 300 * np.exp(-(((hu - 50) / 90) ** 2))
    return seen * np.linspace(0.6, 1.4, hu.shape[0])[:, None, None] + np.abs(rng.normal(0, 15))


def mirrored(axis: int):
    """The patient mirrored along an axis, which the header does not tell."""

    def corrupt(pair: Pair, rng: np.random.Generator) -> Pair:
        return tuple(  # type: ignore[return-value]
            nib.Nifti1Image(np.flip(np.asarray(one.dataobj), axis), one.affine) for one in pair
        )

    return corrupt


def cropped(pair: Pair, rng: np.random.Generator) -> Pair:
    """Only what lies above the middle of the pancreas, as of a scan of the chest."""
    drawn = np.asarray(pair[1].dataobj) > 0
    middle = int(np.median(np.flatnonzero(drawn.any(axis=(0, 1)))))
    return tuple(one.slicer[:, :, middle:] for one in pair)  # type: ignore[return-value]


def thick(pair: Pair, rng: np.random.Generator) -> Pair:
    """Five slices averaged to one."""
    affine = pair[0].affine @ np.diag([1, 1, 5, 1.0])
    slices = pair[0].shape[2] // 5
    hu = np.asarray(pair[0].dataobj, np.float32)[..., : slices * 5]
    hu = hu.reshape(*hu.shape[:2], slices, 5).mean(axis=3)
    label = np.asarray(pair[1].dataobj)[..., 2 : slices * 5 : 5]
    return as_int16(hu, affine), nib.Nifti1Image(label, affine)


WAYS: dict[str, Callable[[Pair, np.random.Generator], Pair]] = {
    "clean": lambda pair, rng: pair,
    "noise 60 HU": noise(60),
    "noise 150 HU": noise(150),
    "display window": same_mask(lambda hu, rng: (hu.clip(-160, 240) + 160) / 400 * 255),
    "slope lost": same_mask(lambda hu, rng: hu + 1024),
    "cropped": cropped,
    "like MR": same_mask(like_mr),
    "mirrored": mirrored(0),
    "upside down": mirrored(2),
    "thick slices": thick,
    "smooth": same_mask(lambda hu, rng: ndimage.gaussian_filter(hu, 2.5)),
}


@dataclass(frozen=True)
class Judged:
    """What became of one scan."""

    way: str
    dice: float
    confidence: float
    flags: tuple[str, ...]


def write_scans(truth: Path, folder: Path) -> None:
    """Every phantom in every way, images and masks apart."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for image in sorted(truth.glob("*_image.nii.gz")):
        name = image.name.removesuffix("_image.nii.gz")
        pair = nib.load(image), nib.load(truth / f"{name}_label.nii.gz")
        for number, corrupt in enumerate(WAYS.values()):
            if (folder / "masks" / f"{name}-way{number:02}.nii.gz").exists():
                continue  # of an earlier run: predict goes on with what is not done
            one = corrupt(pair, np.random.default_rng(number))
            for part, made in zip(("images", "masks"), one, strict=True):
                nib.save(made, folder / part / f"{name}-way{number:02}.nii.gz")


def judge(folder: Path, checkpoint: Path) -> list[Judged]:
    """Segment all, and hold what was found against what is there."""
    output = folder / "predicted"
    words = [f"checkpoint={checkpoint}", f"input={folder / 'images'}", f"output={output}"]
    subprocess.run([sys.executable, "-m", "pancseg.predict", *words], check=True)
    found = []
    for row in csv.DictReader((output / "predictions.csv").read_text().splitlines()):
        mask, drawn = (
            np.asarray(nib.load(path).dataobj) > 0
            for path in (
                output / f"{row['case']}_pancreas.nii.gz",
                folder / "masks" / f"{row['case']}.nii.gz",
            )
        )
        both = np.count_nonzero(mask) + np.count_nonzero(drawn)
        dice = 2 * np.count_nonzero(mask & drawn) / both if both else 1.0
        way = list(WAYS)[int(row["case"][-2:])]
        found.append(Judged(way, dice, float(row["confidence"]), tuple(row["flags"].split())))
    return found


def tell(judged: list[Judged]) -> None:
    """Print the table of ways, and what is caught."""
    print("| scans | n | Dice, mean | failed | confidence, mean | flagged | flags |")
    print("|--|--|--|--|--|--|--|")
    for way in WAYS:
        these = [one for one in judged if one.way == way]
        failed = sum(one.dice < FAILED_BELOW for one in these)
        flagged = sum(bool(one.flags) for one in these)
        names = sorted({flag for one in these for flag in one.flags})
        dice, sure = (np.mean([getattr(one, n) for one in these]) for n in ("dice", "confidence"))
        print(
            f"| {way} | {len(these)} | {dice:.3f} | {failed} | {sure:.2f} | {flagged} "
            f"| {' '.join(names)} |"
        )
    clean = [one for one in judged if one.way == "clean"]
    failures = [one for one in judged if one.dice < FAILED_BELOW]
    limit = float(np.quantile([one.confidence for one in clean], FALSE_ALARMS))
    lowest = sorted(judged, key=lambda one: (not one.flags, one.confidence))
    tenth = lowest[: round(len(judged) * FALSE_ALARMS)]
    by_confidence = np.mean([one.confidence < limit for one in failures])
    by_flags = np.mean([bool(one.flags) for one in failures])
    print(
        f"\n{len(failures)} of {len(judged)} failed (Dice below {FAILED_BELOW}). Caught by a "
        f"confidence below {limit:.3f}, which one in ten clean scans has: {by_confidence:.0%}; by "
        f"flags as they are: {by_flags:.0%}, with {np.mean([bool(c.flags) for c in clean]):.0%} of "
        f"clean scans flagged. Of the tenth of all scans that is doubted most, "
        f"{np.mean([one.dice < FAILED_BELOW for one in tenth]):.0%} failed: "
        f"{sum(one.dice < FAILED_BELOW for one in tenth) / max(1, len(failures)):.0%} of failures."
    )


def draw(judged: list[Judged], path: Path) -> None:
    """Dice against confidence; flagged scans as rings, others filled."""
    figure = Figure(figsize=(8.5, 5.2), layout="constrained")
    axes = figure.subplots()
    colours = [f"C{n}" for n in range(10)] + ["black"]
    for way, colour in zip(WAYS, colours, strict=True):
        for flagged, face in ((False, colour), (True, "none")):
            these = [one for one in judged if one.way == way and bool(one.flags) == flagged]
            xs, ys = [one.confidence for one in these], [one.dice for one in these]
            axes.scatter(xs, ys, 42, facecolors=face, edgecolors=colour, linewidths=1.4)
        axes.scatter([], [], 42, color=colour, label=way)
    axes.axhline(FAILED_BELOW, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="confidence", ylabel="Dice", ylim=(-0.03, 1.03))
    axes.set_title("PHANTOMS, held out: filled points carry no flag, rings do", fontsize=11)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Corrupt, segment, tell and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--checkpoint", "--truth", "--work", "--plot"):
        parser.add_argument(name, type=Path, required=True)
    asked = parser.parse_args()
    write_scans(asked.truth, asked.work)
    judged = judge(asked.work, asked.checkpoint)
    print(f"{machine()}, {datetime.date.today()}\n")
    tell(judged)
    draw(judged, asked.plot)


if __name__ == "__main__":
    main()
