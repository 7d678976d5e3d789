"""Where the configuration lies, and what its files may ask of the run and of the machine."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from pancseg.errors import PancsegError
from pancseg.files import is_of_a_run

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
    "callbacks", "logger", "trainer.default_root_dir", "trainer.enable_progress_bar",
    "trainer.plugins",
)  # fmt: skip
SEARCH_OVERRIDES = ("hydra/sweeper=", "hydra.sweeper.params", "hydra.sweeper.study_name=")


def conf_folder() -> Path:
    """The configuration: inside the package in a wheel, beside it in a checkout."""
    packed = Path(__file__).parent / "conf"
    return packed if packed.is_dir() else Path(__file__).parent.parent / "conf"


def register_resolvers() -> None:
    """Make known what configuration files may ask of the run and of the machine."""
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
    """The folder a run writes to: a resumed run goes on in its own.

    Args:
        checkpoint: To go on from; ``last`` is that of the newest run beside the default folder.
        default: Of a new run.

    >>> run_folder(None, "runs/b"), run_folder("last", "nowhere/b")
    ('runs/b', 'nowhere/b')
    """
    if checkpoint == "last":
        found = Path(default).parent.glob(f"*/{LAST}")
        newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
        return str(newest.parent.parent) if newest else default
    return str(Path(str(checkpoint)).parent.parent) if is_of_a_run(checkpoint) else default


def settings_folder(checkpoint: str | None, folder: str) -> str | None:
    """Where a run's configuration is written: a resumed run leaves its first one alone.

    None, which writes none, in all processes but the first; where another training is at work or
    was done, for this one will be refused; and for a job of a sweep that was trained before: its
    configuration is compared with this one.

    Args:
        checkpoint: To go on from.
        folder: Of the run.

    >>> settings_folder(None, "runs/b"), settings_folder("last", "nowhere/b")
    ('.hydra', '.hydra')
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
    from filelock import FileLock, Timeout

    try:
        with FileLock(run / TRAINING_LOCK, blocking=False):
            return False
    except (OSError, Timeout) as error:
        return isinstance(error, Timeout)


def sweep_folder(name: str, words: Sequence[str], hydra_words: Sequence[str]) -> str:
    """The folder of a sweep: the same one when the same command is given again.

    Args:
        name: Of what is trained.
        words: The command's overrides.
        hydra_words: Those of Hydra's own keys.

    >>> sweep_folder("unet", ["seed=0,1"], []) == sweep_folder(
    ...     "unet", ["seed=0,1", "data.num_workers=2"], ["hydra.verbose=true"]
    ... )
    True
    >>> sweep_folder("unet", ["seed=0,1"], []) == sweep_folder("unet", ["seed=0,2"], [])
    False
    """
    asked = [word for word in words if changes_result(word)]
    asked += [word for word in hydra_words if word.lstrip("+").startswith(SEARCH_OVERRIDES)]
    digest = hashlib.sha256("\n".join(asked).encode(errors="surrogateescape")).hexdigest()
    return f"runs/{name}/sweep_{digest[:8]}"


def changes_result(override: str) -> bool:
    """Whether an override, or a key, may change what is trained.

    >>> changes_result("optimizer.lr=0.1"), changes_result("data.num_workers=2")
    (True, False)
    """
    key = override.lstrip("+~").partition("=")[0]
    return not any(key == one or key.startswith(f"{one}.") for one in KEYS_WITHOUT_EFFECT)


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values of nested dictionaries by dotted key.

    >>> dict(leaves({"a": {"b": 1}, "c": [2]}))
    {'a.b': 1, 'c': [2]}
    """
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def machine_fact(name: str) -> Any:
    """What ``hardware=auto`` finds; imports torch, so only once a configuration is read."""
    from pancseg.hardware import detect

    return getattr(detect(), name)
