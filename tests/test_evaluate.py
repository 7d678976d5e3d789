"""The command ``evaluate`` on a trained smoke run."""

import csv
import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pancseg.data.manifest import read_manifest
from tests.conftest import Command, prepare, scored_copy, smoke

COLUMNS = (
    "patient,case,dice,nsd_1mm,nsd_2mm,nsd_3mm,hd95_mm,assd_mm,precision,recall,volume_ml,"
    "reference_ml,volume_error_ml,volume_error_percent,components,centroid_mm,dice_plain,"
    "recipe_metric,expected_dice,fold,spacing_x_mm,spacing_y_mm,spacing_z_mm,manufacturer,contrast,"
    "status"
)


@pytest.fixture(scope="session")
def scored(trained: Path) -> Path:
    """The scores of the run's test patients."""
    from tests.conftest import run_command

    best = trained / "checkpoints" / "best.ckpt"
    assert run_command("evaluate", f"checkpoint={best}", "subset=test") == 0
    return trained / "scores"


def rows_of(scores: Path, subset: str = "test") -> list[dict[str, str]]:
    with (scores / f"{subset}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_has_a_row_a_case_and_the_columns_of_the_contract(
    scored: Path, trained: Path
) -> None:
    columns = (scored / "test.csv").read_text().splitlines()[0].split(",")
    assert [name for name in columns if name in COLUMNS.split(",")] == COLUMNS.split(",")
    test = json.loads((trained / "splits.json").read_text())["test"]
    assert [row["patient"] for row in rows_of(scored)] == test


def test_every_prediction_lies_on_its_cases_grid(scored: Path, prepared: Path) -> None:
    for row in rows_of(scored):
        case = nib.load(prepared / "cases" / f"{row['case']}_image.nii.gz")
        mask = nib.load(scored / "test" / f"{row['case']}_prediction.nii.gz")
        assert mask.shape == case.shape
        np.testing.assert_array_equal(mask.affine, case.affine)
        assert mask.get_data_dtype() == np.uint8


def test_dice_can_be_worked_out_again_from_the_masks(scored: Path, prepared: Path) -> None:
    for row in rows_of(scored):
        mask = np.asarray(nib.load(scored / "test" / f"{row['case']}_prediction.nii.gz").dataobj)
        drawn = np.asarray(nib.load(prepared / "cases" / f"{row['case']}_label.nii.gz").dataobj)
        dice = 2 * np.sum(mask * drawn) / (mask.sum() + drawn.sum())
        assert float(row["dice"]) == pytest.approx(dice, abs=1e-6)


def test_the_figures_count_patients_and_say_that_they_were_held_out(scored: Path) -> None:
    figures = json.loads((scored / "test.json").read_text())
    dices = [float(row["dice"]) for row in rows_of(scored)]
    assert figures["n"] == 2
    assert figures["held_out"] is True
    assert figures["dice"]["mean"] == pytest.approx(np.mean(dices), abs=1e-6)
    assert figures["dice"].keys() == {"mean", "median", "sd", "min", "q1", "q3", "max", "ci95"}
    assert figures["geometry"].startswith("whole cases on their own grid")


def test_the_line_that_one_would_quote_is_printed(trained: Path, command: Command) -> None:
    best = trained / "checkpoints" / "best.ckpt"
    out = command("evaluate", f"checkpoint={best}").out
    line = (
        r"Dice \d\.\d{3} \(95 % CI \d\.\d{3} to \d\.\d{3}\), n = 2 held-out phantoms, "
        r"HD95 \d+\.\d mm, NSD@2mm \d\.\d{2}"
    )
    assert re.search(line, " ".join(out.split()))


