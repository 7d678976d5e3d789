"""Resuming, and signals: a run that was killed, stopped or extended equals an undisturbed run."""

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.callbacks import Timer
from torch import Tensor
from torch.utils._pytree import tree_flatten

from pancseg.intake import convert
from pancseg.models.segmenter import Segmenter
from pancseg.signals import SIGNALS
from pancseg.training.callbacks import best_row
from pancseg.training.checkpoints import BestCheckpoint
from pancseg.training.resume import fixed_settings
from tests.conftest import prepare, run_command, smoke
from tests.test_train import PATCHES, load, metrics_of, read, without

INT, TERM, USR1 = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1
EVERYTHING = [*PATCHES, "augment=light", "scheduler=cosine", "ema_decay=0.9"]
EVERYTHING += ["trainer.max_epochs=3"]
STATE = ["state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step"]
STATE += ["current_model_state", "averaging_state"]


def state_of(run: Path):
    """Everything in ``last.ckpt`` that decides how the training goes on."""
    content = load(run, "last")
    return {name: content[name] for name in STATE if name in content}


def same(one, other) -> bool:
    (values, form), (others, other_form) = tree_flatten(one), tree_flatten(other)
    pairs = zip(values, others, strict=False)
    return form == other_form and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs
    )


def curves(run: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in metrics_of(run)]


def assert_same(one: Path, other: Path) -> None:
    assert curves(one) == curves(other)
    states = state_of(one), state_of(other)
    assert states[0].keys() == states[1].keys()
    assert [name for name in states[0] if not same(states[0][name], states[1][name])] == []


@pytest.fixture(scope="session")
def undisturbed(prepared, tmp_path_factory):
    run = tmp_path_factory.mktemp("undisturbed")
    assert run_command("train", *smoke(prepared, run, *EVERYTHING)) == 0
    return run


def epochs_of(run: Path) -> int:
    return len(curves(run)) if (run / "metrics.csv").is_file() else 0


def train_until(words: list[str], holds, signum: int, delay_s: float = 0) -> tuple[int, str]:
    """Exit code and errors of a training that gets a signal, with its loaders, once it holds."""
    command, quiet = [sys.executable, "-m", "pancseg.train", *words], subprocess.DEVNULL
    options = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, stdout=quiet, **options) as training:
        try:
            until = time.monotonic() + 120
            while not holds():
                assert training.poll() is None, training.communicate()[1]
                assert time.monotonic() < until
                time.sleep(0.02)
            time.sleep(delay_s)
            os.killpg(training.pid, signum)
            _, err = training.communicate(timeout=120)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(training.pid, signal.SIGKILL)
    return training.returncode, err


@pytest.mark.slow
def test_a_run_killed_at_random_moments_equals_an_undisturbed_run(prepared, tmp_path):
    longer = [*EVERYTHING, "trainer.max_epochs=40", "model=unet", "data.batch_size=1"]
    whole, killed, moments = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    assert run_command("train", *smoke(prepared, whole, *longer)) == 0
    words = smoke(prepared, killed, *longer, "ckpt_path=last")
    for _ in range(4):
        more = epochs_of(killed) + 2
        moment = moments.uniform(0, 1.5)
        train_until(words, lambda more=more: epochs_of(killed) >= more, signal.SIGKILL, moment)
    assert run_command("train", *words) == 0
    assert_same(killed, whole)
    assert same(load(killed)["state_dict"], load(whole)["state_dict"])


def test_two_runs_of_a_seed_are_equal_and_store_averaged_weights(prepared, undisturbed, tmp_path):
    again = smoke(prepared, tmp_path / "again", *EVERYTHING, "deterministic=true")
    assert run_command("train", *again) == 0
    assert_same(tmp_path / "again", undisturbed)
    other = smoke(prepared, tmp_path / "other", *EVERYTHING, "seed=1", "trainer.max_epochs=1")
    assert run_command("train", *other) == 0
    assert curves(tmp_path / "other")[0] != curves(undisturbed)[0]
    state = state_of(undisturbed)
    name = next(key for key in state["state_dict"] if key.startswith("network."))
    assert not torch.equal(state["state_dict"][name], state["current_model_state"][name])


