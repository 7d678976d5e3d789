"""The command ``predict``: masks on the input's own grid, in the clinic's formats, or a reason."""

import csv
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from pancseg.inference.predictor import load_segmenter
from pancseg.inference.scan_batch import LABEL_MAP
from tests.conftest import Command, run_command

COLUMNS = (
    "case,path,series_uid,status,reason,volume_ml,mean_hu,confidence,flags,seconds,peak_memory_mb"
)


@pytest.fixture(scope="module")
def best(trained: Path) -> Path:
    return trained / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def threshold(best: Path, dicom: Path) -> str:
    """A threshold by which two epochs of a tiny network find about 1 % of a scan."""
    image = nib.load(next((dicom / "truth").glob("*_image.nii.gz")))
    p = load_segmenter(best).predict(image, 0.0).probability
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


def rows_of(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))


def visible(out: Path) -> set[str]:
    return {path.name for path in out.iterdir()}


def test_the_table_has_a_row_a_series_and_the_columns_of_the_contract(predicted: Path) -> None:
    assert (predicted / "predictions.csv").read_text().startswith(COLUMNS)
    rows = rows_of(predicted)
    assert [row["status"] for row in rows] == ["done"] * 6
    for row in rows:
        for end in ("_pancreas.nii.gz", "_pancreas.dcm", "_preview.png"):
            assert (predicted / f"{row['case']}{end}").is_file()
        assert 0 < float(row["confidence"]) < 1
        assert float(row["volume_ml"]) > 0


def test_a_mask_lies_on_the_grid_of_its_series_and_is_the_one_that_evaluate_scores(
    predicted: Path, dicom: Path, trained: Path, prepared: Path, threshold: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    words = [f"checkpoint={run / 'checkpoints' / 'best.ckpt'}", threshold]
    assert run_command("evaluate", *words) == 0
    for path in (run / "scores" / "test").glob("*_prediction.nii.gz"):
        name = path.name.removesuffix("_prediction.nii.gz")
        scored = nib.load(path)
        row = next(row for row in rows_of(predicted) if Path(row["path"]).name == name)
        mask = nib.load(predicted / f"{row['case']}_pancreas.nii.gz")
        truth = nib.load(dicom / "truth" / f"{name}_image.nii.gz")
        assert mask.shape == truth.shape
        np.testing.assert_allclose(mask.affine, truth.affine, atol=1e-4)
        np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(scored.dataobj))
        assert mask.get_data_dtype() == np.uint8


def test_a_seg_holds_the_mask_frame_by_frame_where_its_images_lie(
    predicted: Path, dicom: Path
) -> None:
    row = rows_of(predicted)[0]
    mask = nib.load(predicted / f"{row['case']}_pancreas.nii.gz")
    values, to_voxel = np.asarray(mask.dataobj), np.linalg.inv(mask.affine)
    seg = pydicom.dcmread(predicted / f"{row['case']}_pancreas.dcm")
    one = seg.SegmentSequence[0]
    assert (seg.Modality, seg.SegmentationType, len(seg.SegmentSequence)) == ("SEG", "BINARY", 1)
    assert one.SegmentedPropertyTypeCodeSequence[0].CodeValue == "15776009"
    assert one.SegmentAlgorithmName == "pancseg"
    sources = {
        header.SOPInstanceUID: header
        for header in map(pydicom.dcmread, Path(row["path"]).glob("*.dcm"))
    }
    source = next(iter(sources.values()))
    for name in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert seg[name].value == source[name].value
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID == row["series_uid"]
    seen = np.zeros_like(values)
    for frame, group in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        referred = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        position = group.PlanePositionSequence[0].ImagePositionPatient
        assert list(position) == list(sources[referred].ImagePositionPatient)
        x, y, z = position
        i, j, k = np.rint(nib.affines.apply_affine(to_voxel, [-x, -y, z])).astype(int)
        assert (i, j) == (0, 0)
        seen[:, :, k] = frame.T
    np.testing.assert_array_equal(seen, values)


def test_no_identifier_gets_into_names_tables_or_masks(predicted: Path, dicom: Path) -> None:
    header = pydicom.dcmread(next((dicom / "images").rglob("*.dcm")))
    assert header.PatientID
    for path in predicted.iterdir():
        assert str(header.PatientID) not in path.name
        if path.suffix == ".gz":
            stored = nib.load(path).header
            assert not stored["descrip"].tobytes().strip(b"\0")
            assert not stored["db_name"].tobytes().strip(b"\0")
    table = [
        {key: value for key, value in row.items() if key != "path"} for row in rows_of(predicted)
    ]
    assert str(header.PatientID) not in json.dumps(table)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "ASL"])
