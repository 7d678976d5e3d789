"""``pancseg.doctor``: what works is tried, what does not is told with the line that mends it."""

import getpass
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import filelock
import pytest
import torch

from pancseg import hardware as machine
from pancseg import parallel
from pancseg.checkup import decoders, findings, gpu, hardware, software, storage
from pancseg.checkup.examination import CHECKS, looked
from pancseg.checkup.findings import BROKEN, OK, SLOW, Finding
from tests.conftest import Command

NAMES = list(CHECKS)


def test_a_sound_machine_is_told_in_ten_lines_and_ends_with_0(command: Command) -> None:
    ended = command("doctor")
    told = ended.out.splitlines()
    assert (ended.code, ended.err) == (0, "")
    assert [line.split()[1] for line in told] == NAMES
    assert {line.split()[0] for line in told} <= {OK, SLOW}
    assert f"torch {torch.__version__}" in told[0]
    assert told[8].endswith("lossless JPEG, JPEG-LS, JPEG 2000, RLE")


def test_json_holds_the_same_and_names_nobody(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "node", lambda: "ward7")
    monkeypatch.setattr(getpass, "getuser", lambda: "jdoe")
    monkeypatch.setenv("HOME", str(tmp_path))
    ended = command("doctor", "json=true", f"data.root={tmp_path / 'd'}", "runs=/scratch/jdoe/r")
    found = json.loads(ended.out)["findings"]
    assert [one["name"] for one in found] == NAMES
    assert "data.root=~/d" in ended.out and "runs=/scratch/<user>/r" in ended.out
    assert not re.search(rf"jdoe|ward7|{tmp_path}", ended.out)
    assert next(one for one in found if one["name"] == "disk")["facts"]["data.root"]["writable"]


def test_a_broken_decoder_is_named_and_ends_with_1(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = decoders.pixel_array

    def without_gdcm(one: object, decoding_plugin: str) -> object:
        if decoding_plugin == "gdcm":
            raise RuntimeError("gdcm is not there")
        return real(one, decoding_plugin=decoding_plugin)

    monkeypatch.setattr(decoders, "pixel_array", without_gdcm)
    ended = command("doctor")
    assert ended.code == 1
    assert "BROKEN  decoders    lossless JPEG (gdcm is not there); pip install" in ended.out
    assert ended.err.startswith("pancseg.doctor: broken: decoders;")


def test_a_decoder_that_gives_other_pixels_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    real = decoders.pixel_array
    monkeypatch.setattr(decoders, "pixel_array", lambda one, **given: real(one, **given) + 1)
    found = decoders.decoders()
    assert found.status == BROKEN
    assert set(found.facts.values()) == {"gives wrong pixels"}


def test_a_torch_that_does_not_import_is_told_and_the_rest_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open')\n")
    path = os.pathsep.join([str(tmp_path), str(Path(machine.__file__).parents[1])])
    ended = subprocess.run(
        [sys.executable, "-m", "pancseg.doctor"], check=False, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert ended.returncode == 1
    lines = ended.stdout.splitlines()
    assert [line.split()[1] for line in lines] == NAMES
    assert "torch does not import (ImportError: libcudart.so.12" in lines[0]
    assert lines[8].startswith("ok      decoders")


@pytest.mark.parametrize(
    ("units", "status"), [({"avx512_bf16": True}, OK), ({"avx512_bf16": False}, SLOW)]
)
def test_a_cpu_without_bf16_units_is_called_slow(
    monkeypatch: pytest.MonkeyPatch, units: dict[str, bool], status: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    monkeypatch.setattr(machine, "detect", machine.detect.__wrapped__)
    assert hardware.speed().status == status


def test_a_gpu_that_torch_cannot_use_is_reported_with_the_line_that_mends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "driver_version", lambda: 580)
    monkeypatch.setattr(gpu, "driver", lambda: "580.1")
    found = gpu.gpu()
    assert (found.status, found.facts["driver"]) == (SLOW, "580.1")
    assert found.words == machine.unusable_gpu()
    assert "--index-url" in found.words


def test_a_right_bf16_convolution_is_close_to_that_of_the_cpu() -> None:
    assert 0 < gpu.bf16_convolution_error("cpu") < gpu.MAX_BF16_ERROR


@pytest.mark.parametrize(
    ("gigabytes", "computes", "status"), [(24, True, OK), (6, True, SLOW), (24, False, BROKEN)]
)
def test_a_gpu_is_made_to_compute(
    monkeypatch: pytest.MonkeyPatch, gigabytes: int, computes: bool, status: str
) -> None:
    def ones(size: int, device: str) -> torch.Tensor:
        if not computes:
            raise RuntimeError("no kernel image is available for execution on the device")
        return torch.zeros(size)

    card = SimpleNamespace(name="Card", total_memory=gigabytes * 10**9, major=8, minor=9)
    monkeypatch.setattr(gpu, "bf16_convolution_error", lambda device: 0.01)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda n: card)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch, "ones", ones)
    assert gpu.gpu().status == status


