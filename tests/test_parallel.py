"""Process pools that survive a crash, and limits of cgroups."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from pancseg import parallel
from pancseg.parallel import process_map

SLOW = """
import os, time
from pancseg.parallel import process_map

def work(n):
    os.write(1, b"begun\\n")
    time.sleep(60)
    os.write(1, b"done\\n")

if __name__ == "__main__":
    list(process_map(work, range(2), 2, work))
"""


def double_or_crash(number):
    return 2 * number if number >= 0 else os.abort()


def minus(number):
    return number


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_items_that_end_their_process_cost_only_themselves():
    results = list(process_map(double_or_crash, [0, -1, 3, 4, -2, 5], 2, minus))
    assert sorted(results) == [-2, -1, 0, 6, 8, 10]
    assert list(process_map(lambda n: os.getpid() + n, [1], 0, minus)) == [os.getpid() + 1]


def test_processes_end_with_their_parent_however_it_ends():
    Path("slow.py").write_text(SLOW)
    words = [sys.executable, "slow.py"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True) as parent:
        try:
            assert [parent.stdout.readline() for _ in range(2)] == [b"begun\n"] * 2
            parent.kill()
            assert parent.stdout.readline() == b""  # the last process closed it
        finally:
            with suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)


def test_memory_limits_of_cgroups_above_count(tmp_path, monkeypatch):
    (tmp_path / "slurm" / "job_7").mkdir(parents=True)
    (tmp_path / "slurm" / "job_7" / "memory.max").write_text("50000000\n")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "own").write_text("0::/slurm/job_7/step_0/task_0\n")
    monkeypatch.setattr(parallel, "CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(parallel, "OWN_CGROUP", tmp_path / "own")
    assert parallel.main_memory() == 50_000_000
