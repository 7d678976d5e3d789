"""The command ``predict``: its input, masks, tables, interrupted batches, shards, flags."""

import csv
import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pydicom
import pytest

from pancseg.dicom.series import Scan
from pancseg.inference import find_scans, scan_batch
from pancseg.inference.calibration import Calibration
from pancseg.inference.predictor import load_segmenter
from pancseg.inference.scan_batch import LABEL_MAP, ReviewThresholds, ScanBatch
from pancseg.reports.pictures import TITLE_CHARACTERS
from tests.conftest import SHALLOW, run_command
from tests.other_software import by_simpleitk, rtstruct_by_matplotlib, seg_by_simpleitk, voxels_of
from tests.test_predictor import PANCREAS
from tests.tiny_dicom import put, write_series
from tests.tiny_labels import write_nrrd

OUT = Path("out")  # in the folder of each test


@pytest.fixture(scope="module")
def best(trained):
    return trained / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def phantoms(dicom):
    return sorted((dicom / "truth").glob("*_image.nii.gz"))


@pytest.fixture(scope="module")
def threshold(best, phantoms):
    """A threshold by which two epochs of a tiny network find about 1 % of a scan."""
    p = load_segmenter(best).predict(nib.load(phantoms[0]), 0.0).probability
    return f"postprocess.threshold={np.quantile(p, 0.99):.6f}"


@pytest.fixture
def predict(best, threshold, phantoms, command):
    """Run the command on three NIfTI files in ``scans``, one in each of three shards."""
    Path("scans").mkdir()
    for name, path in zip("aec", phantoms, strict=False):
        shutil.copy(path, f"scans/{name}.nii.gz")

    def run(*words):
        given = {"checkpoint": best, "input": "scans", "output": OUT}
        given |= dict(word.split("=", 1) for word in (threshold, *words))
        return command("predict", *(f"{key}={value}" for key, value in given.items()))

    return run


def rows_of(out=OUT, name="predictions.csv", key="case"):
    rows = csv.DictReader((out / name).read_text().splitlines())
    return {row[key]: row for row in rows}


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


def save(path, values, affine=np.eye(4)):  # noqa: B008
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.rint(values).astype(np.int16), affine), path)


def times_of(*paths):
    return [path.stat().st_mtime_ns for path in paths]


def test_every_series_has_a_row_a_mask_on_its_grid_a_seg_and_a_preview(predict, dicom):
    assert predict(f"input={dicom / 'images'}").code == 0
    assert len(rows_of()) == 6
    for case, row in rows_of().items():
        mask = nib.load(OUT / f"{case}_pancreas.nii.gz")
        truth = nib.load(dicom / "truth" / f"{Path(row['path']).name}_image.nii.gz")
        np.testing.assert_allclose(mask.affine, truth.affine, atol=1e-4)
        ml = np.asarray(mask.dataobj).sum() * abs(np.linalg.det(mask.affine)) / 1000
        assert float(row["volume_ml"]) == pytest.approx(ml, abs=1e-3) and ml > 0
        assert row["status"] == "done" and 0 < float(row["confidence"]) < 1
        assert (OUT / f"{case}_preview.png").is_file()
        seg = pydicom.dcmread(OUT / f"{case}_pancreas.dcm")
        assert seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue == "15776009"


def test_probabilities_of_several_checkpoints_are_averaged_and_written(predict, best, phantoms):
    """Of a scan with its axes in another order, in that order."""
    paths, scan = [best, best.with_name("last.ckpt")], nib.load(phantoms[0])
    scan = scan.as_reoriented(np.array([[1, -1], [2, 1], [0, 1]]))
    nib.save(scan, "scans/a.nii.gz")
    words = [f"checkpoint=[{paths[0]},{paths[1]}]", "input=scans/a.nii.gz", "probabilities=true"]
    assert predict(*words, "postprocess.threshold=0.5").code == 0
    p = voxels(OUT / "a_probability.nii.gz")
    a, b = (load_segmenter(path).predict(scan, 0.0).probability for path in paths)
    np.testing.assert_allclose(p, (a + b) / 2, atol=1e-6)
    mask = nib.load(OUT / "a_pancreas.nii.gz")
    np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(mask.dataobj) > 0, p > 0.5)


