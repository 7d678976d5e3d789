"""A clock set back, a folder that may not be written, memory that runs out, workers that die."""

import csv
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import smoke
from tests.storm.ledger import Ledger
from tests.storm.test_full_disk import assert_told
from tests.storm.works import Work
from tests.storm.yard import NOBODY, Weather, Yard, small_disk

DAY_S = 86400
YESTERDAY = Weather({"STORM_CLOCK_S": str(-DAY_S)})
slow = pytest.mark.slow


def some_slow(first: str, *others: str) -> list[object]:
    """The first command for the slow tests, all others for the storm."""
    marked = [pytest.param(name, marks=pytest.mark.storm) for name in others]
    return [pytest.param(first, marks=slow), *marked]


def as_of_tomorrow(folder: Path) -> None:
    """Date every file a day ahead: how they look once the clock was set back by a day."""
    for path in folder.rglob("*"):
        if path.is_file():
            then = path.stat().st_mtime + DAY_S
            os.utime(path, (then, then))


@pytest.mark.parametrize("name", some_slow("train", "prepare", "evaluate", "predict"))
def test_with_the_clock_set_back_half_way_a_command_ends_as_without(
    yard: Yard, works: dict[str, Work], tmp_path: Path, ledger: Ledger, name: str
) -> None:
    yard.needs_shim()
    work, alone, folder = works[name], tmp_path / "alone", tmp_path / "set_back"
    for one in (alone, folder):
        one.mkdir()
        work.lay_out(one)
    ended, seconds = yard.timed(name, *work.words(alone))
    assert ended.code == 0
    started = yard.start(name, *work.words(folder))
    time.sleep(0.6 * seconds)
    started.kill()
    as_of_tomorrow(folder)
    for _ in range(2):  # the second time there is nothing left to do, or the same again
        assert yard.run(name, *work.words(folder), weather=YESTERDAY).code == 0
    assert work.result(folder) == work.result(alone)
    ledger.add(f"clock set back by a day in the middle of `{name}`", {0: 2})


@slow
def test_a_clock_set_back_is_seen_by_commands(yard: Yard, prepared: Path, tmp_path: Path) -> None:
    """Else the tests above would show nothing: the folder of a run is named by the clock."""
    yard.needs_shim()
    words = [word for word in smoke(prepared, tmp_path) if not word.startswith("hydra.run.dir")]
    started = yard.start("train", *words, "trainer.fast_dev_run=true", weather=YESTERDAY)
    assert started.wait().code == 0
    day = time.strftime("%Y-%m-%d", time.localtime(time.time() - DAY_S))
    assert list(started.folder.glob(f"runs/smoke/{day}_*"))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="pancseg-storm-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@slow
@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root may become nobody"
)
@pytest.mark.parametrize("name", ["prepare", "train", "evaluate", "predict", "report"])
def test_a_folder_that_may_not_be_written_is_told_in_one_line(
    yard: Yard, works: dict[str, Work], open_folder: Path, ledger: Ledger, name: str
) -> None:
    """Nobody may write what root has made; input is copied to where nobody may read it."""
    work = works[name]
    work.lay_out(open_folder)
    words = [reachable(word, open_folder) for word in work.words(open_folder)]
    ended = yard.run(name, *words, weather=Weather({}, user=NOBODY))
    assert_told(ended, name)
    told = ended.err.splitlines()[-1]
    assert "Permission denied" in told
    ledger.add(f"read-only folder: `{name}`", {ended.code: 1})


def reachable(word: str, folder: Path) -> str:
    """An argument, with what lies where only its owner may look copied into a folder."""
    name, equals, value = word.partition("=")
    path = Path(value)
    if not equals or not path.is_absolute() or not path.exists() or path.is_relative_to(folder):
        return word
    inner = folder / "input" / name.replace(".", "_")
    inner.parent.mkdir(exist_ok=True)
    shutil.copytree(path, inner) if path.is_dir() else shutil.copy(path, inner)
    return f"{name}={inner}"


@pytest.mark.parametrize("name", some_slow("train", "prepare", "predict"))
def test_a_small_disk_that_fills_up_is_told_and_a_larger_one_goes_on(
    yard: Yard, works: dict[str, Work], tmp_path: Path, ledger: Ledger, name: str
) -> None:
    """A real file system, so that everything counts that the shim does not see."""
    work, alone, disk, larger = works[name], tmp_path / "a", tmp_path / "disk", tmp_path / "larger"
    for folder in (alone, disk, larger):
        folder.mkdir()
    assert yard.run(name, *work.words(alone)).code == 0
    held = sum(path.stat().st_size for path in alone.rglob("*") if path.is_file())
    with small_disk(disk, 0.6 * held / 2**20):
        ended = yard.run(name, *work.words(disk))
        assert_told(ended, name)
        work.whole(disk)
        shutil.copytree(disk, larger, dirs_exist_ok=True)
    assert yard.run(name, *work.words(larger)).code == 0
    assert work.result(larger) == work.result(alone)
    ledger.add(f"small file system filled by `{name}`", {ended.code: 1})


@slow
def test_a_scan_that_takes_more_memory_than_there_is_costs_only_itself(
    yard: Yard, dicom: Path, tmp_path: Path, ledger: Ledger
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    for path in sorted((dicom / "truth").glob("*_image.nii.gz"))[:2]:
        shutil.copy(path, scans / path.name)
    image = np.lib.stride_tricks.as_strided(np.zeros(1, np.int16), (1500, 1500, 600), (0, 0, 0))
    nib.save(nib.Nifti1Image(image, np.diag([0.5, 0.5, 1, 1])), scans / "huge.nii.gz")
    words = ["source=nifti", f"source.images={scans}", "source.labels=null", "privacy=none"]
    words += [f"data.root={tmp_path / 'root'}", "data.depth=32", "data.tail=shift", "processes=2"]
    ended = yard.run("prepare", *words, weather=Weather({}, memory=2500 * 2**20))
    assert_told(ended, "prepare")
    assert ended.code == 1
    table = csv.DictReader((tmp_path / "root" / "intake.csv").read_text().splitlines())
    found = {Path(row["path"]).name: (row["status"], row["reason"]) for row in table}
    status, reason = found.pop("huge.nii.gz")
    assert status == "refused"
    assert "memory ran out" in reason
    assert {status for status, _ in found.values()} == {"kept"}
    ledger.add("memory ran out in a process of `prepare`", {ended.code: 1})


@pytest.mark.storm
def test_a_loading_process_that_dies_ends_a_training_in_one_line_and_it_goes_on(
    yard: Yard, prepared: Path, tmp_path: Path, ledger: Ledger
) -> None:
    words = ["data.num_workers=2", "trainer.max_epochs=300", "ckpt_path=last"]
    started = yard.start("train", *smoke(prepared, tmp_path / "run", *words))
    while not (tmp_path / "run" / "metrics.csv").is_file():
        assert started.is_alive(), started.text("err")
        time.sleep(0.05)
    victim = children_of(started.process.pid or 0)[0]
    os.kill(victim, signal.SIGKILL)
    ended = started.wait()
    assert_told(ended, "train")
    assert "DataLoader worker" in ended.err or "data.num_workers" in ended.err
    done = len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) - 1
    words[1] = f"trainer.max_epochs={done + 1}"
    again = yard.run("train", *smoke(prepared, tmp_path / "run", *words))
    assert again.code == 0, again.err
    ledger.add("a loading process of `train` killed", {ended.code: 1})


def children_of(pid: int) -> list[int]:
    """Processes whose parent is this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found
