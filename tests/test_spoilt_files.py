"""Files that were corrupted, swapped or edited since they were written are reported in one line."""

import json
import random
import shutil
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from pancseg.errors import PancsegError
from pancseg.inference.checkpoint import open_checkpoint
from pancseg.models.pretrained import load_tensors
from tests.conftest import Ended, smoke

Flips = pytest.mark.parametrize("flips", [20, pytest.param(2000, marks=pytest.mark.storm)])


def one_line(ended: Ended, code: int, *words: str) -> None:
    assert ended.code == code, ended.err
    [line] = [line for line in ended.err.splitlines() if line.startswith("pancseg.")]
    assert all(word in line for word in words), line
    assert "Traceback" not in ended.err + ended.out


@pytest.fixture
def best(trained, tmp_path):
    """The best checkpoint of a copy of a run."""
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("scores"))
    return tmp_path / "run" / "checkpoints" / "best.ckpt"


def content_at(path: Path) -> list[int]:
    """Where the content of an archive lies: neither names nor padding."""
    stored, places = path.read_bytes(), list[int]()
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            header = stored[entry.header_offset :]
            name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
            start = entry.header_offset + 30 + name + extra
            places += range(start, start + entry.file_size)
    return places


def flip(path: Path, good: bytes, at: int, bit: int) -> None:
    path.write_bytes(good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :])


@Flips
def test_a_bit_flipped_in_the_content_of_a_checkpoint_is_detected(best, flips):
    good, chance, places = best.read_bytes(), random.Random(0), content_at(best)
    for _ in range(flips):
        flip(best, good, chance.choice(places), chance.randrange(8))
        with pytest.raises(PancsegError, match=r"is damaged in "):
            load_tensors(best)


@Flips
def test_a_bit_flipped_anywhere_is_detected_or_changes_no_weight(best, flips):
    good, chance, detected = best.read_bytes(), random.Random(1), 0
    stored = load_tensors(best)["state_dict"]
    weights = {name: value for name, value in stored.items() if name.startswith("network.")}
    assert weights
    for _ in range(flips):
        flip(best, good, chance.randrange(len(good)), chance.randrange(8))
        try:
            found = open_checkpoint(best).network.state_dict()
        except PancsegError:
            detected += 1
            continue
        for name, value in weights.items():
            assert torch.equal(found[name.removeprefix("network.")], value)
    assert detected > flips / 2


def test_a_truncated_checkpoint_is_named(best, prepared, tmp_path, command):
    good, run = best.read_bytes(), tmp_path / "other"
    scans = [f"input={prepared / 'cases'}", f"output={tmp_path / 'out'}"]
    for share, words in (
        (0.0, ["evaluate", f"checkpoint={best}"]),
        (0.99, ["predict", f"checkpoint={best}", *scans]),
        (0.3, ["train", *smoke(prepared, run, f"init_from={best}")]),
        (0.99, ["train", *smoke(prepared, run, f"ckpt_path={best}")]),
    ):
        best.write_bytes(good[: int(share * len(good))])
        one_line(command(*words), 2, str(best))


def test_a_checkpoint_of_another_run_is_detected(best, command):
    path = best.parent.parent / "splits.json"
    split = json.loads(path.read_text())
    split["val"], split["test"] = split["test"], split["val"]
    path.write_text(json.dumps(split))
    one_line(command("evaluate", f"checkpoint={best}"), 2, str(best), "it is of another run")


@pytest.mark.parametrize("name", ["prepare", "train", "evaluate"])
def test_an_edited_manifest_is_named(name, prepared, trained, dicom, tmp_path, command):
    manifest = json.loads((prepared / "manifest.json").read_text())
    manifest["cases"][1]["name"] = "../../escaped"
    root = tmp_path / "site" / "edited"
    root.mkdir(parents=True)
    (root / "manifest.json").write_text(json.dumps(manifest))
    words = {
        "prepare": [f"source.images={dicom / 'images'}", "source.labels=null", f"data.root={root}"],
        "train": smoke(root, tmp_path / "run"),
        "evaluate": [f"checkpoint={trained / 'checkpoints' / 'best.ckpt'}", f"data.root={root}"],
    }
    one_line(command(name, *words[name]), 2, "cases[1].name is '../../escaped'", "a copy back")
    assert not list(tmp_path.rglob("escaped*"))


def damaged_copy(prepared: Path, root: Path, *, is_cut: bool) -> Path:
    """A prepared folder in whose images one voxel differs by 1 HU, or whose ends are missing."""
    shutil.copytree(prepared, root, ignore=shutil.ignore_patterns("cache"))
    for path in (*root.glob("cases/*_image.nii.gz"), *root.glob("groups/*_image.nii.gz")):
        if is_cut:
            path.write_bytes(path.read_bytes()[:-400])
        else:
            image = nib.load(path)
            values = np.asanyarray(image.dataobj).copy()
            values[0, 0, 0] += 1
            nib.save(nib.Nifti1Image(values, image.affine), path)
    return root


def test_a_changed_scan_is_named(prepared, best, tmp_path, command):
    root = damaged_copy(prepared, tmp_path / "changed", is_cut=False)
    sentence = "is not what pancseg.prepare wrote; it is used as it is"
    ended = command("train", *smoke(root, tmp_path / "other", "trainer.max_epochs=1"))
    assert (ended.code, ended.out.count(sentence)) == (0, 8)  # groups of train and val
    scores = best.parent.parent / "scores" / "test.json"
    for more, count in ([f"data.root={root}"], 2), ([], 0):
        ended = command("evaluate", f"checkpoint={best}", "subset=test", *more)
        assert (ended.code, ended.out.count(sentence)) == (0, count)
        assert len(json.loads(scores.read_text())["changed_since_prepared"]) == count


def test_a_truncated_scan_is_named(prepared, best, tmp_path, command):
    root = damaged_copy(prepared, tmp_path / "damaged", is_cut=True)
    ended = command("train", *smoke(root, tmp_path / "other"))
    one_line(ended, 2, "_image.nii.gz: cannot be preprocessed", "delete it and")
    ended = command("evaluate", f"checkpoint={best}", f"data.root={root}", "subset=test")
    one_line(ended, 1, "2 of 2 cases failed")


def test_a_scan_with_nan_is_refused_alone(best, dicom, tmp_path, command):
    (tmp_path / "scans").mkdir()
    images = sorted((dicom / "truth").glob("*_image.nii.gz"))[:2]
    shutil.copy(images[0], tmp_path / "scans" / "good.nii.gz")
    image = nib.load(images[1])
    values = np.asarray(image.dataobj, np.float32)
    values[3, 4, 5] = np.nan
    nib.save(nib.Nifti1Image(values, image.affine), tmp_path / "scans" / "spoilt.nii.gz")
    paths = [f"input={tmp_path / 'scans'}", f"output={tmp_path / 'out'}"]
    ended = command("predict", f"checkpoint={best}", *paths)
    one_line(ended, 1, "1 scans were refused or failed")
    masks = sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz"))
    assert masks == ["good_pancreas.nii.gz"]
