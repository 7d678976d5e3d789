"""What ``hardware=auto`` finds, on machines that this one is not."""

import shutil
from types import SimpleNamespace

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
    assert (machine.cache, machine.patch_voxels) == ("gpu", 1_600_000)
    assert (machine.accelerator, machine.precision) == ("gpu", precision)
    assert (machine.num_workers, machine.pin_memory) == (4, True)


def test_a_gpu_that_a_cpu_build_of_torch_cannot_use_is_told_with_the_line_that_mends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "pip install --force-reinstall torch==" in detect.__wrapped__().advice
    with pytest.raises(PancsegError, match=r"torch finds no GPU; .*pip install"):
        check_accelerator("gpu")


def test_a_machine_without_a_gpu_is_told_what_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(PancsegError, match="use hardware=auto or hardware=cpu"):
        check_accelerator("gpu")
