"""Settings that are fast on this machine, behind ``hardware=auto``."""

import ctypes
import functools
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from pancseg.errors import PancsegError
from pancseg.parallel import cores

# least driver of NVIDIA for each index of torch's wheels; torch 2.12 and later have no others
WHEEL_INDEXES = ((580, "cu130"), (525, "cu126"))
WHEEL_URL = "https://download.pytorch.org/whl/"
BF16_UNITS = ("avx512_bf16", "amx_bf16")  # as torch names them
# of a training on a GPU
MEMORY_A_PATCH_VOXEL = 15_000  # bytes of the card for a voxel of a patch: 24 GB give 1.6 million
MAX_PATCH_VOXELS = 4_000_000  # 192 x 160 x 128: an abdomen at 2 mm
STEP_SHARE = 0.6  # of the card for a step; what is left is for volumes, see VOLUME_SHARE
VOLUME_SHARE = 0.2  # of free memory for volumes of training, and of the rest for validation
FIXED_BYTES = 1.5e9  # context; weights, gradients, optimizer and average of model=resunet
# model=resunet of width 32 in bf16: 983 are saved for the backward pass (counted); the rest is for
# gradients, cuDNN's workspace and fragments (estimated, not measured on a GPU)
BYTES_A_VOXEL = 1_600
MAX_BATCH = 8  # nothing larger was tried
STEP_S = 0.02  # least seconds of a step: many small kernels (estimated)
FLOP_PER_S = 5e13  # of bf16 convolutions (estimated, RTX 4090)
COMPILE_FROM_S = 20 * 60  # seconds of a training; compiling takes minutes
MEMORY_ERRORS = (  # in RuntimeErrors of libraries below torch
    "STATUS_ALLOC_FAILED", "unable to find an engine", "CUDA error: out of memory",
    "CUDA out of memory", "can't allocate memory",
)  # fmt: skip
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


@dataclass(frozen=True)
class Machine:
    """Settings for a machine, by default a CPU; ``conf/hardware/auto.yaml`` explains them."""

    accelerator: str
    precision: str
    num_workers: int = 0
    pin_memory: bool = False
    cache: str = "disk"
    patch_voxels: int = 500_000
    width: int = 8
    full_resolution: bool = False
    light_decoder: bool = True
    batch_size: int = 2
    steps_per_epoch: int = 50
    advice: str = ""  # a line for the user


@functools.cache
def detect() -> Machine:
    """Settings for this machine.

    A CPU without bf16 units stays at fp32: bf16 autocast was measured many times slower there. On a
    CPU batches load in the training process: the step keeps the cores busy.
    """
    if not torch.cuda.is_available():
        is_fast = cpu_has_bf16()
        precision = "bf16-mixed" if is_fast else "32-true"
        machine = Machine("cpu", precision, advice=unusable_gpu())
        return replace(machine, full_resolution=is_fast, light_decoder=not is_fast)
    memory = torch.cuda.get_device_properties(0).total_memory
    patch_voxels = min(memory // MEMORY_A_PATCH_VOXEL, MAX_PATCH_VOXELS)
    voxels = (STEP_SHARE * memory - FIXED_BYTES) / BYTES_A_VOXEL
    return Machine(
        accelerator="gpu",
        precision="bf16-mixed" if torch.cuda.is_bf16_supported(False) else "16-mixed",
        num_workers=min(8, cores()),
        pin_memory=True,
        cache="gpu",
        patch_voxels=patch_voxels,
        width=32,
        full_resolution=True,
        light_decoder=False,
        batch_size=max(2, min(int(voxels / patch_voxels), MAX_BATCH)),
        steps_per_epoch=250,
    )


def can_compile() -> bool:
    """Whether ``torch.compile`` has on a GPU what it needs: Triton, a C compiler, Python.h."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return bool(find_spec("triton") and compiler and header.is_file())


def cpu_has_bf16() -> bool:
    """Whether this x86 CPU multiplies bf16; False where torch (before 2.10) cannot tell."""
    units: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(units.get(unit) for unit in BF16_UNITS)  # ARM's units were not measured


def unusable_gpu() -> str:
    """A line of advice where there is a GPU that torch cannot use, else empty."""
    driver = driver_version()
    if driver is None:
        return ""
    if not driver:
        return "a GPU is here, and nvidia-smi does not answer; install NVIDIA's driver again"
    oldest = WHEEL_INDEXES[-1][0]
    if driver < oldest:
        return f"a GPU is here, and driver {driver} is too old for torch; install {oldest} or later"
    gpu = f"a GPU with driver {driver} is here, and"
    index = next(index for least, index in WHEEL_INDEXES if driver >= least)
    if torch.version.cuda and f"cu{torch.version.cuda.replace('.', '')}" <= index:
        return f"{gpu} torch finds none; check CUDA_VISIBLE_DEVICES and the GPUs of the container"
    built_for = torch.version.cuda or "CPUs only"
    return f"{gpu} this torch is built for {built_for}; to use it: {install_line(index)}"


def install_line(index: str) -> str:
    """The command that installs this version of torch from an index of ``WHEEL_INDEXES``."""
    version = torch.__version__.partition("+")[0]
    return f"pip install --force-reinstall torch=={version} --index-url {WHEEL_URL}{index}"


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
    """Prepare the process for inference; ``device`` and ``precision`` by ``conf/hardware``."""
    check_accelerator(hardware["accelerator"])
    torch.backends.cudnn.benchmark = bool(hardware["benchmark"])  # windows are of one shape
    if hardware["accelerator"] == "cpu":
        keep_freed_memory()
    devices = hardware["devices"]
    number = devices[0] if devices and not isinstance(devices, int | str) else 0
    device = "cpu" if hardware["accelerator"] == "cpu" else f"cuda:{number}"
    return {"device": device, "precision": hardware["precision"]}


def check_accelerator(accelerator: str) -> None:
    """Check that the configured accelerator is there; PancsegError with the line that mends it."""
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        advice = unusable_gpu() or "this machine shows none; use hardware=auto or hardware=cpu"
        raise PancsegError(f"hardware.accelerator={accelerator}: torch finds no GPU; {advice}")


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step or window on a CPU.

    By default it returns large blocks to the system, and each step faults the same pages in again,
    which took a quarter of its time on a virtual machine. Holds for the process from here on.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, -1)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, says that memory ran out."""
    while error is not None:
        is_known = isinstance(error, RuntimeError) and any(m in str(error) for m in MEMORY_ERRORS)
        if is_known or isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        error = error.__cause__
    return False
