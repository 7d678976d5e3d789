"""A search over all its workers: which trial comes next, and what became of those that ended."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pancseg.configuration import JOB
from pancseg.errors import PancsegError
from pancseg.failure import FAILED, SUMMARY
from pancseg.sweeping.job import LOCK, read_if_there
from pancseg.tracking.study import open_study

log = logging.getLogger(__name__)
ASKED = "asked.lock"


@dataclass(frozen=True)
class Trial:
    """A trial that this worker has.

    Attributes:
        number: In the study.
        folder: Name of its folder in the sweep's; that of the trial it goes on with.
        params: What was chosen.
        lock: Held until it is told how the trial ended.
    """

    number: int
    folder: str
    params: dict[str, Any]
    lock: FileLock


@dataclass
class Search:
    """A study and the folder of its trials.

    Attributes:
        folder: The sweep's.
        storage: Address of the database.
        name: Of the study.
        n_trials: Of all workers together; failed ones count.
        seed: Of the sampler.
        startup_trials: Drawn at random before the sampler learns.
        pruner: ``startup_trials`` and ``warmup_epochs``, or None.
        space: Distributions by key.
        words: The fixed and the searched words, the same for all workers.
    """

    folder: Path
    storage: str
    name: str
    n_trials: int
    seed: int
    startup_trials: int
    pruner: dict[str, int] | None
    space: dict[str, Any]
    words: dict[str, list[str]] = field(default_factory=dict)

    @contextmanager
    def study(self) -> Iterator[Any]:
        """The study, while no other worker asks or tells."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "study.lock")
        with lock, open_study(self.storage, self.name, self.pruner) as study:
            yield study

    def begin(self) -> None:
        """Check that the study is of this search, and take back what killed workers had.

        Raises:
            PancsegError: If it was begun with other words, or the folder holds another's trials.
        """
        with self.study() as study:
            earlier = study.user_attrs.get("words")
            if earlier is None and any(self.folder.glob(f"trial_*/{JOB}")):
                raise PancsegError(
                    f"hydra.sweep.dir={self.folder}: holds the trials of another study than "
                    f"{self.name}; give another folder, or that study's name and storage"
                )
            if earlier is None:
                study.set_user_attr("words", self.words)
            elif earlier != self.words:
                raise PancsegError(different(self.name, earlier, self.words))

    def ask(self) -> Trial | None:
        """Take the next trial; None where there are as many as were asked for."""
        from optuna.samplers import TPESampler

        with self.study() as study:
            self.take_back(study)
            trials = study.trials
            begun = {one.user_attrs["folder"] for one in trials if "folder" in one.user_attrs}
            waits = any(one.state.name == "WAITING" for one in trials)
            if not waits and len(begun) >= self.n_trials:
                return None
            # a trial is a function of its place and of those before, whoever asks, kills or no
            study.sampler = TPESampler(
                n_startup_trials=self.startup_trials, seed=self.seed + len(begun)
            )
            asked = study.ask(self.space)
            name = asked.user_attrs.get("folder") or f"trial_{len(begun):04d}"
            lock = FileLock(self.place(name) / ASKED)
            lock.acquire(timeout=0)
            asked.set_user_attr("folder", name)
            return Trial(asked.number, name, asked.params, lock)

    def take_back(self, study: Any) -> None:
        """Give trials whose worker was killed to whoever asks next, with their folders."""
        trials = study.trials
        for one in trials:
            if one.state.name != "RUNNING":
                continue
            name = one.user_attrs.get("folder")
            if name is None:  # killed before it had one
                study.tell(one.number, state=state("FAIL"))
                continue
            if any(is_held(self.place(name) / lock) for lock in (ASKED, LOCK)):
                continue
            same = [
                t for t in trials if t.number != one.number and t.user_attrs.get("folder") == name
            ]
            if not any(t.state.name in ("WAITING", "RUNNING") for t in same):
                log.info("%s: its worker is gone; it goes on where it stopped", name)
                study.enqueue_trial(one.params, user_attrs={"folder": name})
            study._storage.set_trial_user_attr(one._trial_id, "killed", True)
            study.tell(one.number, state=state("FAIL"))

    def tell(self, trial: Trial, refused: str | None = None) -> None:
        """Tell how a trial ended, by what its job left in its folder, and let it go.

        Args:
            trial: That ended, or that another process is still at: it is told of another time.
            refused: Why the job was not done, where what the folder holds is not of this trial.
        """
        found, error = self.place(trial.folder), refused
        summary = read_if_there(found / SUMMARY)
        value = summary.get("best_dice")
        if not summary and is_held(found / LOCK):
            log.info("%s: another process is at it", trial.folder)
            trial.lock.release()
            return
        if value is None and error is None:
            error = read_if_there(found / FAILED).get("error", "it ended without val/dice")
        with self.study() as study:
            kept = study.trials[trial.number]
            if not kept.state.is_finished():
                if error is not None:
                    study._storage.set_trial_user_attr(kept._trial_id, "error", error)
                    study.tell(trial.number, state=state("FAIL"))
                elif summary.get("ended") == "pruned":
                    study.tell(trial.number, state=state("PRUNED"))
                else:
                    study.tell(trial.number, value)
        trial.lock.release()

    def is_done(self, name: str) -> bool:
        """Whether the job of a trial came to its end."""
        return (self.place(name) / SUMMARY).is_file()

    def place(self, name: str) -> Path:
        """Folder of a trial."""
        return self.folder / name

    def failed(self) -> list[str]:
        """Folders of the trials that failed."""
        with self.study() as study:
            return [t.user_attrs["folder"] for t in study.trials if "error" in t.user_attrs]

    def best(self) -> tuple[str, float] | None:
        """Folder and ``val/dice`` of the best trial so far."""
        with self.study() as study:
            done = [t for t in study.trials if t.state.name == "COMPLETE"]
        if not done:
            return None
        found = max(done, key=lambda one: one.value)
        return found.user_attrs["folder"], found.value


def state(name: str) -> Any:
    """Optuna's state of that name."""
    from optuna.trial import TrialState

    return TrialState[name]


def is_held(path: Path) -> bool:
    """Whether a process holds a lock; those of killed processes are free."""
    if not path.parent.is_dir():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def different(name: str, earlier: dict[str, list[str]], now: dict[str, list[str]]) -> str:
    """Say what differs between two searches."""
    was = {word for words in earlier.values() for word in words}
    wanted = {word for words in now.values() for word in words}
    before, after = (" ".join(sorted(one)) or "less" for one in (was - wanted, wanted - was))
    return (
        f"hydra.sweeper.study_name={name}: was begun with {before}, and is asked to go on with "
        f"{after}; give another study_name and hydra.sweep.dir"
    )
