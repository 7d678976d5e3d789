"""Hostile, damaged and edited files: nothing in them runs, leaks, fills memory or is overlooked."""

import csv
import gzip
import json
import os
import pickle
import random
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless

from pancseg.data.cache import VolumeCache, arrays_of
from pancseg.data.manifest import read_manifest
from pancseg.data.splits import make_split
from pancseg.data.transforms import Preprocessing
from pancseg.dicom.labels import read_rtstruct
from pancseg.errors import REASON_LENGTH, PancsegError, Refused
from pancseg.inference.calibration import calibration_path, read_calibration
from pancseg.inference.checkpoint import open_checkpoint
from pancseg.inference.postprocessing import postprocess_path, read_postprocess
from pancseg.models.pretrained import load_tensors
from pancseg.reports.run_folder import open_run
from tests.conftest import smoke
from tests.test_hostile_checkpoints import mark, within
from tests.tiny_dicom import put, write_series
from tests.tiny_labels import (
    LIVER,
    Frame,
    at,
    scan_of,
    structures,
    write_contours,
    write_segmentation,
)
from tests.tiny_root import write_root

DEEP = "[" * 200_000


def prepare(command, images, root, *more):
    """Prepare a folder of images, by default without labels, under pseudonyms."""
    words = [f"source.images={images}", f"data.root={root}", "data.depth=null", *more]
    is_labelled = any(word.startswith("source.labels") for word in more)
    return command("prepare", *words, *([] if is_labelled else ["source.labels=null"]))


def rows_of(root):
    """The table, read with the limit that Python has for a field."""
    with (root / "intake.csv").open(newline="") as table:
        return [row | {"code": row["reason"].partition(":")[0]} for row in csv.DictReader(table)]


def one_line(ended, code, *words):
    assert ended.code == code, ended.err
    [line] = [line for line in ended.err.splitlines() if line.startswith("pancseg.")]
    assert all(word in line for word in words), line
    assert "Traceback" not in ended.err + ended.out


# records, sidecars, caches and runs


@pytest.mark.parametrize("damage", ["outside", "deep"])
def test_an_edited_record_of_a_shard_is_not_used(damage, tmp_path, command):
    write_series(tmp_path / "scans")
    victim, site = tmp_path / "victim.nii.gz", tmp_path / "site"
    victim.write_bytes(b"untouched")
    plain = prepare(command, tmp_path / "scans", site / "plain")
    assert plain.code == prepare(command, tmp_path / "scans", site / "root", "shard=0/1").code == 0
    [record] = (site / "root" / ".records").glob("*.json")
    value = json.loads(record.read_text())
    value["case"]["image"] = "../../victim.nii.gz"
    record.write_text(json.dumps(value) if damage == "outside" else DEEP)
    assert prepare(command, tmp_path / "scans", site / "root").code == 0
    assert victim.read_bytes() == b"untouched"
    assert read_manifest(site / "root").cases == read_manifest(site / "plain").cases


def test_json_that_is_too_deep_or_a_pickle_is_refused_wherever_json_is_read(tmp_path):
    checkpoint, split = tmp_path / "best.ckpt", tmp_path / "split.json"
    checkpoint.touch()
    readers = {
        tmp_path / "manifest.json": lambda: read_manifest(tmp_path),
        postprocess_path(checkpoint): lambda: read_postprocess(checkpoint),
        calibration_path(checkpoint): lambda: read_calibration(checkpoint),
        split: lambda: make_split(["p"], "file", path=str(split)),
    }
    for path, read in readers.items():
        for content in (DEEP.encode(), pickle.dumps(mark(tmp_path / "hacked")), b"\xff", b"3"):
            path.write_bytes(content)
            with pytest.raises(PancsegError, match=r"^[^\n]*" + path.name):
                read()
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("form", ["pickle", "objects"])
def test_a_cached_volume_that_is_not_an_array_is_not_opened(form, tmp_path):
    cases = write_root(tmp_path / "root", "a").cases
    preprocessing = Preprocessing("RAS", (8.0, 8.0, 8.0), (-200.0, 200.0), (16, 16, 16))
    volumes = VolumeCache(tmp_path / "root", tmp_path / ("f" * 16), preprocessing, cases)
    volumes.make_missing()
    assert volumes.missing() == []
    for name in arrays_of(cases[0]).values():
        path = volumes.folder / name
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        if form == "pickle":
            path.write_bytes(pickle.dumps(mark(tmp_path / "hacked")))
        else:
            np.save(path, np.array([mark(tmp_path / "hacked")], dtype=object), allow_pickle=True)
        os.utime(path, ns=times)
    assert volumes.missing() == cases
    assert not (tmp_path / "hacked").exists()


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
    for content in (bomb, "!!python/object/apply:os.system ['touch hacked']", "[" * 500, "- 1"):
        config.write_text(content)
        with within(500), pytest.raises(PancsegError, match=r"config\.yaml: [^\n]+$"):
            open_run(run).composed()
    assert not Path("hacked").exists()


