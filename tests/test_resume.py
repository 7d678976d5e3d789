"""Resuming: a run that was killed, stopped or extended equals one that was not."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Timer
from torch import Tensor

from pancseg.errors import Incomplete
from pancseg.models.segmenter import Segmenter
from pancseg.training.callbacks import Patience, best_row
from pancseg.training.checkpoints import BestCheckpoint
from tests.conftest import Command, run_command, smoke
from tests.test_train import PATCHES, load, metrics_of, summary_of, without

EVERYTHING = [
    *PATCHES, "augment=light", "scheduler=cosine", "ema_decay=0.9", "trainer.max_epochs=3",
]  # fmt: skip
CONSTANT = [*EVERYTHING, "scheduler=constant"]
KILLED = """
import os
from pancseg.training.checkpoints import AtomicCheckpointIO
saves, save = [], AtomicCheckpointIO.save_checkpoint
def save_and_die(self, checkpoint, path, storage_options=None):
    save(self, checkpoint, path, storage_options)
    saves.append(1)
    if len(saves) == int(os.environ["DIE_AFTER"]):
        os.kill(os.getpid(), 9)
AtomicCheckpointIO.save_checkpoint = save_and_die
from pancseg.train import main
main()
"""


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
@pytest.mark.parametrize(("saves", "workers"), [((1, 2), 0), ((3, 1), 2)])
def test_a_run_killed_after_any_checkpoint_ends_as_one_that_was_not(
    prepared: Path, undisturbed: Path, tmp_path: Path, saves: tuple[int, ...], workers: int
) -> None:
    """An epoch writes best.ckpt if it is the best, then last.ckpt."""
    words = smoke(prepared, tmp_path, *EVERYTHING, "ckpt_path=last", f"data.num_workers={workers}")
    for count in saves:
        environment = {**os.environ, "DIE_AFTER": str(count)}
        ended = subprocess.run([sys.executable, "-c", KILLED, *words], env=environment, check=False)
        assert ended.returncode == -signal.SIGKILL
    assert run_command("train", *words) == 0
    assert_same(tmp_path, undisturbed)


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


@pytest.mark.parametrize(
    ("limit", "parts", "more"),
    [
        ("epochs", (3, [1, 3]), ["hardware.precision=bf16-mixed"]),
        ("steps", (12, [8, 12]), ["trainer.max_epochs=-1"]),
    ],
)
def test_a_run_that_is_extended_equals_one_that_was_always_as_long(
    prepared: Path, tmp_path: Path, limit: str, parts: tuple[int, list[int]], more: list[str]
) -> None:
    for folder, ends in (("at_once", [parts[0]]), ("in_parts", parts[1])):
        for end in ends:
            words = [*CONSTANT, *more, f"trainer.max_{limit}={end}", "ckpt_path=last"]
            assert run_command("train", *smoke(prepared, tmp_path / folder, *words)) == 0
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
        ("optimizer=sgd", "trained with optimizer."),
        ("sampling=patches", "trained with sampling.kind=whole, not patches"),
        ("data.spatial_size=[48,32,32]", "trained with data.spatial_size=[32,32,32], not [48,"),
        ("data.window_hu=[-100,100]", "trained with data.window_hu=[-200,200], not [-100,100]"),
        ("scheduler=cosine", "with scheduler._target_=torch.optim.lr_scheduler.ConstantLR, not"),
        ("loss=dice_ce", "trained with loss."),
        ("augment=light", "trained with augment."),
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


@pytest.mark.parametrize(
    ("limit", "done"), [("epochs=2", "3"), ("steps=8", "12"), ("time=00:00:00:00", "0 s")]
)
def test_a_resumed_training_says_that_its_limit_is_reached_already(
    prepared: Path, copied: Path, command: Command, limit: str, done: str
) -> None:
    words = [*EVERYTHING, f"trainer.max_{limit}", "ckpt_path=last"]
    ended = command("train", *smoke(prepared, copied, *words))
    assert ended.code == 0
    assert "nothing is left to train: " in ended.out
    assert f"trainer.max_{limit}, ckpt_path has {done}" in ended.out


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


def test_the_best_of_a_run_that_was_moved_stays_the_best(tmp_path: Path) -> None:
    before, after = (BestCheckpoint(str(tmp_path / folder)) for folder in ("a", "b"))
    path, here = str(tmp_path / "a" / "best.ckpt"), str(tmp_path / "b" / "best.ckpt")
    before.best_k_models, before.kth_best_model_path = {path: torch.tensor(0.8)}, path
    before.best_model_path, before.best_model_score = path, torch.tensor(0.8)
    after.load_state_dict(before.state_dict())
    assert after.best_k_models == {}  # its file did not move along
    Path(here).parent.mkdir()
    Path(here).touch()
    after.load_state_dict(before.state_dict())
    assert (list(after.best_k_models), after.kth_best_model_path) == ([here], here)
    assert (after.best_model_path, float(after.best_model_score)) == (here, pytest.approx(0.8))


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
