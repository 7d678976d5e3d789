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
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.conftest import contents, run_command, smoke, unpacked
from tests.test_resume import curves, same, state_of
from tests.test_train import without

QUIET = subprocess.DEVNULL


class Work(NamedTuple):
    """A command, its arguments for a folder, and what it leaves there; raises if a file is torn."""

    command: str
    words: Callable[[Path], list[str]]
    result: Callable[[Path], Any]


def trained(run: Path) -> Any:
    for path in run.glob("checkpoints/[!.]*.ckpt"):
        assert "state_dict" in torch.load(path, weights_only=True)
    for path in run.glob("[!.]*.json"):
        json.loads(path.read_text())
    return (curves(run), state_of(run)) if (run / "summary.json").is_file() else None


def files(root: Path) -> Any:
    for path in root.rglob("[!.]*"):
        assert path.suffix != ".gz" or unpacked(path)
        assert path.suffix != ".json" or json.loads(path.read_text())
    return {k: v for k, v in contents(root).items() if Path(k).suffix in (".csv", ".json", ".gz")}


def segmented(out: Path) -> Any:
    path = out / "predictions.csv"
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []
    done = [row["case"] for row in rows if row["status"] == "done"]
    return done, [unpacked(out / f"{case}_pancreas.nii.gz") for case in done]


@pytest.fixture
def work(request: Any, dicom: Path, prepared: Path, trained_once: Path) -> Work:
    scans, epochs = dicom / "images", "trainer.max_epochs=5"
    source = [f"source.images={scans}", f"source.labels={dicom / 'labels'}", "privacy=none"]
    source += ["data.depth=16", "data.tail=shift", "processes=0"]

    def evaluate(folder: Path) -> list[str]:
        if not folder.exists():
            shutil.copytree(trained_once, folder)
        return [f"checkpoint={folder / 'checkpoints' / 'best.ckpt'}", "subset=train"]

    def predict(folder: Path) -> list[str]:
        best = f"checkpoint={trained_once / 'checkpoints' / 'best.ckpt'}"
        return [best, f"input={scans}", f"output={folder}"]

    def sweep(folder: Path) -> list[str]:
        words = without("hydra.run.dir", smoke(prepared, folder, "trainer.max_epochs=2"))
        return ["-m", *words, f"hydra.sweep.dir={folder}", "seed=0,1"]

    return {
        "prepare": Work("prepare", lambda f: [*source, f"data.root={f}"], files),
        "train": Work("train", lambda f: smoke(prepared, f, epochs, "ckpt_path=last"), trained),
        "evaluate": Work("evaluate", evaluate, lambda f: files(f / "scores")),
        "predict": Work("predict", predict, segmented),
        "sweep": Work("train", sweep, lambda f: [trained(f / "0"), trained(f / "1")]),
    }[request.param]


@pytest.fixture(scope="session")
def trained_once(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("storm") / "run"
    assert run_command("train", *smoke(prepared, run, "trainer.max_epochs=1")) == 0
    return run


@pytest.mark.parametrize(
    "folders", [pytest.param(1, marks=pytest.mark.slow), pytest.param(15, marks=pytest.mark.storm)]
)
@pytest.mark.parametrize("work", ["evaluate", "predict", "sweep"], indirect=True)
def test_killed_at_any_moment_and_run_again_it_leaves_what_one_run_leaves(
    work: Work, tmp_path: Path, folders: int
) -> None:
    def start(folder: Path) -> subprocess.Popen[bytes]:
        call = [sys.executable, "-m", f"pancseg.{work.command}", *work.words(folder)]
        return subprocess.Popen(call, stdout=QUIET, stderr=QUIET, start_new_session=True)

    chance, began, alone = random.Random(work.command), time.monotonic(), tmp_path / "alone"
    assert start(alone).wait() == 0
    seconds, expected = time.monotonic() - began, work.result(alone)
    for folder in (tmp_path / f"killed{number}" for number in range(folders)):
        for _ in range(2):
            process = start(folder)
            time.sleep(chance.uniform(0.4, 1.0) * seconds)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            work.result(folder)
        assert run_command(work.command, *work.words(folder)) == 0
        assert same(work.result(folder), expected)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root may mount")
@pytest.mark.parametrize(
    "share", [pytest.param(0.7, marks=pytest.mark.slow), pytest.param(0.2, marks=pytest.mark.storm)]
)
@pytest.mark.parametrize("work", ["prepare", "train", "evaluate", "predict"], indirect=True)
def test_a_full_disk_is_one_line_and_costs_nothing_that_is_done(
    work: Work, tmp_path: Path, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def size_of(root: Path) -> int:
        return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())

    alone, disk = tmp_path / "alone", tmp_path / "disk"
    assert run_command(work.command, *work.words(alone)) == 0
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", disk]
    if subprocess.run(mount, check=False, stderr=QUIET).returncode:
        pytest.skip("no file system can be mounted")
    try:
        words, before = work.words(disk / "run"), size_of(disk)
        size = int(before + share * (size_of(alone) - before)) // 1024 + 16
        subprocess.run(["mount", "-o", f"remount,size={size}k", disk], check=True)
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)  # commands of this process set it
        call = [sys.executable, "-m", f"pancseg.{work.command}", *words]
        ended = subprocess.run(call, capture_output=True, text=True, check=False)
        assert ended.returncode in (1, 2), ended.stderr
        assert ended.stderr.count(f"pancseg.{work.command}: ") == 1, ended.stderr
        assert "Traceback" not in ended.stderr
        work.result(disk / "run")
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert run_command(work.command, *words) == 0
        assert same(work.result(disk / "run"), work.result(alone))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
