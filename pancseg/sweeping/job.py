"""A job of a sweep: done once, gone on with where it was stopped, its failure written down."""

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, read_write

from pancseg.configuration import JOB, LAST, changes_result, leaves, run_path
from pancseg.errors import PancsegError
from pancseg.failure import FAILED, SUMMARY, write_failure
from pancseg.files import read_json, write_json

log = logging.getLogger(__name__)
LOCK = "job.lock"
Work = Callable[[DictConfig], float | None]


def do_once(cfg: DictConfig, work: Work) -> float | None:
    """Do a job of a sweep, unless its folder says that it was done or is being done.

    Args:
        cfg: Of the job.
        work: The training; goes on from ``ckpt_path`` where the job was stopped.

    Returns:
        ``val/dice``; None without validation, and where another process has the job.

    Raises:
        PancsegError: If the folder holds another configuration's job.
        Exception: Whatever ended the work; ``failed.json`` then holds it.
    """
    from pancseg.training.process import is_first

    folder = Path(run_path())
    if not is_first():  # of several that do this job together; the first one answers for it
        return do_along(cfg, work, folder)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: another process is at it", folder)
        return None
    try:
        return do_locked(cfg, work, folder)
    finally:
        lock.release()


def do_along(cfg: DictConfig, work: Work, folder: Path) -> float | None:
    """Do a job beside the process that holds its folder."""
    if (folder / SUMMARY).is_file():
        return None
    go_on(cfg, folder)
    return work(cfg)


def go_on(cfg: DictConfig, folder: Path) -> None:
    """Go on from where the job was stopped, if it was."""
    last = folder / LAST
    if last.is_file() and not cfg.ckpt_path:
        log.info("%s: goes on", folder)
        cfg.ckpt_path = str(last)


def do_locked(cfg: DictConfig, work: Work, folder: Path) -> float | None:
    """Do a job whose folder is ours."""
    check_same(cfg, folder)
    done = folder / SUMMARY
    if done.is_file():
        summary = read_json(done, "a run's summary", lambda found: "best_dice" in found)
        log.info("%s: already done, val/dice %s", folder, summary["best_dice"])
        return summary["best_dice"]
    write_json(folder / JOB, described(cfg))
    (folder / FAILED).unlink(missing_ok=True)
    go_on(cfg, folder)
    words = sys.argv[1:]
    try:
        speak_for_one_job(cfg, folder)
        return work(cfg)
    except Exception as error:
        write_failure(folder, error, cfg)
        raise
    finally:
        sys.argv[1:] = words


def check_same(cfg: DictConfig, folder: Path) -> None:
    """Check that what the folder holds is of this configuration.

    Raises:
        PancsegError: If it is not, naming the first key that differs.
    """
    advice = "give another hydra.sweep.dir, or move that folder away"
    if not (folder / JOB).is_file():
        if (folder / SUMMARY).is_file() or (folder / LAST).is_file():
            raise PancsegError(f"{folder}: holds a run that is no job of this sweep; {advice}")
        return
    earlier = read_json(folder / JOB, "a job's record")
    now = described(cfg)
    for key in sorted({*earlier, *now}):
        was, wanted = earlier.get(key), now.get(key)
        if was != wanted:
            raise PancsegError(
                f"{folder}: holds a job with {key}={was}, this one has {wanted}; {advice}"
            )


def described(cfg: DictConfig) -> dict[str, Any]:
    """What a job trains: its configuration by dotted key, without what changes no result.

    Unresolved, so that machines of one sweep may differ.
    """
    values = OmegaConf.to_container(cfg)
    return {key: value for key, value in leaves(values) if changes_result(key)}


def read_if_there(path: Path) -> dict[str, Any]:
    """A table in JSON; empty where there is no such file."""
    return read_json(path, "a table") if path.exists() else {}


def speak_for_one_job(cfg: DictConfig, folder: Path) -> None:
    """Let processes that Lightning starts for other GPUs train this job, not the whole sweep.

    Lightning starts them by this process's command line, in the folder of a single run.
    """
    if not HydraConfig.initialized():
        return
    config: Any = HydraConfig.instance().cfg
    words = [str(word) for word in config.hydra.overrides.task]
    if cfg.ckpt_path:
        words = [word for word in words if not word.startswith("ckpt_path=")]
        words.append(f"ckpt_path='{cfg.ckpt_path}'")
    sys.argv[1:] = [*config_folders(sys.argv[1:]), *words, "hydra.mode=RUN"]
    with read_write(config.hydra), read_write(config.hydra.run):
        config.hydra.run.dir = str(folder)


def config_folders(words: Sequence[str]) -> list[str]:
    """The options that name a folder of configuration.

    >>> config_folders(["-m", "--config-dir", "mine", "seed=0,1"])
    ['--config-dir', 'mine']
    """
    found = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word in ("--config-dir", "-cd"):
            found += [word, following]
        elif word.startswith("--config-dir="):
            found.append(word)
    return found
