"""SIGTERM, and SIGUSR1 ahead of a time limit of Slurm, end a command as Ctrl-C does.

A job of Slurm is then requeued where Slurm does not do it by itself.
"""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from pancseg.files import is_of_a_run

NAMES = ("SIGTERM", "SIGUSR1")  # Windows has the first alone
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """Raised on a signal; handled like Ctrl-C. ``note`` is appended to the message."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum, self.note = signum, ""
        self.exit_code = 128 + signum  # as shells have it

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signum).name}"


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raise :class:`Stopped` at the first signal while the body runs, and ignore further ones.

    Not in a job of submitit, which handles signals itself: it runs the job again.
    """
    is_main = threading.current_thread() is threading.main_thread()
    numbers = SIGNALS if is_main and "SUBMITIT_EXECUTOR" not in os.environ else ()

    def stop(signum: int, frame: FrameType | None) -> None:
        ignore_signals()
        raise Stopped(signum)

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    """Ignore further signals."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def is_requeued() -> bool:
    """Whether Slurm started this job before."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0


def has_fixed_folder() -> bool:
    """Whether the run's folder is the same one when the command is run again."""
    if not HydraConfig.initialized():
        return False
    hydra = HydraConfig.get()
    if hydra.mode is RunMode.MULTIRUN:  # a sweep's folder follows from its overrides
        return True
    values = dict(text.lstrip("+").partition("=")[::2] for text in hydra.overrides.task)
    is_named = any(text.startswith("hydra.run.dir=") for text in hydra.overrides.hydra)
    return is_named or is_of_a_run(values.get("ckpt_path", "").strip("'\""))


def requeue(signum: int) -> str:
    """Have this job of Slurm run again; text to append to the message.

    After SIGUSR1, which comes ahead of a time limit. After SIGTERM only within the grace time of a
    preemption: a job that ends within it is not requeued by Slurm itself. Otherwise SIGTERM means
    that Slurm requeues the job already, or that it was cancelled.
    """
    array, task = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    if job is None or int(os.environ.get("SLURM_PROCID") or 0):
        return ""
    if signum == signal.SIGTERM and not in_grace_time(job):
        return ""
    ignore_signals()  # Slurm ends the job that it requeues; this process prints first
    code, answer = scontrol("requeue", job)
    return "; Slurm runs it again" if code == 0 else f"; Slurm cannot run it again ({answer})"


def in_grace_time(job: str) -> bool:
    """Whether a job is in the grace time of its preemption."""
    code, answer = scontrol("show", "job", "-o", job)
    state = dict(text.partition("=")[::2] for text in answer.split())
    is_running = state.get("JobState") in ("RUNNING", "SIGNALING")
    return code == 0 and is_running and state.get("PreemptTime", "None") not in ("None", "Unknown")


def scontrol(*arguments: str) -> tuple[int, str]:
    """The exit code of a call of Slurm, and its answer in one line."""
    command = ["scontrol", *arguments]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, " ".join(str(error).split())
    return ended.returncode, " ".join(f"{ended.stdout} {ended.stderr}".split())
