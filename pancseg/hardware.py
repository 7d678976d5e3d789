"""What this machine is and what is fast on it: the answers behind ``hardware=auto``."""

import functools
import os
import shutil
from dataclasses import dataclass

import torch

from pancseg.errors import PancsegError

CUDA_WHEELS = (
    "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu128"
)


@dataclass(frozen=True)
class Machine:
    """Settings that pay on a kind of machine.

    Attributes:
        accelerator: ``gpu`` or ``cpu``, as Lightning names them.
        precision: Lightning's name of the arithmetic.
        num_workers: Processes that load data.
        pin_memory: Whether batches wait in page-locked memory.
        batch_size: Groups a step.
        advice: A line for the user, or empty.
    """

    accelerator: str
    precision: str
    num_workers: int
    pin_memory: bool
    batch_size: int
    advice: str = ""


@functools.cache
def detect() -> Machine:
    """Look at this machine once.

    A GPU with bf16 units gets mixed bf16; a CPU stays at fp32, because bf16 autocast of a 3-D
    UNet was measured many times slower on CPUs without matrix units. Batches load in the training
    process on a CPU: its cores are busy with the step.
    """
    if torch.cuda.is_available():
        precision = "bf16-mixed" if torch.cuda.is_bf16_supported(False) else "16-mixed"
        workers = min(8, os.cpu_count() or 1)
        return Machine("gpu", precision, workers, pin_memory=True, batch_size=2)
    return Machine("cpu", "32-true", 0, pin_memory=False, batch_size=2, advice=unusable_gpu())


def unusable_gpu() -> str:
    """One line of advice where there is a GPU that torch cannot use, else empty."""
    if shutil.which("nvidia-smi") is None:
        return ""
    if torch.version.cuda is None:
        return f"a GPU is here, but this torch is built for CPUs only; to use it: {CUDA_WHEELS}"
    return "a GPU is here, but torch cannot use it; see what nvidia-smi says of its driver"


def check_accelerator(accelerator: str) -> None:
    """Check that the accelerator asked for is there.

    Raises:
        PancsegError: With the line that mends it.
    """
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        advice = unusable_gpu() or "this machine shows none; use hardware=auto or hardware=cpu"
        raise PancsegError(f"hardware.accelerator={accelerator}: torch finds no GPU; {advice}")
