"""A k-fold sweep, gathered: each patient judged once, by who did not see them."""

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.conftest import Command, run_command, smoke


@pytest.fixture(scope="module")
def swept(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds of the six phantoms."""
    sweep = tmp_path_factory.mktemp("sweep")
    words = [
        word for word in smoke(prepared, sweep) if not word.startswith(("hydra.run", "split."))
    ]
    folds = ["split=kfold", "split.folds=3", "split.fold=0,1,2", f"hydra.sweep.dir={sweep}"]
    assert run_command("train", "-m", *words, *folds) == 0
    return sweep


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "scores" / "test.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_patient_is_judged_once_by_the_fold_that_held_them_out(
    swept: Path, prepared: Path, command: Command
) -> None:
    assert command("evaluate", f"checkpoint={swept}").code == 0
    tested = {
        patient: fold
        for fold in range(3)
        for patient in json.loads((swept / str(fold) / "splits.json").read_text())["test"]
    }
    rows = rows_of(swept)
    everyone = {
        case["patient"] for case in json.loads((prepared / "manifest.json").read_text())["cases"]
    }
    assert sorted(row["patient"] for row in rows) == sorted(everyone)
    assert {row["patient"]: int(row["fold"]) for row in rows} == tested
    figures = json.loads((swept / "scores" / "test.json").read_text())
    assert (figures["n"], figures["held_out"], figures["checkpoints"]) == (6, True, 3)
    page = (swept / "report.html").read_text()
    assert "python -m pancseg.train -m experiment=smoke" in page
    assert "split.fold=0,1,2" in page
    assert str(prepared) not in page


def test_a_gathered_patient_has_the_score_of_their_own_fold(swept: Path, command: Command) -> None:
    assert command("evaluate", f"checkpoint={swept}").code == 0
    gathered = {row["patient"]: row["dice"] for row in rows_of(swept)}
    assert command("evaluate", f"checkpoint={swept / '1' / 'checkpoints' / 'best.ckpt'}").code == 0
    for row in rows_of(swept / "1"):
        assert gathered[row["patient"]] == row["dice"]


def test_a_fold_that_is_missing_is_told(swept: Path, tmp_path: Path, command: Command) -> None:
    shutil.copytree(swept, tmp_path / "sweep")
    shutil.rmtree(tmp_path / "sweep" / "1")
    ended = command("evaluate", f"checkpoint={tmp_path / 'sweep'}")
    assert ended.code == 0
    assert "no run of folds [1]" in ended.out
    figures = json.loads((tmp_path / "sweep" / "scores" / "test.json").read_text())
    assert figures["n"] < 6


def test_only_test_patients_of_a_sweep_are_judged(swept: Path, command: Command) -> None:
    ended = command("evaluate", f"checkpoint={swept}", "subset=val")
    assert ended.code == 2
    assert "subset=val: of 3 checkpoints" in ended.err


def test_a_folder_without_runs_is_refused(tmp_path: Path, command: Command) -> None:
    ended = command("evaluate", f"checkpoint={tmp_path}")
    assert ended.code == 2
    assert "neither a run nor a sweep" in ended.err


def test_several_on_one_locked_test_set_judge_together(
    trained: Path, prepared: Path, tmp_path: Path, command: Command
) -> None:
    locked = f"split.path={trained / 'splits.json'}"
    words = [
        word for word in smoke(prepared, tmp_path) if not word.startswith(("hydra.run", "split."))
    ]
    seeds = ["seed=0,1", f"hydra.sweep.dir={tmp_path / 'seeds'}"]
    assert command("train", "-m", *words, "split=file", locked, *seeds).code == 0
    assert command("evaluate", f"checkpoint={tmp_path / 'seeds'}").code == 0
    figures = json.loads((tmp_path / "seeds" / "scores" / "test.json").read_text())
    assert (figures["n"], figures["judges_of_a_patient"], figures["held_out"]) == (2, 2, True)

    from pancseg.inference.members import look_together, open_members

    members = open_members(
        tmp_path / "seeds", device="cpu", channels_last=True, precision=figures["arithmetic"]
    )
    row = rows_of(tmp_path / "seeds")[0]
    image = nib.load(prepared / "cases" / f"{row['case']}_image.nii.gz")
    each = [member.network.probability(image) for member in members]
    assert not np.array_equal(*each)
    together = look_together(members, image).probability()
    np.testing.assert_allclose(together, (each[0] + each[1]) / 2, atol=1e-6)
    mask = nib.load(tmp_path / "seeds" / "scores" / "test" / f"{row['case']}_prediction.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj) > 0, together > 0.5)
