"""Going on, stopping and beginning: a run that was killed equals one that was not."""

import csv
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

from pancseg.config import settings_folder
from pancseg.errors import Incomplete
from pancseg.models import pretrained
from pancseg.models.factory import build
from pancseg.models.pretrained import load_pretrained, open_weights
from pancseg.models.segmenter import Segmenter
from pancseg.training.callbacks import Patience, best_row
from pancseg.training.checkpoints import BestCheckpoint
from tests.conftest import Command, run_command, smoke

PATCHES = ["sampling=patches", "data.spacing_mm=[8,8,8]", "sampling.steps_per_epoch=4"]
EVERYTHING = [
    *PATCHES, "augment=light", "scheduler=cosine", "ema_decay=0.9", "trainer.max_epochs=3",
]  # fmt: skip
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


def killed_after(saves: int, words: list[str]) -> None:
    environment = {**os.environ, "DIE_AFTER": str(saves)}
    command = [sys.executable, "-c", KILLED, *words]
    ended = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def learnt(run: Path) -> dict[str, Any]:
    """Everything in ``last.ckpt`` that decides how the training goes on."""
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
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
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def assert_same(one: Path, other: Path) -> None:
    assert curves(one) == curves(other)
    states = learnt(one), learnt(other)
    assert states[0].keys() == states[1].keys()
    assert [name for name in states[0] if not same(states[0][name], states[1][name])] == []


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed")
    assert run_command("train", *smoke(prepared, run, *EVERYTHING)) == 0
    return run


@pytest.mark.slow
@pytest.mark.parametrize(("saves", "workers"), [((1, 2), 0), ((3, 1), 2)])
def test_a_run_killed_after_any_checkpoint_ends_as_one_that_was_not(
    prepared: Path, undisturbed: Path, tmp_path: Path, saves: tuple[int, ...], workers: int
) -> None:
    """An epoch writes best.ckpt if it is the best, then last.ckpt."""
    words = smoke(prepared, tmp_path, *EVERYTHING, "ckpt_path=last")
    words.append(f"data.num_workers={workers}")
    for count in saves:
        killed_after(count, words)
    assert run_command("train", *words) == 0
    assert_same(tmp_path, undisturbed)


