"""What is checked before a training reads anything: what would else be told late, or never."""

import os
import re
from typing import Any

from omegaconf import DictConfig

from pancseg.command import is_sweep_job
from pancseg.errors import PancsegError
from pancseg.hardware import check_accelerator
from pancseg.requeue import has_own_folder

SHELLS = ("bash", "interactive")  # names of jobs whose tasks Lightning starts by itself


def check_start(cfg: DictConfig) -> None:
    """Check that a training can start on this machine, as it is configured.

    Raises:
        PancsegError: If it cannot start like this.
    """
    check_accelerator(cfg.hardware.accelerator)
    check_duration(cfg.trainer.max_time)
    check_one_folder(cfg)
    check_tasks(cfg)


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
    if started > 1 and together and is_sweep_job() and "SUBMITIT_EXECUTOR" not in os.environ:
        raise PancsegError(
            f"{started} processes were started by torchrun or Slurm, and each would begin the "
            "sweep anew; start it once, with hydra/launcher=slurm"
        )
    if started > 1 and together and not (cfg.ckpt_path not in (None, "last") or has_own_folder()):
        raise PancsegError(
            f"{started} processes were started by torchrun or Slurm, and each would name the run's "
            "folder by its own clock; give hydra.run.dir=FOLDER"
        )


def check_tasks(cfg: DictConfig) -> None:
    """Check that Slurm started as many tasks as are to train together.

    Raises:
        PancsegError: If they would wait for each other for ever, or each train alone.
    """
    tasks = int(os.environ.get("SLURM_NTASKS") or 1)
    if "SLURM_PROCID" not in os.environ or os.environ.get("SLURM_JOB_NAME") in SHELLS:
        return
    nodes, devices = cfg.trainer.num_nodes, cfg.trainer.devices
    wanted = nodes * int(devices) if str(devices).isdigit() else None
    if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise PancsegError(
            f"Slurm started {tasks} tasks; give srun --ntasks-per-node, not --ntasks"
        )
    if wanted is not None and wanted != tasks:
        raise PancsegError(
            f"trainer.num_nodes={nodes} and trainer.devices={devices} are {wanted} processes, "
            f"Slurm started {tasks} tasks; give srun --nodes={nodes} --ntasks-per-node={devices}, "
            f"in a sweep hydra.launcher.nodes={nodes} hydra.launcher.tasks_per_node={devices}"
        )
