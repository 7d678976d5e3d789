"""Sweeps: grids that go on after a failed job, searches with Optuna, their reports."""

import json
import shutil
import signal

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from pancseg.training.sweeps import open_study, search_space
from tests.conftest import run_command, smoke
from tests.test_resume import epochs_of, train_until
from tests.test_train import without

GRID = "optimizer.weight_decay=0.0,-1.0,0.1"  # torch refuses the second
LR = "optimizer.lr=tag(log,interval(1e-3,1e-1))"
OPTUNA = ["hydra/sweeper=optuna", "hydra.sweeper.sampler.startup_trials=4"]
SEARCH = [LR, "optimizer.weight_decay=choice(0.0,-1.0)", *OPTUNA, "hydra.sweeper.n_trials=4"]


def sweep_of(root, sweep, *more):
    """Arguments of a sweep whose jobs take a second."""
    given = without("hydra.run.dir", smoke(root, root, "trainer.max_epochs=1"))
    return ["-m", *given, f'hydra.sweep.dir="{sweep}"', *more]


def trials_of(sweep):
    with open_study(f"sqlite:///{sweep / 'study.db'}", "smoke", None) as study:
        return list(study.trials)


@pytest.fixture(scope="module")
def grid(prepared, tmp_path_factory):
    """A grid of three jobs, of which the second failed."""
    sweep = tmp_path_factory.mktemp("grid") / "sweep"
    assert run_command("train", *sweep_of(prepared, sweep, GRID)) == 1
    return sweep


def test_the_same_grid_again_skips_finished_jobs_and_tries_the_failed_one(grid, prepared, command):
    before = [path.stat().st_mtime_ns for path in grid.glob("*/metrics.csv")]
    assert sorted(path.parent.name for path in grid.glob("*/summary.json")) == ["0", "2"]
    ended = command("train", *sweep_of(prepared, grid, GRID, "data.num_workers=0"))
    assert ended.code == 1 and f"{grid}/0: already done, val/dice" in ended.out
    assert [path.stat().st_mtime_ns for path in grid.glob("*/metrics.csv")] == before
    message = "torch.optim.Adam: Invalid weight_decay value: -1.0"
    assert f"job 1 failed: {message}" in ended.err.splitlines()
    assert ended.err.splitlines()[-1] == f"pancseg.train: {message}"


def test_a_job_whose_folder_holds_another_configuration_is_refused(grid, prepared, command):
    ended = command("train", *sweep_of(prepared, grid, "optimizer.weight_decay=0.0", "seed=7"))
    assert ended.code == 1 and "0: holds a job with seed=0, this one has 7; give" in ended.err
    assert "seed: 0" in (grid / "0" / ".hydra" / "config.yaml").read_text()


def test_the_report_of_a_grid_is_a_table_and_a_page_and_follows_no_link(grid, tmp_path, command):
    sweep = shutil.copytree(grid, tmp_path / "sweep")
    (sweep / "2").rename(sweep / "2 $^$<b>\x1b[31m")
    (sweep / "9").symlink_to(sweep / "0")
    ended = command("report", f"sweep={sweep}")
    assert ended.code == 0 and "3 jobs: 2 done, 1 unfinished; best " in ended.out
    done, failed, _ = json.loads((sweep / "sweep.json").read_text())["jobs"]
    score = json.loads((sweep / "0" / "summary.json").read_text())["best_dice"]
    keys = "status", "optimizer.weight_decay", "val/dice"
    assert [done[key] for key in keys] == ["done", 0, score]
    assert [failed[key] for key in keys] == ["unfinished", -1, None]
    page = (sweep / "sweep.html").read_text()
    assert "held out" in page and "PHANTOMS" in page and "$^$&lt;b&gt;" in page
    assert "\x1b[31m" not in ended.out + page


