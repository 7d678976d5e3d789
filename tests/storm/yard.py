"""Where storms are let loose: commands as processes of their own, forked from one that is warm."""

import multiprocessing
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.conftest import Ended

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NOBODY = 65534
LONGEST_S = 120.0  # that a command may take before it counts as hanging


@dataclass(frozen=True)
class Weather:
    """What a process is to suffer.

    Attributes:
        environment: For the shim that is loaded before the C library.
        memory: Most bytes of address space; 0 is no limit.
        user: To become; 0 stays.
    """

    environment: Mapping[str, str]
    memory: int = 0
    user: int = 0


FAIR = Weather({})


class Started:
    """A command on its way."""

    def __init__(self, process: BaseProcess, folder: Path) -> None:
        self.process, self.folder = process, folder

    def is_alive(self) -> bool:
        return self.process.is_alive()

    def kill(self) -> bool:
        """Kill -9, with all that it started; whether that is what ended it."""
        try:
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        except ProcessLookupError:  # before it is a group of its own, or after its end
            self.process.kill()
        self.process.join()
        return self.process.exitcode == -signal.SIGKILL

    def wait(self) -> Ended:
        self.process.join(LONGEST_S)
        if self.is_alive():
            self.kill()
            raise AssertionError(f"it hangs: {self.text('err')}")
        return Ended(int(self.process.exitcode or 0), self.text("out"), self.text("err"))

    def text(self, name: str) -> str:
        return (self.folder / name).read_text(errors="replace")


class Yard:
    """Starts commands.

    Args:
        folder: For what they say, and for the shim.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.numbers = count()
        self.shim = build_shim(folder)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["tests.storm.warm"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(ROOT))
            patch.delenv("HYDRA_FULL_ERROR", raising=False)
            if self.shim:
                patch.setenv("LD_PRELOAD", str(self.shim))
            self.start("report", "--help").wait()  # the first one waits for what is imported

    def start(self, name: str, *words: str, weather: Weather = FAIR) -> Started:
        """Start ``python -m pancseg.<name> <words>``."""
        folder = self.folder / str(next(self.numbers))
        folder.mkdir()
        for stream in ("out", "err"):
            (folder / stream).touch()
        process = self.context.Process(target=go, args=(name, words, folder, weather))
        process.start()
        return Started(process, folder)

    def run(self, name: str, *words: str, weather: Weather = FAIR) -> Ended:
        """Run a command to its end."""
        return self.start(name, *words, weather=weather).wait()

    def timed(self, name: str, *words: str) -> tuple[Ended, float]:
        """Run a command to its end, and how long that took, s."""
        began = time.monotonic()
        return self.run(name, *words), time.monotonic() - began

    def needs_shim(self) -> None:
        if not self.shim:
            pytest.skip("no C compiler for the shim that lets writes fail and moves the clock")

    def counter(self) -> Path:
        """A file in which processes count their writes."""
        path = self.folder / f"counter{next(self.numbers)}"
        path.write_bytes(bytes(8))
        return path

    def full(self, under: Path, at: int, once: bool = False) -> tuple[Weather, Path]:
        """A disk that is full from the write number ``at`` on, and the file that counts them."""
        path = self.counter()
        told = {
            "STORM_UNDER": under,
            "STORM_AT": at,
            "STORM_ONCE": int(once),
            "STORM_COUNTER": path,
        }
        return Weather({name: str(value) for name, value in told.items()}), path


def counted(path: Path) -> int:
    """Writes that were counted in a file."""
    return int(struct.unpack("q", path.read_bytes())[0])


def go(name: str, words: tuple[str, ...], folder: Path, weather: Weather) -> None:
    """Be a command; in the new process."""
    os.setsid()
    for stream, number in (("out", 1), ("err", 2)):
        descriptor = os.open(folder / stream, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, number)
    os.chdir(folder)
    if weather.memory:
        resource.setrlimit(resource.RLIMIT_AS, (weather.memory, weather.memory))
    if weather.user:
        os.setgroups([])
        os.setgid(weather.user)
        os.setuid(weather.user)
    sys.argv = [f"pancseg.{name}", *map(str, words)]
    main = import_module(f"pancseg.{name}").main
    os.environ.update(weather.environment)
    main()


def build_shim(folder: Path) -> Path | None:
    """Compile what stands before the C library; None where nothing can."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler or sys.platform != "linux":
        return None
    path = folder / "weather.so"
    words = [compiler, "-shared", "-fPIC", "-O1", "-o", path, HERE / "weather.c", "-ldl"]
    subprocess.run(words, check=True, capture_output=True)
    return path


@contextmanager
def small_disk(folder: Path, megabytes: float) -> Iterator[None]:
    """A file system of some size at a folder; skipped where mounting is not permitted."""
    if sys.platform != "linux" or os.geteuid():
        pytest.skip("only root may mount a small file system")
    size = f"size={int(megabytes * 1024)}k"
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "none", folder], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no small file system can be mounted: {made.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
