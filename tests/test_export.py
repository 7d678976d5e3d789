"""``export``: other programs make the masks of ``predict`` from a bundle or an ONNX file."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from monai.bundle import ConfigParser
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from pancseg.inference.postprocessing import Postprocess, write_postprocess
from pancseg.inference.predictor import load_segmenter
from pancseg.models.pretrained import load_tensors
from tests.conftest import Command, run_command

PATCHES = [
    "data=volume", "data.spacing_mm=[8,8,8]", "data.batch_size=2", "data.num_workers=0",
    "hardware.precision=32-true", "sampling.steps_per_epoch=2", "trainer.max_epochs=1",
    "split.val=1", "split.test=2",
]  # fmt: skip
RUNS = {
    "unet": ["model.channels=[4,8,8,8,8]", "data.spatial_size=[32,32,32]"],
    "resunet": [
        "model=resunet", "model.width=4", "model.deep_supervision=1", "loss=dice_ce",
        "data.spatial_size=[32,32,16]",
    ],
}  # fmt: skip
REQUIRED = (
    "schema version monai_version pytorch_version numpy_version required_packages_version task "
    "description authors copyright network_data_format"
)  # of MONAI's schema
REQUIRED_OF_TENSOR = "type format num_channels spatial_shape dtype value_range"
Exports = Callable[[str, str], Path]
CHECKS = """
from monai.bundle import ConfigWorkflow, verify_net_in_out
config, meta = (f"configs/{name}.json" for name in ("inference", "metadata"))
workflow = ConfigWorkflow(config, workflow_type="infer", dataset_dir="configs")
workflow.initialize()
assert workflow.check_properties() == [], workflow.check_properties()
verify_net_in_out("network_def", meta_file=meta, config_file=config, device="cpu")
"""


@pytest.fixture(scope="module")
def scans(dicom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans; the second has its axes in another order."""
    folder = tmp_path_factory.mktemp("scans")
    one, other = sorted((dicom / "truth").glob("*_image.nii.gz"))[:2]
    shutil.copy(one, folder / "one.nii.gz")
    image = nib.load(other)
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt("PIR"))
    nib.save(image.as_reoriented(turn), folder / "other.nii")
    return folder


@pytest.fixture(scope="module")
def runs(prepared: Path, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs on patches; each with a threshold, and the test patients of one are scored."""
    folder = tmp_path_factory.mktemp("runs")
    for name, options in RUNS.items():
        run = folder / name
        paths = [f"data.root={prepared}", f"hydra.run.dir={run}"]
        assert run_command("train", *PATCHES, *options, *paths) == 0
        threshold = threshold_in_a_gap(best(run), scans)
        write_postprocess(best(run), Postprocess(threshold, largest_component=name == "resunet"))
    assert run_command("evaluate", f"checkpoint={best(folder / 'unet')}", "subset=test") == 0
    return {name: folder / name for name in RUNS}


def best(run: Path) -> Path:
    return run / "checkpoints" / "best.ckpt"


def segmenter(run: Path) -> Any:
    return load_segmenter(best(run), device="cpu", precision="32-true")


def threshold_in_a_gap(checkpoint: Path, scans: Path) -> float:
    """A threshold for a few percent of the voxels, as far as possible from any probability."""
    predictor = load_segmenter(checkpoint, device="cpu", precision="32-true")
    found = [predictor.predict(nib.load(path), 0.0).probability for path in scans.iterdir()]
    p = np.sort(np.concatenate([one.ravel() for one in found]).astype(np.float64))
    p = p[int(0.9 * len(p)) : int(0.995 * len(p))]
    widest = int(np.diff(p).argmax())
    return float(p[widest] + p[widest + 1]) / 2


@pytest.fixture(scope="module")
def exports(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Exports of a run in a format, each made once."""
    folder = tmp_path_factory.mktemp("exports")

    def export(name: str, kind: str) -> Path:
        output = folder / f"{name}_{kind}"
        if not output.is_dir():
            options = [f"checkpoint={best(runs[name])}", f"output={output}", f"format={kind}"]
            assert run_command("export", *options) == 0
        return output

    return export


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def same_mask(path: Path, run: Path, scan: Path) -> None:
    """Assert that a mask is that of predict, on the scan's grid."""
    mask, image = nib.load(path), nib.load(scan)
    found, expected = (np.asarray(one.dataobj) > 0 for one in (mask, segmenter(run)(image)))
    assert mask.shape == image.shape
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-4)
    assert 0 < expected.mean() < 0.2
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.999


