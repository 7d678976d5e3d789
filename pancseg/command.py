"""How every command starts and ends: Hydra composes, errors are one line, exit codes are kept.

Only the standard library and Hydra are imported here, so that ``--help`` answers at once.
"""

import functools
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    ConfigCompositionException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig

from pancseg.configuration import conf_folder, register_resolvers
from pancseg.errors import Incomplete, PancsegError, lacks_room
from pancseg.explanation import one_line, own_error
from pancseg.failure import TRACEBACK
from pancseg.hydra_names import make_known
from pancseg.launching import SlurmLauncher
from pancseg.requeue import run_again
from pancseg.stopping import Stopped, watch

CONFIGURATION_ERRORS = (
    ConfigCompositionException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
Task = Callable[[DictConfig], Any]


def command(task: Task, prepare: Callable[[], None] | None = None) -> Callable[[], None]:
    """Turn ``task(cfg)`` of the module ``pancseg.X`` into the command ``python -m pancseg.X``.

    Its configuration is ``conf/X.yaml``.

    Args:
        task: What the command does.
        prepare: Makes known to Hydra what the configuration may name.
    """
    name = Path(task.__code__.co_filename).stem

    def get_ready() -> None:
        register_resolvers()
        make_known(SlurmLauncher)
        if prepare is not None:
            prepare()

    def main() -> None:
        get_ready()
        sys.exit(run(task, name))

    main.get_ready = get_ready  # type: ignore[attr-defined] # for api, which runs it otherwise
    return main


def run(task: Task, name: str) -> int:
    """Run a Hydra application and return its exit code, with any error told in one line."""
    show_traceback = os.environ.get("HYDRA_FULL_ERROR", "0") != "0"
    os.environ[TRACEBACK] = "1" if show_traceback else ""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets errors through to here instead of printing them
    shows_job = {"--cfg=job", "-c=job"} & set(sys.argv) or (
        {"--cfg", "-c"} & set(sys.argv) and "job" in sys.argv
    )
    if shows_job and "--resolve" not in sys.argv:
        sys.argv.append("--resolve")  # exactly what runs, not the formulas that give it
    # a full disk is told once, without the traceback of each log line and writing thread
    logging.raiseExceptions, threading.excepthook = False, pass_over_full_disks
    failed: list[Exception] = []
    job = guarded(task, name, failed)
    try:
        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=name)(job)()
        for error in failed:
            raise error
    except Stopped as stopped:
        if stopped.told:
            print(f"pancseg.{name}: {stopped.told}", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as raised:
        if show_traceback:
            raise
        error = own_error(raised)
        end_bars()
        print(f"pancseg.{name}: {one_line(error, name)}", file=sys.stderr)
        return exit_code(error)
    return 0


def pass_over_full_disks(ended: Any) -> None:
    """Say what ended a thread, unless the disk is full: who waits for the thread says that."""
    if not lacks_room(ended.exc_value):
        threading.__excepthook__(ended)


def end_bars() -> None:
    """End the lines of bars that an error left open, so that it stands on a line of its own.

    tqdm is asked for those it knows: an error holds on to the loops that would close them.
    """
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def guarded(task: Task, name: str, failed: list[Exception]) -> Task:
    """A job that tells of its errors itself.

    A single job hands its error to ``failed``, for Hydra would print lines of its own. A job of a
    sweep says it at once and raises, because its sweeper must know; the other jobs still run.
    """

    @functools.wraps(task)
    def job(cfg: DictConfig) -> Any:
        try:
            with watch:
                return task(cfg)
        except Stopped as stopped:
            hand_on(stopped)
            raise
        except Exception as error:
            if is_sweep_job():
                own = own_error(error)
                # to the console alone: a message may name paths of input files
                told = f"job {HydraConfig.get().job.num} failed: {one_line(own, name)}"
                print(told, file=sys.stderr)
                if isinstance(own, PancsegError):
                    own.exit_code = Incomplete.exit_code  # the other jobs run
                raise
            failed.append(error)
            return None

    job.__module__ = f"pancseg.{name}"
    job.anew = functools.partial(job_of, name)  # type: ignore[attr-defined]
    return job


def job_of(name: str) -> Task:
    """The job of ``pancseg.<name>``, for a sweep whose jobs are done by other processes."""
    register_resolvers()
    return guarded(getattr(importlib.import_module(f"pancseg.{name}"), name), name, [])


def hand_on(stopped: Stopped) -> None:
    """Have a job that a signal ended run again: by what started it, such as submitit, or Slurm."""
    if not stopped.told:
        return  # another process does
    if stopped.signum != signal.SIGTERM and callable(signal.getsignal(stopped.signum)):
        print(stopped.told, file=sys.stderr)
        signal.raise_signal(stopped.signum)
    elif stopped.goes_on:
        stopped.told += run_again(stopped.signum)


def exit_code(error: Exception) -> int:
    """2 where the command could not start, 1 where it failed on the way or one of its jobs did."""
    if isinstance(error, PancsegError):
        return error.exit_code
    return 1 if is_job_error(error) else 2


def is_job_error(error: Exception) -> bool:
    """Whether the error came out of a job, rather than out of composing its configuration."""
    return not isinstance(error, CONFIGURATION_ERRORS)


def is_sweep_job() -> bool:
    """Whether the running job is one of several."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN
