"""Tiny data and a tiny run, for storms."""

import multiprocessing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import run_command, smoke
from tests.storm.ledger import Ledger, from_environment

if TYPE_CHECKING:
    from tests.storm.yard import Yard

if "forkserver" not in multiprocessing.get_all_start_methods():
    collect_ignore_glob = ["test_*.py"]
else:
    from tests.storm.works import works  # noqa: F401


@pytest.fixture(scope="session")
def yard(tmp_path_factory: pytest.TempPathFactory) -> "Yard":
    """Starts commands; all sessions' storms share the one that is warm."""
    from tests.storm.yard import Yard  # where processes can be forked

    return Yard(tmp_path_factory.mktemp("yard"))


@pytest.fixture(scope="session")
def tiny_run(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch."""
    run = tmp_path_factory.mktemp("storm_runs") / "run"
    assert run_command("train", *smoke(prepared, run, "trainer.max_epochs=1")) == 0
    return run


@pytest.fixture(scope="session")
def ledger() -> Ledger:
    """Where storms write what they did."""
    return from_environment()
