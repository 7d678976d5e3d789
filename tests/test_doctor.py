"""``pancseg.doctor``: findings of this machine, and of machines that it is not."""

from types import SimpleNamespace

import pytest
import torch

from pancseg import doctor, hardware
from pancseg.doctor import ERROR, OK, WARNING, convolution_difference


def test_doctor_prints_a_line_a_check_and_collect_env(command):
    ended = command("doctor")
    findings, environment = ended.out.split("\n\n", 1)
    assert (ended.code, ended.err) == (0, "")
    assert f"PyTorch version: {torch.__version__}" in environment
    packages, gpu, decoders, disk = findings.splitlines()
    assert packages.split()[:2] == [OK, "packages"]
    assert gpu.split()[:2] in ([OK, "gpu"], [WARNING, "gpu"])
    assert {"JPEG2000Lossless", "JPEGLSLossless"} <= set(decoders.replace(",", "").split())
    assert "GB free at data.root" in disk


def test_a_check_that_raises_is_an_error_and_the_others_run(command, monkeypatch):
    def broken():
        raise ImportError("libcudart.so.12: cannot open")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    ended = command("doctor")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    _, gpu, decoders, *_ = ended.out.splitlines()
    assert "gpu       ImportError: libcudart.so.12: cannot open; pip install" in gpu
    assert [line.split()[0] for line in (gpu, decoders)] == [ERROR, OK]


@pytest.mark.parametrize(
    ("result", "status", "text"),
    [
        (0.01, OK, "Card, 24 GB, bfloat16"),
        (float("nan"), ERROR, "conv3d is off by nan%"),
        (RuntimeError("no kernel image is available"), ERROR, hardware.install_line("cu126")),
    ],
)
def test_each_gpu_computes_a_convolution(monkeypatch, result, status, text):
    def difference(device, dtype):
        if isinstance(result, Exception):
            raise result
        return result

    card = SimpleNamespace(name="Card", total_memory=24 * 10**9, major=8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    monkeypatch.setattr(doctor, "convolution_difference", difference)
    assert [(found, text in line) for found, line in doctor.check_gpus()] == [(status, True)] * 2


def test_a_convolution_in_half_precision_differs_by_little():
    assert 0 < convolution_difference("cpu", "float16") < doctor.MAX_DIFFERENCE
