"""The wrapper around ``hydra.main``: exit codes, errors in a line, signals.

Only the standard library and Hydra are imported here, so that ``--help`` answers at once.
"""

import difflib
import errno
import importlib
import logging
import os
import re
import shlex
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra import errors as hydra_errors
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from pancseg.config import RANKS, conf_folder, flatten, is_sweep_job, register_resolvers
from pancseg.errors import NO_ROOM, Incomplete, PancsegError, lacks_room
from pancseg.signals import Stopped, has_fixed_folder, requeue, stop_on_signals

ON_WINDOWS = os.name == "nt"
READER_GONE = 141  # exit code of a program that SIGPIPE ends
RESOLVER_ERROR = "PancsegError raised while resolving interpolation: "
Task = Callable[[DictConfig], Any]


def command(task: Task, set_up: Callable[[], None] | None = None) -> Callable[[], None]:
    """Turn ``task(cfg)`` of the module ``pancseg.X`` into the command ``python -m pancseg.X``.

    Its configuration is ``conf/X.yaml``; ``set_up`` registers what that refers to.
    """
    name = Path(task.__code__.co_filename).stem

    def register() -> None:
        register_resolvers()
        if set_up is not None:
            set_up()

    def main() -> None:
        register()
        code = run(task, name)
        flush_stdout()
        sys.exit(code)

    main.register = register  # type: ignore[attr-defined] # for api, which runs the task otherwise
    return main


