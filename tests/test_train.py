"""The command ``train``: its files, lines and rates, and the trainings that it refuses."""

import csv
import json
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from filelock import FileLock
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from pancseg.config import TRAINING_LOCK, locked_run, settings_folder
from pancseg.errors import PancsegError
from pancseg.models.factory import build
from pancseg.models.pretrained import load_pretrained, open_weights
from pancseg.models.segmenter import Segmenter
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
    for path in trained.rglob("*"):  # names no path of the data
        if path.is_file() and path.suffix != ".ckpt" and ".hydra" not in path.parts:
            assert str(prepared).encode() not in path.read_bytes(), path


def test_lines_of_an_epoch_and_figures_of_logged_steps(prepared, tmp_path, command):
    target = "{_target_:pytorch_lightning.loggers.CSVLogger,save_dir:csv,name:runs,version:x}"
    words = ["trainer.log_every_n_steps=2", SHORT, f"+logger.csv={target}"]
    ended = command("train", *smoke(prepared, tmp_path / "run", *words))
    first, network, epoch, last, *_ = ended.out.splitlines()
    assert ended.code == 0 and "train 3 patients" in first
    assert network.startswith("network  0.0 M parameters, ")
    assert epoch.startswith("epoch 1/1 train loss 0.")
    assert " | val loss 0." in epoch and " | best " in epoch
    assert last.startswith("train completed, best dice ")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name in ("train/loss_step", "train/dice_step", "train/recipe_metric_step"):
        assert [event.step for event in events.Scalars(name)] == [1]
    assert "best/val_dice" in Path("csv/runs/x/metrics.csv").read_text()


def test_the_strong_experiment_trains_on_whole_scans(prepared, tmp_path, command):
    small = ["data.patch_voxels=40000", "sampling.steps_per_epoch=2", "hardware.width=2", SHORT]
    where = [f"data.root={prepared}", f"hydra.run.dir={tmp_path}"]
    ended = command("train", "experiment=strong", *where, *small)
    assert ended.code == 0 and "planned  patches of" in ended.out
    assert command("evaluate", f"checkpoint={tmp_path / 'checkpoints' / 'best.ckpt'}").code == 0


def test_fast_dev_run_and_preview_train_nothing_and_write_no_run(dicom, tmp_path, command):
    root, run = tmp_path / "new", tmp_path / "run"  # an unprepared root is prepared
    source = [f"source.{role}={dicom / role}" for role in ("images", "labels")]
    words = ["source=dicom", *source, "privacy=none", "trainer.fast_dev_run=true"]
    ended = command("train", *smoke(root, run, *words))
    assert ended.code == 0 and "train completed" in ended.out
    assert (root / "manifest.json").exists()
    files = {path.name for path in run.rglob("*") if path.is_file() and ".hydra" not in path.parts}
    assert files == {"train.log"}
    assert command("train", *smoke(root, run, *PATCHES, "augment=full", "preview=true")).code == 0
    assert (run / "preview.png").read_bytes()[:4] == b"\x89PNG"
    assert not (run / "checkpoints").exists()


def test_without_validation_the_best_checkpoint_is_the_last(prepared, tmp_path, command):
    run, rare = tmp_path / "run", tmp_path / "rare"
    ended = command("train", *smoke(prepared, run, "split.val=0"))
    assert (ended.code, "no validation" in ended.out) == (0, True)
    assert (load(run)["epoch"], read(run / "summary.json")["best_dice"]) == (1, None)
    ended = command("train", *smoke(prepared, rare, SHORT, "trainer.check_val_every_n_epoch=2"))
    assert "nothing was validated: best.ckpt is the last" in ended.out and load(rare)


def test_without_labels_in_validation_the_loss_decides(prepared, trained, tmp_path, command):
    root, run = shutil.copytree(prepared, tmp_path / "root"), tmp_path / "run"
    (patient,) = read(trained / "splits.json")["val"]
    manifest = read(root / "manifest.json")
    for entry in [*manifest["cases"], *manifest["groups"]]:
        if entry["patient"] == patient:
            entry["label_voxels"], label = 0, nib.load(root / entry["label"])
            empty = nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine)
            nib.save(empty, root / entry["label"])
    (root / "manifest.json").write_text(json.dumps(manifest))
    ended = command("train", *smoke(root, run))
    assert "no validation patient has a labelled voxel: the best checkpoint is by" in ended.out
    assert all(row["val/dice"] == "" for row in metrics_of(run))
    losses = [float(row["val/loss"]) for row in metrics_of(run)]
    assert load(run)["epoch"] == losses.index(min(losses))


# rates and steps

STEP_LR = """constant scheduler._target_=torch.optim.lr_scheduler.StepLR ~scheduler.factor
    ~scheduler.total_iters +scheduler.step_size=4 +scheduler.gamma=0.5"""


