"""``export``: other programs make the masks of ``predict`` from a bundle or an ONNX file."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from monai.bundle import ConfigParser
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from pancseg.exporting.patch_network import as_monai
from pancseg.inference.postprocessing import Postprocess, write_postprocess
from pancseg.inference.predictor import load_segmenter
from pancseg.models.pretrained import load_tensors
from pancseg.models.resunet import ResUNet
from tests.conftest import run_command

PATCHES = [
    "data=volume", "data.spacing_mm=[8,8,8]", "data.batch_size=2", "data.num_workers=0",
    "hardware.precision=32-true", "sampling.steps_per_epoch=2", "trainer.max_epochs=1",
    "split.val=1", "split.test=2",
]  # fmt: skip
RUNS = {
    "unet": ["model.channels=[4,8,8,8,8]", "data.spatial_size=[32,32,32]"],
    "resunet": [
        "model=resunet", "model.width=4", "model.full_resolution=false", "model.deep_supervision=1",
        "loss=dice_ce", "data.spatial_size=[32,32,16]",
    ],
}  # fmt: skip
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
def runs(prepared, scans, tmp_path_factory):
    """Runs on patches, with thresholds; the test patients of one are scored."""
    folder = tmp_path_factory.mktemp("runs")
    for name, options in RUNS.items():
        paths = [f"data.root={prepared}", f"hydra.run.dir={folder / name}"]
        assert run_command("train", *PATCHES, *options, *paths) == 0
        threshold = threshold_in_a_gap(best(folder / name), scans)
        postprocess = Postprocess(threshold, largest_component=name == "resunet")
        write_postprocess(best(folder / name), postprocess)
    assert run_command("evaluate", f"checkpoint={best(folder / 'unet')}", "subset=test") == 0
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
def export(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")

    def write(name, form):
        output = folder / f"{name}_{form}"
        words = [f"checkpoint={runs / name}", f"output={output}", f"format={form}"]
        assert output.is_dir() or run_command("export", *words) == 0
        return output

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
    runs, export, scans, tmp_path
):
    bundle = export("resunet", "bundle")
    metadata = read(bundle / "configs" / "metadata.json")
    assert {"schema", "monai_version", "task", "network_data_format"} <= metadata.keys()
    (tmp_path / "pancseg.py").write_text("raise ImportError('pancseg is missing')")
    words = [sys.executable, "-c", VERIFY_AND_RUN, str(scans), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(words, cwd=bundle, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    for scan in scans.iterdir():
        mask = tmp_path / f"{scan.name.partition('.')[0]}_pancreas.nii.gz"
        assert nib.load(mask).get_data_dtype() == np.uint8
        assert_same_mask(mask, runs / "resunet", scan)


def test_a_resunet_of_full_resolution_is_exported_as_the_dynunet_that_it_equals():
    resunet = ResUNet([32, 32, 16], [1, 1, 1], width=4).eval()  # those of a CPU are coarser
    dynunet, definition = as_monai(SimpleNamespace(network=resunet))
    image = torch.rand(1, 1, 32, 32, 16)
    torch.testing.assert_close(dynunet(image), resunet(image))
    assert definition["network_def"]["_target_"].endswith("DynUNet")


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")  # MONAI's own
def test_onnxruntime_and_the_description_beside_it_make_the_mask_of_predict(runs, export, scans):
    folder = export("unet", "onnx")
    onnx.checker.check_model(folder / "model.onnx", full_check=True)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert session.get_inputs()[0].shape == ["batch", 1, 32, 32, 32]
    parser = ConfigParser({**read(folder / "processing.json"), "output_dir": "."})
    steps = ("preprocessing", "inferer", "postprocessing")
    before, windows, after = map(parser.get_parsed_content, steps)
    item = before({"image": str(scans / "one.nii.gz")})
    network = lambda x: torch.tensor(session.run(None, {"image": x.numpy()})[0])  # noqa: E731
    after({**item, "pred": windows(item["image"][None], network)[0]})
    assert_same_mask(Path("one_pancreas.nii.gz"), runs / "unet", scans / "one.nii.gz")


def test_an_export_names_no_patient_and_no_path(export, prepared):
    for folder in (export("unet", "bundle"), export("unet", "onnx")):
        names = ["site-packages", "phantom-3-", *map(str, (prepared, folder.parent, Path.cwd()))]
        files = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
        for archive in map(zipfile.ZipFile, folder.rglob("*.pt")):
            files += map(archive.read, archive.namelist())
        assert not [name for name in names if any(name.encode() in content for content in files)]


def test_a_card_quotes_the_scores_of_this_network_and_these_masks_only(runs, export):
    figures = read(runs / "unet" / "scores" / "test.json")
    card = (export("unet", "bundle") / "docs" / "README.md").read_text()
    assert f"Dice {figures['dice']['mean']:.3f}" in card and "n = 2 held-out phantoms" in card
    assert "**NOT FOR CLINICAL USE**" in card and "3 training, 1 validation, 2 test" in card
    shutil.copytree(runs / "unet", "run")
    for n, (changed, text) in enumerate((
        ({"held_out": False}, "**NOT HELD OUT**"),
        ({"geometry": "<b>whole cases</b>"}, "&lt;b&gt;whole"),
        ({"checkpoint_epoch": [99]}, "There are no scores"),
        ({"postprocess": [{"threshold": 0.4}]}, "There are no scores"),
    )):  # fmt: skip
        Path("run/scores/test.json").write_text(json.dumps({**figures, **changed}))
        assert run_command("export", "checkpoint=run", f"output=bundle{n}") == 0
        card = Path(f"bundle{n}/docs/README.md").read_text()
        assert text in card and "<b>" not in card


@pytest.mark.parametrize(
    ("keys", "value", "named"),
    [
        (("datamodule_hyper_parameters", "orientation"), "$id", "orientation"),
        (("CTDataModule", "fingerprint"), "<script>0123abcd", "fingerprint"),
        (("hyper_parameters", "model", "bias"), "$__import__('os')", "arguments"),
        (("hyper_parameters", "model", "bias"), {"_target_": "os.getcwd"}, "arguments"),
    ],
)
def test_a_forged_value_that_a_bundle_would_evaluate_or_a_card_show_is_refused(
    keys, value, named, runs, command
):
    content = node = torch.load(best(runs / "unet"), weights_only=True)
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    torch.save(content, "forged.ckpt")
    ended = command("export", "checkpoint=forged.ckpt", "output=out")
    assert ended.code == 2 and f"forged.ckpt: its {named} cannot be" in ended.err
    assert not Path("out").exists()


def test_an_export_that_differs_from_the_checkpoint_is_not_kept(runs, command, monkeypatch):
    load = "pancseg.exporting.bundle.load_tensors"
    monkeypatch.setattr(load, lambda path: {n: t + 1 for n, t in load_tensors(path).items()})
    ended = command("export", f"checkpoint={runs / 'unet'}", "output=out")
    assert ended.code == 2 and "expected at most 0.001; nothing was written" in ended.err
    assert list(Path().iterdir()) == []
