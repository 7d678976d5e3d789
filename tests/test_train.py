"""The command ``train``: its files, its lines, resuming, interrupting, sweeping."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import Command, smoke

COLUMNS = (
    "epoch,step,train/loss,train/dice,train/recipe_metric,"
    "val/loss,val/dice,val/recipe_metric,lr,seconds"
)


def metrics_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def test_a_run_leaves_the_files_of_the_contract(trained: Path) -> None:
    names = [
        ".hydra/config.yaml", "splits.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt",
        "metrics.csv", "tensorboard", "history.png", "summary.json",
    ]  # fmt: skip
    assert [name for name in names if not (trained / name).exists()] == []


def test_the_table_has_a_row_an_epoch_and_the_columns_of_the_contract(trained: Path) -> None:
    assert (trained / "metrics.csv").read_text().splitlines()[0] == COLUMNS
    rows = metrics_of(trained)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(row["train/loss"]) > 0 and row["lr"] == "0.001" for row in rows)


def test_the_summary_says_what_was_trained_and_measured(trained: Path) -> None:
    summary = summary_of(trained)
    dices = [float(row["val/dice"]) for row in metrics_of(trained)]
    assert summary["best_dice"] == pytest.approx(max(dices))
    assert summary["best_epoch"] == 1 + dices.index(max(dices))
    assert summary["parts"]["train"] == {"patients": 3, "groups": 6}
    assert summary["split"] == {"rule": "holdout", "seed": 0, "val": 1, "test": 2}
    assert "network's grid of 32 x 32 x 32" in summary["geometry"]
    assert summary["hardware"]["precision"] == "32-true" or torch.cuda.is_available()
    assert summary["held_out"] is True


def test_the_split_names_each_patient_once(trained: Path) -> None:
    split = json.loads((trained / "splits.json").read_text())
    dealt = split["train"] + split["val"] + split["test"]
    assert sorted(dealt) == [f"phantom-3-00{n}" for n in range(6)]
    assert (split["rule"], split["seed"]) == ("holdout", 0)


def test_tensorboard_holds_scalars_pictures_and_the_score_of_the_run(trained: Path) -> None:
    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    tags = events.Tags()
    assert {"train/loss", "val/dice", "best/val_dice"} <= set(tags["scalars"])
    assert set(tags["images"]) == {"train/samples", "val/volume_1", "val/volume_2"}
    best = events.Scalars("best/val_dice")[-1].value
    assert best == pytest.approx(summary_of(trained)["best_dice"])


def test_figures_of_each_step_are_entered_at_the_interval_asked_for(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    words = ["trainer.log_every_n_steps=2", "trainer.max_epochs=2"]
    assert command("train", *smoke(prepared, tmp_path / "run", *words)).code == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name in ("train/loss_step", "train/dice_step", "train/recipe_metric_step"):
        assert [event.step for event in events.Scalars(name)] == [1, 3, 5]


def test_an_epochs_line_and_the_closing_line_read_as_the_recipes(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    ended = command("train", *smoke(prepared, tmp_path / "run", "trainer.max_epochs=1"))
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert "train 3 patients" in lines[0]
    assert lines[1].startswith("network  0.0 M parameters, ")
    assert lines[2].startswith("epoch 1/1 train loss 0.")
    assert " | val loss 0." in lines[2]
    assert " | best " in lines[2]
    assert lines[3].startswith("train completed, best dice ")


def test_the_same_seed_gives_the_same_curve(prepared: Path, trained: Path, tmp_path: Path) -> None:
    from tests.conftest import run_command

    assert run_command("train", *smoke(prepared, tmp_path / "again")) == 0
    columns = COLUMNS.split(",")[:-1]
    one, other = ([[row[c] for c in columns] for row in metrics_of(run)]
                  for run in (trained, tmp_path / "again"))  # fmt: skip
    assert one == other


def test_a_resumed_run_goes_on_in_its_folder_with_all_of_its_history(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "run"
    command("train", *smoke(prepared, run, "trainer.max_epochs=1"))
    first = metrics_of(run)
    where = [word for word in smoke(prepared, run) if not word.startswith("hydra.run.dir")]
    ended = command("train", *where, f"ckpt_path={run / 'checkpoints' / 'last.ckpt'}")
    assert ended.code == 0
    rows = metrics_of(run)
    assert rows[:1] == first
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert int(rows[1]["step"]) == 2 * int(rows[0]["step"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("split.seed=1", "trained with another split"),
        ("model.norm=instance", "trained with model.norm=batch, not instance; give the same"),
        ("optimizer.lr=0.5", "trained with optimizer.lr=0.001, not 0.5; give the same"),
        ("optimizer=sgd", "trained with optimizer."),
        ("sampling=patches", "trained with sampling.kind=whole, not patches"),
        ("data.spatial_size=[48,32,32]", "trained with data.spatial_size=[32,32,32], not [48,"),
        ("data.window_hu=[-100,100]", "trained with data.window_hu=[-200,200], not [-100,100]"),
        ("scheduler=cosine", "with scheduler._target_=torch.optim.lr_scheduler.ConstantLR, not"),
        ("loss=dice_ce", "trained with loss."),
        ("augment=light", "trained with augment."),
        ("seed=1", "trained with seed=0, not 1; give the same"),
        ("init_from=x.ckpt", "init_from: a training that ckpt_path resumes has weights; give one"),
    ],
)
def test_a_resume_that_does_not_fit_is_refused_and_leaves_the_run_alone(
    prepared: Path, trained: Path, tmp_path: Path, command: Command, change: str, says: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    where = [word for word in smoke(prepared, run) if not word.startswith("hydra.run.dir")]
    ended = command("train", *where, f"ckpt_path={run / 'checkpoints' / 'last.ckpt'}", change)
    assert ended.code == 2
    assert says in ended.err
    changed = {path.name for path, content in before.items() if path.read_bytes() != content}
    assert changed <= {"train.log"}


def test_ctrl_c_ends_with_130_and_leaves_the_last_whole_epoch(
    prepared: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = smoke(prepared, run, "trainer.max_epochs=100000")
    training = subprocess.Popen(
        [sys.executable, "-m", "pancseg.train", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # a shell ignores Ctrl-C for what it runs in the background, and so do its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    for _ in range(1200):
        if (run / "checkpoints" / "last.ckpt").exists():
            break
        time.sleep(0.1)
    training.send_signal(signal.SIGINT)
    _, err = training.communicate(timeout=60)
    assert training.returncode == 130
    assert err.splitlines()[-1] == "interrupted"
    assert (run / "history.png").exists()
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] % 3 == 0


def test_the_strong_experiment_trains_on_whole_scans(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    run, small = tmp_path / "run", ["data.patch_voxels=40000", "sampling.steps_per_epoch=2"]
    where = [f"data.root={prepared}", f"hydra.run.dir={run}", "hardware.width=2"]
    ended = command("train", "experiment=strong", *where, *small, "trainer.max_epochs=1")
    assert ended.code == 0, ended.err
    assert "planned  patches of" in ended.out
    assert summary_of(run)["held_out"] is True
    assert command("evaluate", f"checkpoint={run / 'checkpoints' / 'best.ckpt'}").code == 0


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="compiling needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.*jit.script_method:DeprecationWarning")  # torch.compile does
def test_a_compiled_network_trains_and_its_checkpoint_is_one_of_any_other(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "run"
    compiled = ["hardware.compile=true", "trainer.max_epochs=1"]
    assert command("train", *smoke(prepared, run, *compiled)).code == 0
    assert command("evaluate", f"checkpoint={run / 'checkpoints' / 'best.ckpt'}").code == 0


def test_fast_dev_run_takes_one_batch_and_writes_no_run(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "run"
    ended = command("train", *smoke(prepared, run, "trainer.fast_dev_run=true"))
    assert ended.code == 0
    assert "train completed" in ended.out
    files = {path.name for path in run.rglob("*") if path.is_file() and ".hydra" not in path.parts}
    assert files == {"train.log"}


def test_same_says_everywhere_that_nothing_was_held_out(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "run"
    where = [word for word in smoke(prepared, run) if not word.startswith("split.")]
    ended = command("train", *where, "split=same", "trainer.max_epochs=1")
    assert "NOT HELD OUT" in ended.out
    assert summary_of(run)["held_out"] is False
    scored = command("evaluate", f"checkpoint={run / 'checkpoints' / 'best.ckpt'}")
    assert "NOT HELD OUT" in scored.out
    assert json.loads((run / "scores" / "test.json").read_text())["held_out"] is False


def test_without_validation_the_best_checkpoint_is_the_last(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "run"
    ended = command("train", *smoke(prepared, run, "split.val=0"))
    assert ended.code == 0
    assert "no validation" in ended.out
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == 1
    assert summary_of(run)["best_dice"] is None


def test_train_prepares_first_where_there_is_a_source_and_no_manifest(
    dicom: Path, tmp_path: Path, command: Command
) -> None:
    source = ["source=dicom", f"source.images={dicom / 'images'}",
              f"source.labels={dicom / 'labels'}", "privacy=none"]  # fmt: skip
    words = smoke(tmp_path / "new", tmp_path / "run", *source, "trainer.fast_dev_run=true")
    ended = command("train", *words)
    assert ended.code == 0
    assert (tmp_path / "new" / "manifest.json").exists()


def test_a_grid_whose_second_job_cannot_run_still_runs_the_third(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    words = [word for word in smoke(prepared, tmp_path) if not word.startswith("hydra.run.dir")]
    sizes = "data.spatial_size=[32,32,32],[32,32,90],[32,48,32]"
    sweep = [f"hydra.sweep.dir={tmp_path / 'sweep'}", "trainer.max_epochs=1", sizes]
    ended = command("train", "-m", *words, *sweep)
    assert ended.code == 1
    assert "job 1 failed: data.spatial_size=[32, 32, 90]: axis 2 is 90" in ended.err
    done = sorted(path.parent.name for path in (tmp_path / "sweep").rglob("summary.json"))
    assert done == ["0", "2"]


def test_what_is_written_names_no_path_of_the_data(prepared: Path, trained: Path) -> None:
    for path in trained.rglob("*"):
        if path.is_file() and path.suffix != ".ckpt" and ".hydra" not in path.parts:
            assert str(prepared).encode() not in path.read_bytes(), path


def test_where_no_validation_patient_has_a_label_the_loss_chooses_the_checkpoint(
    prepared: Path, trained: Path, tmp_path: Path, command: Command
) -> None:
    root, run = tmp_path / "root", tmp_path / "run"
    shutil.copytree(prepared, root)
    (patient,) = json.loads((trained / "splits.json").read_text())["val"]
    manifest = json.loads((root / "manifest.json").read_text())
    for entry in [*manifest["cases"], *manifest["groups"]]:
        if entry["patient"] == patient:
            entry["label_voxels"] = 0
            label = nib.load(root / entry["label"])
            empty = np.zeros(label.shape, np.uint8)
            nib.save(nib.Nifti1Image(empty, label.affine), root / entry["label"])
    (root / "manifest.json").write_text(json.dumps(manifest))
    ended = command("train", *smoke(root, run))
    assert ended.code == 0, ended.err
    assert "no validation patient has a labelled voxel: the best checkpoint is by" in ended.out
    assert all(row["val/dice"] == "" for row in metrics_of(run))
    losses = [float(row["val/loss"]) for row in metrics_of(run)]
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert content["epoch"] == losses.index(min(losses))
    assert summary_of(run)["best_dice"] is None
