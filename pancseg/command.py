"""How every command starts and ends: Hydra composes, errors are one line, exit codes are kept.

Only the standard library and Hydra are imported here, so that ``--help`` answers at once.
"""

import functools
import os
import sys
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
from pancseg.errors import Incomplete, PancsegError
from pancseg.explanation import one_line

CONFIGURATION_ERRORS = (
    ConfigCompositionException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
Task = Callable[[DictConfig], Any]


def command(task: Task) -> Callable[[], None]:
    """Turn ``task(cfg)`` of the module ``pancseg.X`` into the command ``python -m pancseg.X``.

    Its configuration is ``conf/X.yaml``.
    """
    name = Path(task.__code__.co_filename).stem

    def main() -> None:
        register_resolvers()
        sys.exit(run(task, name))

    return main


def run(task: Task, name: str) -> int:
    """Run a Hydra application and return its exit code, with any error told in one line."""
    show_traceback = os.environ.get("HYDRA_FULL_ERROR", "0") != "0"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets errors through to here instead of printing them
    shows_job = {"--cfg=job", "-c=job"} & set(sys.argv) or (
        {"--cfg", "-c"} & set(sys.argv) and "job" in sys.argv
    )
    if shows_job and "--resolve" not in sys.argv:
        sys.argv.append("--resolve")  # exactly what runs, not the formulas that give it
    failed: list[Exception] = []
    job = guarded(task, name, failed)
    try:
        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=name)(job)()
        for error in failed:
            raise error
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as raised:
        if show_traceback:
            raise
        error = own_error(raised)
        print(f"pancseg.{name}: {one_line(error, name)}", file=sys.stderr)
        return exit_code(error)
    return 0


def guarded(task: Task, name: str, failed: list[Exception]) -> Task:
    """A job that tells of its errors itself.

    A single job hands its error to ``failed``, for Hydra would print lines of its own. A job of a
    sweep says it at once and raises, because its sweeper must know; the other jobs still run.
    """

    @functools.wraps(task)
    def job(cfg: DictConfig) -> Any:
        try:
            return task(cfg)
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
    return job


def own_error(error: Exception) -> Exception:
    """The error itself where ``instantiate`` wrapped it."""
    cause = error.__cause__
    wrapped = isinstance(error, InstantiationException) and isinstance(cause, PancsegError)
    return cause if wrapped else error  # type: ignore[return-value]


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
