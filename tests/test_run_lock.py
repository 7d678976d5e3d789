"""A run's folder: one training at a time, and what it says where there is no room."""

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock

from pancseg.configuration import TRAINING_LOCK
from pancseg.errors import Incomplete, PancsegError
from pancseg.tracking.keep_last import KeepLast, WholeFiles
from pancseg.training.run_lock import held_run
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
        "its end, or give another folder\n"
    )
    assert {name for name in after if before.get(name) != after[name]} <= {"train.log"}
    assert command("train", *smoke(prepared, run, "trainer.fast_dev_run=true")).code == 0


def test_processes_that_train_together_are_let_in_and_others_are_not(tmp_path: Path) -> None:
    with held_run(tmp_path, is_writing=True):
        with held_run(tmp_path, is_writing=False):
            pass
        with pytest.raises(PancsegError, match=r"another pancseg\.train"), held_run(tmp_path, True):
            pass
    with held_run(tmp_path, is_writing=True):
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
        WholeFiles().save_checkpoint({}, tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "saves"), [(OSError(errno.ENOSPC, "full"), 0), (KeyboardInterrupt(), 1)]
)
def test_after_a_failed_write_the_last_checkpoint_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, saves: int
) -> None:
    saved: list[Any] = []
    keep = KeepLast(str(tmp_path / "last.ckpt"), every_s=1e9)
    monkeypatch.setattr(keep, "save", saved.append)
    trainer: Any = SimpleNamespace(world_size=1, global_step=5)
    keep.on_exception(trainer, None, error)  # type: ignore[arg-type]
    assert len(saved) == saves
