"""Every command that a page tells to type, typed: where what it names is there, and for seconds.

The tutorial has a test of its own; a cluster has tests/slurm.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import Command, run_command
from tests.data_sets import lay_out
from tests.documented import PAGES, ROOT, commands_of

pytestmark = pytest.mark.slow
OWN_TESTS = {"tutorial.md"}
TYPED = [page for page in PAGES if page.name not in OWN_TESTS and commands_of(page)]
COARSE = ["data.spacing_mm=[9,9,4]", "data.spatial_size=[32,32,32]"]
DEEP = ["data.spacing_mm=[9,9,4]", "data.spatial_size=[64,64,32]"]  # for networks of MONAI's
BRIEF = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1"]
ON_A_CPU = [
    "hardware.accelerator=cpu",
    "hardware.precision=32-true",
    "hardware.batch_size=2",
    "hardware.width=8",
    "data.num_workers=0",
    "data.pin_memory=false",
]
SMALL = ["patients=1", "shape=[32,32,24]", "spacing_mm=[10,10,10]"]
# what this machine has not: several cards, several machines, a cluster
ELSEWHERE = re.compile(
    r"hydra\.launcher\.|trainer\.(num_nodes|devices)=|hardware\.devices=|trainer\.strategy=ddp"
)
DIR = {"nifti": ("nifti/images", "nifti/labels"), "dicom": ("scans/images", "drawn")}
DEEPER = {"ct.nii.gz": "totalsegmentator", "pancreas.nii.gz": "totalsegmentator"}


@dataclass(frozen=True)
class World:
    """What the pages name."""

    data: Path
    roots: Path
    run: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Six phantoms in every layout, prepared in three ways, and a run that was judged."""
    base = tmp_path_factory.mktemp("world")
    where = World(base / "data", base / "prepared", base / "run")
    phantoms = base / "phantoms"
    size = ["patients=6", "seed=3", "shape=[40,40,96]", "spacing_mm=[9,9,4]"]
    assert run_command("phantom", f"out={phantoms}", *size) == 0
    lay_out(phantoms, where.data)
    (where.data / "drawn").symlink_to(phantoms / "labels")
    source = [f"source.images={phantoms / 'images'}", f"source.labels={phantoms / 'labels'}"]
    for name in ("group64", "group90", "volume"):
        root = f"data.root={where.roots / name}"
        assert run_command("prepare", f"data={name}", root, *source) == 0
    root = f"data.root={where.roots / 'volume'}"  # on patches: export refuses networks of groups
    words = short("train", ("data=volume", root, "model=tiny", f"hydra.run.dir={where.run}"))
    assert run_command("train", *words) == 0
    best = where.run / "checkpoints" / "best.ckpt"
    for subset in ("val", "test"):
        assert run_command("evaluate", f"checkpoint={best}", f"subset={subset}") == 0
    return where


def settle(world: World, here: Path) -> None:
    """Lay what pages name into a folder: data as links, runs as copies, for they are written to."""
    for path in world.data.iterdir():
        (here / path.name).symlink_to(path)
    (here / "IMAGES").symlink_to(world.data / "scans" / "images")
    (here / "LABELS").symlink_to(world.data / "drawn")
    (here / "SCANS").symlink_to(min((world.data / "scans" / "images").iterdir()))
    (here / "PATH").symlink_to(world.data / "scans" / "images")
    (here / "PREPARED").symlink_to(world.roots / "volume")
    (here / "OTHER").symlink_to(world.roots / "group90")
    (here / "MASKS").mkdir()
    for label in (world.roots / "volume" / "cases").glob("*_label.nii.gz"):
        shutil.copy(label, here / "MASKS" / label.name.replace("_label", ""))
    (here / "data" / "prepared").mkdir(parents=True)
    for root in filter(Path.is_dir, world.roots.iterdir()):
        (here / "data" / "prepared" / root.name).symlink_to(root)
    for name in ("RUN", "RUN_A", "RUN_B", "runs/one", "runs/other", "runs/recipe64/A"):
        shutil.copytree(world.run, here / name)
    shutil.copytree(world.run, here / "runs/strong/B")
    shutil.copytree(world.run / "checkpoints", here / "checkpoints")


