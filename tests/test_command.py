"""How commands end: one line, the right code."""

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from tqdm import tqdm

from pancseg import cli
from pancseg.cli import close_progress_bars, one_line, print_thread_error
from tests.conftest import SHALLOW, UNMEASURED, Command, smoke
from tests.tiny_dicom import write_series

START = {**os.environ, "PYTHONWARNINGS": "ignore"}
COMMANDS = ["train", "prepare", "evaluate", "predict", "report", "export", "phantom", "doctor"]


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "data=group32x"], "no such choice; choices are group64, group90"),
        (["train", "data.spatial_size=[128,128,90]"], "axis 2 is 90"),
        (["train", "data.spatial_size=[16,16,16]"], "nearest that work are 32 and 48"),
        (["train", "trainer.max_epoch=3"], "did you mean trainer.max_epochs?"),
        (["train", "zebra=3"], "zebra: no such key; python -m pancseg.train --cfg job"),
        (["train", "data.root=nowhere"], "nowhere holds no manifest.json; prepare it first"),
        (["train", "hardware=rtx4090", "data.root=nowhere"], "torch finds no GPU"),
        (["prepare", "source.images=empty", "source.labels=null"], "empty: holds no image"),
        (["prepare", "source.images=gone", "source.labels=null"], "gone: no such file or folder"),
        (["prepare", "source.images=", "source.labels=null"], "source.images is empty"),
        (["prepare", "source.images=null", "source.labels=null"], "source.images is empty"),
        (["train", "ckpt_path=gone/checkpoints/last.ckpt"], "there is no such file"),
        (["train", "data.spatial_size=[128,128]"], "expected three sizes"),
        (["train", "data.batch_size=0"], "data.batch_size=0"),
        (["prepare", "source.images=empty"], "source.labels is not given"),
        (["prepare", "data.depth=0", "source.images=empty", "source.labels=null"], "data.depth=0"),
        (["evaluate"], "give checkpoint=RUN"),
        (["evaluate", "checkpoint=text.ckpt"], "no checkpoint that pancseg.train wrote"),
        (["evaluate", "checkpoint=gone.ckpt"], "there is no such file"),
        (["evaluate", "checkpoint=text.ckpt", "subset=all"], "expected one of train, val, test"),
        (["phantom"], "out is not given"),
        (["phantom", "out=o", "patients=0"], "at least 1 patient"),
    ],
)
def test_a_command_that_cannot_start_says_why_in_one_line_and_ends_with_2(
    words: list[str], says: str, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    ended = command(*words)
    assert ended.code == 2
    assert len(lines(ended.err)) == 1
    assert says in ended.err


def test_labels_that_match_no_image_are_told(dicom: Path, tmp_path: Path, command: Command) -> None:
    labels = write_series(tmp_path / "labels" / "other", patient_id="somebody else").parent
    ended = command("prepare", f"source.images={dicom / 'images'}", f"source.labels={labels}")
    assert ended.code == 1  # the table says which
    assert any("no label there belongs to an image" in line for line in lines(ended.err))
    table = Path("data/prepared/group64/intake.csv").read_text()
    assert table.count("no_label") == 6


def test_too_few_patients_for_the_split_are_told(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    ended = command("train", *smoke(prepared, tmp_path, "split.test=9"))
    assert ended.code == 2
    assert "6 labelled patients, this split needs at least 11" in ended.err


def test_a_folder_of_another_depth_is_told(
    prepared: Path, tmp_path: Path, command: Command
) -> None:
    ended = command("train", *smoke(prepared, tmp_path, "data.depth=16"))
    assert ended.code == 2
    assert "prepared with groups of 32" in ended.err


def test_under_windows_the_line_to_paste_is_quoted_as_its_shells_take_it(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "ON_WINDOWS", True)
    value = "C:\\Users\\Jäger (2)"
    ended = command("prepare", f"source.images={value}", "source.labels=null")
    assert f"\"source.images='{value}'\" source.labels=null" in ended.err
    again = command("prepare", f"source.images='{value}'", "source.labels=null")
    assert f"source.images={value}: no such file or folder" in again.err


@pytest.mark.parametrize("value", ["/data/Ärzte/a=b", "a(b", "x,y(z", "/data/a,b"])
def test_a_path_that_needs_quotes_ends_with_the_command_to_paste(
    value: str, command: Command
) -> None:
    ended = command("prepare", f"source.images={value}", "source.labels=null")
    assert ended.code == 2
    assert len(lines(ended.err)) == 1
    assert f"'source.images=\"{value}\"' source.labels=null" in ended.err
    again = command("prepare", f'source.images="{value}"', "source.labels=null")
    assert f"source.images={value}: no such file or folder" in again.err


@pytest.mark.parametrize(
    "values",
    [
        {"labels=[Bauchspeicheldrüse]": ["Bauchspeicheldrüse"]},
        {
            "labels=[Drüse,7,1.5,null]": ["Drüse", 7, 1.5, None],
            "source.images=/data/Ärzte, (neu)=1": "/data/Ärzte, (neu)=1",
        },
        {"source.images=/a,b": "/a,b", "labels=['Gänge, groß',ü]": ["Gänge, groß", "ü"]},
        {"source.images=C:\\Jäger\\": "C:\\Jäger\\", "data.root=/x=y": "/x=y"},
        {"source.images=/ü'\"$HOME": "/ü'\"$HOME", "data.spacing_mm=[1,1,2.5]": [1, 1, 2.5]},
    ],
)
def test_the_pasted_line_works_for_all_values_that_need_quotes(
    command: Command, values: dict[str, Any]
) -> None:
    ended = command("prepare", "--cfg", "job", *values)
    assert ended.code == 2
    line = ended.err.strip().partition("paste: python ")[2]
    pasted = subprocess.run(
        f"{sys.executable} {line}", shell=True, capture_output=True, text=True, check=False
    )
    assert pasted.returncode == 0, pasted.stderr
    shown = OmegaConf.create(pasted.stdout)
    for override, expected in values.items():
        assert OmegaConf.select(shown, override.partition("=")[0]) == expected


def test_a_label_folder_may_be_anywhere_below_a_quoted_path(
    dicom: Path, tmp_path: Path, command: Command
) -> None:
    odd = tmp_path / "Ärzte a=b (1)"
    odd.symlink_to(dicom)
    source = [f'source.images="{odd / "images"}"', f'source.labels="{odd / "labels"}"']
    assert command("prepare", *source, f"data.root={tmp_path / 'r'}", *SHALLOW).code == 0


def test_the_traceback_is_there_for_those_who_ask(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "pancseg.train", "data.root=nowhere"], check=False,
        env={**START, "HYDRA_FULL_ERROR": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert "Traceback" in ended.stderr
    assert "holds no manifest.json" in ended.stderr


def test_cfg_job_shows_what_runs_with_nothing_left_to_resolve(command: Command) -> None:
    shown = command("train", "experiment=recipe64", "--cfg", "job")
    assert shown.code == 0
    assert "${" not in shown.out
    for number in ("lr: 1.0e-05", "weight_decay: 1.0e-05", "amsgrad: true", "max_epochs: 600"):
        assert number in shown.out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_the_choices(name: str, command: Command) -> None:
    ended = command(name, "--help")
    assert ended.code == 0
    assert f"python -m pancseg.{name}" in ended.out


def seconds(words: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True, env=UNMEASURED)
    return time.perf_counter() - began


@pytest.mark.parametrize("name", COMMANDS)
def test_help_loads_nothing_heavy(name: str) -> None:
    words = [sys.executable, "-X", "importtime", "-m", f"pancseg.{name}", "--help"]
    told = subprocess.run(words, check=True, capture_output=True, text=True, env=UNMEASURED)
    loaded = {line.rpartition("|")[2].strip() for line in told.stderr.splitlines()}
    assert "hydra" in loaded
    assert not loaded & {"torch", "pytorch_lightning", "monai", "optuna", "matplotlib", "scipy"}


def test_a_full_disk_is_told_with_the_file_and_what_to_do() -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/last.ckpt")
    assert one_line(error, "train") == (
        "runs/last.ckpt: No space left on device; make room or give another folder, and run the "
        "same command again: what was reported as done stays"
    )


def test_an_error_stands_on_a_line_of_its_own_below_a_bar(
    capfd: pytest.CaptureFixture[str],
) -> None:
    bar = tqdm(total=3)
    bar.update(1)
    close_progress_bars()
    print("told", file=sys.stderr)
    assert capfd.readouterr().err.endswith("\ntold\n")


@pytest.mark.parametrize(("number", "shown"), [(errno.ENOSPC, False), (errno.ENOENT, True)])
def test_a_thread_that_found_the_disk_full_leaves_the_word_to_the_command(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int, shown: bool
) -> None:
    def write() -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(threading, "excepthook", print_thread_error)
    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert ("Traceback" in capfd.readouterr().err) == shown
