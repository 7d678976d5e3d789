"""``pancseg.doctor``: findings of this machine, and of machines that it is not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pancseg import doctor, hardware
from pancseg.doctor import ERROR, OK, WARNING, convolution_difference

NO_KERNEL = RuntimeError("CUDA error: no kernel image is available for execution\nmore lines")


def test_doctor_prints_collect_env_and_a_line_a_check(command):
    ended = command("doctor")
    environment, findings = ended.out.split("\n\nok       packages", 1)
    assert (ended.code, ended.err) == (0, "")
    assert f"PyTorch version: {torch.__version__}" in environment and "Flags:" not in environment
    _, gpu, decoders, disk = findings.splitlines()
    assert gpu.split()[:2] in ([OK, "gpu"], [WARNING, "gpu"])
    assert {"JPEG2000Lossless", "JPEGLSLossless"} <= set(decoders.replace(",", "").split())
    assert "GB free at data.root" in disk


def test_a_torch_that_cannot_be_imported_is_an_error_and_the_other_checks_run(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open')\n")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    words = [sys.executable, "-W", "ignore", "-m", "pancseg.doctor"]
    environment = {**os.environ, "PYTHONPATH": path, "HYDRA_FULL_ERROR": "0"}
    ended = subprocess.run(words, capture_output=True, text=True, env=environment)
    lines = ended.stdout.splitlines()
    assert lines[0] == "torch.utils.collect_env gave no report"
    assert [line.split()[0] for line in lines[2:5]] == [OK, ERROR, OK]
    assert "gpu       ImportError: libcudart.so.12: cannot open; pip install" in lines[3]
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)


def test_missing_and_other_packages_and_a_small_disk_are_findings(monkeypatch, tmp_path):
    required = ["numpy>=99", "nothing-such>=1", "pydicom>=3", 'no-onnx>=1; extra == "export"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: required)
    numpy, nothing, rest = doctor.check_packages()
    assert numpy[0] == WARNING and ", expected >=99; pip install" in numpy[1]
    assert nothing == (ERROR, f"nothing-such is missing; {doctor.INSTALL}")
    assert rest[0] == OK and "no-onnx" not in rest[1]
    for name in ("group64", "volume"):
        file = tmp_path / "prepared" / name / "cache" / ("0" * 16) / "case_image.npy"
        file.parent.mkdir(parents=True)
        file.touch()
        os.truncate(file, 3 * 10**9)  # a sparse file
    for root, gb, free in (("prepared", 6, 20), ("prepared/volume", 3, 4), ("none", 0, 4)):
        usage = SimpleNamespace(free=free * 1e9)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        ((status, text),) = doctor.check_disk(tmp_path / root)
        assert status == (OK if free == 20 else WARNING) and f"volumes {gb}.0 GB" in text
        assert ("room for 10 scans" in text) == (status == WARNING)


def test_each_gpu_computes_a_convolution_and_an_unusable_gpu_is_a_finding(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(hardware, "driver_version", lambda: 580)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ((found, advice),) = doctor.check_gpus()  # of a torch without CUDA
    assert found == WARNING and advice.endswith(hardware.install_line("cu130"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for capability, result, status, text in (
        (8, 0.01, OK, "Card, 24 GB, bfloat16"),
        (8, float("nan"), ERROR, "conv3d is off by nan%"),
        (7, NO_KERNEL, ERROR, f"for execution; {hardware.install_line('cu126')}"),
        (12, NO_KERNEL, ERROR, f"for execution; {hardware.install_line('cu130')}"),
        (8, torch.OutOfMemoryError("out of memory"), ERROR, "hardware=cpu works without it"),
    ):

        def difference(device, dtype, result=result):
            if device == "cuda:1" and isinstance(result, Exception):
                raise result
            return result if device == "cuda:1" else 0.0

        card = SimpleNamespace(name="Card", total_memory=24 * 10**9, major=capability)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number, card=card: card)
        monkeypatch.setattr(doctor, "convolution_difference", difference)
        first, second = doctor.check_gpus()
        assert (first[0], second[0]) == (OK, status) and text in second[1]


def test_wrong_convolutions_in_half_precision_are_measured(monkeypatch):
    assert 0 < convolution_difference("cpu", "float16") < doctor.MAX_DIFFERENCE
    conv3d = torch.nn.functional.conv3d

    def wrong(image, weight, padding):
        """Right output, wrong gradient."""
        scaled = conv3d(image, weight * (1.5 if image.dtype == torch.float16 else 1), padding=1)
        return conv3d(image, weight, padding=1).detach() + scaled - scaled.detach()

    monkeypatch.setattr(torch.nn.functional, "conv3d", wrong)
    assert convolution_difference("cpu", "float16") == pytest.approx(0.5, abs=0.01)
