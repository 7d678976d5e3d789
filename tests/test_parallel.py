"""Processes: every item has a result, whatever becomes of the process that works on it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pancseg import parallel
from pancseg.parallel import cores, process_map

SLOW = """
import sys, time
from pathlib import Path
from pancseg.parallel import process_map

def work(n):
    Path(sys.argv[1], f"begun{n}").touch()
    time.sleep(1.5)
    Path(sys.argv[1], f"done{n}").touch()

if __name__ == "__main__":
    list(process_map(work, range(2), 2, work))
"""


def double_or_crash(number: int) -> int:
    if number < 0:
        os.abort()
    return 2 * number


def minus(number: int) -> int:
    return number


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_every_item_has_its_result(processes: int) -> None:
    results = list(process_map(double_or_crash, range(9), processes, minus))
    assert sorted(results) == list(range(0, 18, 2))


def test_without_processes_the_work_is_done_in_order_in_this_one() -> None:
    assert list(process_map(lambda n: os.getpid() + n, [1, 2], 0, minus)) == [
        os.getpid() + 1,
        os.getpid() + 2,
    ]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_items_that_end_their_process_cost_only_themselves() -> None:
    items = [0, -1, 3, 4, -2, 5]
    results = list(process_map(double_or_crash, items, 2, minus))
    assert sorted(results) == [-2, -1, 0, 6, 8, 10]


def test_processes_end_with_their_parent_however_it_ends(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)])
    for _ in range(200):
        if len(list(tmp_path.glob("begun*"))) == 2:
            break
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    time.sleep(2)
    assert len(list(tmp_path.glob("begun*"))) == 2
    assert not list(tmp_path.glob("done*"))


def test_there_is_a_core() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)


def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str) -> None:
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(parallel, "CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(parallel, "OWN_CGROUP", tmp_path / "own")


def test_the_limits_of_a_slurm_job_above_its_task_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / "slurm" / "job_7"
    (job / "step_0" / "task_0").mkdir(parents=True)
    (job / "memory.max").write_text("50000000\n")
    (job / "cpu.max").write_text("150000 100000\n")
    (job / "step_0" / "memory.max").write_text("max\n")
    cgroup(tmp_path, monkeypatch, "0::/slurm/job_7/step_0/task_0\n")
    assert parallel.main_memory() == 50_000_000


def test_the_limits_of_cgroup_v1_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for controller, name, value in (
        ("memory", "memory.limit_in_bytes", "60000000"),
        ("cpu", "cpu.cfs_quota_us", "200000"),
        ("cpu", "cpu.cfs_period_us", "100000"),
    ):
        (tmp_path / controller / "docker").mkdir(parents=True, exist_ok=True)
        (tmp_path / controller / "docker" / name).write_text(value)
    cgroup(tmp_path, monkeypatch, "4:cpuacct,cpu:/docker\n3:memory:/docker\n")
    assert parallel.main_memory() == 60_000_000
    (tmp_path / "cpu" / "docker" / "cpu.cfs_quota_us").write_text("-1")


def test_a_throttled_call_takes_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of 2 s is skipped for the 100 s after it; quick calls are all made."""
    clock, made = [0.0], []

    def slow() -> None:
        clock[0] += 2.0
        made.append(clock[0])

    monkeypatch.setattr(parallel.time, "monotonic", lambda: clock[0])
    call = parallel.throttled(slow)
    for _ in range(300):
        call()
        clock[0] += 1.0
    assert made == [2.0, 104.0, 206.0]
    quick = parallel.throttled(lambda: made.append(0.0))
    for _ in range(5):
        quick()
    assert made[3:] == [0.0] * 5
