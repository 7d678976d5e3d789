"""``export``: other programs make the masks of ``predict`` from a bundle or an ONNX file."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
from tests.conftest import Command, run_command

PATCHES = [
    "data=volume", "data.spacing_mm=[8,8,8]", "data.batch_size=2", "data.num_workers=0",
    "hardware.precision=32-true", "sampling.steps_per_epoch=2", "trainer.max_epochs=1",
    "split.val=1", "split.test=2",
]  # fmt: skip
RESUNET = [
    "model=resunet", "model.width=4", "model.full_resolution=false", "model.deep_supervision=1",
    "loss=dice_ce",
]  # fmt: skip
RUNS = {
    "unet": ["model.channels=[4,8,8,8,8]", "data.spatial_size=[32,32,32]"],
    "resunet": [*RESUNET, "data.spatial_size=[32,32,16]"],
}
Export = Callable[[str, str], Path]
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
def scans(dicom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans; the second has its axes in another order."""
    folder = tmp_path_factory.mktemp("scans")
    one, other = map(nib.load, sorted((dicom / "truth").glob("*_image.nii.gz"))[:2])
    nib.save(one, folder / "one.nii.gz")
    turn = ornt_transform(io_orientation(other.affine), axcodes2ornt("PIR"))
    nib.save(other.as_reoriented(turn), folder / "other.nii")
    return folder


