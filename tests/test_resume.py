"""Resuming, and signals: a run that was killed, stopped or extended equals one that was not."""

import contextlib
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
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Timer
from torch import Tensor

from pancseg.errors import Incomplete
from pancseg.inference.evaluation import CaseScorer
from pancseg.inference.scan_batch import ScanBatch
from pancseg.intake import convert
from pancseg.models.segmenter import Segmenter
from pancseg.signals import SIGNALS, requeue, stop_on_signals
from pancseg.training.callbacks import Patience, best_row
from pancseg.training.checkpoints import BestCheckpoint
from tests.conftest import Command, prepare, run_command, smoke
from tests.test_train import PATCHES, load, metrics_of, summary_of, without

TERM, USR1 = signal.SIGTERM, signal.SIGUSR1
EVERYTHING = [
    *PATCHES, "augment=light", "scheduler=cosine", "ema_decay=0.9", "trainer.max_epochs=3",
]  # fmt: skip


def state_of(run: Path) -> dict[str, Any]:
    """Everything in ``last.ckpt`` that decides how the training goes on."""
    content = load(run, "last")
    names = ["state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step"]
    names += ["current_model_state", "averaging_state"]
    return {name: content[name] for name in names if name in content}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def curves(run: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in metrics_of(run)]


def assert_same(one: Path, other: Path) -> None:
    assert curves(one) == curves(other)
    states = state_of(one), state_of(other)
    assert states[0].keys() == states[1].keys()
    assert [name for name in states[0] if not same(states[0][name], states[1][name])] == []


@pytest.fixture(scope="session")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed")
    assert run_command("train", *smoke(prepared, run, *EVERYTHING)) == 0
    return run


