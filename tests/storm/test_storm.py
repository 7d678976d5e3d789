"""Kill -9 and a full disk: what was reported as done is there, and the rest is done again."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import contents, run_command, smoke, unpacked
from tests.test_resume import curves, same, state_of
from tests.test_train import load, without

OF_THE_MOMENT = ("seconds", "peak_memory_mb")
COMMANDS = ["prepare", "train", "evaluate", "predict", "sweep"]


@dataclass(frozen=True)
class Work:
    """A command, its arguments for a folder, and what it leaves there; in part or as a whole."""

    command: str
    words: Callable[[Path], list[str]]
    result: Callable[[Path], Any]


def trained(run: Path) -> Any:
    for path in run.glob("checkpoints/[!.]*.ckpt"):
        assert "state_dict" in torch.load(path, weights_only=True)
    for path in run.glob("[!.]*.json"):
        json.loads(path.read_text())
    if not (run / "summary.json").is_file():
        return None
    return curves(run), state_of(run), load(run)["state_dict"]


def scored(run: Path) -> Any:
    for path in (run / "scores").rglob("[!.]*"):
        assert path.suffix != ".gz" or unpacked(path)
        assert path.suffix != ".json" or json.loads(path.read_text())
    return {k: v for k, v in contents(run / "scores").items() if Path(k).suffix != ".png"}


def segmented(out: Path) -> Any:
    path = out / "predictions.csv"
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []
    done = [row["case"] for row in rows if row["status"] == "done"]
    masks = {case: unpacked(out / f"{case}_pancreas.nii.gz") for case in done}
    return [{k: v for k, v in row.items() if k not in OF_THE_MOMENT} for row in rows], masks


def prepared_root(root: Path) -> Any:
    if not (root / "manifest.json").is_file():
        return None
    manifest = json.loads((root / "manifest.json").read_text())
    for entry in (*manifest["cases"], *manifest["groups"]):
        assert unpacked(root / entry["image"]) and unpacked(root / entry["label"])
    return contents(root)


@pytest.fixture
def work(request: Any, dicom: Path, prepared: Path, trained_once: Path) -> Work:
    scans, epochs = dicom / "images", "trainer.max_epochs=5"
    source = [f"source.images={scans}", f"source.labels={dicom / 'labels'}", "privacy=none"]
    source += ["data.depth=16", "data.tail=shift", "processes=0"]

    def copied(folder: Path) -> str:
        if not folder.exists():
            shutil.copytree(trained_once, folder)
        return f"checkpoint={folder / 'checkpoints' / 'best.ckpt'}"

    def sweep(folder: Path) -> list[str]:
        words = without("hydra.run.dir", smoke(prepared, folder, "trainer.max_epochs=2"))
        return ["-m", *words, f"hydra.sweep.dir={folder}", "seed=0,1"]

    checkpoint = f"checkpoint={trained_once / 'checkpoints' / 'best.ckpt'}"
    works = {
        "prepare": Work("prepare", lambda f: [*source, f"data.root={f}"], prepared_root),
        "train": Work("train", lambda f: smoke(prepared, f, epochs, "ckpt_path=last"), trained),
        "evaluate": Work("evaluate", lambda f: [copied(f), "subset=train"], scored),
        "predict": Work(
            "predict", lambda f: [checkpoint, f"input={scans}", f"output={f}"], segmented
        ),
        "sweep": Work("train", sweep, lambda f: [trained(f / "0"), trained(f / "1")]),
    }
    return works[request.param]


@pytest.fixture(scope="session")
def trained_once(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("storm") / "run"
    assert run_command("train", *smoke(prepared, run, "trainer.max_epochs=1")) == 0
    return run


def start(work: Work, folder: Path) -> subprocess.Popen[str]:
    call, pipe = (
        [sys.executable, "-m", f"pancseg.{work.command}", *work.words(folder)],
        subprocess.PIPE,
    )
    quiet = subprocess.DEVNULL
    return subprocess.Popen(call, stdout=quiet, stderr=pipe, text=True, start_new_session=True)


@pytest.mark.parametrize(
    "kills", [pytest.param(2, marks=pytest.mark.slow), pytest.param(30, marks=pytest.mark.storm)]
)
@pytest.mark.parametrize("work", COMMANDS, indirect=True)
def test_killed_at_any_moment_and_run_again_it_leaves_what_one_run_leaves(
    work: Work, tmp_path: Path, kills: int
) -> None:
    chance, began = random.Random(work.command), time.monotonic()
    assert start(work, tmp_path / "alone").wait() == 0
    seconds, expected = time.monotonic() - began, work.result(tmp_path / "alone")
    for number in range(kills // 2):
        folder = tmp_path / f"killed{number}"
        for _ in range(2):
            process = start(work, folder)
            time.sleep(chance.uniform(0.4, 1.0) * seconds)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            work.result(folder)  # what is there opens
        assert run_command(work.command, *work.words(folder)) == 0
        assert same(work.result(folder), expected)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root may mount")
@pytest.mark.parametrize("share", [0.2, 0.7])
@pytest.mark.parametrize("work", COMMANDS[:4], indirect=True)
def test_a_full_disk_is_one_line_and_costs_nothing_that_is_done(
    work: Work, tmp_path: Path, share: float
) -> None:
    alone, disk = tmp_path / "alone", tmp_path / "disk"
    words, folder = work.words(alone), disk / "folder"
    assert run_command(work.command, *words) == 0
    expected = work.result(alone)
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", disk]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted")
    try:
        work.words(folder)
        before, needed = (
            sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
            for root in (disk, alone)
        )
        size = int(before + share * (needed - before)) // 1024 + 16
        subprocess.run(["mount", "-o", f"remount,size={size}k", disk], check=True)
        process = start(work, folder)
        _, err = process.communicate()
        lines = [line for line in err.splitlines() if line.startswith(f"pancseg.{work.command}: ")]
        assert process.returncode in (1, 2) and len(lines) == 1 and "Traceback" not in err, err
        work.result(folder)
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert run_command(work.command, *work.words(folder)) == 0
        assert same(work.result(folder), expected)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
