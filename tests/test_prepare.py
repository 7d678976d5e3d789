"""The command ``prepare``: what it writes, adds, refuses, corrects and leaves alone."""

import csv
import errno
import gzip
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from pancseg import files as file_writing
from pancseg.data.manifest import read_manifest
from pancseg.intake import convert as conversion
from pancseg.parallel import Shard
from tests.conftest import Command, Ended, contents
from tests.tiny_dicom import put, write_series

COLUMNS = (
    "patient,case,path,kind,status,reason,flags,slices,groups_kept,groups_empty,groups_tail,"
    "spacing_x_mm,spacing_y_mm,spacing_z_mm,label_voxels,label_ml,structures_ml"
)
MASK = np.zeros((5, 4, 3), int)  # slices, rows, columns
MASK[1:4, 1:3, 1] = 1
SETTINGS = ("privacy=none", "data.depth=2", "data.tail=shift")
PATIENTS = ["p0", "p1", "p2"]


def rows_of(root: Path, kind: str = "image") -> list[dict[str, str]]:
    with (root / "intake.csv").open(newline="", errors="replace") as file:
        return [row for row in csv.DictReader(file) if row["kind"] == kind]


def write_patient(source: Path, name: str, seed: int) -> None:
    """A CT of 5 slices with its mask."""
    own: dict[str, Any] = {"patient_id": name, "damage": put(StudyInstanceUID=f"1.2.{seed}")}
    pixels = np.random.default_rng(seed).integers(-500, 500, MASK.shape)
    write_series(source / "images" / name, pixels=pixels, series_uid=f"1.2.{seed}.1", **own)
    write_series(source / "labels" / name, pixels=MASK, modality="OT", **own)


@pytest.fixture
def source(tmp_path):
    """Three patients."""
    for n, name in enumerate(PATIENTS):
        write_patient(tmp_path / "in", name, n)
    return tmp_path / "in"


def words(source: Path, root: Path, *more: str) -> list[str]:
    paths = [f"source.images={source / 'images'}", f"source.labels={source / 'labels'}"]
    return [*paths, f"data.root={root}", *SETTINGS, *more]


class Prepare:
    """Prepares the three patients in ``root``."""

    def __init__(self, command: Command, source: Path, root: Path) -> None:
        self.command, self.source, self.root = command, source, root

    def __call__(self, *more: str, root: Path | None = None) -> Ended:
        return self.command("prepare", *words(self.source, root or self.root, *more))

    def statuses(self) -> dict[str, str]:
        return {Path(row["path"]).name: row["status"] for row in rows_of(self.root)}

    def case(self, n: int = 1) -> Any:
        return read_manifest(self.root).cases[n]


@pytest.fixture
def prepare(command, source, tmp_path):
    return Prepare(command, source, tmp_path / "root")


# what a preparation of phantoms holds


@pytest.mark.parametrize("role", ["image", "label"])
def test_every_case_equals_the_phantoms_truth(dicom, prepared, role):
    truths = sorted((dicom / "truth").glob(f"*_{role}.nii.gz"))
    assert len(truths) == 6
    for path in truths:
        truth = nib.as_closest_canonical(nib.load(path))
        case = nib.as_closest_canonical(nib.load(prepared / "cases" / path.name))
        np.testing.assert_array_equal(case.dataobj, truth.dataobj)
        np.testing.assert_allclose(case.affine, truth.affine, atol=1e-4)


def test_every_group_lies_where_its_slices_lay(prepared):
    groups = read_manifest(prepared).groups
    assert groups
    for group in groups:
        case = nib.load(prepared / "cases" / f"{group.case}_image.nii.gz")
        cut, first = nib.load(prepared / group.image), group.first_slice
        assert cut.shape[2] == 32
        np.testing.assert_array_equal(cut.dataobj, case.dataobj[..., first : first + 32])
        corner = nib.affines.apply_affine(case.affine, [0, 0, first])
        np.testing.assert_allclose(cut.affine[:3, 3], corner, atol=1e-4)


def test_files_run_from_feet_to_head_in_millimetres_and_scanner_coordinates(prepared):
    for path in prepared.rglob("*.nii.gz"):
        image = nib.load(path)
        assert nib.aff2axcodes(image.affine)[2] == "S"
        assert image.header.get_xyzt_units() == ("mm", "unknown")
        assert (image.header["qform_code"], image.header["sform_code"]) == (1, 1)
        assert image.header.get_slope_inter() in ((1, 0), (None, None))


