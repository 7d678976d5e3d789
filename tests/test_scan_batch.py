"""Batches of ``predict``: order, interruption, full disk, shards, confidence."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import nibabel as nib
import numpy as np
import pytest
from filelock import FileLock

from pancseg.dicom.series import Scan
from pancseg.inference import scan_batch
from pancseg.inference.calibration import Calibration
from pancseg.inference.predictor import Prediction
from pancseg.inference.scan_batch import ReviewThresholds, ScanBatch
from tests.conftest import Command, run_command
from tests.test_predictor import PANCREAS

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def patched(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on patches, mirrored front to back in training, that finds the body's bright parts."""
    run = tmp_path_factory.mktemp("runs") / "patched"
    words = [
        "experiment=smoke", "data=volume", "data.spacing_mm=[8,8,8]", f"data.root={prepared}",
        "data.spatial_size=[32,32,32]", "sampling.steps_per_epoch=6", "trainer.max_epochs=2",
        "model=resunet", "model.width=4", "loss=dice_ce", "optimizer.lr=3e-3",
        "augment.flip_probability=[0,0.5,0]", "split.val=1", "split.test=2",
        f"hydra.run.dir={run}",
    ]  # fmt: skip
    assert run_command("train", *words) == 0
    return run / "checkpoints" / "best.ckpt"