@pytest.mark.parametrize(
    ("choice", "factors"),  # after 4, 8 and 12 steps
    [
        ("constant", [1.0, 1.0, 1.0]),
        ("warmup", [5 / 20, 9 / 20, 13 / 20]),
        ("cosine", [0.75, 0.25, 0.0]),  # (1 + cos(pi step / 12)) / 2
        ("poly", [(8 / 12) ** 0.9, (4 / 12) ** 0.9, 0.0]),
        (STEP_LR, [0.5, 0.25, 0.125]),
    ],
)
def test_the_rate_follows_the_scheduler(prepared, tmp_path, command, choice, factors):
    words = [*PATCHES, *f"scheduler={choice}".split(), "optimizer=sgd", "optimizer.lr=0.01"]
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


# initial weights


def test_a_run_begins_with_given_weights_unless_it_is_resumed(prepared, trained, tmp_path, command):
    init = f"init_from={trained / 'checkpoints' / 'best.ckpt'}"
    words = smoke(prepared, tmp_path, init, "optimizer.lr=0", "model.norm=batch")
    assert "weights taken" in command("train", *words, SHORT).out
    old, new = load(trained)["state_dict"], load(tmp_path, "last")["state_dict"]
    names = [name for name in old if name.startswith("network.") and name.endswith("weight")]
    assert names and all(torch.equal(old[name], new[name]) for name in names)
    again = command("train", *words, "trainer.max_epochs=2", "ckpt_path=last")
    assert (again.code, "weights taken" in again.out) == (0, False)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_state_dict_as_monai_saves_it_is_loaded(tmp_path, wrapped):
    net = {"_target_": "monai.networks.nets.BasicUNet", "out_channels": 2, "features": [2] * 6}
    theirs, ours = build(net, torch.nn.Module), build(net, torch.nn.Module)
    weights = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    torch.save({"model": weights} if wrapped else weights, tmp_path / "monai.pt")
    assert " of " in load_pretrained(ours, open_weights(tmp_path / "monai.pt"))
    expected = theirs.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in ours.state_dict().items())


# errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("split.val=0 patience=2", "there is no validation to wait for"),
        ("~callbacks.epoch_report", "callbacks.epoch_report: metrics.csv and summary.json need it"),
        ("trainer.max_time=10min", "ten minutes are trainer.max_time=00:00:10:00"),
        ("scheduler=cosine trainer.max_epochs=-1", "scheduler.T_max: give it, trainer.max_epochs"),
        ("init_from=words.pt", "init_from=words.pt: is neither a checkpoint nor a state_dict"),
        ("init_from=other.pt", "init_from=other.pt: holds 0 of this network's"),
        ("SLURM_NTASKS=2 SLURM_PROCID=0", "2 tasks; give srun --ntasks-per-node, not --ntasks"),
        ("SLURM_NTASKS=2 SLURM_PROCID=0 SLURM_NTASKS_PER_NODE=2", "are 1 processes, Slurm started"),
        ("WORLD_SIZE=2 trainer.num_nodes=2 ~hydra.run.dir", "give hydra.run.dir=FOLDER"),
        ("-m hydra/launcher=submitit_slurm PATH= ~hydra.run.dir", "Could not detect "),
    ],
)
def test_errors_of_a_line(prepared, tmp_path, command, monkeypatch, words, message):
    Path("words.pt").write_bytes(b"words")
    torch.save({"a": torch.zeros(1)}, "other.pt")
    given = smoke(prepared, tmp_path / "run")
    for word in words.split():
        name, _, value = word.partition("=")
        if name.isupper():
            monkeypatch.setenv(name, value or str(Path(sys.executable).parent))
        elif word.startswith("~hydra"):
            given = without(word[1:], given)
        else:
            given = [word, *given] if word == "-m" else [*given, word]
    ended = command("train", *given)
    assert (ended.code, ended.err.count("\n")) == (1 if "-m" in words else 2, 1)
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


# the run's folder


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


def test_a_lock_admits_other_ranks_and_removes_killed_writes(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    for folder in (tmp_path, tmp_path / "checkpoints"):
        (folder / ".partial-0123-last.ckpt").touch()
    with locked_run(tmp_path), locked_run(tmp_path, is_writing=False):
        assert not [*tmp_path.rglob(".partial-*")]
        with pytest.raises(PancsegError, match="another pancseg"), locked_run(tmp_path):
            pass
    with locked_run(tmp_path):
        pass
    assert settings_folder(None, str(tmp_path)) == ".hydra"
    for variable in ("LOCAL_RANK", "SLURM_PROCID"):  # only the first process writes settings
        with monkeypatch.context() as patch:
            patch.setenv(variable, "1")
            assert settings_folder(None, str(tmp_path)) is None
