"""Searches: trials are shared, none is done twice, killed ones go on, hopeless ones stop."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hydra
import optuna
import pytest
from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from pancseg.configuration import conf_folder, register_resolvers
from pancseg.errors import PancsegError
from pancseg.failure import write_failure
from pancseg.sweeping.importance import importances
from pancseg.sweeping.search import Search, Trial
from pancseg.sweeping.search_space import as_overrides, parse
from pancseg.sweeping.sweep_jobs import Job
from tests.conftest import Command, run_command
from tests.test_sweep import words

SEARCHED = ["optimizer.lr=tag(log,interval(1e-3,1e-1))", "loss=dice,nosuch"]
OPTUNA = ["hydra/sweeper=optuna", "hydra.sweeper.sampler.startup_trials=2"]


def search(folder: Path, n_trials: int = 3, **more: Any) -> Search:
    """A search of one number, as one worker has it."""
    return Search(
        folder=folder, storage=f"sqlite:///{folder / 'study.db'}", name="a", n_trials=n_trials,
        seed=0, startup_trials=2, pruner=None, space={"x": FloatDistribution(0.0, 1.0)},
        words={"searched": ["x"], **more},
    )  # fmt: skip


def ended(worker: Search, trial: Trial, dice: float, **more: Any) -> None:
    """Let a trial end as its job would."""
    place = worker.place(trial.folder) / "summary.json"
    place.write_text(json.dumps({"best_dice": dice, **more}))
    worker.tell(trial)


def states(folder: Path) -> list[str]:
    """State of each trial of the study, by its folder and number."""
    study = optuna.load_study(study_name="a", storage=f"sqlite:///{folder / 'study.db'}")
    told = [f"{t.user_attrs.get('folder')} {t.state.name}" for t in study.trials]
    study._storage._backend.engine.dispose()
    return told


def test_ranges_and_choices_are_said_in_hydras_words() -> None:
    found, fixed = parse(
        ["a=int(interval(1,10))", "b=tag(log,interval(1e-4,1e-1))", "c=range(2,9,2)",
         "d=choice(x,3,0.5)",
         "e=1,2", "f=7", "g=1,2", "g=3", "h=4", "h=range(0,1,0.5)", "data.root='/a b/c'"],
        OverridesParser.create(),
    )  # fmt: skip
    assert found == {
        "a": IntDistribution(1, 10),
        "b": FloatDistribution(1e-4, 1e-1, log=True),
        "c": IntDistribution(2, 8, step=2),
        "d": CategoricalDistribution(["x", 3, 0.5]),
        "e": CategoricalDistribution([1, 2]),
        "h": CategoricalDistribution([0.0, 0.5]),
    }  # fmt: skip
    assert fixed == ["f=7", "g=3", "data.root='/a b/c'"]
    assert as_overrides({"a": 3, "b": 1e-05, "d": "x"}) == ["a=3", "b=1e-05", "d=x"]
    with pytest.raises(PancsegError, match="nothing is searched"):
        parse(["a=1"], OverridesParser.create())
    with pytest.raises(PancsegError, match=r"b=interval\(2,1\): cannot be searched"):
        parse(["b=interval(2,1)"], OverridesParser.create())


def test_two_workers_never_have_the_same_trial_and_stop_together(tmp_path: Path) -> None:
    one, other = search(tmp_path), search(tmp_path)
    one.begin(), other.begin()
    first, second, third = one.ask(), other.ask(), one.ask()
    assert first and second and third
    assert [t.folder for t in (first, second, third)] == ["trial_0000", "trial_0001", "trial_0002"]
    assert len({t.params["x"] for t in (first, second, third)}) == 3
    assert one.ask() is None and other.ask() is None
    for trial, dice in ((first, 0.3), (second, 0.5), (third, 0.4)):
        ended(one, trial, dice)
    assert one.best() == ("trial_0001", 0.5)
    assert search(tmp_path, n_trials=4).ask() is not None  # more were asked for


def test_a_trial_is_a_function_of_those_before_it(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        worker = search(tmp_path / name)
        for _ in range(3):
            trial = worker.ask()
            assert trial
            found.append(trial.params["x"])
            ended(worker, trial, trial.params["x"])
    assert found[:3] == found[3:]


def test_a_trial_whose_worker_was_killed_goes_on_in_its_folder(tmp_path: Path) -> None:
    dead, alive = search(tmp_path), search(tmp_path)
    first, second = dead.ask(), alive.ask()
    assert first and second
    first.lock.release()  # as the system does where a process ends
    again = alive.ask()
    assert again
    assert (again.folder, again.params) == (first.folder, first.params)
    assert again.number != first.number
    third = alive.ask()
    assert third and third.folder == "trial_0002"
    assert alive.ask() is None  # the killed one counts once
    ended(alive, again, 0.5)
    assert states(tmp_path) == [
        "trial_0000 FAIL", "trial_0001 RUNNING", "trial_0000 COMPLETE", "trial_0002 RUNNING",
    ]  # fmt: skip
    assert alive.failed() == []


def test_how_a_trial_ended_is_told_to_the_study(tmp_path: Path) -> None:
    worker = search(tmp_path)
    pruned, failed, lost = worker.ask(), worker.ask(), worker.ask()
    assert pruned and failed and lost
    ended(worker, pruned, 0.2, ended="pruned")
    (worker.place(failed.folder) / "failed.json").write_text('{"error": "no such thing"}')
    worker.tell(failed)
    worker.tell(lost)
    assert states(tmp_path) == ["trial_0000 PRUNED", "trial_0001 FAIL", "trial_0002 FAIL"]
    assert worker.failed() == ["trial_0001", "trial_0002"]
    assert worker.best() is None


def test_a_trial_that_another_process_is_at_is_told_of_when_it_is_done(tmp_path: Path) -> None:
    worker = search(tmp_path)
    trial = worker.ask()
    assert trial
    with FileLock(worker.place(trial.folder) / "job.lock"):
        worker.tell(trial)  # its job found it taken
        assert worker.ask().folder == "trial_0001"  # type: ignore[union-attr]
    assert states(tmp_path)[0] == "trial_0000 RUNNING"
    again = search(tmp_path).ask()
    assert again and again.folder == "trial_0000"
    ended(worker, again, 0.5)
    assert "trial_0000 COMPLETE" in states(tmp_path)
    assert worker.failed() == []


def test_a_trial_that_was_refused_takes_no_score_of_what_lies_in_its_folder(
    tmp_path: Path,
) -> None:
    worker = search(tmp_path)
    trial = worker.ask()
    assert trial
    (worker.place(trial.folder) / "summary.json").write_text('{"best_dice": 0.9}')
    worker.tell(trial, "holds a job with seed=0, this one has 7")
    assert worker.best() is None
    assert worker.failed() == ["trial_0000"]


def test_a_new_study_in_the_folder_of_another_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trial_0000").mkdir()
    (tmp_path / "trial_0000" / "job.json").write_text("{}")
    with pytest.raises(PancsegError, match="holds the trials of another study than a; give"):
        search(tmp_path).begin()


def test_a_launcher_that_cannot_start_costs_no_trial(
    prepared: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))  # no sbatch there
    given = words(prepared, SEARCHED[0], *OPTUNA, f"hydra.sweep.dir={tmp_path / 'sweep'}")
    ended = command("train", *given, "hydra.sweeper.n_trials=3", "hydra/launcher=slurm")
    assert ended.code == 2, ended.err
    assert "hydra/launcher=slurm: Could not detect " in ended.err
    study = optuna.load_study(
        study_name="smoke", storage=f"sqlite:///{tmp_path / 'sweep' / 'study.db'}"
    )
    assert [one.state.name for one in study.trials] == ["RUNNING"]
    study._storage._backend.engine.dispose()


def test_a_study_of_another_search_is_refused(tmp_path: Path) -> None:
    search(tmp_path, fixed=["seed=0"]).begin()
    search(tmp_path, fixed=["seed=0"]).begin()
    with pytest.raises(
        PancsegError, match="was begun with seed=0, and is asked to go on with seed=1"
    ):
        search(tmp_path, fixed=["seed=1"]).begin()


def test_a_trial_that_cannot_be_composed_names_no_path_of_input_files(tmp_path: Path) -> None:
    given = ["loss=nosuch", "source.images='/scans/Miller Hans'", "trial={study: a}"]
    write_failure(tmp_path, ValueError("/scans/Miller Hans/1.dcm: no such file"), words=given)
    told = json.loads((tmp_path / "failed.json").read_text())
    assert "<source.images>: no such file" in told["error"]
    assert told["overrides"] == ["loss=nosuch"]
    assert "Miller" not in str(told)


@pytest.fixture(scope="module")
def searched(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of four trials of an epoch, of which at least one asks for a loss that is not."""
    sweep = tmp_path_factory.mktemp("search") / "sweep"
    given = words(prepared, *SEARCHED, *OPTUNA, f"hydra.sweep.dir={sweep}")
    assert run_command("train", *given, "hydra.sweeper.n_trials=4", "hydra.sweeper.seed=1") == 1
    return sweep


def test_a_search_goes_on_after_a_failed_trial_and_says_which(searched: Path) -> None:
    study = optuna.load_study(study_name="smoke", storage=f"sqlite:///{searched / 'study.db'}")
    trials = study.trials
    study._storage._backend.engine.dispose()
    assert len(trials) == 4
    for trial in trials:
        folder = searched / trial.user_attrs["folder"]
        if trial.params["loss"] == "nosuch":
            assert trial.state.name == "FAIL"
            assert "loss=nosuch: no such choice" in trial.user_attrs["error"]
            assert (
                json.loads((folder / "failed.json").read_text())["error"]
                == (trial.user_attrs["error"])
            )
            continue
        summary = json.loads((folder / "summary.json").read_text())
        assert (trial.state.name, trial.value) == ("COMPLETE", summary["best_dice"])
        assert trial.intermediate_values == {1: summary["best_dice"]}
        ran = OmegaConf.load(folder / ".hydra" / "config.yaml")
        assert ran.optimizer.lr == trial.params["optimizer.lr"]
    assert {t.state.name for t in trials} == {"COMPLETE", "FAIL"}


def test_a_search_that_is_done_does_nothing_more(
    searched: Path, prepared: Path, tmp_path: Path, command: Command
) -> None:
    shutil.copytree(searched, tmp_path / "done")
    before = sorted(p.name for p in (tmp_path / "done").iterdir())
    given = words(prepared, *SEARCHED, *OPTUNA, f"hydra.sweep.dir={tmp_path / 'done'}")
    again = command("train", *given, "hydra.sweeper.n_trials=4", "hydra.sweeper.seed=1")
    assert again.code == 1
    assert "trials failed" in again.err
    assert "epoch" not in again.out
    assert sorted(p.name for p in (tmp_path / "done").iterdir()) == before


