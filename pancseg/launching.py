"""``hydra/launcher=slurm``: the jobs of a sweep as an array of jobs of Slurm, by submitit.

Built on hydra-submitit-launcher, whose own launcher gives up waiting at the first job that ends
without a result, and asks for Slurm's accounting, which not every cluster keeps.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from pancseg.errors import Incomplete, PancsegError
from pancseg.explanation import one_line, own_error
from pancseg.failure import keep_failure
from pancseg.stopping import Stopped

LOOK_S, ASK_S = 1, 10  # between two looks for results, and two questions to Slurm
ABSENT = 2  # answers without a job until it is taken for ended: a requeued one comes back
OF_EXECUTOR = ("submitit_folder", "max_num_timeout")


@dataclass
class SlurmJob:
    """A job as it crosses to the machine that does it.

    Attributes:
        anew: Makes the task there, with all that Hydra must know first.
        context: Hydra's.
        config: Of the sweep.
    """

    anew: Callable[[], TaskFunction]
    context: HydraContext
    config: DictConfig

    def __call__(self, overrides: list[str], number: int, state: dict[Any, Any]) -> JobReturn:
        """Do the job; an error is its result, in one line, for not every error can be sent."""
        worker = submitit_launcher()()
        task = self.anew()
        worker.setup(hydra_context=self.context, task_function=task, config=self.config)
        try:
            ended = worker(overrides, "hydra.sweep.dir", number, f"job_id_for_{number}", state)
        except Stopped as stopped:
            print(stopped.told, file=sys.stderr)
            sys.exit(stopped.exit_code)  # leaves no result: submitit's way to say that it goes on
        if ended.status is JobStatus.FAILED:
            name = task.__module__.rpartition(".")[2]
            ended.return_value = Incomplete(one_line(own_error(ended._return_value), name))
        return ended

    def checkpoint(self, *args: Any) -> Any:
        """What submitit has run again where the job's time was up."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, *args)


class SlurmLauncher(Launcher):
    """Sends the jobs of a sweep to Slurm and waits for their results.

    Args:
        params: ``conf/hydra/launcher/slurm.yaml``.
    """

    def __init__(self, **params: Any) -> None:
        self.params = {
            key: OmegaConf.to_container(value, resolve=True)
            if OmegaConf.is_config(value)
            else value
            for key, value in params.items()
        }

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take up what the jobs are made of."""
        anew = task_function.anew  # type: ignore[attr-defined]
        self.job = SlurmJob(anew, hydra_context, config)
        self.has_folders = task_function.__module__ == "pancseg.train"  # one a job

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Send the jobs and wait; one that fails or is lost is a failed result."""
        executor = open_executor(self.params)
        numbers = range(initial_job_idx, initial_job_idx + len(job_overrides))
        words = [list(overrides) for overrides in job_overrides]
        states = [Singleton.get_state() for _ in numbers]
        try:
            sent = executor.map_array(self.job, words, numbers, states)
        except Exception as error:
            said = getattr(error, "stderr", None) or error
            raise PancsegError(f"hydra/launcher=slurm: sbatch refused it ({said})") from error
        ids = sorted({job.job_id.partition("_")[0] for job in sent})
        print(f"{len(sent)} jobs sent to Slurm as {', '.join(ids)}")
        try:
            found = collect(dict(zip(numbers, sent, strict=True)), words)
        except KeyboardInterrupt:
            print(f"the jobs run on; scancel {' '.join(ids)} ends them", file=sys.stderr)
            raise
        for number, overrides, ended in zip(numbers, words, found, strict=True):
            if self.has_folders and ended.status is JobStatus.FAILED:
                keep_failure(self.folder_of(number, overrides), ended._return_value, overrides)
        return found

    def folder_of(self, number: int, overrides: list[str]) -> Path:
        """Where a job of the sweep writes."""
        cfg = self.job.context.config_loader.load_sweep_config(self.job.config, overrides)
        with open_dict(cfg):
            cfg.hydra.job.num = number
        return Path(str(cfg.hydra.sweep.dir)) / str(cfg.hydra.sweep.subdir)


def submitit_launcher() -> Any:
    """The launcher of hydra-submitit-launcher.

    Raises:
        PancsegError: If it is not installed.
    """
    try:
        from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
    except ImportError as error:
        raise PancsegError(
            f"hydra/launcher=slurm: {error.name} is not installed; pip install 'pancseg[slurm]'"
        ) from error
    return SlurmLauncher


def open_executor(params: dict[str, Any]) -> Any:
    """What sends jobs to Slurm.

    Raises:
        PancsegError: If the package or Slurm is missing, or a value is none that Slurm takes.
    """
    submitit_launcher()
    import submitit
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

    shared = set(OmegaConf.structured(BaseQueueConf).keys())
    given = {
        key if key in shared else f"slurm_{key}": value
        for key, value in params.items()
        if key not in OF_EXECUTOR
    }
    try:
        executor = submitit.AutoExecutor(
            folder=params["submitit_folder"],
            cluster="slurm",
            slurm_max_num_timeout=params["max_num_timeout"],
        )
        executor.update_parameters(**given)
    except (RuntimeError, TypeError, ValueError) as error:
        raise PancsegError(f"hydra/launcher=slurm: {' '.join(str(error).split())}") from error
    return executor


def collect(sent: dict[int, Any], words: list[list[str]]) -> list[JobReturn]:
    """Wait for the results, and tell at once of a job that failed.

    Args:
        sent: submitit's jobs by their number in the sweep.
        words: The overrides of each.
    """
    found: dict[int, JobReturn] = {}
    overrides = dict(zip(sent, words, strict=True))
    absent, asked_at = dict.fromkeys(sent, 0), time.monotonic()
    while waiting := {n: job for n, job in sent.items() if n not in found}:
        ready = [n for n, job in waiting.items() if job.paths.result_pickle.exists()]
        if not ready and time.monotonic() - asked_at > ASK_S:
            asked_at, queue = time.monotonic(), in_queue([job.job_id for job in waiting.values()])
            for n, job in waiting.items():
                gone = queue is not None and job.job_id not in queue
                absent[n] = absent[n] + 1 if gone else 0
        for n in {*ready, *(n for n in waiting if absent[n] >= ABSENT)}:
            found[n] = result_of(sent[n], overrides[n])
            if found[n].status is JobStatus.FAILED:
                print(f"job {n} failed: {found[n]._return_value}", file=sys.stderr)
        time.sleep(LOOK_S)
    return [found[n] for n in sent]


def result_of(job: Any, overrides: list[str]) -> JobReturn:
    """What a job that ended returned; a failed result where it returned nothing."""
    if job.paths.result_pickle.exists():
        outcome, value = job.task(0)._get_outcome_and_result()  # the first of its processes answers
        if outcome == "success":
            return value
        reason = value.strip().splitlines()[-1]
    else:
        reason = "it ended without a result: cancelled, or out of memory or time"
    told = Incomplete(f"{reason}; see {job.paths.stderr}")
    return JobReturn(overrides=overrides, status=JobStatus.FAILED, _return_value=told)


def in_queue(jobs: list[str]) -> set[str] | None:
    """Those jobs of Slurm that wait or run; None where it does not answer.

    Args:
        jobs: Numbers, with those of their tasks.
    """
    ids = ",".join(sorted({job.partition("_")[0] for job in jobs}))
    call = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={ids}"]
    try:
        ended = subprocess.run(call, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    known = ended.returncode == 0 or "Invalid job id" in ended.stderr
    return set(ended.stdout.split()) if known else None