def test_the_table_has_the_columns_of_the_contract_and_adds_up(prepared):
    assert (prepared / "intake.csv").read_text().splitlines()[0] == COLUMNS
    for row in rows_of(prepared):
        assert (row["status"], row["slices"], row["flags"]) == ("kept", "40", "phantom")
        # one whole group of 32 and one shifted
        assert sum(int(row[f"groups_{what}"]) for what in ("kept", "empty", "tail")) == 2
        label = nib.load(prepared / "cases" / f"{row['case']}_label.nii.gz")
        voxels = int(np.count_nonzero(label.dataobj))
        assert int(row["label_voxels"]) == voxels
        assert float(row["label_ml"]) == pytest.approx(voxels * 0.512, abs=0.001)
    assert {row["label_voxels"] for row in rows_of(prepared, "label")} == {""}


@pytest.mark.parametrize(
    ("tail", "starts", "tails"),
    [("drop", [0, 2], 1), ("shift", [0, 2, 3], 0), ("pad", [0, 2, 4], 0)],
)
def test_tails_are_cut_and_empty_groups_counted(prepare, tail, starts, tails):
    prepare(f"data.tail={tail}", "data.keep_empty=true")
    groups = [group for group in read_manifest(prepare.root).groups if group.case == "p0"]
    assert [group.first_slice for group in groups] == starts
    assert {row["groups_tail"] for row in rows_of(prepare.root)} == {str(tails)}
    other = prepare.root.with_name("without_empty")
    prepare(f"data.tail={tail}", root=other)
    empty = sum(group.label_voxels == 0 for group in groups)
    assert {row["groups_empty"] for row in rows_of(other)} == {str(empty)}
    assert len(read_manifest(other).groups) == 3 * (len(starts) - empty)


def test_without_depth_whole_cases_are_prepared_and_no_group(prepare):
    ended = prepare("data.depth=null")
    assert "kept 3 of 3 cases (3 new, 0 unlabelled, 3 flagged), no groups; refused 0" in ended.out
    manifest = read_manifest(prepare.root)
    assert (manifest.groups, manifest.settings["depth"], manifest.complete) == ([], None, True)
    assert not (prepare.root / "groups").exists()


def test_without_labels_cases_are_kept_and_marked(prepare):
    assert prepare("source.labels=null").code == 0
    assert {row["flags"].split()[0] for row in rows_of(prepare.root)} == {"unlabelled"}
    assert not list(prepare.root.rglob("*_label.nii.gz"))
    assert prepare.case().label is None


# running again


def test_running_again_changes_nothing(prepare, tmp_path):
    assert prepare().code == 0
    before = contents(prepare.root)
    times = {path: path.stat().st_mtime_ns for path in prepare.root.rglob("*.nii.gz")}
    (tmp_path / "link").symlink_to(prepare.source)
    prepare.source = tmp_path / "link"
    assert prepare().code == 0
    assert contents(prepare.root) == before
    assert {path: path.stat().st_mtime_ns for path in prepare.root.rglob("*.nii.gz")} == times


@pytest.mark.parametrize(
    "lost", ["intake.csv", "cases/p1_label.nii.gz", "groups/p1_0000_image.nii.gz"]
)
def test_what_was_lost_is_made_again_and_foreign_files_stay(prepare, lost):
    prepare()
    before = contents(prepare.root)
    (prepare.root / lost).unlink()
    foreign = prepare.root / "cases" / "p1_label_corrected.nii.gz"
    foreign.write_bytes(b"not written by pancseg")
    assert prepare().code == 0
    assert foreign.read_bytes() == b"not written by pancseg"
    foreign.unlink()
    assert contents(prepare.root) == before


def test_new_patients_are_added_and_old_ones_left_alone(prepare):
    prepare()
    before = contents(prepare.root / "cases")
    write_patient(prepare.source, "a", 7)
    assert prepare().code == 0
    after = contents(prepare.root / "cases")
    assert (len(before), len(after)) == (6, 8)
    assert before.items() <= after.items()


def test_a_changed_source_is_converted_again_and_leaves_no_file_behind(prepare):
    prepare()
    for role in ("images", "labels"):
        last = sorted((prepare.source / role / "p0").iterdir(), key=lambda p: p.stem[-1])[-1]
        last.unlink()
    next((prepare.source / "images" / "p1").glob("*-2.dcm")).unlink()
    assert prepare().code == 1
    assert prepare.statuses() == {"p0": "kept", "p1": "refused", "p2": "kept"}
    manifest = json.loads((prepare.root / "manifest.json").read_text())
    entries = manifest["cases"] + manifest["groups"]
    named = {entry[role] for entry in entries for role in ("image", "label")}
    assert {str(p.relative_to(prepare.root)) for p in prepare.root.rglob("*.nii.gz")} == named
    assert [case["shape"][2] for case in manifest["cases"]] == [4, 5]


