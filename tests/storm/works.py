"""What storms disturb: each command on tiny input, and what it is to leave behind."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import contents, smoke, unpacked
from tests.test_run_control import curves, learnt

EPOCHS = 5
OF_THE_MOMENT = ("seconds", "peak_memory_mb")


@dataclass(frozen=True)
class Work:
    """A command that can be disturbed.

    Attributes:
        name: Of the command.
        words: Its arguments, for a folder to work in.
        lay_out: Puts what it needs into the folder.
        result: What it left there, for comparison.
        whole: Checks that what is there, done or not, is whole.
    """

    name: str
    words: Callable[[Path], list[str]]
    lay_out: Callable[[Path], object]
    result: Callable[[Path], Any]
    whole: Callable[[Path], object]


@pytest.fixture(scope="session")
def works(
    dicom: Path, prepared: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Work]:
    """The commands by name."""
    scans = tmp_path_factory.mktemp("scans")
    for path in sorted((dicom / "truth").glob("*_image.nii.gz"))[:4]:
        shutil.copy(path, scans / path.name)
    best = tiny_run / "checkpoints" / "best.ckpt"

    def prepare(folder: Path) -> list[str]:
        source = [f"source.images={dicom / 'images'}", f"source.labels={dicom / 'labels'}"]
        cut = ["data.depth=16", "data.tail=shift", "privacy=none", "processes=0"]
        return [*source, *cut, f"data.root={folder / 'root'}"]

    def train(folder: Path) -> list[str]:
        more = [f"trainer.max_epochs={EPOCHS}", "ckpt_path=last"]
        return smoke(prepared, folder / "run", *more)

    def sweep(folder: Path) -> list[str]:
        words = [word for word in smoke(prepared, folder) if not word.startswith("hydra.run.dir")]
        return ["-m", *words, "seed=0,1,2", f"hydra.sweep.dir={folder / 'sweep'}"]

    def evaluate(folder: Path) -> list[str]:
        return [f"checkpoint={folder / 'run' / 'checkpoints' / 'best.ckpt'}", "subset=train"]

    def predict(folder: Path) -> list[str]:
        return [f"checkpoint={best}", f"input={scans}", f"output={folder / 'out'}"]

    def copy_run(folder: Path) -> None:
        shutil.copytree(tiny_run, folder / "run", ignore=shutil.ignore_patterns("scores"))

    def scored_run(folder: Path) -> None:
        shutil.copytree(scored, folder / "run")

    def nothing(folder: Path) -> None: ...

    scored = tmp_path_factory.mktemp("scored") / "run"
    found = [
        Work("prepare", prepare, nothing, lambda f: contents(f / "root"), whole_root),
        Work("train", train, nothing, lambda f: trained(f / "run"), lambda f: whole_run(f / "run")),
        Work("evaluate", evaluate, copy_run, scores, whole_scores),
        Work("predict", predict, nothing, predictions, predictions),
        Work("report", lambda f: [f"run={f / 'run'}", "subset=test"], scored_run, page, page),
        Work("sweep", sweep, nothing, jobs, whole_jobs),
    ]
    from tests.conftest import scored_copy

    scored_copy(tiny_run, scored, "test")
    return {work.name: work for work in found}


def whole_root(folder: Path) -> None:
    """Every case that the manifest names is there as it is told."""
    path = folder / "root" / "manifest.json"
    if path.is_file():
        manifest = json.loads(path.read_text())
        for one in (*manifest["cases"], *manifest["groups"]):
            for file in (one["image"], one["label"]):
                assert unpacked(folder / "root" / file)
    table = folder / "root" / "intake.csv"
    for row in csv.DictReader(table.read_text().splitlines()) if table.is_file() else ():
        assert row["status"] in ("kept", "dropped", "refused")


def trained(run: Path) -> Any:
    """What a training left that decides anything, without the time it took."""
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    summary = json.loads((run / "summary.json").read_text())
    told = {
        name: summary[name]
        for name in ("best_epoch", "best_dice", "data_fingerprint")
        if name in summary
    }
    assert (run / "history.png").is_file()
    return (
        curves(run),
        plain(learnt(run)),
        plain(best),
        told,
        json.loads((run / "splits.json").read_text()),
    )


def plain(value: Any) -> Any:
    """A value that can be compared: tensors as bytes."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def whole_run(run: Path) -> None:
    """Every checkpoint, table and note of a run opens."""
    for path in (run / "checkpoints").glob("[!.]*.ckpt"):
        assert "state_dict" in torch.load(path, weights_only=True)
    for path in run.glob("[!.]*.json"):
        json.loads(path.read_text())
    if (run / "metrics.csv").is_file():
        assert all(row["step"] for row in curves(run))


def scores(folder: Path) -> dict[str, str]:
    found = contents(folder / "run" / "scores")
    return {
        name: text for name, text in found.items() if Path(name).suffix in (".csv", ".json", ".gz")
    }


def whole_scores(folder: Path) -> None:
    """A table that is there has all its rows, and the masks that it tells of open."""
    path = folder / "run" / "scores" / "train.csv"
    for row in csv.DictReader(path.read_text().splitlines()) if path.is_file() else ():
        assert row["status"]
        assert row["dice"]
        assert unpacked(path.with_suffix("") / f"{row['case']}_prediction.nii.gz")
    for figures in (folder / "run" / "scores").rglob("[!.]*.json"):
        json.loads(figures.read_text())
    page(folder)


def predictions(folder: Path) -> Any:
    """Rows that say done, with their masks."""
    path = folder / "out" / "predictions.csv"
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []
    done = [row for row in rows if row["status"] == "done"]
    masks = {
        row["case"]: unpacked(folder / "out" / f"{row['case']}_pancreas.nii.gz") for row in done
    }
    assert all((folder / "out" / f"{row['case']}_preview.png").stat().st_size for row in done)
    return [{k: v for k, v in row.items() if k not in OF_THE_MOMENT} for row in rows], masks


def page(folder: Path) -> list[str]:
    found = sorted((folder / "run").glob("*.html")) + sorted(
        (folder / "run").glob("scores/**/*.html")
    )
    assert all(path.read_text().rstrip().endswith("</html>") for path in found)
    return [str(path.relative_to(folder)) for path in found]


def jobs(folder: Path) -> Any:
    return [trained(folder / "sweep" / str(n)) for n in range(3)]


def whole_jobs(folder: Path) -> None:
    """What jobs left opens, and those that came to their end stay whole."""
    for path in folder.glob("sweep/[0-9]*"):
        whole_run(path)
        if (path / "summary.json").is_file():
            trained(path)
