"""What this machine is and what is fast on it: the answers behind ``hardware=auto``."""

import functools
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pancseg.errors import PancsegError
from pancseg.parallel import cores

CUDA_WHEELS = (  # the version that is here, which the rest was tried with
    f"pip install --force-reinstall torch=={torch.__version__.partition('+')[0]} "
    "--index-url https://download.pytorch.org/whl/cu128"
)
BYTES_A_VOXEL = 15_000  # of memory for a voxel of a planned patch: 24 GB give 1.6 million
BF16_UNITS = ("avx512_bf16", "amx_bf16")  # as torch names them
MOST_VOXELS = 4_000_000  # 192 x 160 x 128: an abdomen at 2 mm


@dataclass(frozen=True)
class Machine:
    """Settings that pay on a kind of machine.

    Attributes:
        accelerator: ``gpu`` or ``cpu``, as Lightning names them.
        precision: Lightning's name of the arithmetic.
        num_workers: Processes that load data.
        pin_memory: Whether batches wait in page-locked memory.
        cache: Where preprocessed volumes are read from.
        patch_voxels: Voxels of a planned patch, at most.
        width: Channels of the planned network's first level.
        advice: A line for the user, or empty.
    """

    accelerator: str
    precision: str
    num_workers: int
    pin_memory: bool
    cache: str
    patch_voxels: int
    width: int
    advice: str = ""


@functools.cache
def detect() -> Machine:
    """Look at this machine once.

    A GPU or x86 CPU with bf16 units gets mixed bf16; any other CPU stays at fp32, because bf16
    autocast was measured many times slower there. Batches load in the training process on a CPU:
    its cores are busy with the step.
    """
    if torch.cuda.is_available():
        precision = "bf16-mixed" if torch.cuda.is_bf16_supported(False) else "16-mixed"
        workers = min(8, cores())
        memory = torch.cuda.get_device_properties(0).total_memory
        return Machine(
            accelerator="gpu",
            precision=precision,
            num_workers=workers,
            pin_memory=True,
            cache="gpu",
            patch_voxels=min(int(memory / BYTES_A_VOXEL), MOST_VOXELS),
            width=32,
        )
    return Machine(
        accelerator="cpu",
        precision="bf16-mixed" if cpu_has_bf16() else "32-true",
        num_workers=0,
        pin_memory=False,
        cache="disk",
        patch_voxels=500_000,
        width=8,
        advice=unusable_gpu(),
    )


def cpu_has_bf16() -> bool:
    """Whether this x86 CPU multiplies bf16; False where torch (before 2.10) cannot tell.

    ARM's units are not asked for: nothing was measured there.
    """
    units: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(units.get(unit) for unit in BF16_UNITS)


def unusable_gpu() -> str:
    """One line of advice where there is a GPU that torch cannot use, else empty."""
    if shutil.which("nvidia-smi") is None:
        return ""
    if torch.version.cuda is None:
        return f"a GPU is here, but this torch is built for CPUs only; to use it: {CUDA_WHEELS}"
    return "a GPU is here, but torch cannot use it; see what nvidia-smi says of its driver"


def how_to_apply(hardware: Mapping[str, Any]) -> dict[str, Any]:
    """How a trained network computes on the configured machine.

    Args:
        hardware: A file of ``conf/hardware``.

    Returns:
        ``device``, ``channels_last`` and ``precision``.

    Raises:
        PancsegError: If that machine is not here.
    """
    check_accelerator(hardware["accelerator"])
    device = "cpu" if hardware["accelerator"] == "cpu" else "cuda"
    return {"device": device, **{name: hardware[name] for name in ("channels_last", "precision")}}


def check_accelerator(accelerator: str) -> None:
    """Check that the accelerator asked for is there.

    Raises:
        PancsegError: With the line that mends it.
    """
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        advice = unusable_gpu() or "this machine shows none; use hardware=auto or hardware=cpu"
        raise PancsegError(f"hardware.accelerator={accelerator}: torch finds no GPU; {advice}")
