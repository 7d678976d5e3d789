"""The command ``predict``: its input, masks, tables, interrupted batches, shards, flags."""

import csv
import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from filelock import FileLock

from pancseg.dicom.series import Scan
from pancseg.errors import PancsegError
from pancseg.inference import scan_batch
from pancseg.inference.calibration import Calibration
from pancseg.inference.find_scans import case_names, find_scans
from pancseg.inference.predictor import load_segmenter
from pancseg.inference.scan_batch import LABEL_MAP, ReviewThresholds, ScanBatch, locked_output
from pancseg.intake.match_labels import SourceContents
from tests.conftest import Command, Ended, run_command
from tests.source_contents import skipped
from tests.test_predictor import PANCREAS
from tests.tiny_dicom import write_series
from tests.tiny_labels import write_nrrd

COLUMNS = (
    "case,path,series_uid,status,reason,volume_ml,mean_hu,confidence,flags,seconds,peak_memory_mb"
)
OUT = Path("out")  # in the folder of each test
Predict = Callable[..., Ended]


@pytest.fixture(scope="module")
def best(trained: Path) -> Path:
    return trained / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def phantoms(dicom: Path) -> list[Path]:
    return sorted((dicom / "truth").glob("*_image.nii.gz"))


@pytest.fixture(scope="module")
def threshold(best: Path, phantoms: list[Path]) -> str:
    """A threshold by which two epochs of a tiny network find about 1 % of a scan."""
    p = load_segmenter(best).predict(nib.load(phantoms[0]), 0.0).probability
    return f"postprocess.threshold={np.quantile(p, 0.99):.6f}"


@pytest.fixture
def predict(best: Path, threshold: str, phantoms: list[Path], command: Command) -> Predict:
    """Run the command on three NIfTI files in ``scans``, one in each of three shards."""
    for name, path in zip("aec", phantoms, strict=False):
        Path("scans").mkdir(exist_ok=True)
        shutil.copy(path, f"scans/{name}.nii.gz")
    given = {"checkpoint": best, "input": "scans", "output": OUT}

    def run(*words: str) -> Ended:
        values = {**given, **dict(w.split("=", 1) for w in (threshold, *words))}
        return command("predict", *(f"{key}={value}" for key, value in values.items()))

    return run


def rows_of(out: Path = OUT) -> dict[str, dict[str, str]]:
    rows = csv.DictReader((out / "predictions.csv").read_text().splitlines())
    return {row["case"]: row for row in rows}


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def times_of(*paths: Path) -> list[int]:
    return [path.stat().st_mtime_ns for path in paths]


def test_every_series_has_a_row_a_seg_a_preview_and_the_mask_that_evaluate_scores(
    predict: Predict, dicom: Path, trained: Path, threshold: str
) -> None:
    assert predict(f"input={dicom / 'images'}").code == 0
    assert (OUT / "predictions.csv").read_text().startswith(COLUMNS)
    rows = rows_of()
    assert [row["status"] for row in rows.values()] == ["done"] * 6
    for case, row in rows.items():
        assert 0 < float(row["confidence"]) < 1 and float(row["volume_ml"]) > 0
        assert (OUT / f"{case}_preview.png").is_file()
        seg = pydicom.dcmread(OUT / f"{case}_pancreas.dcm")
        assert seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue == "15776009"
    shutil.copytree(trained, "run", ignore=shutil.ignore_patterns("scores"))
    assert run_command("evaluate", "checkpoint=run", threshold) == 0
    cases = {Path(row["path"]).name: case for case, row in rows.items()}
    scored = list(Path("run/scores/test").glob("*_prediction.nii.gz"))
    assert len(scored) == 2
    for path in scored:
        name = path.name.removesuffix("_prediction.nii.gz")
        mask = nib.load(OUT / f"{cases[name]}_pancreas.nii.gz")
        truth = nib.load(dicom / "truth" / f"{name}_image.nii.gz")
        np.testing.assert_allclose(mask.affine, truth.affine, atol=1e-4)
        np.testing.assert_array_equal(np.asarray(mask.dataobj), voxels(path))


