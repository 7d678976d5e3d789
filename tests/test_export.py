"""``export``: masks of ``predict`` from a bundle or an ONNX file, and data sets of nnU-Net."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle import ConfigParser
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from pancseg.inference.postprocessing import Postprocess, write_postprocess
from pancseg.inference.predictor import load_segmenter
from pancseg.models.pretrained import load_tensors
from pancseg.structures import IGNORED
from tests.conftest import run_command
from tests.tiny_root import write_root

TRAINING = [
    "data=volume", "data.spacing_mm=[8,8,8]", "data.batch_size=2", "data.num_workers=0",
    "hardware.precision=32-true", "sampling.steps_per_epoch=2", "trainer.max_epochs=1",
    "split.val=1", "split.test=2", "data.spatial_size=[32,32,16]", "loss=dice_ce",
    "model=resunet", "model.width=4", "model.full_resolution=false", "model.deep_supervision=1",
    "model.light_decoder=false",
]  # fmt: skip
VERIFY_AND_RUN = """
import sys
from monai.bundle import ConfigWorkflow, run, verify_net_in_out
config, meta = (f"configs/{name}.json" for name in ("inference", "metadata"))
workflow = ConfigWorkflow(config, workflow_type="infer", dataset_dir="configs")
workflow.initialize()
assert workflow.check_properties() == [], workflow.check_properties()
verify_net_in_out("network_def", meta_file=meta, config_file=config, device="cpu")
run(config_file=config, device="cpu", dataset_dir=sys.argv[1], output_dir=sys.argv[2])
"""


@pytest.fixture(scope="module")
def scans(dicom, tmp_path_factory):
    """Two scans; the second has its axes in another order."""
    folder = tmp_path_factory.mktemp("scans")
    one, other = map(nib.load, sorted((dicom / "truth").glob("*_image.nii.gz"))[:2])
    nib.save(one, folder / "one.nii.gz")
    turn = ornt_transform(io_orientation(other.affine), axcodes2ornt("PIR"))
    nib.save(other.as_reoriented(turn), folder / "other.nii")
    return folder


@pytest.fixture(scope="module")
def run(prepared, scans, tmp_path_factory):
    """A run on patches, with a threshold and scores."""
    folder = tmp_path_factory.mktemp("runs") / "resunet"
    paths = [f"data.root={prepared}", f"hydra.run.dir={folder}"]
    assert run_command("train", *TRAINING, *paths) == 0
    postprocess = Postprocess(threshold_in_a_gap(best(folder), scans), largest_component=True)
    write_postprocess(best(folder), postprocess)
    assert run_command("evaluate", f"checkpoint={best(folder)}", "subset=test") == 0
    return folder


def best(run):
    return run / "checkpoints" / "best.ckpt"


def threshold_in_a_gap(checkpoint, scans):
    """A threshold for a few percent of the voxels, as far as possible from any probability."""
    predictor = load_segmenter(checkpoint, device="cpu", precision="32-true")
    results = [predictor.predict(nib.load(path), 0.0).probability for path in scans.iterdir()]
    p = np.sort(np.concatenate([array.ravel() for array in results]).astype(np.float64))
    p = p[int(0.9 * len(p)) : int(0.995 * len(p))]
    widest = int(np.diff(p).argmax())
    return float(p[widest] + p[widest + 1]) / 2


@pytest.fixture(scope="module")
def export(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")

    def write(form):
        words = [f"checkpoint={run}", f"output={folder / form}", f"format={form}"]
        assert (folder / form).is_dir() or run_command("export", *words) == 0
        return folder / form

    return write


def read(path):
    return json.loads(path.read_text())


def assert_same_mask(path, run, scan):
    mask, image = nib.load(path), nib.load(scan)
    predictor = load_segmenter(best(run), device="cpu", precision="32-true")
    found, expected = (np.asarray(m.dataobj) > 0 for m in (mask, predictor(image)))
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-4)
    assert 0 < expected.mean() < 0.2
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.999


def test_monai_verifies_a_bundle_and_makes_the_masks_of_predict_without_pancseg(
    run, export, scans, tmp_path
):
    (tmp_path / "pancseg.py").write_text("raise ImportError('pancseg is missing')")
    words = [sys.executable, "-c", VERIFY_AND_RUN, str(scans), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(
        words, cwd=export("bundle"), env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    for scan in scans.iterdir():
        mask = tmp_path / f"{scan.name.partition('.')[0]}_pancreas.nii.gz"
        assert_same_mask(mask, run, scan)


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")  # MONAI's own
def test_onnxruntime_and_the_description_beside_it_make_the_mask_of_predict(run, export, scans):
    folder = export("onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert session.get_inputs()[0].shape == ["batch", 1, 32, 32, 16]
    parser = ConfigParser({**read(folder / "processing.json"), "output_dir": "."})
    steps = ("preprocessing", "inferer", "postprocessing")
    before, windows, after = map(parser.get_parsed_content, steps)
    item = before({"image": str(scans / "one.nii.gz")})
    network = lambda x: torch.tensor(session.run(None, {"image": x.numpy()})[0])  # noqa: E731
    after({**item, "pred": windows(item["image"][None], network)[0]})
    assert_same_mask(Path("one_pancreas.nii.gz"), run, scans / "one.nii.gz")


def test_an_export_names_no_patient_and_no_path(export, prepared):
    for folder in (export("bundle"), export("onnx")):
        names = ["site-packages", "phantom-3-", *map(str, (prepared, folder.parent, Path.cwd()))]
        files = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
        for archive in map(zipfile.ZipFile, folder.rglob("*.pt")):
            files += map(archive.read, archive.namelist())
        assert not [name for name in names if any(name.encode() in content for content in files)]


def test_a_card_quotes_the_scores_of_this_network_and_these_masks_only(run, export):
    figures = read(run / "scores" / "test.json")
    card = (export("bundle") / "docs" / "README.md").read_text()
    assert f"Dice {figures['dice']['mean']:.3f}" in card and "n = 2 held-out phantoms" in card
    assert "**NOT FOR CLINICAL USE**" in card and "3 training, 1 validation, 2 test" in card
    shutil.copytree(run, "run")
    other = {"held_out": False, "geometry": "<b>whole cases</b>"}
    Path("run/scores/test.json").write_text(json.dumps({**figures, **other}))
    assert run_command("export", "checkpoint=run", "output=bundle") == 0
    card = Path("bundle/docs/README.md").read_text()
    assert "**NOT HELD OUT**" in card and "<b>" not in card
    Path("run/scores/test.json").write_text(json.dumps({**figures, "checkpoint_epoch": [99]}))
    assert run_command("export", "checkpoint=run", "output=another") == 0
    assert "There are no scores" in Path("another/docs/README.md").read_text()


def test_a_forged_value_that_a_bundle_would_evaluate_is_refused(run, command):
    content = torch.load(best(run), weights_only=True)
    content["datamodule_hyper_parameters"]["orientation"] = "$id"
    torch.save(content, "forged.ckpt")
    ended = command("export", "checkpoint=forged.ckpt", "output=out")
    assert ended.code == 2 and "forged.ckpt: its orientation cannot be" in ended.err
    assert not Path("out").exists()


def test_a_network_with_a_light_decoder_is_refused(run, command):
    content = torch.load(best(run), weights_only=True)
    content["hyper_parameters"]["model"]["light_decoder"] = True
    state = content["state_dict"].items()
    content["state_dict"] = {k: v for k, v in state if not re.search(r"conv_block\.\w+1\.", k)}
    torch.save(content, "light.ckpt")
    ended = command("export", "checkpoint=light.ckpt", "output=out")
    assert ended.code == 2 and "light_decoder=true (train with false) cannot" in ended.err


def test_an_export_that_differs_from_the_checkpoint_is_not_kept(run, command, monkeypatch):
    load = "pancseg.exporting.bundle.load_tensors"
    monkeypatch.setattr(load, lambda path: {n: t + 1 for n, t in load_tensors(path).items()})
    ended = command("export", f"checkpoint={run}", "output=out")
    assert ended.code == 2 and "expected at most 0.001; nothing was written" in ended.err
    assert list(Path().iterdir()) == []


# a raw data set of nnU-Net with the patients of pancseg's split

OUT = Path("nnUNet_raw/Dataset501_Pancreas")
NNUNET = ("export", "format=nnunet", "data.root=root", f"output={OUT}")
SPLIT = ("split=file", "split.path=split.json")


@pytest.fixture
def root():
    """Patients a to f: f is in no subset, a has a second case, and a duplicate."""
    manifest = write_root(Path("root"), groups=False)
    first = manifest.cases[0]
    manifest.cases += [replace(first, name="a2"), replace(first, name="a3", duplicate_of="a")]
    manifest.write(Path("root"))
    subsets = {"train": ["a", "b"], "val": ["c"], "test": ["d", "e"]}
    Path("split.json").write_text(json.dumps(subsets))
    return Path("root")


def test_cases_of_a_patient_stay_together_and_keep_names_and_voxels(root, command):
    assert command(*NNUNET, *SPLIT).code == 0
    names = {path.name: sorted(file.name for file in path.iterdir()) for path in OUT.glob("*sT?")}
    assert names == {
        "imagesTr": [f"{case}_0000.nii.gz" for case in ("a2", "a", "b", "c")],
        "labelsTr": [f"{case}.nii.gz" for case in ("a", "a2", "b", "c")],
        "imagesTs": ["d_0000.nii.gz", "e_0000.nii.gz"],
        "labelsTs": ["d.nii.gz", "e.nii.gz"],
    }
    assert read(OUT / "splits_final.json") == [{"train": ["a", "a2", "b"], "val": ["c"]}]
    assert read(OUT / "dataset.json") == {
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


def test_voxels_that_nobody_labelled_get_the_ignore_label_of_nnunet(command):
    """Of two structures that are stored as 1 and 2, the ignore label is 3."""
    write_root(Path("root"), groups=False, ignored=True)
    assert command(*NNUNET, "split=same").code == 0
    assert read(OUT / "dataset.json")["labels"]["ignore"] == 3
    paths = OUT / "labelsTr" / "b.nii.gz", Path("root/cases/b_label.nii.gz")
    written, own = (np.asarray(nib.load(path).dataobj) for path in paths)
    assert (own == IGNORED).any()
    np.testing.assert_array_equal(written, np.where(own == IGNORED, 3, own))
