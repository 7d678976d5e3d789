"""The commands from Python, as for a notebook: ``pancseg.run("train", "data=group64")``.

A script that calls them begins with ``if __name__ == "__main__":``, because ``prepare`` starts
processes, which read the script again.
"""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import OverrideParseException
from hydra.types import RunMode
from hydra.version import setbase
from omegaconf import OmegaConf

from pancseg.cli import Job, is_job_error, one_line, own_error
from pancseg.config import conf_folder
from pancseg.errors import PancsegError

# keys of the folder that each command writes to, or that doctor examines; train has Hydra's own
FOLDERS: dict[str, tuple[str, ...]] = {
    "phantom": ("out",), "prepare": ("data.root",), "train": (), "evaluate": ("output",),
    "predict": ("output",), "report": ("run", "sweep", "output"), "export": ("output",),
    "doctor": ("data.root",),
}  # fmt: skip


def run(command: str, *overrides: str | Mapping[str, Any]) -> Path:
    """Run a command of pancseg in this process, and return the folder that it wrote to.

    Args:
        command: ``phantom``, ``prepare``, ``train``, ``evaluate``, ``predict``, ``report``,
            ``export`` or ``doctor``.
        overrides: As on the command line, such as ``"data=group64"``, and dictionaries of keys and
            plain values, such as ``{"data.root": Path("my data"), "seed": 1}``, which need no
            quotes. ``"hydra.mode=MULTIRUN"`` runs a sweep.

    Raises:
        Incomplete: If some input was refused or failed; the rest is done.
        PancsegError: If it cannot start.
    """
    if command not in FOLDERS:
        raise PancsegError(f"{command}: no such command; there are {', '.join(FOLDERS)}")
    words: list[str] = []
    for given in overrides:
        if isinstance(given, str):
            words.append(given)
        else:
            words += [f"{key}={as_value(value)}" for key, value in given.items()]
    if flags := [word for word in words if word.startswith("-")]:
        raise PancsegError(f"{flags[0]}: flags belong on the command line; call run for each job")
    module = import_module(f"pancseg.{command}")
    module.main.register()
    setbase("1.3")
    job = Job(getattr(module, command), command)
    with restored_state():
        hydra = Hydra.create_main_hydra2(command, create_config_search_path(str(conf_folder())))
        try:
            cfg = hydra.compose_config(command, words, RunMode.RUN, validate_sweep_overrides=False)
            if cfg.hydra.mode is RunMode.MULTIRUN:
                hydra.multirun(command, job, words)
                return Path(cfg.hydra.sweep.dir)
            job_return: Any = hydra.run(command, job, words)
        except OverrideParseException as error:
            raise PancsegError(
                f"{error.override}: has a character that needs quotes; give it as a dictionary"
            ) from error
        except Exception as error:
            job.failed.append(error)
        for failure in map(own_error, job.failed):
            if is_job_error(failure):
                raise failure
            raise PancsegError(one_line(failure, command)) from failure
        if command == "evaluate" and not job_return.cfg.predictions:
            from pancseg.inference.checkpoint import run_folder_of

            return run_folder_of(Path(job_return.cfg.checkpoint))
        folders = [OmegaConf.select(job_return.cfg, key) for key in FOLDERS[command]]
        return Path(next(filter(None, folders), job_return.hydra_cfg.hydra.runtime.output_dir))


def as_value(value: Any) -> str:
    r"""A plain value in Hydra's grammar.

    >>> [as_value(value) for value in (None, 0.5, "C:\\", 'a "b"', [True, Path("/a b")])]
    ['null', '0.5', '"C:\\\\"', '"a \\"b\\""', '[true,"/a b"]']
    """
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{as_value(item)}' for key, item in value.items())}}}"
    return QuotedString(str(value), Quote.double).with_quotes()


@contextmanager
def restored_state() -> Iterator[None]:
    """Restore logging, warnings and Hydra's state after a command."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    GlobalHydra.instance().clear()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = None
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
