"""Kill -9 at random moments: what was reported as done is there, and the rest is done again."""

import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.storm.ledger import Ledger
from tests.storm.works import Work
from tests.storm.yard import Yard

A_FOLDER = 4  # kills that a folder suffers before it may come to its end
KILLS = {"prepare": 50, "train": 50, "evaluate": 40, "predict": 40, "sweep": 30}


def forms() -> list[object]:
    short = [pytest.param(n, 2, marks=pytest.mark.slow, id=f"{n}-short") for n in KILLS]
    long = [pytest.param(n, k, marks=pytest.mark.storm, id=f"{n}-long") for n, k in KILLS.items()]
    return [*short, *long]


@pytest.mark.parametrize(("name", "kills"), forms())
def test_killed_at_any_moment_and_run_again_it_leaves_what_one_run_leaves(
    yard: Yard, works: dict[str, Work], tmp_path: Path, ledger: Ledger, name: str, kills: int
) -> None:
    work, alone, chance = works[name], tmp_path / "alone", random.Random(name)
    command = "train" if name == "sweep" else name
    alone.mkdir()
    work.lay_out(alone)
    ended, seconds = yard.timed(command, *work.words(alone))
    assert ended.code == 0, ended.err
    expected = work.result(alone)
    folder, done, suffered, folders, moments = tmp_path / "killed0", 0, 0, 0, []
    while done < kills:
        if not folder.exists():
            folder.mkdir()
            work.lay_out(folder)
        started = yard.start(command, *work.words(folder))
        moments.append(chance.uniform(0.02, 1.0) * seconds)
        time.sleep(moments[-1])
        if killed := started.kill():  # else it was done before its time, and has no more to do
            done, suffered = done + 1, suffered + 1
        work.whole(folder)
        if not killed or suffered == A_FOLDER or done == kills:
            again = yard.run(command, *work.words(folder))
            assert again.code == 0, again.err
            assert work.result(folder) == expected
            shutil.rmtree(folder)
            folders, suffered = folders + 1, 0
            folder = tmp_path / f"killed{folders}"
            print(f"{name}: {done} of {kills} kills, nothing lost", flush=True)
    told = f"{min(moments):.1f} to {max(moments):.1f} of {seconds:.1f} s"
    ledger.add(f"kill -9 of `{name}`", {-signal.SIGKILL: done}, f", after {told}")