def short(name: str, words: tuple[str, ...]) -> list[str]:
    """The words, with others behind them by which the command takes seconds."""
    kept = [word for word in words if not ELSEWHERE.match(word)]
    kept = [
        "hydra/launcher=basic" if word == "hydra/launcher=submitit_slurm" else word for word in kept
    ]
    if name == "prepare" and not any(word.startswith("source") for word in kept):
        return [*kept, "source.images=IMAGES", "source.labels=LABELS"]  # a page has dots there
    if name == "phantom":
        return [*kept, *SMALL]
    if name == "train":
        given = " ".join(kept)
        size = DEEP if "model=monai" in kept else COARSE
        coarse = [word for word in size if word.split("=")[0] not in given]
        trials = ["hydra.sweeper.n_trials=4"] if re.search("optuna|sweep_learning", given) else []
        return [*map(first_two, kept), *BRIEF, *coarse, *ON_A_CPU, *trials]
    return kept


def first_two(word: str) -> str:
    """Of the values of a grid the first two.

    >>> [first_two(word) for word in ("seed=0,1,2", "data.spacing_mm=[2,2,2]")]
    ['seed=0,1', 'data.spacing_mm=[2,2,2]']
    """
    return re.sub(r"^([\w.]+=[^\[({,]+,[^,]+),[^)]*$", r"\1", word)


def placed(word: str, words: tuple[str, ...]) -> str:
    """A word whose DIR is a folder that there is; ``checkpoint=...`` is that of a run."""
    key, _, value = word.partition("=")
    if word == "checkpoint=...":
        return "checkpoint=RUN/checkpoints/best.ckpt"
    if not key.startswith("source.") or not value.startswith("DIR"):
        return word
    if value == "DIR" and "labels=[Pancreas]" in words:
        return f"{key}=contours"
    if value == "DIR":
        kind = "nifti" if "source=nifti" in words else "dicom"
        return f"{key}={DIR[kind][key == 'source.labels']}"
    return f"{key}={value.replace('DIR', DEEPER.get(Path(value).name, 'clinic'))}"


def make_room(name: str, words: list[str]) -> None:
    """Take away what an earlier command prepared, or a link to it, where this one prepares."""
    if name != "prepare":
        return
    given = dict(word.split("=", 1) for word in words if "=" in word)
    root = Path(given.get("data.root", f"data/prepared/{given.get('data', 'group64')}"))
    if root.is_symlink():
        root.unlink()
    shutil.rmtree(root, ignore_errors=True)


def is_missing(words: tuple[str, ...]) -> bool:
    """Whether a command needs a package that a line above it installs, and nobody did here."""
    return any("MLFlowLogger" in word for word in words) and not find_spec("mlflow")


@pytest.mark.parametrize("page", TYPED, ids=lambda page: page.stem)
def test_what_a_page_tells_to_type_ends_well(
    page: Path, world: World, command: Command, tmp_path: Path
) -> None:
    settle(world, tmp_path)
    copying = re.findall(r"^ +(mkdir .* && cp .*)$", page.read_text(), re.MULTILINE)
    for name, words in commands_of(page):
        if "--config-dir" in words:
            subprocess.run(["sh", "-c", *copying], check=True)
        if "ckpt_path=last" in words:  # without it, the same command is what that goes on with
            begun = short(name, tuple(word for word in words if word != "ckpt_path=last"))
            assert command(name, *begun).code == 0
        typed = short(name, tuple(placed(word, words) for word in words))
        make_room(name, typed)
        ended = command(name, *typed)
        if is_missing(words):
            assert (ended.code, ended.err.count("\n")) == (2, 1)
            assert "mlflow" in ended.err.lower()
        else:
            assert ended.code == 0, f"{page.relative_to(ROOT)}: {name} {words}\n{ended.err}"
