"""A run's folder: one training at a time, and what it says where there is no room."""

import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from pancseg.config import TRAINING_LOCK, locked_run
from pancseg.errors import Incomplete, PancsegError
from pancseg.training.checkpoints import AtomicCheckpointIO
from tests.conftest import Command, contents, smoke


def test_a_second_training_is_refused_in_one_line_and_leaves_the_first_ones_files_alone(
    prepared: Path, trained: Path, tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    with FileLock(run / TRAINING_LOCK):
        before = contents(run)
        ended = command("train", *smoke(prepared, run, "seed=1"))
        after = contents(run)
    assert ended.code == 2
    assert ended.err == (
        f"pancseg.train: hydra.run.dir={run}: another pancseg.train is writing to it; wait for "
        "give another folder\n"
    )
    assert {name for name in after if before.get(name) != after[name]} <= {"train.log"}
    dry = smoke(prepared, tmp_path / "dry", "trainer.fast_dev_run=true")
    assert command("train", *dry).code == 0


def test_processes_that_train_together_are_let_in_and_others_are_not(tmp_path: Path) -> None:
    with locked_run(tmp_path, is_writing=True):
        with locked_run(tmp_path, is_writing=False):
            pass
        with (
            pytest.raises(PancsegError, match=r"another pancseg\.train"),
            locked_run(tmp_path, True),
        ):
            pass
    with locked_run(tmp_path, is_writing=True):
        pass


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ("[enforce fail at inline_container.cc:747] . open file failed", Incomplete),
        ("shapes differ", RuntimeError),
    ],
)
def test_a_checkpoint_that_finds_no_room_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, told: type[Exception]
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError(says)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(told, match=r"ckpt_path=last" if told is Incomplete else says):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_what_killed_writes_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "checkpoints"):
        folder.mkdir(exist_ok=True)
        (folder / ".partial-0123-last.ckpt").touch()
        (folder / "last.ckpt").touch()
    with locked_run(tmp_path):
        pass
    assert not [*tmp_path.rglob(".partial-*")]
    assert len([*tmp_path.rglob("last.ckpt")]) == 2
