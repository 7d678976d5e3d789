"""What ``hardware=auto`` finds, on machines that this one is not."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pancseg import hardware
from pancseg.errors import PancsegError
from pancseg.hardware import check_accelerator, detect


@pytest.mark.parametrize(
    ("units", "precision"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16-mixed"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16-mixed"),
        ({"avx512_bf16": False, "amx_bf16": False, "avx512_f": True}, "32-true"),
        ({"architecture": "aarch64", "bf16": True}, "32-true"),
    ],
)
def test_a_cpu_computes_in_what_it_has_units_for_and_loads_in_its_own_process(
    monkeypatch: pytest.MonkeyPatch, units: dict[str, bool], precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    machine = detect.__wrapped__()
    assert (machine.accelerator, machine.precision, machine.num_workers) == ("cpu", precision, 0)


def test_an_older_torch_that_cannot_tell_of_units_computes_in_fp32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert detect.__wrapped__().precision == "32-true"


@pytest.mark.parametrize(("bf16", "precision"), [(True, "bf16-mixed"), (False, "16-mixed")])
def test_a_gpu_computes_in_what_it_has_units_for(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(hardware, "cores", lambda: 4)
    memory = SimpleNamespace(total_memory=24_000_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    machine = detect.__wrapped__()
    assert (machine.cache, machine.patch_voxels, machine.batch_size) == ("gpu", 1_600_000, 5)
    assert (machine.accelerator, machine.precision) == ("gpu", precision)
    assert (machine.num_workers, machine.pin_memory) == (4, True)


@pytest.mark.parametrize(
    ("gigabytes", "patch_voxels", "batch_size"),
    [
        (6, 400_000, 3),  # (0.6 * 6e9 - 1.5e9) / 1600 = 1.3 million voxels
        (12, 800_000, 4),  # 3.6 million
        (24, 1_600_000, 5),  # 8.1 million
        (80, 4_000_000, 7),  # 29 million
        (141, 4_000_000, 8),  # 52 million would be 12
        (2, 133_333, 2),
    ],
)
def test_the_patches_of_a_step_fill_the_card(
    monkeypatch: pytest.MonkeyPatch, gigabytes: int, patch_voxels: int, batch_size: int
) -> None:
    card = SimpleNamespace(total_memory=gigabytes * 10**9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    machine = detect.__wrapped__()
    assert (machine.patch_voxels, machine.batch_size) == (patch_voxels, batch_size)


@pytest.mark.parametrize(
    ("driver", "cuda", "says"),
    [
        (580, None, "/cu130"),
        (550, None, "/cu126"),
        (550, "13.0", "/cu126"),
        (580, "13.0", "check CUDA_VISIBLE_DEVICES and the GPUs of the container"),
        (0, None, "nvidia-smi does not answer; install NVIDIA's driver again"),
        (470, None, "driver 470 is too old for torch; install 525 or later"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_reported_with_the_line_that_mends_it(
    monkeypatch: pytest.MonkeyPatch, driver: int, cuda: str | None, says: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(hardware, "driver_version", lambda: driver)
    assert detect.__wrapped__().advice.endswith(says)
    with pytest.raises(PancsegError, match=r"torch finds no GPU; a GPU"):
        check_accelerator("gpu")


def test_the_pages_name_an_index_of_wheels_that_exists() -> None:
    indexes = {index for _, index in hardware.WHEEL_INDEXES}
    root = Path(__file__).parent.parent
    named = set()
    for page in [root / "README.md", *(root / "docs").rglob("*.md")]:
        named |= set(re.findall(re.escape(hardware.WHEEL_URL) + r"(\w+)", page.read_text()))
    assert named and named <= indexes | {"cpu"}


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (torch.AcceleratorError("CUDA error: out of memory", 2), True),
        (MemoryError(), True),
        (RuntimeError("shapes differ"), False),
        (KeyError("CUDA out of memory"), False),
    ],
)
def test_memory_that_ran_out_is_recognised_in_each_of_its_forms(
    error: Exception, is_memory: bool
) -> None:
    assert hardware.is_out_of_memory(error) is is_memory
    wrapped = RuntimeError("MONAI: cannot compute the importance map")
    wrapped.__cause__ = error
    assert hardware.is_out_of_memory(wrapped) is is_memory


@pytest.mark.parametrize(("devices", "device"), [(1, "cuda:0"), ([1], "cuda:1")])
def test_inference_uses_the_configured_gpu(
    monkeypatch: pytest.MonkeyPatch, devices: Any, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    settings = {"accelerator": "gpu", "devices": devices, "precision": "32-true", "benchmark": True}
    assert hardware.device_settings(settings) == {"device": device, "precision": "32-true"}
    assert torch.backends.cudnn.benchmark


def test_a_machine_without_a_gpu_is_told_what_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(PancsegError, match="use hardware=auto or hardware=cpu"):
        check_accelerator("gpu")