def test_intervals_ranges_and_choices_become_distributions():
    texts = [
        "a=int(interval(1,10))", "b=tag(log,interval(1e-4,1e-1))", "c=range(2,9,2)",
        "d=choice(x,3,0.5)", "f=7", "h=range(0,1,0.5)", "data.root='/a b/c'",
    ]  # fmt: skip
    space, fixed = search_space(texts, OverridesParser.create())
    assert space == {
        "a": IntDistribution(1, 10),
        "b": FloatDistribution(1e-4, 1e-1, log=True),
        "c": IntDistribution(2, 8, step=2),
        "d": CategoricalDistribution(["x", "3", "0.5"]),
        "h": CategoricalDistribution(["0.0", "0.5"]),
    }
    assert fixed == ["f=7", "data.root='/a b/c'"]


@pytest.fixture(scope="module")
def searched(prepared, tmp_path_factory):
    """A search of four trials, of which some fail."""
    sweep = tmp_path_factory.mktemp("search") / "it's a sweep"
    assert run_command("train", *sweep_of(prepared, sweep, *SEARCH)) == 1
    return sweep


def test_trials_have_their_scores_or_failed_and_the_report_has_charts(searched, command):
    trials = trials_of(searched)
    assert len(trials) == 4 and {trial.state.name for trial in trials} == {"COMPLETE", "FAIL"}
    for trial in trials:
        folder = searched / f"trial_{trial.number:04d}"
        assert (trial.state.name == "FAIL") == (trial.params["optimizer.weight_decay"] == "-1.0")
        if trial.state.name == "COMPLETE":
            score = json.loads((folder / "summary.json").read_text())["best_dice"]
            assert (trial.value, trial.intermediate_values) == (score, {0: score})
            ran = OmegaConf.load(folder / ".hydra" / "config.yaml")
            assert ran.optimizer.lr == trial.params["optimizer.lr"]
    assert command("report", f'sweep="{searched}"').code == 0
    page = (searched / "sweep.html").read_text()
    assert page.count("<img") == page.count("data:image/png;base64,iVBOR") == 2  # of three trials


def test_a_finished_or_other_search_stops(searched, prepared, tmp_path, command):
    again = command("train", *sweep_of(prepared, searched, *SEARCH))
    assert "of 4 trials failed: trial_000" in again.err and "epoch" not in again.out
    other = command("train", *sweep_of(prepared, searched, *SEARCH, "seed=1"))
    assert "of another search, which differs in seed=1; give another" in other.err
    unknown = command("train", *sweep_of(prepared, tmp_path, LR, *OPTUNA, "loss=dice,nosuch"))
    assert "loss=nosuch: no such choice" in unknown.err and trials_of(tmp_path) == []


def test_a_trial_that_is_worse_than_the_others_is_pruned(prepared, tmp_path, command):
    with open_study(f"sqlite:///{tmp_path / 'study.db'}", "smoke", None) as study:
        good = dict.fromkeys(range(6), 0.99)
        study.add_trial(optuna.trial.create_trial(value=0.99, intermediate_values=good))
    pruner = "hydra.sweeper.pruner={startup_trials: 1, warmup_epochs: 2}"
    more = [LR, *OPTUNA, "hydra.sweeper.n_trials=2", pruner, "trainer.max_epochs=6"]
    assert command("train", *sweep_of(prepared, tmp_path, *more)).code == 0
    summary = json.loads((tmp_path / "trial_0001" / "summary.json").read_text())
    assert (summary["ended"], summary["epochs"]) == ("pruned", 3)  # after two of warming up
    trial = trials_of(tmp_path)[1]
    assert (trial.state.name, list(trial.intermediate_values)) == ("PRUNED", [0, 1, 2])


@pytest.mark.slow
def test_a_killed_search_resumes_its_trial_and_finishes_the_same_number(
    prepared, tmp_path, command
):
    more = ["hydra.sweeper.n_trials=2", "hydra.sweeper.pruner=null", "trainer.max_epochs=8"]
    words = sweep_of(prepared, tmp_path, LR, *OPTUNA, *more)
    train_until(words, lambda: epochs_of(tmp_path / "trial_0000") >= 3, signal.SIGKILL)
    (killed,) = trials_of(tmp_path)
    ended = command("train", *words)
    assert (ended.code, "trial_0000: resumes from its last checkpoint" in ended.out) == (0, True)
    trials = trials_of(tmp_path)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 2
    assert (killed.state.name, killed.params) == ("RUNNING", trials[0].params)
    assert [len(trial.intermediate_values) for trial in trials] == [8, 8]