def run(task: Task, name: str) -> int:
    """Run a Hydra application and return its exit code, with any error in one line."""
    show_traceback = os.environ.get("HYDRA_FULL_ERROR", "0") != "0"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # lets errors through to here instead of printing them
    shows_job = re.search(r" (--cfg|-c)[ =]job\b", " ".join(sys.argv))
    if shows_job and "--resolve" not in sys.argv:
        sys.argv.append("--resolve")
    # a full disk is reported once, without the traceback of each log line and writing thread
    logging.raiseExceptions, threading.excepthook = False, print_thread_error
    job = Job(task, name)
    try:
        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=name)(job)()
        for error in job.failed:
            raise error
    except Stopped as stopped:
        if not any(int(os.environ.get(rank) or 0) for rank in RANKS):
            advice = "run the same command again to go on"
            if name == "train":
                advice = "give ckpt_path=last to go on from the last whole epoch"
            print(f"pancseg.{name}: {stopped}; {advice}{stopped.note}", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as raised:
        if isinstance(raised, BrokenPipeError) and not flush_stdout("\n"):
            return READER_GONE
        if show_traceback:
            raise
        error = own_error(raised)
        close_progress_bars()
        print(f"pancseg.{name}: {one_line(error, name)}", file=sys.stderr)
        # 2: the command could not start; 1: it failed on the way, or one of its jobs did
        return getattr(error, "exit_code", 1 if is_job_error(error) else 2)
    return 0


class Job:
    """The task of a command as Hydra calls it; its errors are handled before Hydra prints them.

    It is pickled as the command's name: the process of a launcher imports the command, which
    registers what a configuration may refer to.
    """

    def __init__(self, task: Task, name: str) -> None:
        self.task, self.name = task, name
        self.failed: list[Exception] = []  # of a single job; a sweep's job raises
        self.__module__ = f"pancseg.{name}"  # Hydra names the job after it

    def __reduce__(self) -> tuple[Callable[[str], "Job"], tuple[str]]:
        return job_of, (self.name,)

    def __call__(self, cfg: DictConfig) -> Any:
        """Run the task."""
        try:
            with stop_on_signals():
                return self.task(cfg)
        except Stopped as stopped:
            if self.name != "train" or has_fixed_folder():
                stopped.note = requeue(stopped.signum)
            raise
        except Exception as error:
            if not is_sweep_job():
                self.failed.append(error)
                return None
            failure = Incomplete(one_line(own_error(error), self.name))
            failure.add_note("".join(traceback.format_exception(error)))
            # printed, not logged: a message may name paths of input files
            print(f"job {HydraConfig.get().job.num} failed: {failure}", file=sys.stderr)
            raise failure from None  # not every error can be pickled


def job_of(name: str) -> Job:
    """The job of ``pancseg.<name>`` in the process of a launcher."""
    module = importlib.import_module(f"pancseg.{name}")
    module.main.register()
    return Job(getattr(module, name), name)


def print_thread_error(ended: Any) -> None:
    """Print what ended a thread, unless the disk is full: the main thread reports that."""
    if not lacks_room(ended.exc_value):
        threading.__excepthook__(ended)


def flush_stdout(text: str = "") -> bool:
    """Write what stdout holds; False if nobody reads it, as in ``| head -1``: it is discarded."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    except OSError:
        pass  # a full disk
    return True


def close_progress_bars() -> None:
    """End the lines of bars that an error left open, so that it stands on a line of its own."""
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def is_job_error(error: Exception) -> bool:
    """Whether the error came out of a job, rather than out of composing its configuration."""
    return not isinstance(error, hydra_errors.CompactHydraException)


def own_error(error: Exception) -> Exception:
    """The error itself where ``instantiate`` or a resolver wrapped it."""
    cause = error.__cause__
    if isinstance(error, hydra_errors.InstantiationException) and isinstance(cause, PancsegError):
        return cause
    text = str(error).partition("\n")[0]  # OmegaConf keeps the text of an error, not the error
    if isinstance(error, InterpolationResolutionError) and text.startswith(RESOLVER_ERROR):
        return PancsegError(text.removeprefix(RESOLVER_ERROR))
    return error


def one_line(error: BaseException, name: str) -> str:
    """An error in one line: what was found, what was expected, what to do."""
    if isinstance(error, hydra_errors.OverrideParseException):
        return quoting_advice(str(error.override), name)
    if isinstance(error, hydra_errors.MissingConfigException) and error.options:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={choice}: no such choice; choices are {', '.join(error.options)}"
    if str(error).startswith("Ambiguous value for argument"):
        return quoting_advice(str(error).split("'")[1], name)
    if isinstance(error, hydra_errors.ConfigCompositionException):
        return unknown_key_advice(error, name)
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, PancsegError):
        return text
    if isinstance(error, OSError) and error.errno in (*NO_ROOM, errno.EACCES):
        where = f"{error.filename}: " if error.filename else ""
        advice = "make room or give another folder, and run the same command again"
        return f"{where}{error.strerror}; {advice}: what was reported as done stays"
    return f"{type(error).__name__}: {text} (HYDRA_FULL_ERROR=1 shows the traceback)"


def quoting_advice(override: str, name: str) -> str:
    """The command line again, with all values quoted that Hydra's grammar refuses."""
    is_sweep = bool({"-m", "--multirun"} & set(sys.argv))
    line = " ".join(
        shell_quoted(quoted(text) if text == override or needs_quotes(text, is_sweep) else text)
        for text in sys.argv[1:]
    )
    return f"{override}: has a character that needs quotes; paste: python -m pancseg.{name} {line}"


def needs_quotes(argument: str, is_sweep: bool) -> bool:
    """Whether Hydra refuses an override as it stands, or splits its value at commas."""
    if argument.startswith("-") or "=" not in argument:
        return False
    try:
        (override,) = OverridesParser.create().parse_overrides([argument])
    except hydra_errors.OverrideParseException:
        return True
    return override.is_sweep_override() and not is_sweep


def quoted(override: str) -> str:
    """An override with its value in quotes, or those items of a list that need them."""
    key, _, value = override.partition("=")
    if value.startswith("[") and value.endswith("]"):
        items = re.findall(r"""\s*("[^"]*"|'[^']*'|[^,]+)""", value[1:-1])
        return f"{key}=[{','.join(map(quoted_value, items))}]"
    return f"{key}={quoted_value(value)}"


def quoted_value(text: str) -> str:
    """A value in quotes if Hydra refuses it without; backslashes before a quote are doubled."""
    if not needs_quotes(f"x={text}", is_sweep=False):
        return text
    mark = "'" if ON_WINDOWS else '"'  # the mark that the shell leaves alone within its own quotes
    escaped = re.sub(rf"(\\*)({mark}|$)", lambda m: 2 * m[1] + "\\" * len(m[2]) + m[2], text)
    return mark + escaped + mark


def shell_quoted(argument: str) -> str:
    """An argument of a command line as the shell of this system takes it."""
    if not ON_WINDOWS:
        return shlex.quote(argument)
    return f'"{argument}"' if set(argument) & set(" '(),") else argument


def unknown_key_advice(error: hydra_errors.ConfigCompositionException, name: str) -> str:
    """The unknown key, and the known key that is closest to it."""
    text = str(error).splitlines()[0]
    key = text.partition("'")[2].partition("'")[0]
    if not key or "override" not in text:
        return " ".join(f"{error} {error.__cause__ or ''}".split())
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        values = OmegaConf.to_container(hydra.compose(name))
    parts = [key.split(".") for key, _ in flatten(values)]
    known = sorted({".".join(part[:n]) for part in parts for n in range(1, len(part) + 1)})
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    advice = f"did you mean {close[0]}?" if close else f"python -m pancseg.{name} --cfg job"
    return f"{key}: no such key; {advice}"
