"""``pancseg.doctor``: findings of this machine, and of machines that it is not."""

import math
import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement
from pydicom import uid

from pancseg import doctor, hardware
from pancseg.dicom import pixels
from pancseg.doctor import ERROR, OK, WARNING, convolution_difference
from tests.conftest import Command

ROOT = Path(__file__).parents[1]


def test_doctor_prints_collect_env_and_a_line_for_each_check(command: Command) -> None:
    ended = command("doctor")
    environment, findings = ended.out.split("\n\nok       packages", 1)
    assert (ended.code, ended.err) == (0, "")
    assert f"PyTorch version: {torch.__version__}" in environment
    assert "Vulnerability" not in environment and "Flags:" not in environment
    packages, gpu, decoders, disk = findings.splitlines()
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {Requirement(dependency).name for dependency in dependencies}
    assert {package.split()[0] for package in packages.split(", ")} == {"pancseg", *names}
    assert gpu.split()[:2] in ([OK, "gpu"], [WARNING, "gpu"])
    syntaxes = {"JPEG2000Lossless", "JPEGLSLossless", "JPEGLosslessSV1", "RLELossless"}
    assert syntaxes <= set(decoders.replace(",", "").split())
    assert "GB free at data.root" in disk


def test_a_torch_that_cannot_be_imported_is_an_error_and_the_other_checks_run(
    tmp_path: Path,
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open')\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    ended = subprocess.run(
        [sys.executable, "-m", "pancseg.doctor"], check=False, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", "HYDRA_FULL_ERROR": "0"},
    )  # fmt: skip
    lines = ended.stdout.splitlines()
    assert lines[0] == "torch.utils.collect_env gave no report"
    assert [line.split()[0] for line in lines[2:4]] == [OK, ERROR]
    assert "gpu       ImportError: libcudart.so.12: cannot open; pip install" in lines[3]
    assert lines[4].startswith("ok       decoders")
    assert ended.returncode == 1
    assert ended.stderr == "pancseg.doctor: errors: gpu; the lines give advice\n"


def test_programs_that_hang_in_collect_env_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hanging = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; {}'])"
    waiting = hanging.format("time.sleep(10)")
    monkeypatch.setattr(doctor, "COLLECT_ENV", [sys.executable, "-c", waiting])
    monkeypatch.setattr(doctor, "TIMEOUT_S", 1)
    began = time.monotonic()
    assert doctor.environment() == "torch.utils.collect_env gave no report"
    assert time.monotonic() - began < 8


def test_packages_that_are_missing_or_of_another_version_are_findings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = ["numpy>=99", "nothing-such>=1", "pydicom>=3", 'no-onnx>=1; extra == "export"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: asked)
    numpy, nothing, rest = doctor.check_packages()
    assert numpy[0] == WARNING and ", expected >=99; pip install" in numpy[1]
    assert nothing == (ERROR, f"nothing-such is missing; {doctor.INSTALL}")
    assert [word.split()[0] for word in rest[1].split(", ")] == ["pancseg", "numpy", "pydicom"]


def test_transfer_syntaxes_without_decoder_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = {uid.JPEGLossless: "absent", uid.RLELossless: "pydicom", uid.JPEG2000MC: "pylibjpeg"}
    monkeypatch.setattr(pixels, "DECODERS", plugins)
    missing, found = doctor.check_decoders()
    assert missing == (ERROR, f"cannot decode JPEGLossless; {doctor.INSTALL}")
    assert found == (OK, "RLELossless")


def test_a_gpu_that_torch_cannot_use_is_a_warning_with_the_install_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(hardware, "driver_version", lambda: 580)
    ((status, advice),) = doctor.check_gpus()
    assert status == WARNING and advice.endswith(hardware.install_line("cu130"))


NO_KERNEL = RuntimeError("CUDA error: no kernel image is available for execution\nmore lines")


@pytest.mark.parametrize(
    ("capability", "result", "status", "says"),
    [
        (8, 0.01, OK, "Card, 24 GB, bfloat16"),
        (7, 0.01, OK, "Card, 24 GB, float16"),
        (8, 0.3, ERROR, "conv3d is off by 30%"),
        (8, math.nan, ERROR, "conv3d is off by nan%"),
        (7, NO_KERNEL, ERROR, f"for execution; {hardware.install_line('cu126')}"),
        (12, NO_KERNEL, ERROR, f"for execution; {hardware.install_line('cu130')}"),
        (8, torch.OutOfMemoryError("CUDA out of memory"), ERROR, "hardware=cpu works without it"),
    ],
)
def test_each_gpu_computes_a_convolution(
    monkeypatch: pytest.MonkeyPatch,
    capability: int,
    result: float | Exception,
    status: str,
    says: str,
) -> None:
    def difference(device: str, dtype: str) -> float:
        if device == "cuda:1" and isinstance(result, Exception):
            raise result
        return result if device == "cuda:1" else 0.0

    card = SimpleNamespace(name="Card", total_memory=24 * 10**9, major=capability)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    monkeypatch.setattr(doctor, "convolution_difference", difference)
    first, second = doctor.check_gpus()
    assert first[0] == OK
    assert second[0] == status and says in second[1]


def test_wrong_half_precision_convolutions_and_gradients_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert convolution_difference("cpu", "float32") == 0
    assert 0 < convolution_difference("cpu", "float16") < doctor.MAX_DIFFERENCE
    real = torch.nn.functional.conv3d

    def wrong(image: torch.Tensor, weight: torch.Tensor, padding: int) -> torch.Tensor:
        scaled = weight * 1.5 if image.dtype == torch.float16 else weight
        output = real(image, scaled, padding=padding)
        return real(image, weight, padding=padding).detach() + output - output.detach()

    monkeypatch.setattr(torch.nn.functional, "conv3d", wrong)
    assert convolution_difference("cpu", "float16") == pytest.approx(0.5, abs=0.01)


def test_a_small_disk_and_the_caches_below_the_root_are_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for root in ("group64", "volume"):
        file = tmp_path / "prepared" / root / "cache" / ("0" * 16) / "case_image.npy"
        file.parent.mkdir(parents=True)
        with file.open("wb") as opened:
            opened.truncate(3 * 10**9)  # a sparse file
    for root, size in (("prepared", "6.0"), ("prepared/volume", "3.0"), ("prepared/none", "0.0")):
        for free, status in ((20e9, OK), (4e9, WARNING)):
            monkeypatch.setattr(
                shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free)
            )
            ((found, text),) = doctor.check_disk(tmp_path / root)
            assert found == status and f"caches of preprocessed volumes {size} GB" in text
            assert ("room for 10 scans, use another disk" in text) == (status == WARNING)
    assert not (tmp_path / "prepared/none").exists()
