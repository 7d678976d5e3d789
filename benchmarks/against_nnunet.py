"""pancseg beside nnU-Net v2: the same training patients, the same seconds, the same judge.

    python -m venv NNUNET && NNUNET/bin/pip install nnunetv2
    python benchmarks/against_nnunet.py --work FOLDER --nnunet-venv NNUNET --budgets 180,480

FOLDER may be the one of time_to_dice.py, whose phantoms and split it then uses. nnU-Net plans and
preprocesses by itself and trains ``3d_fullres`` on all training patients (fold ``all``). Its
trainer is its own but for the number of epochs: a trial of three says how long one takes, and how
long starting and ending take, and as many are run as fit into the budget. An epoch has fewer steps
than nnU-Net's, in its own proportion of training to validation, so that the learning rate falls
smoothly. Its wall-clock is that of ``nnUNetv2_train``; fingerprint, planning and preprocessing do
not count. It predicts with its defaults, mirroring included.

nnU-Net imports torchvision: beside a torch for CPUs only it must be a build for CPUs, too. Without
a GPU, ``--quick --beside none --device cpu`` shows within minutes whether everything runs.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from dice_over_time import report, whole_case_dice, write_result
from time_to_dice import Bench, missing, numbers, run_pancseg, set_up

from pancseg.data.manifest import Case, read_manifest
from pancseg.files import write_json
from pancseg.parallel import cores

NUMBER, NAME = "901", "Dataset901_Pancseg"
ITERATIONS, VAL_ITERATIONS = 25, 5  # of an epoch; nnU-Net has 250 and 50
TRIAL_EPOCHS = 3
SLACK = 0.97  # share of the budget that is planned for: epochs differ in length
TRAINER = '''"""Written by benchmarks/against_nnunet.py."""

import json
import os
import time

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class BudgetTrainer(nnUNetTrainer):
    """nnU-Net's own trainer with another number of epochs; says how long each took."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = int(os.environ["BUDGET_EPOCHS"])
        self.num_iterations_per_epoch = int(os.environ["BUDGET_ITERATIONS"])
        self.num_val_iterations_per_epoch = int(os.environ["BUDGET_VAL_ITERATIONS"])
        self.epoch_seconds = []

    def on_epoch_start(self):
        self.epoch_began = time.perf_counter()
        super().on_epoch_start()

    def on_epoch_end(self):
        super().on_epoch_end()
        self.epoch_seconds.append(time.perf_counter() - self.epoch_began)

    def on_train_end(self):
        super().on_train_end()
        with open(os.environ["BUDGET_REPORT"], "w") as file:
            json.dump(self.epoch_seconds, file)

    def perform_actual_validation(self, save_probabilities=False):
        """Nothing: it would predict every training case after the training."""
