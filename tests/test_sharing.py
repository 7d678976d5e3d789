"""Several workers at one prepared folder or output folder: each does what no other has taken."""

import csv
import json
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
from pancseg.preparing import filling
from pancseg.preparing.conversion import Job, Outcome
from pancseg.sharing import Crew, claim
from tests.conftest import Command, contents, run_command

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
    monkeypatch.setattr(filling, "POLL_S", 0.05)
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


def words(pieces: Path, root: Path) -> list[str]:
    source = ["source=nifti", f"source.images={pieces}", "source.labels=null"]
    named = [r"source.patient='(?P<patient>.+)_\d+$'", "privacy=none"]
    return [*source, *named, f"data.root={root}", "data.depth=32"]


@pytest.fixture(scope="module")
def alone(pieces: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one worker makes of the pieces."""
    root = tmp_path_factory.mktemp("alone") / "r"
    assert run_command("prepare", *words(pieces, root)) == 1  # one is refused
    found = contents(root)
    assert {name for name in found if name.startswith("cases/")} == {
        f"cases/{case}_image.nii.gz" for case in ("a", "a-2", "a-3", "b", "b-2")
    }
    return found


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


def test_a_candidate_of_another_worker_is_waited_for_and_taken_when_it_dies(
    pieces: Path, alone: dict[str, str], tmp_path: Path, command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The first piece is done last, and clocks run wild: names and table stay as they are."""
    root, convert, order = tmp_path / "r", filling.convert, []

    def watched(job: Job) -> Outcome:
        order.append(job.case)
        outcome = convert(job)
        for n, path in enumerate(sorted(root.rglob("*"))):
            os.utime(path, (LONG_AGO, LONG_AGO) if n % 2 else (FAR_AHEAD, FAR_AHEAD))
        return outcome

    monkeypatch.setattr(filling, "convert", watched)
    with monkeypatch.context() as patch:
        patch.setattr(filling, "enter_all", lambda *_: sys.exit(9))  # ends before all is entered
        assert run_command("prepare", *words(pieces, root)) == 9
    records = {path.name: json.loads(path.read_text()) for path in (root / ".unfinished").iterdir()}
    first = next(name for name, record in records.items() if record["name"] == "a")
    (root / ".unfinished" / first).unlink()
    held = claim(root, Path(first).stem)
    assert held is not None
    order.clear()
    with soon(1.0, held.release):
        ended = command("prepare", *words(pieces, root))
    assert order == ["a"]
    assert "1 with other workers" in ended.err
    assert "kept 5 of 6 cases (5 new" in ended.out
    assert ended.code == 1
    assert contents(root) == alone


def test_who_finds_all_recorded_enters_it_without_doing_it_again(
    pieces: Path, alone: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, entered = tmp_path / "r", []
    enter_all, convert = filling.enter_all, filling.convert
    draw, drawn = filling.draw, []
    monkeypatch.setattr(filling, "draw", lambda one: (drawn.append(1), draw(one)))

    def second_inside(*arguments: object) -> None:
        """At the end of a first worker comes a second one, while the first is still there."""
        if entered:
            return enter_all(*arguments)  # type: ignore[arg-type]
        entered.append(1)
        lock = arguments[0].crew.lock  # type: ignore[attr-defined]
        lock.release()
        monkeypatch.setattr(filling, "convert", lambda job: pytest.fail("converted again"))
        assert run_command("prepare", *words(pieces, root)) == 1
        assert (root / ".unfinished").is_dir()  # for the first needs the records as well
        lock.acquire()
        return enter_all(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(filling, "enter_all", second_inside)
    assert run_command("prepare", *words(pieces, root)) == 1
    assert convert is not filling.convert
    assert drawn == [1]
    assert contents(root) == alone


def test_a_preparation_with_other_checks_waits_and_one_with_other_settings_is_refused(
    pieces: Path, alone: dict[str, str], tmp_path: Path, command: Command
) -> None:
    root = tmp_path / "r"
    crew = Crew(root, ".lock")
    with crew.lock:
        crew.join("another")
    half = root / ".partial-0-intake.csv"
    half.touch()

    def leave() -> None:
        assert half.exists()  # it may be the living one's
        with crew.lock:
            crew.leave()

    with soon(1.0, leave):
        ended = command("prepare", *words(pieces, root))
    assert ended.code == 1
    assert "is at work; waiting for its end" in ended.err
    assert contents(root) == alone
    with crew.lock:
        crew.join("another")
    refused = command("prepare", *words(pieces, root), "data.tail=pad")
    assert refused.code == 2
    assert "tail (there drop, now pad)" in refused.err


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
    pieces: Path, alone: dict[str, str], predicting: list[str], tmp_path: Path
) -> None:
    root = tmp_path / "r"
    run_command("prepare", "-m", "worker=0,1", *words(pieces, root))
    assert contents(root) == alone
    run_command("predict", "-m", "worker=0,1", *predicting)
    assert len(rows_of(tmp_path / "out")) == 6
    left = {str(p.relative_to(tmp_path)) for p in (tmp_path / "runs").rglob("*") if p.is_file()}
    assert left == {"runs/prepare/multirun.yaml", "runs/predict/multirun.yaml"}
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "r", "out"}
