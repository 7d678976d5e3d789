"""Kill: a preparation that was killed at any moment and run again leaves what one run leaves."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest

from tests.conftest import contents, run_command

KILLS, A_ROOT = 30, 2  # kills in all, and of one root before it may finish
PATIENTS = 16


def words(dicom: Path, root: Path, key: Path) -> list[str]:
    source = [f"source.images={dicom / 'images'}", f"source.labels={dicom / 'labels'}"]
    cut = ["data.depth=4", "data.tail=shift", "processes=2", f"privacy.key_file={key}"]
    return [*source, f"data.root={root}", *cut]


def start(
    arguments: list[str], out: int | IO[bytes] = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pancseg.prepare", *arguments]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=out, stderr=quiet, start_new_session=True)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("series")
    small = ["shape=[96,96,64]", "spacing_mm=[4,4,4]", f"patients={PATIENTS}", "seed=5"]
    assert run_command("phantom", f"out={out}", *small) == 0
    one = next((out / "images" / "phantom-5-003").iterdir())
    one.unlink()  # a case that is refused, for refusals have to survive as well
    return out


@pytest.fixture(scope="module")
def undisturbed(series: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one worker leaves that nobody kills."""
    root = tmp_path_factory.mktemp("undisturbed") / "root"
    assert start(words(series, root, series / "site.key")).wait() == 1
    return contents(root)


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again_it_leaves_what_one_run_leaves(
    series: Path, tmp_path: Path
) -> None:
    key = tmp_path / "site.key"
    begun = time.monotonic()
    assert start(words(series, tmp_path / "alone", key)).wait() == 1  # one case is refused
    seconds = time.monotonic() - begun
    expected = contents(tmp_path / "alone")
    assert len([name for name in expected if name.startswith("cases/")]) == 2 * (PATIENTS - 1)
    chance = random.Random(0)
    moments, reached = [], []
    for attempt in range(KILLS // A_ROOT):
        root = tmp_path / f"root{attempt}"
        for _ in range(A_ROOT):
            process = start(words(series, root, key))
            moments.append(chance.uniform(0.5, 1.0) * seconds)
            time.sleep(moments[-1])
            process.kill() if chance.random() < 0.5 else os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            reached.append(len(list((root / "cases").glob("*_image.nii.gz"))))
        assert start(words(series, root, key)).wait() == 1
        assert contents(root) == expected
    print(f"{KILLS} kills after {min(moments):.1f} to {max(moments):.1f} of {seconds:.1f} s; cases")
    print(f"written by then: {reached}")
    assert len({*reached} - {0, PATIENTS - 1}) > 2  # most kills met it in the middle of its work


@pytest.mark.slow
def test_of_four_shards_two_are_killed_and_run_again_and_the_merge_leaves_what_one_run_leaves(
    series: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    arguments = words(series, root, series / "site.key")
    shards = [start([*arguments, f"shard={n}/4"]) for n in range(4)]
    wait_for_records(root, 2)
    for shard in shards[:2]:
        os.killpg(shard.pid, signal.SIGKILL)
        shard.wait()
    again = [start([*arguments, f"shard={n}/4"]) for n in range(2)]
    codes = [shard.wait() for shard in (*again, *shards[2:])]
    assert sorted(codes) == [0, 0, 0, 1]  # a case is refused
    assert start(arguments).wait() == 1
    assert contents(root) == undisturbed


def wait_for_records(root: Path, n: int) -> None:
    """Wait until so many cases are recorded, which is in the middle of the work."""
    until = time.monotonic() + 120
    while len(list((root / ".records").glob("*.json"))) < n:
        assert time.monotonic() < until
        time.sleep(0.05)
