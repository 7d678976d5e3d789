"""Files that were corrupted, swapped or edited since they were written are reported in one line."""

import json
import os
import random
import shutil
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from pancseg.data.manifest import read_manifest
from pancseg.errors import PancsegError
from pancseg.inference.checkpoint import open_checkpoint
from pancseg.models.pretrained import load_tensors
from tests.conftest import Command, Ended, smoke


def one_line(ended: Ended, code: int, *words: str) -> None:
    assert ended.code == code, ended.err
    told = [line for line in ended.err.splitlines() if line.startswith("pancseg.")]
    assert len(told) == 1, ended.err
    assert all(word in told[0] for word in words), told
    assert "Traceback" not in ended.err + ended.out


@pytest.fixture
def best(trained: Path, tmp_path: Path) -> Path:
    """The best checkpoint of a copy of a run."""
    shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("scores"))
    return tmp_path / "run" / "checkpoints" / "best.ckpt"


def content_at(path: Path) -> list[int]:
    """Where the content of an archive lies: neither names nor padding."""
    places: list[int] = []
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            archive.fp.seek(entry.header_offset)  # type: ignore[union-attr]
            header = archive.fp.read(30)  # type: ignore[union-attr]
            start = (
                entry.header_offset
                + 30
                + header[26]
                + 256 * header[27]
                + header[28]
                + 256 * header[29]
            )
            places += range(start, start + entry.file_size)
    return places


@pytest.mark.row("a bit of what a checkpoint holds flipped", "noticed each time, code 2")
@pytest.mark.parametrize(
    "flips", [pytest.param(20, id="short"), pytest.param(2000, marks=pytest.mark.storm, id="long")]
)
def test_a_bit_flipped_in_the_content_of_a_checkpoint_is_detected(best: Path, flips: int) -> None:
    good, chance, places = best.read_bytes(), random.Random(0), content_at(best)
    for _ in range(flips):
        at = chance.choice(places)
        best.write_bytes(good[:at] + bytes([good[at] ^ 1 << chance.randrange(8)]) + good[at + 1 :])
        with pytest.raises(PancsegError, match=r"is damaged in "):
            load_tensors(best)


@pytest.mark.row("a bit flipped anywhere in a checkpoint", "noticed, or no weight was another")
@pytest.mark.parametrize(
    "flips", [pytest.param(20, id="short"), pytest.param(1000, marks=pytest.mark.storm, id="long")]
)
def test_a_bit_flipped_anywhere_in_a_checkpoint_is_detected_or_changes_no_weight(
    best: Path, flips: int
) -> None:
    good, chance = best.read_bytes(), random.Random(1)
    stored, told = load_tensors(best)["state_dict"], []
    weights = {name: value for name, value in stored.items() if name.startswith("network.")}
    assert weights
    for _ in range(flips):
        at = chance.randrange(len(good))
        best.write_bytes(good[:at] + bytes([good[at] ^ 1 << chance.randrange(8)]) + good[at + 1 :])
        try:
            found = open_checkpoint(best).network.state_dict()
        except PancsegError as error:
            told.append(str(error))
            continue
        assert all(
            torch.equal(found[name.removeprefix("network.")], value)
            for name, value in weights.items()
        )
    assert all(str(best) in one and "\n" not in one for one in told)
    assert len(told) > flips / 2


@pytest.mark.row("a checkpoint cut short", "one line, code 2")
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_every_command_reports_a_truncated_checkpoint_in_one_line(
    best: Path, prepared: Path, tmp_path: Path, command: Command, share: float
) -> None:
    good = best.read_bytes()
    best.write_bytes(good[: int(share * len(good))])
    out, run = tmp_path / "out", tmp_path / "other"
    for words in (
        ["evaluate", f"checkpoint={best}"],
        ["predict", f"checkpoint={best}", f"input={prepared / 'cases'}", f"output={out}"],
        ["train", *smoke(prepared, run, f"init_from={best}")],
        ["train", *smoke(prepared, run, f"ckpt_path={best}")],
    ):
        one_line(command(*words), 2, str(best))


def test_evaluate_names_the_file_with_a_flipped_bit_and_what_to_do(
    best: Path, command: Command
) -> None:
    good, at = best.read_bytes(), content_at(best)[-1]
    best.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    one_line(command("evaluate", f"checkpoint={best}"), 2, str(best), "use another checkpoint")


@pytest.mark.row("a checkpoint swapped for another run's", "one line, code 2")
def test_a_checkpoint_of_another_run_is_detected_by_its_patients(
    best: Path, command: Command
) -> None:
    path = best.parent.parent / "splits.json"
    dealt = json.loads(path.read_text())
    dealt["val"], dealt["test"] = dealt["test"], dealt["val"]
    path.write_text(json.dumps(dealt))
    one_line(command("evaluate", f"checkpoint={best}"), 2, str(best), "it is of another run")