@pytest.fixture
def copied(undisturbed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(undisturbed, tmp_path / "copied")


@pytest.mark.slow
def test_a_run_killed_at_ten_random_moments_ends_as_one_that_was_not(
    prepared: Path, tmp_path: Path
) -> None:
    longer = [*EVERYTHING, "trainer.max_epochs=40", "model=unet", "data.batch_size=1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_command("train", *smoke(prepared, whole, *longer)) == 0
    words = smoke(prepared, killed, *longer, "ckpt_path=last")
    last, moments, reached = killed / "checkpoints" / "last.ckpt", random.Random(0), []

    def written_at() -> int:
        return last.stat().st_mtime_ns if last.is_file() else 0

    for attempt in range(10):
        command, quiet = [sys.executable, "-m", "pancseg.train", *words], subprocess.DEVNULL
        training = subprocess.Popen(command, stdout=quiet, stderr=quiet)
        for _ in range(2 * (attempt % 2)):  # kills that come before the first step prove little
            before = written_at()
            while written_at() == before:
                assert training.poll() is None
                time.sleep(0.02)
        time.sleep(moments.uniform(0, 1.5 if attempt % 2 else 10))
        training.kill()
        training.wait()
        reached.append(state_of(killed)["global_step"] if last.is_file() else 0)
    assert reached == sorted(reached) and len(set(reached)) > 3, reached
    assert run_command("train", *words) == 0
    assert_same(killed, whole)
    assert same(load(killed)["state_dict"], load(whole)["state_dict"])


def test_a_run_that_is_extended_equals_one_that_was_always_as_long(
    prepared: Path, tmp_path: Path
) -> None:
    constant = [*EVERYTHING, "scheduler=constant", "trainer.max_epochs=-1", "ckpt_path=last"]
    for folder, steps in (("at_once", 12), ("in_parts", 8), ("in_parts", 12)):
        words = smoke(prepared, tmp_path / folder, *constant, f"trainer.max_steps={steps}")
        assert run_command("train", *words) == 0
    assert curves(tmp_path / "at_once") == curves(tmp_path / "in_parts")


def test_two_runs_of_one_seed_are_equal_and_of_another_are_not(
    prepared: Path, undisturbed: Path, tmp_path: Path
) -> None:
    again = smoke(prepared, tmp_path / "again", *EVERYTHING, "deterministic=true")
    assert run_command("train", *again) == 0
    assert_same(tmp_path / "again", undisturbed)
    other = smoke(prepared, tmp_path / "other", *EVERYTHING, "seed=1", "trainer.max_epochs=1")
    assert run_command("train", *other) == 0
    assert curves(tmp_path / "other")[0] != curves(undisturbed)[0]


def test_the_averaged_weights_are_saved_and_no_run_goes_on_from_them_as_if_current(
    prepared: Path, copied: Path, command: Command
) -> None:
    content = load(copied, "last")
    name = next(key for key in content["state_dict"] if key.startswith("network."))
    assert not torch.equal(content["state_dict"][name], content["current_model_state"][name])
    words = [*EVERYTHING, "ema_decay=0", "trainer.max_epochs=4", "ckpt_path=last"]
    ended = command("train", *smoke(prepared, copied, *words))
    assert (ended.code, "ckpt_path keeps a running mean" in ended.err) == (2, True)


def test_ckpt_path_last_goes_on_with_the_newest_run_of_that_name(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    words = [*without("hydra.run.dir", smoke(prepared, tmp_path)), *PATCHES, "ckpt_path=last"]
    first = command("train", *words, "trainer.max_epochs=1")
    assert "there is none yet, a new training begins" in first.out
    (run,) = (tmp_path / "runs" / "smoke").iterdir()
    before = curves(run)
    again = command("train", *words, "trainer.max_epochs=2", "data.batch_size=1")
    assert again.code == 0 and "data.batch_size=1, ckpt_path was trained with 2" in again.out
    assert [folder.name for folder in (tmp_path / "runs" / "smoke").iterdir()] == [run.name]
    assert curves(run)[:1] == before and [row["epoch"] for row in curves(run)] == ["1", "2"]
    assert (run / ".hydra_resumed").is_dir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("split.seed=1", "trained with another split"),
        ("model.norm=instance", "trained with model.norm=batch, not instance; give the same"),
        ("sampling=patches", "trained with sampling.kind=whole, not patches"),
        ("data.spatial_size=[48,32,32]", "trained with data.spatial_size=[32,32,32], not [48,"),
        ("data.window_hu=[-100,100]", "trained with data.window_hu=[-200,200], not [-100,100]"),
        ("loss=dice_ce", "trained with loss."),
        ("seed=1", "trained with seed=0, not 1; give the same"),
        ("init_from=x.ckpt", "init_from: a training that ckpt_path resumes has weights; give one"),
    ],
)
def test_a_resume_that_does_not_fit_is_refused(
    prepared: Path, trained: Path, tmp_path: Path, command: Command, change: str, message: str
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    before = (run / "metrics.csv").read_bytes(), load(run, "last")["global_step"]
    ckpt_path = f"ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    words = without("hydra.run.dir", smoke(prepared, run))
    ended = command("train", *words, ckpt_path, change)
    assert (ended.code, message in ended.err) == (2, True), ended.err
    assert ((run / "metrics.csv").read_bytes(), load(run, "last")["global_step"]) == before


def test_a_resumed_training_says_that_its_limits_are_reached_already(
    prepared: Path, copied: Path, command: Command
) -> None:
    limits = {"epochs=2": "3", "steps=8": "12", "time=00:00:00:00": "0 s"}
    words = [*EVERYTHING, *(f"trainer.max_{limit}" for limit in limits), "ckpt_path=last"]
    ended = command("train", *smoke(prepared, copied, *words))
    spent = ", ".join(f"trainer.max_{key}, ckpt_path has {done}" for key, done in limits.items())
    assert (ended.code, f"nothing is left to train: {spent}; give" in ended.out) == (0, True)


def test_a_run_in_another_folder_or_memory_format_goes_on_as_the_same(
    prepared: Path, copied: Path, tmp_path: Path, command: Command
) -> None:
    """The earlier best is given a score that no later epoch reaches."""
    content = load(copied, "last")
    state = next(v for k, v in content["callbacks"].items() if k.startswith("BestCheckpoint"))
    state["best_k_models"] = {path: torch.tensor(0.99) for path in state["best_k_models"]}
    last = tmp_path / "checkpoints" / "last.ckpt"
    torch.save(content, copied / "checkpoints" / "last.ckpt")
    words = [*EVERYTHING, "trainer.max_epochs=4", f"ckpt_path={last}"]
    (copied / "checkpoints").rename(tmp_path / "checkpoints")  # not the folder of a run
    losses = []
    for layout in ("true", "false"):
        run = tmp_path / layout
        new = smoke(prepared, run, *words, f"hardware.channels_last={layout}")
        assert command("train", *new).code == 0
        losses.append([float(row["train/loss"]) for row in curves(run)])
        best = run / "checkpoints" / "best.ckpt"
        assert best.read_bytes() == last.with_name("best.ckpt").read_bytes()
    assert len(losses[0]) == 4 and losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_step_that_fails_leaves_the_checkpoint_of_the_last_whole_epoch(
    prepared: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Segmenter.training_step

    def failing(number: int, error: BaseException) -> Any:
        def training_step(self: Segmenter, batch: Any, index: int) -> Tensor:
            if self.global_step == number:
                raise error
            return step(self, batch, index)

        return training_step

    words = smoke(prepared, tmp_path, *EVERYTHING)
    monkeypatch.setattr(Segmenter, "training_step", failing(2, Incomplete("the loss is nan")))
    assert command("train", *words).code == 1
    assert not [*tmp_path.rglob("*.ckpt")]  # no epoch was whole
    monkeypatch.setattr(Segmenter, "training_step", failing(6, KeyboardInterrupt()))
    assert command("train", *words).code == 130
    assert state_of(tmp_path)["global_step"] == 4


@pytest.mark.parametrize(("end", "kept", "partial"), [(2, "2", True), (6, "4", False)])
def test_what_time_cuts_short_is_kept_in_the_first_epoch_alone(
    prepared: Path, undisturbed: Path, tmp_path: Path, command: Command, monkeypatch: Any,
    end: int, kept: str, partial: bool,
) -> None:  # fmt: skip
    def check(self: Timer, trainer: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= end

    words = smoke(prepared, tmp_path, *EVERYTHING, "trainer.max_time=00:01:00:00")
    with monkeypatch.context() as patch:
        patch.setattr(Timer, "_check_time_remaining", check)
        assert command("train", *words).code == 0
    assert [row["step"] for row in curves(tmp_path)] == [kept] and curves(tmp_path)[0]["val/dice"]
    assert state_of(tmp_path)["global_step"] == int(kept) and load(tmp_path)
    assert (summary_of(tmp_path)["partial"], summary_of(tmp_path)["epochs"]) == (partial, 1)
    if not partial:
        assert command("train", *words, "ckpt_path=last").code == 0
        assert curves(tmp_path) == curves(undisturbed)


def test_of_equal_dice_the_lower_loss_is_the_best_in_checkpoint_and_report(tmp_path: Path) -> None:
    best = BestCheckpoint(str(tmp_path))
    best.best_k_models, best.kth_best_model_path = {"x": torch.tensor(0.0)}, "x"
    best.best_loss, decisions = 0.5, []
    for dice, loss in ((0.0, 0.6), (0.0, 0.4), (0.0, 0.4), (0.1, 0.9)):
        metrics, strategy = {"val/loss": loss}, SimpleNamespace(reduce_boolean_decision=bool)
        trainer: Any = SimpleNamespace(callback_metrics=metrics, strategy=strategy)
        decisions.append(best.check_monitor_top_k(trainer, torch.tensor(dice)))
    assert decisions == [False, True, False, True]
    scores = [(0.0, 0.9), (0.5, 0.6), (0.5, 0.4), (0.5, 0.5)]
    rows = [{"epoch": n, "val/dice": d, "val/loss": x} for n, (d, x) in enumerate(scores, 1)]
    row = best_row(rows, "val/dice")
    assert row and row["epoch"] == 3
    rows.append({"epoch": 5, "val/dice": 0.5, "val/loss": 0.0})
    assert (best_row(rows, "val/dice") or {})["epoch"] == 5


def test_patience_is_the_one_that_is_configured_now() -> None:
    before, after = Patience(2), Patience(50)
    before.wait_count = 2
    after.load_state_dict(before.state_dict())
    assert (after.patience, after.wait_count) == (50, 2)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [[], PATCHES], ids=["whole", "patches"])
def test_two_processes_with_half_the_batch_give_the_curve_of_one_with_the_whole(
    prepared: Path, tmp_path: Path, sampling: list[str]
) -> None:
    alike = [*sampling, "model.norm=instance", "loss=dice_ce", "loss.batch=false", "optimizer=sgd"]
    # with seed 0 a voxel at the threshold makes the hard Dice differ by 3e-4, nothing else
    alike += ["hardware=cpu", "split.seed=1", "split.val=3", "split.test=0", "trainer.max_epochs=3"]
    two = ["data.batch_size=1", "hardware.devices=2", "trainer.strategy=ddp"]
    for name, more in (("one", ["data.batch_size=2"]), ("two", two)):
        words = [*without("split.", smoke(prepared, tmp_path / name)), *alike, *more]
        command = [sys.executable, "-m", "pancseg.train", *words]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count("train completed") == 1
    for rows in zip(curves(tmp_path / "one"), curves(tmp_path / "two"), strict=True):
        one, other = ({key: float(value) for key, value in row.items()} for row in rows)
        assert other == pytest.approx(one, rel=1e-4)
    weights = [state_of(tmp_path / name)["state_dict"] for name in ("one", "two")]
    for key in (key for key in weights[0] if key.startswith("network.")):
        torch.testing.assert_close(weights[0][key], weights[1][key], rtol=1e-3, atol=1e-5)
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["parameters"]


# signals


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
    prepared: Path, undisturbed: Path, tmp_path: Path, command: Command, monkeypatch: Any,
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