def test_a_case_without_label_is_removed_and_one_without_source_stays(prepare):
    prepare()
    shutil.rmtree(prepare.source / "labels" / "p1")
    for role in ("images", "labels"):
        shutil.rmtree(prepare.source / role / "p2")
    for _ in range(2):
        assert prepare().code == 1
        assert prepare.statuses() == {"p0": "kept", "p1": "refused", "p2": "kept"}
        assert not list(prepare.root.rglob("p1*"))
    (prepare.root / "intake.csv").unlink()
    prepare()
    assert sorted(row["case"] for row in rows_of(prepare.root)) == ["", "p0", "p2"]


def test_checks_that_changed_are_applied_to_cases_that_were_there(prepare):
    wide = "checks.volume_ml=[0.001,300]"
    prepare(wide)
    before = contents(prepare.root)
    lines = prepare().out.splitlines()
    assert any(line.startswith("flagged label_volume, 3 cases: The volume is") for line in lines)
    assert all("label_volume" in row["flags"] for row in rows_of(prepare.root))
    assert prepare("checks.refuse=[label_volume]").code == 1
    assert {row["reason"].split(":")[0] for row in rows_of(prepare.root)} == {"label_volume"}
    assert not list((prepare.root / "cases").iterdir())
    assert prepare(wide).code == 0
    assert contents(prepare.root) == before


def test_the_same_pixels_under_a_new_patient_move_nobody_who_was_there(prepare):
    prepare()
    write_patient(prepare.source, "a", 2)
    assert prepare().code == 0
    assert {case.name: case.duplicate_of for case in read_manifest(prepare.root).cases} == {
        "a": "p2", "p0": None, "p1": None, "p2": None,
    }  # fmt: skip
    flagged = [row["case"] for row in rows_of(prepare.root) if "duplicate_pixels" in row["flags"]]
    assert sorted(flagged) == ["a", "p2"]
    assert "a" not in read_manifest(prepare.root).labelled_patients()
    assert prepare("checks.refuse=[duplicate_pixels]").code == 1
    assert [case.name for case in read_manifest(prepare.root).cases] == PATIENTS


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("data.depth=3", "depth (there 2, now 3)"),
        ("data.keep_empty=true", "keep_empty (there False, now True)"),
        ("source.labels=null", "source.labels"),
        ("privacy=pseudonym", "names"),
        ("labels=[1]", "structures.pancreas.labels (there None, now [1])"),
    ],
)
def test_other_settings_are_refused_by_name(prepare, changed, named):
    prepare()
    before = contents(prepare.root)
    ended = prepare(changed)
    assert ended.code == 2 and named in ended.err
    assert contents(prepare.root) == before


# interruptions and errors


def test_an_interrupted_preparation_is_not_trained_on(prepare, tmp_path, command, monkeypatch):
    convert, complete = conversion.convert, []

    def interrupted(job):
        if len(complete) == 2:
            raise KeyboardInterrupt
        complete.append(read_manifest(prepare.root).complete)
        return convert(job)

    prepare.source = prepare.source.rename(tmp_path / "Mueller")
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "convert", interrupted)
        assert prepare().code == 130
    assert complete == [False, False]
    for path in prepare.root.rglob("*"):  # no path of the input
        assert path.is_dir() or b"Mueller" not in path.read_bytes()
    (prepare.root / "groups" / ".partial-0-x_image.nii.gz").write_bytes(b"half")
    ended = command("train", f"data.root={prepare.root}", "data.depth=2", "data.tail=shift")
    assert ended.code == 2
    assert "is not complete; run the same pancseg.prepare again" in ended.err
    assert prepare().code == prepare(root=tmp_path / "alone").code == 0
    assert contents(prepare.root) == contents(tmp_path / "alone")


def test_a_full_disk_blames_no_scan(prepare, monkeypatch):
    def full(path, *_):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "write_nifti", full)
        ended = prepare()
    assert ended.code == 1
    assert "cannot be written (No space left on device)" in ended.err
    assert not (prepare.root / "intake.csv").exists()
    assert prepare().code == 0


