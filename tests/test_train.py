"""The command ``train``: files and TensorBoard of a run, rates, weights, and refusals."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from torch import Tensor

from pancseg.config import TRAINING_LOCK
from pancseg.models.segmenter import Segmenter
from pancseg.training.tensorboard import THRESHOLDS, count_by_probability, precision_recall
from tests.conftest import contents, smoke

FILES = """.hydra/config.yaml splits.json checkpoints/best.ckpt checkpoints/last.ckpt metrics.csv
    tensorboard history.png summary.json"""
COLUMNS = """epoch step train/loss train/dice train/recipe_metric val/loss val/dice
    val/recipe_metric lr seconds"""
PATCHES = ["sampling=patches", "data.spacing_mm=[8,8,8]", "sampling.steps_per_epoch=4"]
SHORT = "trainer.max_epochs=1"


def metrics_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read(path: Path):
    return json.loads(path.read_text())


def load(run: Path, name: str = "best"):
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def without(start: str, words: list[str]) -> list[str]:
    return [word for word in words if not word.startswith(start)]


# files and lines of a run


def test_a_run_leaves_the_files_columns_and_figures_of_the_contract(trained, prepared):
    assert [name for name in FILES.split() if not (trained / name).exists()] == []
    assert (trained / "metrics.csv").read_text().splitlines()[0] == ",".join(COLUMNS.split())
    rows = metrics_of(trained)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(row["train/loss"]) > 0 and row["lr"] == "0.001" for row in rows)
    summary, dices = read(trained / "summary.json"), [float(row["val/dice"]) for row in rows]
    best = summary["best_dice"], summary["best_epoch"]
    assert best == (pytest.approx(max(dices)), 1 + dices.index(max(dices)))
    assert summary["parts"]["train"] == {"patients": 3, "groups": 6}
    assert summary["split"] == {"rule": "holdout", "seed": 0, "val": 1, "test": 2}
    assert "network's grid of 32 x 32 x 32" in summary["geometry"]
    assert (summary["held_out"], summary["partial"]) == (True, False)
    split = read(trained / "splits.json")
    patients = split["train"] + split["val"] + split["test"]
    assert sorted(patients) == [f"phantom-3-00{n}" for n in range(6)]
    for path in trained.rglob("*"):  # none names a path of the data
        if path.is_file() and path.suffix != ".ckpt" and ".hydra" not in path.parts:
            assert str(prepared).encode() not in path.read_bytes(), path


def test_fast_dev_run_prepares_an_unprepared_root_and_writes_no_run(dicom, tmp_path, command):
    root, run = tmp_path / "new", tmp_path / "run"
    source = [f"source.{role}={dicom / role}" for role in ("images", "labels")]
    words = ["source=dicom", *source, "privacy=none", "trainer.fast_dev_run=true"]
    ended = command("train", *smoke(root, run, *words))
    assert ended.code == 0 and "train completed" in ended.out
    assert (root / "manifest.json").exists()
    files = {path.name for path in run.rglob("*") if path.is_file() and ".hydra" not in path.parts}
    assert files == {"train.log"}


def test_without_validation_the_best_checkpoint_is_the_last(prepared, tmp_path, command):
    ended = command("train", *smoke(prepared, tmp_path, "split.val=0"))
    assert (ended.code, "no validation" in ended.out) == (0, True)
    assert (load(tmp_path)["epoch"], read(tmp_path / "summary.json")["best_dice"]) == (1, None)


def test_tensorboard_holds_scalars_pictures_and_settings_of_a_run(trained):
    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    tags, names = events.Tags(), ("loss", "dice", "recipe_metric")
    assert {f"{part}/{name}" for part in ("train", "val") for name in names} <= set(tags["scalars"])
    assert {"train/samples", "val/volume_1", "val/volume_2"} == set(tags["images"])
    dice = events.Scalars("val/dice")[0].value
    patients = events.Histograms("val/dice_of_patients")[0].histogram_value
    assert (patients.num, patients.sum) == (1, pytest.approx(dice, abs=1e-6))
    # of a description TensorBoard would take the first run's, and not see what differs
    assert metadata.EXPERIMENT_TAG not in events.summary_metadata
    content = events.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
    settings = metadata.parse_session_start_info_plugin_data(content).hparams
    assert settings["optimizer.lr"].number_value == 0.001
    assert not {"split.path", "data.root"} & set(settings)


def test_precision_and_recall_are_those_of_the_voxels():
    probability = torch.tensor([0.1, 0.496, 0.6, 0.9])
    curve = precision_recall(count_by_probability(probability, torch.arange(4) % 2 == 1))
    # true and false positives, true and false negatives, precision, recall
    assert [values[THRESHOLDS // 2] for values in curve] == [1, 1, 1, 1, 0.5, 0.5]
    assert [values[0] for values in curve[4:]] == [0.5, 1]


@pytest.mark.parametrize(
    ("choice", "factors"),  # after 4, 8 and 12 steps
    [
        ("warmup", [5 / 20, 9 / 20, 13 / 20]),
        ("cosine", [0.75, 0.25, 0.0]),  # (1 + cos(pi step / 12)) / 2
        ("poly", [(8 / 12) ** 0.9, (4 / 12) ** 0.9, 0.0]),
    ],
)
def test_the_rate_follows_the_scheduler(prepared, tmp_path, command, choice, factors):
    words = [*PATCHES, f"scheduler={choice}", "optimizer=sgd", "optimizer.lr=0.01"]
    assert command("train", *smoke(prepared, tmp_path, *words, "trainer.max_epochs=3")).code == 0
    rates = [float(row["lr"]) / 0.01 for row in metrics_of(tmp_path)]
    assert rates == pytest.approx(factors, abs=1e-6)


def test_training_of_three_accumulated_steps_is_validated(prepared, tmp_path, command):
    words = [*PATCHES, "trainer.accumulate_grad_batches=2", "hardware.precision=bf16-mixed"]
    words += ["trainer.gradient_clip_val=1", "~callbacks.images", "trainer.max_steps=3"]
    assert command("train", *smoke(prepared, tmp_path, *words)).code == 0
    assert [row["step"] for row in metrics_of(tmp_path)] == ["2", "3"]
    assert metrics_of(tmp_path)[1]["val/dice"]  # in the middle of an epoch


def test_training_stops_where_validation_gets_no_better(prepared, tmp_path, command):
    stuck = ["optimizer.lr=0", "model.norm=instance", "patience=2", "trainer.max_epochs=50"]
    assert command("train", *smoke(prepared, tmp_path, *stuck)).code == 0
    assert len(metrics_of(tmp_path)) == 3


def test_a_run_begins_with_given_weights_unless_it_is_resumed(prepared, trained, tmp_path, command):
    init = f"init_from={trained / 'checkpoints' / 'best.ckpt'}"
    words = smoke(prepared, tmp_path, init, "optimizer.lr=0", "model.norm=batch")
    assert "weights taken" in command("train", *words, SHORT).out
    old, new = load(trained)["state_dict"], load(tmp_path, "last")["state_dict"]
    names = [name for name in old if name.startswith("network.") and name.endswith("weight")]
    assert names and all(torch.equal(old[name], new[name]) for name in names)
    again = command("train", *words, "trainer.max_epochs=2", "ckpt_path=last")
    assert (again.code, "weights taken" in again.out) == (0, False)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("patience=2", "there is no validation to wait for"),
        ("trainer.max_time=10min", "ten minutes are trainer.max_time=00:00:10:00"),
    ],
)
def test_a_training_that_cannot_start_says_why(prepared, tmp_path, command, word, message):
    ended = command("train", *smoke(prepared, tmp_path, "split.val=0", word))
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert message in ended.err


def test_a_loss_of_nan_stops_the_run_before_it_is_saved(prepared, tmp_path, command):
    wild = ["optimizer=sgd", "optimizer.lr=1e30", "trainer.max_epochs=20"]
    ended = command("train", *smoke(prepared, tmp_path, *wild))
    assert (ended.code, "loss is nan" in ended.err) == (1, True)
    for path in tmp_path.rglob("*.ckpt"):
        for weight in torch.load(path, weights_only=True)["state_dict"].values():
            assert not isinstance(weight, Tensor) or weight.isfinite().all()


def test_out_of_memory_is_reported_with_keys(prepared, tmp_path, command, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(Segmenter, "training_step", full)
    ended = command("train", *smoke(prepared, tmp_path))
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "memory ran out with data.batch_size=2 and data.spatial_size=[32, 32, 32]" in ended.err


def test_a_folder_that_holds_a_training_is_unchanged(prepared, trained, tmp_path, command):
    run = shutil.copytree(trained, tmp_path / "run")
    before = contents(run)
    ended = command("train", *smoke(prepared, run, "seed=1"))
    assert (ended.code, f"{run}: holds a training; give ckpt_path=last" in ended.err) == (2, True)
    with FileLock(run / TRAINING_LOCK):
        ended = command("train", *smoke(prepared, run, "seed=1"))
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert "another pancseg.train is writing to it; wait" in ended.err
        changed = {name for name, content in contents(run).items() if before.get(name) != content}
    assert changed <= {"train.log", TRAINING_LOCK}
