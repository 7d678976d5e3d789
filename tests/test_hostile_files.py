"""Hostile, damaged and changed files: nothing in them runs, fills memory or is overlooked."""

import csv
import gzip
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from pancseg.data.manifest import read_manifest
from pancseg.data.splits import make_split
from pancseg.errors import REASON_LENGTH, PancsegError, Refused
from pancseg.models.pretrained import load_tensors
from pancseg.reports.run_folder import open_run
from tests.test_hostile_checkpoints import within
from tests.tiny_dicom import put, write_series
from tests.tiny_labels import (
    LIVER,
    Frame,
    at,
    write_segmentation,
)


def prepare(command, images, root, *more, labels="null"):
    """Prepare a folder of scans, under pseudonyms."""
    words = [f"source.images={images}", f"source.labels={labels}", f"data.root={root}"]
    return command("prepare", *words, "data.depth=null", *more)


def rows_of(root):
    """The table, read with the limit that Python has for a field."""
    with (root / "intake.csv").open(newline="") as table:
        return [row | {"code": row["reason"].partition(":")[0]} for row in csv.DictReader(table)]


def one_line(ended, *words):
    [line] = [line for line in ended.err.splitlines() if line.startswith("pancseg.")]
    assert ended.code == 2 and all(word in line for word in words), line
    assert "Traceback" not in ended.err + ended.out


# manifests, sidecars and runs


def test_json_that_is_nested_too_deeply_is_refused_in_one_line(tmp_path):
    split = tmp_path / "split.json"
    readers = {
        tmp_path / "manifest.json": lambda: read_manifest(tmp_path),
        split: lambda: make_split(["p"], "file", path=str(split)),
    }
    for path, read in readers.items():
        path.write_text("[" * 200_000)
        with pytest.raises(PancsegError, match=r"^[^\n]*" + path.name):
            read()


def test_the_configuration_of_a_run_is_read_as_plain_values(best, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    run, config = tmp_path / "run", tmp_path / "run" / ".hydra" / "config.yaml"
    config.with_name("overrides.yaml").write_text("- seed=${oc.env:SECRET_TOKEN}\n")
    assert "hush" not in open_run(run).command()
    config.write_text("a: ${oc.env:SECRET_TOKEN}\n")
    assert open_run(run).composed() == {"a": "${oc.env:SECRET_TOKEN}"}
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
    )
    for content in (bomb, "!!python/object/apply:os.system ['touch hacked']"):
        config.write_text(content)
        with within(500), pytest.raises(PancsegError, match=r"config\.yaml: [^\n]+$"):
            open_run(run).composed()
    assert not Path("hacked").exists()


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_long_texts_stop_no_later_run_and_no_other_folder(tmp_path, command):
    """Values of 200,000 letters, for which implicit VR alone has room, and a SEG of 1,000 names."""
    images, site = tmp_path / "images", tmp_path / "site"
    for keyword in ("PatientID", "SeriesInstanceUID", "Modality"):

        def damage(slices, keyword=keyword):
            put(**{keyword: "A" * 200_000})(slices)
            for dataset in slices:
                dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian

        write_series(images / keyword, patient_id=keyword, damage=damage)
    write_series(images / "of SEG")
    segments = dict.fromkeys(range(1, 1001), ("Liver " * 40, *LIVER[1:]))
    frames = [Frame(np.ones((4, 3), np.uint8), at(1))]
    write_segmentation(images / "seg.dcm", frames, segments=segments)
    assert len(str(Refused("code", "sentence " * 100))) == REASON_LENGTH
    for root, labels in (("a", "null"), ("a", "null"), ("b", images)):
        ended = prepare(command, images, site / root, labels=labels)
        assert ended.code == 1, ended.err
        rows = rows_of(site / root)
        assert max(len(value) for row in rows for value in row.values()) <= REASON_LENGTH
    assert {row["code"] for row in rows} >= {"ambiguous_segment", "not_ct"}


def test_dicom_that_unpacks_to_much_is_refused(tmp_path, command):
    [path] = write_series(tmp_path / "images" / "bad", count=1).iterdir()
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.add_new(0x00091010, "OB", bytes(200_000_000))  # private data of nearly no size
    dataset.save_as(path, enforce_file_format=True)
    write_series(tmp_path / "images" / "good", patient_id="GOOD")
    with within(150):
        ended = prepare(command, tmp_path / "images", tmp_path / "root")
    assert ended.code == 1, ended.err
    codes = {Path(row["path"]).name: row["code"] for row in rows_of(tmp_path / "root")}
    assert codes == {path.name: "too_large", "good": ""}


def test_a_small_nifti_takes_at_most_ten_times_its_voxels(tmp_path, command):
    """uint8 becomes int16 and codes; numpy.isin and argwhere of the label alone take more."""
    shape = (512, 512, 80)
    size = int(np.prod(shape))
    header = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), np.eye(4)).header
    header.set_data_shape(shape)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    for role in ("images", "labels"):
        (tmp_path / role).mkdir()
        with gzip.open(tmp_path / role / "p7.nii.gz", "wb") as file:
            file.write(header.binaryblock + bytes(5) + b"\1" * (size - 1))
    folders = tmp_path / "images", tmp_path / "root"
    with within(10 * size // 2**20):
        ended = prepare(command, *folders, "source=nifti", labels=tmp_path / "labels")
    assert ended.code == 0, ended.err


# files that were damaged, swapped or changed since they were written


@pytest.fixture
def best(trained, tmp_path):
    """The best checkpoint of a copy of a run."""
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("scores"))
    return tmp_path / "run" / "checkpoints" / "best.ckpt"


def test_a_damaged_truncated_or_swapped_checkpoint_is_named(best, command):
    good = best.read_bytes()
    weights = next(iter(load_tensors(best)["state_dict"].values())).numpy().tobytes()
    flipped = bytearray(good)
    flipped[good.index(weights)] ^= 1
    for content in (b"", good[:-400], bytes(flipped)):
        best.write_bytes(content)
        one_line(command("evaluate", f"checkpoint={best}"), str(best))
    best.write_bytes(good)
    path = best.parent.parent / "splits.json"
    split = json.loads(path.read_text())
    path.write_text(json.dumps(split | {"val": split["test"], "test": split["val"]}))
    one_line(command("evaluate", f"checkpoint={best}"), str(best), "it is of another run")


def test_a_changed_scan_is_named(prepared, best, tmp_path, command):
    ignored, sentence = shutil.ignore_patterns("cache"), "is not what pancseg.prepare wrote; it is"
    root = Path(shutil.copytree(prepared, tmp_path / "changed", ignore=ignored))
    for path in root.glob("*/*_image.nii.gz"):
        image = nib.load(path)
        values = np.asanyarray(image.dataobj).copy()
        values[0, 0, 0] += 1
        nib.save(nib.Nifti1Image(values, image.affine), path)
    scores = best.parent.parent / "scores" / "test.json"
    for more, count in ([f"data.root={root}"], 2), ([], 0):
        ended = command("evaluate", f"checkpoint={best}", "subset=test", *more)
        assert (ended.code, ended.out.count(sentence)) == (0, count)
        assert len(json.loads(scores.read_text())["changed_since_prepared"]) == count