def test_probabilities_of_several_checkpoints_are_averaged_and_written(
    predict: Predict, trained: Path, phantoms: list[Path]
) -> None:
    paths = [trained / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
    words = [f"checkpoint=[{paths[0]},{paths[1]}]", "input=scans/a.nii.gz", "probabilities=true"]
    assert predict(*words, "postprocess.threshold=0.5").code == 0
    p = voxels(OUT / "a_probability.nii.gz")
    a, b = (load_segmenter(path).predict(nib.load(phantoms[0]), 0.0).probability for path in paths)
    np.testing.assert_allclose(p, (a + b) / 2, atol=1e-6)
    np.testing.assert_array_equal(voxels(OUT / "a_pancreas.nii.gz") > 0, p > 0.5)


def test_the_same_command_keeps_what_is_done_and_segments_the_rest(predict: Predict) -> None:
    assert predict().code == 0
    masks = [OUT / f"{case}_pancreas.nii.gz" for case in "ace"]
    before = times_of(*masks)
    masks[0].unlink()
    Path("scans/c.nii.gz").touch()
    assert predict().code == 0
    again = times_of(*masks)
    assert [new > old for new, old in zip(again, before, strict=True)] == [True, True, False]
    Path("scans/c.nii.gz").write_bytes(b"damaged since")
    ended = predict()
    assert (ended.code, "1 scans were refused or failed" in ended.err) == (1, True)
    assert [rows_of()[case]["status"] for case in "ace"] == ["done", "refused", "done"]
    assert not list(OUT.glob("c_*"))
    ended = predict("postprocess.threshold=0.4")
    assert (ended.code, "holds masks of another checkpoint" in ended.err) == (2, True)


def test_confidence_is_calibrated_on_validation_patients_without_hindering_a_batch(
    predict: Predict, trained: Path, threshold: str, command: Command
) -> None:
    shutil.copytree(trained, "run", ignore=shutil.ignore_patterns("*.confidence.json", "scores"))
    best, fitted = "checkpoint=run/checkpoints/best.ckpt", Path("run/checkpoints/best.x")
    assert predict(best).code == 0
    before = rows_of()
    assert command("evaluate", best, "subset=val", threshold).code == 0
    assert not fitted.with_suffix(".confidence.json").exists()  # predict goes another way
    assert command("evaluate", best, "subset=val", "postprocess.threshold=auto").code == 0
    calibration = json.loads(fitted.with_suffix(".confidence.json").read_text())
    row = next(csv.DictReader(Path("run/scores/val.csv").read_text().splitlines()))
    scale = float(row["dice"]) / float(row["expected_dice"])  # one patient: a line through it
    assert (calibration["scale"], calibration["n"]) == (pytest.approx(scale, abs=2e-4), 1)
    assert calibration["lowest"] == pytest.approx(float(row["dice"]), abs=2e-4)
    Path("scans/a.nii.gz").touch()
    assert predict(best).code == 0  # the batch goes on
    raw, after = (float(rows["a"]["confidence"]) for rows in (before, rows_of()))
    assert after == pytest.approx(min(1, raw * calibration["scale"]), abs=2e-4)
    chosen = json.loads(fitted.with_suffix(".postprocess.json").read_text())
    assert predict(best, "output=new", "postprocess.threshold=null").code == 0
    used = json.loads(Path("new/predictions.json").read_text())["postprocess"]
    assert used == {key: chosen[key] for key in ("threshold", "largest_component")}


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("tta=true", "was trained without mirrored images"),
        ("checkpoint=nowhere.ckpt", "checkpoint=nowhere.ckpt: there is no such file"),
        ("shard=3/3", "shard=3/3: expected i/n"),
        ("postprocess.threshold=auto", "auto is chosen by pancseg.evaluate"),
        ("output=scans/out", "lies in the input"),
        ("input=???", "input is not given"),
    ],
)
def test_options_and_checkpoint_are_checked_before_the_input_is_read(
    predict: Predict, monkeypatch: pytest.MonkeyPatch, word: str, text: str
) -> None:
    monkeypatch.setattr("pancseg.inference.find_scans.find_scans", None)
    ended = predict(word)
    assert (ended.code, text in ended.err) == (2, True), ended.err


