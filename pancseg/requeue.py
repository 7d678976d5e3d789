"""Jobs that Slurm runs again: whether this is one, and asking for it."""

import os
import signal
import subprocess

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from pancseg.config import is_of_a_run
from pancseg.stopping import SIGNALS

ANSWER_S = 30  # that scontrol is waited for


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
    checkpoints = [word.partition("=")[2] for word in hydra.overrides.task if of_checkpoint(word)]
    named = any(word.startswith("hydra.run.dir=") for word in hydra.overrides.hydra)
    return named or any(is_of_a_run(path.strip("'\"")) for path in checkpoints)


def of_checkpoint(word: str) -> bool:
    """Whether an override says what is gone on with."""
    return word.lstrip("+").startswith("ckpt_path=")


def requeue(signum: int) -> str:
    """Have this job run again, if it is one of Slurm's and was not cancelled.

    After SIGUSR1, which comes ahead of a time limit. After SIGTERM
    only within the grace time of a preemption: a job that ends within it is not requeued by Slurm
    itself. Otherwise SIGTERM means that Slurm requeues the job already, or that it was cancelled.

    Returns:
        What to say of it; empty outside of Slurm, or where nothing is to be asked.
    """
    job = job_id()
    if job is None or int(os.environ.get("SLURM_PROCID") or 0):
        return ""
    if signum == signal.SIGTERM and not in_grace_time(job):
        return ""
    for one in SIGNALS:  # Slurm ends what it runs again, and this process is to say so first
        signal.signal(one, signal.SIG_IGN)
    code, answer = scontrol("requeue", job)
    return "; Slurm runs it again" if code == 0 else f"; Slurm cannot run it again ({answer})"


def job_id() -> str | None:
    """This job's number, with that of its task where it is one of an array.

    >>> os.environ["SLURM_ARRAY_JOB_ID"], os.environ["SLURM_ARRAY_TASK_ID"] = "7", "2"
    >>> job_id()
    '7_2'
    >>> del os.environ["SLURM_ARRAY_JOB_ID"], os.environ["SLURM_ARRAY_TASK_ID"]
    """
    array, task = (os.environ.get(f"SLURM_ARRAY_{one}_ID") for one in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def in_grace_time(job: str) -> bool:
    """Whether a job was told that another one takes its place."""
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
