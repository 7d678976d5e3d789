"""The command ``prepare``: files written, added, refused, corrected and left alone."""

import csv
import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pancseg.data.manifest import read_manifest
from pancseg.intake import convert as conversion
from tests.conftest import contents, unpacked
from tests.other_software import assert_same
from tests.tiny_dicom import put, write_series

COLUMNS = (
    "patient,case,path,kind,status,reason,flags,slices,groups_kept,groups_empty,groups_tail,"
    "spacing_x_mm,spacing_y_mm,spacing_z_mm,label_voxels,label_ml,structures_ml"
)
MASK = np.zeros((5, 4, 3), int)  # slices, rows, columns
MASK[1:4, 1:3, 1] = 1
PATIENTS = ["p0", "p1", "p2"]


def rows_of(root):
    """Rows of images."""
    with (root / "intake.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["kind"] == "image"]


def times_of(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*.nii.gz")}


class Prepare:
    """Three patients, each a CT of 5 slices with its mask, and the command that prepares them."""

    def __init__(self, command, folder):
        self.command, self.source, self.root = command, folder / "in", folder / "root"
        for n, name in enumerate(PATIENTS):
            self.add(name, n)

    def add(self, name, seed, mask=MASK):
        own = {"patient_id": name, "damage": put(StudyInstanceUID=f"1.2.{seed}")}
        pixels = np.random.default_rng(seed).integers(-500, 500, MASK.shape)
        images, labels = (self.source / role / name for role in ("images", "labels"))
        write_series(images, pixels=pixels, series_uid=f"1.2.{seed}.1", **own)
        write_series(labels, pixels=mask, modality="OT", series_uid=f"1.2.{seed}.2", **own)

    def __call__(self, *more, root=None):
        paths = [f"source.{role}={self.source / role}" for role in ("images", "labels")]
        settings = [f"data.root={root or self.root}", "privacy=none", "data.depth=2"]
        return self.command("prepare", *paths, *settings, "data.tail=shift", *more)

    def statuses(self):
        return {Path(row["path"]).name: row["status"] for row in rows_of(self.root)}

    def groups(self, case="p1"):
        return [group for group in read_manifest(self.root).groups if group.case == case]


@pytest.fixture
def prepare(command, tmp_path):
    return Prepare(command, tmp_path)


def test_cases_and_groups_equal_the_phantoms_truth(dicom, prepared):
    truths = sorted((dicom / "truth").glob("*.nii.gz"))
    assert len(truths) == 12
    for path in truths:
        assert_same(nib.load(prepared / "cases" / path.name), nib.load(path))
    manifest = read_manifest(prepared)
    for group in manifest.groups:
        case = nib.load(prepared / "cases" / f"{group.case}_image.nii.gz")
        cut, first = nib.load(prepared / group.image), group.first_slice
        assert_same(cut, case.slicer[..., first : first + 32])
        assert cut.shape[2] == 32
        content = unpacked(prepared / group.image)  # not of the packed file: packers differ
        assert group.image_sha256 == hashlib.sha256(content).hexdigest()
    for image in map(nib.load, prepared.rglob("*.nii.gz")):
        assert nib.aff2axcodes(image.affine)[2] == "S"


def test_the_table_has_the_columns_of_the_contract_and_adds_up(prepared):
    assert (prepared / "intake.csv").read_text().splitlines()[0] == COLUMNS
    for row in rows_of(prepared):
        assert (row["status"], row["slices"], row["flags"]) == ("kept", "40", "phantom")
        # a whole group of 32 and a shifted one
        assert sum(int(row[f"groups_{name}"]) for name in ("kept", "empty", "tail")) == 2
        label = nib.load(prepared / "cases" / f"{row['case']}_label.nii.gz")
        voxels = int(row["label_voxels"])
        assert voxels == np.count_nonzero(label.dataobj)
        assert float(row["label_ml"]) == pytest.approx(voxels * 0.512, abs=0.001)


@pytest.mark.parametrize(("words", "starts", "tails", "empty"), [
    ("data.tail=drop", [0, 2], "1", "0"), ("data.tail=pad", [0, 2], "0", "1"),
    ("data.tail=pad data.keep_empty=true", [0, 2, 4], "0", "1"),
])  # fmt: skip
def test_tails_are_cut_and_empty_groups_counted(prepare, words, starts, tails, empty):
    prepare(*words.split())
    assert [group.first_slice for group in prepare.groups()] == starts
    counts = {(row["groups_tail"], row["groups_empty"]) for row in rows_of(prepare.root)}
    assert counts == {(tails, empty)}


def test_running_again_makes_only_missing_and_new_files_and_leaves_foreign_ones(prepare):
    assert prepare().code == 0
    before, times = contents(prepare.root), times_of(prepare.root)
    assert prepare().code == 0
    for changed, named in (
        ("data.depth=3", "depth (there 2, now 3)"), ("privacy=pseudonym", "names"),
        ("labels=[1]", "structures.pancreas.labels (there None, now [1])"),
    ):  # fmt: skip
        ended = prepare(changed)
        assert ended.code == 2 and named in ended.err
    assert (contents(prepare.root), times_of(prepare.root)) == (before, times)
    foreign = prepare.root / "cases" / "p1_label_corrected.nii.gz"
    foreign.write_bytes(b"not written by pancseg")
    for lost in ("intake.csv", "cases/p1_label.nii.gz", "groups/p1_0000_image.nii.gz"):
        (prepare.root / lost).unlink()
        assert prepare().code == 0
    assert foreign.read_bytes() == b"not written by pancseg"
    foreign.unlink()
    assert contents(prepare.root) == before
    prepare.add("a", 7)
    assert prepare().code == 0
    before = {path: text for path, text in before.items() if path.endswith(".gz")}
    assert before.items() < contents(prepare.root).items()


def test_changes_of_the_source_are_followed_and_a_case_without_source_stays(prepare):
    prepare.add("p3", 3)
    prepare()
    for role in ("images", "labels"):
        shutil.rmtree(prepare.source / role / "p3")
        next((prepare.source / role / "p0").glob("*-4.dcm")).unlink()  # the last slice
    next((prepare.source / "images" / "p1").glob("*-2.dcm")).unlink()
    shutil.rmtree(prepare.source / "labels" / "p2")
    expected = {"p0": "kept", "p1": "refused", "p2": "refused", "p3": "kept"}
    for _ in range(2):
        assert (prepare().code, prepare.statuses()) == (1, expected)
    manifest = json.loads((prepare.root / "manifest.json").read_text())
    entries = manifest["cases"] + manifest["groups"]
    named = {entry[role] for entry in entries for role in ("image", "label")}
    assert {str(p.relative_to(prepare.root)) for p in prepare.root.rglob("*.nii.gz")} == named
    assert [case["shape"][2] for case in manifest["cases"]] == [4, 5]


def test_checks_that_changed_and_new_duplicates_are_applied_to_earlier_cases(prepare):
    wide = "checks.volume_ml=[0.001,300]"
    prepare(wide)
    before = contents(prepare.root)
    assert "flagged label_volume, 3 cases: The volume is" in prepare().out
    assert all("label_volume" in row["flags"] for row in rows_of(prepare.root))
    assert prepare("checks.refuse=[label_volume]").code == 1
    assert {row["reason"].split(":")[0] for row in rows_of(prepare.root)} == {"label_volume"}
    assert not list((prepare.root / "cases").iterdir())
    assert prepare(wide).code == 0
    assert contents(prepare.root) == before
    prepare.add("a", 2)  # the pixels of p2 replace no earlier case
    assert prepare(wide).code == 0
    manifest = read_manifest(prepare.root)
    copies = {case.name: case.duplicate_of for case in manifest.cases}
    assert copies == {"a": "p2", "p0": None, "p1": None, "p2": None}
    assert "a" not in manifest.labelled_patients()
    assert prepare(wide, "checks.refuse=[duplicate_pixels]").code == 1
    assert [case.name for case in read_manifest(prepare.root).cases] == PATIENTS


@pytest.mark.parametrize(("error", "line"), [
    (OSError(errno.ENOSPC, "No space left"), "cannot be written (No space left)"),
    (IndexError("DOE"), "IndexError in case p1: a bug in pancseg"), (MemoryError("DOE"), ""),
])  # fmt: skip
def test_lack_of_memory_costs_a_case_and_other_errors_end_the_run(
    prepare, monkeypatch, error, line
):
    def broken(job, *args, write=conversion.write_case):
        if job.name == "p1":
            raise error
        return write(job, *args)

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "write_case", broken)
        ended = prepare()
    log = "".join(path.read_text() for path in prepare.root.glob("prepare.log"))
    assert ended.code == 1 and line in ended.err and "DOE" not in ended.err + log
    assert ("in broken" in log) == isinstance(error, IndexError)
    if isinstance(error, MemoryError):
        assert prepare.statuses() == {"p0": "kept", "p1": "refused", "p2": "kept"}
    else:
        assert not (prepare.root / "intake.csv").exists()
        assert prepare().code == 0


CRASH = """
import os
from pancseg.dicom import series
read = series.read_series
series.read_series = lambda files, repair: (
    os.abort() if "p1" in files[0].parts else read(files, repair)
)
"""


def test_a_scan_that_ends_its_process_is_a_row(prepare, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(CRASH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert prepare("processes=2").code == 1
    assert prepare.statuses() == {"p0": "kept", "p1": "refused", "p2": "kept"}
    assert rows_of(prepare.root)[1]["reason"].startswith("reader_died: ")


@pytest.mark.parametrize(("word", "sentence"), [
    ("checks.refuse=[label_emty]", "names label_emty; flags are hu_not_applied, "),
    ("checks.volume_ml=[300,15]", "checks.volume_ml=[300, 15]: expected two, the lower first"),
    ("source.labels=''", "source.labels is not given; give a folder, or source.labels=null"),
    ("data.root=in", "give another data.root"), ("data.root=mine", "mine"),  # files of others
])  # fmt: skip
def test_a_wrong_setting_is_reported_in_one_line(prepare, word, sentence):
    Path("mine/cases").mkdir(parents=True)
    Path("mine/cases/mine.png").touch()
    ended = prepare(word)
    assert (ended.code, len(ended.err.strip().splitlines())) == (2, 1)
    assert sentence in ended.err
    assert [path.name for path in Path("mine").rglob("*.*")] == ["mine.png"]


def test_shards_leave_the_folder_that_one_run_leaves(prepare, tmp_path, command):
    prepare.source = prepare.source.rename(tmp_path / "Mueller")
    next((prepare.source / "images" / "p1").glob("*-2.dcm")).unlink()
    ended = [prepare(f"shard={n}/3") for n in range(3)]
    assert sorted(one.code for one in ended) == [0, 0, 1]  # one shard has the refused case
    assert sum(int(one.out.split(": ")[1].split()[0]) for one in ended) == 3
    for path in prepare.root.rglob("*"):  # no path of the input
        assert path.is_dir() or b"Mueller" not in path.read_bytes()
    ended = command("train", f"data.root={prepare.root}", "data.depth=2", "data.tail=shift")
    assert "is not complete; run the same pancseg.prepare again" in ended.err
    times = times_of(prepare.root)
    (prepare.root / "groups" / ".partial-0-x_image.nii.gz").write_bytes(b"half")
    assert prepare().code == prepare(root=tmp_path / "alone").code == 1
    assert times_of(prepare.root) == times
    assert contents(prepare.root) == contents(tmp_path / "alone")


def correct(label, values):
    """Store another label by hand, as floats, as some editors do."""
    nib.save(nib.Nifti1Image(values.astype(np.float32), nib.load(label).affine), label)


def test_a_corrected_label_is_kept_when_its_source_changes(prepare):
    prepare()
    label, values = prepare.root / "cases" / "p1_label.nii.gz", MASK.T.copy()
    values[..., :2] = 0
    correct(label, values)
    stored, slice_ = label.read_bytes(), next((prepare.source / "images" / "p1").iterdir())
    os.utime(slice_, (1, 1))
    assert "the correction is kept" in prepare().out
    ended = prepare()
    assert (ended.code, "taken over" in ended.out) == (0, False)
    case = read_manifest(prepare.root).cases[1]
    assert (case.label_voxels, case.label_corrected) == (values.sum(), True)
    assert int(rows_of(prepare.root)[1]["label_voxels"]) == values.sum()
    assert [group.first_slice for group in prepare.groups()] == [2, 3]  # the first is empty now
    for group in prepare.groups():
        cut = nib.load(prepare.root / str(group.label)).dataobj
        np.testing.assert_array_equal(cut, values[..., group.first_slice : group.first_slice + 2])
    assert label.read_bytes() == stored


@pytest.mark.parametrize("values", [MASK.T * 7, MASK.T[..., :-1]])
def test_a_corrected_label_of_another_grid_or_content_is_refused(prepare, values):
    prepare()
    label, before = prepare.root / "cases" / "p1_label.nii.gz", read_manifest(prepare.root)
    correct(label, values)
    ended = prepare()
    assert ended.code == 1 and f"{label}: was changed; " in ended.out
    assert read_manifest(prepare.root).cases == before.cases


def test_several_structures_are_stored_as_codes_and_named(prepare):
    codes = MASK * np.array([1, 1, 2, 2, 2])[:, None, None]
    prepare.add("p1", 1, codes)
    more = ["structures=pancreas_tumour", "structures.tumour.volume_ml=[0,0.001]"]
    assert prepare(*more).code == 0
    manifest, row = read_manifest(prepare.root), rows_of(prepare.root)[1]
    counts = [case.structure_voxels for case in manifest.cases]
    assert counts == [{"pancreas": 6, "tumour": tumour} for tumour in (0, 4, 0)]
    stored = nib.load(prepare.root / str(manifest.cases[1].label)).dataobj
    np.testing.assert_array_equal(stored, codes.T)
    assert row["structures_ml"] == "pancreas=0.006 tumour=0.004"
    assert "label_volume:tumour" in row["flags"].split()
