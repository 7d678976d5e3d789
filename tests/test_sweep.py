"""Grids: finished jobs are skipped, a failed one does not stop the others; reports of sweeps."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.conftest import Command, run_command, smoke

GRID = "optimizer.weight_decay=0.0,-1.0"  # torch refuses the second
KEYS = ["job", "optimizer.weight_decay", "val/dice", "best epoch", "epochs", "seconds", "status"]


def words(root: Path, *more: str) -> list[str]:
    """Arguments of a sweep whose jobs take a second."""
    given = [word for word in smoke(root, root) if not word.startswith("hydra.run.dir")]
    return ["-m", *given, "trainer.max_epochs=1", *more]


@pytest.fixture(scope="module")
def grid(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid of two jobs, of which one failed."""
    sweep = tmp_path_factory.mktemp("grid") / "sweep"
    assert run_command("train", *words(prepared, GRID, f"hydra.sweep.dir={sweep}")) == 1
    return sweep


@pytest.fixture
def again(grid: Path, tmp_path: Path) -> Path:
    """A copy of the grid."""
    return shutil.copytree(grid, tmp_path / "again")


def test_the_same_grid_again_skips_the_finished_job_and_shows_the_failed_one(
    again: Path, prepared: Path, command: Command
) -> None:
    table = again / "0" / "metrics.csv"
    before = table.stat().st_mtime_ns
    assert not (again / "1" / "summary.json").exists()
    ended = command("train", *words(prepared, GRID, f"hydra.sweep.dir={again}"))
    assert ended.code == 1
    assert f"{again}/0: already done, val/dice" in ended.out
    assert table.stat().st_mtime_ns == before
    lines = ended.err.splitlines()
    assert "job 1 failed: torch.optim.Adam: Invalid weight_decay value: -1.0" in lines
    assert lines[-1] == "pancseg.train: torch.optim.Adam: Invalid weight_decay value: -1.0"


def test_a_folder_of_another_configuration_is_refused_and_left_as_it_is(
    again: Path, prepared: Path, command: Command
) -> None:
    ran = {path: path.read_text() for path in (again / "0" / ".hydra").iterdir()}
    where = f"hydra.sweep.dir={again}"
    ended = command("train", *words(prepared, "optimizer.weight_decay=0.0", where, "seed=7"))
    assert ended.code == 1
    assert "0: holds a job with seed=0, this one has 7; give another hydra.sweep.dir" in ended.err
    assert {path: path.read_text() for path in (again / "0" / ".hydra").iterdir()} == ran
    same = command("train", *words(prepared, GRID, where, "data.num_workers=0"))
    assert "0: already done" in same.out  # this key changes no result


def test_a_job_on_two_devices_is_refused_without_slurm(prepared: Path, command: Command) -> None:
    more = ["hardware=cpu", "hardware.devices=2", "trainer.strategy=ddp", "seed=0"]
    ended = command("train", *words(prepared, *more))
    assert ended.code == 1
    assert "with several devices needs hydra/launcher=submitit_slurm" in ended.err


def test_the_report_of_a_grid_is_a_table_and_a_page(again: Path, command: Command) -> None:
    ended = command("report", f"sweep={again}")
    assert ended.code == 0
    assert "2 jobs: 1 done, 1 unfinished; best 0, val/dice" in ended.out
    found = json.loads((again / "sweep.json").read_text())
    good, bad = found["jobs"]
    assert list(good) == KEYS
    score = json.loads((again / "0" / "summary.json").read_text())["best_dice"]
    assert (good["status"], good["optimizer.weight_decay"], good["val/dice"]) == ("done", 0, score)
    assert (bad["status"], bad["optimizer.weight_decay"], bad["val/dice"]) == (
        "unfinished",
        -1,
        None,
    )
    page = (again / "sweep.html").read_text()
    assert "held out" in page and "PHANTOMS" in page


def jobs(sweep: Path, *each: list[str], dice: float = 0.5, name: str = "{}") -> Path:
    """A sweep as a stranger may write it: overrides of its jobs, the last of which is the best."""
    for n, overrides in enumerate(each):
        folder = sweep / name.format(n)
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
        summary = {"ended": "trained", "best_dice": dice + n / 100, "best_epoch": 1}
        (folder / "summary.json").write_text(json.dumps(summary))
    return sweep


def test_a_table_of_hostile_jobs_is_plain_text_and_links_are_not_followed(
    tmp_path: Path, command: Command
) -> None:
    each = [[f"optimizer.lr={10**-n}", f"name='$^$ {n % 2}'"] for n in range(1, 5)]
    sweep = jobs(tmp_path / "sweep", *each, name="{} [x] $^$ \x1b[31m")
    secret = jobs(tmp_path / "other", ["name=secret"], dice=0.9)
    (sweep / "9").symlink_to(secret / "0")
    ended = command("report", f"sweep={sweep}")
    assert ended.code == 0 and "\x1b[31m" not in ended.out
    shutil.rmtree(tmp_path / "other")
    assert "no folder in it holds a job" in command("report", f"sweep={tmp_path}").err
    found = json.loads((sweep / "sweep.json").read_text())
    assert len(found["jobs"]) == 4 and found["best"].startswith("3 [x] $^$")
    assert "secret" not in (sweep / "sweep.html").read_text()
