"""Searches with Optuna: search spaces, resuming, pruning."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from pancseg.errors import PancsegError
from pancseg.training.sweeps import open_study, search_space
from tests.conftest import Command, run_command
from tests.test_sweep import words

LR = "optimizer.lr=tag(log,interval(1e-3,1e-1))"
OPTUNA = ["hydra/sweeper=optuna", "hydra.sweeper.sampler.startup_trials=4"]
GRID = "optimizer.weight_decay=choice(0.0,-1.0)"  # torch refuses the second
SEARCH = [LR, GRID, *OPTUNA, "hydra.sweeper.n_trials=4"]


def trials_of(sweep: Path) -> list[Any]:
    """Trials of a search's own study."""
    with open_study(f"sqlite:///{sweep / 'study.db'}", "smoke", None) as study:
        return list(study.trials)


def test_intervals_ranges_and_choices_become_distributions() -> None:
    space, fixed = search_space(
        ["a=int(interval(1,10))", "b=tag(log,interval(1e-4,1e-1))", "c=range(2,9,2)",
         "d=choice(x,3,0.5)", "e=1,2", "f=7", "g=1,2", "g=3", "h=4", "h=range(0,1,0.5)",
         "data.root='/a b/c'"],
        OverridesParser.create(),
    )  # fmt: skip
    assert space == {
        "a": IntDistribution(1, 10),
        "b": FloatDistribution(1e-4, 1e-1, log=True),
        "c": IntDistribution(2, 8, step=2),
        "d": CategoricalDistribution(["x", "3", "0.5"]),
        "e": CategoricalDistribution(["1", "2"]),
        "h": CategoricalDistribution(["0.0", "0.5"]),
    }
    assert fixed == ["f=7", "g=3", "data.root='/a b/c'"]
    with pytest.raises(PancsegError, match="nothing is searched"):
        search_space(["a=1"], OverridesParser.create())
    with pytest.raises(PancsegError, match=r"b=interval\(2,1\): cannot be searched"):
        search_space(["b=interval(2,1)"], OverridesParser.create())


@pytest.fixture(scope="module")
def searched(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search of four trials, of which some fail."""
    sweep = tmp_path_factory.mktemp("search") / "it's a sweep"
    assert run_command("train", *words(prepared, *SEARCH, f'hydra.sweep.dir="{sweep}"')) == 1
    return sweep


def test_failed_trials_are_told_to_the_study_and_the_others_have_their_scores(
    searched: Path,
) -> None:
    trials = trials_of(searched)
    assert {trial.state.name for trial in trials} == {"COMPLETE", "FAIL"}
    assert len(trials) == 4
    for trial in trials:
        folder = searched / f"trial_{trial.number:04d}"
        assert (trial.state.name == "FAIL") == (trial.params["optimizer.weight_decay"] == "-1.0")
        if trial.state.name == "COMPLETE":
            score = json.loads((folder / "summary.json").read_text())["best_dice"]
            assert trial.value == score
            assert trial.intermediate_values == {0: score}
            ran = OmegaConf.load(folder / ".hydra" / "config.yaml")
            assert ran.optimizer.lr == trial.params["optimizer.lr"]


def test_a_finished_search_does_nothing_more_and_another_one_is_refused(
    searched: Path, prepared: Path, command: Command
) -> None:
    where = f'hydra.sweep.dir="{searched}"'
    again = command("train", *words(prepared, *SEARCH, where))
    assert "of 4 trials failed: trial_000" in again.err
    assert "epoch" not in again.out
    other = command("train", *words(prepared, *SEARCH, where, "seed=1"))
    assert "of another search, which differs in seed=1; give another" in other.err


def test_a_choice_that_does_not_exist_fails_before_any_trial(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    where = f"hydra.sweep.dir={tmp_path}"
    ended = command("train", *words(prepared, LR, *OPTUNA, "loss=dice,nosuch", where))
    assert "loss=nosuch: no such choice" in ended.err
    assert trials_of(tmp_path) == []


def test_a_trial_that_is_worse_than_the_others_is_pruned(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    with open_study(f"sqlite:///{tmp_path / 'study.db'}", "smoke", None) as study:
        good = dict.fromkeys(range(6), 0.99)
        study.add_trial(optuna.trial.create_trial(value=0.99, intermediate_values=good))
    pruner = "hydra.sweeper.pruner={startup_trials: 1, warmup_epochs: 2}"
    more = [LR, *OPTUNA, "hydra.sweeper.n_trials=2", pruner, "trainer.max_epochs=6"]
    assert command("train", *words(prepared, *more, f"hydra.sweep.dir={tmp_path}")).code == 0
    summary = json.loads((tmp_path / "trial_0001" / "summary.json").read_text())
    assert (summary["ended"], summary["epochs"]) == ("pruned", 3)  # after two of warming up
    trial = trials_of(tmp_path)[1]
    assert (trial.state.name, list(trial.intermediate_values)) == ("PRUNED", [0, 1, 2])


def test_without_optuna_one_line_says_what_to_install(
    prepared: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    ended = command("train", *words(prepared, *SEARCH))
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "pip install 'pancseg[sweep]'" in ended.err


def test_a_killed_search_resumes_its_trial_and_finishes_the_same_number(
    prepared: Path, tmp_path: Path
) -> None:
    more = ["hydra.sweeper.n_trials=2", "hydra.sweeper.pruner=null", "trainer.max_epochs=8"]
    given = words(prepared, LR, *OPTUNA, *more, f"hydra.sweep.dir={tmp_path}")
    call = [sys.executable, "-m", "pancseg.train", *given, "trainer.enable_progress_bar=false"]
    table = tmp_path / "trial_0000" / "metrics.csv"
    first = subprocess.Popen(call, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        while not table.is_file() or len(table.read_text().splitlines()) < 4:
            assert first.poll() is None
            time.sleep(0.05)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    (killed,) = trials_of(tmp_path)
    assert killed.state.name == "RUNNING"
    ended = subprocess.run(call, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    trials = trials_of(tmp_path)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 2
    assert trials[0].params == killed.params
    assert [len(trial.intermediate_values) for trial in trials] == [8, 8]
    assert "trial_0000: resumes from its last checkpoint" in ended.stdout