@pytest.mark.parametrize(("error", "code"), [(MemoryError, 1), (IndexError, 1)])
def test_lack_of_memory_costs_a_case_and_a_bug_ends_the_run(prepare, monkeypatch, error, code):
    write = conversion.write_case

    def broken(job, *args):
        if job.name == "p1":
            raise error("".join(("D", "OE")))
        return write(job, *args)

    monkeypatch.setattr(conversion, "write_case", broken)
    ended = prepare()
    assert ended.code == code and "DOE" not in ended.err
    if error is MemoryError:
        assert prepare.statuses() == {"p0": "kept", "p1": "refused", "p2": "kept"}
    else:
        assert "IndexError in case p1: a bug in pancseg" in ended.err
        log = (prepare.root / "prepare.log").read_text()
        assert "in broken" in log and "DOE" not in log


CRASH = """
import os, sys
from pancseg.dicom import series

def read(files, repair, real=series.read_series):
    if "p1" in files[0].parts:
        os.abort()
    return real(files, repair)

series.read_series = read
"""


def test_a_scan_that_ends_its_process_is_a_row(prepare, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(CRASH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert prepare("processes=2").code == 1
    assert prepare.statuses() == {"p0": "kept", "p1": "refused", "p2": "kept"}
    assert rows_of(prepare.root)[1]["reason"].startswith("reader_died: ")
    for role in ("images", "labels"):
        shutil.rmtree(prepare.source / role / "p1")
    assert prepare(root=tmp_path / "alone").code == 0  # in this process
    assert contents(prepare.root / "cases") == contents(tmp_path / "alone" / "cases")


def test_packing_changes_nothing(prepare, tmp_path, monkeypatch):
    assert prepare().code == 0
    monkeypatch.setattr(file_writing, "GZIP_LEVEL", 0)
    assert prepare(root=tmp_path / "other").code == 0
    files = [root / "cases" / "p1_image.nii.gz" for root in (prepare.root, tmp_path / "other")]
    assert files[0].read_bytes() != files[1].read_bytes()  # other bytes, as ISA-L may choose
    assert contents(prepare.root) == contents(tmp_path / "other")
    content = gzip.decompress(files[0].read_bytes())
    assert prepare.case().image_sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("repair.gaps=yes", "repair.gaps=yes: expected refuse or resample"),
        ("labels=pancreas", "labels=pancreas: expected null or a list"),
        ("processes=-1", "processes=-1: expected null, 0 or a number"),
        ("checks.refuse=[typo]", "typo"),
        ("shard=3/3", "expected i/n"),
        ("data.depth=0", "data.depth=0: expected 1 or more"),
        ("data.tail=fold", "data.tail=fold: expected drop, shift or pad"),
        ("source.images=nowhere", "source.images=nowhere: no such file or folder"),
        ("source.images='a/*/CT'", "source.images=a/*/CT: no such file or folder"),
        ("source.labels=''", "source.labels is not given; give a folder, or source.labels=null"),
        ("data.root=in/images", "give another data.root"),
        ("data.root=in", "give another data.root"),
    ],
)
def test_a_wrong_setting_is_reported_in_one_line(prepare, word, sentence):
    ended = prepare(word)
    assert (ended.code, len(ended.err.strip().splitlines())) == (2, 1)
    assert sentence in ended.err


def test_a_folder_that_somebody_else_filled_is_not_prepared_into(prepare):
    (prepare.root / "pictures").mkdir(parents=True)
    (prepare.root / "pictures" / "mine.png").touch()
    assert prepare().code == 2
    assert [path.name for path in prepare.root.rglob("*.png")] == ["mine.png"]


def test_a_prepared_folder_beside_the_scans_is_no_source(command, tmp_path):
    write_series(tmp_path / "in" / os.fsdecode(b"M\xfcller"))
    source = [f"source.images={tmp_path / 'in'}", "source.labels=null", "data.depth=2"]
    for _ in range(2):
        assert command("prepare", *source, f"data.root={tmp_path / 'in' / 'root'}").code == 0
        assert len(rows_of(tmp_path / "in" / "root")) == 1


# shards


def test_shards_leave_the_folder_that_one_run_leaves(prepare, tmp_path):
    next((prepare.source / "images" / "p1").glob("*-2.dcm")).unlink()
    ended = [prepare(f"shard={n}/3") for n in range(3)]
    assert sorted(one.code for one in ended) == [0, 0, 1]  # one shard has the refused case
    assert sum(int(one.out.split(": ")[1].split()[0]) for one in ended) == 3
    assert not read_manifest(prepare.root).complete
    times = {path: path.stat().st_mtime_ns for path in prepare.root.rglob("*.nii.gz")}
    assert prepare().code == prepare(root=tmp_path / "alone").code == 1
    assert {path: path.stat().st_mtime_ns for path in prepare.root.rglob("*.nii.gz")} == times
    assert contents(prepare.root) == contents(tmp_path / "alone")


