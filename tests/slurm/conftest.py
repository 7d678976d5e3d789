"""Fixtures: a Slurm that runs while the tests do, and how they talk to it."""

import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.slurm.cluster import NoSlurm, running

ROOT = Path(__file__).parents[2]
PATIENCE_S = 90
Begin = Callable[[list[str]], subprocess.Popen[bytes]]


@dataclass(frozen=True)
class Slurm:
    """Slurm's commands.

    Attributes:
        environment: In which they find it.
    """

    environment: dict[str, str]

    def __call__(self, *words: str, check: bool = True) -> str:
        """Run a command and return what it printed."""
        ended = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0 or not check, ended.stderr
        return ended.stdout.strip()

    def submit(self, *options: str, script: str) -> str:
        """Submit a batch script and return its number."""
        lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in options), script]
        ended = subprocess.run(
            ["sbatch", "--parsable"], input="\n".join(lines) + "\n", env=self.environment,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return ended.stdout.strip()

    def state(self, job: str) -> str:
        """``RUNNING``, ``PENDING``, ...; empty once it has ended."""
        return self("squeue", "--noheader", "--format=%T", f"--jobs={job}", check=False)

    def start_again(self, job: str, *changes: str) -> None:
        """Start a requeued job at once; Slurm would wait for two minutes."""
        until(lambda: self.state(job) == "PENDING", f"job {job} waits to run again")
        until(lambda: not is_attended(job), f"the daemon is done with job {job}")
        ended_s = int(time.time())  # within this second the daemon refuses it as one it has ended
        until(lambda: int(time.time()) > ended_s, "the next second")
        self("scontrol", "update", f"JobId={job}", "StartTime=now", *changes)
        until(lambda: self.state(job) == "RUNNING", f"job {job} runs again")


def until(holds: Callable[[], bool], what: str) -> None:
    """Wait for something to happen."""
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() - begun < PATIENCE_S, f"did not happen: {what}"
        time.sleep(0.1)


def is_attended(job: str) -> bool:
    """Whether the daemon still attends to a job: it starts none a second time before."""
    title = f"slurmstepd: [{job}.".encode()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if entry.read_bytes().startswith(title):
                return True
        except OSError:
            continue
    return False


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm of its own for these tests; they are skipped where it cannot be started."""
    try:
        with running(tmp_path_factory.mktemp("slurm") / "cluster") as environment:
            more = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # sums in one order
            yield Slurm({**environment, **more})
    except NoSlurm as reason:
        pytest.skip(f"no Slurm: {reason}")


@pytest.fixture
def begin(slurm: Slurm) -> Iterator[Begin]:
    """Starts a command beside the test; one that still runs when the test ends is killed."""
    begun: list[subprocess.Popen[bytes]] = []

    def start(words: list[str]) -> subprocess.Popen[bytes]:
        begun.append(subprocess.Popen(words, env=slurm.environment))
        return begun[-1]

    yield start
    for one in begun:
        one.kill()
        one.wait()
