"""The command ``evaluate`` on a trained smoke run."""

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from pancseg.data.manifest import read_manifest
from pancseg.inference.postprocessing import Postprocess
from pancseg.inference.predictor import load_segmenter
from tests.conftest import prepare, scored_copy, smoke


@pytest.fixture(scope="module")
def scored(trained, tmp_path_factory):
    return scored_copy(trained, tmp_path_factory.mktemp("scored") / "run", "test")


@pytest.fixture
def run(scored):
    return Path(shutil.copytree(scored, "run"))


@pytest.fixture
def evaluate(run, command):
    """Run the command on ``run``; the exit code has to be 0, or the first argument."""

    def evaluate_run(*words, code=0):
        ended = command("evaluate", f"checkpoint={run}", *words)
        assert ended.code == code, ended.err
        return ended.out + ended.err

    return evaluate_run


def rows_of(run, subset="test"):
    with (run / "scores" / f"{subset}.csv").open(newline="") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def figures_of(run, subset="test"):
    return json.loads((run / "scores" / f"{subset}.json").read_text())


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


def test_every_test_patient_has_a_row_a_picture_and_a_mask_on_the_grid_of_the_case(
    scored, prepared
):
    rows = rows_of(scored)
    patients = json.loads((scored / "splits.json").read_text())["test"]
    assert [row["patient"] for row in rows.values()] == patients
    for case, row in rows.items():
        path = scored / "scores" / "test" / f"{case}_prediction.nii.gz"
        image = nib.load(prepared / "cases" / f"{case}_image.nii.gz")
        np.testing.assert_array_equal(nib.load(path).affine, image.affine)
        mask, label = voxels(path), voxels(prepared / "cases" / f"{case}_label.nii.gz")
        assert (mask.shape, mask.dtype) == (image.shape, np.uint8)
        dice = 2 * np.sum(mask * label) / (mask.sum() + label.sum())
        assert float(row["dice"]) == pytest.approx(dice, abs=1e-6)
        assert path.with_name(f"{case}.png").is_file()
    figures, dices = figures_of(scored), [float(row["dice"]) for row in rows.values()]
    assert (figures["n"], figures["held_out"]) == (2, True)
    assert figures["dice"]["mean"] == pytest.approx(np.mean(dices), abs=1e-6)


def test_a_second_call_scores_only_what_is_missing_or_changed(run, evaluate):
    table, scores = run / "scores" / "test.csv", run / "scores" / "test"
    masks, text = sorted(scores.glob("*_prediction.nii.gz")), table.read_text()

    def scored_again(*words):
        times = [path.stat().st_mtime_ns if path.exists() else 0 for path in masks]
        evaluate(*words)
        return [path.stat().st_mtime_ns > time for path, time in zip(masks, times, strict=True)]

    masks[1].unlink()
    assert scored_again() == [False, True]
    assert table.read_text() == text
    assert scored_again("postprocess.threshold=0.4") == [True, True]


def test_the_page_says_who_chose_the_threshold(run, evaluate):
    page = run / "report.html"
    assert "Nothing was chosen" in page.read_text()
    evaluate("postprocess.threshold=0.4")
    assert "given by hand" in page.read_text()
    auto = ["postprocess.threshold=auto", "postprocess.largest_component=auto"]
    assert "chosen on 1 validation patients: threshold" in evaluate(*auto)
    assert "chosen on validation patients, never on a patient" in page.read_text()
    chosen = json.loads((run / "checkpoints" / "best.postprocess.json").read_text())
    keys = ("threshold", "largest_component")
    used = {key: chosen[key] for key in keys}
    assert figures_of(run)["postprocess"] == [used]
    assert load_segmenter(run).postprocess == [Postprocess(**used)]  # so does predict
    assert "NOT HELD OUT" in evaluate("subset=val")
    assert figures_of(run, "val")["held_out"] is False


def test_a_moved_folder_can_be_named_and_bad_cases_are_rows(run, prepared, evaluate):
    shutil.rmtree(run / "scores")
    moved = f"data.root={shutil.copytree(prepared, 'moved')}"
    bad, good = json.loads((run / "splits.json").read_text())["test"]
    Path(f"moved/cases/{bad}_image.nii.gz").write_bytes(b"not an image")
    assert "1 of 2 cases failed" in evaluate(moved, code=1)
    rows = rows_of(run)
    assert rows[bad]["status"].startswith("failed: ")
    assert rows[good]["status"] in ("scored", "missed")
    assert figures_of(run)["failed"] == [bad]
    assert not list((run / "scores").rglob(f"{bad}*"))