@pytest.mark.parametrize(
    ("gigabytes", "says"), [(4, "processes=1"), (16, "give processes=8"), (64, "64.0 GB")]
)
def test_little_memory_is_told_with_what_fits(
    monkeypatch: pytest.MonkeyPatch, gigabytes: int, says: str
) -> None:
    monkeypatch.setattr(hardware, "main_memory", lambda: gigabytes * 10**9)
    monkeypatch.setattr(hardware, "cores_here", lambda: 16)
    assert says in hardware.memory().words


@pytest.mark.parametrize(("written", "quota"), [("150000 100000", 1.5), ("max 100000", None)])
def test_the_quota_of_a_container_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, written: str, quota: float | None
) -> None:
    (tmp_path / "cpu.max").write_text(written + "\n")
    monkeypatch.setattr(parallel, "CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(hardware, "cores_here", lambda: 8)
    found = hardware.cores()
    assert found.facts["quota"] == quota
    assert ("processes=1" in found.words) == (quota is not None)


def test_a_small_disk_is_told_with_how_many_scans_it_holds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=4e9))
    found = storage.disk(tmp_path / "not" / "there", tmp_path)
    assert found.status == SLOW
    assert "room for about 10 scans" in found.words
    assert not (tmp_path / "not").exists()


def test_a_folder_that_cannot_be_written_is_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(storage, "is_writable", lambda folder: folder != tmp_path)
    found = storage.disk(tmp_path, Path("/"))
    assert found.status == BROKEN
    assert found.words.count("cannot be written") == 1


def test_locks_that_keep_nobody_out_are_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert storage.sharing(tmp_path).facts["locks"] is True
    monkeypatch.setattr(filelock.FileLock, "_acquire", pretend)
    assert storage.sharing(tmp_path).status == BROKEN


def pretend(lock: filelock.BaseFileLock) -> None:
    """Take a lock without asking the system, as some network disks do."""
    lock._context.lock_file_fd = os.open(lock.lock_file, os.O_RDWR | os.O_CREAT)


def test_little_shared_memory_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(storage, "SHARED", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=64e6))
    assert "--shm-size" in storage.sharing(tmp_path).words


def test_what_extras_and_pancseg_itself_lack_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["numpy>=99", "nothing-such>=1", 'no-onnx>=1; extra == "export"']
    monkeypatch.setattr(software.metadata, "requires", lambda name: asked)
    numpy, nothing = software.unmet("")
    assert numpy.startswith("numpy is ") and numpy.endswith(", expected >=99")
    assert nothing == "nothing-such is missing"
    assert list(software.unmet("export")) == ["no-onnx is missing"]
    assert software.versions().status == SLOW


def test_what_breaks_while_it_is_looked_at_is_broken() -> None:
    assert looked("nothing", "storage", ()).status == BROKEN


def test_a_users_name_inside_a_word_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "data")
    assert findings.private("free for data.root=x, /mnt/data/x") == (
        "free for data.root=x, /mnt/<user>/x"
    )
    assert findings.as_lines([Finding("a", OK, "b")]) == ["ok      a           b"]
