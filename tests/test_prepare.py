"""The command ``prepare`` on phantoms: what it writes, and what it refuses."""

import csv
import errno
import gzip
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom import Dataset

from pancseg import files as file_writing
from pancseg.data.manifest import read_manifest
from pancseg.intake import convert as conversion
from pancseg.intake.checks import FLAGS
from pancseg.intake.convert import Job, Result
from pancseg.parallel import Shard
from tests.conftest import SHALLOW, Command, contents, prepare, run_command
from tests.tiny_dicom import write_series
from tests.tiny_labels import Frame, at, write_contours, write_segmentation

COLUMNS = (
    "patient,case,path,kind,status,reason,flags,slices,groups_kept,groups_empty,groups_tail,"
    "spacing_x_mm,spacing_y_mm,spacing_z_mm,label_voxels,label_ml,structures_ml"
)


def rows_of(root: Path, kind: str = "image") -> list[dict[str, str]]:
    with (root / "intake.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["kind"] == kind]


def files_of(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


@pytest.fixture
def some_dicom(dicom: Path, tmp_path: Path) -> Path:
    """Three of the phantoms, to be damaged."""
    for kind in ("images", "labels"):
        for name in ("phantom-3-000", "phantom-3-001", "phantom-3-002"):
            shutil.copytree(dicom / kind / name, tmp_path / "some" / kind / name)
    return tmp_path / "some"


@pytest.mark.parametrize("role", ["image", "label"])
def test_every_case_equals_the_phantoms_truth_voxel_by_voxel(
    dicom: Path, prepared: Path, role: str
) -> None:
    truths = sorted((dicom / "truth").glob(f"*_{role}.nii.gz"))
    assert len(truths) == 6
    for path in truths:
        truth = nib.as_closest_canonical(nib.load(path))
        case = nib.as_closest_canonical(nib.load(prepared / "cases" / path.name))
        np.testing.assert_array_equal(case.dataobj, truth.dataobj)
        np.testing.assert_allclose(case.affine, truth.affine, atol=1e-4)


def test_every_group_lies_where_its_slices_lay(prepared: Path) -> None:
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert manifest["groups"]
    for group in manifest["groups"]:
        case = nib.load(prepared / "cases" / f"{group['case']}_image.nii.gz")
        cut = nib.load(prepared / group["image"])
        first = group["first_slice"]
        assert cut.shape[2] == 32
        np.testing.assert_array_equal(cut.dataobj, case.dataobj[..., first : first + 32])
        corner = nib.affines.apply_affine(case.affine, [0, 0, first])
        np.testing.assert_allclose(cut.affine[:3, 3], corner, atol=1e-4)


def test_slice_0_is_nearest_the_feet_in_every_file(prepared: Path) -> None:
    for path in prepared.rglob("*.nii.gz"):
        assert nib.aff2axcodes(nib.load(path).affine)[2] == "S"


def test_every_file_says_millimetres_and_scanner_coordinates(prepared: Path) -> None:
    for path in prepared.rglob("*.nii.gz"):
        header = nib.load(path).header
        assert header.get_xyzt_units() == ("mm", "unknown")
        assert (header["qform_code"], header["sform_code"]) == (1, 1)
        assert header.get_slope_inter() in ((1, 0), (None, None))


def test_the_table_has_the_columns_of_the_contract_and_adds_up(prepared: Path) -> None:
    assert (prepared / "intake.csv").read_text().splitlines()[0] == COLUMNS
    for row in rows_of(prepared):
        assert row["status"] == "kept"
        assert row["slices"] == "40"
        groups = sum(int(row[f"groups_{what}"]) for what in ("kept", "empty", "tail"))
        assert groups == 2  # 40 slices: one whole group of 32 and one shifted


def test_the_labels_volume_stands_on_the_images_row_once(prepared: Path) -> None:
    for row in rows_of(prepared):
        label = nib.load(prepared / "cases" / f"{row['case']}_label.nii.gz")
        voxels = int(np.count_nonzero(label.dataobj))
        assert int(row["label_voxels"]) == voxels
        assert float(row["label_ml"]) == pytest.approx(voxels * 0.512, abs=0.001)
    assert {row["label_voxels"] for row in rows_of(prepared, "label")} == {""}


@pytest.mark.parametrize(("tail", "left_out"), [("drop", 1), ("shift", 0), ("pad", 0)])
def test_the_tail_is_cut_as_asked(
    some_dicom: Path, tmp_path: Path, tail: str, left_out: int
) -> None:
    prepare(some_dicom, tmp_path / "r", f"data.tail={tail}", "data.keep_empty=true")
    starts = {"drop": {0}, "shift": {0, 8}, "pad": {0, 32}}[tail]
    manifest = json.loads((tmp_path / "r" / "manifest.json").read_text())
    assert {group["first_slice"] for group in manifest["groups"]} == starts
    assert {row["groups_tail"] for row in rows_of(tmp_path / "r")} == {str(left_out)}


def test_empty_groups_are_removed_and_counted_unless_kept(some_dicom: Path, tmp_path: Path) -> None:
    small = ["data.depth=8"]
    prepare(some_dicom, tmp_path / "without", *small)
    prepare(some_dicom, tmp_path / "with", *small, "data.keep_empty=true")
    for root, all_kept in ((tmp_path / "without", False), (tmp_path / "with", True)):
        kept = sum(int(row["groups_kept"]) for row in rows_of(root))
        empty = sum(int(row["groups_empty"]) for row in rows_of(root))
        assert empty > 0
        assert kept + (0 if all_kept else empty) == 3 * 5
        labels = [nib.load(path).dataobj for path in (root / "groups").glob("*_label.nii.gz")]
        assert any(not np.any(label) for label in labels) == all_kept


def test_another_spelling_of_the_same_source_is_the_same_source(
    some_dicom: Path, tmp_path: Path
) -> None:
    prepare(some_dicom, tmp_path / "r")
    (tmp_path / "link").symlink_to(some_dicom)
    before = contents(tmp_path / "r")
    assert prepare(tmp_path / "link", tmp_path / "r") == 0
    assert contents(tmp_path / "r") == before


def test_running_again_changes_nothing(some_dicom: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    assert prepare(some_dicom, root) == 0
    before = contents(root)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.nii.gz")}
    assert prepare(some_dicom, root) == 0
    assert contents(root) == before
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.nii.gz")} == times


def test_new_patients_are_added_and_old_ones_left_alone(some_dicom: Path, tmp_path: Path) -> None:
    root, away = tmp_path / "r", tmp_path / "away"
    for kind in ("images", "labels"):
        shutil.move(some_dicom / kind / "phantom-3-001", away / kind)
    prepare(some_dicom, root)
    before = contents(root / "cases")
    for kind in ("images", "labels"):
        shutil.move(away / kind, some_dicom / kind / "phantom-3-001")
    assert prepare(some_dicom, root) == 0
    after = contents(root / "cases")
    assert len(before) == 4
    assert len(after) == 6
    assert before.items() <= after.items()
    assert [row["case"] for row in rows_of(root)] == [f"phantom-3-00{n}" for n in range(3)]


def test_a_lost_table_doubles_no_patient(some_dicom: Path, tmp_path: Path) -> None:
    prepare(some_dicom, tmp_path / "r")
    before = contents(tmp_path / "r")
    (tmp_path / "r" / "intake.csv").unlink()
    prepare(some_dicom, tmp_path / "r")
    assert contents(tmp_path / "r") == before


def test_a_mask_edited_in_place_is_noticed_though_its_size_is_the_same(
    some_dicom: Path, tmp_path: Path
) -> None:
    prepare(some_dicom, tmp_path / "r")
    voxels = rows_of(tmp_path / "r")[1]["label_voxels"]
    for path in (some_dicom / "labels" / "phantom-3-001").iterdir():
        one = pydicom.dcmread(path)
        if one.pixel_array.any():
            one.PixelData = bytes(len(one.PixelData))
            one.save_as(path)
            break
    prepare(some_dicom, tmp_path / "r")
    assert int(rows_of(tmp_path / "r")[1]["label_voxels"]) < int(voxels)


def test_a_case_that_became_shorter_or_refused_leaves_no_file_behind(
    some_dicom: Path, tmp_path: Path
) -> None:
    root = tmp_path / "r"
    prepare(some_dicom, root, "data.depth=8")
    for kind in ("images", "labels"):
        slices = sorted((some_dicom / kind / "phantom-3-000").iterdir(), key=z_of)
        for path in slices[-3:]:
            path.unlink()
    sorted((some_dicom / "images" / "phantom-3-001").iterdir(), key=z_of)[20].unlink()
    assert prepare(some_dicom, root, "data.depth=8") == 1
    manifest = json.loads((root / "manifest.json").read_text())
    entries = manifest["cases"] + manifest["groups"]
    named = {entry[role] for entry in entries for role in ("image", "label")}
    assert {str(path.relative_to(root)) for path in root.rglob("*.nii.gz")} == named
    assert {case["name"] for case in manifest["cases"]} == {"phantom-3-000", "phantom-3-002"}


def test_an_interrupted_preparation_is_not_trained_on_and_goes_on(
    some_dicom: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "r"
    convert, done = conversion.convert, []

    def interrupted(job: Job) -> Result:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return convert(job)

    source = [f"source.images={some_dicom / 'images'}", f"source.labels={some_dicom / 'labels'}"]
    words = [*source, f"data.root={root}", "privacy=none", *SHALLOW]
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "convert", interrupted)
        assert command("prepare", *words).code == 130
    (root / "groups" / ".partial-0-x_image.nii.gz").write_bytes(b"half")
    ended = command("train", f"data.root={root}", *SHALLOW)
    assert ended.code == 2
    assert "is not complete; run the same pancseg.prepare again" in ended.err
    assert command("prepare", *words).code == 0
    prepare(some_dicom, tmp_path / "alone")
    assert contents(root) == contents(tmp_path / "alone")


def test_a_case_whose_label_is_gone_is_taken_out_and_told(some_dicom: Path, tmp_path: Path) -> None:
    root = tmp_path / "r"
    prepare(some_dicom, root)
    shutil.rmtree(some_dicom / "labels" / "phantom-3-001")
    for _ in range(2):
        assert prepare(some_dicom, root) == 1
        statuses = {row["path"][-3:]: row["status"] for row in rows_of(root)}
        assert statuses == {"000": "kept", "001": "refused", "002": "kept"}
        assert not list(root.rglob("phantom-3-001*"))


def test_a_case_whose_source_was_moved_away_stays_with_its_row_even_if_the_table_is_lost(
    some_dicom: Path, tmp_path: Path
) -> None:
    root = tmp_path / "r"
    prepare(some_dicom, root)
    for kind in ("images", "labels"):
        shutil.rmtree(some_dicom / kind / "phantom-3-001")
    (root / "intake.csv").unlink()
    for _ in range(2):
        assert prepare(some_dicom, root) == 0
        assert sorted(row["case"] for row in rows_of(root)) == [
            f"phantom-3-00{n}" for n in range(3)
        ]


def test_checks_that_changed_are_applied_to_cases_that_were_there(
    some_dicom: Path, tmp_path: Path
) -> None:
    root = tmp_path / "r"
    assert prepare(some_dicom, root) == 0
    before = contents(root)
    assert prepare(some_dicom, root, "checks.volume_ml=[0.1,0.2]") == 0
    assert all("label_volume" in row["flags"] for row in rows_of(root))
    assert (root / "intake.png").read_bytes() != before["intake.png"]
    assert prepare(some_dicom, root, "checks.refuse=[phantom]") == 1
    assert {row["reason"].split(":")[0] for row in rows_of(root)} == {"phantom"}
    assert not list((root / "cases").iterdir())
    assert prepare(some_dicom, root) == 0
    assert contents(root) == before


def test_the_same_pixels_under_a_new_patient_move_nobody_who_was_there(
    some_dicom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "r"
    prepare(some_dicom, root)
    for kind in ("images", "labels"):
        copied = some_dicom / kind / "a-copy"
        shutil.copytree(some_dicom / kind / "phantom-3-002", copied)
        for path in copied.iterdir():
            one = pydicom.dcmread(path)
            one.PatientID, one.StudyInstanceUID = "somebody", "1.2.3"
            one.SOPInstanceUID, one.SeriesInstanceUID = f"1.2.4.{len(one.SOPInstanceUID)}", "1.2.4"
            one.FrameOfReferenceUID = "1.2.5"
            one.save_as(path)
    assert prepare(some_dicom, root) == 0
    cases = {
        case["name"]: case for case in json.loads((root / "manifest.json").read_text())["cases"]
    }
    assert cases["somebody"]["duplicate_of"] == "phantom-3-002"
    assert cases["phantom-3-002"]["duplicate_of"] is None
    flagged = [row["case"] for row in rows_of(root) if "duplicate_pixels" in row["flags"]]
    assert sorted(flagged) == ["phantom-3-002", "somebody"]
    assert "somebody" not in read_manifest(root).labelled_patients()
    assert prepare(some_dicom, root, "checks.refuse=[duplicate_pixels]") == 1
    assert sorted(case.name for case in read_manifest(root).cases) == [
        f"phantom-3-00{n}" for n in range(3)
    ]
    capsys.readouterr()
    assert prepare(some_dicom, tmp_path / "anew", "checks.refuse=[duplicate_pixels]") == 1
    assert "kept 3 of 4 cases (3 new, " in capsys.readouterr().out


def test_memory_that_runs_out_while_one_case_is_written_costs_that_case_alone(
    some_dicom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = conversion.write_case

    def starved(job: Job, *args: Any) -> Result:
        if job.case_source.path.name == "phantom-3-001":
            raise MemoryError
        return write(job, *args)

    monkeypatch.setattr(conversion, "write_case", starved)
    assert prepare(some_dicom, tmp_path / "r") == 1
    told = {row["reason"].partition(":")[0] for row in rows_of(tmp_path / "r") if row["reason"]}
    assert "too_large" in told
    assert len(read_manifest(tmp_path / "r").cases) == 2


@pytest.mark.parametrize("images", ["r/cases", "r"])
def test_nothing_that_lies_in_the_prepared_folder_is_a_source_or_removed(
    prepared: Path, tmp_path: Path, command: Command, images: str
) -> None:
    (tmp_path / "r" / "cases").mkdir(parents=True)
    for path in (prepared / "cases").glob("*_image.nii.gz"):
        shutil.copy(path, tmp_path / "r" / "cases")
    before = contents(tmp_path / "r")
    source = ["source=nifti", f"source.images={tmp_path / images}", "source.labels=null"]
    ended = command("prepare", *source, f"data.root={tmp_path / 'r'}")
    assert ended.code == 2
    assert "give another data.root" in ended.err
    assert contents(tmp_path / "r") == before


def test_a_folder_that_somebody_else_filled_is_not_prepared_into(
    some_dicom: Path, tmp_path: Path
) -> None:
    (tmp_path / "r" / "pictures").mkdir(parents=True)
    (tmp_path / "r" / "pictures" / "mine.png").touch()
    assert prepare(some_dicom, tmp_path / "r") == 2
    assert [path.name for path in (tmp_path / "r").rglob("*.png")] == ["mine.png"]


def test_a_prepared_folder_and_its_key_beside_the_scans_change_nothing(
    some_dicom: Path, tmp_path: Path
) -> None:
    scans = some_dicom / "images" / "phantom-3-001"
    words = [f"source.images={scans}", "source.labels=null", "privacy=pseudonym"]
    for _ in range(2):
        assert run_command("prepare", *words, f"data.root={scans / 'prepared'}", *SHALLOW) == 0
        assert len(rows_of(scans / "prepared")) == 1


def test_without_depth_whole_cases_are_prepared_and_no_group(
    dicom: Path, some_dicom: Path, tmp_path: Path, command: Command
) -> None:
    root = tmp_path / "r"
    source = [f"source.images={some_dicom / 'images'}", f"source.labels={some_dicom / 'labels'}"]
    words = [*source, f"data.root={root}", "privacy=none", "data.depth=null"]
    ended = command("prepare", *words)
    assert ended.code == 0
    assert "kept 3 of 3 cases (3 new, 0 unlabelled, 0 flagged), no groups; refused 0" in ended.out
    for path in (dicom / "truth").glob("phantom-3-00[012]_*.nii.gz"):
        truth = nib.as_closest_canonical(nib.load(path))
        case = nib.as_closest_canonical(nib.load(root / "cases" / path.name))
        np.testing.assert_array_equal(case.dataobj, truth.dataobj)
    assert not (root / "groups").exists()
    manifest = read_manifest(root)
    assert (manifest.groups, manifest.settings["depth"], manifest.complete) == ([], None, True)
    for row in rows_of(root):
        assert [row[f"groups_{what}"] for what in ("kept", "empty", "tail")] == ["0", "0", "0"]
    before = contents(root)
    assert "intake.png" in before
    assert command("prepare", *words).code == 0
    assert contents(root) == before
    other = command("prepare", *words, "data.depth=32")
    assert other.code == 2
    assert "depth (there None, now 32)" in other.err
    assert contents(root) == before


def test_a_case_whose_file_is_gone_is_made_again_and_foreign_files_stay(
    some_dicom: Path, tmp_path: Path
) -> None:
    root = tmp_path / "r"
    prepare(some_dicom, root, "data.depth=null")
    before = contents(root)
    (root / "cases" / "phantom-3-001_label.nii.gz").unlink()
    foreign = root / "cases" / "phantom-3-001_label_corrected.nii.gz"
    foreign.write_bytes(b"not written by pancseg")
    assert prepare(some_dicom, root, "data.depth=null") == 0
    assert foreign.read_bytes() == b"not written by pancseg"
    foreign.unlink()
    assert contents(root) == before


def test_each_flag_that_occurred_is_told_with_what_it_means(
    some_dicom: Path, tmp_path: Path, command: Command
) -> None:
    source = [f"source.images={some_dicom / 'images'}", f"source.labels={some_dicom / 'labels'}"]
    words = [f"data.root={tmp_path / 'r'}", "privacy=none", "checks.volume_ml=[0.1,0.2]"]
    lines = command("prepare", *source, *words, *SHALLOW).out.splitlines()
    told = [line for line in lines if line.startswith("flagged ")]
    assert told == [f"flagged label_volume, 3 cases: {FLAGS['label_volume']}"]


def test_while_a_preparation_is_under_way_its_manifest_is_not_complete(
    some_dicom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, told = tmp_path / "r", []
    convert = conversion.convert

    def watched(job: Job) -> Result:
        told.append(read_manifest(root).complete)
        return convert(job)

    monkeypatch.setattr(conversion, "convert", watched)
    for done in (3, 4):  # anew, then because one scan has changed
        assert prepare(some_dicom, root) == 0
        assert told == [False] * done
        assert read_manifest(root).complete
        os.utime(next((some_dicom / "images" / "phantom-3-001").iterdir()), (1, 1))


def test_a_folder_that_cannot_be_written_is_told_and_no_scan_is_blamed(
    some_dicom: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    source = [f"source.images={some_dicom / 'images'}", f"source.labels={some_dicom / 'labels'}"]
    words = [*source, f"data.root={tmp_path / 'r'}", "privacy=none", *SHALLOW]
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "write_nifti", full)
        ended = command("prepare", *words)
    assert ended.code == 1  # it had started
    assert "cannot be written (No space left on device)" in ended.err
    assert not (tmp_path / "r" / "intake.csv").exists()
    assert command("prepare", *words).code == 0
    prepare(some_dicom, tmp_path / "alone")
    assert contents(tmp_path / "r") == contents(tmp_path / "alone")


def test_no_path_of_the_input_stands_in_what_an_interrupted_run_leaves(
    some_dicom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_dicom.rename(tmp_path / "Mueller")
    with monkeypatch.context() as patch:
        patch.setattr(conversion.Preparation, "merge", lambda *_: None)
        prepare(tmp_path / "Mueller", tmp_path / "r")
    assert len(list((tmp_path / "r" / ".records").iterdir())) == 3
    for path in files_of(tmp_path / "r"):
        assert b"Mueller" not in path.read_bytes()


@pytest.mark.parametrize("processes", ["1", "3"])
def test_the_number_of_processes_changes_nothing(
    some_dicom: Path, tmp_path: Path, processes: str
) -> None:
    assert prepare(some_dicom, tmp_path / "r", f"processes={processes}") == 0
    assert prepare(some_dicom, tmp_path / "alone") == 0
    assert contents(tmp_path / "r") == contents(tmp_path / "alone")


def test_the_manifest_tells_of_what_files_hold_however_they_were_packed(
    some_dicom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prepare(some_dicom, tmp_path / "r") == 0
    monkeypatch.setattr(file_writing, "GZIP_LEVEL", 0)
    assert prepare(some_dicom, tmp_path / "other") == 0
    one, other = (
        tmp_path / root / "cases" / "phantom-3-001_image.nii.gz" for root in ("r", "other")
    )
    assert one.read_bytes() != other.read_bytes()  # the packer chose other bytes, as ISA-L may
    assert contents(tmp_path / "r") == contents(tmp_path / "other")
    case = read_manifest(tmp_path / "r").cases[1]
    for file, stated in ((case.image, case.image_sha256), (case.label, case.label_sha256)):
        content = gzip.decompress((tmp_path / "r" / str(file)).read_bytes())
        assert stated == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("repair.gaps=yes", "repair.gaps=yes: expected refuse or resample"),
        ("labels=pancreas", "labels=pancreas: expected null or a list"),
        ("processes=-1", "processes=-1: expected null, 0 or a number"),
        ("checks.refuse=[typo]", "typo"),
    ],
)
def test_a_setting_that_makes_no_sense_is_told_in_one_line(
    dicom: Path, tmp_path: Path, command: Command, word: str, says: str
) -> None:
    source = [f"source.images={dicom / 'images'}", f"source.labels={dicom / 'labels'}"]
    ended = command("prepare", *source, f"data.root={tmp_path / 'r'}", word)
    assert ended.code == 2
    assert says in ended.err
    assert len(ended.err.strip().splitlines()) == 1


CRASH = """
import os, sys
from pancseg.dicom import series

def read(files, repair, real=series.read_series):
    if "phantom-3-001" in str(files[0]):
        os.abort()
    return real(files, repair)

series.read_series = read
"""


def test_a_scan_that_ends_its_process_is_a_row_and_the_rest_is_done(
    some_dicom: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(CRASH)
    words = [f"source.images={some_dicom / 'images'}", f"source.labels={some_dicom / 'labels'}"]
    words += [f"data.root={tmp_path / 'r'}", "privacy=none", "processes=1", *SHALLOW]
    start = [sys.executable, "-m", "pancseg.prepare", *words]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(start, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stderr
    rows = {row["path"][-3:]: row for row in rows_of(tmp_path / "r")}
    assert {name: row["status"] for name, row in rows.items()} == {
        "000": "kept", "001": "refused", "002": "kept",
    }  # fmt: skip
    assert rows["001"]["reason"].startswith("reader_died: ")


def test_a_file_name_that_is_not_utf8_stops_nothing(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    case = (prepared / "cases" / "phantom-3-000_image.nii.gz").read_bytes()
    (folder / "a.nii.gz").write_bytes(case)
    Path(os.fsdecode(os.fsencode(folder) + b"/M\xfcller.nii.gz")).write_bytes(case)
    words = ["source=nifti", f"source.images={folder}", "source.labels=null"]
    for _ in range(2):
        assert command("prepare", *words, f"data.root={tmp_path / 'r'}", *SHALLOW).code == 0
    assert len(list((tmp_path / "r" / "cases").iterdir())) == 2


def test_a_case_whose_file_is_gone_is_made_again(some_dicom: Path, tmp_path: Path) -> None:
    prepare(some_dicom, tmp_path / "r")
    before = contents(tmp_path / "r")
    next((tmp_path / "r" / "groups").glob("phantom-3-001*_image.nii.gz")).unlink()
    prepare(some_dicom, tmp_path / "r")
    assert contents(tmp_path / "r") == before


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("data.depth=16", "depth (there 32, now 16)"),
        ("data.tail=pad", "tail (there shift, now pad)"),
        ("data.keep_empty=true", "keep_empty (there False, now True)"),
        ("source.labels=null", "source.labels"),
        ("privacy=pseudonym", "names"),
    ],
)
def test_other_settings_for_the_same_folder_are_refused_by_name(
    dicom: Path, prepared: Path, command: Command, changed: str, named: str
) -> None:
    before = contents(prepared)
    source = [f"source.images={dicom / 'images'}", f"source.labels={dicom / 'labels'}"]
    ended = command("prepare", *source, f"data.root={prepared}", "privacy=none", *SHALLOW, changed)
    assert ended.code == 2
    assert named in ended.err
    assert contents(prepared) == before


def test_one_bad_series_is_refused_and_the_rest_is_done(
    some_dicom: Path, tmp_path: Path, command: Command
) -> None:
    slices = sorted((some_dicom / "images" / "phantom-3-001").iterdir(), key=z_of)
    slices[20].unlink()
    root = tmp_path / "r"
    source = [f"source.images={some_dicom / 'images'}", f"source.labels={some_dicom / 'labels'}"]
    ended = command("prepare", *source, f"data.root={root}", "privacy=none", *SHALLOW)
    assert ended.code == 1
    assert "1 refused" in ended.err
    statuses = {row["patient"]: row["status"] for row in rows_of(root)}
    assert statuses == {
        "phantom-3-000": "kept", "phantom-3-001": "refused", "phantom-3-002": "kept",
    }  # fmt: skip
    reason = next(row["reason"] for row in rows_of(root) if row["status"] == "refused")
    assert reason == "missing_slice: 1 gap of 16.0 mm at slice 20, spacing is 8.0 mm"


def z_of(path: Path) -> float:
    return float(pydicom.dcmread(path).ImagePositionPatient[2])


def test_a_label_on_another_grid_is_refused_with_how_far(some_dicom: Path, tmp_path: Path) -> None:
    for path in (some_dicom / "labels" / "phantom-3-001").iterdir():
        one = pydicom.dcmread(path)
        one.ImagePositionPatient[0] += 4
        one.save_as(path)
    assert prepare(some_dicom, tmp_path / "r") == 1
    reason = next(row["reason"] for row in rows_of(tmp_path / "r") if row["status"] == "refused")
    assert reason.startswith("label_shifted: ")
    assert "-4.00, 0.00, 0.00" in reason


def test_without_labels_cases_are_kept_and_marked(some_dicom: Path, tmp_path: Path) -> None:
    root = tmp_path / "r"
    images = [f"source.images={some_dicom / 'images'}", "source.labels=null"]
    assert run_command("prepare", *images, f"data.root={root}", "privacy=none", *SHALLOW) == 0
    assert {row["flags"] for row in rows_of(root)} == {"unlabelled phantom"}
    assert not list(root.rglob("*_label.nii.gz"))
    assert len(list((root / "groups").iterdir())) == 6


def test_identifiers_of_headers_reach_no_file_but_the_paths_in_the_table(
    some_dicom: Path, tmp_path: Path, command: Command
) -> None:
    for kind in ("images", "labels"):
        for n, folder in enumerate(sorted((some_dicom / kind).iterdir())):
            for path in folder.iterdir():
                one = pydicom.dcmread(path)
                one.PatientID, one.PatientName = f"SECRET{n}", "Mustermann^Max"
                one.PatientBirthDate, one.AccessionNumber = "19230405", "SECRETACC"
                one.save_as(path)
    root = tmp_path / "site" / "r"
    source = [f"source.images={some_dicom / 'images'}", f"source.labels={some_dicom / 'labels'}"]
    ended = command("prepare", *source, f"data.root={root}", *SHALLOW)
    assert ended.code == 0
    for path in files_of(root):
        zipped = path.suffix == ".gz"
        content = nib.load(path).header.binaryblock if zipped else path.read_bytes()
        assert b"SECRET" not in content
        assert b"Muster" not in content
        assert b"19230405" not in content
        assert "SECRET" not in str(path.relative_to(root))
    assert "SECRET" not in ended.out + ended.err
    assert stat.S_IMODE((tmp_path / "site" / "privacy.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("form", ["seg", "rtstruct", "refused"])
def test_identifiers_of_labels_and_of_refused_scans_reach_no_file_either(
    tmp_path: Path, command: Command, form: str
) -> None:
    def name(one: Dataset) -> None:
        one.PatientID, one.PatientName = "SECRET7", "Muster^Max"
        one.AccessionNumber, one.PatientBirthDate = "SECRETACC", "19230405"

    def name_all(slices: list[Dataset]) -> None:
        for one in slices:
            name(one)

    write_series(tmp_path / "in" / "images", patient_id="SECRET7", damage=name_all)
    labels = tmp_path / "in" / "labels"
    labels.mkdir()
    if form == "rtstruct":
        square = [at(2, *place) for place in ((0, 0), (0, 3), (2, 3), (2, 0))]
        write_contours(labels / "x.dcm", {"Pancreas": [square]}, damage=name)
    else:
        write_segmentation(labels / "x.dcm", [Frame(np.eye(4, 3), at(2))], damage=name)
    if form == "refused":
        sorted((tmp_path / "in" / "images").iterdir())[2].unlink()
    source = [f"source.images={tmp_path / 'in' / 'images'}", f"source.labels={labels}"]
    root = tmp_path / "site" / "r"
    ended = command("prepare", *source, f"data.root={root}", "data.depth=2")
    assert ended.code == (form == "refused")
    for path in files_of(root):
        content = path.read_bytes()
        unpacked = gzip.decompress(content) if path.suffix == ".gz" else content
        for word in (b"SECRET", b"Muster", b"19230405"):
            assert word not in unpacked, path
    assert "SECRET" not in ended.out + ended.err
    names = (tmp_path / "site" / "privacy.key.names.csv").read_text()
    assert "SECRET7" in names  # and there alone, for those who may look


def test_one_patient_has_one_name_in_every_folder_of_a_site(
    some_dicom: Path, tmp_path: Path
) -> None:
    for name, depth in (("a", 16), ("b", 32)):
        prepare(some_dicom, tmp_path / name, "privacy=pseudonym", f"data.depth={depth}")
    names = [{row["patient"] for row in rows_of(tmp_path / name)} for name in ("a", "b")]
    assert names[0] == names[1]
    assert len(names[0]) == 3


def test_a_second_preparation_of_the_same_folder_stops_with_one_line(
    some_dicom: Path, tmp_path: Path, command: Command
) -> None:
    root = tmp_path / "r"
    source = [f"source.images={some_dicom / 'images'}", f"source.labels={some_dicom / 'labels'}"]
    for shard, said in ((None, "a preparation is already"), ("0/2", "shard 0/2 is already")):
        words = [*source, f"data.root={root}", "privacy=none", *SHALLOW]
        words += [f"shard={shard}"] if shard else []
        with conversion.lock(root, Shard.parse(shard) if shard else None):
            ended = command("prepare", *words)
        assert ended.code == 2
        assert said in ended.err
        assert len(ended.err.strip().splitlines()) == 1
    with conversion.lock(root, Shard(1, 2)):
        assert command("prepare", *words).code == 0


def test_shards_leave_the_folder_that_one_run_leaves(
    some_dicom: Path, tmp_path: Path, command: Command
) -> None:
    root = tmp_path / "r"
    sorted((some_dicom / "images" / "phantom-3-001").iterdir(), key=z_of)[20].unlink()
    source = [f"source.images={some_dicom / 'images'}", f"source.labels={some_dicom / 'labels'}"]
    words = [*source, f"data.root={root}", "privacy=none", "processes=0", *SHALLOW]
    codes, converted = [], 0
    for n in range(3):
        ended = command("prepare", *words, f"shard={n}/3")
        codes.append(ended.code)
        converted += int(re.findall(rf"shard {n}/3: (\d+) cases", ended.out)[0])
        assert not read_manifest(root).complete
    assert sorted(codes) == [0, 0, 1]  # one shard has the refused case
    assert converted == 3
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.nii.gz")}
    assert command("prepare", *words).code == 1
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.nii.gz")} == times
    assert prepare(some_dicom, tmp_path / "alone") == 1
    assert contents(root) == contents(tmp_path / "alone")
    assert "shard 1/3: 0 cases" in command("prepare", *words, "shard=1/3").out.replace(
        "1 cases", "0 cases"
    )  # at most the refused case is tried again


@pytest.mark.parametrize("shard", ["3/3", "1", "a/b", "-1/3"])
def test_a_shard_that_does_not_exist_is_refused_in_one_line(
    dicom: Path, tmp_path: Path, command: Command, shard: str
) -> None:
    source = [f"source.images={dicom / 'images'}", f"source.labels={dicom / 'labels'}"]
    ended = command("prepare", *source, f"data.root={tmp_path / 'r'}", f"shard={shard}")
    assert ended.code == 2
    assert "expected i/n" in ended.err


def corrected(label: Path) -> int:
    """Remove half of a label by hand, as an editor does; return the voxels that are left."""
    image = nib.load(label)
    values = np.asanyarray(image.dataobj).copy()
    values[: int(np.argwhere(values)[:, 0].mean())] = 0
    nib.save(nib.Nifti1Image(values.astype(np.float32), image.affine), label)
    return int(values.sum())


def test_a_label_corrected_in_the_prepared_folder_is_taken_over(
    some_dicom: Path, tmp_path: Path, command: Command
) -> None:
    root = tmp_path / "r"
    prepare(some_dicom, root)
    label = root / "cases" / "phantom-3-001_label.nii.gz"
    before, voxels = rows_of(root)[1], corrected(label)
    stored = label.read_bytes()
    source = [f"source.images={some_dicom / 'images'}", f"source.labels={some_dicom / 'labels'}"]
    words = [*source, f"data.root={root}", "privacy=none", *SHALLOW]
    ended = command("prepare", *words)
    assert ended.code == 0
    assert "cases/phantom-3-001_label.nii.gz: corrected by hand, taken over" in ended.out
    row, case = rows_of(root)[1], read_manifest(root).cases[1]
    assert int(row["label_voxels"]) == voxels == case.label_voxels < int(before["label_voxels"])
    assert case.label_corrected
    assert label.read_bytes() == stored
    for group in read_manifest(root).groups:
        if group.case == case.name:
            cut = np.asanyarray(nib.load(root / str(group.label)).dataobj)
            whole = np.asanyarray(nib.load(label).dataobj)
            first = group.first_slice
            np.testing.assert_array_equal(cut, whole[..., first : first + 32])
    assert "taken over" not in command("prepare", *words).out


def test_a_source_that_changes_never_overwrites_a_corrected_label(
    some_dicom: Path, tmp_path: Path, command: Command
) -> None:
    root = tmp_path / "r"
    prepare(some_dicom, root)
    label = root / "cases" / "phantom-3-001_label.nii.gz"
    voxels, stored = corrected(label), label.read_bytes()
    source = [f"source.images={some_dicom / 'images'}", f"source.labels={some_dicom / 'labels'}"]
    words = [*source, f"data.root={root}", "privacy=none", *SHALLOW]
    for time_s in (1, 2):  # before the correction was taken over, and after
        os.utime(next((some_dicom / "images" / "phantom-3-001").iterdir()), (time_s, time_s))
        ended = command("prepare", *words)
        assert ended.code == 0
        assert "the correction is kept" in ended.out
        assert label.read_bytes() == stored
        assert int(rows_of(root)[1]["label_voxels"]) == voxels


@pytest.mark.parametrize("kind", ["values", "grid", "damaged"])
def test_a_corrected_label_that_is_no_label_of_its_case_is_refused(
    some_dicom: Path, tmp_path: Path, command: Command, kind: str
) -> None:
    root = tmp_path / "r"
    prepare(some_dicom, root)
    label = root / "cases" / "phantom-3-001_label.nii.gz"
    image = nib.load(label)
    values = np.asanyarray(image.dataobj).copy()
    if kind == "damaged":
        label.write_bytes(b"no NIfTI")
    else:
        values = values * 7 if kind == "values" else values[..., :-1]
        nib.save(nib.Nifti1Image(values, image.affine), label)
    before = read_manifest(root).cases[1]
    source = [f"source.images={some_dicom / 'images'}", f"source.labels={some_dicom / 'labels'}"]
    for _ in range(2):
        ended = command("prepare", *source, f"data.root={root}", "privacy=none", *SHALLOW)
        assert ended.code == 1
        assert f"{label}: was changed; " in ended.out
        assert read_manifest(root).cases[1] == before


def test_a_bug_in_pancseg_stops_the_run_with_a_traceback_without_values(
    some_dicom: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "^".join(("DOE", "JOHN"))

    def broken(*_: object) -> None:
        raise IndexError(name)

    root = tmp_path / "r"
    monkeypatch.setattr(conversion, "voxel_flags", broken)
    source = [f"source.images={some_dicom / 'images'}", f"source.labels={some_dicom / 'labels'}"]
    ended = command("prepare", *source, f"data.root={root}", "privacy=none", *SHALLOW)
    assert ended.code == 1
    assert "IndexError in case phantom-3-000: a bug in pancseg" in ended.err
    log = (root / "prepare.log").read_text()
    assert "in broken" in log
    assert name not in log + ended.err


def lesion_dataset(prepared: Path, folder: Path) -> Path:
    """A nifti source of two cases whose labels are 1 for an organ and 2 for a part of it."""
    for path in sorted((prepared / "cases").glob("*_image.nii.gz"))[:2]:
        label = nib.load(str(path).replace("_image", "_label"))
        values = np.asanyarray(label.dataobj).astype(np.uint8)
        half = int(np.argwhere(values)[:, 0].mean())
        values[:half] *= 2
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "labels").mkdir(exist_ok=True)
        name = path.name.replace("_image", "")
        shutil.copy(path, folder / "images" / name)
        nib.save(nib.Nifti1Image(values, label.affine), folder / "labels" / name)
    return folder


def test_several_structures_are_stored_as_codes_and_named_in_manifest_and_table(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    data = lesion_dataset(prepared, tmp_path / "lesions")
    root = tmp_path / "r"
    source = [
        "source=nifti",
        f"source.images={data / 'images'}",
        f"source.labels={data / 'labels'}",
    ]
    words = [*source, f"data.root={root}", "structures=pancreas_tumour", "data.depth=32"]
    words += ["structures.tumour.volume_ml=[0,0.001]", "privacy=none"]
    ended = command("prepare", *words)
    assert ended.code == 0, ended.err
    manifest = read_manifest(root)
    assert [(s.name, s.values, s.kind) for s in manifest.structures] == [
        ("pancreas", (1, 2), "organ"), ("tumour", (2,), "lesion"),
    ]  # fmt: skip
    for case, row in zip(manifest.cases, rows_of(root), strict=True):
        stored = np.asanyarray(nib.load(root / str(case.label)).dataobj)
        given = np.asanyarray(nib.load(data / "labels" / f"{case.name}.nii.gz").dataobj)
        np.testing.assert_array_equal(stored, given)
        tumour = int((given == 2).sum())
        assert case.structure_voxels == {
            "pancreas": int(np.count_nonzero(given)), "tumour": tumour,
        }  # fmt: skip
        assert f"tumour={tumour * 0.512:.3f}" in row["structures_ml"]
        assert "label_volume:tumour" in row["flags"].split()
    assert "flagged label_volume, 2 cases" in ended.out
    refused = command("prepare", *words, "labels=[1]")
    assert refused.code == 2
    assert "structures.pancreas.labels= or structures.tumour.labels=" in refused.err
    other = command("prepare", *words, "structures.tumour.labels=[3]")
    assert "structures.tumour.labels (there [2], now [3])" in other.err


def test_nifti_pieces_of_one_patient_stay_together(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    for role, folder in (("image", images), ("label", labels)):
        folder.mkdir()
        for path in (prepared / "groups").glob(f"*_{role}.nii.gz"):
            shutil.copy(path, folder / path.name.replace(f"_{role}", ""))
    source = ["source=nifti", f"source.images={images}", f"source.labels={labels}"]
    warned = command("prepare", *source, f"data.root={tmp_path / 'a'}", "data.depth=32")
    assert "look like parts of one patient" in warned.err
    rule = r"source.patient='(?P<patient>.+)_\d+$'"
    told = command("prepare", *source, rule, f"data.root={tmp_path / 'b'}", "data.depth=32")
    assert told.code == 0, told.err
    assert "look like parts" not in told.err
    assert len({row["patient"] for row in rows_of(tmp_path / "b")}) == 6
    assert len({row["case"] for row in rows_of(tmp_path / "b")}) == len(list(images.iterdir()))
