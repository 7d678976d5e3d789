"""The process that trains: its seeds, its arithmetic, and what it says."""

import logging
import warnings

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.rank_zero import rank_zero_only

from pancseg.hardware import detect
from pancseg.stopping import watch

log = logging.getLogger(__name__)


def is_first() -> bool:
    """Whether this process is the first, or only, one of those that train together."""
    return not rank_zero_only.rank  # type: ignore[attr-defined]


def set_up_process(seed: int) -> None:
    """Seeds, arithmetic and what is said on the console."""
    # Lightning 2.6 uses a name that torch 2.13 renames; nothing a user can do about it
    warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
    # a resumed run goes on in its own folder
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # ours does: a batch is a function of its number alone
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable")
    # where Slurm is installed, but did not start this process
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    # a first layer of one channel lies the same way in both orders of memory
    warnings.filterwarnings("ignore", message="(?s)Grad strides do not match bucket view strides")
    for name in ("pytorch_lightning", "lightning_fabric"):  # what they say, we say
        logging.getLogger(name).setLevel(logging.WARNING)
    if not is_first():  # one process of several speaks
        logging.getLogger("pancseg").setLevel(logging.WARNING)
        watch.defer()  # they end together; the first one hears what comes before that
    if detect().advice:
        log.warning(detect().advice)
    torch.set_float32_matmul_precision("high")
    pl.seed_everything(seed, workers=True, verbose=False)
