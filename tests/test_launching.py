"""Jobs that a launcher runs in other processes."""

import sys
from pathlib import Path

import pytest

from pancseg.cli import Job
from tests.conftest import Command


def add_one(cfg: int) -> int:
    return cfg + 1


def test_a_job_is_pickled_as_the_name_of_its_command() -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    sent = cloudpickle.dumps(Job(add_one, "train"))
    assert b"add_one" not in sent
    assert cloudpickle.loads(sent).task.__module__ == "pancseg.train"


def test_without_slurm_one_line_says_so(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))  # no sbatch there
    ended = command("train", "-m", "hydra/launcher=submitit_slurm", "seed=0,1")
    assert ended.code == 1
    assert "Could not detect " in ended.err and ended.err.count("\n") == 1
