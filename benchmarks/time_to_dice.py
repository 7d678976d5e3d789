"""Which Dice on held-out phantoms does a training reach in how many seconds? Arms side by side.

    python benchmarks/time_to_dice.py --work FOLDER --arms a,b,c,d --budgets 90,240,600 \
      --patients 24,8 --spacing 3.0

Phantoms are written and prepared once, and one split serves all. Arms run one after the other. The
plain script runs once and is judged as it stood at each budget; pancseg trains anew for each, for a
schedule must know its end. Every arm is judged on whole cases on their own grid, by the same score:
pancseg by ``pancseg.evaluate``, the plain script by the same inference and the threshold its loss
taught it, a sigmoid of the second channel. An arm that has its result in FOLDER/results is not run
again. Results: ``table.md``, ``results.json`` and ``time_to_dice.png`` in FOLDER.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dice_over_time import ARMS, Arm, report, whole_case_dice, write_result

from pancseg.files import write_json
from pancseg.metrics.statistics import per_patient
from pancseg.parallel import cores

PLAIN = Path(__file__).with_name("plain_recipe.py")
FIELD_MM = (384, 384, 288)  # of a phantom, whatever the spacing


@dataclass(frozen=True)
class Bench:
    """Where and how to measure.

    Attributes:
        work: Folder of everything.
        patients: Phantoms to train on and to test on.
        spacing_mm: Voxel size of the phantoms, the same along each axis.
        threads: Of each arm.
        quick: Small networks, to see whether everything runs.
    """

    work: Path
    patients: tuple[int, int]
    spacing_mm: float
    threads: int
    quick: bool

    @property
    def prepared(self) -> Path:
        """The prepared folder of all arms."""
        return self.work / "prepared"

    def split(self, arm: Arm) -> Path:
        """The split file of an arm."""
        return self.work / ("split_with_val.json" if arm.chooses else "split.json")

    def settings(self) -> dict[str, Any]:
        """What must not change between two calls on one folder."""
        return {
            "train": self.patients[0], "test": self.patients[1],
            "spacing_mm": self.spacing_mm, "threads": self.threads, "quick": self.quick,
        }  # fmt: skip

    def call(self, name: str, words: Sequence[object]) -> float:
        """Run a Python program, its output in a log; wall-clock seconds."""
        log = self.work / "logs" / f"{name}.txt"
        log.parent.mkdir(exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        command = [sys.executable, *map(str, words)]
        begun = time.perf_counter()
        with log.open("w") as out:
            ended = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        if ended.returncode:
            last = (log.read_text().strip() or "no output").splitlines()[-1]
            raise SystemExit(f"{name} ended with code {ended.returncode}: {last}; see {log}")
        return time.perf_counter() - begun


def shape_of(spacing_mm: float) -> list[int]:
    """Voxels of a phantom.

    >>> shape_of(3.0), shape_of(1.5)
    ([128, 128, 96], [256, 256, 192])
    """
    return [round(size / spacing_mm) for size in FIELD_MM]


def set_up(bench: Bench) -> None:
    """Phantoms, preparation and split, each where it is not there yet."""
    bench.work.mkdir(parents=True, exist_ok=True)
    settings = bench.work / "settings.json"
    if settings.exists() and json.loads(settings.read_text()) != bench.settings():
        raise SystemExit(f"{settings}: made with other settings; give another --work")
    write_json(settings, bench.settings())
    if not (bench.prepared / "manifest.json").exists():
        dicom, spacing = bench.work / "dicom", bench.spacing_mm
        shutil.rmtree(dicom, ignore_errors=True)
        numbers = [f"shape={shape_of(spacing)}", f"spacing_mm={[spacing] * 3}", "seed=1"]
        numbers.append(f"patients={sum(bench.patients)}")
        bench.call("phantom", ["-m", "pancseg.phantom", f"out='{dicom}'", *numbers])
        source = ["source=dicom", f"source.images='{dicom}/images'"]
        source += [f"source.labels='{dicom}/labels'", f"data.root='{bench.prepared}'"]
        choices = ["data=group64", "data.tail=shift", "privacy=none"]
        bench.call("prepare", ["-m", "pancseg.prepare", *source, *choices])
    write_splits(bench)


def write_splits(bench: Bench) -> None:
    """The split, and the same with an eighth of the training patients as validation."""
    from pancseg.data.manifest import read_manifest
    from pancseg.data.splits import make_split

    patients = read_manifest(bench.prepared).labelled_patients()
    split = make_split(patients, "holdout", val=0, test=bench.patients[1])
    inner = make_split(split.train, "holdout", val=max(1, len(split.train) // 8), test=0)
    lists = {"train": split.train, "val": [], "test": split.test}
    write_json(bench.work / "split.json", lists)
    with_val = {**lists, "train": inner.train, "val": inner.val}
    write_json(bench.work / "split_with_val.json", with_val)


def train_words(bench: Bench, arm: Arm, run: Path, seconds: float) -> list[str]:
    """The command of a pancseg arm that trains for some seconds."""
    minutes, rest = divmod(max(1, int(seconds)), 60)
    longest = f"trainer.max_time='00:{minutes // 60:02}:{minutes % 60:02}:{rest:02}'"
    where = [f"data.root='{bench.prepared}'", f"hydra.run.dir='{run}'", longest]
    split = ["split=file", f"split.path='{bench.split(arm)}'"]
    small = arm.tiny if bench.quick else ()
    return ["-m", "pancseg.train", *arm.overrides, *small, *where, *split]


def timed_training(bench: Bench, name: str, run: Path, seconds: float) -> float:
    """Train without any cache of an earlier arm; wall-clock seconds of the command."""
    shutil.rmtree(bench.prepared / "cache", ignore_errors=True)
    shutil.rmtree(run, ignore_errors=True)
    words = train_words(bench, ARMS[name], run, seconds)
    return bench.call(f"train_{run.name}", words)


def overhead(bench: Bench, name: str) -> float:
    """Seconds a pancseg arm needs beside its steps, by trials that end after their first step."""
    run = bench.work / "runs" / f"{name}_trial"
    told = run / "overhead.json"
    if not told.exists():  # the first trial pays for files that no later run reads from disk
        write_json(told, min(timed_training(bench, name, run, 1) for _ in range(2)) - 1)
    return float(json.loads(told.read_text()))


def run_pancseg(bench: Bench, name: str, budget: float) -> None:
    """One training for one budget, and its scores."""
    seconds = budget - overhead(bench, name)
    if seconds < 1:
        raise SystemExit(f"arm {name}: start and end alone take {budget - seconds:.0f} s")
    run = bench.work / "runs" / f"{name}_{budget:g}"
    wall = timed_training(bench, name, run, seconds)
    with (run / "metrics.csv").open(newline="") as file:
        steps = int(list(csv.DictReader(file))[-1]["step"])
    write_result(bench.work, name, budget, wall, steps, judge(bench, run))


def run_plain(bench: Bench, name: str, budgets: Sequence[float]) -> None:
    """One run of the plain script, judged at each budget."""
    out = bench.work / "runs" / f"{name}_plain"
    split = bench.work / "split.json"
    words: list[object] = [PLAIN, "--prepared", bench.prepared, "--split", split]
    words += ["--lr", ARMS[name].lr, "--out", out, "--threads", bench.threads]
    words += [*(["--tiny"] if bench.quick else []), "--marks", *budgets]
    bench.call(f"train_{name}", words)
    for row in json.loads((out / "marks.json").read_text()):
        dice = judge_plain(bench, out / f"weights_{row['mark']:g}.pt")
        write_result(bench.work, name, row["mark"], row["seconds"], row["steps"], dice)


def plain_model(weights: Path, tiny: bool) -> Any:
    """The plain script's network as the predictor takes one.

    Its loss taught each channel a sigmoid of its own, so the second channel alone decides. The rule
    of a softmax, which compares the two channels, would find less with the same weights.
    """
    import plain_recipe as plain
    import torch

    from pancseg.data.transforms import Preprocessing

    network = plain.make_network(tiny).eval()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    size = plain.TINY_SIZE if tiny else plain.SIZE
    window_hu = (plain.LOW_HU, plain.HIGH_HU)
    return SimpleNamespace(
        path=weights,
        network=network,
        hparams={"loss": {"sigmoid": True}, "view": None},  # any image is taken whole
        preprocessing=Preprocessing("RAS", plain.SPACING_MM, window_hu, size),
        depth=64,
        structures=(),
    )


def judge_plain(bench: Bench, weights: Path) -> dict[str, float]:
    """Dice of each test patient by the plain script's weights, through pancseg's inference."""
    import nibabel as nib

    from pancseg.data.manifest import Case
    from pancseg.inference.predictor import Predictor, check_device

    predictor = Predictor([plain_model(weights, bench.quick)], device=check_device("auto"))

    def mask_of(case: Case) -> Any:
        return predictor.predict(nib.Nifti1Image.from_filename(bench.prepared / case.image)).mask

    test = json.loads((bench.work / "split.json").read_text())["test"]
    return whole_case_dice(bench.prepared, test, mask_of)


def judge(bench: Bench, run: Path) -> dict[str, float]:
    """Dice of each test patient by ``pancseg.evaluate``."""
    checkpoint = f"checkpoint='{run / 'checkpoints' / 'best.ckpt'}'"
    words = ["-m", "pancseg.evaluate", checkpoint, "subset=test", f"data.root='{bench.prepared}'"]
    bench.call(f"evaluate_{run.name}", words)
    with (run / "scores" / "test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    patients = [row["patient"] for row in rows]
    values = per_patient(patients, [float(row["dice"]) for row in rows])
    return dict(zip(sorted(set(patients)), values, strict=True))


def missing(bench: Bench, arm: str, budgets: Sequence[float]) -> list[float]:
    """The budgets that an arm has no result for."""
    return [b for b in budgets if not (bench.work / "results" / f"{arm}_{b:g}.json").exists()]


def numbers(text: str) -> list[float]:
    """Numbers with commas between."""
    return [float(word) for word in text.split(",")]


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    own = [name for name, arm in ARMS.items() if arm.lr is not None or arm.overrides]
    parser.add_argument("--arms", default=",".join(own), help="some of these")
    parser.add_argument("--budgets", type=numbers, default=[90, 240, 600], help="seconds")
    parser.add_argument("--patients", type=numbers, default=[24, 8], help="train,test")
    parser.add_argument("--spacing", type=float, default=3.0, help="mm")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--quick", action="store_true", help="tiny: does everything run?")
    chosen = parser.parse_args()
    if unknown := set(chosen.arms.split(",")) - set(own):
        parser.error(f"--arms: {', '.join(sorted(unknown))}: expected some of {','.join(own)}")
    if chosen.quick:
        chosen.patients, chosen.spacing, chosen.budgets = [3, 2], 4.0, [45.0]
    train, test = map(int, chosen.patients)
    bench = Bench(
        chosen.work.resolve(), (train, test), chosen.spacing, chosen.threads, chosen.quick
    )
    set_up(bench)
    for name in chosen.arms.split(","):
        left = missing(bench, name, chosen.budgets)
        if left and ARMS[name].lr is not None:
            run_plain(bench, name, left)
        else:
            for budget in left:
                run_pancseg(bench, name, budget)
    report(bench.work)


if __name__ == "__main__":
    main()
