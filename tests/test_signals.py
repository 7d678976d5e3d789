"""Signals: one line, 128 and the signal, and nothing lost."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pancseg.inference.evaluation import CaseScorer
from pancseg.inference.scan_batch import ScanBatch
from pancseg.intake import convert
from pancseg.models.segmenter import Segmenter
from pancseg.signals import SIGNALS, requeue, stop_on_signals
from tests.conftest import Command, prepare, smoke
from tests.test_resume import EVERYTHING, assert_same, curves, state_of, undisturbed  # noqa: F401
from tests.test_train import PATCHES, without

TERM, USR1 = signal.SIGTERM, signal.SIGUSR1


def signal_at(patch: pytest.MonkeyPatch, owner: Any, name: str, call: int, signum: int) -> None:
    """Let a function's call of that number begin with a signal to this process."""
    calls, original = [], getattr(owner, name)

    def signalled(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(signum)
        return original(*arguments, **options)

    patch.setattr(owner, name, signalled)


@pytest.mark.parametrize(
    ("part", "call", "signum", "reached"),
    [("training_step", 6, TERM, 4), ("training_step", 9, USR1, 8), ("validation_step", 2, TERM, 4)],
)
def test_a_training_that_gets_a_signal_goes_on_from_the_last_whole_epoch(
    prepared: Path, undisturbed: Path, tmp_path: Path, command: Command, monkeypatch: Any,  # noqa: F811
    part: str, call: int, signum: signal.Signals, reached: int,
) -> None:  # fmt: skip
    words = smoke(prepared, tmp_path, *EVERYTHING)
    with monkeypatch.context() as patch:
        signal_at(patch, Segmenter, part, call, signum)
        ended = command("train", *words)
    assert ended.code == 128 + signum
    advice = "give ckpt_path=last to go on from the last whole epoch"
    assert ended.err == f"pancseg.train: stopped by {signum.name}; {advice}\n"
    assert state_of(tmp_path)["global_step"] == reached
    assert signal.getsignal(signum) is signal.SIG_DFL
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # a job that Slurm runs again needs no ckpt_path
    assert "started again by Slurm: going on with" in command("train", *words).out
    assert_same(tmp_path, undisturbed)


def test_the_other_commands_keep_what_they_have_and_end_in_one_line(
    dicom: Path, trained: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    root, masks = tmp_path / "root", tmp_path / "masks"
    with monkeypatch.context() as patch:
        signal_at(patch, convert, "record", 3, TERM)
        signal_at(patch, ScanBatch, "segment", 2, USR1)
        signal_at(patch, CaseScorer, "score", 1, TERM)
        assert prepare(dicom, root) == 143
        advice = "stopped by SIGTERM; run the same command again to go on"
        assert capfd.readouterr().err.splitlines()[-1] == f"pancseg.prepare: {advice}"
        best = f"checkpoint={trained / 'checkpoints' / 'best.ckpt'}"
        scans = [f"input={dicom / 'images'}", f"output={masks}"]
        for name, words, code in (("evaluate", ["subset=test"], 143), ("predict", scans, 138)):
            ended = command(name, best, *words)
            assert (ended.code, ended.err.count(f"pancseg.{name}: stopped by SIG")) == (code, 1)
    assert len(list((root / "cases").glob("*_image.nii.gz"))) == 3
    assert (masks / "predictions.csv").is_file()
    assert prepare(dicom, root) == 0


@pytest.mark.parametrize(
    ("state", "signum", "note"),
    [
        ("JobState=RUNNING PreemptTime=None", USR1, "; Slurm runs it again"),
        ("JobState=RUNNING PreemptTime=None", TERM, ""),  # cancelled, or requeued by Slurm itself
        ("JobState=RUNNING PreemptTime=2030-01-01T00:00:00", TERM, "; Slurm runs it again"),
        ("JobState=COMPLETING PreemptTime=2030-01-01T00:00:00", TERM, ""),
        ("not allowed", USR1, "; Slurm cannot run it again (not allowed)"),
    ],
)
def test_slurm_is_asked_to_run_a_job_again_where_it_does_not_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, signum: int, note: str
) -> None:
    program = tmp_path / "scontrol"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n'
        f'[ "$1" = show ] && echo "JobId=7 {state}"\n'
        f'case "$1{state}" in requeuenot*) echo {state} >&2; exit 1;; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    assert requeue(signum) == ""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with stop_on_signals():  # puts the handlers back
        assert requeue(signum) == note
    assert ("requeue 7" in (tmp_path / "asked").read_text().splitlines()) is bool(note)
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert requeue(signum) == ""


def start(words: list[str]) -> subprocess.Popen[str]:
    command, quiet = [sys.executable, "-m", "pancseg.train", *words], subprocess.DEVNULL
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=quiet, stderr=pipe, text=True, start_new_session=True)


def wait(holds: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < until, what
        time.sleep(0.05)


def has_epochs(run: Path, count: int) -> bool:
    return (run / "metrics.csv").is_file() and len(curves(run)) >= count


@pytest.mark.slow
@pytest.mark.parametrize("signum", SIGNALS)
def test_processes_that_load_outlive_a_signal_to_all(
    prepared: Path, tmp_path: Path, signum: signal.Signals
) -> None:
    words = [*EVERYTHING, "trainer.max_epochs=500", "data.num_workers=2"]
    training = start(smoke(prepared, tmp_path, *words))
    wait(lambda: has_epochs(tmp_path, 2), "two epochs")
    os.killpg(training.pid, signum)
    _, err = training.communicate(timeout=120)
    assert (training.returncode, err.count("\n")) == (128 + signum, 1)
    assert f"stopped by {signum.name}; give ckpt_path=last to go on" in err


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_two_processes_gets_a_signal_and_both_end(
    prepared: Path, tmp_path: Path, rank: int
) -> None:
    both = [*PATCHES, "hardware=cpu", "hardware.devices=2", "trainer.strategy=ddp", "split.val=2"]
    both += ["model.norm=instance", "data.batch_size=1", "trainer.max_epochs=8", "ckpt_path=last"]

    def words(name: str) -> list[str]:
        return [*without("split.val", smoke(prepared, tmp_path / name)), *both]

    def child_of(pid: int) -> int:
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == pid and b"pancseg.train" in (entry / "cmdline").read_bytes():
                    return int(entry.name)
        raise AssertionError("no second rank")

    whole, training = start(words("whole")), start(words("cut"))
    try:
        wait(lambda: has_epochs(tmp_path / "cut", 2), "two epochs")
        child = child_of(training.pid)
        os.kill(child if rank else training.pid, TERM)
        _, err = training.communicate(timeout=120)
    finally:
        with contextlib.suppress(ProcessLookupError):  # nothing outlives the test
            os.killpg(training.pid, signal.SIGKILL)
    assert training.returncode != 0, err
    wait(lambda: not Path(f"/proc/{child}").exists(), "the end of the other process")
    assert state_of(tmp_path / "cut")["global_step"] >= 4
    for process in (whole, start(words("cut"))):
        assert (process.communicate(timeout=120), process.returncode) == ((None, ""), 0)
    assert_same(tmp_path / "cut", tmp_path / "whole")