def run_without_pancseg(folder: Path, bundle: Path, *arguments: str) -> None:
    """Run Python in the folder of a bundle, where ``import pancseg`` fails."""
    (folder / "pancseg").mkdir()
    (folder / "pancseg" / "__init__.py").write_text("raise ImportError('pancseg is missing')")
    paths = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=bundle, env={**os.environ, "PYTHONPATH": paths},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("name", ["resunet", pytest.param("unet", marks=pytest.mark.slow)])
def test_monai_makes_the_masks_of_predict_from_a_bundle_without_pancseg(
    name: str, runs: dict[str, Path], exports: Exports, scans: Path, tmp_path: Path
) -> None:
    options = ["--config_file", "configs/inference.json", "--device", "cpu"]
    options += ["--dataset_dir", str(scans), "--output_dir", str(tmp_path / "masks")]
    bundle = exports(name, "bundle")
    run_without_pancseg(tmp_path, bundle, "-m", "monai.bundle", "run", *options)
    for scan in scans.iterdir():
        mask = tmp_path / "masks" / f"{scan.name.partition('.')[0]}_pancreas.nii.gz"
        assert nib.load(mask).get_data_dtype() == np.uint8
        same_mask(mask, runs[name], scan)


@pytest.mark.parametrize("name", ["resunet", pytest.param("unet", marks=pytest.mark.slow)])
def test_a_bundle_has_the_properties_and_weights_that_monai_expects(
    name: str, exports: Exports, tmp_path: Path
) -> None:
    bundle = exports(name, "bundle")
    run_without_pancseg(tmp_path, bundle, "-c", CHECKS)
    metadata = read(bundle / "configs" / "metadata.json")
    assert metadata.keys() >= {*REQUIRED.split()}
    tensors = metadata["network_data_format"]
    for tensor in (tensors["inputs"]["image"], tensors["outputs"]["pred"]):
        assert tensor.keys() >= {*REQUIRED_OF_TENSOR.split()}
    config = ConfigParser(read(bundle / "configs" / "inference.json"))
    network = config.get_parsed_content("network_def")
    assert type(network).__module__.startswith("monai.networks.nets")
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    network.load_state_dict(weights, strict=True)


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")  # MONAI's own
def test_onnxruntime_and_the_description_beside_it_make_the_mask_of_predict(
    runs: dict[str, Path], exports: Exports, scans: Path, tmp_path: Path
) -> None:
    folder = exports("unet", "onnx")
    onnx.checker.check_model(folder / "model.onnx", full_check=True)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    parser = ConfigParser({**read(folder / "processing.json"), "output_dir": str(tmp_path)})
    steps = ("preprocessing", "inferer", "postprocessing")
    before, windows, after = map(parser.get_parsed_content, steps)
    item = before({"image": str(scans / "one.nii.gz")})
    logits = windows(
        item["image"][None], lambda x: torch.tensor(session.run(None, {"image": x.numpy()})[0])
    )
    after({**item, "pred": logits[0]})
    same_mask(tmp_path / "one_pancreas.nii.gz", runs["unet"], scans / "one.nii.gz")


@pytest.mark.slow
def test_onnx_holds_a_residual_network_for_any_number_of_windows(exports: Exports) -> None:
    session = onnxruntime.InferenceSession(exports("resunet", "onnx") / "model.onnx")
    assert session.get_inputs()[0].shape == ["batch", 1, 32, 32, 16]
    one, three = (np.zeros((n, 1, 32, 32, 16), np.float32) for n in (1, 3))
    assert session.run(["logits"], {"image": one})[0].shape == (1, 2, 32, 32, 16)
    assert session.run(["logits"], {"image": three})[0].shape == (3, 2, 32, 32, 16)