def test_the_same_command_keeps_what_is_done_and_segments_the_rest(predict):
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
    assert (ended.code, "1 scan was refused or failed" in ended.err) == (1, True)
    assert [rows_of()[case]["status"] for case in "ace"] == ["done", "refused", "done"]
    assert not list(OUT.glob("c_*"))
    ended = predict("postprocess.threshold=0.4")
    assert (ended.code, "holds masks of another checkpoint" in ended.err) == (2, True)


def test_confidence_is_calibrated_on_validation_patients(predict, trained, command):
    shutil.copytree(trained, "run", ignore=shutil.ignore_patterns("*.confidence.json", "scores"))
    best = "checkpoint=run/checkpoints/best.ckpt"
    assert predict(best).code == 0
    raw = float(rows_of()["a"]["confidence"])
    assert command("evaluate", best, "subset=val", "postprocess.threshold=auto").code == 0
    calibration = json.loads(Path("run/checkpoints/best.confidence.json").read_text())
    (row,) = rows_of(Path("run/scores"), "val.csv").values()
    scale = float(row["dice"]) / float(row["expected_dice"])  # one patient: a line through it
    assert (calibration["scale"], calibration["n"]) == (pytest.approx(scale, abs=2e-4), 1)
    assert calibration["lowest"] == pytest.approx(float(row["dice"]), abs=2e-4)
    Path("scans/a.nii.gz").touch()
    assert predict(best).code == 0
    expected = min(1, raw * calibration["scale"])
    assert float(rows_of()["a"]["confidence"]) == pytest.approx(expected, abs=2e-4)


def test_label_maps_are_dropped_formats_refused_and_unlike_scans_flagged_each_with_a_row(predict):
    scan, random = nib.load("scans/a.nii.gz"), np.random.default_rng(0)
    organs = random.integers(0, 104, scan.shape)
    noisy = np.asarray(scan.dataobj) + random.normal(0, 150, scan.shape)
    for name, values in (("b", noisy), ("c", organs == 5), ("e", organs)):
        save(f"scans/{name}.nii.gz", values, scan.affine)
    Path("scans/f.mha").write_text("text")
    assert predict().code == 1
    rows = rows_of()
    assert [rows[n]["reason"] for n in "abce"] == ["", "", LABEL_MAP, LABEL_MAP]
    assert [rows[n]["status"] for n in "abce"] == ["done", "done", "dropped", "dropped"]
    assert (rows[""]["status"], Path(rows[""]["path"]).name) == ("refused", "f.mha")
    assert ["noise_unlike" in rows[n]["flags"].split() for n in "ab"] == [False, True]


def test_only_the_name_is_shortened_over_a_preview():
    flags = [f"{kind}_unlike" for kind in ("hu", "noise", "field", "sides", "spacing")]
    flags += ["several_pieces", "touches_end", "not_confident", "volume_range:tumour"]
    title = scan_batch.preview_title("x" * 300, "27.4 ml, confidence 0.46", flags).split("\n")
    assert "…" in title[0]
    assert title[0].endswith("x: 27.4 ml, confidence 0.46   not for clinical use")
    assert " ".join(title[1:]).split(", ") == flags
    assert max(map(len, title)) <= TITLE_CHARACTERS


def test_a_mask_stands_without_its_seg_and_goes_where_its_scan_failed(predict, dicom, monkeypatch):
    def fail(*args):
        raise ValueError("no font for DOE^JOHN")

    series = f"input={dicom / 'images' / 'phantom-3-000'}"
    monkeypatch.setattr(scan_batch, "write_seg", fail)
    assert predict(series).code == 0
    ((case, row),) = rows_of().items()
    assert (row["status"], "no_seg" in row["flags"].split()) == ("done", True)
    assert row["reason"] == "seg_failed: ValueError"  # the text might quote a header
    assert (OUT / f"{case}_pancreas.nii.gz").is_file()
    monkeypatch.setattr(scan_batch, "by_structure", fail)  # after all files were written
    assert predict(series, "output=failed").code == 1
    assert rows_of(Path("failed"))[case]["status"] == "failed"
    assert not list(Path("failed").glob(f"{case}*"))