def test_label_maps_are_dropped_and_other_formats_refused_each_with_a_row(
    predict: Predict,
) -> None:
    image = nib.load("scans/a.nii.gz")
    organs = np.random.default_rng(0).integers(0, 104, image.shape)
    for name, values in (("c", organs == 5), ("e", organs)):
        nib.save(nib.Nifti1Image(values.astype(np.int16), image.affine), f"scans/{name}.nii.gz")
    Path("scans/f.mha").write_text("text")
    assert predict().code == 1
    rows = rows_of()
    assert [rows[n]["reason"] for n in "ace"] == ["", LABEL_MAP, LABEL_MAP]
    assert [rows[n]["status"] for n in "ace"] == ["done", "dropped", "dropped"]
    assert (rows[""]["status"], Path(rows[""]["path"]).name) == ("refused", "f.mha")
    assert len(list(OUT.glob("*_pancreas.nii.gz"))) == 1


def test_a_mask_stands_where_its_preview_or_its_seg_cannot_be_made(
    predict: Predict, dicom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise ValueError("no font for DOE^JOHN")

    for name in ("draw_scan", "write_seg"):
        monkeypatch.setattr(scan_batch, name, fail)
    series = min(path for path in (dicom / "images").iterdir() if path.is_dir())
    ended = predict(f"input={series}")
    assert (ended.code, "no preview" in ended.out) == (0, True)
    ((case, row),) = rows_of().items()
    assert (row["status"], "no_seg" in row["flags"].split()) == ("done", True)
    assert row["reason"] == "seg_failed: ValueError"  # the text might quote a header
    assert (OUT / f"{case}_pancreas.nii.gz").is_file()


def test_a_scan_that_fails_half_way_leaves_no_mask(
    predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = scan_batch.write_like_input

    def write_or_fail(path: Path, *arguments: Any) -> None:
        if "probability" in path.name:
            raise MemoryError
        write(path, *arguments)

    monkeypatch.setattr(scan_batch, "write_like_input", write_or_fail)
    assert predict("probabilities=true").code == 1
    assert {row["status"] for row in rows_of().values()} == {"failed"}
    assert not list(OUT.glob("*.nii.gz"))


def test_the_next_scan_is_read_and_the_last_one_written_while_the_network_works() -> None:
    read, segmenting = threading.Event(), threading.Event()

    class Overlapping:
        def read(self, case: str, source: Any) -> Any:
            read.set() if case == "b" else None
            return SimpleNamespace(case=case, scan=None)

        def segment(self, state: Any) -> None:
            assert read.wait(60)
            segmenting.set() if state.case == "b" else None

        def write(self, state: Any, rows: Any) -> Any:
            assert segmenting.wait(60)
            return state.case

    sources: Any = {case: SimpleNamespace(files=()) for case in "ab"}
    overlapping: Any = Overlapping()
    assert list(ScanBatch.run(overlapping, sources, {})) == ["a", "b"]


def test_a_full_disk_ends_a_batch_in_one_line_and_what_is_done_stays(
    predict: Predict, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, plain = [], scan_batch.write_nifti

    def full(path: Path, *args: Any) -> str:
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        return plain(path, *args)

    monkeypatch.setattr(scan_batch, "write_nifti", full)
    ended = predict()
    assert (ended.code, "Traceback" in ended.err) == (1, False)
    assert "cannot be written (No space left on device); make room" in ended.err
    assert [row["status"] for row in rows_of().values()] == ["done"]
    monkeypatch.setattr(scan_batch, "write_nifti", plain)
    before = times_of(*written)
    assert predict().code == 0
    assert [row["status"] for row in rows_of().values()] == ["done"] * 3
    assert times_of(*written) == before


def test_an_output_that_another_process_writes_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_batch, "LOCK_TIMEOUT_S", 0.05)
    predictor: Any = SimpleNamespace(identity=dict)
    partial = tmp_path / ".partial-0123-a_pancreas.nii.gz"
    partial.write_bytes(b"half")
    for held, shard in (("", ""), ("1", ""), ("1", "1"), ("", "1")):
        with (
            FileLock(tmp_path / f".predicting{held}.lock"),
            pytest.raises(PancsegError, match="is writing to it"),
            locked_output(tmp_path, predictor, shard),
        ):
            pass
    with locked_output(tmp_path, predictor, "1"), locked_output(tmp_path, predictor, "2"):
        assert partial.exists()  # it may be another shard's
    with locked_output(tmp_path, predictor, ""):
        assert not partial.exists()


def test_a_path_that_a_spreadsheet_would_compute_gets_an_apostrophe() -> None:
    scan_batch.write_table(OUT / "predictions.csv", [scan_batch.PredictionRow("a", "=cmd|x.nii")])
    assert rows_of()["a"]["path"] == "'=cmd|x.nii"


def test_shards_and_a_merge_give_the_table_of_one_call(predict: Predict) -> None:
    """Shard 1 of 3 is left to the merge."""
    Path("scans/damaged.nii.gz").write_bytes(b"no image")
    assert predict("output=plain").code == 1
    for shard in (0, 2):
        predict(f"shard={shard}/3")
    done = list(OUT.glob("*_pancreas.nii.gz"))
    before = times_of(*done)
    assert len(done) == 2
    assert predict().code == 1
    assert times_of(*done) == before
    assert not list(OUT.glob("predictions.*.csv"))
    tables = [rows_of(), rows_of(Path("plain"))]
    for row in (*tables[0].values(), *tables[1].values()):
        row["seconds"] = row["peak_memory_mb"] = ""
    assert tables[0] == tables[1]


@pytest.mark.parametrize(("n", "given", "limit"), [(0, None, 0.7), (3, None, 0.88), (3, 0.2, 0.2)])
def test_flags_and_files_follow_the_structure_and_the_confidence_of_validation(
    n: int, given: float | None, limit: float
) -> None:
    models = [SimpleNamespace(preprocessing=SimpleNamespace(spacing_mm=(1, 1, 1)))]
    predictor: Any = SimpleNamespace(calibration=Calibration(1.0, n, 0.9), models=models)
    liver = replace(PANCREAS, name="liver", volume_ml=(800, 3000))
    batch = ScanBatch(predictor, liver, Path(), ReviewThresholds(confidence=given))
    mask = np.zeros((60, 60, 60), bool)
    scan = Scan(nib.Nifti1Image(np.zeros(mask.shape, np.int16), np.eye(4)))

    def flags(confidence: float) -> set[str]:
        prediction: Any = SimpleNamespace(mask=mask, confidence=confidence)
        return set(batch.flags(scan, prediction, {}))

    assert "no_liver" in flags(0.9)
    mask[3:33, 3:33, 3:33] = True  # 27 ml
    assert {"volume_range", "not_confident"} <= flags(limit - 0.01)
    assert not {"not_confident", "touches_end", "several_pieces"} & flags(limit + 0.01)
    mask[35:57, 35:57, 45:] = True
    assert {"touches_end", "several_pieces"} <= flags(0.9)
    assert batch.paths("a")["seg"].name == "a_liver.dcm"


def test_a_scan_unlike_those_trained_on_is_flagged_with_the_number(predict: Predict) -> None:
    image = nib.load("scans/c.nii.gz")
    noisy = np.asarray(image.dataobj) + np.random.default_rng(0).normal(0, 150, image.shape)
    nib.save(nib.Nifti1Image(np.rint(noisy).astype(np.int16), image.affine), "scans/c.nii.gz")
    assert predict().code == 0
    rows = rows_of()
    assert ["noise_unlike" in rows[case]["flags"].split() for case in "ce"] == [True, False]
    assert "noise_hu" in rows["c"]["unlike"] and "trained on" in rows["c"]["unlike"]


def find(path: Path) -> SourceContents:
    return find_scans(path, "CT", processes=1)


def names(path: Path) -> list[str]:
    return case_names(find(path).cases, path)


def write_files(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)), root / path)


