"""``hydra/sweeper=optuna``: Hydra's jobs are the trials of an Optuna study.

Not hydra-optuna-sweeper: its last version, 1.3.0, needs Optuna 2.10, whose storage fails with
SQLAlchemy 2, and it can neither prune nor go on with trials that were killed. Each start of
``train`` reads this file, so what is heavy is imported where it is used.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from pancseg.configuration import changes_result
from pancseg.errors import Incomplete, PancsegError
from pancseg.failure import keep_failure, write_failure
from pancseg.hydra_names import make_known
from pancseg.tracking.study import optuna_package

if TYPE_CHECKING:
    from pancseg.sweeping.search import Search, Trial

log = logging.getLogger(__name__)


class OptunaSweeper(Sweeper):
    """Asks a study for trials, launches each as a job, and tells the study how it ended.

    Args:
        study_name: Workers that name the same study of one storage share its trials.
        storage: Address of a database; None is a file in the sweep's folder.
        n_trials: Of the study, over all workers and resumptions.
        n_jobs: Trials that a launcher is given at once.
        seed: Of the sampler.
        sampler: ``startup_trials``.
        pruner: ``startup_trials`` and ``warmup_epochs``; None never stops a trial early.
        params: What is searched by default, in Hydra's words for sweeps.
    """

    def __init__(
        self,
        study_name: str,
        storage: str | None,
        n_trials: int,
        n_jobs: int,
        seed: int,
        sampler: DictConfig,
        pruner: DictConfig | None,
        params: DictConfig | None,
    ) -> None:
        self.study_name, self.storage, self.seed = study_name, storage, seed
        self.n_trials, self.n_jobs = n_trials, n_jobs
        self.startup_trials = int(sampler.startup_trials)
        self.pruner = {str(key): int(value) for key, value in pruner.items()} if pruner else None
        self.params = [f"{key!s}={value}" for key, value in params.items()] if params else []

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take up what Hydra hands to a sweeper.

        Raises:
            PancsegError: If Optuna is not installed.
        """
        optuna_package()  # told before any job
        self.hydra_context, self.config = hydra_context, config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until the study has as many as were asked for.

        Args:
            arguments: Overrides of the command line.

        Raises:
            PancsegError: If nothing is searched, or the study is of another search.
            Incomplete: If trials failed; the others were done.
        """
        from pancseg.files import write_text

        logging.getLogger("pancseg.sweeping").setLevel(logging.INFO)
        search = self.search_of(arguments)
        search.begin()
        write_text(search.folder / "multirun.yaml", OmegaConf.to_yaml(self.config))
        while trials := self.ask(search):
            self.launch(search, trials)
        if best := search.best():
            log.info("best: %s, val/dice %.4f", search.place(best[0]), best[1])
        log.info("python -m pancseg.report sweep=%s", search.folder)
        if failed := search.failed():
            raise Incomplete(
                f"{len(failed)} of {self.n_trials} trials failed ({', '.join(failed)}); "
                f"python -m pancseg.report sweep={search.folder} shows why"
            )

    def search_of(self, arguments: list[str]) -> "Search":
        """The search that a command line asks for."""
        from pancseg.sweeping.search import Search
        from pancseg.sweeping.search_space import parse

        assert self.hydra_context is not None and self.config is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        words = [*self.params, *arguments]
        space, self.fixed = parse(words, parser)
        folder = Path(self.config.hydra.sweep.dir)
        return Search(
            folder=folder,
            storage=self.storage or f"sqlite:///{(folder / 'study.db').absolute()}",
            name=self.study_name,
            n_trials=self.n_trials,
            seed=self.seed,
            startup_trials=self.startup_trials,
            pruner=self.pruner,
            space=space,
            words={
                "fixed": sorted(word for word in self.fixed if changes_result(word)),
                "searched": [f"{key}: {one}" for key, one in sorted(space.items())],
            },
        )

    def ask(self, search: "Search") -> "list[Trial]":
        """Take as many trials as are launched at once."""
        found: list[Trial] = []
        while len(found) < max(1, self.n_jobs) and (trial := search.ask()):
            found.append(trial)
        return found

    def launch(self, search: "Search", trials: "list[Trial]") -> None:
        """Launch trials, wait for them, and tell the study."""
        words = {trial.folder: self.words_of(search, trial) for trial in trials}
        good = [trial for trial in trials if self.composes(search, trial, words[trial.folder])]
        errors: dict[str, Exception] = {}
        try:
            if good:
                asked = [words[one.folder] for one in good]
                first = int(good[0].folder.rpartition("_")[2])  # as the job's messages call it
                ended = self.launcher.launch(asked, first)
                errors = {
                    trial.folder: job._return_value
                    for trial, job in zip(good, ended, strict=True)
                    if job.status is JobStatus.FAILED
                }
        except PancsegError:
            raise  # nothing was launched: the trials wait for the command to be mended
        except Exception as error:  # some launchers raise where a job was killed
            errors = {one.folder: error for one in good if not search.is_done(one.folder)}
        for trial in trials:
            refused = None
            if reason := errors.get(trial.folder):
                refused = keep_failure(search.place(trial.folder), reason, words[trial.folder])
            search.tell(trial, refused)

    def words_of(self, search: "Search", trial: "Trial") -> list[str]:
        """A trial's overrides: its own, the fixed ones, and where it reports to."""
        from pancseg.sweeping.search_space import as_overrides, quoted

        chosen = as_overrides(trial.params)
        log.info("%s of %s: %s", trial.folder, self.n_trials, " ".join(chosen))
        pruner = "null" if self.pruner is None else str(self.pruner).replace("'", "")
        place = ", ".join(
            f"{key}: {quoted(value)}"
            for key, value in (("storage", search.storage), ("study", search.name))
        )
        told = f"trial={{{place}, number: {trial.number}, pruner: {pruner}}}"
        return [*self.fixed, *chosen, told, f"hydra.sweep.subdir={trial.folder}"]

    def composes(self, search: "Search", trial: "Trial", words: list[str]) -> bool:
        """Whether there is such a configuration; if not, the trial has failed."""
        try:
            self.validate_batch_is_legal([words])
        except Exception as error:
            write_failure(search.place(trial.folder), error, words=words)
            return False
        return True


def register() -> None:
    """Make the sweeper known to Hydra."""
    make_known(OptunaSweeper)