def test_patients_whom_the_first_weights_were_trained_on_are_not_held_out(
    trained, prepared, command
):
    """A run that begins with another one's weights, with that one's training patient as test."""
    before = json.loads((trained / "splits.json").read_text())
    known, *rest = before["train"]
    split = {"train": rest + before["test"], "val": before["val"], "test": [known]}
    Path("split.json").write_text(json.dumps(split))
    words = [word for word in smoke(prepared, Path("run")) if not word.startswith("split.")]
    words += ["split=file", "split.path=split.json", "trainer.max_epochs=1"]
    ended = command("train", *words, f"init_from={trained / 'checkpoints' / 'best.ckpt'}")
    assert (ended.code, "trained on 1 of the test patients here" in ended.out) == (0, True)
    ended = command("evaluate", "checkpoint=run")
    assert (ended.code, "NOT HELD OUT" in ended.out) == (0, True)
    assert figures_of(Path("run"))["held_out"] is False


def test_another_prepared_folder_is_scored_without_the_patients_that_were_seen(
    run, dicom, evaluate
):
    """The other folder holds the same six phantoms as groups of 16: four were seen in training."""
    assert prepare(dicom, Path("other"), "data.depth=16") == 0
    split = json.loads((run / "splits.json").read_text())
    seen = len(split["train"] + split["val"])
    assert f"{seen} patients are left out" in evaluate("data.root=other")
    rows = rows_of(run, "external_other")
    assert [row["patient"] for row in rows.values()] == split["test"]
    assert figures_of(run, "external_other")["held_out"] is True  # both keep the patients' names
    manifest = json.loads(Path("other/manifest.json").read_text())
    manifest["settings"]["names"] = "pseudonym-of-another-key"
    Path("other/manifest.json").write_text(json.dumps(manifest))
    assert "another privacy key" in evaluate("data.root=other")
    assert figures_of(run, "external_other")["held_out"] is None


def test_masks_of_other_tools_are_scored(prepared, trained, dicom, command):
    """Masks as nnU-Net, TotalSegmentator and pancseg name them, one shifted by a voxel."""
    cases, masks = read_manifest(prepared).cases, Path("masks")
    labels = {case.name: nib.load(prepared / str(case.label)) for case in cases}
    names = [case.name for case in cases]
    (masks / names[2]).mkdir(parents=True)
    nib.save(labels[names[0]], masks / f"{names[0]}.nii.gz")
    nib.save(labels[names[1]], masks / "series-0123_pancreas.nii.gz")
    nib.save(labels[names[2]], masks / names[2] / "pancreas.nii.gz")
    uid = pydicom.dcmread(next((dicom / "images" / names[1]).iterdir())).SeriesInstanceUID
    (masks / "predictions.csv").write_text(f"case,series_uid\nseries-0123,{uid}\n")
    moved = np.roll(np.asanyarray(labels[names[3]].dataobj), 1, axis=0)
    nib.save(nib.Nifti1Image(moved, labels[names[3]].affine), masks / f"{names[3]}_pancreas.nii.gz")
    off = labels[names[4]].affine + np.eye(4, k=3) * 50
    nib.save(nib.Nifti1Image(moved, off), masks / f"{names[4]}.nii.gz")
    nib.save(labels[names[0]], masks / "unknown.nii.gz")
    words = ["predictions=masks", f"data.root={prepared}", "output=scores"]
    assert command("evaluate", *words).code == 1  # a case failed
    rows = rows_of(Path("scores"), "external")
    assert [rows[name]["dice"] for name in names[:3]] == ["1.0"] * 3
    assert 0.5 < float(rows[names[3]]["dice"]) < 1
    assert "on another grid" in rows[names[4]]["status"]
    assert (rows[names[5]]["dice"], rows[names[5]]["status"]) == ("0.0", "missed")
    assert (rows["unknown"]["dice"], rows["unknown"]["status"]) == ("", "no_case")
    assert figures_of(Path("scores"), "external")["held_out"] is None
    of_a_run = ["predictions=masks", f"checkpoint={trained}", "output=test_patients"]
    command("evaluate", *of_a_run)
    patients = {row["patient"] for row in rows_of(Path("test_patients"), "external").values()}
    split = json.loads((trained / "splits.json").read_text())
    assert patients == {*split["test"], ""}  # "": the mask of no case