def test_a_nifti_file_keeps_its_axes(
    axes: str, best: Path, threshold: str, dicom: Path, tmp_path: Path, command: Command
) -> None:
    plain = nib.load(next((dicom / "truth").glob("*_image.nii.gz")))
    turn = ornt_transform(io_orientation(plain.affine), axcodes2ornt(axes))
    turned = plain.as_reoriented(turn)
    (tmp_path / "in").mkdir()
    nib.save(turned, tmp_path / "in" / "scan.nii.gz")
    words = [f"checkpoint={best}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
    assert command("predict", *words, threshold).code == 0
    mask = nib.load(tmp_path / "out" / "scan_pancreas.nii.gz")
    assert "".join(nib.aff2axcodes(mask.affine)) == axes
    assert mask.shape == turned.shape
    np.testing.assert_allclose(mask.affine, turned.affine, atol=1e-4)
    segmenter = load_segmenter(best)
    wanted = segmenter.predict(plain).probability > float(threshold.partition("=")[2])
    own, plain_axes = io_orientation(mask.affine), io_orientation(plain.affine)
    back = mask.as_reoriented(ornt_transform(own, plain_axes))
    np.testing.assert_array_equal(np.asarray(back.dataobj) > 0, wanted)
    assert not list((tmp_path / "out").glob("*.dcm"))


def test_probabilities_are_written_where_asked_for(
    best: Path, dicom: Path, tmp_path: Path, command: Command
) -> None:
    image = next((dicom / "truth").glob("*_image.nii.gz"))
    words = [f"checkpoint={best}", f"input={image}", f"output={tmp_path}", "probabilities=true"]
    assert command("predict", *words).code == 0
    p = np.asarray(nib.load(next(tmp_path.glob("*_probability.nii.gz"))).dataobj)
    found = load_segmenter(best).predict(nib.load(image), 0.0)
    np.testing.assert_allclose(p, found.probability, atol=1e-6)
    mask = np.asarray(nib.load(next(tmp_path.glob("*_pancreas.nii.gz"))).dataobj)
    np.testing.assert_array_equal(mask > 0, p > 0.5)


def test_a_batch_goes_on_where_it_was_and_segments_changed_input_anew(
    best: Path, threshold: str, dicom: Path, tmp_path: Path, command: Command
) -> None:
    scans, out = tmp_path / "in", tmp_path / "out"
    scans.mkdir()
    for path in sorted((dicom / "truth").glob("*_image.nii.gz"))[:3]:
        shutil.copy(path, scans / path.name)
    words = [f"checkpoint={best}", f"input={scans}", f"output={out}", threshold]
    assert command("predict", *words).code == 0
    masks = sorted(out.glob("*_pancreas.nii.gz"))
    times = [path.stat().st_mtime_ns for path in masks]
    masks[0].unlink()
    changed = sorted(scans.iterdir())[1]
    changed.touch()
    assert command("predict", *words).code == 0
    again = [path.stat().st_mtime_ns for path in masks]
    assert again[0] > times[0]
    assert again[1] > times[1]
    assert again[2] == times[2]
    assert len(rows_of(out)) == 3


def test_masks_of_another_way_are_never_mixed_in(
    best: Path, dicom: Path, tmp_path: Path, command: Command
) -> None:
    image = next((dicom / "truth").glob("*_image.nii.gz"))
    words = [f"checkpoint={best}", f"input={image}", f"output={tmp_path}"]
    assert command("predict", *words).code == 0
    ended = command("predict", *words, "postprocess.threshold=0.4")
    assert ended.code == 2
    assert "holds masks of another checkpoint or of other options" in ended.err


def test_a_bad_scan_is_a_row_and_the_rest_is_done(
    best: Path, dicom: Path, tmp_path: Path, command: Command
) -> None:
    scans = tmp_path / "in"
    scans.mkdir()
    good = next((dicom / "truth").glob("*_image.nii.gz"))
    shutil.copy(good, scans / "good.nii.gz")
    (scans / "bad.nii.gz").write_bytes(b"no image at all")
    ended = command("predict", f"checkpoint={best}", f"input={scans}", f"output={tmp_path / 'out'}")
    assert ended.code == 1
    assert "1 scans were refused or failed" in ended.err
    rows = {row["case"]: row for row in rows_of(tmp_path / "out")}
    assert rows["good"]["status"] == "done"
    assert rows["bad"]["status"] == "refused"
    assert rows["bad"]["reason"]


def test_what_was_chosen_on_validation_is_taken_up(
    trained: Path, dicom: Path, tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    best = run / "checkpoints" / "best.ckpt"
    assert command("evaluate", f"checkpoint={best}", "postprocess.threshold=auto").code == 0
    kept = json.loads((run / "checkpoints" / "best.postprocess.json").read_text())
    image = next((dicom / "truth").glob("*_image.nii.gz"))
    out = tmp_path / "out"
    assert command("predict", f"checkpoint={best}", f"input={image}", f"output={out}").code == 0
    used = json.loads((out / "predictions.json").read_text())["postprocess"]
    assert used == {key: kept[key] for key in ("threshold", "largest_component")}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["input=nowhere"], "input=nowhere: there is no such file or folder"),
        (["input=."], "holds neither a CT series nor a NIfTI or NRRD image"),
        (["input=.", "postprocess.threshold=auto"], "auto is chosen by pancseg.evaluate"),
        ([], "input is not given"),
    ],
)
def test_an_input_that_cannot_be_used_ends_with_a_line_on_what_is_wrong(
    best: Path, tmp_path: Path, command: Command, words: list[str], said: str
) -> None:
    ended = command("predict", f"checkpoint={best}", *words, f"output={tmp_path.parent / 'out'}")
    assert ended.code == 2
    assert said in ended.err


