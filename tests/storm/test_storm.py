"""Kill -9 and a full disk: finished work is kept, and the same command again does the rest."""

import contextlib
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
    """A command, its arguments for a folder, and the result there; raises if a file is torn."""

    command: str
    words: Callable[[Path], list[str]]
    result: Callable[[Path], Any]

    @property
    def code(self) -> int:
        """Where it is not killed; of ``prepare`` 1, for a case is refused."""
        return int(self.command == "prepare")


def run_of(run):
    for path in run.glob("checkpoints/[!.]*.ckpt"):
        assert "state_dict" in torch.load(path, weights_only=True)
    for path in run.glob("[!.]*.json"):
        json.loads(path.read_text())
    return (curves(run), state_of(run)) if (run / "summary.json").is_file() else None


def files_of(root):
    for path in root.rglob("[!.]*"):
        assert path.suffix != ".gz" or unpacked(path)
        assert path.suffix != ".json" or json.loads(path.read_text())
    return {k: v for k, v in contents(root).items() if Path(k).suffix in (".csv", ".json", ".gz")}


def masks_of(out):
    path = out / "predictions.csv"
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []
    done = [row["case"] for row in rows if row["status"] == "done"]
    return done, [unpacked(out / f"{case}_pancreas.nii.gz") for case in done]


@pytest.fixture(scope="session")
def scans(dicom, tmp_path_factory):
    """Phantoms, in which a slice of one is missing: refusals have to survive as well."""
    out = shutil.copytree(dicom, tmp_path_factory.mktemp("scans") / "dicom")
    next((out / "images" / "phantom-3-003").iterdir()).unlink()
    return out


@pytest.fixture
def work(request, scans, prepared, trained):
    best = f"checkpoint={trained / 'checkpoints' / 'best.ckpt'}"
    source = [f"source.{role}={scans / role}" for role in ("images", "labels")]
    source += ["privacy=none", "data.depth=16", "data.tail=shift", "processes=2"]

    def evaluate(folder):
        if not folder.exists():
            shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("scores"))
        return [f"checkpoint={folder / 'checkpoints' / 'best.ckpt'}", "subset=train"]

    def train(folder):
        return smoke(prepared, folder, "trainer.max_epochs=5", "ckpt_path=last")

    def sweep(folder):
        words = without("hydra.run.dir", smoke(prepared, folder, "trainer.max_epochs=2"))
        return ["-m", *words, f"hydra.sweep.dir={folder}", "seed=0,1"]

    def predict(folder):
        return [best, f"input={prepared / 'cases'}", f"output={folder}"]

    return {
        "prepare": Work("prepare", lambda f: [*source, f"data.root={f}"], files_of),
        "train": Work("train", train, run_of),
        "evaluate": Work("evaluate", evaluate, lambda f: files_of(f / "scores")),
        "predict": Work("predict", predict, masks_of),
        "sweep": Work("train", sweep, lambda f: [run_of(f / "0"), run_of(f / "1")]),
    }[request.param]


@pytest.mark.parametrize(
    "folders", [pytest.param(1, marks=pytest.mark.slow), pytest.param(15, marks=pytest.mark.storm)]
)
@pytest.mark.parametrize("work", ["prepare", "evaluate", "predict", "sweep"], indirect=True)
def test_killed_at_any_moment_it_leaves_the_result_of_one_run(work, tmp_path, folders):
    groups = []

    def start(folder):
        call = [sys.executable, "-m", f"pancseg.{work.command}", *work.words(folder)]
        process = subprocess.Popen(call, stdout=QUIET, stderr=QUIET, start_new_session=True)
        groups.append(process.pid)
        return process

    chance, began, alone = random.Random(work.command), time.monotonic(), tmp_path / "alone"
    assert start(alone).wait() == work.code
    seconds, expected = time.monotonic() - began, work.result(alone)
    try:
        for folder in (tmp_path / f"killed{number}" for number in range(folders)):
            for is_group in (True, False):
                process = start(folder)
                time.sleep(chance.uniform(0.4, 1.0) * seconds)
                os.killpg(process.pid, signal.SIGKILL) if is_group else process.kill()
                process.wait()
                work.result(folder)
            assert start(folder).wait() == work.code
            assert same(work.result(folder), expected)
    finally:
        for group in groups:  # workers that outlive their parent
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


def size_of(root):
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root may mount")
@pytest.mark.parametrize(
    "share", [pytest.param(0.7, marks=pytest.mark.slow), pytest.param(0.2, marks=pytest.mark.storm)]
)
@pytest.mark.parametrize("work", ["prepare", "train", "evaluate", "predict"], indirect=True)
def test_a_full_disk_is_one_line_and_costs_no_finished_work(work, tmp_path, share, monkeypatch):
    alone, disk = tmp_path / "alone", tmp_path / "disk"
    assert run_command(work.command, *work.words(alone)) == work.code
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
        assert work.command != "train" or "ckpt_path=last" in ended.stderr
        assert "Traceback" not in ended.stderr
        work.result(disk / "run")
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert run_command(work.command, *words) == work.code
        assert same(work.result(disk / "run"), work.result(alone))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