def test_threshold_and_components_are_chosen_on_validation_and_kept(
    trained: Path, prepared: Path, tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    best = run / "checkpoints" / "best.ckpt"
    auto = ["postprocess.threshold=auto", "postprocess.largest_component=auto"]
    ended = command("evaluate", f"checkpoint={best}", *auto)
    assert ended.code == 0
    assert "chosen on 1 validation patients: threshold" in ended.out
    kept = json.loads((run / "checkpoints" / "best.postprocess.json").read_text())
    assert (kept["chosen_on"], kept["n"]) == ("val", 1)
    first = (run / "scores" / "test.csv").read_text()
    assert command("evaluate", f"checkpoint={best}").code == 0
    assert (run / "scores" / "test.csv").read_text() == first
    figures = json.loads((run / "scores" / "test.json").read_text())
    chosen = {key: kept[key] for key in ("threshold", "largest_component")}
    assert figures["postprocess"] == [chosen]
    by_hand = command("evaluate", f"checkpoint={best}", "postprocess.threshold=0.4")
    assert "Dice at 0.5" in by_hand.out
    plain = ["postprocess.threshold=0.5", "postprocess.largest_component=false"]
    ended = command("evaluate", f"checkpoint={best}", *plain)
    assert ended.code == 0
    assert "Dice at 0.5" not in ended.out
    figures = json.loads((run / "scores" / "test.json").read_text())
    assert figures["dice"] == figures["dice_plain"]


def test_nothing_is_chosen_without_validation_patients(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    words = smoke(prepared, tmp_path / "run", "split.val=0", "trainer.max_epochs=1")
    assert command("train", *words).code == 0
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    ended = command("evaluate", f"checkpoint={best}", "postprocess.threshold=auto")
    assert ended.code == 2
    assert "chooses on validation patients" in ended.err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("postprocess.threshold=7", "postprocess.threshold=7: expected"),
        ("nsd_tolerances_mm=[0]", "expected lengths above 0 mm"),
        ("nsd_tolerances_mm=[]", "expected lengths above 0 mm"),
    ],
)
def test_settings_that_make_no_sense_are_told_at_once(
    trained: Path, command: Command, word: str, said: str
) -> None:
    ended = command("evaluate", f"checkpoint={trained / 'checkpoints' / 'best.ckpt'}", word)
    assert ended.code == 2
    assert said in ended.err


