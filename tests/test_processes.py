"""Processes: every item has a result, whatever becomes of the process that works on it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pancseg.processes import cores, in_processes

SLOW = """
import sys, time
from pathlib import Path
from pancseg.processes import in_processes

def work(n):
    Path(sys.argv[1], f"begun{n}").touch()
    time.sleep(1.5)
    Path(sys.argv[1], f"done{n}").touch()

if __name__ == "__main__":
    list(in_processes(work, range(2), 2, work))
"""


def double_or_crash(number: int) -> int:
    if number < 0:
        os.abort()
    return 2 * number


def minus(number: int) -> int:
    return number


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_every_item_has_its_result(processes: int) -> None:
    results = list(in_processes(double_or_crash, range(9), processes, minus))
    assert sorted(results) == list(range(0, 18, 2))


def test_without_processes_the_work_is_done_in_order_in_this_one() -> None:
    assert list(in_processes(lambda n: os.getpid() + n, [1, 2], 0, minus)) == [
        os.getpid() + 1,
        os.getpid() + 2,
    ]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_items_that_end_their_process_cost_only_themselves() -> None:
    items = [0, -1, 3, 4, -2, 5]
    results = list(in_processes(double_or_crash, items, 2, minus))
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
