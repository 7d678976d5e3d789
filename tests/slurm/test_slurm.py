"""Sweeps, several processes and preemption on a real Slurm."""

import shlex
import subprocess
import sys

import pytest

from tests.conftest import smoke
from tests.slurm.conftest import until
from tests.test_resume import EVERYTHING, assert_same, epochs_of
from tests.test_train import without

pytestmark = pytest.mark.slurm
SMALL = ["cpus_per_task=1", "mem_gb=1", "timeout_min=5"]
LAUNCHER = ["-m", "hydra/launcher=submitit_slurm", *(f"hydra.launcher.{word}" for word in SMALL)]


def command(name, *words):
    return [sys.executable, "-m", f"pancseg.{name}", *words]


def run(slurm, words):
    return subprocess.run(words, env=slurm.environment, capture_output=True, text=True, check=False)


def sweep_of(prepared, sweep, *words):
    usual = without("hydra.run.dir", smoke(prepared, sweep))
    return command("train", *LAUNCHER, *usual, f"hydra.sweep.dir={sweep}", *words)


def test_of_a_sweep_of_four_jobs_one_raises_and_the_others_are_done(slurm, prepared, tmp_path):
    sizes = "data.batch_size=1,2,0,3"
    ended = run(slurm, sweep_of(prepared, tmp_path, "trainer.max_epochs=1", sizes))
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.splitlines()[-1] == "pancseg.train: data.batch_size=0: expected at least 1"
    assert sorted(path.parent.name for path in tmp_path.glob("*/summary.json")) == ["0", "1", "3"]
    before = [path.stat().st_mtime_ns for path in tmp_path.glob("*/metrics.csv")]
    again = sweep_of(prepared, tmp_path, "trainer.max_epochs=1", sizes.replace("0", "4"))
    assert run(slurm, again).returncode == 0  # the job that failed is done, the others are not
    assert [p.stat().st_mtime_ns for p in tmp_path.glob("[013]/metrics.csv")] == before
    assert (tmp_path / "2" / "summary.json").is_file()


def test_trials_run_beside_each_other_and_a_job_may_be_two_processes(slurm, prepared, tmp_path):
    search = ["trainer.max_epochs=1", "hydra/sweeper=optuna", "optimizer.lr=interval(1e-3,1e-1)"]
    search += ["hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2"]
    ended = run(slurm, sweep_of(prepared, tmp_path, *search))
    assert ended.returncode == 0 and "best: " in ended.stdout, ended.stderr
    assert len(list(tmp_path.glob("trial_000[01]/summary.json"))) == 2
    two = ["hydra.launcher.tasks_per_node=2", "trainer.devices=2", "trainer.strategy=ddp"]
    two += ["hardware=cpu", "seed=0", "data.batch_size=1"]
    ended = run(slurm, sweep_of(prepared, tmp_path / "two", *two))
    assert ended.returncode == 0 and (tmp_path / "two/0/summary.json").is_file(), ended.stderr


def test_a_job_that_was_preempted_thrice_ends_with_the_curve_of_one_that_was_not(
    slurm, prepared, tmp_path
):
    longer, whole = [*EVERYTHING, "trainer.max_epochs=45"], tmp_path / "whole"
    folder, log = tmp_path / "preempted", tmp_path / "job.log"
    options = ["--requeue", "--open-mode=append", "--partition=grace", f"--output={log}"]
    script = "srun " + shlex.join(command("train", *smoke(prepared, folder, *longer)))
    job = slurm.submit(*options, script=script)

    def preempt():
        wants = ["--partition=high", "--cpus-per-task=2", "--output=/dev/null"]
        other = slurm.submit(*wants, script="sleep 0.1")
        until(lambda: not slurm.state(other), "the other job is done")

    for stop, changes in (
        (lambda: slurm("scancel", "--signal=USR1", job), []),  # ahead of the time limit
        (preempt, ["Partition=low"]),  # with time to save before it
        (preempt, []),  # without
    ):
        rows = epochs_of(folder)
        until(lambda rows=rows: epochs_of(folder) > rows + 2, "epochs")
        stop()
        slurm.start_again(job, *changes)
    until(lambda: not slurm.state(job), "the job is done")
    text = log.read_text()
    assert (text.count("stopped by SIGUSR1"), text.count("stopped by SIGTERM")) == (1, 2)
    assert text.count("; Slurm runs it again") == 2  # and once by itself
    assert text.count("started again by Slurm: going on with") == 3
    assert not list(tmp_path.rglob("hpc_ckpt*"))
    assert run(slurm, command("train", *smoke(prepared, whole, *longer))).returncode == 0
    assert_same(folder, whole)
