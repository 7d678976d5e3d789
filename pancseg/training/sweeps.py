"""Jobs of a sweep, and ``hydra/sweeper=optuna``: trials of an Optuna study as Hydra's jobs.

hydra-optuna-sweeper 1.3.0 needs Optuna 2.10 and can neither prune nor resume; optuna-integration
imports ``lightning.pytorch``. Optuna and Lightning are imported late: ``--help`` reads this module.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from pancseg.cli import quoted_value
from pancseg.config import LAST, SUMMARY, changes_result, flatten, locked_run, run_path
from pancseg.errors import Incomplete, PancsegError
from pancseg.files import read_json, write_text

log = logging.getLogger(__name__)
Pruner = dict[str, int] | None  # startup_trials, warmup_epochs; None prunes no trial


def train_job(cfg: DictConfig, train: Callable[[DictConfig], float | None]) -> float | None:
    """Train a job of a sweep, unless its folder holds the result; resume it if it was stopped."""
    folder = Path(run_path())
    last, summary = folder / LAST, folder / SUMMARY
    if last.is_file() or summary.is_file():
        check_configuration(cfg, folder)
    if summary.is_file():
        score = read_json(summary, "a run's summary").get("best_dice")
        log.info("%s: already done, val/dice %s", folder, score)
        return score
    if last.is_file() and not cfg.ckpt_path:
        log.info("%s: resumes from its last checkpoint", folder)
        cfg.ckpt_path = "last"
    devices = str(cfg.trainer.devices)
    if devices.isdigit() and int(devices) > 1 and "SLURM_PROCID" not in os.environ:
        # Lightning's other processes would begin the sweep anew
        advice = "several devices need hydra/launcher=submitit_slurm; or train it by itself"
        raise PancsegError(f"trainer.devices={devices} in a job of a sweep: {advice}")
    return train(cfg)


def check_configuration(cfg: DictConfig, folder: Path) -> None:
    """Check that a folder was trained with this configuration, but for keys without effect.

    Interpolations are compared unresolved, so that the machines of a sweep may differ.
    """
    from pancseg.reports.run_folder import read_yaml

    path = folder / ".hydra" / "config.yaml"
    earlier = dict(flatten(read_yaml(path, dict))) if path.is_file() else {}
    now = dict(flatten(OmegaConf.to_container(cfg)))
    for key in sorted({*earlier, *now}):
        if changes_result(key) and earlier.get(key) != now.get(key):
            values = f"{key}={earlier.get(key)}, this one has {now.get(key)}"
            advice = "give another hydra.sweep.dir, or move that folder away"
            raise PancsegError(f"{folder}: holds a job with {values}; {advice}")


@contextmanager
def open_study(storage: str, name: str, pruner: Pruner) -> Iterator[Any]:
    """Open or create a study of the database at a URL; close its connections afterwards."""
    try:
        import optuna
    except ImportError:
        advice = "Optuna is not installed; run pip install 'pancseg[sweep]'"
        raise PancsegError(f"hydra/sweeper=optuna: {advice}") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    wait = {"timeout": 60} if storage.startswith("sqlite") else {}  # seconds, for other processes
    database = optuna.storages.RDBStorage(storage, engine_kwargs={"connect_args": wait})
    options: dict[str, Any] = {"direction": "maximize", "load_if_exists": True}
    options["pruner"] = optuna.pruners.NopPruner()
    if pruner:
        numbers = pruner["startup_trials"], pruner["warmup_epochs"]
        options["pruner"] = optuna.pruners.MedianPruner(*numbers)
    try:
        yield optuna.create_study(storage=database, study_name=name, **options)
    finally:
        database.remove_session()
        database.engine.dispose()


def pruning_callback(storage: str, study: str, number: int, pruner: Pruner) -> Any:
    """Lightning callback that reports ``val/dice`` of a trial and stops it if it is pruned."""
    import pytorch_lightning as pl

    class Pruning(pl.Callback):
        pruned = False

        def on_validation_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
            score, epoch = float(trainer.callback_metrics["val/dice"]), trainer.current_epoch
            prune = trainer.is_global_zero and self.report(score, epoch)
            if trainer.strategy.broadcast(prune):
                self.pruned = trainer.should_stop = True
                log.info("pruned: other trials were better in epoch %s", epoch + 1)

        def report(self, score: float, epoch: int) -> bool:
            from optuna import Trial

            with open_study(storage, study, pruner) as opened:
                stored = opened.trials[number]
                trial = Trial(opened, stored._trial_id)
                if epoch not in stored.intermediate_values:  # reported before an interruption
                    trial.report(score, epoch)
                trial.set_user_attr("pruned", prune := bool(trial.should_prune()))
                return prune

    return Pruning()


class OptunaSweeper(Sweeper):
    """Asks a study for trials, launches each as a job, and tells the study its result."""

    __module__ = "hydra_plugins.pancseg"  # Hydra takes plugins from this namespace alone

    def __init__(
        self, study_name: str, storage: str | None, n_trials: int, n_jobs: int, seed: int,
        sampler: dict[str, int], pruner: Pruner, params: dict[str, str] | None,
    ) -> None:  # fmt: skip
        self.study_name, self.storage, self.seed = study_name, storage, seed
        self.n_trials, self.n_jobs = n_trials, max(1, n_jobs)
        self.startup_trials, self.pruner = sampler["startup_trials"], dict(pruner or {})
        self.params = as_overrides(params or {})

    def setup(self, *, hydra_context: HydraContext, config: DictConfig, **task: Any) -> None:
        """Make the launcher."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, config=config, **task
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until the study has ``n_trials``, interrupted ones first."""
        log.setLevel(logging.INFO)
        assert self.hydra_context is not None and self.config is not None
        self.folder = Path(self.config.hydra.sweep.dir)
        self.url = self.storage or f"sqlite:///{(self.folder / 'study.db').absolute()}"
        with locked_run(self.folder), open_study(self.url, self.study_name, None) as study:
            parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
            self.space, self.fixed = search_space([*self.params, *arguments], parser)
            self.check_search(study)
            write_text(self.folder / "multirun.yaml", OmegaConf.to_yaml(self.config))
            running = [trial for trial in study.trials if trial.state.name == "RUNNING"]
            if self.storage:  # other sweeps may be at work on their own trials
                running = [trial for trial in running if (self.folder / name_of(trial)).is_dir()]
            while trials := self.next_trials(study, running):
                self.run_trials(study, trials)
            done = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
            failed = [name_of(trial) for trial in study.trials if trial.state.name == "FAIL"]
        if done:
            best = max(done, key=lambda trial: trial.value)
            log.info("best: %s, val/dice %.4f", self.folder / name_of(best), best.value)
        log.info("python -m pancseg.report sweep=%s", self.folder)
        if failed:
            raise Incomplete(f"{len(failed)} of {self.n_trials} trials failed: {', '.join(failed)}")

    def check_search(self, study: Any) -> None:
        """Check that the choices exist, and that the study was begun by this search."""
        choices = {key: getattr(space, "choices", ()) for key, space in self.space.items()}
        first = as_overrides({key: values[0] for key, values in choices.items() if values})
        overrides = [f"{key}={value}" for key, values in choices.items() for value in values]
        self.validate_batch_is_legal([[*self.fixed, *first, override] for override in overrides])
        search = sorted(override for override in self.fixed if changes_result(override))
        search += [f"{key}: {space}" for key, space in sorted(self.space.items())]
        earlier = study.user_attrs.get("search", search)
        if earlier != search:
            change = f"of another search, which differs in {', '.join({*earlier} ^ {*search})}"
            advice = "give another study_name and hydra.sweep.dir"
            raise PancsegError(f"hydra.sweeper.study_name={self.study_name}: {change}; {advice}")
        study.set_user_attr("search", search)

    def next_trials(self, study: Any, interrupted: list[Any]) -> list[Any]:
        """Take up to ``n_jobs`` trials: of the interrupted ones, then new ones."""
        from optuna.samplers import TPESampler

        trials = [interrupted.pop(0) for _ in range(min(self.n_jobs, len(interrupted)))]
        while len(trials) < self.n_jobs and (n_before := len(study.trials)) < self.n_trials:
            options: dict[str, Any] = {"n_startup_trials": self.startup_trials}
            options |= {"seed": self.seed + n_before, "constant_liar": self.n_jobs > 1}
            study.sampler = TPESampler(**options)
            trials.append(study.ask(self.space))
            (self.folder / name_of(trials[-1])).mkdir(exist_ok=True)
        return trials

    def run_trials(self, study: Any, trials: list[Any]) -> None:
        """Launch trials and tell the study; if the launcher fails, they remain to be resumed."""
        from optuna.trial import TrialState

        batch = []
        for trial in trials:
            overrides = as_overrides(trial.params)
            log.info("%s of %s: %s", name_of(trial), self.n_trials, " ".join(overrides))
            pruner = str(self.pruner or "null").replace("'", "")
            names = f"storage: {quoted_value(self.url)}, study: {quoted_value(self.study_name)}"
            overrides.append(f"trial={{{names}, number: {trial.number}, pruner: {pruner}}}")
            batch.append([*self.fixed, *overrides, f"hydra.sweep.subdir={name_of(trial)}"])
        results = self.launcher.launch(batch, trials[0].number)  # type: ignore[union-attr]
        for trial, result in zip(trials, results, strict=True):
            score, state = result._return_value, None
            if result.status is JobStatus.FAILED or score is None:
                score, state = None, TrialState.FAIL
            elif study.trials[trial.number].user_attrs.get("pruned"):
                score, state = None, TrialState.PRUNED
            study.tell(trial.number, score, state)


def register_sweeper() -> None:
    """Make ``hydra/sweeper=optuna`` known to Hydra: any experiment may name it."""
    Plugins.instance().register(OptunaSweeper)  # imports hydra_plugins, if any is installed
    for name in ("hydra_plugins", OptunaSweeper.__module__):
        sys.modules.setdefault(name, sys.modules[__name__])


def search_space(texts: list[str], parser: OverridesParser) -> tuple[dict[str, Any], list[str]]:
    """Split overrides into Optuna's distributions by key and those that every trial has."""
    overrides = {parsed.get_key_element(): parsed for parsed in parser.parse_overrides(texts)}
    space = {key: distribution(o) for key, o in overrides.items() if o.is_sweep_override()}
    if not space:
        advice = "give a key several values, such as loss=dice,dice_ce"
        raise PancsegError(f"hydra/sweeper=optuna: nothing is searched; {advice}")
    return space, [str(o.input_line) for key, o in overrides.items() if key not in space]


def distribution(override: Override) -> Any:
    """Optuna's distribution of an interval, a range or a choice."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    swept: Any = type(value)
    try:
        if swept is IntervalSweep:
            is_whole = isinstance(value.start, int) and isinstance(value.end, int)
            numbers: Any = IntDistribution if is_whole else FloatDistribution
            return numbers(value.start, value.end, log="log" in value.tags)
        if swept is RangeSweep and {type(value.start), type(value.step)} == {int}:
            values = sorted(range(value.start, int(value.stop), value.step))
            return IntDistribution(values[0], values[-1], step=abs(value.step))
    except (ValueError, IndexError, TypeError) as error:
        raise PancsegError(f"{override.input_line}: cannot be searched ({error})") from error
    return CategoricalDistribution(list(dict.fromkeys(override.sweep_string_iterator())))


def name_of(trial: Any) -> str:
    """Name of a trial's folder."""
    return f"trial_{trial.number:04d}"


def as_overrides(params: dict[str, Any]) -> list[str]:
    """Parameters as overrides."""
    return [f"{key}={value}" for key, value in params.items()]