def test_what_a_changed_input_left_behind_is_removed_where_it_fails(
    best: Path, dicom: Path, tmp_path: Path, command: Command
) -> None:
    scans, out = tmp_path / "in", tmp_path / "out"
    scans.mkdir()
    shutil.copy(next((dicom / "truth").glob("*_image.nii.gz")), scans / "scan.nii.gz")
    words = [f"checkpoint={best}", f"input={scans}", f"output={out}"]
    assert command("predict", *words).code == 0
    assert (out / "scan_pancreas.nii.gz").is_file()
    (scans / "scan.nii.gz").write_bytes(b"damaged since")
    assert command("predict", *words).code == 1
    assert visible(out) == {"predictions.csv", "predictions.json"}


def test_files_in_folders_and_of_other_forms_are_scans_of_their_own_and_labels_are_none(
    best: Path, dicom: Path, tmp_path: Path, command: Command
) -> None:
    plain = nib.load(next((dicom / "truth").glob("*_image.nii.gz")))
    scans = tmp_path / "in"
    for folder in ("Miller", "Smith"):
        (scans / folder).mkdir(parents=True)
        nib.save(plain, scans / folder / "ct.nii.gz")
    nib.save(nib.Nifti2Image(np.asarray(plain.dataobj), plain.affine), scans / "second.nii")
    nib.save(plain, scans / "second_label.nii.gz")
    ended = command("predict", f"checkpoint={best}", f"input={scans}", "output=out")
    assert ended.code == 0, ended.err
    assert "1 label files are left out, such as second_label.nii.gz" in ended.err
    cases = [row["case"] for row in rows_of(Path("out"))]
    assert len(set(cases)) == 3
    assert "second" in cases
    assert sum(case.startswith("ct-") for case in cases) == 2
    for path in Path("out").iterdir():
        assert "Miller" not in path.name
        assert "Smith" not in path.name
    mask = nib.load("out/second_pancreas.nii.gz")
    np.testing.assert_allclose(mask.affine, plain.affine, atol=1e-4)


def test_masks_are_never_written_among_the_scans(
    best: Path, dicom: Path, tmp_path: Path, command: Command
) -> None:
    scans = dicom / "truth"
    ended = command("predict", f"checkpoint={best}", f"input={scans}", f"output={scans / 'out'}")
    assert ended.code == 2
    assert "lies in the input" in ended.err
    assert not (scans / "out").exists()