'''


@dataclass(frozen=True)
class NnUnet:
    """An installed nnU-Net and its three folders.

    Attributes:
        venv: Virtual environment that holds it.
        folder: Where it works.
        device: ``cuda`` or ``cpu``.
        quick: One step an epoch and no mirroring, to see whether everything runs.
    """

    venv: Path
    folder: Path
    device: str
    quick: bool

    @property
    def model(self) -> Path:
        """What a training leaves."""
        return self.folder / "results" / NAME / "BudgetTrainer__nnUNetPlans__3d_fullres"

    def call(self, name: str, words: Sequence[object], **variables: object) -> float:
        """Run one of its programs, its output in a log; wall-clock seconds."""
        log = self.folder / "logs" / f"{name}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        own = {
            "nnUNet_raw": self.folder / "raw",
            "nnUNet_preprocessed": self.folder / "preprocessed",
            "nnUNet_results": self.folder / "results",
            "nnUNet_extTrainer": self.folder / "trainer",
            **variables,
        }
        environment = {**os.environ, **{key: str(value) for key, value in own.items()}}
        program, *rest = map(str, words)
        command = [str(self.venv / "bin" / program), *rest]
        begun = time.perf_counter()
        with log.open("w") as out:
            ended = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        if ended.returncode:
            last = (log.read_text().strip() or "no output").splitlines()[-1]
            raise SystemExit(f"{program} ended with code {ended.returncode}: {last}; see {log}")
        return time.perf_counter() - begun

    def preprocess(self, processes: int) -> float:
        """Fingerprint, plans and preprocessing, once; seconds they took."""
        told = self.folder / "preprocessing.json"
        if not told.exists():
            words = ["nnUNetv2_plan_and_preprocess", "-d", NUMBER, "-c", "3d_fullres"]
            seconds = self.call("preprocess", [*words, "-np", processes, "-npfp", processes])
            write_json(told, seconds)
        return float(json.loads(told.read_text()))

    def train(self, name: str, epochs: int) -> tuple[float, list[float]]:
        """Train from the start: wall-clock seconds of the command, and of each epoch."""
        shutil.rmtree(self.model, ignore_errors=True)
        told = self.folder / f"epochs_{name}.json"
        variables = {
            "BUDGET_EPOCHS": epochs,
            "BUDGET_ITERATIONS": 1 if self.quick else ITERATIONS,
            "BUDGET_VAL_ITERATIONS": 1 if self.quick else VAL_ITERATIONS,
            "BUDGET_REPORT": told,
        }
        words = ["nnUNetv2_train", NUMBER, "3d_fullres", "all", "-tr", "BudgetTrainer"]
        wall = self.call(f"train_{name}", [*words, "-device", self.device], **variables)
        return wall, json.loads(told.read_text())

    def predict(self, name: str) -> Path:
        """Masks of the test cases by the network trained last."""
        out = self.folder / f"predicted_{name}"
        words: list[object] = ["nnUNetv2_predict", "-i", self.folder / "raw" / NAME / "imagesTs"]
        words += ["-o", out, "-d", NUMBER, "-c", "3d_fullres", "-f", "all", "-tr", "BudgetTrainer"]
        words += ["-chk", "checkpoint_final.pth", "-device", self.device]
        one = {"BUDGET_EPOCHS": 1, "BUDGET_ITERATIONS": 1, "BUDGET_VAL_ITERATIONS": 1}
        self.call(f"predict_{name}", [*words, *(["--disable_tta"] if self.quick else [])], **one)
        return out

    def version(self) -> str:
        """Of the installed package."""
        code = "import importlib.metadata as m; print(m.version('nnunetv2'))"
        return subprocess.check_output(
            [self.venv / "bin" / "python", "-c", code], text=True
        ).strip()


def write_raw(prepared: Path, split: dict[str, list[str]], raw: Path) -> None:
    """The layout nnU-Net reads, from the whole cases of a prepared folder.

    Args:
        prepared: Prepared folder.
        split: Patients under ``train`` and ``test``.
        raw: Folder to write: ``imagesTr``, ``labelsTr``, ``imagesTs``, ``dataset.json``.
    """
    manifest = read_manifest(prepared)
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (raw / name).mkdir(parents=True, exist_ok=True)
    train = manifest.cases_of(split["train"])
    for case in train:
        label = nib.Nifti1Image.from_filename(prepared / str(case.label))
        mask = (np.asanyarray(label.dataobj) > 0).astype(np.uint8)
        nib.save(nib.Nifti1Image(mask, label.affine), raw / "labelsTr" / f"{case.name}.nii.gz")
    for folder, cases in (("imagesTr", train), ("imagesTs", manifest.cases_of(split["test"]))):
        for case in cases:
            shutil.copyfile(prepared / case.image, raw / folder / f"{case.name}_0000.nii.gz")
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "pancreas": 1},
        "numTraining": len(train),
        "file_ending": ".nii.gz",
    }
    write_json(raw / "dataset.json", description)


def epochs_that_fit(budget: float, wall: float, epochs: Sequence[float]) -> int:
    """Epochs that a budget holds, from a trial.

    Args:
        budget: Seconds.
        wall: Of the whole trial, seconds.
        epochs: Of each epoch of the trial, seconds; the first one warms up.

    >>> epochs_that_fit(100, wall=25, epochs=[11, 2, 2])
    39
    """
    one = statistics.median(epochs[1:])
    beside = wall - one * len(epochs)  # starting, warming up, saving
    return max(1, int((SLACK * budget - beside) / one))


def score(prepared: Path, patients: Sequence[str], predicted: Path) -> dict[str, float]:
    """Dice of each patient by the masks nnU-Net wrote."""

    def mask_of(case: Case) -> Any:
        mask = nib.Nifti1Image.from_filename(predicted / f"{case.name}.nii.gz")
        return np.asanyarray(mask.dataobj) > 0

    return whole_case_dice(prepared, patients, mask_of)


def run_nnunet(bench: Bench, nnunet: NnUnet, budgets: Sequence[float]) -> None:
    """Prepare once, try once, then train, predict and score for each budget."""
    split: dict[str, Any] = json.loads((bench.work / "split.json").read_text())
    write_raw(bench.prepared, split, nnunet.folder / "raw" / NAME)
    (nnunet.folder / "trainer").mkdir(exist_ok=True)
    (nnunet.folder / "trainer" / "budget_trainer.py").write_text(TRAINER)
    took = nnunet.preprocess(bench.threads)
    note = f"nnU-Net {nnunet.version()}: its preprocessing took {took:.0f} s more."
    trial = nnunet.train("trial", 2 if nnunet.quick else TRIAL_EPOCHS)
    for budget in budgets:
        name = f"{budget:g}"
        wall, epochs = nnunet.train(name, 2 if nnunet.quick else epochs_that_fit(budget, *trial))
        dice = score(bench.prepared, split["test"], nnunet.predict(name))
        steps = len(epochs) * (1 if nnunet.quick else ITERATIONS)
        write_result(bench.work, "n", budget, wall, steps, dice, note)


def main() -> None:
    """Run what is missing of both, then report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--nnunet-venv", type=Path, required=True)
    parser.add_argument("--beside", default="d", help="arms of pancseg, such as c,d; none: none")
    parser.add_argument("--budgets", type=numbers, default=[180, 480], help="seconds")
    parser.add_argument("--patients", type=numbers, default=[24, 8], help="train,test")
    parser.add_argument("--spacing", type=float, default=3.0, help="mm")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="of nnU-Net")
    parser.add_argument("--quick", action="store_true", help="tiny: does everything run?")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.patients, chosen.spacing, chosen.budgets = [3, 2], 4.0, [45.0]
    train, test = map(int, chosen.patients)
    work = chosen.work.resolve()
    bench = Bench(work, (train, test), chosen.spacing, chosen.threads, chosen.quick)
    venv = chosen.nnunet_venv.absolute()  # never through the link that its python is
    nnunet = NnUnet(venv, work / "nnunet", chosen.device, chosen.quick)
    set_up(bench)
    for arm in chosen.beside.replace("none", "").split(","):
        for budget in missing(bench, arm, chosen.budgets) if arm else []:
            run_pancseg(bench, arm, budget)
    if left := missing(bench, "n", chosen.budgets):
        run_nnunet(bench, nnunet, left)
    report(work)


if __name__ == "__main__":
    main()
