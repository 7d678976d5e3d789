"""pancseg beside nnU-Net v2: the same patients, patch, spacing, width and wall-clock.

    python -m venv NNUNET && NNUNET/bin/pip install nnunetv2
    python benchmarks/against_nnunet.py --run RUN --work FOLDER --nnunet-venv NNUNET

RUN is a training of pancseg on patches that was evaluated. Its prepared folder and split are
exported for nnU-Net, whose plans get the run's patch, spacing, batch size and width; the optimiser,
its schedule (over the wall-clock), augmentation and loss are nnU-Net's own. nnU-Net trains for as
many seconds as RUN did; planning and preprocessing do not count. Its predictor segments the test
patients with its defaults, ``evaluate predictions=`` scores them, and ``report runs=`` compares.
``--adamw`` replaces the optimiser by AdamW at 2e-3, for minutes on a CPU.

nnU-Net imports torchvision: beside a torch for CPUs only it must be a build for CPUs, too.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from pancseg.inference.checkpoint import open_checkpoint
from pancseg.models.resunet import plan_levels

NUMBER, NAME, PLANS = "901", "Dataset901_Pancseg", "nnUNetPlansLikePancseg"
TRAINER = '''"""Written by benchmarks/against_nnunet.py."""

import json
import os
import time

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class PolySchedule:
    """nnU-Net's polynomial decay over the share of the seconds that have passed."""

    def __init__(self, optimizer, seconds):
        self.optimizer, self.seconds, self.start = optimizer, seconds, None
        self.rate = optimizer.param_groups[0]["lr"]

    def share(self):
        self.start = self.start or time.monotonic()
        return min((time.monotonic() - self.start) / self.seconds, 1.0)

    def step(self, epoch=None):
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * max(1 - self.share(), 0.01) ** 0.9


