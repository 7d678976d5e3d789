"""The benchmarks' own arithmetic and files, on data small enough for a test."""

import doctest
import json
import subprocess
import sys
from importlib import import_module
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace

import hydra
import nibabel as nib
import numpy as np
import pytest
import torch
from omegaconf import DictConfig

from pancseg.config import conf_folder, register_resolvers
from pancseg.data.manifest import read_manifest
from pancseg.inference.predictor import Predictor
from tests.conftest import run_command

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = [path.stem for path in sorted(FOLDER.glob("*.py"))]
RESULT = {"arm": "b", "budget_s": 90.0, "wall_s": 88.4, "steps": 7, "note": ""}


@pytest.fixture(autouse=True)
def _scripts_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)


def script(name: str) -> ModuleType:
    return import_module(name)


def composed(*overrides: str) -> DictConfig:
    register_resolvers()
    with hydra.initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return hydra.compose("train", list(overrides))


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_examples_of_a_script_are_right(name: str) -> None:
    assert doctest.testmod(script(name)).failed == 0


def test_the_page_of_metrics_finds_ours_as_by_hand_and_says_where_libraries_differ(
    capsys: pytest.CaptureFixture[str],
) -> None:
    script("metrics_by_hand").main()
    page = capsys.readouterr().out
    assert "\n0 of 192 values differ from those by hand.\n" in page
    assert "| missed: prediction empty | hd95_mm | 52.14 | MONAI | none |" in page
    assert "| half of it | dice, defaults | 0.6667 | torchmetrics | 0.8323 |" in page
    written = (FOLDER.parent / "docs" / "metrics_by_hand.md").read_text()
    assert page.splitlines()[4:] == written.splitlines()[4:]


@pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")
def test_the_plain_script_trains_on_given_patients_and_saves_at_each_mark(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = script("plain_recipe")
    groups = plain.training_groups(prepared, ["phantom-3-001"])
    assert groups and all("phantom-3-001_" in path for one in groups for path in one.values())
    ticks = count()  # each look at the clock takes a second
    monkeypatch.setattr(plain, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    rows = plain.train(groups[:1], lr=1e-3, marks=[1, 4], out=tmp_path, threads=1, tiny=True)
    assert [(row["mark"], row["steps"], row["seconds"]) for row in rows] == [(1, 1, 2), (4, 2, 4)]
    early, late = (torch.load(tmp_path / f"weights_{mark}.pt") for mark in (1, 4))
    assert any(not torch.equal(early[key], late[key]) for key in early)


def test_the_recipe_of_the_plain_script_is_the_one_of_pancseg() -> None:
    plain, cfg = script("plain_recipe"), composed("experiment=recipe64")
    assert list(plain.SIZE) == list(cfg.data.spatial_size)
    assert list(plain.CHANNELS) == list(cfg.model.channels)


def test_both_splits_test_on_the_same_patients_and_share_none(
    prepared: Path, tmp_path: Path
) -> None:
    bench = script("time_to_dice").Bench(tmp_path, (4, 2), 8.0, threads=1, quick=True)
    (tmp_path / "prepared").symlink_to(prepared)
    script("time_to_dice").write_splits(bench)
    one, with_val = (
        json.loads((tmp_path / name).read_text()) for name in ("split.json", "split_with_val.json")
    )
    assert (len(one["train"]), one["val"], len(one["test"])) == (4, [], 2)
    assert with_val["test"] == one["test"]
    assert len(with_val["val"]) == 1
    assert sorted(with_val["train"] + with_val["val"]) == one["train"]
    assert not set(one["train"]) & set(one["test"])


def test_the_plain_script_is_judged_by_the_sigmoid_that_its_loss_taught_it(tmp_path: Path) -> None:
    network = script("plain_recipe").make_network(tiny=True).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    model = script("time_to_dice").plain_model(tmp_path / "weights.pt", tiny=True)
    image = torch.rand(32, 32, 32)
    with torch.no_grad():
        expected = 1 / (1 + torch.exp(-network(image[None, None])[0, 1]))
    found = Predictor([model]).apply(0, image)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_a_training_is_given_its_seconds_as_hours_minutes_and_seconds(tmp_path: Path) -> None:
    module = script("time_to_dice")
    bench = module.Bench(tmp_path, (4, 2), 8.0, threads=1, quick=False)
    words = module.train_words(bench, module.ARMS["d"], tmp_path / "run", 3725.9)
    assert "trainer.max_time='00:01:02:05'" in words
    assert f"split.path='{tmp_path}/split_with_val.json'" in words


def test_every_arm_of_pancseg_composes() -> None:
    for arm in script("dice_over_time").ARMS.values():
        composed(*arm.overrides, *arm.tiny)


def test_the_table_has_mean_interval_and_worst_case_and_the_plot_is_drawn(tmp_path: Path) -> None:
    module = script("dice_over_time")
    results = [{**RESULT, "dice": {"p1": 0.4, "p2": 0.6}}]
    last = module.table(results).splitlines()[-1]
    assert last == (
        "| plain script, lr 1e-3 | 90 | 88 | 7 | 0.500 | 0.400 to 0.600 | 0.400 (p1) | 2 |"
    )
    module.draw(results, tmp_path / "plot.png", "made up")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_result_that_is_there_is_not_measured_again(tmp_path: Path) -> None:
    module, bench = script("dice_over_time"), script("time_to_dice")
    module.write_result(tmp_path, "b", 90.0, 88.4, 7, {"p1": 0.5})
    assert module.read_results(tmp_path) == [{**RESULT, "dice": {"p1": 0.5}}]
    here = bench.Bench(tmp_path, (4, 2), 8.0, threads=1, quick=False)
    assert bench.missing(here, "b", [90.0, 240.0]) == [240.0]


def test_nnunet_is_given_the_training_cases_with_labels_and_the_test_cases_without(
    prepared: Path, tmp_path: Path
) -> None:
    module, raw = script("against_nnunet"), tmp_path / "raw"
    split = {"train": ["phantom-3-000", "phantom-3-002"], "test": ["phantom-3-004"]}
    module.write_raw(prepared, split, raw)
    cases = {case.patient: case for case in read_manifest(prepared).cases}
    names = {
        folder: sorted(path.name for path in (raw / folder).iterdir())
        for folder in ("imagesTr", "labelsTr", "imagesTs")
    }
    train = [cases[patient].name for patient in split["train"]]
    assert names == {
        "imagesTr": [f"{case}_0000.nii.gz" for case in train],
        "labelsTr": [f"{case}.nii.gz" for case in train],
        "imagesTs": [f"{cases['phantom-3-004'].name}_0000.nii.gz"],
    }
    label = nib.Nifti1Image.from_filename(raw / "labelsTr" / names["labelsTr"][0])
    image = nib.Nifti1Image.from_filename(raw / "imagesTr" / names["imagesTr"][0])
    np.testing.assert_allclose(label.affine, image.affine, atol=1e-4)
    assert np.asanyarray(label.dataobj).sum() == cases["phantom-3-000"].label_voxels
    assert json.loads((raw / "dataset.json").read_text())["numTraining"] == 2
    # the drawn labels, taken for predictions, are perfect
    scores = module.score(prepared, split["train"], raw / "labelsTr")
    assert scores == {"phantom-3-000": 1.0, "phantom-3-002": 1.0}


@pytest.mark.slow
def test_time_to_dice_runs_from_phantoms_to_table_and_plot(tmp_path: Path) -> None:
    path = Path(__file__).parent.parent / "benchmarks" / "time_to_dice.py"
    words = ["--work", str(tmp_path), "--quick", "--arms", "b,d"]
    ended = subprocess.run([sys.executable, path, *words], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    rows = (tmp_path / "table.md").read_text().splitlines()[-2:]
    assert [row.split("|")[1].strip() for row in rows] == [
        "plain script, lr 1e-3", "pancseg, strong",
    ]  # fmt: skip
    assert (tmp_path / "time_to_dice.png").is_file()


def test_what_nnunet_is_given_as_trainer_is_python() -> None:
    compile(script("against_nnunet").TRAINER, "budget_trainer.py", "exec")


def test_every_measure_is_a_setting_that_exists_and_is_on_alone() -> None:
    module = script("training_step")
    names = [measure.name for measure in module.MEASURES]
    wanted = module.settings([*names, module.ALL], has_gpu=True)
    assert len(wanted) == 2 * len(names) + 2
    for measure in module.MEASURES:
        assert wanted[measure.name, "on"] == [*module.plain_values(), measure.on]
    composed(*module.plain_values())
    composed(*(measure.on for measure in module.MEASURES))
    assert not [key for key in module.settings(names, has_gpu=False) if "GPU" in key[0]]


def test_the_table_of_measures_says_how_many_times_faster_and_what_did_not_run() -> None:
    module = script("training_step")
    slow = {
        "step_s": 3.0,
        "waiting": 0.5,
        "first_s": 4.0,
        "peak_mb": 9,
        "worker_mb": 0,
        "gpu_mb": 0,
    }
    runs = {"off": [slow] * 3, "on": [{**slow, "step_s": s} for s in (1.0, 2.0, 90.0)]}
    results = {("fast", state): module.medians(found) for state, found in runs.items()}
    results["other", "off"] = module.medians([slow, "no such key"])
    assert module.table(results).splitlines()[2:] == [
        "| fast | off | 3 | 1.00 | 50% | 4 | 9 | 0 | 0 |",
        "| fast | on | 2 | 1.50 | 50% | 4 | 9 | 0 | 0 |",
        "| other | off | did not run: no such key | | | | | | |",
    ]


def test_epochs_are_extrapolated_from_the_steps_between_two_budgets() -> None:
    module = script("epoch_time")
    rows = [
        {"arm": "c", "budget_s": budget, "wall_s": wall, "steps": steps}
        for budget, wall, steps in ((90, 85.0, 10), (600, 598.0, 2002), (240, 230.0, 530))
    ]
    assert module.steps_per_second(rows, "c") == pytest.approx(1472 / 368)
    assert module.steps_per_second(rows, "a") is None
    limits = {"float32": 1e12, "bf16": 2e12, "copy": 1e10}
    row = module.table({"a": 2.0, "c": 4.0}, limits).splitlines()[-1]
    assert row.startswith("| pancseg, recipe64 | 4 | 32.2 | 5.38 | 2.00 | ")


def test_growth_worse_than_linear_is_marked() -> None:
    module = script("large_root")
    results = {
        n: {"squared": (0.5 + (n / 1000) ** 2, 100.0), "quick": (0.01, 90.0 + n)}
        for n in (0, 1000, 2000)
    }
    assert module.table(results).splitlines()[2:] == [
        "| squared | 0.50 | 1.50 | 4.50 | 2.00 (!) | 100, 100 |",
        "| quick | 0.01 | 0.01 | 0.01 | - | 90, 2090 |",
    ]


@pytest.mark.slow
def test_a_large_root_is_measured_on_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, codes = script("large_root"), []
    monkeypatch.setattr(module, "run_command", lambda *words: codes.append(run_command(*words)))
    for number in range(8):
        module.write_source(tmp_path, number)
    seconds = [module.MEASURES[name](tmp_path) for name in module.MEASURES]
    assert min(value for each in seconds for value in each.values()) > 0
    assert codes == [0] * 5
    assert len(read_manifest(tmp_path / "root").groups) == 4 * 9


def test_a_conversion_for_the_comparison_with_other_software_writes_the_scan(
    dicom: Path, tmp_path: Path
) -> None:
    series = min((dicom / "images").iterdir())
    assert script("intake").convert_pancseg(series, tmp_path) > 0
    truth = nib.load(dicom / "truth" / f"{series.name}_image.nii.gz")
    written = nib.load(tmp_path / "pancseg.nii.gz")
    assert written.shape == truth.shape
    np.testing.assert_allclose(written.affine, truth.affine, atol=1e-3)


def test_traffic_counts_what_is_read_and_written_and_no_view() -> None:
    one = torch.ones(10, device="meta")
    with script("epoch_time").Traffic() as traffic:
        one.view(2, 5)
        assert traffic.bytes == 0
        one + one
        assert traffic.bytes == 3 * 40