@pytest.mark.parametrize("kind", ["bundle", "onnx"])
def test_an_export_names_no_patient_and_no_path(
    kind: str, exports: Exports, prepared: Path
) -> None:
    folder = exports("unet", kind)
    names = ["site-packages", "phantom-3-", *map(str, (prepared, folder.parent, Path.cwd()))]
    for path in (path for path in folder.rglob("*") if path.is_file()):
        contents = [path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents += map(archive.read, archive.namelist())
        for content in contents:
            assert [name for name in names if name.encode() in content] == [], path


def test_a_card_quotes_the_scores_of_this_network_and_these_masks_only(
    runs: dict[str, Path], exports: Exports, tmp_path: Path
) -> None:
    bundle, run = exports("unet", "bundle"), tmp_path / "run"
    figures = read(runs["unet"] / "scores" / "test.json")
    card = (bundle / "docs" / "README.md").read_text()
    for text in (
        "**NOT FOR CLINICAL USE**", "**PHANTOMS**", "n = 2 held-out phantoms",
        f"Dice {figures['dice']['mean']:.3f}", "3 training, 1 validation, 2 test", "sigmoid",
    ):  # fmt: skip
        assert text in card
    assert "NOT HELD OUT" not in card
    metadata = read(bundle / "configs" / "metadata.json")
    assert metadata["eval_metrics"] == {"mean_dice": figures["dice"]["mean"]}
    shutil.copytree(runs["unet"], run)

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
    ("place", "key", "value", "named"),
    [
        ("datamodule_hyper_parameters", "orientation", "$id", "orientation"),
        ("CTDataModule", "fingerprint", "<script>0123abcd", "fingerprint"),
        ("model", "bias", "$__import__('os')", "arguments"),
        ("model", "bias", {"_target_": "os.getcwd"}, "arguments"),
        ("loss", "_target_", "<b>", "arguments"),
    ],
)
def test_a_forged_value_that_a_bundle_would_evaluate_or_a_card_show_is_refused(
    place: str, key: str, value: Any, named: str, runs: dict[str, Path], command: Command
) -> None:
    content = torch.load(best(runs["unet"]), weights_only=True)
    (content["hyper_parameters"] if place in ("model", "loss") else content)[place][key] = value
    torch.save(content, "forged.ckpt")
    ended = command("export", "checkpoint=forged.ckpt", "output=out")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert f"forged.ckpt: its {named} cannot be from pancseg.train" in ended.err
    assert not Path("out").exists()


@pytest.mark.parametrize("kind", ["bundle", "onnx"])
def test_a_network_of_groups_is_refused_with_what_to_train_instead(
    kind: str, trained: Path, command: Command
) -> None:
    ended = command("export", f"checkpoint={trained}", "output=out", f"format={kind}")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "was trained on groups of 32 slices" in ended.err
    assert "train on patches (data=volume)" in ended.err
    assert not Path("out").exists()


def test_an_export_that_differs_from_the_checkpoint_is_not_kept(
    runs: dict[str, Path], tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def altered(path: Path) -> dict[str, torch.Tensor]:
        return {name: tensor + 1 for name, tensor in load_tensors(path).items()}

    monkeypatch.setattr("pancseg.exporting.bundle.load_tensors", altered)
    ended = command("export", f"checkpoint={best(runs['unet'])}", f"output={tmp_path / 'out'}")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "expected at most 0.001; nothing was written" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_onnx_without_its_packages_is_refused_with_what_to_install(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pancseg.export.find_spec", lambda name: None)
    ended = command("export", "checkpoint=any", "output=out", "format=onnx")
    assert ended.code == 2
    assert "onnxruntime, not installed; pip install pancseg[export]" in ended.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["output=full"], "output=full: exists already"),
        (["output=full/file"], "output=full/file: exists already"),
        (["output=full/file/out"], "cannot be written"),
        (["output=out", "format=torchscript"], "expected one of bundle, onnx"),
        (["output=out", "tolerance=0"], "tolerance=0: expected a number above 0"),
        (["output=out", "checkpoint=sweep"], "gives 2 networks, expected one"),
        (["output=out", "checkpoint=[a.ckpt,b.ckpt]"], "gives 2 networks, expected one"),
        (["output=out", "checkpoint=gone.ckpt"], "there is no such file"),
        (["checkpoint=any"], "output is not given"),
    ],
)
def test_impossible_options_are_refused_in_one_line(
    options: list[str], message: str, command: Command
) -> None:
    for path in ("full/file", "sweep/0/checkpoints/best.ckpt", "sweep/1/checkpoints/best.ckpt"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    given = options if any("checkpoint=" in o for o in options) else [*options, "checkpoint=any"]
    ended = command("export", *given)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert message in ended.err
    assert not Path("out").exists()