def test_series_and_files_of_a_folder_are_found_and_labels_are_left_out(tmp_path: Path) -> None:
    write_series(tmp_path / "series", names=[f"{n}.img" for n in range(5)])  # slices named as files
    write_files(tmp_path, "a.nii.gz", "b/c.nii", "a_seg.nii.gz", "a-mask.nii", "label.nii.gz")
    write_nrrd(tmp_path / "d.nrrd", np.zeros((2, 2, 2), np.int16))
    contents = find(tmp_path)
    paths = sorted(case.path.relative_to(tmp_path).as_posix() for case in contents.cases)
    assert paths == ["a.nii.gz", "b/c.nii", "d.nrrd", "label.nii.gz", "series"]
    assert contents.skipped == []
    assert contents.warnings == ["2 label files are left out, such as a-mask.nii"]
    assert [case.path.name for case in find(tmp_path / "a.nii.gz").cases] == ["a.nii.gz"]


def test_only_refused_input_gets_a_row_and_a_pipe_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    write_series(tmp_path / "mr", modality="MR")
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "scan.mha").write_text("text")
    contents = find(tmp_path)
    expected = [("mr", "image", "not_ct"), ("scan.mha", "image", "unread_format")]
    assert skipped(contents) == expected
    assert contents.skipped[1].reason.endswith("; modality=any takes it")
    os.mkfifo(tmp_path / "pipe.nii.gz")
    assert skipped(find(tmp_path / "pipe.nii.gz")) == [("pipe.nii.gz", "other", "not_a_file")]


