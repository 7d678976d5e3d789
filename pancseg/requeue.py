"""Requeueing by Slurm: whether this job was started again, and the request for it."""

import os
import signal
import subprocess

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from pancseg.config import is_of_a_run
from pancseg.stopping import SIGNALS

ANSWER_S = 30  # longest wait for scontrol


def is_run_again() -> bool:
    """Whether Slurm started this job before."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0


def has_own_folder() -> bool:
    """Whether the run's folder is the same one when the command is run again."""
    if not HydraConfig.initialized():
        return False
    hydra = HydraConfig.get()
    if hydra.mode is RunMode.MULTIRUN:  # a sweep's folder follows from its words
        return True
    checkpoints = [word.partition("=")[2] for word in hydra.overrides.task if sets_checkpoint(word)]
    named = any(word.startswith("hydra.run.dir=") for word in hydra.overrides.hydra)
    return named or any(is_of_a_run(path.strip("'\"")) for path in checkpoints)


def sets_checkpoint(word: str) -> bool:
    """Whether an override sets ``ckpt_path``."""
    return word.lstrip("+").startswith("ckpt_path=")


def requeue(signum: int) -> str:
    """Have this job run again, if it is one of Slurm's and was not cancelled.

    After SIGUSR1, which comes ahead of a time limit. After SIGTERM only within the grace time of a
    preemption: a job that ends within it is not requeued by Slurm itself. Otherwise SIGTERM means
    that Slurm requeues the job already, or that it was cancelled.

    Returns:
        Text to append to the message; empty outside of Slurm, or without a request.
    """
    job = job_id()
    if job is None or int(os.environ.get("SLURM_PROCID") or 0):
        return ""
    if signum == signal.SIGTERM and not in_grace_time(job):
        return ""
    for number in SIGNALS:  # Slurm ends the job that it requeues; this process prints first
        signal.signal(number, signal.SIG_IGN)
    code, answer = scontrol("requeue", job)
    return "; Slurm runs it again" if code == 0 else f"; Slurm cannot run it again ({answer})"


def job_id() -> str | None:
    """This job's number, with that of its task where it is one of an array.

    >>> os.environ["SLURM_ARRAY_JOB_ID"], os.environ["SLURM_ARRAY_TASK_ID"] = "7", "2"
    >>> job_id()
    '7_2'
    >>> del os.environ["SLURM_ARRAY_JOB_ID"], os.environ["SLURM_ARRAY_TASK_ID"]
    """
    array, task = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def in_grace_time(job: str) -> bool:
    """Whether a job is in the grace time of its preemption."""
    code, answer = scontrol("show", "job", "-o", job)
    facts = dict(word.partition("=")[::2] for word in answer.split())
    running = facts.get("JobState") in ("RUNNING", "SIGNALING")
    return code == 0 and running and facts.get("PreemptTime", "None") not in ("None", "Unknown")


def scontrol(*words: str) -> tuple[int, str]:
    """The exit code of a call of Slurm, and its words in one line."""
    try:
        ended = subprocess.run(
            ["scontrol", *words], capture_output=True, text=True, timeout=ANSWER_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, " ".join(str(error).split())
    return ended.returncode, " ".join(f"{ended.stdout} {ended.stderr}".split())