def test_the_best_of_a_sweep_is_an_experiment_that_trains_the_same(
    searched: Path, prepared: Path, tmp_path: Path, command: Command
) -> None:
    shutil.copytree(searched, tmp_path / "told")
    told = command("report", f"sweep={tmp_path / 'told'}")
    assert told.code == 0
    found = json.loads((tmp_path / "told" / "sweep.json").read_text())
    best = max((one for one in found["jobs"] if one["val/dice"]), key=lambda one: one["val/dice"])
    assert found["best"] == best["job"]
    own = tmp_path / "own"
    (own / "experiment").mkdir(parents=True)
    shutil.copy(tmp_path / "told" / "best_experiment.yaml", own / "experiment")
    register_resolvers()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = hydra.compose(
            "train",
            ["experiment=best_experiment", f"hydra.searchpath=[file://{own}]"],
        )
    ran = OmegaConf.load(tmp_path / "told" / best["job"] / ".hydra" / "config.yaml")
    elsewhere = {"data", "trial"}  # where the data lie is given again
    assert {k: v for k, v in cfg.items_ex(resolve=False) if k not in elsewhere} == {
        k: v for k, v in ran.items_ex(resolve=False) if k not in elsewhere
    }
    run = tmp_path / "run"
    given = [f"data.root={prepared}", f"hydra.run.dir={run}", "experiment=best_experiment"]
    assert command("train", "--config-dir", str(own), *given).code == 0
    assert json.loads((run / "summary.json").read_text())["best_dice"] == best["val/dice"]


