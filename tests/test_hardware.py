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
from tests.conftest import compose


def fake_cuda(patch: pytest.MonkeyPatch, gigabytes: int, bf16: bool = True) -> None:
    card = SimpleNamespace(total_memory=gigabytes * 10**9)
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    patch.setattr(torch.cuda, "get_device_properties", lambda device: card)


@pytest.mark.parametrize(
    ("units", "precision"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16-mixed"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16-mixed"),
        ({"avx512_bf16": False, "amx_bf16": False, "avx512_f": True}, "32-true"),
        (None, "32-true"),  # before torch 2.10
    ],
)
def test_a_cpu_computes_in_what_it_has_units_for(
    monkeypatch: pytest.MonkeyPatch, units: dict[str, bool] | None, precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    if units:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    machine = detect.__wrapped__()
    assert (machine.accelerator, machine.precision, machine.num_workers) == ("cpu", precision, 0)


@pytest.mark.parametrize(
    ("gigabytes", "patch_voxels", "batch_size"),
    [
        (2, 133_333, 2),
        (6, 400_000, 3),  # (0.6 * 6e9 - 1.5e9) / 1600 = 1.3 million voxels
        (24, 1_600_000, 5),  # 8.1 million
        (141, 4_000_000, 8),  # 52 million would be 12
    ],
)
def test_patches_and_precision_are_what_the_gpu_takes(
    monkeypatch: pytest.MonkeyPatch, gigabytes: int, patch_voxels: int, batch_size: int
) -> None:
    for bf16, precision in ((True, "bf16-mixed"), (False, "16-mixed")):
        fake_cuda(monkeypatch, gigabytes, bf16)
        machine = detect.__wrapped__()
        assert (machine.patch_voxels, machine.batch_size) == (patch_voxels, batch_size)
        assert (machine.cache, machine.precision) == ("gpu", precision)


@pytest.mark.parametrize(("devices", "device"), [(1, "cuda:0"), ([1], "cuda:1")])
def test_the_configured_gpu_is_used_with_autotuning(
    monkeypatch: pytest.MonkeyPatch, devices: Any, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    cfg = compose("train", "hardware=rtx4090", f"hardware.devices={devices}")
    settings = {**cfg.hardware, "devices": devices}
    assert hardware.device_settings(settings) == {"device": device, "precision": "bf16-mixed"}
    assert torch.backends.cudnn.benchmark and cfg.trainer.benchmark
    assert cfg.trainer.devices == devices


def test_the_rate_of_strong_falls_with_the_width_of_the_hardware() -> None:
    for choice, lr in (("cpu", 8e-3), ("rtx4090", 2e-3)):
        cfg = compose("train", "experiment=strong", f"hardware={choice}")
        assert cfg.optimizer.lr == pytest.approx(lr)


@pytest.mark.parametrize(
    ("driver", "cuda", "advice"),
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
    monkeypatch: pytest.MonkeyPatch, driver: int, cuda: str | None, advice: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(hardware, "driver_version", lambda: driver)
    assert detect.__wrapped__().advice.endswith(advice)
    with pytest.raises(PancsegError, match=r"torch finds no GPU; a GPU"):
        check_accelerator("gpu")


def test_a_machine_without_a_gpu_is_told_what_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(PancsegError, match="use hardware=auto or hardware=cpu"):
        check_accelerator("gpu")


def test_the_pages_name_an_index_of_wheels_that_exists() -> None:
    root = Path(__file__).parent.parent
    pages = [path.read_text() for path in (root / "README.md", *(root / "docs").rglob("*.md"))]
    named = set(re.findall(re.escape(hardware.WHEEL_URL) + r"(\w+)", " ".join(pages)))
    assert named and named <= {"cpu", *(index for _, index in hardware.WHEEL_INDEXES)}


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
    wrapped = RuntimeError("MONAI: cannot compute the importance map")
    wrapped.__cause__ = error
    assert hardware.is_out_of_memory(error) is hardware.is_out_of_memory(wrapped) is is_memory