def test_masks_and_label_maps_are_dropped_with_a_row(
    best: Path, dicom: Path, tmp_path: Path, command: Command
) -> None:
    plain = nib.load(next((dicom / "truth").glob("*_image.nii.gz")))
    scans, out = tmp_path / "in", tmp_path / "out"
    scans.mkdir()
    nib.save(plain, scans / "ct.nii.gz")
    organs = np.random.default_rng(0).integers(0, 104, plain.shape)
    for name, values in (("liver", organs == 5), ("total", organs)):
        nib.save(nib.Nifti1Image(values.astype(np.int16), plain.affine), scans / f"{name}.nii.gz")
    words = [f"checkpoint={best}", f"input={scans}", f"output={out}"]
    assert command("predict", *words).code == 0
    rows = {row["case"]: row for row in rows_of(out)}
    assert rows["ct"]["status"] == "done"
    for name in ("liver", "total"):
        assert (rows[name]["status"], rows[name]["reason"]) == ("dropped", LABEL_MAP)
    assert len(list(out.glob("*_pancreas.nii.gz"))) == 1


def test_options_and_checkpoint_are_checked_before_the_input_is_read(
    best: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise AssertionError("the input was read")

    monkeypatch.setattr("pancseg.inference.find_scans.find_scans", fail)
    out = f"output={tmp_path / 'out'}"
    for words, text in (
        ([f"checkpoint={best}", "roi=liver"], "roi=liver: expected auto"),
        (["checkpoint=nowhere.ckpt"], "checkpoint=nowhere.ckpt: there is no such file"),
        ([f"checkpoint={best}", "shard=3/3"], "shard=3/3: expected i/n"),
    ):
        ended = command("predict", *words, f"input={best.parent}", out)
        assert ended.code == 2
        assert text in ended.err


def test_a_mask_stands_where_its_preview_cannot_be_drawn(
    best: Path, dicom: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise ValueError("no font")

    monkeypatch.setattr("pancseg.inference.scan_batch.draw_scan", fail)
    image = next((dicom / "truth").glob("*_image.nii.gz"))
    ended = command("predict", f"checkpoint={best}", f"input={image}", f"output={tmp_path}")
    assert ended.code == 0
    assert "no preview (no font)" in ended.out
    assert [row["status"] for row in rows_of(tmp_path)] == ["done"]


def test_a_header_that_no_seg_can_be_made_of_costs_the_seg_alone(
    best: Path, dicom: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unhappy(*words: object) -> None:
        raise ValueError("source images differ in something")

    monkeypatch.setattr("pancseg.inference.scan_batch.write_seg", unhappy)
    series = next(path for path in sorted((dicom / "images").iterdir()) if path.is_dir())
    ended = command("predict", f"checkpoint={best}", f"input={series}", "output=out")
    assert ended.code == 0
    row = rows_of(Path("out"))[0]
    assert "no_seg" in row["flags"].split()
    assert row["reason"] == "seg_failed: ValueError"  # the text might quote a header
    assert (Path("out") / f"{row['case']}_preview.png").is_file()


def test_a_series_of_another_modality_is_refused_and_the_option_that_reads_it_named(
    best: Path, dicom: Path, tmp_path: Path, command: Command
) -> None:
    series = next(path for path in sorted((dicom / "images").iterdir()) if path.is_dir())
    shutil.copytree(series, tmp_path / "in")
    for path in (tmp_path / "in").iterdir():
        header = pydicom.dcmread(path)
        header.Modality = "MR"
        header.save_as(path)
    ended = command("predict", f"checkpoint={best}", f"input={tmp_path / 'in'}", "output=out")
    assert ended.code == 1
    row = rows_of(Path("out"))[0]
    assert (row["status"], row["case"]) == ("refused", "")
    assert row["reason"].endswith("; modality=any takes it")


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")
def test_a_real_series_whose_uids_were_emptied_is_segmented_without_a_seg(
    best: Path, shared_data: Path, tmp_path: Path, command: Command
) -> None:
    scans = shared_data / "abdomen" / "ct_dicom"
    ended = command("predict", f"checkpoint={best}", f"input={scans}", f"output={tmp_path}")
    assert ended.code == 0, ended.err
    row = rows_of(tmp_path)[0]
    mask = nib.load(tmp_path / f"{row['case']}_pancreas.nii.gz")
    assert mask.shape == (512, 512, 20)
    assert "no_seg" in row["flags"].split()
    assert row["reason"].startswith("seg_no_uid: the series has no SOPInstanceUID")
    assert not list(tmp_path.glob("*.dcm"))
