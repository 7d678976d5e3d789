"""Fixtures: the commands, run as a user runs them, on phantoms small enough for a test."""

import gzip
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from pancseg.config import conf_folder, register_resolvers

PHANTOM = ["shape=[48,48,40]", "spacing_mm=[8,8,8]", "seed=3"]
SHALLOW = ["data.depth=32", "data.tail=shift"]
OUTSIDE: list[str] = []  # addresses of other machines that this process asked for
# before torch is loaded: more threads gain nothing in small tests, and wait long for busy cores
os.environ.setdefault("OMP_NUM_THREADS", "1")


def note_network(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = str(arguments[1][0])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = str(arguments[0] or "localhost")
    else:
        return
    if host not in ("localhost", "::", "::1", "0.0.0.0") and not host.startswith("127."):
        OUTSIDE.append(host)


sys.addaudithook(note_network)


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    def run(name: str, *arguments: str) -> Ended:
        capfd.readouterr()
        return Ended(run_command(name, *arguments), *capfd.readouterr())

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
    root = tmp_path_factory.mktemp("prepared") / "group32"
    assert prepare(dicom, root) == 0
    return root


def prepare(dicom: Path, root: Path, *arguments: str) -> int:
    """Prepare groups of 32 of phantoms, under their own names."""
    source = [f"source.images={dicom / 'images'}", f"source.labels={dicom / 'labels'}"]
    words = [*source, f"data.root={root}", "privacy=none", *SHALLOW, *arguments]
    return run_command("prepare", *words)


def contents(root: Path) -> dict[str, str]:
    """Files below a folder: tables and JSON as text, so that a failure reads; others as a hash."""
    return {
        str(path.relative_to(root)): path.read_text()
        if path.suffix in (".csv", ".json")
        else hashlib.sha256(unpacked(path)).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def unpacked(path: Path) -> bytes:
    """Content of a file, unzipped: ISA-L may pack equal content into other bytes."""
    stored = path.read_bytes()
    return gzip.decompress(stored) if path.suffix == ".gz" else stored


def smoke(root: Path, run: Path, *arguments: str) -> list[str]:
    """Arguments of a training that takes seconds."""
    where = [f"data.root={root}", f"hydra.run.dir={run}"]
    coarse = "data.spacing_mm=[8,8,8]"  # as the phantoms are: 1.5 mm would be 150 times the voxels
    return ["experiment=smoke", coarse, *SHALLOW, *where, "split.val=1", "split.test=2", *arguments]


@pytest.fixture(scope="session")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "trained"
    assert run_command("train", *smoke(prepared, run)) == 0
    return run


def compose(name: str, *overrides: str) -> Any:
    register_resolvers()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return hydra_compose(name, list(overrides))


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
    return tmp_path / "images"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return tmp_path / "labels"


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tests write nothing into the checkout and ask for no other machine."""
    monkeypatch.chdir(tmp_path)
    yield
    asked = OUTSIDE[:]
    OUTSIDE.clear()
    assert asked == []