@pytest.mark.slow
def test_a_run_killed_at_ten_random_moments_ends_as_one_that_was_not(
    prepared: Path, tmp_path: Path
) -> None:
    """Moments of the whole process: start, then steps, saving and validation."""
    longer = [*EVERYTHING, "trainer.max_epochs=40", "model=unet", "data.batch_size=1"]
    assert run_command("train", *smoke(prepared, tmp_path / "whole", *longer)) == 0
    words = smoke(prepared, tmp_path / "killed", *longer, "ckpt_path=last")
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    moments, reached = random.Random(0), []
    for attempt in range(10):
        training = subprocess.Popen(
            [sys.executable, "-m", "pancseg.train", *words],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        if attempt % 2:  # kills that come before the first step prove little
            wait_for_saves(last, 2)
        time.sleep(moments.uniform(0, 1.5 if attempt % 2 else 10))
        training.kill()
        training.wait()
        reached.append(learnt(tmp_path / "killed")["global_step"] if last.is_file() else 0)
    assert reached == sorted(reached)
    assert len(set(reached)) > 3, reached
    assert run_command("train", *words) == 0
    assert_same(tmp_path / "killed", tmp_path / "whole")
    best = [
        torch.load(tmp_path / name / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
        for name in ("killed", "whole")
    ]
    assert same(*best)


def wait_for_saves(path: Path, n: int) -> None:
    """Wait until a file has been written so many times more."""
    until, seen = time.monotonic() + 120, {written_at(path)}
    while len(seen) <= n:
        assert time.monotonic() < until
        time.sleep(0.02)
        seen.add(written_at(path))


def written_at(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_finished_run_that_is_extended_equals_one_that_was_always_as_long(
    prepared: Path, undisturbed: Path, tmp_path: Path, precision: str
) -> None:
    constant = [*EVERYTHING, "scheduler=constant"]
    constant.append(f"hardware.precision={precision}")
    for folder, parts in (("at_once", [3]), ("in_parts", [1, 3])):
        for epochs in parts:
            more = [f"trainer.max_epochs={epochs}", "ckpt_path=last"]
            assert run_command("train", *smoke(prepared, tmp_path / folder, *constant, *more)) == 0
    assert_same(tmp_path / "at_once", tmp_path / "in_parts")
    assert not same(learnt(tmp_path / "at_once"), learnt(undisturbed))


def test_a_run_that_goes_on_to_more_steps_equals_one_that_took_them_at_once(
    prepared: Path, tmp_path: Path
) -> None:
    constant = [*EVERYTHING, "scheduler=constant"]
    constant += ["trainer.max_epochs=-1", "trainer.enable_progress_bar=false"]
    for folder, parts in (("at_once", [12]), ("in_parts", [8, 12])):
        for steps in parts:
            more = [f"trainer.max_steps={steps}", "ckpt_path=last"]
            assert run_command("train", *smoke(prepared, tmp_path / folder, *constant, *more)) == 0
    assert [row["step"] for row in curves(tmp_path / "in_parts")] == ["4", "8", "12"]
    assert curves(tmp_path / "in_parts") == curves(tmp_path / "at_once")


def test_two_runs_of_one_seed_are_equal_and_of_another_are_not(
    prepared: Path, undisturbed: Path, tmp_path: Path
) -> None:
    again = ["deterministic=true", *EVERYTHING]
    assert run_command("train", *smoke(prepared, tmp_path / "again", *again)) == 0
    assert_same(tmp_path / "again", undisturbed)
    other = [*EVERYTHING, "seed=1", "trainer.max_epochs=1"]
    assert run_command("train", *smoke(prepared, tmp_path / "other", *other)) == 0
    assert curves(tmp_path / "other")[0] != curves(undisturbed)[0]


def test_the_last_of_so_many_steps_is_validated_wherever_in_an_epoch_it_comes(
    prepared: Path, tmp_path: Path
) -> None:
    for steps in (6, 12):
        words = [*EVERYTHING, "trainer.max_epochs=-1", f"trainer.max_steps={steps}"]
        assert run_command("train", *smoke(prepared, tmp_path, *words, "ckpt_path=last")) == 0
        assert curves(tmp_path)[-1]["step"] == str(steps)
        assert curves(tmp_path)[-1]["val/dice"]


def test_gradients_are_gathered_over_several_batches(prepared: Path, tmp_path: Path) -> None:
    words = [*PATCHES, "trainer.accumulate_grad_batches=2", "trainer.max_epochs=1"]
    assert run_command("train", *smoke(prepared, tmp_path, *words)) == 0
    assert [row["step"] for row in curves(tmp_path)] == ["2"]


def test_processes_started_elsewhere_are_told_to_name_one_folder(
    prepared: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = [word for word in smoke(prepared, tmp_path) if not word.startswith("hydra.run.dir")]
    ended = command("train", *words, "trainer.num_nodes=2")
    assert ended.code == 2
    assert "give hydra.run.dir=FOLDER" in ended.err
    assert command("train", *smoke(prepared, tmp_path / "run")).code == 0  # one process of several


def test_the_averaged_weights_are_what_is_saved_and_validated(undisturbed: Path) -> None:
    content = torch.load(undisturbed / "checkpoints" / "last.ckpt", weights_only=True)
    name = next(key for key in content["state_dict"] if key.startswith("network."))
    assert not torch.equal(content["state_dict"][name], content["current_model_state"][name])


def test_a_run_of_averaged_weights_does_not_go_on_from_the_mean_as_if_it_were_current(
    prepared: Path, undisturbed: Path, command: Command
) -> None:
    last = f"ckpt_path={undisturbed / 'checkpoints' / 'last.ckpt'}"
    words = smoke(prepared, undisturbed, *EVERYTHING, "ema_decay=0", "trainer.max_epochs=4", last)
    ended = command("train", *words)
    assert ended.code == 2
    assert "ckpt_path keeps a running mean of its weights; give the ema_decay of" in ended.err


def test_other_batches_than_those_of_a_run_are_warned_of_when_it_is_gone_on_with(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    words = smoke(prepared, tmp_path, *PATCHES, "ckpt_path=last", "data.batch_size=2")
    assert "ckpt_path was trained with" not in command("train", *words, "trainer.max_steps=1").out
    ended = command("train", *words, "trainer.max_steps=2", "data.batch_size=1")
    assert ended.code == 0
    assert "data.batch_size=1, ckpt_path was trained with 2" in ended.out


def test_ckpt_path_last_goes_on_with_the_newest_run_of_that_name(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    words = [word for word in smoke(prepared, tmp_path) if not word.startswith("hydra.run.dir")]
    words += ["hydra.job.chdir=false", "trainer.max_epochs=1"]
    first = command("train", *words, "ckpt_path=last")
    assert "there is none yet, a new training begins" in first.out
    (run,) = (tmp_path / "runs" / "smoke").iterdir()
    again = command("train", *words, "ckpt_path=last", "trainer.max_epochs=2")
    assert again.code == 0
    assert [folder.name for folder in (tmp_path / "runs" / "smoke").iterdir()] == [run.name]
    assert [row["epoch"] for row in curves(run)] == ["1", "2"]
    assert (run / ".hydra_resumed").is_dir()


def test_training_stops_where_validation_gets_no_better(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    stuck = ["optimizer.lr=0", "model.norm=instance", "callbacks.early_stopping.patience=2"]
    stuck += ["trainer.max_epochs=50"]
    assert command("train", *smoke(prepared, tmp_path / "run", *stuck)).code == 0
    assert len(curves(tmp_path / "run")) == 3
    ended = command("train", *smoke(prepared, tmp_path / "none", "split.val=0", "patience=2"))
    assert ended.code == 2
    assert "there is no validation to wait for" in ended.err


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_cases(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    wild = ["optimizer=sgd", "optimizer.lr=1e30", "trainer.max_epochs=20"]
    ended = command("train", *smoke(prepared, tmp_path / "run", *wild))
    assert ended.code == 1
    assert "loss is nan" in ended.err
    assert "begin with them at a lower rate by init_from" in ended.err
    for path in (tmp_path / "run").rglob("*.ckpt"):
        for weight in torch.load(path, weights_only=True)["state_dict"].values():
            assert not isinstance(weight, Tensor) or weight.isfinite().all()


def test_memory_that_runs_out_is_told_with_what_takes_less(
    prepared: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(Segmenter, "training_step", full)
    ended = command("train", *smoke(prepared, tmp_path / "run"))
    assert ended.code == 2
    assert "memory ran out with data.batch_size=2 and data.spatial_size=[32, 32, 32]" in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("given", ["00:10:00", "10min", "'0:0:10:0'", "600"])
def test_a_time_in_another_form_is_refused_with_the_right_one(
    prepared: Path, tmp_path: Path, command: Command, given: str
) -> None:
    ended = command("train", *smoke(prepared, tmp_path / "run", f"trainer.max_time={given}"))
    assert ended.code == 2
    assert ended.err.endswith("ten minutes are trainer.max_time=00:00:10:00\n")
    assert ended.err.count("\n") == 1


def test_a_step_that_fails_leaves_the_checkpoint_of_the_last_whole_epoch(
    prepared: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Segmenter.training_step

    def wrong_at(number: int, error: BaseException) -> Any:
        def training_step(self: Segmenter, batch: Any, index: int) -> Tensor:
            if self.global_step == number:
                raise error
            return step(self, batch, index)

        return training_step

    words = smoke(prepared, tmp_path, *EVERYTHING)
    monkeypatch.setattr(Segmenter, "training_step", wrong_at(2, Incomplete("the loss is nan")))
    assert command("train", *words).code == 1
    assert not [*tmp_path.rglob("*.ckpt")]  # no epoch was whole
    monkeypatch.setattr(Segmenter, "training_step", wrong_at(6, KeyboardInterrupt()))
    assert command("train", *words).code == 130
    assert learnt(tmp_path)["global_step"] == 4


def end_at_step(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    """Let ``trainer.max_time`` be reached after so many steps."""

    def check(self: Timer, trainer: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= last

    monkeypatch.setattr(Timer, "_check_time_remaining", check)


def test_a_training_that_time_ends_in_its_first_epoch_validates_once_and_keeps_it(
    prepared: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_at_step(monkeypatch, 2)
    words = smoke(prepared, tmp_path, *EVERYTHING, "trainer.max_time=00:01:00:00")
    assert command("train", *words).code == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["partial"], summary["epochs"]) == (True, 1)
    assert [row["step"] for row in curves(tmp_path)] == ["2"]
    assert curves(tmp_path)[0]["val/dice"]
    assert learnt(tmp_path)["global_step"] == 2
    assert (tmp_path / "checkpoints" / "best.ckpt").is_file()


def test_of_an_epoch_that_time_ends_later_nothing_is_kept(
    prepared: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_at_step(monkeypatch, 6)
    words = smoke(prepared, tmp_path / "cut", *EVERYTHING, "trainer.max_time=00:01:00:00")
    assert command("train", *words).code == 0
    assert [row["step"] for row in curves(tmp_path / "cut")] == ["4"]
    assert learnt(tmp_path / "cut")["global_step"] == 4
    summary = json.loads((tmp_path / "cut" / "summary.json").read_text())
    assert (summary["partial"], summary["epochs"]) == (False, 1)
    end_at_step(monkeypatch, 1000)
    assert command("train", *words, "ckpt_path=last").code == 0
    assert command("train", *smoke(prepared, tmp_path / "whole", *EVERYTHING)).code == 0
    assert curves(tmp_path / "cut") == curves(tmp_path / "whole")


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ("trainer.max_epochs=2", "trainer.max_epochs=2, ckpt_path has 3"),
        ("trainer.max_steps=8", "trainer.max_steps=8, ckpt_path has 12"),
        ("trainer.max_time=00:00:00:00", "trainer.max_time=00:00:00:00, ckpt_path has 0 s"),
    ],
)
def test_a_resumed_training_says_that_its_limit_is_reached_already(
    prepared: Path, undisturbed: Path, tmp_path: Path, command: Command, limit: str, says: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    ended = command("train", *smoke(prepared, run, *EVERYTHING, limit, "ckpt_path=last"))
    assert ended.code == 0
    assert "nothing is left to train: " in ended.out and says in ended.out


def test_gradients_are_clipped_in_mixed_precision_too(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    mixed = ["hardware.precision=bf16-mixed", "trainer.gradient_clip_val=1", "trainer.max_steps=1"]
    assert command("train", *smoke(prepared, tmp_path / "run", *mixed)).code == 0


def test_a_run_that_ends_before_it_validates_has_a_best_checkpoint_all_the_same(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    short = ["trainer.max_epochs=1", "trainer.check_val_every_n_epoch=2"]
    ended = command("train", *smoke(prepared, tmp_path / "run", *short))
    assert ended.code == 0
    assert "nothing was validated: best.ckpt is the last" in ended.out
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()


def test_the_best_of_a_run_that_was_moved_stays_the_best(tmp_path: Path) -> None:
    before, after = (BestCheckpoint(str(tmp_path / folder)) for folder in ("a", "b"))
    path = str(tmp_path / "a" / "best.ckpt")
    before.best_k_models, before.kth_best_model_path = {path: torch.tensor(0.8)}, path
    before.best_model_path, before.best_model_score = path, torch.tensor(0.8)
    here = str(tmp_path / "b" / "best.ckpt")
    after.load_state_dict(before.state_dict())
    assert after.best_k_models == {}  # its file did not move along
    Path(here).parent.mkdir()
    Path(here).touch()
    after.load_state_dict(before.state_dict())
    assert (list(after.best_k_models), after.kth_best_model_path) == ([here], here)
    assert after.best_model_path == here
    assert after.best_model_score == pytest.approx(0.8)


def test_a_run_that_goes_on_in_another_folder_keeps_its_best(
    prepared: Path, undisturbed: Path, tmp_path: Path, command: Command
) -> None:
    """The earlier best is given a score that no later epoch reaches."""
    earlier = tmp_path / "earlier" / "checkpoints"
    shutil.copytree(undisturbed / "checkpoints", earlier)
    content = torch.load(earlier / "last.ckpt", weights_only=True)
    state = next(v for k, v in content["callbacks"].items() if k.startswith("BestCheckpoint"))
    state["best_k_models"] = {path: torch.tensor(0.99) for path in state["best_k_models"]}
    torch.save(content, earlier / "last.ckpt")
    words = [*EVERYTHING, "trainer.max_epochs=4", f"ckpt_path={earlier / 'last.ckpt'}"]
    assert command("train", *smoke(prepared, tmp_path / "new", *words)).code == 0
    assert len(curves(tmp_path / "new")) == 4
    best = tmp_path / "new" / "checkpoints" / "best.ckpt"
    assert best.read_bytes() == (earlier / "best.ckpt").read_bytes()


def test_a_folder_that_holds_a_training_is_not_trained_over(
    prepared: Path, undisturbed: Path, tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for more in ([], ["trainer.fast_dev_run=true"]):
        ended = command("train", *smoke(prepared, run, *EVERYTHING, "seed=1", *more))
        assert ended.code == 2
        assert f"{run}: holds a training; give ckpt_path=last" in ended.err
    changed = {path.name for path, content in before.items() if path.read_bytes() != content}
    assert changed <= {"train.log"}


@pytest.mark.parametrize(
    ("left_out", "code"),
    [("~callbacks.images", 0), ("~callbacks.progress_bar", 0), ("~callbacks.epoch_report", 2)],
)
def test_callbacks_are_left_out_by_name(
    prepared: Path, tmp_path: Path, command: Command, left_out: str, code: int
) -> None:
    words = [left_out, "trainer.max_epochs=1", "trainer.log_every_n_steps=0"]
    ended = command("train", *smoke(prepared, tmp_path / "run", *words))
    assert ended.code == code, ended.err
    if code:
        assert "callbacks.epoch_report: metrics.csv and summary.json need it" in ended.err


def test_a_run_in_another_memory_format_goes_on_with_the_same_optimizer_state(
    prepared: Path, tmp_path: Path
) -> None:
    base = [*EVERYTHING, "optimizer=adamw", "scheduler=constant"]
    assert run_command("train", *smoke(prepared, tmp_path / "a", *base)) == 0
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for folder, value in (("a", "true"), ("b", "false")):
        words = [*base, f"hardware.channels_last={value}", "trainer.max_epochs=4", "ckpt_path=last"]
        assert run_command("train", *smoke(prepared, tmp_path / folder, *words)) == 0
    losses = [float(curves(tmp_path / folder)[-1]["train/loss"]) for folder in ("a", "b")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_of_equal_dice_the_lower_loss_is_the_best(tmp_path: Path) -> None:
    best = BestCheckpoint(str(tmp_path))
    best.best_k_models, best.kth_best_model_path = {"x": torch.tensor(0.0)}, "x"
    best.best_loss = 0.5
    strategy = SimpleNamespace(reduce_boolean_decision=bool)
    decisions = []
    for dice, loss in ((0.0, 0.6), (0.0, 0.4), (0.0, 0.4), (0.1, 0.9)):
        metrics = {"val/loss": torch.tensor(loss)}
        trainer: Any = SimpleNamespace(callback_metrics=metrics, strategy=strategy)
        decisions.append(best.check_monitor_top_k(trainer, torch.tensor(dice)))
    assert decisions == [False, True, False, True]


def test_the_report_and_the_checkpoint_choose_the_same_of_equal_epochs() -> None:
    scores = [(0.0, 0.9), (0.5, 0.6), (0.5, 0.4), (0.5, 0.5)]
    rows = [
        {"epoch": n, "val/dice": dice, "val/loss": loss} for n, (dice, loss) in enumerate(scores, 1)
    ]
    best = best_row(rows, "val/dice")
    assert best and best["epoch"] == 3


@pytest.mark.parametrize("variable", ["LOCAL_RANK", "SLURM_PROCID"])
def test_processes_but_the_first_write_no_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    assert settings_folder(None, str(tmp_path)) == ".hydra"
    monkeypatch.setenv(variable, "1")
    assert settings_folder(None, str(tmp_path)) is None


def test_patience_is_the_one_that_is_configured_now() -> None:
    before, after = Patience(2), Patience(50)
    before.wait_count = 2
    after.load_state_dict(before.state_dict())
    assert (after.patience, after.wait_count) == (50, 2)


def test_preview_draws_what_the_network_would_see_and_trains_nothing(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "run"
    ended = command("train", *smoke(prepared, run, *PATCHES, "augment=full", "preview=true"))
    assert ended.code == 0
    assert (run / "preview.png").read_bytes()[:4] == b"\x89PNG"
    assert not (run / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [[], PATCHES], ids=["whole", "patches"])
def test_two_processes_with_half_the_batch_give_the_curve_of_one_with_the_whole(
    prepared: Path, tmp_path: Path, sampling: list[str]
) -> None:
    alike = [*sampling, "model.norm=instance", "loss=dice_ce", "loss.batch=false", "optimizer=sgd"]
    # with seed 0 a voxel at the threshold makes the hard Dice differ by 3e-4, nothing else
    alike += ["hardware=cpu", "split.seed=1", "split.val=3", "split.test=0"]
    alike += ["trainer.max_epochs=3"]
    for name, more in {
        "one": ["data.batch_size=2"],
        "two": ["data.batch_size=1", "hardware.devices=2", "trainer.strategy=ddp"],
    }.items():
        words = smoke(prepared, tmp_path / name)
        words = [word for word in words if not word.startswith("split.")]
        command = [sys.executable, "-m", "pancseg.train", *words, *alike, *more]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count("train completed") == 1
    for one, two in zip(curves(tmp_path / "one"), curves(tmp_path / "two"), strict=True):
        numbers = [[float(value) for value in row.values()] for row in (one, two)]
        assert numbers[1] == pytest.approx(numbers[0], rel=1e-4)
        for key in ("train/loss", "train/recipe_metric", "val/loss", "val/recipe_metric"):
            assert float(two[key]) == pytest.approx(float(one[key]), rel=1e-5), key
    both = [learnt(tmp_path / name)["state_dict"] for name in ("one", "two")]
    for key in (key for key in both[0] if key.startswith("network.")):
        torch.testing.assert_close(both[0][key], both[1][key], rtol=1e-3, atol=1e-5)


NET = {"_target_": "monai.networks.nets.UNet", "spatial_dims": 3, "in_channels": 1,
       "out_channels": 2, "channels": [4, 8, 8, 8, 8], "strides": [2, 2, 2, 2]}  # fmt: skip


def test_a_run_begins_with_another_runs_weights(
    prepared: Path, trained: Path, tmp_path: Path, command: Command
) -> None:
    before = trained / "checkpoints" / "best.ckpt"
    words = [f"init_from={before}", "optimizer.lr=0", "model.norm=batch", "trainer.max_epochs=1"]
    ended = command("train", *smoke(prepared, tmp_path / "run", *words))
    assert "weights taken" in ended.out
    old = torch.load(before, weights_only=True)["state_dict"]
    new = learnt(tmp_path / "run")["state_dict"]
    names = [name for name in old if name.startswith("network.") and name.endswith("weight")]
    assert names
    assert all(torch.equal(old[name], new[name]) for name in names)
    resumed = [*words, "trainer.max_epochs=2", "ckpt_path=last"]  # has weights of its own
    again = command("train", *smoke(prepared, tmp_path / "run", *resumed))
    assert (again.code, "weights taken" in again.out) == (0, False)


def test_weights_to_begin_with_are_read_once(
    trained: Path, prepared: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    load = pretrained.load_tensors
    monkeypatch.setattr(pretrained, "load_tensors", lambda path: read.append(path) or load(path))
    given = f"init_from={trained / 'checkpoints' / 'best.ckpt'}"
    assert command("train", *smoke(prepared, tmp_path / "run", given, "preview=true")).code == 0
    assert len(read) == 1


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_state_dict_as_monai_saves_it_is_taken(tmp_path: Path, wrapped: bool) -> None:
    theirs, ours = build(NET, torch.nn.Module), build(NET, torch.nn.Module)
    weights = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    torch.save({"model": weights} if wrapped else weights, tmp_path / "monai.pt")
    assert "of" in load_pretrained(ours, open_weights(tmp_path / "monai.pt"))
    assert same(theirs.state_dict(), ours.state_dict())


@pytest.mark.parametrize("content", [b"words", {"a": torch.zeros(1)}, [1, 2]])
def test_a_file_without_such_weights_is_refused_in_one_line(
    prepared: Path, tmp_path: Path, command: Command, content: Any
) -> None:
    path = tmp_path / "bad.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    ended = command("train", *smoke(prepared, tmp_path / "run", f"init_from={path}"))
    assert ended.code == 2
    assert f"init_from={path}" in ended.err
    assert ended.err.count("\n") == 1