class WallClockTrainer(nnUNetTrainer):
    """nnU-Net's trainer for a number of seconds."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 25, 2
        torch.set_num_threads(int(os.environ["BENCHMARK_THREADS"]))

    def configure_optimizers(self):
        optimizer, _ = super().configure_optimizers()
        if os.environ["BENCHMARK_ADAMW"] == "1":
            optimizer = torch.optim.AdamW(self.network.parameters(), 2e-3, weight_decay=1e-3)
        return optimizer, PolySchedule(optimizer, float(os.environ["BENCHMARK_SECONDS"]))

    def run_training(self):
        self.on_train_start()
        steps = 0
        while self.lr_scheduler.share() < 1:
            self.on_epoch_start()
            self.on_train_epoch_start()
            outputs = []
            while len(outputs) < self.num_iterations_per_epoch and self.lr_scheduler.share() < 1:
                outputs.append(self.train_step(next(self.dataloader_train)))
            steps += len(outputs)
            self.on_train_epoch_end(outputs)
            with torch.no_grad():
                self.on_validation_epoch_start()
                batches = range(self.num_val_iterations_per_epoch)
                outputs = [self.validation_step(next(self.dataloader_val)) for _ in batches]
                self.on_validation_epoch_end(outputs)
            self.on_epoch_end()
        self.on_train_end()
        with open(os.environ["BENCHMARK_STEPS"], "w") as file:
            json.dump(steps, file)

    def perform_actual_validation(self, save_probabilities=False):
        """Nothing: it would predict every validation case after the training."""
'''


def pancseg(command: str, *words: object) -> None:
    """Run a command of pancseg."""
    subprocess.run([sys.executable, "-m", f"pancseg.{command}", *map(str, words)], check=True)


def edit_plans(folder: Path, trained: Any) -> None:
    """Give the plans of nnU-Net patch, spacing, batch size and width of a network of pancseg."""
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    settings = plans["configurations"]["3d_fullres"]
    axes = [2 - axis for axis in plans["transpose_forward"]]  # of (x, y, z) for each of nnU-Net's
    size, spacing_mm = trained.hparams["view"]["size"], trained.preprocessing.spacing_mm
    settings["patch_size"] = [size[axis] for axis in axes]
    settings["spacing"] = [spacing_mm[axis] for axis in axes]
    settings["batch_size"] = trained.data["batch_size"]
    settings["data_identifier"] = f"{PLANS}_3d_fullres"
    strides, kernels = plan_levels(settings["patch_size"], settings["spacing"])  # nnU-Net's rule
    width, stages = trained.hparams["model"].get("width", 32), len(strides)
    settings["architecture"]["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": [min(320, width * 2**stage) for stage in range(stages)],
        "strides": strides,
        "kernel_sizes": kernels,
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    plans |= {"plans_name": PLANS, "configurations": {"3d_fullres": settings}}
    (folder / f"{PLANS}.json").write_text(json.dumps(plans, indent=2))


def main() -> None:
    """Train, segment and score with nnU-Net, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--nnunet-venv", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=None, help="default: as the run took")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu")
    parser.add_argument("--adamw", action="store_true")
    chosen = parser.parse_args()
    work, run = chosen.work.resolve(), chosen.run.resolve()
    trained = open_checkpoint(run / "checkpoints" / "best.ckpt")
    seconds = chosen.seconds or json.loads((run / "summary.json").read_text())["seconds"]
    raw, preprocessed = work / "raw", work / "preprocessed" / NAME
    (work / "trainer").mkdir(parents=True, exist_ok=True)
    (work / "trainer" / "wall_clock.py").write_text(TRAINER)
    folders = {"raw": raw, "preprocessed": preprocessed.parent, "results": work / "results"}
    environment = {**os.environ, **{f"nnUNet_{key}": str(path) for key, path in folders.items()}}
    environment |= {"nnUNet_extTrainer": str(work / "trainer"), "nnUNet_n_proc_DA": "1"}
    environment |= {"nnUNet_compile": "f" if chosen.device == "cpu" else "t"}
    environment |= {"BENCHMARK_SECONDS": str(seconds), "BENCHMARK_THREADS": str(chosen.threads)}
    environment |= {"BENCHMARK_ADAMW": str(int(chosen.adamw))}
    environment |= {"BENCHMARK_STEPS": str(work / "steps.json")}

    def nnunet(program: str, *words: object) -> float:
        start = time.perf_counter()
        command = [str(chosen.nnunet_venv.absolute() / "bin" / program), *map(str, words)]
        subprocess.run(command, env=environment, check=True)
        return time.perf_counter() - start

    if not preprocessed.is_dir():
        split = ("split=file", f"split.path={run / 'splits.json'}")
        data = f"data.root={trained.data['root']}"
        pancseg("export", "format=nnunet", data, *split, f"output={raw / NAME}")
        nnunet("nnUNetv2_extract_fingerprint", "-d", NUMBER, "-np", 2)
        nnunet("nnUNetv2_plan_experiment", "-d", NUMBER)
        edit_plans(preprocessed, trained)
        nnunet(
            "nnUNetv2_preprocess", "-d", NUMBER, "-plans_name", PLANS, "-c", "3d_fullres", "-np", 2
        )
        (preprocessed / "splits_final.json").write_bytes(
            (raw / NAME / "splits_final.json").read_bytes()
        )
    model = ("-tr", "WallClockTrainer", "-p", PLANS, "-device", chosen.device)
    wall_s = nnunet("nnUNetv2_train", NUMBER, "3d_fullres", 0, *model)
    masks = work / "masks"
    words = ("-i", raw / NAME / "imagesTs", "-o", masks, "-d", NUMBER, "-c", "3d_fullres", "-f", 0)
    nnunet("nnUNetv2_predict", *words, *model, "-npp", 1, "-nps", 1)
    checkpoint = f"checkpoint={run / 'checkpoints' / 'best.ckpt'}"
    pancseg("evaluate", f"predictions={masks}", checkpoint, f"output={work / 'scores'}")
    pancseg("report", f"runs=[{run},{work / 'scores'}]", f"output={work / 'comparison'}")
    steps = json.loads((work / "steps.json").read_text())
    cpu = torch.backends.cpu.get_cpu_capability()
    print(f"{cpu}: nnU-Net made {steps} steps in {seconds:.0f} s (the command took {wall_s:.0f} s)")


if __name__ == "__main__":
    main()