# scans


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_long_texts_stop_no_later_run_and_no_other_folder(tmp_path, command):
    """Values of 200,000 letters, for which implicit VR alone has room, and a SEG of 1,000 names."""
    images, site = tmp_path / "images", tmp_path / "site"
    for keyword in ("PatientID", "SeriesInstanceUID", "Manufacturer", "Modality", "ImageType"):

        def damage(slices, keyword=keyword):
            put(**{keyword: "A" * 200_000})(slices)
            for dataset in slices:
                dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian

        write_series(images / keyword, patient_id=keyword, damage=damage)
    write_series(images / "SEG", patient_id="SEG")
    segments = dict.fromkeys(range(1, 1001), ("Liver " * 40, *LIVER[1:]))
    seg, belongs = images / "seg.dcm", put(PatientID="SEG")
    frames = [Frame(np.ones((4, 3), np.uint8), at(1))]
    write_segmentation(seg, frames, segments=segments, damage=lambda dataset: belongs([dataset]))
    for root in ("a", "a", "b"):
        ended = prepare(command, images, site / root, f"source.labels={images}")
        assert ended.code == 1, ended.err
        rows = rows_of(site / root)
        assert max(len(value) for row in rows for value in row.values()) <= REASON_LENGTH
        write_series(images / f"later {root}", patient_id="LATER", first=(0, 0, 900))
    assert {row["code"] for row in rows_of(site / "a")} >= {"ambiguous_segment", "not_ct"}
    assert prepare(command, images, site / "images").code == 1
    assert len([row for row in rows_of(site / "images") if row["status"] == "kept"]) >= 5


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes")
@pytest.mark.parametrize(
    ("source", "name", "pattern"),
    [("dicom", "good/pipe.dcm", ""), ("dicom", "pipe.dcm", "*"), ("nifti", "pipe.nii.gz", "*.gz")],
)
def test_a_pipe_is_a_row_and_is_never_opened(tmp_path, command, source, name, pattern):
    images = tmp_path / "images"
    write_series(images / "good")
    nib.save(nib.Nifti1Image(np.eye(4)[None], np.eye(4)), images / "good.nii.gz")
    os.mkfifo(images / name)
    # opening it to read and write does not wait; if it is opened to read, that does not wait, too
    with (images / name).open("r+b", buffering=0) as pipe:
        pipe.write(b"read")
        ended = prepare(command, images / pattern, tmp_path / "root", f"source={source}")
        assert pipe.read(4) == b"read"
    assert ended.code == 1, ended.err
    [row] = [row for row in rows_of(tmp_path / "root") if row["path"].endswith(name)]
    assert (row["status"], row["code"]) == ("refused", "not_a_file")


def claim_20_000_pixels(dataset):
    """Compress, and change the size of image and tile in the codestream."""
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    stream = bytearray(next(generate_frames(dataset.PixelData, number_of_frames=1)))
    for start in (8, 12, 24, 28):
        stream[start : start + 4] = (20_000).to_bytes(4)
    dataset.PixelData = encapsulate([bytes(stream)])


def add_200_mb(dataset):
    """Add private data that pack to nearly nothing."""
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.add_new(0x00091010, "OB", bytes(200_000_000))


