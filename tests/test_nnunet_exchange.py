"""``export format=nnunet``: a raw data set of nnU-Net with the patients of pancseg's split."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pancseg.data.manifest import read_manifest
from pancseg.files import read_json, write_json, write_nifti
from pancseg.inference.evaluation import find_masks
from pancseg.structures import IGNORED
from tests.conftest import Command
from tests.tiny_root import write_root

OUT = Path("nnUNet_raw/Dataset501_Pancreas")
EXPORT = ("export", "format=nnunet", "data.root=root", f"output={OUT}")
SPLIT = ("split=file", "split.path=split.json")


@pytest.fixture(autouse=True)
def root(tmp_path: Path) -> Path:
    """Patients a to f: f is in no subset, a has a second case, and a duplicate."""
    root = tmp_path / "root"
    manifest = write_root(root, groups=False)
    first = manifest.cases[0]
    manifest.cases += [replace(first, name="a2"), replace(first, name="a3", duplicate_of="a")]
    manifest.write(root)
    subsets = {"train": ["a", "b"], "val": ["c"], "test": ["d", "e"]}
    write_json(tmp_path / "split.json", subsets)
    return root


def codes(path: Path) -> np.ndarray:
    return np.asanyarray(nib.Nifti1Image.from_filename(path).dataobj)


def test_cases_of_a_patient_stay_together_and_keep_names_and_voxels(
    root: Path, command: Command
) -> None:
    assert command(*EXPORT, *SPLIT).code == 0
    names = {path.name: sorted(file.name for file in path.iterdir()) for path in OUT.glob("*sT?")}
    assert names == {
        "imagesTr": [f"{case}_0000.nii.gz" for case in ("a2", "a", "b", "c")],
        "labelsTr": [f"{case}.nii.gz" for case in ("a", "a2", "b", "c")],
        "imagesTs": ["d_0000.nii.gz", "e_0000.nii.gz"],
        "labelsTs": ["d.nii.gz", "e.nii.gz"],
    }
    assert read_json(OUT / "splits_final.json", "", bool) == [
        {"train": ["a", "a2", "b"], "val": ["c"]}
    ]
    assert read_json(OUT / "dataset.json", "") == {
        "channel_names": {"0": "CT"},
        "orientation": "LPS",
        "labels": {"background": 0, "pancreas": [1, 2], "tumour": 2},
        "regions_class_order": [1, 2],
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    for written, own in (("imagesTs/d_0000", "d_image"), ("labelsTr/a2", "a_label")):
        path = root / "cases" / f"{own}.nii.gz"
        assert (OUT / f"{written}.nii.gz").read_bytes() == path.read_bytes()
    manifest = read_manifest(root)
    masks, unknown = find_masks(OUT / "labelsTs", manifest.cases, manifest.structures, str)
    assert set(masks) == {"d", "e"} and unknown == []


def test_voxels_that_nobody_labelled_get_the_ignore_label_of_nnunet(
    root: Path, command: Command
) -> None:
    manifest, path = read_manifest(root), root / "cases" / "b_label.nii.gz"
    label = nib.Nifti1Image.from_filename(path)
    values = codes(path).copy()
    values[:3] = IGNORED
    write_nifti(path, nib.Nifti1Image(values, label.affine))
    manifest.structures = (replace(manifest.structures[0], values=(1,)),)
    manifest.cases[3] = replace(manifest.cases[3], ignored_voxels=3 * 24 * 20)
    assert manifest.cases[3].name == "b"
    manifest.write(root)
    assert command(*EXPORT, *SPLIT).code == 0
    description = read_json(OUT / "dataset.json", "")
    assert description["labels"] == {"background": 0, "pancreas": 1, "ignore": 2}
    assert "regions_class_order" not in description
    written = codes(OUT / "labelsTr" / "b.nii.gz")
    assert (written[:3] == 2).all() and (written[3:] == values[3:]).all()


def test_the_split_is_that_of_train_and_all_patients_are_everywhere_with_same(
    command: Command,
) -> None:
    assert command(*EXPORT, "split=same").code == 0
    everybody = ["a", "a2", "b", "c", "d", "e", "f"]
    (fold,) = read_json(OUT / "splits_final.json", "", bool)
    assert fold == {"train": everybody, "val": everybody}
    assert read_json(OUT / "dataset.json", "")["numTraining"] == len(everybody)
    assert len(list(OUT.glob("images*/*"))) == 2 * len(everybody)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.root=null"], "data.root is not given; give a path"),
        (["output=pancreas"], "output=pancreas: expected a name such as Dataset501_Pancreas"),
        (["output=Dataset777_Full"], "output=Dataset777_Full: exists already"),
        (["checkpoint=a.ckpt"], "checkpoint: format=nnunet takes none; it needs data.root"),
        (["format=bundle", "checkpoint=a"], "data.root: format=bundle takes none"),
        (["data.root=other"], "other holds no manifest.json; prepare it first"),
        (["data.root=begun"], "begun is not complete; run the same pancseg.prepare again"),
        (["data.root=lost"], "c_label.nii.gz: no such file; run the same pancseg.prepare again"),
        (["split.val=7"], "6 labelled patients, this split needs at least 9"),
    ],
)
def test_impossible_options_are_refused_in_one_line(
    words: list[str], message: str, tmp_path: Path, command: Command
) -> None:
    Path("Dataset777_Full/imagesTr").mkdir(parents=True)
    for name in ("begun", "lost"):
        write_root(tmp_path / name, groups=False).write(tmp_path / name)
    manifest = read_manifest(tmp_path / "begun")
    manifest.complete = False
    manifest.write(tmp_path / "begun")
    (tmp_path / "lost" / "cases" / "c_label.nii.gz").unlink()
    ended = command(*EXPORT, *words)
    assert (ended.code, ended.err.count("\n")) == (2, 1) and message in ended.err
    assert not OUT.parent.exists() and not Path("pancreas").exists()


def test_an_export_that_fails_on_the_way_leaves_nothing(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pancseg.exporting.nnunet.write_label", full)
    ended = command(*EXPORT, *SPLIT)
    assert ended.code == 1 and "No space left on device; make room" in ended.err
    assert list(OUT.parent.iterdir()) == []
