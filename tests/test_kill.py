"""Kill: a preparation that was killed at any moment and run again leaves what one run leaves."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import contents, run_command

PATIENTS = 8


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    out = tmp_path_factory.mktemp("series")
    small = ["shape=[96,96,64]", "spacing_mm=[4,4,4]", f"patients={PATIENTS}", "seed=5"]
    assert run_command("phantom", f"out={out}", *small) == 0
    next((out / "images" / "phantom-5-003").iterdir()).unlink()  # refusals have to survive as well
    return out


@contextmanager
def started(series: Path, root: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """A preparation, which ends with its children where the body is left."""
    paths = [f"source.{role}={series / role}" for role in ("images", "labels")]
    cut = ["data.depth=4", "data.tail=shift", f"privacy.key_file={series / 'site.key'}"]
    words = [*paths, f"data.root={root}", *cut, "processes=2", *more]
    command = [sys.executable, "-m", "pancseg.prepare", *words]
    null = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=null, stderr=null, start_new_session=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def run(series: Path, root: Path, *more: str) -> int:
    with started(series, root, *more) as process:
        return process.wait()


def wait_for(root: Path, pattern: str, count: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until so many files are there, or the process has ended."""
    while len(list(root.glob(pattern))) < count and process.poll() is None:
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(series, tmp_path_factory):
    """What a preparation leaves that nobody kills."""
    root = tmp_path_factory.mktemp("undisturbed") / "root"
    assert run(series, root) == 1  # one case is refused
    expected = contents(root)
    assert len([name for name in expected if name.startswith("cases/")]) == 2 * (PATIENTS - 1)
    return expected


@pytest.mark.slow
@pytest.mark.parametrize("is_group", [True, False])
def test_a_killed_preparation_goes_on(series, undisturbed, tmp_path, is_group):
    root = tmp_path / "root"
    for pattern, count in (("manifest.json", 1), *(("cases/*_image*", n) for n in (1, 3, 5, 7))):
        with started(series, root) as process:
            wait_for(root, pattern, count, process)
            os.killpg(process.pid, signal.SIGKILL) if is_group else process.kill()
            assert process.wait() == -signal.SIGKILL  # in the middle of its work
    assert run(series, root) == 1
    assert contents(root) == undisturbed


@pytest.mark.slow
def test_killed_shards_go_on(series, undisturbed, tmp_path):
    root, shards = tmp_path / "root", ("shard=0/2", "shard=1/2")
    with started(series, root, shards[0]) as first, started(series, root, shards[1]) as second:
        wait_for(root, "cases/*_image*", 2, first)
    assert -signal.SIGKILL in (first.returncode, second.returncode)
    assert sorted(run(series, root, shard) for shard in shards) == [0, 1]  # a case is refused
    assert run(series, root) == 1
    assert contents(root) == undisturbed
