"""The command ``export``: what others run says what pancseg says, or nothing is written."""

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, verify_net_in_out
from monai.inferers import SlidingWindowInferer
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from pancseg.applying.scan_segmenter import load_segmenter
from pancseg.exporting.exportable import open_exportable
from pancseg.exporting.model_card import model_card
from pancseg.exporting.scored import facts_of
from pancseg.exporting.whole_scan import (
    Evaluator,
    MaskOf,
    WholeScan,
    find_scans,
    group_starts,
    inside_body,
)
from pancseg.geometry import covering_starts
from pancseg.inference.postprocess import Postprocess, record
from tests.conftest import Command, run_command, scored_copy, smoke

PATCHES = ["sampling=patches", "sampling.steps_per_epoch=2", "trainer.max_epochs=1"]
RUNS = {
    "patches": PATCHES,
    "residual": [*PATCHES, "model=resunet", "model.width=4", "data.spatial_size=[32,32,16]"],
}
MANDATORY = (
    "version monai_version pytorch_version numpy_version required_packages_version task "
    "description authors copyright network_data_format"
)  # of MONAI's specification of bundles
OF_A_TENSOR = (
    "type format modality num_channels spatial_shape dtype value_range is_patch_data channel_def"
)
Exports = Callable[[str, str], Path]
DIES = """
import os
import pancseg.exporting.bundle as bundle
bundle.check_same = lambda *words: os.kill(os.getpid(), 9)
from pancseg.export import main
main()
"""


@pytest.fixture(scope="module")
def scans(dicom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans, one in a folder below and with its axes in another order."""
    folder = tmp_path_factory.mktemp("scans")
    one, other = sorted((dicom / "truth").glob("*_image.nii.gz"))[:2]
    shutil.copy(one, folder / "one.nii.gz")
    image = nib.load(other)
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt("PIR"))
    (folder / "below").mkdir()
    nib.save(image.as_reoriented(turn), folder / "below" / "other.nii")
    return folder


@pytest.fixture(scope="module")
def runs(
    trained: Path, prepared: Path, scans: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A run of groups, one of patches and one of a residual network; each with a threshold."""
    folder = tmp_path_factory.mktemp("exported_runs")
    shutil.copytree(trained, folder / "groups", ignore=shutil.ignore_patterns("scores"))
    for name, words in RUNS.items():
        assert run_command("train", *smoke(prepared, folder / name, *words)) == 0
    found = {name: folder / name for name in ("groups", *RUNS)}
    for name, run in found.items():
        best = run / "checkpoints" / "best.ckpt"
        record(best, Postprocess(threshold_in_a_gap(best, scans), name != "patches"), {})
    return found


def threshold_in_a_gap(best: Path, scans: Path) -> float:
    """A threshold that about a hundredth of the voxels are above, as far from any as can be."""
    segmenter = load_segmenter(best, precision="32-true")
    found = [segmenter.segment(nib.load(path)).probability for path in files_of(scans)]
    p = np.sort(np.concatenate([one.ravel() for one in found]).astype(np.float64))
    p = p[int(0.9 * len(p)) : int(0.995 * len(p))]
    widest = int(np.diff(p).argmax())
    return float(p[widest] + p[widest + 1]) / 2


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def contents_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, those inside archives, too."""
    found = {}
    for path in files_of(folder):
        name = str(path.relative_to(folder))
        found[name] = path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as packed:
                found |= {f"{name}/{inner}": packed.read(inner) for inner in packed.namelist()}
    return found


@pytest.fixture(scope="module")
def exports(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Exports of a run in a format, each made once."""
    folder = tmp_path_factory.mktemp("exports")

    def one(name: str, kind: str) -> Path:
        output = folder / f"{name}_{kind}"
        return output if output.is_dir() else export(runs[name], output, f"format={kind}")

    return one


def export(run: Path, output: Path, *words: str) -> Path:
    best = run / "checkpoints" / "best.ckpt"
    assert run_command("export", f"checkpoint={best}", f"output={output}", *words) == 0
    return output


def without_pancseg(folder: Path) -> dict[str, str]:
    """An environment in which ``import pancseg`` fails, wherever it is installed."""
    (folder / "pancseg").mkdir(parents=True)
    (folder / "pancseg" / "__init__.py").write_text("raise ImportError('there is no pancseg')")
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONWARNINGS": "ignore"}


@pytest.mark.parametrize(
    "name",
    ["groups", *(pytest.param(name, marks=pytest.mark.slow) for name in ("patches", "residual"))],
)
def test_monai_runs_a_bundle_without_pancseg_to_the_voxels_that_pancseg_finds(
    name: str, runs: dict[str, Path], exports: Exports, scans: Path, tmp_path: Path
) -> None:
    bundle = exports(name, "bundle")
    environment, masks = without_pancseg(tmp_path / "blocked"), tmp_path / "masks"
    blocked = [sys.executable, "-c", "import pancseg"]
    assert subprocess.run(blocked, env=environment, capture_output=True, check=False).returncode
    words = ["--config_file", bundle / "configs" / "inference.json"]
    words += ["--dataset_dir", scans, "--output_dir", masks, "--device", "cpu"]
    ended = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", *map(str, words)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    segmenter = load_segmenter(runs[name] / "checkpoints" / "best.ckpt", precision="32-true")
    for scan, stem in ((scans / "one.nii.gz", "one"), (scans / "below" / "other.nii", "other")):
        image, place = nib.load(scan), masks / scan.parent.relative_to(scans)
        mask, wanted = nib.load(place / f"{stem}_pancreas.nii.gz"), segmenter(image)
        assert mask.get_data_dtype() == np.uint8
        np.testing.assert_allclose(mask.affine, image.affine, atol=1e-4)
        np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(wanted.dataobj))
        assert 0 < np.asarray(mask.dataobj).mean() < 0.2
    assert len(files_of(masks)) == 2


