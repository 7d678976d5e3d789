"""Several predict workers at one output folder: each does what no other has taken."""

import csv
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pancseg.applying import shared_batch
from pancseg.output.prediction_table import Prediction
from pancseg.sharing import Crew, claim
from tests.conftest import Command, run_command

ROOT = Path(__file__).parent.parent
LONG_AGO, FAR_AHEAD = 1_000_000_000, 2_500_000_000  # 2001 and 2049
JOIN = """
import sys, time
from pathlib import Path
from pancseg.sharing import Crew, claim
crew = Crew(Path(sys.argv[1]), ".lock")
with crew.lock:
    crew.join("work")
held = claim(crew.folder, "part")
print("joined", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_batch, "POLL_S", 0.05)


@pytest.fixture(scope="module")
def pieces(dicom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five NIfTI files of two patients, three and two of each, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("pieces")
    images = sorted((dicom / "truth").glob("*_image.nii.gz"))
    for name, image in zip(("a_1", "a_2", "a_3", "b_1", "b_2"), images, strict=False):
        shutil.copy(image, folder / f"{name}.nii.gz")
    (folder / "c_1.nii.gz").write_bytes(b"no image")
    return folder


def rows_of(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))


@contextmanager
def soon(seconds: float, act: object) -> Iterator[None]:
    """Do something in a while, beside what the body does."""
    timer = threading.Timer(seconds, act)  # type: ignore[arg-type]
    timer.start()
    try:
        yield
    finally:
        timer.join()


def test_who_is_alive_is_told_by_locks_whatever_clocks_say(tmp_path: Path) -> None:
    crew = Crew(tmp_path / "r", ".lock")
    other = subprocess.Popen(
        [sys.executable, "-c", JOIN, tmp_path / "r"], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"joined\n"
    for moment in (LONG_AGO, FAR_AHEAD):
        for path in crew.notes.iterdir():
            os.utime(path, (moment, moment))
        with crew.lock:
            assert crew.others() == ["work"]
        assert claim(crew.folder, "part") is None
    other.kill()
    other.communicate()
    held = claim(crew.folder, "part")
    assert held is not None
    held.release()
    with crew.lock:
        assert crew.others() == []
        assert not list(crew.notes.glob("*.worker"))
        assert crew.leave()
    crew.tidy()
    assert [path.name for path in (tmp_path / "r").iterdir()] == [".lock"]


@pytest.fixture
def predicting(trained: Path, pieces: Path, tmp_path: Path) -> list[str]:
    best = trained / "checkpoints" / "best.ckpt"
    return [f"checkpoint={best}", f"input={pieces}", f"output={tmp_path / 'out'}"]


def test_workers_at_one_batch_share_its_scans_and_each_tells_all_failures(
    predicting: list[str], tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others have one scan, which they drop, and have failed at another one."""
    out = tmp_path / "out"
    assert command("predict", *predicting).code == 1  # one cannot be read
    before = {row["case"]: row for row in rows_of(out)}
    times = {path: path.stat().st_mtime_ns for path in out.glob("a_1*")}
    table = (out / "predictions.csv").read_text().splitlines()
    keep = [line for line in table if line.split(",")[0] not in ("b_1", "b_2", "a_3")]
    (out / "predictions.csv").write_text("\n".join([*keep, ""]))  # as an earlier version leaves it
    word: list[str] = []
    begin = shared_batch.SharedBatch.begin

    def other_first(self: shared_batch.SharedBatch, alone: bool) -> None:
        crew = Crew(out, ".not.the.lock")
        crew.join(self.word)
        failed = Prediction("b_2", "", status="failed", reason="Trouble: of another worker")
        shared_batch.write_json(crew.notes / "b_2.json", vars(failed))
        held = claim(out, "b_1")
        assert held is not None
        threading.Timer(1.0, held.release).start()
        word.append(self.word)
        begin(self, alone=False)

    monkeypatch.setattr(shared_batch.SharedBatch, "begin", other_first)
    ended = command("predict", *predicting)
    assert ended.code == 1
    assert "2 scans were refused or failed" in ended.err
    assert "with other workers" in ended.err
    assert "b_2  failed: Trouble: of another worker" in ended.out
    rows = rows_of(out)
    assert [row["case"] for row in rows] == list(before)
    for row in rows:
        same = ("path", "status", "volume_ml", "confidence", "flags", "input")
        if row["case"] != "b_2":
            assert {key: row[key] for key in same} == {
                key: before[row["case"]][key] for key in same
            }
    assert {path: path.stat().st_mtime_ns for path in out.glob("a_1*")} == times
    monkeypatch.undo()
    assert command("predict", *predicting).code == 1
    assert [row["status"] for row in rows_of(out)] == ["done"] * 5 + ["refused"]


def test_the_table_of_a_batch_is_not_written_after_each_scan_and_records_name_no_path(
    predicting: list[str], pieces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, seen = shared_batch.write_predictions, []

    def counted(folder: Path, rows: list[Prediction]) -> None:
        records = list((folder / ".unfinished").glob("*.json"))
        assert all(str(pieces) not in path.read_text() for path in records)
        seen.append((len(rows), len(records)))
        write(folder, rows)

    monkeypatch.setattr(shared_batch, "write_predictions", counted)
    monkeypatch.setattr(shared_batch, "TABLE_S", 1e9)
    assert run_command("predict", *predicting) == 1
    assert len(seen) == 2  # after the first, and at the end
    assert seen[-1] == (6, 6)
    assert {path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")} == {
        ".predicting.lock"
    }


def test_several_workers_as_a_multirun_leave_one_folder_beside_the_result(
    predicting: list[str], tmp_path: Path
) -> None:
    run_command("predict", "-m", "worker=0,1", *predicting)
    assert len(rows_of(tmp_path / "out")) == 6
    left = {str(p.relative_to(tmp_path)) for p in (tmp_path / "runs").rglob("*") if p.is_file()}
    assert left == {"runs/predict/multirun.yaml"}
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "out"}