def test_ckpt_path_last_resumes_the_newest_run_of_that_name(prepared, tmp_path, command):
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
        ("data.window_hu=[-100,100]", "trained with data.window_hu=[-200,200], not [-100,100]"),
        ("seed=1", "trained with seed=0, not 1; give the same"),
        ("ema_decay=0", "ckpt_path keeps a running mean"),
    ],
)
def test_a_resume_that_does_not_fit_is_refused(
    prepared, undisturbed, tmp_path, command, change, message
):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    ended = command("train", *smoke(prepared, run, *EVERYTHING, "ckpt_path=last", change))
    assert (ended.code, message in ended.err) == (2, True), ended.err
    assert_same(run, undisturbed)


def test_a_network_of_0_2_0_resumes_with_the_full_decoder():
    parts = {"seed": 0, "loss": {}, "optimizer": {}, "scheduler": {}, "view": None}
    old, full = ({**parts, "model": model} for model in ({}, {"light_decoder": False}))
    data, numbers = {"sampling": {}, "augment": None}, SimpleNamespace()
    assert fixed_settings(old, data, numbers) == fixed_settings(full, data, numbers)


def test_a_run_resumes_in_another_folder_and_memory_format(
    prepared, undisturbed, tmp_path, command
):
    last, losses = undisturbed / "checkpoints" / "last.ckpt", []
    for layout in ("true", "false"):
        words = ["trainer.max_epochs=4", f"hardware.channels_last={layout}", f"ckpt_path={last}"]
        assert command("train", *smoke(prepared, tmp_path / layout, *EVERYTHING, *words)).code == 0
        losses.append([float(row["train/loss"]) for row in curves(tmp_path / layout)])
    assert len(losses[0]) == 4 and losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize(("end", "kept", "partial"), [(2, "2", True), (6, "4", False)])
def test_max_time_leaves_a_partial_epoch_only_where_it_is_the_first(
    prepared, undisturbed, tmp_path, command, monkeypatch, end, kept, partial
):
    def check(self, trainer):
        trainer.should_stop = trainer.should_stop or trainer.global_step >= end

    words = smoke(prepared, tmp_path, *EVERYTHING, "trainer.max_time=00:01:00:00")
    with monkeypatch.context() as patch:
        patch.setattr(Timer, "_check_time_remaining", check)
        ended = command("train", *words)
    lines = [line for line in ended.out.splitlines() if "discarded" in line]
    expected = [] if partial else ["epoch 2 ended after 2 of 4 batches, and is discarded"]
    assert (ended.code, lines) == (0, expected)
    assert [row["step"] for row in curves(tmp_path)] == [kept] and curves(tmp_path)[0]["val/dice"]
    assert state_of(tmp_path)["global_step"] == int(kept) and load(tmp_path)
    summary = read(tmp_path / "summary.json")
    assert (summary["partial"], summary["epochs"]) == (partial, 1)
    if not partial:
        assert command("train", *words, "ckpt_path=last").code == 0
        assert curves(tmp_path) == curves(undisturbed)