def test_nothing_to_segment_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    for path, text in ((tmp_path, "neither a CT series nor"), (tmp_path / "missing", "no such")):
        with pytest.raises(PancsegError, match=text):
            find(path)


def test_a_pattern_names_the_scans_of_folders_that_hold_masks_too(tmp_path: Path) -> None:
    """As TotalSegmentator's data set: a folder a patient, with ct.nii.gz and segmentations/."""
    for patient in ("s1", "s2"):
        write_files(tmp_path, f"{patient}/ct.nii.gz", f"{patient}/segmentations/liver.nii.gz")
    write_files(tmp_path, "labelsTr/s3.nii.gz")
    by_pattern = [case.path.parent.name for case in find(tmp_path / "*" / "ct.nii.gz").cases]
    assert by_pattern == ["s1", "s2"]
    assert len(set(names(tmp_path / "*" / "ct.nii.gz"))) == 2
    contents = find(tmp_path)
    assert [case.path.name for case in contents.cases] == ["ct.nii.gz", "ct.nii.gz"]
    assert contents.warnings == ["3 label files are left out, such as s3.nii.gz"]


def test_files_below_a_folder_have_a_hash_in_their_name_and_series_a_hash_of_their_uid(
    tmp_path: Path,
) -> None:
    write_files(tmp_path, "a.nii.gz", "DOE/b.nii", os.fsdecode(b"p\xe4t.nii"))
    below, own, undecoded = names(tmp_path)
    assert (below[:2], len(below), own) == ("b-", len("b-") + 12, "a")
    assert undecoded.startswith("p-t-")  # bytes of no encoding are not written into names
    for n, folder in enumerate(("DOE", "other")):
        write_series(tmp_path / "ct" / folder, patient_id="DOE", series_uid=f"1.2.{n}")
    series = names(tmp_path / "ct")
    assert len(set(series)) == 2 and all(name.startswith("series-") for name in series)


def test_names_differ_where_capitals_do_not_count_and_are_safe_on_every_file_system(
    tmp_path: Path,
) -> None:
    write_files(tmp_path / "1", "a.nii", "A.nii.gz", "a-2.nii", "a.nii.gz", "b.nii")
    same = names(tmp_path / "1")
    assert len({name.casefold() for name in same}) == 5 and {"b", "a-2"} < set(same)
    long, formula = "a" * 200, "=cmd|x"
    write_files(tmp_path / "2", f"{long}.nii.gz", f"{formula}.nii", "....nii")
    odd = names(tmp_path / "2")
    assert len(set(odd)) == 3
    assert all(len(name) < 80 and name[0].isalnum() for name in odd)