@pytest.fixture
def on_the_path(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A bundle whose scripts are found, as ``monai.bundle run`` finds them."""
    bundle = exports("patches", "bundle")
    monkeypatch.syspath_prepend(bundle)
    yield bundle
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        del sys.modules[name]


def test_a_bundle_has_what_monai_asks_of_one(on_the_path: Path, scans: Path) -> None:
    config, meta = (on_the_path / "configs" / f"{n}.json" for n in ("inference", "metadata"))
    workflow = ConfigWorkflow(
        str(config), workflow_type="infer", logging_file=False, dataset_dir=str(scans)
    )
    workflow.initialize()
    assert workflow.check_properties() == []
    verify_net_in_out("network_def", meta_file=str(meta), config_file=str(config), device="cpu")
    said = json.loads(meta.read_text())
    assert set(MANDATORY.split()) <= set(said)
    tensors = said["network_data_format"]
    for one in (tensors["inputs"]["image"], tensors["outputs"]["pred"]):
        assert set(one) == set(OF_A_TENSOR.split())
    weights = torch.load(on_the_path / "models" / "model.pt", weights_only=True)
    assert weights.keys() == weights_of(said).keys()


def weights_of(said: dict[str, Any]) -> dict[str, Any]:
    """The weights of a network that is built by what the metadata says of it."""
    parser = ConfigParser({"network": said["network"]})
    return parser.get_parsed_content("network").state_dict()


@pytest.mark.parametrize("name", ["residual", pytest.param("patches", marks=pytest.mark.slow)])
def test_onnxruntime_gives_the_logits_of_any_number_of_windows(
    name: str, runs: dict[str, Path], exports: Exports
) -> None:
    path = exports(name, "onnx") / "model.onnx"
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    net = open_exportable(str(runs[name] / "checkpoints" / "best.ckpt"))
    assert session.get_inputs()[0].shape == ["batch", 1, *net.window]
    for windows in (1, 3):
        image = torch.rand(windows, 1, *net.window)
        with torch.no_grad():
            wanted = net.network(image).numpy()
        found = session.run(["logits"], {"image": image.numpy()})[0]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["groups", pytest.param("patches", marks=pytest.mark.slow)])
def test_the_description_beside_an_onnx_file_is_enough_for_the_same_mask(
    name: str, runs: dict[str, Path], exports: Exports, scans: Path
) -> None:
    folder = exports(name, "onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    said = json.loads((folder / "processing.json").read_text())
    steps = said["monai_transforms"]
    crop = next(step for step in steps if "select_fn" in step)
    crop["select_fn"] = inside_body  # what said["crop"] says in words
    preprocessing = {"_target_": "monai.transforms.Compose", "transforms": steps}
    predict = WholeScan(
        lambda image: torch.tensor(session.run(None, {"image": image.numpy()})[0]),
        SlidingWindowInferer(
            said["windows"]["voxels"], 2, said["windows"]["overlap"], said["windows"]["weights"]
        ),
        ConfigParser({"steps": preprocessing}).get_parsed_content("steps"),
        said["activation"]["name"],
        said["groups"] and said["groups"]["slices"],
    )
    how = said["postprocess"]
    image = nib.load(scans / "one.nii.gz")
    mask = MaskOf(how["threshold"], how["largest_component"])(predict(image))
    wanted = load_segmenter(runs[name] / "checkpoints" / "best.ckpt", precision="32-true")(image)
    np.testing.assert_array_equal(mask, np.asarray(wanted.dataobj) > 0)


@pytest.mark.parametrize("kind", ["bundle", "onnx"])
def test_an_export_names_no_patient_and_no_place(
    kind: str, exports: Exports, prepared: Path
) -> None:
    folder = exports("residual", kind)
    places = [Path(__file__).parents[1], prepared, folder.parent]
    for name, content in contents_of(folder).items():
        for word in (*map(str, places), "site-packages", "phantom-3-"):
            assert word.encode() not in content, f"{name}: {word}"


@pytest.fixture(scope="module")
def scored(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose test patients were scored."""
    return scored_copy(trained, tmp_path_factory.mktemp("scored") / "run", "test")


def test_a_card_says_what_was_scored_and_on_whom(scored: Path, tmp_path: Path) -> None:
    run, bundle = scored, export(scored, tmp_path / "bundle")
    card = (bundle / "docs" / "README.md").read_text()
    figures = json.loads((run / "scores" / "test.json").read_text())
    assert "n = 2 held-out phantoms" in card
    assert f"| Dice | {figures['dice']['mean']:.3f} |" in card
    assert f"| NSD 2 mm | {figures['nsd_2mm']['mean']:.3f} |" in card
    assert "| HD95 mm |" in card
    assert figures["data_fingerprint"] in card
    assert "| patients trained on | 3 |" in card
    assert "**NOT FOR CLINICAL USE**" in card
    assert "**PHANTOMS**" in card
    assert "NOT HELD OUT" not in card
    said = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert said["eval_metrics"] == {"mean_dice": figures["dice"]["mean"]}


def test_a_card_warns_of_patients_not_held_out_and_takes_no_figures_of_another_network(
    scored: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(scored, run)
    best, path = run / "checkpoints" / "best.ckpt", run / "scores" / "test.json"
    figures = json.loads(path.read_text())

    def card(**changed: Any) -> str:
        path.write_text(json.dumps({**figures, **changed}))
        net = open_exportable(str(run))
        return model_card(net, facts_of(net), "onnx")

    assert "**NOT HELD OUT**" in card(held_out=False)
    for other in ({"checkpoint_epoch": 99}, {"postprocess": [{"threshold": 0.4}]}):
        assert "left out" in card(**other)
        assert "95 % CI" not in card(**other)
    (run / "summary.json").unlink()
    record(best, Postprocess(0.3), {})
    assert "not known: no summary" in card()


def test_what_differs_from_the_original_is_not_left_behind(
    runs: dict[str, Path], tmp_path: Path, command: Command
) -> None:
    best = runs["patches"] / "checkpoints" / "best.ckpt"
    words = ["format=onnx", "tolerance=1e-12"]  # two libraries round differently
    ended = command("export", f"checkpoint={best}", f"output={tmp_path / 'a' / 'out'}", *words)
    assert ended.code == 2
    assert "differs from the original by" in ended.err
    assert "nothing was written" in ended.err
    assert files_of(tmp_path) == []
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.slow
def test_a_killed_export_leaves_no_folder_and_is_done_again(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    best, output = runs["patches"] / "checkpoints" / "best.ckpt", tmp_path / "out"
    words = [f"checkpoint={best}", f"output={output}"]
    ended = subprocess.run(
        [sys.executable, "-c", DIES, *words], capture_output=True, text=True, check=False
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert [path.name.startswith(".partial-") for path in tmp_path.iterdir()] == [True]
    export(runs["patches"], output)
    assert (output / "docs" / "README.md").is_file()


def test_without_the_extra_the_command_says_what_to_install(
    runs: dict[str, Path], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    best = runs["patches"] / "checkpoints" / "best.ckpt"
    ended = command("export", f"checkpoint={best}", "output=out", "format=onnx")
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "needs onnxruntime, not installed; pip install pancseg[export]" in ended.err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["output=full"], "output=full: holds something already"),
        (["output=file"], "output=file: is a file already"),
        (["output=file/out"], "cannot be written"),
        (["output=out", "format=torchscript"], "expected one of bundle, onnx"),
        (["output=out", "tolerance=0"], "tolerance=0: expected a number above 0"),
        (["output=out", "checkpoint=sweep"], "holds 2 runs, and an export is of one network"),
        (["output=out", "checkpoint=[a.ckpt,b.ckpt]"], "an export is of one network"),
        (["output=out", "checkpoint=gone.ckpt"], "there is no such file"),
        ([], "output is not given"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(
    words: list[str], says: str, runs: dict[str, Path], command: Command
) -> None:
    best = runs["patches"] / "checkpoints" / "best.ckpt"
    Path("full").mkdir()
    Path("full/something").touch()
    Path("file").touch()
    for n in range(2):
        Path(f"sweep/{n}/checkpoints").mkdir(parents=True)
        shutil.copy(best, f"sweep/{n}/checkpoints/best.ckpt")
    given = any(word.startswith("checkpoint=") for word in words)
    ended = command("export", *words, *([] if given else [f"checkpoint={best}"]))
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert says in ended.err
    assert not Path("out").exists()


def test_a_bundles_groups_are_pancsegs() -> None:
    for slices in range(1, 80):
        for depth in (1, 7, 32):
            assert group_starts(slices, depth) == covering_starts(slices, depth)


def test_a_bundle_takes_every_nifti_file_but_its_own_masks(tmp_path: Path) -> None:
    names = ["a.nii", "b/a.nii.gz", "b/c.d.nii.gz", "b/a_pancreas.nii.gz", "b/notes.nii.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(item["name"]) for item in find_scans(str(tmp_path))] == ["a", "b/a", "b/c.d"]
    assert [str(item["name"]) for item in find_scans(str(tmp_path / "b/a.nii.gz"))] == ["a"]
    (tmp_path / "a.nii.gz").touch()
    with pytest.raises(ValueError, match="of one name"):
        find_scans(str(tmp_path))
    for nothing in (None, str(tmp_path / "gone"), str(tmp_path / "b" / "notes.nii.txt")):
        with pytest.raises(FileNotFoundError, match="give another"):
            find_scans(nothing)


def test_a_bad_scan_in_a_bundles_folder_stops_no_other(scans: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"no image at all")
    items = [{"image": bad, "name": Path("bad")}]
    items += [{"image": scans / "one.nii.gz", "name": Path("one")}]
    out = tmp_path / "out"
    runner = Evaluator(items, lambda image: np.ones(image.shape), MaskOf(0.5, True), str(out))
    with pytest.raises(RuntimeError, match="1 of 2 scans failed"):
        runner.run()
    assert [path.name for path in out.iterdir()] == ["one_pancreas.nii.gz"]