def test_there_is_a_picture_of_each_case(scored: Path) -> None:
    for row in rows_of(scored):
        assert (scored / "test" / f"{row['case']}.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("subset", ["train", "val"])
def test_patients_that_training_used_are_never_called_held_out(
    trained: Path, command: Command, subset: str
) -> None:
    best = trained / "checkpoints" / "best.ckpt"
    ended = command("evaluate", f"checkpoint={best}", f"subset={subset}")
    assert ended.code == 0
    assert "NOT HELD OUT" in ended.out
    figures = json.loads((trained / "scores" / f"{subset}.json").read_text())
    assert figures["held_out"] is False


def test_a_moved_folder_can_be_named_and_a_bad_case_stops_nothing(
    trained: Path, prepared: Path, tmp_path: Path, command: Command
) -> None:
    root, run = tmp_path / "moved", tmp_path / "run"
    shutil.copytree(prepared, root)
    shutil.copytree(trained / "checkpoints", run / "checkpoints")
    bad, good = json.loads((trained / "splits.json").read_text())["test"]
    assert command("evaluate", f"checkpoint={run}", f"data.root={root}").code == 0
    (root / "cases" / f"{bad}_image.nii.gz").write_bytes(b"not an image")
    best = run / "checkpoints" / "best.ckpt"
    ended = command("evaluate", f"checkpoint={best}", f"data.root={root}")
    assert ended.code == 1
    assert "1 of 2 cases failed" in ended.err
    rows = {row["case"]: row for row in rows_of(run / "scores")}
    assert rows[bad]["status"].startswith("failed: ")
    assert rows[good]["status"] in ("scored", "missed")
    assert json.loads((run / "scores" / "test.json").read_text())["failed"] == [bad]
    left = {path.name for path in (run / "scores" / "test").rglob("*") if path.is_file()}
    assert not [name for name in left if name.startswith(bad)]
    assert f"{good}_prediction.nii.gz" in left


def test_patients_whom_the_first_weights_were_trained_on_are_not_held_out(
    trained: Path, prepared: Path, tmp_path: Path, command: Command
) -> None:
    """A run that goes on from another one's weights, with that one's training patient as test."""
    before = json.loads((trained / "splits.json").read_text())
    known, *rest = before["train"]
    split = {"train": rest + before["test"], "val": before["val"], "test": [known]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    run, best = tmp_path / "run", trained / "checkpoints" / "best.ckpt"
    words = [word for word in smoke(prepared, run) if not word.startswith("split.")]
    words += ["split=file", f"split.path={tmp_path / 'split.json'}", f"init_from={best}"]
    ended = command("train", *words, "trainer.max_epochs=1")
    assert ended.code == 0
    assert "init_from was trained on 1 of the test patients here" in ended.out
    assert command("train", *words[:-1], "trainer.max_epochs=2", "ckpt_path=last").code == 0
    ended = command("evaluate", f"checkpoint={run}")
    assert ended.code == 0
    assert "NOT HELD OUT" in ended.out
    assert json.loads((run / "scores" / "test.json").read_text())["held_out"] is False
    assert known in json.loads((run / "summary.json").read_text())["seen_before"]


def test_the_page_says_who_chose_the_threshold(
    trained: Path, tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    for word, said in (
        ("postprocess.threshold=null", "Nothing was chosen"),
        ("postprocess.threshold=0.4", "given by hand"),
        ("postprocess.threshold=auto", "chosen on validation patients, never on a patient"),
    ):
        assert command("evaluate", f"checkpoint={run}", word).code == 0
        assert said in (run / "report.html").read_text()
    assert command("evaluate", f"checkpoint={run}", "subset=val").code == 0
    page = (run / "report_val.html").read_text()
    assert "chosen on these very patients" in page
    assert "given by hand" not in page


def test_where_every_case_fails_there_is_still_a_table_and_a_page(
    trained: Path, prepared: Path, tmp_path: Path, command: Command
) -> None:
    root, run = tmp_path / "moved", tmp_path / "run"
    shutil.copytree(prepared, root)
    shutil.copytree(trained, run)
    for case in json.loads((trained / "splits.json").read_text())["test"]:
        (root / "cases" / f"{case}_image.nii.gz").write_bytes(b"not an image")
    ended = command("evaluate", f"checkpoint={run}", f"data.root={root}")
    assert ended.code == 1
    assert "2 of 2 cases failed" in ended.err
    assert json.loads((run / "scores" / "test.json").read_text())["n"] == 0
    assert "no case has a reference to score against" in (run / "report.html").read_text()


def test_evaluating_leaves_the_runs_configuration_alone(trained: Path, scored: Path) -> None:
    overrides = (trained / ".hydra" / "overrides.yaml").read_text()
    assert "experiment=smoke" in overrides
    assert "checkpoint" not in overrides


def test_a_second_call_scores_only_what_is_missing_or_changed(
    trained: Path, prepared: Path, tmp_path: Path, command: Command
) -> None:
    run = scored_copy(trained, tmp_path / "run", "test")
    masks = sorted((run / "scores" / "test").glob("*_prediction.nii.gz"))
    first, second = (path.stat().st_mtime_ns for path in masks)
    table = (run / "scores" / "test.csv").read_text()
    masks[1].unlink()
    assert command("evaluate", f"checkpoint={run}").code == 0
    assert masks[0].stat().st_mtime_ns == first
    assert masks[1].stat().st_mtime_ns > second
    assert (run / "scores" / "test.csv").read_text() == table
    for path in masks:  # damaged records
        path.with_name(path.name.replace("_prediction.nii.gz", ".json")).write_text("{")
    times = [path.stat().st_mtime_ns for path in masks]
    assert command("evaluate", f"checkpoint={run}").code == 0
    assert all(path.stat().st_mtime_ns > t for path, t in zip(masks, times, strict=True))
    times = [path.stat().st_mtime_ns for path in masks]
    assert command("evaluate", f"checkpoint={run}", "postprocess.threshold=0.4").code == 0
    assert all(path.stat().st_mtime_ns > t for path, t in zip(masks, times, strict=True))


def test_scores_stand_where_a_picture_cannot_be_drawn(
    trained: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise ValueError("no font")

    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("scores"))
    monkeypatch.setattr("pancseg.inference.evaluation.draw_case", fail)
    ended = command("evaluate", f"checkpoint={run}")
    assert ended.code == 0
    assert "no picture (no font)" in ended.out
    assert all(float(row["dice"]) >= 0 for row in rows_of(run / "scores"))


def test_another_prepared_folder_is_scored_without_the_patients_that_were_seen(
    trained: Path, dicom: Path, tmp_path: Path, command: Command
) -> None:
    """The other folder holds the same six phantoms as groups of 16: three were seen in training."""
    run, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("scores", "report*"))
    assert prepare(dicom, other, "data.depth=16") == 0
    split = json.loads((trained / "splits.json").read_text())
    ended = command("evaluate", f"checkpoint={run}", f"data.root={other}")
    assert ended.code == 0, ended.err
    assert f"{len(split['train'] + split['val'])} patients are left out" in ended.out
    assert [row["patient"] for row in rows_of(run / "scores", "external_other")] == split["test"]
    figures = json.loads((run / "scores" / "external_other.json").read_text())
    assert figures["held_out"] is True  # both folders keep the patients' names
    assert (run / "report_external_other.html").is_file()
    assert not (run / "report.html").exists()
    ended = command("evaluate", f"checkpoint={run}", f"data.root={other}", "subset=test")
    assert ended.code == 2
    assert "leave subset out" in ended.err
    assert prepare(dicom, tmp_path / "keyed", "data.depth=16", "privacy=pseudonym") == 0
    ended = command("evaluate", f"checkpoint={run}", f"data.root={tmp_path / 'keyed'}")
    assert ended.code == 0, ended.err
    assert "another privacy key" in ended.out
    figures = json.loads((run / "scores" / "external_keyed.json").read_text())
    assert (figures["n"], figures["held_out"]) == (6, None)


def test_masks_of_other_tools_are_scored_and_compared_with_a_run(
    trained: Path, prepared: Path, tmp_path: Path, command: Command
) -> None:
    """Masks as nnU-Net, TotalSegmentator and pancseg name them, one shifted by a voxel."""
    cases = read_manifest(prepared).cases
    masks, out = tmp_path / "masks", tmp_path / "scores"
    labels = {case.name: nib.load(prepared / str(case.label)) for case in cases}
    names = [case.name for case in cases]
    (masks / names[2]).mkdir(parents=True)
    places = [f"{names[0]}.nii.gz", f"{names[1]}_pancreas.nii.gz", f"{names[2]}/pancreas.nii.gz"]
    for name, place in zip(names, places, strict=False):
        nib.save(labels[name], masks / place)
    moved = np.roll(np.asanyarray(labels[names[3]].dataobj), 1, axis=0)
    nib.save(nib.Nifti1Image(moved, labels[names[3]].affine), masks / f"{names[3]}.nii.gz")
    off = labels[names[4]].affine + np.eye(4, k=3) * 50
    nib.save(nib.Nifti1Image(moved, off), masks / f"{names[4]}.nii.gz")
    nib.save(labels[names[0]], masks / "unknown.nii.gz")
    words = [f"predictions={masks}", f"data.root={prepared}", f"output={out}"]
    ended = command("evaluate", *words)
    assert ended.code == 1
    assert "1 cases have no mask and count as missed" in ended.out
    rows = {row["case"]: row for row in rows_of(out / "scores", "external")}
    assert [rows[name]["dice"] for name in names[:3]] == ["1.0"] * 3
    assert 0.5 < float(rows[names[3]]["dice"]) < 1
    assert "on another grid" in rows[names[4]]["status"]
    assert (rows[names[5]]["dice"], rows[names[5]]["status"]) == ("0.0", "missed")
    assert (rows["unknown"]["dice"], rows["unknown"]["status"]) == ("", "no_case")
    figures = json.loads((out / "scores" / "external.json").read_text())
    assert (figures["n"], figures["held_out"]) == (5, None)
    assert (out / "report.html").is_file()
    for name in names[4:]:
        nib.save(labels[name], masks / f"{name}.nii.gz")
    (masks / "unknown.nii.gz").unlink()
    assert command("evaluate", *words).code == 0
    run = scored_copy(trained, tmp_path / "run", "test")
    ended = command("report", f"runs=[{run},{out}]")
    assert ended.code == 0, ended.err
    comparison = json.loads(Path("comparison/comparison.json").read_text())
    assert len(comparison["patients"]) == 2


def test_masks_of_predict_find_their_cases_by_the_series(
    trained: Path, dicom: Path, prepared: Path, tmp_path: Path, command: Command
) -> None:
    best = trained / "checkpoints" / "best.ckpt"
    masks, out = tmp_path / "masks", tmp_path / "scores"
    words = [f"checkpoint={best}", f"input={dicom / 'images'}", f"output={masks}"]
    assert command("predict", *words).code == 0
    words = [f"predictions={masks}", f"data.root={prepared}", f"output={out}"]
    assert command("evaluate", *words).code == 0
    run = scored_copy(trained, tmp_path / "run", "test")
    dice = {row["case"]: row["dice"] for row in rows_of(out / "scores", "external")}
    assert len(dice) == 6
    for row in rows_of(run / "scores"):
        assert dice[row["case"]] == row["dice"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "give checkpoint="),
        (["predictions=masks"], "needs data.root=PREPARED"),
        (["predictions=masks", "data.root=x", "subset=val"], "scores all of its cases"),
        (["checkpoint=a", "predictions=b"], "give checkpoint="),
        (["checkpoint=a", "subset=all"], "subset=all: expected one of"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    words: list[str], text: str, command: Command
) -> None:
    ended = command("evaluate", *words)
    assert ended.code == 2
    assert text in ended.err
