"""How every command starts and ends: Hydra composes, errors are one line, exit codes are kept.

Only the standard library and Hydra are imported here, so that ``--help`` answers at once.
"""

import difflib
import functools
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    ConfigCompositionException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from pancseg.errors import Incomplete, PancsegError

CONFIGURATION_ERRORS = (
    ConfigCompositionException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
Task = Callable[[DictConfig], Any]


def conf_folder() -> Path:
    """The configuration: inside the package in a wheel, beside it in a checkout."""
    packed = Path(__file__).parent / "conf"
    return packed if packed.is_dir() else Path(__file__).parent.parent / "conf"


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


def one_line(error: BaseException, name: str) -> str:
    """Say an error in one line: what was found, what was expected, what to do."""
    if isinstance(error, OverrideParseException):
        return quoting_advice(str(error.override), name)
    if isinstance(error, MissingConfigException) and error.options:
        group = str(error.missing_cfg_file).rpartition("/")[0]
        wanted = str(error.missing_cfg_file).rpartition("/")[2]
        choices = ", ".join(option for option in error.options)
        return f"{group}={wanted}: no such choice; choices are {choices}"
    if str(error).startswith("Ambiguous value for argument"):
        return quoting_advice(str(error).split("'")[1], name)
    if isinstance(error, ConfigCompositionException):
        return unknown_key_advice(error, name)
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, PancsegError):
        return text
    return f"{type(error).__name__}: {text} (HYDRA_FULL_ERROR=1 shows the traceback)"


def quoting_advice(override: str, name: str) -> str:
    """The command line again, with the value that Hydra's grammar refuses in quotes."""
    key, _, value = override.partition("=")
    quoted = f'{key}="{value}"'
    words = [quoted if word == override else word for word in sys.argv[1:]]
    command_line = " ".join(shlex.quote(word) for word in words)
    return (
        f"{override}: has a character that needs quotes; paste: "
        f"python -m pancseg.{name} {command_line}"
    )


def unknown_key_advice(error: ConfigCompositionException, name: str) -> str:
    """Which key is unknown, and which known one is closest to it."""
    text = str(error).splitlines()[0]
    key = text.partition("'")[2].partition("'")[0]
    if not key or "override" not in text:
        return " ".join(f"{error} {error.__cause__ or ''}".split())
    close = difflib.get_close_matches(key, known_keys(name), n=1, cutoff=0.6)
    advice = (
        f"did you mean {close[0]}?" if close else f"python -m pancseg.{name} --cfg job lists them"
    )
    return f"{key}: no such key; {advice}"


def known_keys(name: str) -> list[str]:
    """Every key of a command's default configuration, in dots."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return list(dotted_keys(OmegaConf.to_container(hydra.compose(name))))


def dotted_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Keys of nested dictionaries.

    >>> list(dotted_keys({"a": {"b": 1}, "c": 2}))
    ['a', 'a.b', 'c']
    """
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{key}"
        yield from dotted_keys(value, f"{prefix}{key}.")


def register_resolvers() -> None:
    """Make known what configuration files may ask of the run and of the machine."""
    OmegaConf.register_new_resolver("run", run_path, replace=True)
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
    OmegaConf.register_new_resolver("settings_folder", settings_folder, replace=True)
    OmegaConf.register_new_resolver("machine", machine_fact, replace=True)


def run_path(inside: str = "") -> str:
    """A path inside the folder of the run; ``RUN/...`` while there is none yet."""
    config = HydraConfig.get() if HydraConfig.initialized() else None
    if config is None or OmegaConf.is_missing(config.runtime, "output_dir"):
        return f"RUN/{inside}"
    return str(Path(config.runtime.output_dir) / inside)


def run_folder(checkpoint: str | None, default: str) -> str:
    """The folder a run writes to: a resumed run goes on in its own.

    >>> run_folder(None, "runs/b")
    'runs/b'
    """
    return str(Path(str(checkpoint)).parent.parent) if is_of_a_run(checkpoint) else default


def settings_folder(checkpoint: str | None) -> str:
    """Where a run's configuration is written: a resumed run leaves its first one alone.

    >>> settings_folder(None)
    '.hydra'
    """
    return ".hydra_resumed" if is_of_a_run(checkpoint) else ".hydra"


def is_of_a_run(checkpoint: str | None) -> bool:
    """Whether a checkpoint is there and lies where a run puts its own."""
    if not checkpoint:
        return False
    path = Path(checkpoint)
    return path.parent.name == "checkpoints" and path.is_file()


def machine_fact(name: str) -> Any:
    """What ``hardware=auto`` finds; imports torch, so only once a configuration is read."""
    from pancseg.hardware import detect

    return getattr(detect(), name)
