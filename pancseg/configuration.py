"""Where the configuration lies, and what its files may ask of the run and of the machine."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

LAST = "checkpoints/last.ckpt"
BEST = "checkpoints/best.ckpt"


def conf_folder() -> Path:
    """The configuration: inside the package in a wheel, beside it in a checkout."""
    packed = Path(__file__).parent / "conf"
    return packed if packed.is_dir() else Path(__file__).parent.parent / "conf"


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


def settings_folder(checkpoint: str | None, folder: str) -> str:
    """Where a run's configuration is written: a resumed run leaves its first one alone.

    >>> settings_folder(None, "runs/b"), settings_folder("last", "nowhere/b")
    ('.hydra', '.hydra')
    """
    resumed = checkpoint == "last" and (Path(folder) / LAST).is_file()
    return ".hydra_resumed" if resumed or is_of_a_run(checkpoint) else ".hydra"


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
