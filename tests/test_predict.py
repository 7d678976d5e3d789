"""The command ``predict``: masks, tables, interrupted batches, shards, flags."""

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
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
from pancseg.inference.predictor import load_segmenter
from pancseg.inference.scan_batch import LABEL_MAP, ReviewThresholds, ScanBatch, locked_output
from tests.conftest import Command, run_command
from tests.test_predictor import PANCREAS

COLUMNS = (
    "case,path,series_uid,status,reason,volume_ml,mean_hu,confidence,flags,seconds,peak_memory_mb"
)


@pytest.fixture(scope="module")
def best(trained: Path) -> Path:
    return trained / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def images(dicom: Path) -> list[Path]:
    """NIfTI images of the phantoms."""
    return sorted((dicom / "truth").glob("*_image.nii.gz"))


@pytest.fixture(scope="module")
def threshold(best: Path, images: list[Path]) -> str:
    """A threshold by which two epochs of a tiny network find about 1 % of a scan."""
    p = load_segmenter(best).predict(nib.load(images[0]), 0.0).probability
    return f"postprocess.threshold={np.quantile(p, 0.99):.6f}"


@pytest.fixture(scope="module")
def predicted(
    best: Path, threshold: str, dicom: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Masks of the six phantoms, read as DICOM."""
    out = tmp_path_factory.mktemp("predicted")
    words = [f"checkpoint={best}", f"input={dicom / 'images'}", f"output={out}", threshold]
    assert run_command("predict", *words) == 0
    return out


@pytest.fixture
def scans(images: list[Path], tmp_path: Path) -> Path:
    """Three NIfTI files, one in each of three shards."""
    (tmp_path / "scans").mkdir()
    for name, image in zip("aec", images, strict=False):
        shutil.copy(image, tmp_path / "scans" / f"{name}.nii.gz")
    return tmp_path / "scans"


def rows_of(out: Path) -> dict[str, dict[str, str]]:
    rows = csv.DictReader((out / "predictions.csv").read_text().splitlines())
    return {row["case"]: row for row in rows}


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_every_series_has_a_row_a_mask_a_seg_and_a_preview(predicted: Path) -> None:
    assert (predicted / "predictions.csv").read_text().startswith(COLUMNS)
    rows = rows_of(predicted)
    assert [row["status"] for row in rows.values()] == ["done"] * 6
    for case, row in rows.items():
        assert 0 < float(row["confidence"]) < 1 and float(row["volume_ml"]) > 0
        assert (predicted / f"{case}_preview.png").is_file()
        assert nib.load(predicted / f"{case}_pancreas.nii.gz").get_data_dtype() == np.uint8
        seg = pydicom.dcmread(predicted / f"{case}_pancreas.dcm")
        assert (seg.Modality, seg.SegmentationType) == ("SEG", "BINARY")
        assert seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue == "15776009"


def test_a_mask_lies_on_the_grid_of_its_series_and_is_the_one_that_evaluate_scores(
    predicted: Path, dicom: Path, trained: Path, threshold: str, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("scores"))
    assert run_command("evaluate", f"checkpoint={tmp_path / 'run'}", threshold) == 0
    cases = {Path(row["path"]).name: case for case, row in rows_of(predicted).items()}
    scored = list((tmp_path / "run" / "scores" / "test").glob("*_prediction.nii.gz"))
    assert len(scored) == 2
    for path in scored:
        name = path.name.removesuffix("_prediction.nii.gz")
        mask = nib.load(predicted / f"{cases[name]}_pancreas.nii.gz")
        truth = nib.load(dicom / "truth" / f"{name}_image.nii.gz")
        np.testing.assert_allclose(mask.affine, truth.affine, atol=1e-4)
        np.testing.assert_array_equal(np.asarray(mask.dataobj), voxels(path))


def test_no_identifier_gets_into_names_tables_or_masks(predicted: Path, dicom: Path) -> None:
    patient = str(pydicom.dcmread(next((dicom / "images").rglob("*.dcm"))).PatientID)
    for path in predicted.iterdir():
        assert patient not in path.name
        if path.suffix == ".gz":
            header = nib.load(path).header
            assert not (header["descrip"].tobytes() + header["db_name"].tobytes()).strip(b"\0")
    cells = [v for row in rows_of(predicted).values() for k, v in row.items() if k != "path"]
    assert patient not in json.dumps(cells)


def test_probabilities_of_several_checkpoints_are_averaged_and_written(
    trained: Path, images: list[Path], tmp_path: Path
) -> None:
    both = [trained / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
    words = [f"checkpoint=[{both[0]},{both[1]}]", f"input={images[0]}", "probabilities=true"]
    assert run_command("predict", *words, f"output={tmp_path}") == 0
    p = voxels(next(tmp_path.glob("*_probability.nii.gz")))
    a, b = (load_segmenter(path).predict(nib.load(images[0]), 0.0).probability for path in both)
    np.testing.assert_allclose(p, (a + b) / 2, atol=1e-6)
    np.testing.assert_array_equal(voxels(next(tmp_path.glob("*_pancreas.nii.gz"))) > 0, p > 0.5)


def test_the_same_command_keeps_what_is_done_and_segments_the_rest(
    best: Path, threshold: str, scans: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "out"
    words = [f"checkpoint={best}", f"input={scans}", f"output={out}"]
    assert command("predict", *words, threshold).code == 0
    masks = [out / f"{case}_pancreas.nii.gz" for case in "ace"]
    times = [path.stat().st_mtime_ns for path in masks]
    masks[0].unlink()
    (scans / "c.nii.gz").touch()
    assert command("predict", *words, threshold).code == 0
    again = [path.stat().st_mtime_ns for path in masks]
    assert [new > old for new, old in zip(again, times, strict=True)] == [True, True, False]
    (scans / "c.nii.gz").write_bytes(b"damaged since")
    ended = command("predict", *words, threshold)
    assert (ended.code, "1 scans were refused or failed" in ended.err) == (1, True)
    rows = rows_of(out)
    assert [rows[case]["status"] for case in "ace"] == ["done", "refused", "done"]
    assert rows["c"]["reason"]
    assert not list(out.glob("c_*"))
    ended = command("predict", *words, "postprocess.threshold=0.4")
    assert (ended.code, "holds masks of another checkpoint" in ended.err) == (2, True)


def test_confidence_is_calibrated_on_validation_patients_without_hindering_a_batch(
    trained: Path, threshold: str, scans: Path, tmp_path: Path, command: Command
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("*.confidence.json", "scores"))
    best = run / "checkpoints" / "best.ckpt"
    words = [f"checkpoint={best}", f"input={scans}", f"output={out}", threshold]
    assert command("predict", *words).code == 0
    before = rows_of(out)
    sidecar = run / "checkpoints" / "best.confidence.json"
    assert command("evaluate", f"checkpoint={best}", "subset=val", threshold).code == 0
    assert not sidecar.exists()  # predict goes another way
    auto = "postprocess.threshold=auto"
    assert command("evaluate", f"checkpoint={best}", "subset=val", auto).code == 0
    fitted = json.loads(sidecar.read_text())
    row = next(csv.DictReader((run / "scores" / "val.csv").read_text().splitlines()))
    scale = float(row["dice"]) / float(row["expected_dice"])  # one patient: a line through it
    assert (fitted["scale"], fitted["n"]) == (pytest.approx(scale, abs=2e-4), 1)
    assert fitted["lowest"] == pytest.approx(float(row["dice"]), abs=2e-4)
    (scans / "a.nii.gz").touch()
    assert command("predict", *words).code == 0  # the batch goes on
    raw, after = (float(rows["a"]["confidence"]) for rows in (before, rows_of(out)))
    assert after == pytest.approx(min(1, raw * fitted["scale"]), abs=2e-4)
    chosen = json.loads((run / "checkpoints" / "best.postprocess.json").read_text())
    new = tmp_path / "new"
    assert command("predict", *words[:2], f"output={new}").code == 0
    used = json.loads((new / "predictions.json").read_text())["postprocess"]
    assert used == {key: chosen[key] for key in ("threshold", "largest_component")}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["roi=liver"], "roi=liver: expected auto"),
        (["roi=auto"], "roi=auto: needs networks that were trained on"),
        (["tta=true"], "was trained without mirrored images"),
        (["checkpoint=nowhere.ckpt"], "checkpoint=nowhere.ckpt: there is no such file"),
        (["shard=3/3"], "shard=3/3: expected i/n"),
        (["postprocess.threshold=auto"], "auto is chosen by pancseg.evaluate"),
        (["output=scans/out"], "lies in the input"),
        (["input=???"], "input is not given"),
    ],
)
def test_options_and_checkpoint_are_checked_before_the_input_is_read(
    best: Path, scans: Path, command: Command, monkeypatch: pytest.MonkeyPatch,
    words: list[str], text: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("pancseg.inference.find_scans.find_scans", None)
    given = {"checkpoint": str(best), "input": "scans", "output": "out"}
    given |= dict(word.split("=", 1) for word in words)
    ended = command("predict", *(f"{key}={value}" for key, value in given.items()))
    assert (ended.code, text in ended.err) == (2, True), ended.err


def test_label_maps_are_dropped_and_other_formats_refused_each_with_a_row(
    best: Path, scans: Path, command: Command
) -> None:
    image = nib.load(scans / "a.nii.gz")
    organs = np.random.default_rng(0).integers(0, 104, image.shape)
    for name, values in (("c", organs == 5), ("e", organs)):
        nib.save(nib.Nifti1Image(values.astype(np.int16), image.affine), scans / f"{name}.nii.gz")
    (scans / "f.mha").write_text("text")
    ended = command("predict", f"checkpoint={best}", f"input={scans}", "output=out")
    assert ended.code == 1
    rows = rows_of(Path("out"))
    assert rows["a"]["status"] == "done"
    assert [rows[n]["reason"] for n in "ce"] == [LABEL_MAP] * 2
    assert (rows[""]["status"], Path(rows[""]["path"]).name) == ("refused", "f.mha")
    assert len(list(Path("out").glob("*_pancreas.nii.gz"))) == 1


def test_a_mask_stands_where_its_preview_or_its_seg_cannot_be_made(
    best: Path, dicom: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise ValueError("no font for DOE^JOHN")

    for name in ("draw_scan", "write_seg"):
        monkeypatch.setattr(scan_batch, name, fail)
    series = min(path for path in (dicom / "images").iterdir() if path.is_dir())
    ended = command("predict", f"checkpoint={best}", f"input={series}", "output=out")
    assert (ended.code, "no preview" in ended.out) == (0, True)
    ((case, row),) = rows_of(Path("out")).items()
    assert (row["status"], "no_seg" in row["flags"].split()) == ("done", True)
    assert row["reason"] == "seg_failed: ValueError"  # the text might quote a header
    assert (Path("out") / f"{case}_pancreas.nii.gz").is_file()


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")
def test_a_real_series_whose_uids_were_emptied_is_segmented_without_a_seg(
    best: Path, shared_data: Path, tmp_path: Path, command: Command
) -> None:
    series = shared_data / "abdomen" / "ct_dicom"
    ended = command("predict", f"checkpoint={best}", f"input={series}", f"output={tmp_path}")
    assert ended.code == 0, ended.err
    ((case, row),) = rows_of(tmp_path).items()
    assert nib.load(tmp_path / f"{case}_pancreas.nii.gz").shape == (512, 512, 20)
    assert "no_seg" in row["flags"].split()
    assert row["reason"].startswith("seg_no_uid: ")
    assert not list(tmp_path.glob("*.dcm"))


def test_the_next_scan_is_read_and_the_last_one_written_while_the_network_works() -> None:
    read, segmenting = threading.Event(), threading.Event()

    class Overlapping:
        def read(self, case: str, source: Any) -> Any:
            if case == "b":
                read.set()
            return SimpleNamespace(case=case, scan=None)

        def segment(self, state: Any) -> None:
            if state.case == "a":
                assert read.wait(60)
            else:
                segmenting.set()

        def write(self, state: Any, rows: Any) -> Any:
            if state.case == "a":
                assert segmenting.wait(60)
            return state.case

    sources: Any = {case: SimpleNamespace(files=()) for case in "ab"}
    overlapping: Any = Overlapping()
    assert list(ScanBatch.run(overlapping, sources, {})) == ["a", "b"]


def test_a_full_disk_ends_a_batch_in_one_line_and_what_is_done_stays(
    best: Path, scans: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, plain = [], scan_batch.write_nifti

    def full(path: Path, image: nib.Nifti1Image, qform: Any = None) -> str:
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        return plain(path, image, qform)

    out = tmp_path / "out"
    words = [f"checkpoint={best}", f"input={scans}", f"output={out}"]
    monkeypatch.setattr(scan_batch, "write_nifti", full)
    ended = command("predict", *words)
    assert (ended.code, "Traceback" in ended.err) == (1, False)
    assert "cannot be written (No space left on device); make room" in ended.err
    assert [row["status"] for row in rows_of(out).values()] == ["done"]
    monkeypatch.undo()
    time_ns = written[0].stat().st_mtime_ns
    assert command("predict", *words).code == 0
    assert [row["status"] for row in rows_of(out).values()] == ["done"] * 3
    assert written[0].stat().st_mtime_ns == time_ns


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


def test_shards_and_a_merge_give_the_table_of_one_call(
    best: Path, scans: Path, tmp_path: Path, command: Command
) -> None:
    """Shard 1 of 3 is left to the merge."""
    out = tmp_path / "out"
    (scans / "damaged.nii.gz").write_bytes(b"no image")
    words = [f"checkpoint={best}", f"input={scans}"]
    assert command("predict", *words, f"output={tmp_path / 'plain'}").code == 1
    for shard in (0, 2):
        command("predict", *words, f"output={out}", f"shard={shard}/3")
    done = {path: path.stat().st_mtime_ns for path in out.glob("*_pancreas.nii.gz")}
    assert len(done) == 2
    assert command("predict", *words, f"output={out}").code == 1
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in done.items())
    assert not list(out.glob("predictions.*.csv"))
    tables = [rows_of(folder) for folder in (out, tmp_path / "plain")]
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

    def flags(confidence: float) -> list[str]:
        prediction: Any = SimpleNamespace(mask=mask, confidence=confidence)
        return batch.flags(scan, prediction, {})

    assert "no_liver" in flags(0.9)
    mask[3:33, 3:33, 3:33] = True  # 27 ml
    assert "volume_range" in flags(0.9)
    assert "not_confident" in flags(limit - 0.01)
    assert not {"not_confident", "touches_end", "several_pieces"} & {*flags(limit + 0.01)}
    mask[35:57, 35:57, 45:] = True
    assert {"touches_end", "several_pieces"} <= {*flags(0.9)}
    assert batch.paths("a")["seg"].name == "a_liver.dcm"


def test_a_scan_unlike_those_trained_on_is_flagged_with_the_number(
    best: Path, scans: Path, command: Command
) -> None:
    image = nib.load(scans / "c.nii.gz")
    noisy = voxels(scans / "c.nii.gz") + np.random.default_rng(0).normal(0, 150, image.shape)
    (scans / "a.nii.gz").unlink()
    nib.save(nib.Nifti1Image(np.rint(noisy).astype(np.int16), image.affine), scans / "c.nii.gz")
    assert command("predict", f"checkpoint={best}", f"input={scans}", "output=out").code == 0
    rows = rows_of(Path("out"))
    assert ["noise_unlike" in rows[case]["flags"].split() for case in "ce"] == [True, False]
    assert "noise_hu" in rows["c"]["unlike"] and "trained on" in rows["c"]["unlike"]


@pytest.mark.slow
def test_a_killed_batch_goes_on_as_if_undisturbed(
    best: Path, threshold: str, images: list[Path], tmp_path: Path, command: Command
) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for n in range(30):
        shutil.copy(images[n % len(images)], scans / f"scan_{n:02}.nii.gz")
    words = [f"checkpoint={best}", f"input={scans}", threshold]
    line = [sys.executable, "-m", "pancseg.predict", *words, f"output={out}"]
    for count in (1, 12):
        process = subprocess.Popen(line, cwd=Path(__file__).parent.parent, stdout=-3, stderr=-3)
        while process.poll() is None and len(list(out.glob("*_pancreas.nii.gz"))) < count:
            time.sleep(0.02)
        process.kill()
        process.wait()
    names = [f"{case}_pancreas.nii.gz" for case in rows_of(out)]
    done = {name: (out / name).stat().st_mtime_ns for name in names}
    assert command("predict", *words, f"output={out}").code == 0
    assert all((out / name).stat().st_mtime_ns == time_ns for name, time_ns in done.items())
    assert command("predict", *words, f"output={tmp_path / 'plain'}").code == 0
    assert [row["status"] for row in rows_of(out).values()] == ["done"] * 30
    for path in (tmp_path / "plain").glob("*.nii.gz"):
        np.testing.assert_array_equal(voxels(path), voxels(out / path.name))