@pytest.mark.parametrize(
    ("change", "code", "count"),
    [(claim_20_000_pixels, "undecodable", 3), (add_200_mb, "too_large", 1)],
)
def test_dicom_that_claims_much_is_refused(tmp_path, command, change, code, count):
    for path in write_series(tmp_path / "images" / "bad", size=(32, 32), count=count).iterdir():
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path, enforce_file_format=True)
    write_series(tmp_path / "images" / "good", patient_id="GOOD")
    with within(150):
        ended = prepare(command, tmp_path / "images", tmp_path / "root")
    assert ended.code == 1, ended.err
    codes = {Path(row["path"]).name: row["code"] for row in rows_of(tmp_path / "root")}
    assert set(codes.values()) == {code, ""} and codes["good"] == ""


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
    source = ["source=nifti", f"source.labels={tmp_path / 'labels'}"]
    with within(10 * size // 2**20):
        ended = prepare(command, tmp_path / "images", tmp_path / "root", *source)
    assert ended.code == 0, ended.err


def test_the_work_of_reading_an_rtstruct_grows_linearly(tmp_path):
    stack, file = scan_of(tmp_path / "scan").stack, tmp_path / "rtstruct.dcm"

    def calls(count):
        """Function calls that reading an RTSTRUCT of so many ROIs takes."""
        names, counted = [f"R{n}" for n in range(count)], []
        contour = [at(1, *corner) for corner in ((0, 0), (0, 3), (2, 3), (2, 0))]
        codes = dict.fromkeys(names, ("15776009", "Pancreas"))
        write_contours(file, {name: [contour] for name in names}, codes=codes)
        sys.setprofile(lambda *_: counted.append(1))
        try:
            with pytest.raises(Refused, match="no_such_roi"):
                read_rtstruct(file, stack, structures(["spleen"]))
            read_rtstruct(file, stack, structures(["R7"]))
        finally:
            sys.setprofile(None)
        return len(counted)

    assert calls(200) < 2.2 * calls(100)


# files that were damaged, swapped or edited since they were written


@pytest.fixture
def best(trained, tmp_path):
    """The best checkpoint of a copy of a run."""
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("scores"))
    return tmp_path / "run" / "checkpoints" / "best.ckpt"


@pytest.mark.parametrize("flips", [40, pytest.param(4000, marks=pytest.mark.storm)])
def test_a_flipped_bit_of_a_checkpoint_is_detected_or_changes_no_weight(best, flips):
    good, chance, detected = best.read_bytes(), random.Random(1), 0
    stored = load_tensors(best)["state_dict"]
    weights = {name: value for name, value in stored.items() if name.startswith("network.")}
    for _ in range(flips):
        place, bit = chance.randrange(len(good)), chance.randrange(8)
        best.write_bytes(good[:place] + bytes([good[place] ^ 1 << bit]) + good[place + 1 :])
        try:
            found = open_checkpoint(best).network.state_dict()
        except PancsegError:
            detected += 1
            continue
        for name, value in weights.items():
            assert torch.equal(found[name.removeprefix("network.")], value)
    assert weights and detected > flips / 2


def test_a_truncated_or_swapped_checkpoint_is_named(best, prepared, tmp_path, command):
    good, train = best.read_bytes(), smoke(prepared, tmp_path / "other")
    scans = [f"input={prepared / 'cases'}", f"output={tmp_path / 'out'}"]
    for share, words in (
        (0.0, ["evaluate", f"checkpoint={best}"]),
        (0.99, ["predict", f"checkpoint={best}", *scans]),
        (0.3, ["train", *train, f"init_from={best}"]),
        (0.99, ["train", *train, f"ckpt_path={best}"]),
    ):
        best.write_bytes(good[: int(share * len(good))])
        one_line(command(*words), 2, str(best))
    best.write_bytes(good)
    path = best.parent.parent / "splits.json"
    split = json.loads(path.read_text())
    path.write_text(json.dumps(split | {"val": split["test"], "test": split["val"]}))
    one_line(command("evaluate", f"checkpoint={best}"), 2, str(best), "it is of another run")


def test_a_changed_scan_is_named(prepared, best, tmp_path, command):
    ignored, sentence = shutil.ignore_patterns("cache"), "is not what pancseg.prepare wrote; it is"
    root = Path(shutil.copytree(prepared, tmp_path / "changed", ignore=ignored))
    for path in root.glob("*/*_image.nii.gz"):
        image = nib.load(path)
        values = np.asanyarray(image.dataobj).copy()
        values[0, 0, 0] += 1
        nib.save(nib.Nifti1Image(values, image.affine), path)
    ended = command("train", *smoke(root, tmp_path / "other", "trainer.max_epochs=1"))
    assert (ended.code, ended.out.count(sentence)) == (0, 8)  # groups of train and val
    scores = best.parent.parent / "scores" / "test.json"
    for more, count in ([f"data.root={root}"], 2), ([], 0):
        ended = command("evaluate", f"checkpoint={best}", "subset=test", *more)
        assert (ended.code, ended.out.count(sentence)) == (0, count)
        assert len(json.loads(scores.read_text())["changed_since_prepared"]) == count
    for path in root.glob("cases/*_image.nii.gz"):
        path.write_bytes(path.read_bytes()[:-400])
    ended = command("evaluate", f"checkpoint={best}", "subset=test", f"data.root={root}")
    one_line(ended, 1, "2 of 2 cases failed")
