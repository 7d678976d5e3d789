"""The commands from Python, as for a notebook: ``pancseg.run("train", "data=group64")``.

They go the way of the command line, so that both write the same files and say the same. A script
that calls them begins with ``if __name__ == "__main__":``, for ``prepare`` starts processes, which
read the script again.
"""

import functools
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from omegaconf import DictConfig

from pancseg.cli import Job, Task, is_job_error, one_line, own_error
from pancseg.config import conf_folder, run_path
from pancseg.errors import PancsegError

WRITES: dict[str, Callable[[DictConfig], Any]] = {
    "phantom": lambda cfg: cfg.out,
    "prepare": lambda cfg: cfg.data.root,
    "train": lambda cfg: run_path(),
    "evaluate": lambda cfg: judged_folder(cfg.checkpoint),
    "predict": lambda cfg: cfg.output,
    "report": lambda cfg: cfg.run or cfg.sweep or cfg.output,
    "export": lambda cfg: cfg.output,
}
"""For each command, the folder that it writes to."""


def run(command: str, *overrides: str | Mapping[str, Any]) -> Path:
    """Run a command of pancseg in this process.

    Args:
        command: ``phantom``, ``prepare``, ``train``, ``evaluate``, ``predict``, ``report`` or
            ``export``.
        overrides: Words as on the command line, such as ``"data=group64"``, and dictionaries of
            keys and plain values, such as ``{"data.root": Path("my data"), "seed": 1}``, which
            need no quotes whatever a path is called.

    Returns:
        The folder that the command wrote to: for ``train`` and ``evaluate`` that of the run, or of
        the sweep.

    Raises:
        Incomplete: If some input was refused or failed; the rest is done.
        PancsegError: If it cannot start, or one of the values makes no sense.
    """
    if command not in WRITES:
        raise PancsegError(f"{command}: no such command; there are {', '.join(WRITES)}")
    words = [word for given in overrides for word in as_words(given)]
    if flags := [word for word in words if word.startswith("-")]:
        raise PancsegError(
            f"{flags[0]}: flags belong on the command line; from Python, call run once for each job"
        )
    folders: list[Path] = []
    door = import_module(f"pancseg.{command}")
    job = Job(noting(getattr(door, command), command, folders), command)
    main = hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name=command)
    with as_program(command, words), noted_sweep(folders):
        door.main.register()
        try:
            main(job)()
        except Exception as error:
            job.failed.append(error)
        for own in map(own_error, job.failed):
            if is_job_error(own):
                raise own
            raise PancsegError(one_line(own, command)) from own
    return folders[0]


def noting(task: Task, command: str, folders: list[Path]) -> Task:
    """The task, which notes first where it is going to write."""

    @functools.wraps(task)
    def noted(cfg: DictConfig) -> Any:
        result = task(cfg)
        folders.append(Path(WRITES[command](cfg)))
        return result

    return noted


@contextmanager
def noted_sweep(folders: list[Path]) -> Iterator[None]:
    """Note the folder of a sweep when it begins.

    Its jobs may be done already, or by other processes: then no task here would tell.
    """
    plugins: Any = Plugins.instance()
    begin = plugins.instantiate_sweeper

    def noted(*, config: DictConfig, **given: Any) -> Any:
        folders.append(Path(str(config.hydra.sweep.dir)))
        return begin(config=config, **given)

    plugins.instantiate_sweeper = noted
    try:
        yield
    finally:
        del plugins.instantiate_sweeper


def judged_folder(checkpoint: Any) -> Path:
    """The folder that ``evaluate`` writes to."""
    from pancseg.inference.members import folder_of

    return folder_of(Path(checkpoint))


def as_words(given: str | Mapping[str, Any]) -> list[str]:
    r"""Overrides in the grammar of the command line.

    >>> as_words({"data.root": Path("/data/a b=c"), "preview": True, "shape": [64, 64, 32]})
    ['data.root="/data/a b=c"', 'preview=true', 'shape=[64,64,32]']
    """
    if isinstance(given, str):
        return [given]
    return [f"{key}={as_value(value)}" for key, value in given.items()]


def as_value(value: Any) -> str:
    r"""A plain value in Hydra's grammar.

    >>> [as_value(one) for one in (None, 0.5, "C:\\", 'a "b"')]
    ['null', '0.5', '"C:\\\\"', '"a \\"b\\""']
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{as_value(one)}' for key, one in value.items())}}}"
    escaped = re.sub(r'(\\*)("|$)', lambda m: 2 * m[1] + (m[2] and '\\"'), str(value))
    return f'"{escaped}"'


@contextmanager
def as_program(command: str, words: list[str]) -> Iterator[None]:
    """Stand where the command line would, and leave nothing of it behind.

    Hydra reads ``sys.argv``, takes over logging and keeps what it composed.
    """
    argv, shown = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    GlobalHydra.instance().clear()
    try:
        sys.argv = [f"pancseg.{command}", *words]
        os.environ["HYDRA_FULL_ERROR"] = "1"  # lets errors through instead of printing them
        with warnings.catch_warnings():
            yield
    finally:
        sys.argv = argv
        os.environ.pop("HYDRA_FULL_ERROR")
        if shown is not None:
            os.environ["HYDRA_FULL_ERROR"] = shown
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