def test_of_equal_dice_the_lower_loss_is_best(tmp_path):
    best = BestCheckpoint(str(tmp_path))
    best.best_k_models, best.kth_best_model_path = {"x": torch.tensor(0.0)}, "x"
    best.best_loss, decisions = 0.5, []
    for dice, loss in ((0.0, 0.6), (0.0, 0.4), (0.0, 0.4), (0.1, 0.9)):
        strategy = SimpleNamespace(reduce_boolean_decision=bool)
        trainer = SimpleNamespace(callback_metrics={"val/loss": loss}, strategy=strategy)
        decisions.append(best.check_monitor_top_k(trainer, torch.tensor(dice)))
    assert decisions == [False, True, False, True]
    scores = [(0.0, 0.9), (0.5, 0.6), (0.5, 0.4), (0.5, 0.5), (0.5, 0.0)]
    rows = [{"epoch": n, "val/dice": d, "val/loss": x} for n, (d, x) in enumerate(scores, 1)]
    assert [best_row(rows[:n], "val/dice")["epoch"] for n in (4, 5)] == [3, 5]


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [[], PATCHES], ids=["whole", "patches"])
def test_two_processes_with_half_the_batch_equal_a_single_process(prepared, tmp_path, sampling):
    alike = [*sampling, "model.norm=instance", "loss=dice_ce", "loss.batch=false", "optimizer=sgd"]
    # with seed 0 a voxel at the threshold makes the hard Dice differ by 3e-4, nothing else
    alike += ["hardware=cpu", "split.seed=1", "split.val=3", "split.test=0", "trainer.max_epochs=3"]
    two = ["data.batch_size=1", "hardware.devices=2", "trainer.strategy=ddp"]
    for name, more in (("one", ["data.batch_size=2"]), ("two", two)):
        words = [*without("split.", smoke(prepared, tmp_path / name)), *alike, *more]
        command = [sys.executable, "-m", "pancseg.train", *words]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
    for rows in zip(curves(tmp_path / "one"), curves(tmp_path / "two"), strict=True):
        one, other = ({key: float(value) for key, value in row.items()} for row in rows)
        assert other == pytest.approx(one, rel=1e-4)
    weights = [state_of(tmp_path / name)["state_dict"] for name in ("one", "two")]
    for key in (key for key in weights[0] if key.startswith("network.")):
        torch.testing.assert_close(weights[0][key], weights[1][key], rtol=1e-3, atol=1e-5)
    assert read(tmp_path / "two" / "summary.json")["parameters"]


def signal_at(patch, owner, name: str, call: int, signum: int) -> None:
    """Let a function's call of that number begin with a signal to this process."""
    calls, original = [], getattr(owner, name)

    def signalled(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(signum)
        return original(*arguments, **options)

    patch.setattr(owner, name, signalled)


@pytest.mark.parametrize(
    ("part", "call", "signum", "reached"),
    [
        ("training_step", 3, INT, 0),
        ("training_step", 6, TERM, 4),
        ("training_step", 9, USR1, 8),
        ("validation_step", 2, TERM, 4),
    ],
)
def test_a_stopped_training_resumes_from_the_last_whole_epoch(
    prepared, undisturbed, tmp_path, command, monkeypatch, part, call, signum, reached
):
    words = smoke(prepared, tmp_path, *EVERYTHING)
    workers = f"data.num_workers={int(part == 'validation_step')}"
    with monkeypatch.context() as patch:
        signal_at(patch, Segmenter, part, call, signum)
        ended = command("train", *words, workers)
    assert multiprocessing.active_children() == []
    advice = "give ckpt_path=last to go on from the last whole epoch"
    line = "interrupted" if signum == INT else f"pancseg.train: stopped by {signum.name}; {advice}"
    assert (ended.code, ended.err) == (128 + signum, line + "\n")
    assert signal.getsignal(TERM) is signal.getsignal(USR1) is signal.SIG_DFL
    if not reached:
        assert not [*tmp_path.rglob("*.ckpt")]
        return
    assert state_of(tmp_path)["global_step"] == reached and (tmp_path / "history.png").exists()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # a job that Slurm runs again needs no ckpt_path
    assert "started again by Slurm: going on with" in command("train", *words).out
    assert_same(tmp_path, undisturbed)


def test_prepare_keeps_finished_cases_and_ends_in_one_line(dicom, tmp_path, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        signal_at(patch, convert, "record", 3, TERM)
        assert prepare(dicom, tmp_path) == 143
    advice = "stopped by SIGTERM; run the same command again to go on"
    assert capfd.readouterr().err.splitlines()[-1] == f"pancseg.prepare: {advice}"
    assert len(list((tmp_path / "cases").glob("*_image.nii.gz"))) == 3
    assert prepare(dicom, tmp_path) == 0


@pytest.mark.slow
@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_to_the_process_group_ends_training_and_loaders(prepared, tmp_path, signum):
    endless = [*EVERYTHING, "trainer.max_epochs=500", "data.num_workers=2"]
    words = smoke(prepared, tmp_path, *endless)
    code, err = train_until(words, lambda: epochs_of(tmp_path) > 1, signum)
    assert (code, err.count("\n")) == (128 + signum, 1), err
    assert f"stopped by {signum.name}; give ckpt_path=last to go on" in err