def test_the_same_shard_or_merge_twice_stops_with_one_line(prepare):
    for more, sentence in (
        ([], "a preparation is already"),
        (["shard=0/2"], "shard 0/2 is already"),
    ):
        with conversion.lock(prepare.root, Shard(0, 2) if more else None):
            ended = prepare(*more)
        assert ended.code == 2 and sentence in ended.err
        assert len(ended.err.strip().splitlines()) == 1
    with conversion.lock(prepare.root, Shard(1, 2)):
        assert prepare().code == 0


# labels that were corrected in the prepared folder


def correct(label: Path, **changes: Any) -> int:
    """Remove a part of a label by hand, as an editor does; return the voxels that are left."""
    image = nib.load(label)
    values = changes.get("values", np.asanyarray(image.dataobj).copy())
    values[..., :2] = 0
    nib.save(nib.Nifti1Image(values.astype(np.float32), image.affine), label)
    return int(values.sum())


def test_a_corrected_label_is_kept_when_its_source_changes(prepare):
    prepare()
    label = prepare.root / "cases" / "p1_label.nii.gz"
    voxels = correct(label)
    stored = label.read_bytes()
    os.utime(next((prepare.source / "images" / "p1").iterdir()), (1, 1))
    assert "the correction is kept" in prepare().out
    ended = prepare()
    assert (ended.code, "taken over" in ended.out) == (0, False)
    case = prepare.case()
    assert (case.label_voxels, case.label_corrected) == (voxels, True)
    assert int(rows_of(prepare.root)[1]["label_voxels"]) == voxels < int(MASK.sum())
    whole = np.asanyarray(nib.load(label).dataobj)
    groups = [group for group in read_manifest(prepare.root).groups if group.case == "p1"]
    assert [group.first_slice for group in groups] == [2, 3]  # the first holds no voxel now
    for group in groups:
        cut = np.asanyarray(nib.load(prepare.root / str(group.label)).dataobj)
        np.testing.assert_array_equal(cut, whole[..., group.first_slice : group.first_slice + 2])
    os.utime(next((prepare.source / "images" / "p1").iterdir()), (2, 2))
    assert "the correction is kept" in prepare().out
    assert label.read_bytes() == stored


@pytest.mark.parametrize("kind", ["values", "grid", "damaged"])
def test_a_corrected_label_of_another_grid_or_content_is_refused(prepare, kind):
    prepare()
    label, before = prepare.root / "cases" / "p1_label.nii.gz", prepare.case()
    values = MASK.T * 7 if kind == "values" else MASK.T[..., :-1]
    correct(label, values=values.copy())
    if kind == "damaged":
        label.write_bytes(b"no NIfTI")
    for _ in range(2):
        ended = prepare()
        assert ended.code == 1
        assert f"{label}: was changed; " in ended.out
        assert prepare.case() == before


# several structures


def test_several_structures_are_stored_as_codes_and_named(prepare):
    codes = MASK.copy()
    codes[2:] *= 2
    for n, name in enumerate(PATIENTS):
        shutil.rmtree(prepare.source / "labels" / name)
        labels = prepare.source / "labels" / name
        write_series(labels, patient_id=name, pixels=codes if n else MASK, modality="OT")
    more = ["structures=pancreas_tumour", "structures.tumour.volume_ml=[0,0.001]"]
    ended = prepare(*more)
    assert ended.code == 0, ended.err
    manifest, row = read_manifest(prepare.root), rows_of(prepare.root)[1]
    assert [s.values for s in manifest.structures] == [(1, 2), (2,)]
    assert [case.structure_voxels for case in manifest.cases] == [
        {"pancreas": 6, "tumour": 0}, {"pancreas": 6, "tumour": 4}, {"pancreas": 6, "tumour": 4},
    ]  # fmt: skip
    stored = nib.load(prepare.root / str(manifest.cases[1].label)).dataobj
    np.testing.assert_array_equal(stored, codes.T)
    assert row["structures_ml"] == "pancreas=0.006 tumour=0.004"
    assert "label_volume:tumour" in row["flags"].split()
    other = prepare(*more, "structures.tumour.labels=[3]")
    assert "structures.tumour.labels (there [2], now [3])" in other.err
    refused = prepare(*more, "labels=[1]")
    assert "structures.pancreas.labels= or structures.tumour.labels=" in refused.err
