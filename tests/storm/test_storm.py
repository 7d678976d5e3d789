"""Kill -9 and a full disk: finished work is kept, and the same command again does the rest."""

import contextlib
import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import SHALLOW, contents, run_command, smoke, unpacked
from tests.test_resume import curves, same, state_of

QUIET = subprocess.DEVNULL


@pytest.fixture
def words_of(dicom, prepared, trained):
    """Arguments with which a command writes to a folder."""

    def words_of(command, folder):
        if command == "prepare":
            source = [f"source.{role}={dicom / role}" for role in ("images", "labels")]
            return [*source, f"data.root={folder}", "privacy=none", *SHALLOW, "processes=2"]
        if command == "train":
            return smoke(prepared, folder, "trainer.max_epochs=5", "ckpt_path=last")
        best = f"checkpoint={trained / 'checkpoints' / 'best.ckpt'}"
        return [best, f"input={prepared / 'cases'}", f"output={folder}"]

    return words_of


def result_of(command, folder):
    """What a command left in a folder; raises if a file is torn."""
    if command == "predict":
        path = folder / "predictions.csv"
        rows = list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []
        done = [row["case"] for row in rows if row["status"] == "done"]
        return done, [unpacked(folder / f"{case}_pancreas.nii.gz") for case in done]
    if command == "train":
        for path in folder.glob("checkpoints/[!.]*.ckpt"):
            assert "state_dict" in torch.load(path, weights_only=True)
        is_done = (folder / "summary.json").is_file()
        return (curves(folder), state_of(folder)) if is_done else None
    files = contents(folder)
    for name, text in files.items():
        assert not name.endswith(".json") or json.loads(text)
    return {k: v for k, v in files.items() if Path(k).suffix in (".csv", ".json", ".gz")}


LONG = pytest.mark.storm


@pytest.mark.parametrize(
    "folders", [pytest.param(1, marks=pytest.mark.slow), pytest.param(15, marks=LONG)]
)
@pytest.mark.parametrize("command", ["prepare", "predict"])
def test_killed_at_any_moment_it_leaves_the_result_of_one_run(command, words_of, tmp_path, folders):
    groups, chance = [], random.Random(command)

    def start(folder):
        call = [sys.executable, "-m", f"pancseg.{command}", *words_of(command, folder)]
        process = subprocess.Popen(call, stdout=QUIET, stderr=QUIET, start_new_session=True)
        groups.append(process.pid)
        return process

    began, alone = time.monotonic(), tmp_path / "alone"
    assert start(alone).wait() == 0
    seconds = time.monotonic() - began
    try:
        for killed in (tmp_path / f"killed{number}" for number in range(folders)):
            for is_group in (True, False):
                process = start(killed)
                time.sleep(chance.uniform(0.4, 1.0) * seconds)
                os.killpg(process.pid, signal.SIGKILL) if is_group else process.kill()
                process.wait()
                result_of(command, killed)
            assert start(killed).wait() == 0
            assert same(result_of(command, killed), result_of(command, alone))
    finally:
        for group in groups:  # workers that outlive their parent
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root may mount")
@pytest.mark.parametrize(
    "share", [pytest.param(0.7, marks=pytest.mark.slow), pytest.param(0.2, marks=LONG)]
)
@pytest.mark.parametrize("command", ["prepare", "train"])
def test_a_full_disk_is_one_line_and_costs_no_finished_work(
    command, words_of, tmp_path, share, monkeypatch
):
    alone, disk = tmp_path / "alone", tmp_path / "disk"
    assert run_command(command, *words_of(command, alone)) == 0
    size = sum(path.stat().st_size for path in alone.rglob("*") if path.is_file())
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(share * size)}", "none", disk]
    if subprocess.run(mount, check=False, stderr=QUIET).returncode:
        pytest.skip("no file system can be mounted")
    try:
        words = words_of(command, disk / "run")
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)  # commands of this process set it
        call = [sys.executable, "-m", f"pancseg.{command}", *words]
        ended = subprocess.run(call, capture_output=True, text=True, check=False)
        assert ended.returncode in (1, 2), ended.stderr
        assert ended.stderr.count(f"pancseg.{command}: ") == 1, ended.stderr
        assert command != "train" or "ckpt_path=last" in ended.stderr
        assert "Traceback" not in ended.stderr
        result_of(command, disk / "run")
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert run_command(command, *words) == 0
        assert same(result_of(command, disk / "run"), result_of(command, alone))
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
