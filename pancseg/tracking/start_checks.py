"""What is checked before a training reads anything: what would else be told late, or never."""

import os
import re
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from pancseg.errors import PancsegError


def check_duration(longest: Any) -> None:
    """Check ``trainer.max_time``, None, text, or units and numbers, before any work.

    Raises:
        PancsegError: If it is text or a number that is no duration.
    """
    plain_value = longest is not None and not isinstance(longest, DictConfig)
    if plain_value and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", str(longest)):
        raise PancsegError(
            f"trainer.max_time={longest}: expected days:hours:minutes:seconds; "
            "ten minutes are trainer.max_time=00:00:10:00"
        )


def check_one_folder(cfg: DictConfig) -> None:
    """Check that processes that were not started from here will write into one folder.

    Raises:
        PancsegError: If each would name it by its own clock.
    """
    started = max(int(os.environ.get(name) or 1) for name in ("WORLD_SIZE", "SLURM_NTASKS"))
    together = cfg.trainer.num_nodes != 1 or cfg.trainer.devices not in (1, "1", [0])
    words = HydraConfig.get().overrides.hydra if HydraConfig.initialized() else []
    named = cfg.ckpt_path not in (None, "last") or any(
        word.startswith("hydra.run.dir=") for word in words
    )
    if started > 1 and together and not named:
        raise PancsegError(
            f"{started} processes were started by torchrun or Slurm, and each would name the run's "
            "folder by its own clock; give hydra.run.dir=FOLDER"
        )