def test_the_best_of_a_sweep_with_choices_of_ones_own_is_an_experiment_too(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    own = tmp_path / "my choices"
    (own / "loss").mkdir(parents=True)
    shutil.copy(conf_folder() / "loss" / "dice.yaml", own / "loss" / "mine.yaml")
    sweep = tmp_path / "sweep"
    given = words(prepared, "loss=mine", "seed=0", f"hydra.sweep.dir={sweep}")
    assert command("train", "--config-dir", str(own), *given).code == 0
    assert command("report", f"sweep={sweep}").code == 0
    assert "override /loss: mine" in (sweep / "best_experiment.yaml").read_text()
    shutil.rmtree(own)
    (sweep / "best_experiment.yaml").unlink()
    told = command("report", f"sweep={sweep}")
    assert told.code == 0
    assert "cannot be made an experiment" in told.out + told.err
    assert (sweep / "sweep.html").is_file()


def job(dice: float | None, status: str = "done", **params: Any) -> Job:
    return Job(Path("x"), params, status, dice, 1, 1, 1.0, "", {})


def test_what_made_jobs_good_comes_first() -> None:
    jobs = [
        job(1.0 - abs(lr - 3), lr=lr, other=i % 3, loss="abc"[i % 2])
        for i, lr in enumerate([0.5 * n for n in range(20)])
    ]
    shares = importances([*jobs, job(None, "failed", lr=1)], ["lr", "other", "loss"])
    assert next(iter(shares)) == "lr"
    assert shares["lr"] > 0.6
    assert sum(shares.values()) == pytest.approx(1)
    assert importances(jobs[:3], ["lr"]) == {}


def test_a_trial_that_does_worse_than_others_is_pruned(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    database = optuna.storages.RDBStorage(storage)
    study = optuna.create_study(storage=database, study_name="a", direction="maximize")
    good = study.ask()
    for epoch in range(1, 7):
        good.report(0.99, epoch)
    study.tell(good, 0.99)
    mine = study.ask()
    mine.report(0.5, 1)  # as it was before it was stopped
    trial = (
        f"trial={{storage: '{storage}', study: a, number: {mine.number}, "
        "pruner: {startup_trials: 1, warmup_epochs: 2}}"
    )
    given = [word for word in words(prepared)[1:] if "max_epochs" not in word]
    run = tmp_path / "run"
    ended = command("train", *given, "trainer.max_epochs=6", f"hydra.run.dir={run}", trial)
    assert ended.code == 0
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["ended"], summary["epochs"]) == ("pruned", 3)  # after two of warming up
    told = study.trials[mine.number].intermediate_values
    database.remove_session()
    database.engine.dispose()
    with (run / "metrics.csv").open(newline="") as file:
        rows = {int(row["epoch"]): float(row["val/dice"]) for row in csv.DictReader(file)}
    assert told == {1: 0.5, **{epoch: pytest.approx(rows[epoch]) for epoch in (2, 3)}}
    assert (run / "checkpoints" / "best.ckpt").is_file()


def test_without_optuna_one_line_says_what_to_install(
    prepared: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    ended = command("train", *words(prepared, *SEARCHED, *OPTUNA))
    assert ended.code == 2
    assert "pip install 'pancseg[sweep]'" in ended.err
    assert len(ended.err.strip().splitlines()) == 1


def start(given: list[str], **environment: str) -> "subprocess.Popen[str]":
    inherited = {key: v for key, v in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    return subprocess.Popen(
        [sys.executable, "-m", "pancseg.train", *given], start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**inherited, **environment},
    )  # fmt: skip


def epochs_of(folder: Path) -> int:
    path = folder / "metrics.csv"
    return len(path.read_text().splitlines()) - 1 if path.is_file() else 0


@pytest.mark.slow
def test_a_search_that_is_killed_twice_goes_on_and_loses_no_trial(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    sweep = tmp_path / "sweep"
    given = words(
        prepared, SEARCHED[0], "optimizer.weight_decay=choice(0.0,0.001,-1.0)", *OPTUNA,
        "hydra.sweeper.n_trials=6", "trainer.max_epochs=8", "save_every_s=0",
        "trainer.enable_progress_bar=false", f"hydra.sweep.dir={sweep}", "hydra.sweeper.seed=1",
        "hydra.sweeper.pruner=null", "hydra.sweeper.sampler.startup_trials=6",
    )  # fmt: skip
    before: dict[str, int] = {}
    for _ in range(2):
        worker = start(given)
        at_work = None
        while at_work is None and worker.poll() is None:
            time.sleep(0.05)
            begun = [p for p in sweep.glob("trial_*") if p.name not in before]
            at_work = next((p for p in begun if 3 <= epochs_of(p) < 8), None)
        assert at_work is not None
        os.killpg(worker.pid, signal.SIGKILL)
        worker.communicate()
        before[at_work.name] = epochs_of(at_work)
    last = start(given)
    out = last.communicate()[0]
    assert last.returncode == 1, out
    assert command("report", f"sweep={sweep}").code == 0
    jobs = json.loads((sweep / "sweep.json").read_text())["jobs"]
    assert [one["job"] for one in jobs] == [f"trial_{n:04d}" for n in range(6)]
    for one in jobs:
        refused = one["optimizer.weight_decay"] == -1.0
        assert (one["status"], one["epochs"]) == (("failed", 0) if refused else ("done", 8))
    assert {one["status"] for one in jobs} == {"done", "failed"}
    for name in before:
        log = (sweep / name / "train.log").read_text()
        assert log.count("epoch 1/8") == 1, name  # it went on, rather than begin again


@pytest.mark.slow
def test_workers_on_two_devices_share_a_search(prepared: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    given = words(
        prepared, SEARCHED[0], *OPTUNA, "hydra.sweeper.n_trials=6", "hardware=cpu",
        "trainer.max_epochs=2", "trainer.enable_progress_bar=false", f"hydra.sweep.dir={sweep}",
    )  # fmt: skip
    workers = [start(given, CUDA_VISIBLE_DEVICES=device) for device in "01"]
    outs = [worker.communicate()[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outs
    begun = [line for out in outs for line in out.splitlines() if line.startswith("trial_")]
    assert sorted(line.split()[0] for line in begun) == [f"trial_{n:04d}" for n in range(6)]
    for n, out in enumerate(outs):
        own = [line.split()[0] for line in out.splitlines() if line.startswith("trial_")]
        assert own
        for name in own:
            summary = json.loads((sweep / name / "summary.json").read_text())
            assert summary["hardware"]["visible_gpus"] == str(n)