@pytest.fixture(scope="module")
def runs(prepared: Path, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def best(run: Path) -> Path:
    return run / "checkpoints" / "best.ckpt"


def threshold_in_a_gap(checkpoint: Path, scans: Path) -> float:
    """A threshold for a few percent of the voxels, as far as possible from any probability."""
    predictor = load_segmenter(checkpoint, device="cpu", precision="32-true")
    results = [predictor.predict(nib.load(path), 0.0).probability for path in scans.iterdir()]
    p = np.sort(np.concatenate([array.ravel() for array in results]).astype(np.float64))
    p = p[int(0.9 * len(p)) : int(0.995 * len(p))]
    widest = int(np.diff(p).argmax())
    return float(p[widest] + p[widest + 1]) / 2


@pytest.fixture(scope="module")
def export(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Exports of a run in a format, each made once."""
    folder = tmp_path_factory.mktemp("exports")

    def write(name: str, form: str) -> Path:
        output = folder / f"{name}_{form}"
        words = [f"checkpoint={runs / name}", f"output={output}", f"format={form}"]
        assert output.is_dir() or run_command("export", *words) == 0
        return output

    return write


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def assert_same_mask(path: Path, run: Path, scan: Path) -> None:
    """Assert that a mask is that of predict, on the scan's grid."""
    mask, image = nib.load(path), nib.load(scan)
    predictor = load_segmenter(best(run), device="cpu", precision="32-true")
    found, expected = (np.asarray(m.dataobj) > 0 for m in (mask, predictor(image)))
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-4)
    assert 0 < expected.mean() < 0.2
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.999


def test_monai_verifies_a_bundle_and_makes_the_masks_of_predict_without_pancseg(
    runs: Path, export: Export, scans: Path, tmp_path: Path
) -> None:
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


def test_a_resunet_of_full_resolution_is_exported_as_the_dynunet_that_it_equals() -> None:
    resunet: Any = ResUNet([32, 32, 16], [1, 1, 1], width=4).eval()  # those of a CPU are coarser
    dynunet, definition = as_monai(SimpleNamespace(network=resunet))
    image = torch.rand(1, 1, 32, 32, 16)
    torch.testing.assert_close(dynunet(image), resunet(image))
    assert definition["network_def"]["_target_"].endswith("DynUNet")


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")  # MONAI's own
def test_onnxruntime_and_the_description_beside_it_make_the_mask_of_predict(
    runs: Path, export: Export, scans: Path, tmp_path: Path
) -> None:
    folder = export("unet", "onnx")
    onnx.checker.check_model(folder / "model.onnx", full_check=True)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert session.get_inputs()[0].shape == ["batch", 1, 32, 32, 32]
    parser = ConfigParser({**read(folder / "processing.json"), "output_dir": str(tmp_path)})
    steps = ("preprocessing", "inferer", "postprocessing")
    before, windows, after = map(parser.get_parsed_content, steps)
    item = before({"image": str(scans / "one.nii.gz")})
    logits = windows(
        item["image"][None], lambda x: torch.tensor(session.run(None, {"image": x.numpy()})[0])
    )
    after({**item, "pred": logits[0]})
    assert_same_mask(tmp_path / "one_pancreas.nii.gz", runs / "unet", scans / "one.nii.gz")


@pytest.mark.parametrize("form", ["bundle", "onnx"])
def test_an_export_names_no_patient_and_no_path(form: str, export: Export, prepared: Path) -> None:
    folder = export("unet", form)
    names = ["site-packages", "phantom-3-", *map(str, (prepared, folder.parent, Path.cwd()))]
    files = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    for archive in map(zipfile.ZipFile, folder.rglob("*.pt")):
        files += map(archive.read, archive.namelist())
    assert not [name for name in names if any(name.encode() in content for content in files)]


def test_a_card_quotes_the_scores_of_this_network_and_these_masks_only(
    runs: Path, export: Export, tmp_path: Path
) -> None:
    figures = read(runs / "unet" / "scores" / "test.json")
    card = (export("unet", "bundle") / "docs" / "README.md").read_text()
    assert f"Dice {figures['dice']['mean']:.3f}" in card and "n = 2 held-out phantoms" in card
    assert "**NOT FOR CLINICAL USE**" in card and "3 training, 1 validation, 2 test" in card
    run = shutil.copytree(runs / "unet", tmp_path / "run")

    def card_with(**changed: Any) -> str:
        (run / "scores" / "test.json").write_text(json.dumps({**figures, **changed}))
        output = tmp_path / f"bundle{len(list(tmp_path.iterdir()))}"
        assert run_command("export", f"checkpoint={run}", f"output={output}") == 0
        return (output / "docs" / "README.md").read_text()

    assert "**NOT HELD OUT**" in card_with(held_out=False)
    assert "<b>" not in card_with(geometry="<b>whole cases</b>")
    for other in ({"checkpoint_epoch": [99]}, {"postprocess": [{"threshold": 0.4}]}):
        assert "There are no scores" in card_with(**other)


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
    keys: tuple[str, ...], value: Any, named: str, runs: Path, command: Command
) -> None:
    content = node = torch.load(best(runs / "unet"), weights_only=True)
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    torch.save(content, "forged.ckpt")
    ended = command("export", "checkpoint=forged.ckpt", "output=out")
    assert ended.code == 2 and f"forged.ckpt: its {named} cannot be" in ended.err
    assert not Path("out").exists()


def test_an_export_that_differs_from_the_checkpoint_is_not_kept(
    runs: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = "pancseg.exporting.bundle.load_tensors"
    monkeypatch.setattr(load, lambda path: {n: t + 1 for n, t in load_tensors(path).items()})
    ended = command("export", f"checkpoint={runs / 'unet'}", f"output={tmp_path / 'out'}")
    assert ended.code == 2 and "expected at most 0.001; nothing was written" in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["output=full", "checkpoint=a"], "output=full: exists already"),
        (["output=full/file/out", "checkpoint=a"], "cannot be written"),
        (["output=out", "checkpoint=a", "format=torchscript"], "expected one of bundle, onnx"),
        (["output=out", "checkpoint=[a.ckpt,b.ckpt]"], "gives 2 networks"),
        (["output=out", "checkpoint=groups"], "train on patches (data=volume)"),
        (["checkpoint=a"], "output is not given"),
    ],
)
def test_impossible_options_are_refused_in_one_line(
    words: list[str], message: str, trained: Path, command: Command
) -> None:
    Path("full").mkdir()
    Path("full/file").touch()
    Path("groups").symlink_to(trained)
    ended = command("export", *words)
    assert (ended.code, ended.err.count("\n")) == (2, 1) and message in ended.err
    assert not Path("out").exists()
