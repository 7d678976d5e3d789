"""Sweeps: what was done stays done, what failed is written down, and the rest goes on."""

import json
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from tests.conftest import Command, run_command, smoke


def words(root: Path, *more: str) -> list[str]:
    """Arguments of a sweep whose jobs take a second."""
    given = [word for word in smoke(root, root) if not word.startswith("hydra.run.dir")]
    return ["-m", *given, "trainer.max_epochs=1", *more]


GRID = "optimizer.weight_decay=0.0,-1.0"  # torch refuses the second


@pytest.fixture(scope="module")
def grid(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid of two jobs, of which one failed."""
    sweep = tmp_path_factory.mktemp("grid") / "sweep"
    assert run_command("train", *words(prepared, GRID, f"hydra.sweep.dir={sweep}")) == 1
    return sweep


def copied(sweep: Path, to: Path) -> str:
    shutil.copytree(sweep, to)
    return f"hydra.sweep.dir={to}"


def test_a_failed_job_is_written_down_and_the_other_is_done(grid: Path) -> None:
    assert json.loads((grid / "0" / "summary.json").read_text())["ended"] == "trained"
    assert not (grid / "0" / "failed.json").exists()
    failure = json.loads((grid / "1" / "failed.json").read_text())
    assert "Invalid weight_decay value: -1.0" in failure["error"]
    assert set(failure) == {"error", "when"}
    assert not (grid / "1" / "summary.json").exists()


def test_the_same_sweep_again_does_only_what_is_missing(
    grid: Path, prepared: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = copied(grid, tmp_path / "again")
    before = (tmp_path / "again" / "0" / "metrics.csv").stat().st_mtime_ns
    failed = (tmp_path / "again" / "1" / "failed.json").stat().st_mtime_ns
    ended = command("train", *words(prepared, GRID, where))
    assert ended.code == 1
    assert "0: already done, val/dice" in ended.out
    assert (tmp_path / "again" / "0" / "metrics.csv").stat().st_mtime_ns == before
    assert (tmp_path / "again" / "1" / "failed.json").stat().st_mtime_ns > failed

    import torch

    adam = torch.optim.Adam.__init__
    monkeypatch.setattr(  # what was refused is mended
        torch.optim.Adam, "__init__",
        lambda self, *a, weight_decay, **k: adam(self, *a, weight_decay=abs(weight_decay), **k),
    )  # fmt: skip
    assert command("train", *words(prepared, GRID, where)).code == 0
    assert not (tmp_path / "again" / "1" / "failed.json").exists()
    assert (tmp_path / "again" / "1" / "summary.json").is_file()


def test_a_job_that_was_stopped_goes_on_where_it_was(
    grid: Path, prepared: Path, tmp_path: Path, command: Command
) -> None:
    where = copied(grid, tmp_path / "stopped")
    job = tmp_path / "stopped" / "0"
    told = json.loads((job / "summary.json").read_text())
    (job / "summary.json").unlink()
    row = (job / "metrics.csv").read_text()
    ended = command("train", *words(prepared, GRID, where))
    assert f"{job}: goes on" in ended.out
    assert (job / "metrics.csv").read_text() == row  # the epoch was not trained again
    assert json.loads((job / "summary.json").read_text())["best_dice"] == told["best_dice"]


def test_a_folder_of_another_configuration_is_refused(
    grid: Path, prepared: Path, tmp_path: Path, command: Command
) -> None:
    where = copied(grid, tmp_path / "other")
    before = (tmp_path / "other" / "0" / "summary.json").read_text()
    ran = {p.name: p.read_text() for p in (tmp_path / "other" / "0" / ".hydra").iterdir()}
    ended = command("train", *words(prepared, GRID, where, "seed=7"))
    told = {p.name: p.read_text() for p in (tmp_path / "other" / "0" / ".hydra").iterdir()}
    assert told == ran  # what ran, not what was refused
    assert ended.code == 1
    assert "0: holds a job with seed=0, this one has 7; give another hydra.sweep.dir" in ended.err
    assert (tmp_path / "other" / "0" / "summary.json").read_text() == before
    same = command("train", *words(prepared, GRID, where, "data.num_workers=0", "save_every_s=9"))
    assert "0: already done" in same.out  # these change no result


def test_a_job_that_another_process_is_at_is_left_to_it(
    grid: Path, prepared: Path, tmp_path: Path, command: Command
) -> None:
    where = copied(grid, tmp_path / "taken")
    job = tmp_path / "taken" / "0"
    (job / "summary.json").unlink()
    with FileLock(job / "job.lock"):
        ended = command("train", *words(prepared, "optimizer.weight_decay=0.0", where))
        assert f"{job}: another process is at it" in ended.out
    assert not (job / "summary.json").exists()


def test_without_a_folder_the_same_command_finds_its_own_and_jobs_share_data_and_cache(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "data").mkdir()
    shutil.copytree(prepared, tmp_path / "data" / "root", ignore=shutil.ignore_patterns("cache"))
    given = [
        "data.root=data/root" if word.startswith("data.root=") else word
        for word in words(prepared, "seed=0,1")
    ]
    assert command("train", *given).code == 0
    (sweep,) = Path("runs/smoke").iterdir()
    made = {p: p.stat().st_mtime_ns for p in Path("data/root/cache").rglob("*") if p.is_file()}
    assert made
    assert not list(sweep.rglob("cache"))
    again = command("train", *given, "data.num_workers=0")
    assert again.out.count("already done") == 2
    assert list(Path("runs/smoke").iterdir()) == [sweep]
    for path, when in made.items():
        assert path.stat().st_mtime_ns == when, path
    assert command("train", *words(prepared, "seed=0,2", "preview=true")).code == 0
    assert len(list(Path("runs/smoke").iterdir())) == 2


def test_a_failure_names_no_path_of_input_files(tmp_path: Path, command: Command) -> None:
    place = tmp_path / "Miller Hans"
    source = ["source=nifti", f"source.images='{place}'", f"source.labels='{tmp_path}'"]
    given = words(tmp_path / "none", "seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    ended = command("train", *given, *source)
    assert ended.code == 1
    assert "Miller" in ended.err  # the console may say it
    told = (tmp_path / "sweep" / "0" / "failed.json").read_text()
    assert "<source.images>" in told
    assert "Miller" not in told
    assert "Miller" not in (tmp_path / "sweep" / "0" / "train.log").read_text()


def test_the_report_of_a_grid_shows_what_failed_and_why(
    grid: Path, tmp_path: Path, command: Command
) -> None:
    copied(grid, tmp_path / "told")
    ended = command("report", f"sweep={tmp_path / 'told'}")
    assert ended.code == 0
    assert "2 jobs: 1 done, 1 failed; best 0, val/dice" in ended.out
    assert "\n1 failed: torch.optim.Adam: Invalid weight_decay value: -1.0\n" in ended.out
    found = json.loads((tmp_path / "told" / "sweep.json").read_text())
    good, bad = found["jobs"]
    assert (good["status"], good["optimizer.weight_decay"], good["error"]) == ("done", 0.0, "")
    assert good["val/dice"] == json.loads((grid / "0" / "summary.json").read_text())["best_dice"]
    assert (bad["status"], bad["optimizer.weight_decay"], bad["val/dice"]) == ("failed", -1.0, None)
    assert "Invalid weight_decay" in bad["error"]
    page = (tmp_path / "told" / "sweep.html").read_text()
    table, below = page.split('id="failed"')
    assert "Invalid weight_decay" not in table  # too long for a table that fits the window
    assert '<th scope="row">1</th><td>torch.optim.Adam: Invalid weight_decay value: -1.0' in below
    assert "it is not held out" in page
    assert "PHANTOMS" in page


def test_a_folder_that_holds_no_jobs_is_no_sweep(tmp_path: Path, command: Command) -> None:
    ended = command("report", f"sweep={tmp_path}")
    assert ended.code == 2
    assert "is no folder of a sweep" in ended.err
    assert command("report", "run=a", "sweep=b").code == 2