def test_a_full_disk_ends_a_batch_in_one_line_and_what_is_done_stays(predict, monkeypatch):
    written, plain = [], scan_batch.write_nifti

    def full(path, *args):
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        return plain(path, *args)

    monkeypatch.setattr(scan_batch, "write_nifti", full)
    ended = predict()
    assert (ended.code, "Traceback" in ended.err) == (1, False)
    assert "cannot be written (No space left on device); make room" in ended.err
    assert len(rows_of()) == 1 and written[0].is_file()


def test_a_path_that_a_spreadsheet_would_compute_gets_an_apostrophe():
    scan_batch.write_table(OUT / "predictions.csv", [scan_batch.PredictionRow("a", "=cmd|x.nii")])
    assert rows_of()["a"]["path"] == "'=cmd|x.nii"


def test_shards_and_a_merge_give_the_table_of_one_call(predict):
    """Shard 1 of 3 is left to the merge."""
    Path("scans/damaged.nii.gz").write_bytes(b"no image")
    assert predict("output=plain").code == 1
    for shard in (0, 2):
        predict(f"shard={shard}/3")
    done = list(OUT.glob("*_pancreas.nii.gz"))
    before = times_of(*done)
    assert len(done) == 2 and predict().code == 1
    assert times_of(*done) == before
    assert not list(OUT.glob("predictions.*.csv"))
    tables = [rows_of(), rows_of(Path("plain"))]
    for row in (*tables[0].values(), *tables[1].values()):
        row["seconds"] = row["peak_memory_mb"] = ""
    assert tables[0] == tables[1]


@pytest.mark.parametrize(("n", "given", "limit"), [(0, None, 0.7), (3, None, 0.88), (3, 0.2, 0.2)])
def test_flags_follow_the_structure_and_the_confidence_of_validation(n, given, limit):
    models = [SimpleNamespace(preprocessing=SimpleNamespace(spacing_mm=(1, 1, 1)))]
    liver = replace(PANCREAS, name="liver", volume_ml=(800, 3000))
    predictor = SimpleNamespace(
        calibration=[Calibration(1.0, n, 0.9)], models=models, structures=(liver,)
    )
    batch = ScanBatch(predictor, Path(), ReviewThresholds(confidence=given))
    mask = np.zeros((60, 60, 60), bool)
    scan = Scan(nib.Nifti1Image(np.zeros(mask.shape, np.int16), np.eye(4)))

    def flags(confidence):
        prediction = SimpleNamespace(mask=mask, confidence=confidence, structure=liver)
        return set(batch.flags(scan, [prediction], {}))

    assert "no_liver" in flags(0.9)
    mask[3:33, 3:33, 3:33] = True  # 27 ml
    assert {"volume_range", "not_confident"} <= flags(limit - 0.01)
    assert not {"not_confident", "touches_end", "several_pieces"} & flags(limit + 0.01)
    mask[35:57, 35:57, 45:] = True
    assert {"touches_end", "several_pieces"} <= flags(0.9)


def find(path):
    return find_scans.find_scans(path, "CT", processes=1)


def write_files(root, *paths):
    for path in paths:
        save(root / path, np.zeros((2, 2, 2)))


def test_series_and_files_of_a_folder_are_found_and_labels_left_out(tmp_path):
    write_series(tmp_path / "series", names=[f"{n}.img" for n in range(5)])  # slices named as files
    write_series(tmp_path / "mr", modality="MR")
    write_files(tmp_path, "a.nii.gz", "b/c.nii", "a_seg.nii.gz", "labelsTr/a.nii.gz")
    write_nrrd(tmp_path / "d.nrrd", np.zeros((2, 2, 2), np.int16))
    contents = find(tmp_path)
    names = sorted(case.path.name for case in contents.cases)
    assert names == ["a.nii.gz", "c.nii", "d.nrrd", "series"]
    assert contents.warnings == ["2 label files are left out, such as a_seg.nii.gz"]
    assert [row.path.name for row in contents.skipped] == ["mr"]
    assert [case.path.name for case in find(tmp_path / "*" / "c.nii").cases] == ["c.nii"]