@pytest.mark.row("`manifest.json` edited by hand", "entry and field named, code 2")
def test_train_and_evaluate_name_an_edited_field_of_the_manifest_in_one_line(
    prepared: Path, trained: Path, tmp_path: Path, command: Command
) -> None:
    manifest = json.loads((prepared / "manifest.json").read_text())
    manifest["cases"][1]["image"] = "../x"
    root = tmp_path / "edited"
    root.mkdir()
    (root / "manifest.json").write_text(json.dumps(manifest))
    best = trained / "checkpoints" / "best.ckpt"
    words = ("manifest.json", "cases[1].image", "put a copy back")
    one_line(command("train", *smoke(root, tmp_path / "run")), 2, *words)
    one_line(command("evaluate", f"checkpoint={best}", f"data.root={root}"), 2, *words)


@pytest.mark.row("a NIfTI changed after preparation", "named by `train` and in the scores, code 0")
def test_a_scan_changed_since_preparation_is_named_by_train_and_evaluate(
    prepared: Path, best: Path, tmp_path: Path, command: Command
) -> None:
    root = tmp_path / "changed"
    shutil.copytree(prepared, root, ignore=shutil.ignore_patterns("cache"))
    for path in (*root.glob("cases/*_image.nii.gz"), *root.glob("groups/*_image.nii.gz")):
        image = nib.load(path)
        values = np.asanyarray(image.dataobj).copy()
        values[0, 0, 0] += 1  # one voxel by one HU
        nib.save(nib.Nifti1Image(values, image.affine), path)
    told = "is not what pancseg.prepare wrote; it is used as it is"
    ended = command("train", *smoke(root, tmp_path / "other", "trainer.max_epochs=1"))
    assert (ended.code, ended.out.count(told)) == (0, 8)  # groups of train and val
    ended = command("evaluate", f"checkpoint={best}", f"data.root={root}", "subset=test")
    assert (ended.code, ended.out.count(told)) == (0, 2)
    figures = json.loads((best.parent.parent / "scores" / "test.json").read_text())
    assert len(figures["changed_since_prepared"]) == 2
    ended = command("evaluate", f"checkpoint={best}", "subset=test")
    assert told not in ended.out
    figures = json.loads((best.parent.parent / "scores" / "test.json").read_text())
    assert figures["changed_since_prepared"] == []


@pytest.mark.row("a NIfTI that cannot be unpacked", "named, code 2 of `train`, 1 of `evaluate`")
def test_a_truncated_scan_is_named_with_what_to_do(
    prepared: Path, best: Path, tmp_path: Path, command: Command
) -> None:
    root = tmp_path / "damaged"
    shutil.copytree(prepared, root, ignore=shutil.ignore_patterns("cache"))
    for path in (*root.glob("cases/*_image.nii.gz"), *root.glob("groups/*_image.nii.gz")):
        path.write_bytes(path.read_bytes()[:-400])
    ended = command("train", *smoke(root, tmp_path / "other"))
    one_line(ended, 2, "_image.nii.gz: cannot be preprocessed", "delete it and")
    ended = command("evaluate", f"checkpoint={best}", f"data.root={root}", "subset=test")
    one_line(ended, 1, "2 of 2 cases failed")


def test_a_correction_with_an_old_date_is_trained_on(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    """A clock that was set back dates the correction before the volumes made of the old file."""
    root = tmp_path / "corrected"
    shutil.copytree(prepared, root, ignore=shutil.ignore_patterns("cache"))
    before, after = (smoke(root, tmp_path / run, "trainer.max_epochs=1") for run in "ab")
    assert command("train", *before).code == 0
    for path in root.glob("groups/*_label.nii.gz"):
        label = nib.load(path)
        nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), path)
        os.utime(path, (1e9, 1e9))
    assert command("train", *after).out.count("is not what pancseg.prepare wrote") == 8
    volumes = list((root / "cache").rglob("*_label.npy"))
    assert len(volumes) == 8
    assert not any(np.load(path).any() for path in volumes)


@pytest.mark.row("NaN in an image", "that scan refused, the rest done, code 1")
def test_a_scan_with_nan_is_refused_and_the_others_are_done(
    trained: Path, dicom: Path, tmp_path: Path, command: Command
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    images = sorted((dicom / "truth").glob("*_image.nii.gz"))[:2]
    shutil.copy(images[0], scans / "good.nii.gz")
    image = nib.load(images[1])
    values = np.asarray(image.dataobj, np.float32)
    values[3, 4, 5] = np.nan
    nib.save(nib.Nifti1Image(values, image.affine), scans / "spoilt.nii.gz")
    best = trained / "checkpoints" / "best.ckpt"
    out = tmp_path / "out"
    ended = command("predict", f"checkpoint={best}", f"input={scans}", f"output={out}")
    one_line(ended, 1, "1 scans were refused or failed")
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["good_pancreas.nii.gz"]
    root = tmp_path / "root"
    words = ["source=nifti", f"source.images={scans}", "source.labels=null", "privacy=none"]
    ended = command("prepare", *words, f"data.root={root}", "data.depth=16", "data.tail=shift")
    one_line(ended, 1, "1 refused, the rest is done")
    table = (root / "intake.csv").read_text()
    row = next(line for line in table.splitlines() if "spoilt" in line)
    assert "refused" in row
    assert len(read_manifest(root).cases) == 1
