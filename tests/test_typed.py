"""Every command that a page tells to type, typed, on tiny data and for seconds.

The tutorial has a test of its own; a cluster has tests/slurm.
"""

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import Command, run_command
from tests.data_sets import lay_out
from tests.documented import PAGES, ROOT, commands_of

pytestmark = pytest.mark.slow
TYPED = [page for page in PAGES if page.name != "tutorial.md" and commands_of(page)]
BRIEF = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1"]
ON_A_CPU = ["accelerator=cpu", "precision=32-true", "batch_size=2", "width=8", "num_workers=0"]
ON_A_CPU = [*(f"hardware.{word}" for word in ON_A_CPU), "data.pin_memory=false"]
# what this machine has not: several cards, several machines, a cluster
ELSEWHERE = re.compile(
    r"hydra\.launcher\.|trainer\.(num_nodes|devices)=|hardware\.devices=|trainer\.strategy=ddp"
)
DIR = {"nifti": ("nifti/images", "nifti/labels"), "dicom": ("scans/images", "reference")}
DEEPER = {"ct.nii.gz": "totalsegmentator", "pancreas.nii.gz": "totalsegmentator"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six phantoms in every layout, prepared in three ways, and a run with its scores."""
    base = tmp_path_factory.mktemp("typed")
    phantoms, run = base / "phantoms", base / "run"
    size = ["patients=6", "seed=3", "shape=[40,40,96]", "spacing_mm=[9,9,4]"]
    assert run_command("phantom", f"out={phantoms}", *size) == 0
    lay_out(phantoms, base / "data")
    (base / "data" / "reference").symlink_to(phantoms / "labels")
    source = [f"source.images={phantoms / 'images'}", f"source.labels={phantoms / 'labels'}"]
    for name in ("group64", "group90", "volume"):
        root = f"data.root={base / 'prepared' / name}"
        assert run_command("prepare", f"data={name}", root, *source) == 0
    # on patches: export refuses networks of groups
    words = ["data=volume", root, "model=tiny", f"hydra.run.dir={run}"]
    assert run_command("train", *short("train", words)) == 0
    for subset in ("val", "test"):
        best = f"checkpoint={run / 'checkpoints' / 'best.ckpt'}"
        assert run_command("evaluate", best, f"subset={subset}") == 0
    return base


def settle(base: Path, here: Path) -> None:
    """Lay what pages name into a folder: data as links, runs as copies, for they are written to."""
    scans, cases = base / "data" / "scans" / "images", base / "prepared" / "volume" / "cases"
    links = {path.name: path for path in (base / "data").iterdir()}
    links |= {f"data/prepared/{path.name}": path for path in (base / "prepared").glob("*/")}
    links |= {"IMAGES": scans, "PATH": scans, "SCANS": min(scans.iterdir())}
    links |= {"LABELS": base / "phantoms" / "labels", "PREPARED": cases.parent}
    for name, target in {**links, "OTHER": base / "prepared" / "group90"}.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).symlink_to(target)
    (here / "MASKS").mkdir()
    for label in cases.glob("*_label.nii.gz"):
        shutil.copy(label, here / "MASKS" / label.name.replace("_label", ""))
    runs = "RUN RUN_A RUN_B runs/one runs/other runs/recipe64/A runs/strong/B"
    for name in runs.split():
        shutil.copytree(base / "run", here / name)
    shutil.copytree(base / "run" / "checkpoints", here / "checkpoints")


def short(name: str, words: list[str]) -> list[str]:
    """The words, with others behind them by which the command takes seconds."""
    kept = [word for word in words if not ELSEWHERE.match(word)]
    kept = [word.replace("launcher=submitit_slurm", "launcher=basic") for word in kept]
    given = " ".join(kept)
    if name == "prepare" and " source" not in f" {given}":  # a page has dots there
        return [*kept, "source.images=IMAGES", "source.labels=LABELS"]
    if name == "phantom":
        return [*kept, "patients=1", "shape=[32,32,24]", "spacing_mm=[10,10,10]"]
    if name != "train":
        return kept
    size = "64,64,32" if "model=monai" in kept else "32,32,32"
    coarse = ["data.spacing_mm=[9,9,4]", f"data.spatial_size=[{size}]"]
    coarse = [word for word in coarse if word.split("=")[0] not in given]
    coarse += ["hydra.sweeper.n_trials=4"] if re.search("optuna|sweep_learning", given) else []
    # of the values of a grid the first two
    kept = [re.sub(r"^([\w.]+=[^\[({,]+,[^,]+),[^)]*$", r"\1", word) for word in kept]
    return [*kept, *BRIEF, *coarse, *ON_A_CPU]


def with_folder(word: str, words: tuple[str, ...]) -> str:
    """A word whose DIR is a folder that there is; ``checkpoint=...`` is that of a run."""
    key, _, value = word.partition("=")
    if word == "checkpoint=...":
        return "checkpoint=RUN/checkpoints/best.ckpt"
    if not key.startswith("source.") or not value.startswith("DIR"):
        return word
    if value == "DIR" and "labels=[Pancreas]" in words:
        return f"{key}=contours"
    if value == "DIR":
        source = "nifti" if "source=nifti" in words else "dicom"
        return f"{key}={DIR[source][key == 'source.labels']}"
    return f"{key}={value.replace('DIR', DEEPER.get(Path(value).name, 'clinic'))}"


@pytest.mark.parametrize("page", TYPED, ids=lambda page: page.stem)
def test_what_a_page_tells_to_type_ends_well(
    page: Path, base: Path, command: Command, tmp_path: Path
) -> None:
    settle(base, tmp_path)
    for name, words in commands_of(page):
        if "--config-dir" in words:
            for line in re.findall(r"^ +(mkdir .* && cp .*)$", page.read_text(), re.MULTILINE):
                subprocess.run(["sh", "-c", line], check=True)
        if "ckpt_path=last" in words:  # goes on with the same command without it
            assert command(name, *short(name, [w for w in words if w[:9] != "ckpt_path"])).code == 0
        typed = short(name, [with_folder(word, words) for word in words])
        if name == "prepare":  # not on top of what an earlier command prepared
            given = dict(word.split("=", 1) for word in typed if "=" in word)
            root = Path(given.get("data.root", f"data/prepared/{given.get('data', 'group64')}"))
            root.unlink() if root.is_symlink() else shutil.rmtree(root, ignore_errors=True)
        ended = command(name, *typed)
        if any("MLFlowLogger" in word for word in words) and not find_spec("mlflow"):
            assert ended.code == 2 and "mlflow" in ended.err.lower()
        else:
            assert ended.code == 0, f"{page.relative_to(ROOT)}: {name} {words}\n{ended.err}"
