"""Sweeps, several processes and preemption on a real Slurm."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SHALLOW, contents, run_command, smoke
from tests.slurm.conftest import Begin, Slurm, until
from tests.test_run_control import EVERYTHING, PATCHES, assert_same, curves

pytestmark = pytest.mark.slurm
SMALL = ["cpus_per_task=1", "mem_gb=1", "timeout_min=5"]
LAUNCHER = ["-m", "hydra/launcher=submitit_slurm", *(f"hydra.launcher.{word}" for word in SMALL)]


def command(name: str, *words: str) -> list[str]:
    return [sys.executable, "-m", f"pancseg.{name}", *words]


def run(slurm: Slurm, words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env=slurm.environment, capture_output=True, text=True, check=False)


def test_of_a_sweep_of_four_jobs_one_raises_and_the_others_are_done(
    slurm: Slurm, prepared: Path, tmp_path: Path
) -> None:
    words = [word for word in smoke(prepared, tmp_path) if not word.startswith("hydra.run.dir")]
    words += [f"hydra.sweep.dir={tmp_path}", "trainer.max_epochs=1"]
    sizes = "data.batch_size=1,2,0,3"
    ended = run(slurm, command("train", *LAUNCHER, *words, sizes))
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.splitlines()[-1] == "pancseg.train: data.batch_size=0: expected at least 1"
    logs = [path.read_text() for path in (tmp_path / ".submitit").glob("*/*_log.err")]
    assert sum("job 2 failed: data.batch_size=0: expected at least 1" in one for one in logs) == 1
    done = sorted(path.parent.name for path in tmp_path.glob("*/summary.json"))
    assert done == ["0", "1", "3"]
    for name, size in (("0", "1"), ("1", "2"), ("3", "3")):
        settings = (tmp_path / name / ".hydra" / "overrides.yaml").read_text()
        assert f"data.batch_size={size}\n" in settings
    before = [path.stat().st_mtime_ns for path in tmp_path.glob("*/metrics.csv")]
    again = run(slurm, command("train", *LAUNCHER, *words, sizes.replace("0", "4")))
    assert again.returncode == 0, again.stderr  # the job that failed is done, the others are not
    assert [p.stat().st_mtime_ns for p in tmp_path.glob("[013]/metrics.csv")] == before
    assert (tmp_path / "2" / "summary.json").is_file()


def test_trials_of_a_search_run_beside_each_other_and_report_to_one_study(
    slurm: Slurm, prepared: Path, tmp_path: Path
) -> None:
    words = [word for word in smoke(prepared, tmp_path) if not word.startswith("hydra.run.dir")]
    words += [f"hydra.sweep.dir={tmp_path}", "trainer.max_epochs=1", "hydra/sweeper=optuna"]
    words += ["hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2"]
    ended = run(slurm, command("train", *LAUNCHER, *words, "optimizer.lr=interval(1e-3,1e-1)"))
    assert ended.returncode == 0, ended.stderr
    assert "best: " in ended.stdout
    assert len(list(tmp_path.glob("trial_000[01]/summary.json"))) == 2


def test_a_job_of_a_sweep_may_be_two_processes(
    slurm: Slurm, prepared: Path, tmp_path: Path
) -> None:
    words = [word for word in smoke(prepared, tmp_path) if not word.startswith("hydra.run.dir")]
    words += [f"hydra.sweep.dir={tmp_path}", "trainer.max_epochs=2", "hardware=cpu", "seed=0"]
    words += ["hydra.launcher.tasks_per_node=2", "trainer.devices=2", "trainer.strategy=ddp"]
    ended = run(slurm, command("train", *LAUNCHER, *words, "data.batch_size=1"))
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "0" / "summary.json").is_file()


def test_two_tasks_of_srun_train_together_as_one_process_with_the_whole_batch(
    slurm: Slurm, begin: Begin, prepared: Path, tmp_path: Path
) -> None:
    alike = [*PATCHES, "model.norm=instance", "loss=dice_ce", "loss.batch=false", "optimizer=sgd"]
    alike += ["hardware=cpu", "trainer.max_epochs=2", "split.val=3", "split.test=0"]

    def words(name: str, *more: str) -> list[str]:
        usual = [word for word in smoke(prepared, tmp_path / name) if "split." not in word]
        return command("train", *usual, *alike, *more)

    alone = begin(words("one", "data.batch_size=2"))
    together = ["srun", "--nodes=1", "--ntasks-per-node=2"]
    more = ["data.batch_size=1", "trainer.devices=2", "trainer.num_nodes=1", "trainer.strategy=ddp"]
    ended = run(slurm, [*together, *words("two", *more)])
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("train completed") == 1
    assert alone.wait() == 0
    for one, two in zip(curves(tmp_path / "one"), curves(tmp_path / "two"), strict=True):
        numbers = [[float(value) for value in row.values()] for row in (one, two)]
        assert numbers[1] == pytest.approx(numbers[0], rel=1e-4)


def test_a_job_that_was_preempted_thrice_ends_with_the_curve_of_one_that_was_not(
    slurm: Slurm, begin: Begin, prepared: Path, tmp_path: Path
) -> None:
    longer = [*EVERYTHING, "trainer.max_epochs=45"]
    whole = begin(command("train", *smoke(prepared, tmp_path / "whole", *longer)))
    folder, log = tmp_path / "preempted", tmp_path / "job.log"
    options = ["--requeue", "--open-mode=append", "--partition=grace", f"--output={log}"]
    script = "srun " + shlex.join(command("train", *smoke(prepared, folder, *longer)))
    job = slurm.submit(*options, script=script)
    rows = 0

    def trained_on() -> None:
        until(lambda: (folder / "metrics.csv").is_file() and epochs(folder) > rows + 2, "epochs")

    def take_its_place() -> None:
        wants = ["--partition=high", "--cpus-per-task=2", "--output=/dev/null"]
        other = slurm.submit(*wants, script="sleep 0.1")
        until(lambda: not slurm.state(other), "the other job is done")

    trained_on()
    slurm("scancel", "--signal=USR1", job)  # ahead of the time limit
    slurm.start_again(job)
    rows = epochs(folder)
    trained_on()
    take_its_place()  # with time to save before it
    slurm.start_again(job, "Partition=low")
    rows = epochs(folder)
    trained_on()
    take_its_place()  # without
    slurm.start_again(job)
    until(lambda: not slurm.state(job), "the job is done")
    said = log.read_text()
    assert said.count("stopped by SIGUSR1") == 1
    assert said.count("stopped by SIGTERM") == 2
    assert said.count("; Slurm runs it again") == 2  # and once by itself
    assert said.count("started again by Slurm: going on with") == 3
    assert not list(tmp_path.rglob("hpc_ckpt*"))
    assert whole.wait() == 0
    assert_same(folder, tmp_path / "whole")


def epochs(run_folder: Path) -> int:
    return len(curves(run_folder))


def test_shards_of_prepare_and_predict_are_jobs_of_the_launcher(
    slurm: Slurm, dicom: Path, trained: Path, tmp_path: Path
) -> None:
    source = [f"source.images={dicom / 'images'}", f"source.labels={dicom / 'labels'}"]
    source += [*SHALLOW, "privacy=none", "processes=1", f"hydra.sweep.dir={tmp_path / 'jobs'}"]
    root, alone = tmp_path / "root", tmp_path / "alone"
    shards = [f"data.root={root}", "shard=0/2,1/2"]
    ended = run(slurm, command("prepare", *LAUNCHER, *source, *shards))
    assert ended.returncode == 0, ended.stderr
    assert run_command("prepare", *source[:-1], f"data.root={root}") == 0
    assert run_command("prepare", *source[:-1], f"data.root={alone}") == 0
    assert contents(root) == contents(alone)
    scans = tmp_path / "scans"
    scans.mkdir()
    for path in sorted((root / "cases").glob("*_image.nii.gz"))[:4]:
        (scans / path.name).symlink_to(path)
    words = [f"checkpoint={trained / 'checkpoints' / 'best.ckpt'}", f"input={scans}"]
    words.append(f"output={tmp_path / 'masks'}")
    ended = run(slurm, command("predict", *LAUNCHER, *words, source[-1], "shard=0/2,1/2"))
    assert ended.returncode == 0, ended.stderr
    assert run_command("predict", *words) == 0
    table = (tmp_path / "masks" / "predictions.csv").read_text().splitlines()
    assert len(table) == 1 + 4
    assert len(list((tmp_path / "masks").glob("*_pancreas.nii.gz"))) == 4