def test_case_names_differ_without_capitals_and_name_no_folder_or_patient(tmp_path):
    write_files(tmp_path, "a.nii", "A.nii.gz", "a-2.nii", "a.nii.gz", "=cmd|x.nii", "DOE/b.nii")
    write_series(tmp_path / "DOE", patient_id="DOE")
    names = find_scans.case_names(find(tmp_path).cases, tmp_path)
    assert len({name.casefold() for name in names}) == 7 and "a-2" in names
    others = sorted(name for name in names if name[0] not in "aA")
    assert [name.rstrip("0123456789abcdef") for name in others] == ["b-", "cmd-x-", "series-"]


# three formats in three geometries, as other software reads them

SIDE_MM, DENSE_HU = 8.0, 100  # bone: a network of two epochs finds that rather than a pancreas
GEOMETRIES = {  # rows and columns, pixel spacing
    "oblique": ((0.936293, 0.275096, -0.218351, -0.289629, 0.956425, -0.036957), (8.0, 8.0)),
    "feet_first": ((-1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (8.0, 8.0)),  # on the back
    "non_square": ((1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (7.0, 9.0)),
}


def stored(phantom, name):
    """HU of a phantom, ``(slices, rows, columns)``, as a scanner stores them; no two are equal."""
    values = voxels(phantom).T + list(GEOMETRIES).index(name)
    return values[::-1, :, ::-1] if name == "feet_first" else values


def test_masks_of_three_geometries_are_equal_in_all_formats_and_scored_where_they_lie(
    best, threshold, phantoms
):
    for name, (orientation, spacing) in GEOMETRIES.items():
        known = {"FrameOfReferenceUID": f"1.2.{len(name)}", "StudyInstanceUID": f"1.3.{len(name)}"}
        known |= {"SpecificCharacterSet": ""} if name == "oblique" else {"SliceThickness": SIDE_MM}
        options = {"gap_mm": SIDE_MM, "orientation": orientation, "pixel_spacing": spacing}
        options |= {"patient_id": name, "damage": put(**known)}
        hu = stored(phantoms[0], name)
        write_series(Path("images", name), pixels=hu, **options)
        write_series(Path("labels", name), pixels=hu > DENSE_HU, **options)
    words = [f"checkpoint={best}", "input=images", f"output={OUT}", threshold, "rtstruct=true"]
    assert run_command("predict", *words) == 0
    source = ["source.images=images", "source.labels=labels", "privacy=none"]
    assert run_command("prepare", *source, "data.root=prepared", *SHALLOW) == 0
    run = Path(shutil.copytree(best.parents[1], "run"))
    checkpoint = f"checkpoint={run / 'checkpoints' / 'best.ckpt'}"
    assert run_command("evaluate", checkpoint, "data.root=prepared", threshold) == 0
    scores = rows_of(run / "scores", "external_prepared.csv", "patient")
    rows = {Path(row["path"]).name: row for row in rows_of().values()}
    for name in GEOMETRIES:
        assert rows[name]["reason"] == ""
        start, grid = f"{rows[name]['case']}_pancreas", by_simpleitk(Path("images", name))
        reference = np.asarray(grid.dataobj) > DENSE_HU
        mask = voxels_of(nib.load(OUT / f"{start}.nii.gz"), grid)
        assert 100 < mask.sum() < 20_000
        np.testing.assert_array_equal(seg_by_simpleitk(OUT / f"{start}.dcm", grid), mask)
        rtstruct = OUT / f"{start}_rtstruct.dcm"
        filled = rtstruct_by_matplotlib(rtstruct, Path("images", name), grid)
        np.testing.assert_array_equal(filled, mask)
        dice = 2 * (filled & reference).sum() / (filled.sum() + reference.sum())
        assert 0.01 < dice < 0.9
        assert float(scores[name]["dice"]) == pytest.approx(dice, abs=1e-6)
