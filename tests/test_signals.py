"""Signals: one line, 128 and the signal, and nothing lost."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pancseg.inference.evaluation import CaseScorer
from pancseg.inference.scan_batch import ScanBatch
from pancseg.intake import convert
from pancseg.models.segmenter import Segmenter
from pancseg.signals import SIGNALS, requeue, stop_on_signals
from tests.conftest import Command, prepare, run_command, smoke
from tests.test_run_control import EVERYTHING, PATCHES, assert_same, curves, learnt

TERM, USR1 = signal.SIGTERM, signal.SIGUSR1


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed")
    assert run_command("train", *smoke(prepared, run, *EVERYTHING)) == 0
    return run


def signal_at(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int, signum: int) -> None:
    """Let a function's call of that number begin with a signal to this process."""
    calls, original = [], getattr(owner, name)

    def signalled(*words: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(signum)
        return original(*words, **more)

    patch.setattr(owner, name, signalled)


@pytest.mark.row("a signal in a step or a validation of `train`", "143 or 138, went on")
@pytest.mark.parametrize(
    ("part", "call", "signum", "reached"),
    [("training_step", 6, TERM, 4), ("training_step", 9, USR1, 8), ("validation_step", 2, TERM, 4)],
)
def test_a_training_that_gets_a_signal_goes_on_from_the_last_whole_epoch(
    prepared: Path,
    undisturbed: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    call: int,
    signum: signal.Signals,
    reached: int,
) -> None:
    words = smoke(prepared, tmp_path, *EVERYTHING, "ckpt_path=last")
    with monkeypatch.context() as patch:
        signal_at(patch, Segmenter, part, call, signum)
        ended = command("train", *words)
    assert ended.code == 128 + signum
    assert ended.err == (
        f"pancseg.train: stopped by {signum.name}; give ckpt_path=last to go on from the last "
        "whole epoch\n"
    )
    assert learnt(tmp_path)["global_step"] == reached
    assert signal.getsignal(signum) is signal.SIG_DFL
    assert run_command("train", *words) == 0
    assert_same(tmp_path, undisturbed)


def test_a_preparation_keeps_what_it_has_and_goes_on(
    dicom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        signal_at(patch, convert, "record", 3, TERM)
        assert prepare(dicom, tmp_path / "root") == 143
    assert capfd.readouterr().err.splitlines()[-1] == (
        "pancseg.prepare: stopped by SIGTERM; run the same command again to go on"
    )
    assert len(list((tmp_path / "root" / "cases").glob("*_image.nii.gz"))) == 3
    assert prepare(dicom, tmp_path / "root") == 0


def test_evaluate_and_predict_end_in_one_line(
    dicom: Path, trained: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = f"checkpoint={trained / 'checkpoints' / 'best.ckpt'}"
    scans = [f"input={dicom / 'images'}", f"output={tmp_path / 'masks'}"]
    signal_at(monkeypatch, ScanBatch, "segment", 2, USR1)
    signal_at(monkeypatch, CaseScorer, "score", 1, TERM)
    for name, words, code in (("evaluate", ["subset=test"], 143), ("predict", scans, 138)):
        ended = command(name, best, *words)
        assert ended.code == code
        assert ended.err.count(f"pancseg.{name}: stopped by SIG") == 1
    assert (tmp_path / "masks" / "predictions.csv").is_file()


@pytest.mark.parametrize(
    ("facts", "signum", "says"),
    [
        ("JobState=RUNNING PreemptTime=None", USR1, "; Slurm runs it again"),
        ("JobState=RUNNING PreemptTime=None", TERM, ""),  # cancelled, or requeued by Slurm itself
        ("JobState=RUNNING PreemptTime=2030-01-01T00:00:00", TERM, "; Slurm runs it again"),
        ("JobState=COMPLETING PreemptTime=2030-01-01T00:00:00", TERM, ""),
        ("not allowed", USR1, "; Slurm cannot run it again (not allowed)"),
    ],
)
def test_slurm_is_asked_to_run_a_job_again_where_it_does_not_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: str, signum: int, says: str
) -> None:
    program = tmp_path / "scontrol"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n'
        f'[ "$1" = show ] && echo "JobId=7 {facts}"\n'
        f'case "$1{facts}" in requeuenot*) echo {facts} >&2; exit 1;; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    assert requeue(signum) == ""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with stop_on_signals():  # puts the handlers back
        assert requeue(signum) == says
    asked = (tmp_path / "asked").read_text().splitlines()
    assert ("requeue 7" in asked) is bool(says)
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert requeue(signum) == ""


def test_a_job_that_slurm_started_again_goes_on_by_itself(
    prepared: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = smoke(prepared, tmp_path, *PATCHES)
    assert command("train", *words, "trainer.max_epochs=1").code == 0
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again = command("train", *words, "trainer.max_epochs=2")
    assert "started again by Slurm: going on with" in again.out
    assert [row["epoch"] for row in curves(tmp_path)] == ["1", "2"]


@pytest.mark.parametrize(
    ("per_node", "says"),
    [
        (None, "2 tasks; give srun --ntasks-per-node, not --ntasks"),
        ("2", "are 1 processes, Slurm started 2"),
    ],
)
def test_tasks_that_would_not_train_together_are_told(
    prepared: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    per_node: str | None,
    says: str,
) -> None:
    found = {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_NTASKS_PER_NODE": per_node}
    for name, value in found.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    ended = command("train", *smoke(prepared, tmp_path))
    assert ended.code == 2
    assert says in ended.err
    assert ended.err.count("\n") == 1


def start(words: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pancseg.train", *words]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def wait_for_epochs(run: Path, process: subprocess.Popen[str], count: int) -> None:
    for _ in range(1200):
        if (run / "metrics.csv").is_file() and len(curves(run)) >= count:
            return
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    raise AssertionError(f"no {count} epochs within a minute")


@pytest.mark.slow
@pytest.mark.parametrize("signum", SIGNALS)
def test_processes_that_load_outlive_a_signal_to_all(
    prepared: Path, tmp_path: Path, signum: signal.Signals
) -> None:
    words = [*EVERYTHING, "trainer.max_epochs=500", "data.num_workers=2"]
    training = start(smoke(prepared, tmp_path, *words))
    wait_for_epochs(tmp_path, training, 2)
    os.killpg(training.pid, signum)
    _, said = training.communicate(timeout=60)
    assert training.returncode == 128 + signum
    assert said.count("\n") == 1
    assert f"stopped by {signum.name}; give ckpt_path=last to go on" in said


def of_two(prepared: Path, run: Path) -> list[str]:
    """Words of a training by two processes."""
    both = [*PATCHES, "hardware=cpu", "hardware.devices=2", "trainer.strategy=ddp", "split.val=2"]
    both += ["model.norm=instance", "data.batch_size=1", "trainer.max_epochs=8"]
    usual = [word for word in smoke(prepared, run) if word != "split.val=1"]
    return [*usual, *both, "ckpt_path=last"]


@pytest.fixture(scope="module")
def whole(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training by two processes that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole")
    training = start(of_two(prepared, run))
    assert (training.communicate(timeout=120), training.returncode) == ((None, ""), 0)
    return run


@pytest.mark.row("SIGTERM to one of two processes of a training", "both ended, went on")
@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_two_processes_gets_a_signal_and_both_end(
    prepared: Path, whole: Path, tmp_path: Path, rank: int
) -> None:
    training = start(of_two(prepared, tmp_path))
    wait_for_epochs(tmp_path, training, 2)
    child = child_of(training.pid)
    os.kill(child if rank else training.pid, TERM)
    try:
        _, said = training.communicate(timeout=120)
    finally:
        with contextlib.suppress(ProcessLookupError):  # nothing outlives the test
            os.killpg(training.pid, signal.SIGKILL)
    assert training.returncode != 0, said
    wait_for_end(child)
    assert learnt(tmp_path)["global_step"] >= 4
    again = start(of_two(prepared, tmp_path))
    assert (again.communicate(timeout=120), again.returncode) == ((None, ""), 0)
    assert_same(tmp_path, whole)


def wait_for_end(pid: int) -> None:
    for _ in range(1200):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.05)
    raise AssertionError("the other process goes on")


def child_of(pid: int) -> int:
    """The process of the second rank: Lightning starts it by the same module's name."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(entry.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"pancseg.train" in entry.joinpath("cmdline").read_bytes():
                return int(entry.name)
        except (OSError, ValueError):
            continue
    raise AssertionError("no second rank")
