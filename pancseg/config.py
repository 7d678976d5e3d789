"""The configuration's folder, resolvers of its files, and the folder of a run."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from pancseg.errors import PancsegError
from pancseg.files import PARTIAL, is_of_a_run

LAST = "checkpoints/last.ckpt"
BEST = "checkpoints/best.ckpt"
TRAINING_LOCK = ".training.lock"
RANKS = ("LOCAL_RANK", "SLURM_PROCID")  # in the environment of processes that train together
SUMMARY = "summary.json"  # written at the end of a training
SPLITS = "splits.json"  # patients of each subset
# keys that change no result, or say where things lie
KEYS_WITHOUT_EFFECT = (
    "ckpt_path", "trial", "preview", "source", "intake", "privacy",
    "data.cache", "data.cache_folder", "data.num_workers", "data.pin_memory",
    "hardware.cache", "hardware.num_workers", "hardware.pin_memory",
    "callbacks.progress_bar", "callbacks.epoch_report", "callbacks.images", "callbacks.curves",
    "callbacks.best.folder", "callbacks.last.folder", "logger", "trainer.default_root_dir",
    "trainer.enable_progress_bar", "trainer.plugins",
)  # fmt: skip
SEARCH_OVERRIDES = ("hydra/sweeper=", "hydra.sweeper.params", "hydra.sweeper.study_name=")


def conf_folder() -> Path:
    """The configuration: inside the package in a wheel, beside it in a checkout."""
    packed = Path(__file__).parent / "conf"
    return packed if packed.is_dir() else Path(__file__).parent.parent / "conf"


def register_resolvers() -> None:
    """Register the resolvers of configuration files."""
    register = partial(OmegaConf.register_new_resolver, replace=True)
    register("run", run_path)
    register("run_folder", run_folder)
    register("settings_folder", settings_folder)
    register("machine", machine_fact)
    register("divide", lambda a, b: a / b)
    # cached: a job has other overrides than its sweep, and is to lie in the sweep's folder
    register("sweep_folder", sweep_folder, use_cache=True)


def run_path(inside: str = "") -> str:
    """A path inside the folder of the run; ``RUN/...`` while there is none yet."""
    config = HydraConfig.get() if HydraConfig.initialized() else None
    if config is None or OmegaConf.is_missing(config.runtime, "output_dir"):
        return f"RUN/{inside}"
    return str(Path(config.runtime.output_dir) / inside)


def is_sweep_job() -> bool:
    """Whether the running job is one of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def run_folder(checkpoint: str | None, default: str) -> str:
    """The folder of a run: a resumed one goes on in its own, ``last`` in the newest beside it."""
    path = Path(str(checkpoint)) if is_of_a_run(checkpoint) else None
    if checkpoint == "last":
        others = Path(default).parent.glob(f"*/{LAST}")
        path = max(others, key=lambda path: path.stat().st_mtime, default=None)
    return str(path.parent.parent) if path else default


def settings_folder(checkpoint: str | None, folder: str) -> str | None:
    """Where a run's configuration is written: a resumed run leaves its first one alone.

    None, so that nothing is written: in all processes but the first; where another training is at
    work or was done, because this one will be refused; and for a job of a sweep that was trained
    before, because its first configuration is then compared with the new one.
    """
    run = Path(folder)
    if any(int(os.environ.get(rank) or 0) for rank in RANKS):
        return None
    for path in (*run.glob("*"), *run.glob("*/*")):
        if path.is_symlink():
            raise PancsegError(f"{path}: is a link; a run is written to files of its own folder")
    is_trained = (run / LAST).is_file() or (run / SUMMARY).is_file()
    if is_in_training(run) or (is_trained and (is_sweep_job() or not checkpoint)):
        return None
    is_resumed = checkpoint == "last" and (run / LAST).is_file()
    return ".hydra_resumed" if is_resumed or is_of_a_run(checkpoint) else ".hydra"


def is_in_training(run: Path) -> bool:
    """Whether a training is at work in a folder."""
    if not (run / TRAINING_LOCK).is_file():
        return False
    try:
        with locked_run(run):
            return False
    except PancsegError as error:
        return isinstance(error.__cause__, TimeoutError)


@contextmanager
def locked_run(folder: Path, is_writing: bool = True) -> Iterator[None]:
    """Keep other trainings out of the folder of a run or sweep; a killed process releases it.

    ``is_writing`` is True in the first of the processes that train together.
    """
    if not is_writing:
        yield
        return
    from filelock import FileLock

    lock = FileLock(folder / TRAINING_LOCK, blocking=False)
    try:
        lock.acquire()
    except OSError as error:
        reason = f"cannot be written ({error.strerror or error})"
        if isinstance(error, TimeoutError):
            reason = "another pancseg.train is writing to it; wait, or give another folder"
        raise PancsegError(f"hydra.run.dir={folder}: {reason}") from error
    try:
        for path in [*folder.glob(f"{PARTIAL}*"), *folder.glob(f"checkpoints/{PARTIAL}*")]:
            path.unlink(missing_ok=True)  # of writes that were killed
        yield
    finally:
        lock.release()


def sweep_folder(name: str, overrides: Sequence[str], hydra_overrides: Sequence[str]) -> str:
    """The folder of a sweep: the same one when the same command is given again."""
    relevant = [text for text in overrides if changes_result(text)]
    relevant += [text for text in hydra_overrides if text.lstrip("+").startswith(SEARCH_OVERRIDES)]
    digest = hashlib.sha256("\n".join(relevant).encode(errors="surrogateescape")).hexdigest()
    return f"runs/{name}/sweep_{digest[:8]}"


def changes_result(override: str) -> bool:
    """Whether an override, or a key, may change what is trained."""
    key = override.lstrip("+~").partition("=")[0]
    return not f"{key}.".startswith(tuple(f"{free}." for free in KEYS_WITHOUT_EFFECT))


def flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values of nested dictionaries by dotted key.

    >>> dict(flatten({"a": {"b": 1}, "c": [2]}))
    {'a.b': 1, 'c': [2]}
    """
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def machine_fact(name: str) -> Any:
    """A value of ``hardware=auto``; imports torch, so only once a configuration is read."""
    from pancseg.hardware import detect

    return getattr(detect(), name)
