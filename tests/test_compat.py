"""What earlier versions wrote is read by this one: see ``compat/README.md``."""

import csv
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import Command

KEPT = sorted(path.parent for path in (Path(__file__).parent / "compat").glob("*/run"))
SAME = ["experiment=smoke", "data.depth=16", "data.tail=shift", "data.spacing_mm=[12,12,12]"]
SAME += ["data.spatial_size=[32,32,32]", "split.val=1", "split.test=1", "optimizer.lr=1e-2"]


@pytest.fixture(params=KEPT, ids=lambda path: path.name)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of what a version wrote."""
    return Path(shutil.copytree(request.param, tmp_path / "old"))


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def test_there_is_something_to_read() -> None:
    assert KEPT


def test_scores_of_an_old_checkpoint_are_what_they_were(old: Path, command: Command) -> None:
    before = rows_of(old / "run" / "scores" / "test.csv")
    checkpoint = f"checkpoint={old / 'run' / 'checkpoints' / 'best.ckpt'}"
    words = [checkpoint, f"data.root={old / 'prepared'}", "subset=test", "hardware=cpu"]
    ended = command("evaluate", *words)
    assert ended.code == 0, ended.err
    after = rows_of(old / "run" / "scores" / "test.csv")
    for was, now in zip(before, after, strict=True):
        assert set(was) <= set(now)
        assert now["case"] == was["case"]
        # another arithmetic or order of sums may move a voxel or two of some thirty
        assert float(now["dice"]) == pytest.approx(float(was["dice"]), abs=0.05)
    figures = json.loads((old / "run" / "scores" / "test.json").read_text())
    kept = json.loads((old / "run" / "checkpoints" / "best.postprocess.json").read_text())
    assert figures["postprocess"][0]["threshold"] == kept["threshold"] != 0.5


def test_an_old_checkpoint_segments_a_scan_as_it_did(old: Path, command: Command) -> None:
    [was] = (old / "run" / "scores" / "test").glob("*_prediction.nii.gz")
    case = was.name.removesuffix("_prediction.nii.gz")
    scan = shutil.copy(old / "prepared" / "cases" / f"{case}_image.nii.gz", old / f"{case}.nii.gz")
    checkpoint = f"checkpoint={old / 'run' / 'checkpoints' / 'best.ckpt'}"
    ended = command("predict", checkpoint, f"input={scan}", "output=m", "hardware=cpu")
    assert ended.code == 0, ended.err
    [row] = rows_of(Path("m/predictions.csv"))
    assert 0 < float(row["confidence"]) <= 1
    now = np.asarray(nib.load(Path("m") / f"{case}_pancreas.nii.gz").dataobj) > 0
    drawn = np.asarray(nib.load(was).dataobj) > 0
    assert np.count_nonzero(now != drawn) <= 3 < np.count_nonzero(drawn)


def test_an_old_training_goes_on_with_old_data(old: Path, command: Command) -> None:
    before = rows_of(old / "run" / "metrics.csv")
    last = f"ckpt_path={old / 'run' / 'checkpoints' / 'last.ckpt'}"
    words = [*SAME, last, f"data.root={old / 'prepared'}", "trainer.max_epochs=41"]
    ended = command("train", *words)
    assert ended.code == 0, ended.err
    after = rows_of(old / "run" / "metrics.csv")
    assert [row["epoch"] for row in after] == [*(row["epoch"] for row in before), "41"]
    assert [row["val/dice"] for row in after[:-1]] == [row["val/dice"] for row in before]


def test_an_old_prepared_folder_is_known_again_and_left_alone(
    old: Path, dicom: Path, command: Command
) -> None:
    manifest = (old / "prepared" / "manifest.json").read_text()
    source = [f"source.images={dicom / 'images'}", f"source.labels={dicom / 'labels'}"]
    cut = ["data.depth=16", "data.tail=shift", f"data.root={old / 'prepared'}", "privacy=none"]
    ended = command("prepare", *source, *cut)
    assert ended.code == 2  # another source than it was prepared from
    [line] = [line for line in ended.err.splitlines() if line.startswith("pancseg.prepare")]
    named = set(re.findall(r"([\w.]+) \(there ", line))
    assert named == {"source.images", "source.labels"}
    assert (old / "prepared" / "manifest.json").read_text() == manifest
