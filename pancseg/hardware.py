"""Settings that are fast on this machine, behind ``hardware=auto``."""

import functools
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pancseg.errors import PancsegError
from pancseg.parallel import cores

# least driver of NVIDIA for each index of torch's wheels; torch 2.12 and later have no others
WHEEL_INDEXES = ((580, "cu130"), (525, "cu126"))
WHEEL_URL = "https://download.pytorch.org/whl/"
BYTES_A_VOXEL = 15_000  # of memory for a voxel of a planned patch: 24 GB give 1.6 million
BF16_UNITS = ("avx512_bf16", "amx_bf16")  # as torch names them
MAX_VOXELS = 4_000_000  # 192 x 160 x 128: an abdomen at 2 mm
MEMORY_ERRORS = (  # in RuntimeErrors of libraries below torch
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "unable to find an engine",
    "CUDA error: out of memory",
    "CUDA out of memory",
    "can't allocate memory",
)


@dataclass(frozen=True)
class Machine:
    """Settings for a kind of machine; ``conf/hardware/auto.yaml`` explains them."""

    accelerator: str
    precision: str
    num_workers: int
    pin_memory: bool
    cache: str
    patch_voxels: int
    width: int
    batch_size: int
    steps_per_epoch: int
    advice: str = ""  # a line for the user


@functools.cache
def detect() -> Machine:
    """Settings for this machine.

    A GPU or x86 CPU with bf16 units gets mixed bf16; any other CPU stays at fp32, because bf16
    autocast was measured many times slower there. On a CPU batches load in the training process:
    the step keeps the cores busy.
    """
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        patch_voxels = min(int(memory / BYTES_A_VOXEL), MAX_VOXELS)
        return Machine(
            accelerator="gpu",
            precision="bf16-mixed" if torch.cuda.is_bf16_supported(False) else "16-mixed",
            num_workers=min(8, cores()),
            pin_memory=True,
            cache="gpu",
            patch_voxels=patch_voxels,
            width=32,
            batch_size=2 * max(1, int(memory / BYTES_A_VOXEL / patch_voxels)),
            steps_per_epoch=250,
        )
    return Machine(
        accelerator="cpu",
        precision="bf16-mixed" if cpu_has_bf16() else "32-true",
        num_workers=0,
        pin_memory=False,
        cache="disk",
        patch_voxels=500_000,
        width=8,
        batch_size=2,
        steps_per_epoch=50,
        advice=unusable_gpu(),
    )


def cpu_has_bf16() -> bool:
    """Whether this x86 CPU multiplies bf16; False where torch (before 2.10) cannot tell.

    ARM's units do not count: nothing was measured there.
    """
    units: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(units.get(unit) for unit in BF16_UNITS)


def unusable_gpu() -> str:
    """A line of advice where there is a GPU that torch cannot use, else empty."""
    driver = driver_version()
    if driver is None:
        return ""
    if not driver:
        return "a GPU is here, and nvidia-smi does not answer; install NVIDIA's driver again"
    index = next((index for least, index in WHEEL_INDEXES if driver >= least), None)
    if index is None:
        least = WHEEL_INDEXES[-1][0]
        return (
            f"a GPU is here, and its driver {driver} is too old for torch; install {least} or later"
        )
    built_for = torch.version.cuda or "CPUs only"
    version = torch.__version__.partition("+")[0]
    return (
        f"a GPU with driver {driver} is here, this torch is built for {built_for}; to use it: "
        f"pip install --force-reinstall torch=={version} --index-url {WHEEL_URL}{index}"
    )


def driver_version() -> int | None:
    """Major version of NVIDIA's driver; None without it, 0 where it does not answer."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
        return int(answer.stdout.split(".")[0])
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return 0


def device_settings(hardware: Mapping[str, Any]) -> dict[str, Any]:
    """``device`` and ``precision`` of inference on the configured machine.

    Args:
        hardware: A file of ``conf/hardware``.

    Raises:
        PancsegError: If that machine is not here.
    """
    check_accelerator(hardware["accelerator"])
    torch.backends.cudnn.benchmark = bool(hardware["benchmark"])  # windows are of one shape
    devices = hardware["devices"]
    number = devices[0] if isinstance(devices, list) and devices else 0
    device = "cpu" if hardware["accelerator"] == "cpu" else f"cuda:{number}"
    return {"device": device, "precision": hardware["precision"]}


def check_accelerator(accelerator: str) -> None:
    """Check that the configured accelerator is there; PancsegError with the line that mends it."""
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        advice = unusable_gpu() or "this machine shows none; use hardware=auto or hardware=cpu"
        raise PancsegError(f"hardware.accelerator={accelerator}: torch finds no GPU; {advice}")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, says that memory ran out.

    >>> is_out_of_memory(RuntimeError("CUDNN_STATUS_ALLOC_FAILED")), is_out_of_memory(ValueError())
    (True, False)
    """
    while error is not None:
        is_known = isinstance(error, RuntimeError) and any(m in str(error) for m in MEMORY_ERRORS)
        if is_known or isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        error = error.__cause__
    return False
