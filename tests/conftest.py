"""Fixtures: the commands, run as a user runs them, on phantoms small enough for a test."""

import gzip
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from tests.no_network import ASKED, watch
from tests.storm.ledger import from_environment

PHANTOM = ["shape=[48,48,40]", "spacing_mm=[8,8,8]", "seed=3"]
SHALLOW = ["data.depth=32", "data.tail=shift"]
# for processes that are timed: coverage's tracer takes longer than what it watches
UNMEASURED = {key: value for key, value in os.environ.items() if "COVERAGE" not in key}


watch()
# before torch is loaded: more threads gain nothing in small tests, and wait long for busy cores
os.environ.setdefault("OMP_NUM_THREADS", "1")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run ``python -m pancseg.<name> <arguments>`` in this process."""

    def run(name: str, *arguments: str) -> Ended:
        capfd.readouterr()
        code = run_command(name, *arguments)
        out, err = capfd.readouterr()
        return Ended(code, out, err)

    return run


def run_command(name: str, *arguments: str) -> int:
    """Run a command in this process; the state of Hydra and of logging is put back."""
    with pytest.MonkeyPatch.context() as patch:
        if name == "prepare" and not any(word.startswith("processes=") for word in arguments):
            arguments = (*arguments, "processes=0")  # starting processes takes longer than the work
        patch.setattr(sys, "argv", [f"pancseg.{name}", *map(str, arguments)])
        patch.delenv("HYDRA_FULL_ERROR", raising=False)
        handlers = logging.getLogger().handlers[:]
        try:
            import_module(f"pancseg.{name}").main()
        except SystemExit as ended:
            return int(ended.code or 0)
        finally:
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = None
            for handler in set(logging.getLogger().handlers) - set(handlers):
                handler.close()
            logging.getLogger().handlers[:] = handlers
    raise AssertionError("a command ends by SystemExit")


@pytest.fixture(scope="session")
def dicom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six phantoms as DICOM: images, labels, truth."""
    out = tmp_path_factory.mktemp("dicom")
    assert run_command("phantom", f"out={out}", "patients=6", *PHANTOM) == 0
    return out


@pytest.fixture(scope="session")
def prepared(dicom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantoms as groups of 32."""
    root = tmp_path_factory.mktemp("prepared") / "group32"
    assert prepare(dicom, root) == 0
    return root


def prepare(dicom: Path, root: Path, *arguments: str) -> int:
    """Prepare groups of 32 of phantoms, under their own names."""
    source = [f"source.images={dicom / 'images'}", f"source.labels={dicom / 'labels'}"]
    return run_command(
        "prepare", *source, f"data.root={root}", "privacy=none", *SHALLOW, *arguments
    )


def contents(root: Path) -> dict[str, str]:
    """Every file below a folder: tables and JSON as text, so that a failure reads; else a hash.

    Packed files are unpacked first: ISA-L may pack equal content into other bytes.
    """
    return {
        str(path.relative_to(root)): path.read_text()
        if path.suffix in (".csv", ".json")
        else hashlib.sha256(unpacked(path)).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def unpacked(path: Path) -> bytes:
    """What a file holds, unzipped."""
    stored = path.read_bytes()
    return gzip.decompress(stored) if path.suffix == ".gz" else stored


def smoke(root: Path, run: Path, *arguments: str) -> list[str]:
    """Arguments of a training that takes seconds."""
    where = [f"data.root={root}", f"hydra.run.dir={run}"]
    coarse = "data.spacing_mm=[8,8,8]"  # as the phantoms are: 1.5 mm would be 150 times the voxels
    return ["experiment=smoke", coarse, *SHALLOW, *where, "split.val=1", "split.test=2", *arguments]


@pytest.fixture(scope="session")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two epochs."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    assert run_command("train", *smoke(prepared, run)) == 0
    return run


def scored_copy(trained: Path, run: Path, subset: str) -> Path:
    """A copy of a run in which nothing was scored yet, with the scores of one subset."""
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("scores"))
    best = run / "checkpoints" / "best.ckpt"
    assert run_command("evaluate", f"checkpoint={best}", f"subset={subset}") == 0
    return run


@pytest.fixture
def shared_data() -> Path:
    """Real scans beside the checkout, where there are any."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no shared/data beside this checkout")
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Where a test puts images for a layout to find."""
    return tmp_path / "images"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Where it puts their labels."""
    return tmp_path / "labels"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Enter tests that are lines of the storms' table there, where ``make storm`` asks for it."""
    report = yield
    mark = item.get_closest_marker("row")
    if mark and report.when == "call" and report.passed:
        flips = item.callspec.params.get("flips", 1) if hasattr(item, "callspec") else 1
        from_environment().count(*mark.args, flips)
    return report


@pytest.fixture(autouse=True)
def _without_the_network() -> Iterator[None]:
    """Nothing that a test or its fixtures run in this process asks for another machine."""
    yield
    asked = ASKED[:]
    ASKED.clear()
    assert asked == []


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing that a test writes lands in the checkout."""
    monkeypatch.chdir(tmp_path)
    return