@pytest.fixture
def scans(dicom: Path, tmp_path: Path) -> Path:
    """Three NIfTI files."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for path in sorted((dicom / "truth").glob("*_image.nii.gz"))[:3]:
        shutil.copy(path, folder / path.name)
    return folder


def rows_of(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))


def mask_of(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.mark.parametrize("ahead_mb", [0, 1000])
def test_rows_come_in_order_whether_scans_are_read_ahead_or_not(
    patched: Path, scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_mb: int
) -> None:
    monkeypatch.setattr(scan_batch, "READ_AHEAD_MB", ahead_mb)
    (scans / "b_damaged.nii.gz").write_bytes(b"no image")
    out = tmp_path / "out"
    assert run_command("predict", f"checkpoint={patched}", f"input={scans}", f"output={out}") == 1
    rows = rows_of(out)
    assert [row["case"] for row in rows] == sorted(row["case"] for row in rows)
    assert sorted(row["status"] for row in rows) == ["done"] * 3 + ["refused"]


def test_the_next_scan_is_read_and_the_last_one_written_while_the_network_works() -> None:
    """The network waits for the next scan to be read, and the writer for the network."""
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

    scans = {case: cast(Any, SimpleNamespace(files=())) for case in "ab"}
    assert list(ScanBatch.run(cast(ScanBatch, Overlapping()), scans, {})) == ["a", "b"]


def test_a_full_disk_ends_a_batch_in_one_line_and_what_is_done_stays(
    patched: Path, scans: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, plain = [], scan_batch.write_nifti

    def full(path: Path, image: nib.Nifti1Image, qform: Any = None) -> str:
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        return plain(path, image, qform)

    out = tmp_path / "out"
    words = [f"checkpoint={patched}", f"input={scans}", f"output={out}"]
    monkeypatch.setattr(scan_batch, "write_nifti", full)
    ended = command("predict", *words)
    assert ended.code == 1
    assert "cannot be written (No space left on device); make room" in ended.err
    assert "Traceback" not in ended.err
    assert [row["status"] for row in rows_of(out)] == ["done"]
    monkeypatch.undo()
    kept = written[0].stat().st_mtime_ns
    assert command("predict", *words).code == 0
    assert [row["status"] for row in rows_of(out)] == ["done"] * 3
    assert written[0].stat().st_mtime_ns == kept


def test_a_folder_that_another_process_writes_to_is_refused_and_partial_files_are_removed(
    patched: Path, scans: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    words = [f"checkpoint={patched}", f"input={scans}", f"output={out}"]
    (out / ".partial-0123-a_pancreas.nii.gz").write_bytes(b"half")
    for name, shard in (("", "shard=null"), ("1", "shard=null"), ("1", "shard=1/3")):
        with FileLock(out / f".predicting{name}.lock"):
            ended = command("predict", *words, shard)
        assert ended.code == 2
        assert "another pancseg.predict is writing to it" in ended.err
    assert list(out.glob(".partial-*"))  # they may be the other's
    assert command("predict", *words).code == 0
    assert not list(out.glob(".p*"))


def test_shards_and_a_merge_give_the_table_of_one_call(
    patched: Path, dicom: Path, tmp_path: Path, command: Command
) -> None:
    """Shard 1 of 3 is left to the merge; a scan of shard 0 that failed is tried again by it."""
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for path in (dicom / "truth").glob("*_image.nii.gz"):
        shutil.copy(path, scans / path.name)
    (scans / "damaged.nii.gz").write_bytes(b"no image")
    words = [f"checkpoint={patched}", f"input={scans}"]
    assert command("predict", *words, f"output={tmp_path / 'plain'}").code == 1
    for shard in (0, 2):
        command("predict", *words, f"output={out}", f"shard={shard}/3")
    done = {path: path.stat().st_mtime_ns for path in out.glob("*_pancreas.nii.gz")}
    assert 0 < len(done) < 6
    assert command("predict", *words, f"output={out}").code == 1
    for path, time_ns in done.items():
        assert path.stat().st_mtime_ns == time_ns
    assert not list(out.glob("predictions.*.csv"))
    measured = ("seconds", "peak_memory_mb")
    tables = [
        [{k: v for k, v in row.items() if k not in measured} for row in rows_of(folder)]
        for folder in (out, tmp_path / "plain")
    ]
    assert tables[0] == tables[1]


@pytest.mark.skipif(os.geteuid() == 0 and sys.platform == "linux", reason="root writes anywhere")
def test_a_read_only_folder_is_told_in_one_line(
    patched: Path, scans: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "out"
    out.mkdir(mode=0o500)
    ended = command("predict", f"checkpoint={patched}", f"input={scans}", f"output={out}")
    assert ended.code == 2
    assert f"output={out}: cannot be written (Permission denied)" in ended.err


def test_a_network_that_cannot_be_applied_so_is_refused_in_one_line(
    patched: Path, trained: Path, scans: Path, tmp_path: Path, command: Command
) -> None:
    groups = trained / "checkpoints" / "best.ckpt"
    words = [f"input={scans}", f"output={tmp_path / 'out'}"]
    for extra, said in (
        ([f"checkpoint={groups}", "roi=auto"], "roi=auto: needs networks that were trained on"),
        ([f"checkpoint={groups}", "tta=true"], "was trained without mirrored images"),
    ):
        ended = command("predict", *words, *extra)
        assert ended.code == 2
        assert said in ended.err


def test_mirror_images_along_axes_that_training_mirrored_change_the_mask(
    patched: Path, scans: Path, tmp_path: Path
) -> None:
    image = sorted(scans.iterdir())[0]
    for tta in ("false", "true"):
        words = [f"checkpoint={patched}", f"input={image}", f"output={tmp_path / tta}"]
        assert run_command("predict", *words, f"tta={tta}", "probabilities=true") == 0
    identity = json.loads((tmp_path / "true" / "predictions.json").read_text())
    assert identity["mirrored_axes"] == [[1]]
    one, both = (
        mask_of(next((tmp_path / tta).glob("*_probability.nii.gz"))) for tta in ("false", "true")
    )
    assert not np.allclose(one, both, atol=1e-4)


def test_probabilities_of_several_checkpoints_are_averaged(
    patched: Path, trained: Path, scans: Path, tmp_path: Path
) -> None:
    image = sorted(scans.iterdir())[0]
    both = [str(patched), str(trained / "checkpoints" / "best.ckpt")]
    words = [f"input={image}", "probabilities=true"]
    for name, given in (("a", both[0]), ("b", both[1]), ("ab", f"[{','.join(both)}]")):
        where = [f"checkpoint={given}", f"output={tmp_path / name}"]
        assert run_command("predict", *words, *where) == 0
    a, b, mean = (
        mask_of(next((tmp_path / name).glob("*_probability.nii.gz"))) for name in ("a", "b", "ab")
    )
    np.testing.assert_allclose(mean, (a + b) / 2, atol=1e-6)


def test_confidence_is_calibrated_on_validation_patients(
    trained: Path, scans: Path, tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("*.confidence.json"))
    best = run / "checkpoints" / "best.ckpt"
    words = [f"checkpoint={best}", f"input={scans}", "postprocess.threshold=0.3"]
    assert command("predict", *words, f"output={tmp_path / 'before'}").code == 0
    by_hand = [f"checkpoint={best}", "subset=val", "postprocess.threshold=0.3"]
    assert command("evaluate", *by_hand).code == 0
    assert not (run / "checkpoints" / "best.confidence.json").exists()  # predict goes another way
    assert command("evaluate", f"checkpoint={best}", "subset=val").code == 0
    kept = json.loads((run / "checkpoints" / "best.confidence.json").read_text())
    row = next(csv.DictReader((run / "scores" / "val.csv").read_text().splitlines()))
    expected = float(row["dice"]) / float(row["expected_dice"])  # one patient: a line through it
    assert kept["scale"] == pytest.approx(expected, abs=2e-4)
    assert kept["n"] == 1
    assert command("predict", *words, f"output={tmp_path / 'after'}").code == 0
    for before, after in zip(
        rows_of(tmp_path / "before"), rows_of(tmp_path / "after"), strict=True
    ):
        raw = float(before["confidence"])
        assert float(after["confidence"]) == pytest.approx(min(1, raw * kept["scale"]), abs=2e-4)
    assert kept["lowest"] == pytest.approx(float(row["dice"]), abs=2e-4)  # of the only one


@pytest.mark.parametrize(("n", "given", "limit"), [(0, None, 0.7), (3, None, 0.88), (3, 0.2, 0.2)])
def test_a_mask_is_flagged_below_the_lowest_confidence_of_validation_unless_one_is_given(
    n: int, given: float | None, limit: float
) -> None:
    preprocessing = SimpleNamespace(spacing_mm=(1, 1, 1))
    predictor = SimpleNamespace(
        calibration=Calibration(1.0, n, 0.9), models=[SimpleNamespace(preprocessing=preprocessing)]
    )
    thresholds = ReviewThresholds(confidence=given)
    batch = ScanBatch(cast(Any, predictor), PANCREAS, Path(), thresholds)
    mask = np.zeros((60, 60, 60), bool)
    mask[3:33, 3:33, 3:33] = True  # 27 ml
    scan = Scan(nib.Nifti1Image(np.zeros(mask.shape, np.int16), np.eye(4)))
    for confidence, is_flagged in ((limit - 0.01, True), (limit + 0.01, False)):
        prediction = cast(Prediction, SimpleNamespace(mask=mask, confidence=confidence))
        assert ("not_confident" in batch.flags(scan, prediction, {})) == is_flagged


def test_flags_and_files_are_named_after_the_structure(tmp_path: Path) -> None:
    liver = replace(PANCREAS, name="liver", volume_ml=(800, 3000))
    models = [SimpleNamespace(preprocessing=SimpleNamespace(spacing_mm=(1, 1, 1)))]
    predictor = SimpleNamespace(calibration=Calibration(), models=models)
    batch = ScanBatch(cast(Any, predictor), liver, tmp_path, ReviewThresholds())
    mask = np.zeros((60, 60, 60), bool)
    scan = Scan(nib.Nifti1Image(np.zeros(mask.shape, np.int16), np.eye(4)))
    prediction = cast(Prediction, SimpleNamespace(mask=mask, confidence=0.9))
    assert "no_liver" in batch.flags(scan, prediction, {})
    mask[3:33, 3:33, 3:33] = True  # 27 ml, plausible for a pancreas
    assert "volume_range" in batch.flags(scan, prediction, {})
    assert batch.paths("a")["seg"].name == "a_liver.dcm"


def test_a_scan_unlike_those_trained_on_is_flagged_with_the_number(
    trained: Path, scans: Path, tmp_path: Path
) -> None:
    image = nib.load(sorted(scans.iterdir())[0])
    hu = np.asarray(image.dataobj, np.float32)
    noisy = hu + np.random.default_rng(0).normal(0, 150, hu.shape)
    for path in list(scans.iterdir())[1:]:
        path.unlink()
    nib.save(nib.Nifti1Image(np.rint(noisy).astype(np.int16), image.affine), scans / "noisy.nii.gz")
    words = [f"checkpoint={trained / 'checkpoints' / 'best.ckpt'}", f"input={scans}"]
    assert run_command("predict", *words, f"output={tmp_path / 'out'}") == 0
    rows = {row["case"]: row for row in rows_of(tmp_path / "out")}
    assert "noise_unlike" in rows["noisy"]["flags"].split()
    assert "noise_hu" in rows["noisy"]["unlike"]
    assert "trained on" in rows["noisy"]["unlike"]
    other = next(row for name, row in rows.items() if name != "noisy")
    assert "noise_unlike" not in other["flags"].split()


def start(patched: Path, scans: Path, out: Path) -> subprocess.Popen[bytes]:
    words = [f"checkpoint={patched}", f"input={scans}", f"output={out}"]
    return subprocess.Popen(
        [sys.executable, "-m", "pancseg.predict", *words], cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.slow
def test_killed_at_any_moment_a_batch_goes_on_and_nothing_is_lost_or_half_written(
    patched: Path, dicom: Path, tmp_path: Path
) -> None:
    """30 scans, killed with -9 at eight moments, then run to the end: as if undisturbed."""
    scans = tmp_path / "scans"
    scans.mkdir()
    images = sorted((dicom / "truth").glob("*_image.nii.gz"))
    for n in range(30):
        shutil.copy(images[n % len(images)], scans / f"scan_{n:02}.nii.gz")

    began = time.perf_counter()
    assert start(patched, scans, tmp_path / "plain").wait() == 0
    whole_s = time.perf_counter() - began
    rng, out = np.random.default_rng(0), tmp_path / "killed"
    done: dict[str, int] = {}
    kills = 0
    for _ in range(8):
        process = start(patched, scans, out)
        time.sleep(whole_s * rng.uniform(0.3, 0.6))
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        for name, changed in done.items():  # what was told as done stays untouched
            assert (out / name).stat().st_mtime_ns == changed
        if (out / "predictions.csv").is_file():
            names = [f"{row['case']}_pancreas.nii.gz" for row in rows_of(out)]
            done = {name: (out / name).stat().st_mtime_ns for name in names}
    assert kills >= 4
    assert start(patched, scans, out).wait() == 0
    assert [row["status"] for row in rows_of(out)] == ["done"] * 30
    assert not list(out.glob(".partial-*"))
    for path in sorted((tmp_path / "plain").glob("*.nii.gz")):
        np.testing.assert_array_equal(mask_of(path), mask_of(out / path.name))
